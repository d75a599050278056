package journal_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
	"github.com/storelay/storelay/protocol"
)

// damages are what a disk does to a file behind everybody's back.
var damages = map[string]func(data []byte, at int) []byte{
	"flipped bit": func(data []byte, at int) []byte { data[at] ^= 0x20; return data },
	"zeroed page": func(data []byte, at int) []byte {
		from := at / 4096 * 4096
		clear(data[from:min(from+4096, len(data))])
		return data
	},
	"torn tail":   func(data []byte, at int) []byte { return data[:at] },
	"zero length": func([]byte, int) []byte { return nil },
	"deleted":     nil,
}

// TestDamageIsMendedOrNamedNeverSilent damages one segment anywhere, packed or not, with the index
// whole or lost. Whatever was accepted is held, or stands in a skip that goes to the relay, or is
// named; and the journal goes on.
func TestDamageIsMendedOrNamedNeverSilent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(rapid.Uint64().Draw(t, "seed"))
		for range rapid.IntRange(1, 3).Draw(t, "lives") {
			check(t, m.open())
			for range rapid.IntRange(1, 40).Draw(t, "sales") {
				check(t, m.sell())
			}
			if rapid.Bool().Draw(t, "delivers") {
				check(t, m.deliver(10))
			}
			if rapid.Bool().Draw(t, "packs") {
				for m.j.Stats().Waiting > 0 {
					check(t, m.deliver(50))
				}
				check(t, m.j.Keep())
			}
			check(t, m.j.Close())
			m.disk.Kill()
		}
		files := append(m.disk.Files(".seg"), m.disk.Files(".seg.zst")...)
		slices.Sort(files)
		path := files[rapid.IntRange(0, len(files)-1).Draw(t, "file")]
		what := rapid.SampledFrom(slices.Sorted(maps.Keys(damages))).Draw(t, "damage")
		if damage := damages[what]; damage == nil {
			m.disk.Delete(path)
		} else {
			share := rapid.Float64Range(0, 0.999).Draw(t, "where")
			m.disk.Damage(path, func(data []byte) []byte { return damage(data, int(share*float64(len(data)))) })
		}
		lost := rapid.Bool().Draw(t, "index lost")
		if lost {
			m.index.Lose()
		}
		check(t, m.open())
		// The end of everything, cut off together with the index, looks like an end: only the
		// relay can tell, when it has heard of more.
		unknowable := lost && path == files[len(files)-1] && (what == "torn tail" || what == "zero length" || what == "deleted")
		held, skips := m.held(t)
		missing := 0
		for _, s := range m.accepted {
			got := held[s.at]
			if string(got.Body) == s.body {
				continue
			}
			if got.Body != nil {
				t.Fatalf("%s is %s, want %s", s.at, got.Body, s.body)
			}
			if s.at.Seq > m.acked[s.at.Epoch] { // else the ledger has it, and a skip names it when that is restored
				missing++
			}
			skipped := slices.ContainsFunc(skips, func(k protocol.Skip) bool { return k.From <= s.at.Seq && s.at.Seq <= k.To })
			if !skipped && len(m.j.Damage()) == 0 && !unknowable {
				t.Fatalf("%s of %s: %s is gone without a word", what, path, s.at)
			}
			if !lost && s.at.Seq > m.acked[s.at.Epoch] {
				t.Fatalf("%s of %s: %s waits, the index has it, and it is not held", what, path, s.at)
			}
		}
		if missing > 0 && len(m.j.Damage()) == 0 && lost && !unknowable {
			t.Fatalf("%s of %s: %d records are gone and no damage is shown", what, path, missing)
		}
		check(t, m.sell()) // life goes on, and what waits can be delivered
		for range 1000 {
			if oldest, _ := m.j.Heads(); oldest.Seq == 0 {
				return
			}
			check(t, m.deliver(50))
		}
		t.Fatal("what waits is never delivered")
	})
}

func check(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestAFailingDiskRefusesAndKeepsWhatItAccepted fails a step of the disk once: what was
// accepted stays, the caller is told, and the next sale is accepted.
func TestAFailingDiskRefusesAndKeepsWhatItAccepted(t *testing.T) {
	for _, tt := range []struct {
		step string
		err  error
		want error
	}{
		{"write", syscall.EIO, syscall.EIO},
		{"datasync", syscall.EIO, syscall.EIO},
		{"create", syscall.ENOSPC, journal.ErrFull},
		{"create", syscall.EIO, syscall.EIO},
		{"syncdir", syscall.EIO, syscall.EIO},
	} {
		t.Run(tt.step+" "+tt.err.Error(), func(t *testing.T) {
			m := opened(t)
			m.sellMany(t, 3)
			failed := 0
			m.disk.Fail = func(step, path string) error {
				if step == tt.step && failed == 0 && (step != "write" || strings.HasSuffix(path, ".seg")) {
					failed++
					return tt.err
				}
				return nil
			}
			var err error
			for i := 0; i < 200 && err == nil; i++ { // until a segment begins, where the step is of that
				err = m.sell()
			}
			if failed != 1 || !errors.Is(err, tt.want) {
				t.Fatalf("failed %d times, error %v, want %v", failed, err, tt.want)
			}
			m.sellMany(t, 3)
			m.check(t)
			m.disk.Crash()
			do(t, m.open())
			m.check(t)
		})
	}
}

func TestAShortWriteCountsForNothing(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 2)
	m.disk.Short = func(path string, n int) int { return n / 2 }
	if err := m.sell(); err == nil {
		t.Fatal("half a write was taken for a whole one")
	}
	m.disk.Short = nil
	m.sellMany(t, 2)
	m.disk.Crash()
	do(t, m.open())
	m.check(t)
}

func TestAReadOnlyDiskRefusesAndComesBack(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 3)
	m.disk.ReadOnly = true
	for range 3 {
		if err := m.sell(); !errors.Is(err, syscall.EROFS) {
			t.Fatalf("error %v, want EROFS", err)
		}
	}
	m.disk.Kill()
	if err := m.open(); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("open: %v, want EROFS", err)
	}
	m.disk.ReadOnly = false
	do(t, m.open())
	m.sellMany(t, 3)
	m.check(t)
}

// TestAFullDiskKeepsWhatItAcceptedAndGoesOn fills the disk for real, delivers, and sells
// again when there is room.
func TestAFullDiskKeepsWhatItAcceptedAndGoesOn(t *testing.T) {
	m := newMachine(3)
	m.opt.FloorBytes, m.opt.ReserveBytes = 128<<10, 32<<10
	m.disk.Capacity = 1 << 20
	do(t, m.open())
	if len(m.disk.Files("reserve")) != 1 {
		t.Error("no reserve was laid by")
	}
	var err error
	for i := 0; i < 5000 && err == nil; i++ {
		err = m.sell()
	}
	if !errors.Is(err, journal.ErrFull) {
		t.Fatalf("error %v, want ErrFull", err)
	}
	ballast, err := m.disk.Create("/ballast", 56<<10) // another program takes the rest
	do(t, err)
	do(t, ballast.Close())
	do(t, m.restart())
	m.check(t)
	if len(m.disk.Files("reserve")) != 0 {
		t.Error("the reserve was not given up")
	}
	for m.j.Stats().Waiting > 0 {
		do(t, m.deliver(500))
		do(t, m.j.Keep())
	}
	do(t, m.j.Keep()) // packs and drops what is acknowledged: the disk is low
	m.sellMany(t, 20)
	if d := m.j.Damage(); len(d) > 0 {
		t.Errorf("damage %v", d)
	}
	m.disk.Delete("/ballast")
	do(t, m.j.Keep())
	if free, err := m.disk.Free("/"); err != nil || free < 512<<10 {
		t.Errorf("%d bytes are free, %v: what was acknowledged is not dropped", free, err)
	}
}

// TestNothingIsWrittenToTheIndexOfABrimfulDisk takes the last block, too: acks wait in memory,
// a start says what is wrong, and with room all goes on.
func TestNothingIsWrittenToTheIndexOfABrimfulDisk(t *testing.T) {
	m := newMachine(4)
	free := uint64(1 << 30)
	m.disk.FreeBytes = func() uint64 { return free }
	do(t, m.open())
	m.sellMany(t, 10)
	before := m.index.Clone()
	free = 1 << 20
	do(t, m.deliver(5))
	if n := m.j.Stats().Waiting; n != 6 {
		t.Errorf("%d wait, want 6: an ack is taken all the same", n)
	}
	if !m.index.Equal(before) {
		t.Error("the index was written to")
	}
	if err := m.restart(); !errors.Is(err, journal.ErrFull) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("start: %v, want ErrFull and what to do", err)
	}
	free = 1 << 30
	do(t, m.restart())
	m.sellMany(t, 1)
	m.check(t)
}

func TestManyHundredStartsWedgeNothing(t *testing.T) {
	m := newMachine(5)
	const starts = 800
	for i := range starts {
		do(t, m.open())
		do(t, m.sell())
		if i%200 == 199 {
			for m.j.Stats().Waiting > starts/10 {
				do(t, m.deliver(100))
			}
		}
		m.crash(i%2 == 0)
	}
	do(t, m.open())
	m.check(t)
	if n := len(m.j.Epochs("", 1<<20)); n != starts {
		t.Errorf("%d epochs, want one of each start", n)
	}
}

func TestTheJournalOfAnotherAgentIsNotOpened(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 1)
	m.disk.Kill()
	other := shop
	other.Agent = "pc-2"
	_, err := journal.Open(journal.Options{Dir: "/j", Origin: other, Disk: m.disk, Index: m.index, Inline: true})
	if err == nil || !strings.Contains(err.Error(), "belongs to c/0001/pc") {
		t.Errorf("error %v, want whose it is", err)
	}
	m.disk.Kill()
	do(t, m.open())
	m.check(t)
}

// TestADiskThatLiesIsFoundOut loses what was "synced": nothing can hold that, and the relay,
// which has it, says so.
func TestADiskThatLiesIsFoundOut(t *testing.T) {
	m := newMachine(11)
	m.disk.Lies = true
	do(t, m.open())
	m.sellMany(t, 30)
	oldest, _ := m.j.Heads()
	b, err := m.j.Read(oldest, 1000, 1<<20)
	do(t, err)
	told := mark(b)
	m.disk.Crash()
	m.index.Lose()
	do(t, m.open())
	m.sellMany(t, 1)
	if err := m.j.Acked(told, 1); !errors.Is(err, journal.ErrFork) {
		t.Errorf("the relay's mark of what this disk has lost: %v, want ErrFork", err)
	}
	do(t, m.j.Fork(fmt.Sprint(told)))
	m.sellMany(t, 1)
}

var _ journal.Disk = (*journaltest.Disk)(nil)

// TestAForkOnAFullDiskLeavesTheFloorAlone forks a journal that fills its disk: records are
// moved as the keeper makes room of those that were, and none is lost or moved twice.
func TestAForkOnAFullDiskLeavesTheFloorAlone(t *testing.T) {
	m := newMachine(5)
	m.disk.Capacity = 5 << 20
	m.opt.FloorBytes, m.opt.ReserveBytes, m.opt.SegmentBytes = 4<<20, -1, 128<<10
	do(t, m.open())
	var err error
	for err == nil {
		err = m.sell()
	}
	if !errors.Is(err, journal.ErrFull) || len(m.accepted) < 1000 {
		t.Fatalf("error %v after %d sales, want ErrFull", err, len(m.accepted))
	}
	rounds := 0
	for err = m.j.Fork("test"); err != nil; err = m.j.Fork("test") {
		if rounds++; !errors.Is(err, journal.ErrFull) || rounds > 100 {
			t.Fatalf("round %d: %v", rounds, err)
		}
		if free, err := m.disk.Free("/"); err != nil || free < 512<<10 {
			t.Fatalf("%d bytes are free, %v: less than an eighth of the floor, which the index needs", free, err)
		}
		do(t, m.j.Keep())
	}
	if rounds == 0 {
		t.Error("the disk was not full")
	}
	m.once(t)
}

// once wants each accepted record to wait once.
func (m *machine) once(t *testing.T) {
	t.Helper()
	waits := map[string]int{}
	for _, b := range m.waiting(t) {
		for _, r := range b.Records {
			waits[string(r.Body)]++
		}
	}
	for i, s := range m.accepted {
		if waits[s.body] != 1 {
			t.Fatalf("sale %d waits %d times; damage %q", i, waits[s.body], m.j.Damage())
		}
	}
}

// TestALostRecordIsAcceptedAgain posts once more what the journal has named as lost.
func TestALostRecordIsAcceptedAgain(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 20)
	do(t, m.j.Snapshot())
	m.disk.Kill()
	lost := m.accepted[9]
	m.disk.Damage(m.disk.Files(".seg")[0], func(b []byte) []byte {
		b[bytes.Index(b, []byte(lost.body))+3] ^= 1
		return b
	})
	m.index.Lose()
	do(t, m.open())
	if len(m.j.Damage()) == 0 {
		t.Fatal("no loss is named")
	}
	for _, s := range m.accepted {
		receipt, err := m.again(s)
		if err != nil || receipt.Known != (s != lost) {
			t.Errorf("sale at %s, posted again: %+v, %v", s.at, receipt, err)
		}
	}
	do(t, m.restart())
	m.once(t)
}
