package journal_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
	"github.com/storelay/storelay/protocol"
)

// A machine is a PC with a disk and an index in memory, and what a till was told by the
// journal on it.
type machine struct {
	disk  *journaltest.Disk
	index *journal.MemoryIndex
	rand  *rand.Rand
	j     *journal.Journal
	now   time.Time
	ran   time.Duration   // since the PC booted
	opt   journal.Options // beside what open sets

	n        int
	accepted []sold // in order
	state    string // newest accepted
	acked    map[protocol.Epoch]uint64
}

// A sold record is one that was accepted.
type sold struct {
	at   protocol.Position
	body string
	key  string
}

var shop = protocol.Origin{Chain: "c", Store: "0001", Agent: "pc"}

func newMachine(seed uint64) *machine {
	m := &machine{rand: rand.New(rand.NewPCG(seed, 3)), index: journal.NewMemoryIndex(), now: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), acked: map[protocol.Epoch]uint64{}}
	m.disk = journaltest.NewDisk(seed, func() time.Time { return m.now })
	m.opt = journal.Options{SegmentBytes: 16 << 10, ReserveBytes: -1}
	return m
}

func (m *machine) open() error {
	var err error
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(m.rand.Uint32())
	}
	o := m.opt
	o.Dir, o.Origin, o.Random, o.Log = "/j", shop, rand.NewChaCha8(seed), slog.New(slog.DiscardHandler)
	o.Now, o.Mono = func() time.Time { return m.now }, func() time.Duration { return m.ran }
	o.Disk, o.Index, o.Inline = m.disk, m.index, true
	o.Remark = func(old protocol.DayMark, head protocol.Mark) ([]byte, error) {
		old.Head = head
		return json.Marshal(old)
	}
	m.j, err = journal.Open(o)
	return err
}

// live lets the PC run.
func (m *machine) live(d time.Duration) { m.now, m.ran = m.now.Add(d), m.ran+d }

// restart ends the process, or the power, and opens the journal again.
func (m *machine) restart() error {
	m.disk.Kill()
	return m.open()
}

func (m *machine) sell() error {
	m.n++
	body := fmt.Sprintf(`{"n":%d,"pad":"%s"}`, m.n, bytes.Repeat([]byte("x"), m.rand.IntN(900)))
	key, state := fmt.Sprint("k", m.n), fmt.Sprint(m.n)
	r, err := m.j.Append(context.Background(), journal.Entry{Kind: protocol.KindTransaction, Body: []byte(body), Keys: []string{key}, StateKey: "s", State: []byte(state)})
	if err != nil {
		return err
	}
	m.accepted = append(m.accepted, sold{r.Position, body, key})
	m.state = state
	return nil
}

// again posts what was accepted once more.
func (m *machine) again(s sold) (journal.Receipt, error) {
	return m.j.Append(context.Background(), journal.Entry{Kind: protocol.KindTransaction, Body: []byte(s.body), Keys: []string{s.key}})
}

func (m *machine) sellMany(t testing.TB, n int) {
	t.Helper()
	for range n {
		if err := m.sell(); err != nil {
			t.Fatal(err)
		}
	}
}

// deliver reads and acknowledges at most n records, as a sender does; incarnation 1.
func (m *machine) deliver(n int) error {
	oldest, _ := m.j.Heads()
	if oldest.Seq == 0 {
		return nil
	}
	b, err := m.j.Read(oldest, n, 1<<20)
	if err != nil || b.Last() < b.First {
		return err
	}
	_, incarnation := m.j.LastAck()
	m.acked[b.Epoch] = b.Last()
	return m.j.Acked(protocol.Mark{Epoch: b.Epoch, Through: b.Last(), Hash: lastHash(b)}, max(1, incarnation))
}

// lastHash is the hash of a batch's last record.
func lastHash(b protocol.Batch) protocol.Hash {
	hash := b.Prev
	if b.Skip != nil {
		hash = b.Skip.Hash
	}
	for i := range b.Records {
		hash = b.Records[i].Hash(hash)
	}
	return hash
}

// held reads everything that the journal holds, by the position where it was first accepted,
// and checks each epoch's chain of hashes. Skips are named.
func (m *machine) held(t rapid.TB) (records map[protocol.Position]protocol.Record, skips []protocol.Skip) {
	t.Helper()
	records = map[protocol.Position]protocol.Record{}
	for _, epoch := range m.j.Epochs("", 1<<20) {
		at, hash := protocol.Position{Epoch: epoch, Seq: 1}, protocol.Genesis(shop.Chain, shop.Store, shop.Agent, epoch)
		for {
			b, err := m.j.Read(at, 7, 1<<20)
			if err != nil {
				t.Fatalf("read %s: %v", at, err)
			}
			if b.Last() < b.First {
				break
			}
			if b.Skip == nil && b.Prev != hash {
				t.Fatalf("%s: prev is not the hash of the record before", at)
			}
			if b.Skip != nil {
				skips = append(skips, *b.Skip)
			}
			for i := range b.Records {
				first := protocol.Position{Epoch: epoch, Seq: b.Records[i].Seq}
				if was := b.Records[i].Was; was != nil {
					first = protocol.Position{Epoch: was.Epoch, Seq: was.Seq}
				}
				records[first] = b.Records[i]
			}
			hash = lastHash(b)
			at.Seq = b.Last() + 1
		}
	}
	return records, skips
}

// check compares the journal with what was accepted, when nothing was damaged.
func (m *machine) check(t rapid.TB) {
	t.Helper()
	held, skips := m.held(t)
	for _, s := range m.accepted {
		if got := held[s.at]; string(got.Body) != s.body {
			t.Fatalf("record %s that was accepted is lost or changed; damage: %v", s.at, m.j.Damage())
		}
	}
	if len(skips) > 0 {
		t.Fatalf("nothing is lost, and the journal skips %+v", skips)
	}
	// A write whose answer was an error may be there all the same, and is the newest then.
	if got, err := m.j.State("s"); err != nil || m.state != "" && len(got) == 0 {
		t.Fatalf("state %q, %v, want %q", got, err, m.state)
	}
	if d := m.j.Damage(); len(d) > 0 {
		t.Fatalf("nothing was damaged, and the journal says %v", d)
	}
	if n := len(m.accepted); n > 0 {
		last := m.accepted[n-1]
		r, err := m.j.Append(context.Background(), journal.Entry{Kind: protocol.KindTransaction, Body: []byte(last.body), Keys: []string{last.key}})
		if err != nil || !r.Known || r.Position != last.at {
			t.Fatalf("the same sale again: %+v, %v, want known at %s", r, err, last.at)
		}
	}
}

// marksAt are the marks of a ledger that stands at the given seqs.
func (m *machine) marksAt(t rapid.TB, through map[protocol.Epoch]uint64) (marks []protocol.Mark) {
	t.Helper()
	for _, epoch := range m.j.Epochs("", 1<<20) {
		mark := protocol.Mark{Epoch: epoch, Hash: protocol.Genesis(shop.Chain, shop.Store, shop.Agent, epoch)}
		if n := through[epoch]; n > 0 {
			b, err := m.j.Read(protocol.Position{Epoch: epoch, Seq: n}, 1, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			mark.Through, mark.Hash = n, lastHash(b)
		}
		marks = append(marks, mark)
	}
	return marks
}

// TestNothingAcceptedIsLostWhenThePowerGoesAtAnyStep cuts the power, or kills the process, at
// any step of the disk, again and again, while the journal sells, delivers, keeps, forks and
// goes back.
func TestNothingAcceptedIsLostWhenThePowerGoesAtAnyStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(rapid.Uint64().Draw(t, "seed"))
		incarnation := int64(1)
		for range rapid.IntRange(1, 8).Draw(t, "lives") {
			if rapid.Bool().Draw(t, "dies") {
				m.disk.DieAt(rapid.IntRange(1, 60).Draw(t, "at step"))
			}
			err := m.open()
			for step := 0; err == nil && step < 25 && !m.disk.Dead(); step++ {
				switch m.rand.IntN(24) {
				case 0, 1, 2:
					err = m.deliver(1 + m.rand.IntN(20))
				case 3:
					err = m.j.Keep()
				case 4, 5:
					m.live(time.Duration(m.rand.IntN(48)) * time.Hour / 10)
				case 6:
					err = m.j.Fork("another disk")
				case 7:
					incarnation++
					back := map[protocol.Epoch]uint64{}
					for e, n := range m.acked {
						back[e] = uint64(m.rand.Int64N(int64(n) + 1))
					}
					err = m.j.Rewind(m.marksAt(t, back), incarnation)
				default:
					err = m.sell()
				}
			}
			if err != nil && !m.disk.Dead() {
				t.Fatalf("a whole disk: %v", err)
			}
			if m.j != nil && err == nil && rapid.Bool().Draw(t, "closes") {
				if err := m.j.Close(); err != nil && !m.disk.Dead() {
					t.Fatal(err)
				}
			}
			m.crash(rapid.Bool().Draw(t, "power cut"))
		}
		if err := m.open(); err != nil {
			t.Fatalf("open: %v", err)
		}
		m.check(t)
		for range 10000 { // what waits can be delivered
			if oldest, _ := m.j.Heads(); oldest.Seq == 0 {
				return
			}
			if err := m.deliver(50); err != nil {
				t.Fatalf("deliver: %v", err)
			}
		}
		t.Fatal("what waits is never delivered")
	})
}

// crash ends the machine: by a power cut, or the process alone.
func (m *machine) crash(power bool) {
	m.index.Crash(func(commits int) int {
		if m.rand.IntN(2) == 0 {
			return 0
		}
		return m.rand.IntN(commits + 1)
	})
	if m.rand.IntN(10) == 0 {
		m.index.Lose()
	}
	if power {
		m.disk.Crash()
	} else {
		m.disk.Kill()
	}
}
