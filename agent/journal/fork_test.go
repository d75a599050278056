package journal_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
)

// opened is a machine whose journal is open.
func opened(t *testing.T) *machine {
	t.Helper()
	m := newMachine(1)
	if err := m.open(); err != nil {
		t.Fatal(err)
	}
	return m
}

// waiting are the records from the oldest that waits on, as a sender reads them.
func (m *machine) waiting(t *testing.T) (batches []protocol.Batch) {
	t.Helper()
	oldest, newest := m.j.Heads()
	for at := oldest; at.Seq > 0; {
		b, err := m.j.Read(at, 1000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if b.Last() >= b.First {
			batches = append(batches, b)
		}
		last := protocol.Position{Epoch: at.Epoch, Seq: b.Last()}
		if last == newest {
			return batches
		}
		at = m.j.Next(last)
	}
	return nil
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mark(b protocol.Batch) protocol.Mark {
	return protocol.Mark{Epoch: b.Epoch, Through: b.Last(), Hash: lastHash(b)}
}

func TestAForkSendsWhatIsNotAcknowledgedUnderNewNumbers(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 5)
	do(t, m.deliver(3)) // the seal and two sales
	_, err := m.j.Append(context.Background(), journal.Entry{Kind: protocol.KindDayMark, Day: protocol.Day{Year: 2026, Month: 11, Date: 21},
		Make: func(head protocol.Mark) ([]byte, error) {
			return fmt.Appendf(nil, `{"day":"2026-11-21","head":{"epoch":"%s","through":%d,"hash":"%s"}}`, head.Epoch, head.Through, head.Hash), nil
		}})
	do(t, err)
	old, _ := m.j.LastAck()
	do(t, m.j.Fork("test"))

	batches := m.waiting(t)
	if len(batches) != 1 || batches[0].Epoch == old.Epoch || len(batches[0].Records) != 5 {
		t.Fatalf("%+v waits, want the seal, three sales and the mark in a new epoch", batches)
	}
	records := batches[0].Records
	seal, err := protocol.DecodeSeal(records[0].Body)
	if err != nil || !seal.Forked || *seal.Before != *old {
		t.Errorf("seal %+v, %v, want forked behind %+v", seal, err, old)
	}
	for i, r := range records[1:4] {
		sale := m.accepted[2+i]
		if string(r.Body) != sale.body || r.Was == nil || r.Was.Epoch != sale.at.Epoch || r.Was.Seq != sale.at.Seq || r.Was.SHA256 != r.ContentHash() {
			t.Errorf("record %d is %s, was %+v; want %s of %s", i, r.Body, r.Was, sale.body, sale.at)
		}
	}
	again, err := protocol.DecodeDayMark(records[4].Body)
	if err != nil || records[4].Was != nil || again.Head.Epoch != batches[0].Epoch || again.Head.Through != 4 {
		t.Errorf("day mark %+v, was %+v, %v; want it made anew behind record 4", again, records[4].Was, err)
	}
	if n := m.j.Stats().Waiting; n != 5 {
		t.Errorf("%d wait, want 5", n)
	}
	m.check(t)
}

func TestAForkOfAForkNamesTheFirstPosition(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 2)
	do(t, m.j.Fork("once"))
	do(t, m.restart())
	m.sellMany(t, 1)
	do(t, m.j.Fork("twice"))
	batches := m.waiting(t)
	if len(batches) != 1 {
		t.Fatalf("%d epochs wait, want one", len(batches))
	}
	for i, r := range batches[0].Records[1:] {
		if want := m.accepted[i].at; r.Was == nil || (protocol.Position{Epoch: r.Was.Epoch, Seq: r.Was.Seq}) != want {
			t.Errorf("record %d was %+v, want %s", i, r.Was, want)
		}
	}
}

func TestWordsOfAForkedEpochAreNoMoreForks(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 3)
	do(t, m.deliver(2))
	old, _ := m.j.LastAck()
	beyond := protocol.Mark{Epoch: old.Epoch, Through: 9, Hash: protocol.Hash{1}}
	if err := m.j.Acked(beyond, 1); !errors.Is(err, journal.ErrFork) {
		t.Fatalf("an ack beyond the newest record: %v, want ErrFork", err)
	}
	do(t, m.j.Fork("beyond"))
	for _, restarted := range []bool{false, true} {
		if restarted {
			do(t, m.restart())
		}
		if err := m.j.Acked(beyond, 1); err != nil {
			t.Errorf("restarted %v: the other branch's mark is %v, want it left alone", restarted, err)
		}
	}
	if n := m.j.Stats().Waiting; n != 3 { // seal and two sales
		t.Errorf("%d wait, want 3", n)
	}
}

func TestAForkThatWasBrokenOffIsGoneOnWith(t *testing.T) {
	for at := 1; ; at++ {
		m := opened(t)
		m.sellMany(t, 30)
		m.disk.DieAt(at)
		err := m.j.Fork("test")
		if err == nil {
			return
		}
		m.disk.Crash()
		do(t, m.open())
		m.check(t)
		do(t, m.j.Fork("the relay says so again"))
		var sales []string
		for _, b := range m.waiting(t) {
			for _, r := range b.Records {
				if r.Kind == protocol.KindTransaction && !slices.Contains(sales, string(r.Body)) {
					sales = append(sales, string(r.Body))
				}
			}
		}
		if len(sales) != 30 {
			t.Fatalf("broken off at step %d: %d sales wait, want 30", at, len(sales))
		}
	}
}

func TestARewindSendsAgainWhatTheRelayHasLost(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 20)
	for m.j.Stats().Waiting > 0 {
		do(t, m.deliver(4))
	}
	do(t, m.restart())
	m.sellMany(t, 3)
	epochs := m.j.Epochs("", 10)
	if len(epochs) != 2 {
		t.Fatalf("epochs %v, want two", epochs)
	}
	do(t, m.j.Rewind(m.marksAt(t, map[protocol.Epoch]uint64{epochs[0]: 6}), 2))
	for _, restarted := range []bool{false, true} {
		if restarted {
			m.index.Lose() // the segments alone know
			do(t, m.restart())
		}
		if last, incarnation := m.j.LastAck(); incarnation != 2 || last != nil {
			t.Errorf("restarted %v: last ack %+v of incarnation %d, want none of 2", restarted, last, incarnation)
		}
		if oldest, _ := m.j.Heads(); oldest != (protocol.Position{Epoch: epochs[0], Seq: 7}) {
			t.Errorf("restarted %v: oldest %s, want what follows the mark", restarted, oldest)
		}
		if n := m.j.Stats().Waiting; n != 15+4 {
			t.Errorf("restarted %v: %d wait, want 15 of the first epoch and 4 of the second", restarted, n)
		}
	}
	if err := m.j.Acked(m.marksAt(t, map[protocol.Epoch]uint64{epochs[0]: 10})[0], 1); err != nil {
		t.Error(err)
	}
	if oldest, _ := m.j.Heads(); oldest.Seq != 7 {
		t.Errorf("an ack of the incarnation before took %s off", oldest)
	}
	m.check(t)
}

func TestAMarkThatIsNotOursSendsItsWholeEpochAgain(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 5)
	do(t, m.deliver(100))
	epoch := m.j.Epochs("", 1)[0]
	do(t, m.j.Rewind([]protocol.Mark{{Epoch: epoch, Through: 3, Hash: protocol.Hash{7}}, {Epoch: "00000000000000000000000000000009", Through: 3}}, 2))
	if oldest, _ := m.j.Heads(); oldest != (protocol.Position{Epoch: epoch, Seq: 1}) {
		t.Errorf("oldest %s, want the whole epoch sent again", oldest)
	}
	if n := m.j.Stats().Waiting; n != 6 {
		t.Errorf("%d wait, want the seal and five sales", n)
	}
}

// TestAWrongClockDropsNothing sets the clock right of a PC whose battery is dead, and has it
// stand in the future for a moment.
func TestAWrongClockDropsNothing(t *testing.T) {
	m := newMachine(1)
	m.opt.SegmentBytes = 16 << 10
	right := m.now
	m.now = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	do(t, m.open())
	m.sellMany(t, 60)
	for m.j.Stats().Waiting > 0 {
		do(t, m.deliver(100))
	}
	do(t, m.j.Keep())
	held := m.j.Stats().Segments
	for _, now := range []time.Time{right, right.AddDate(30, 0, 0), right} {
		m.now = now
		m.ran += time.Minute
		do(t, m.j.Keep())
		do(t, m.j.Keep())
		do(t, m.restart())
		if got := m.j.Stats().Segments; held < 3 || got < held {
			t.Fatalf("%d segments with the clock at %s, %d before", got, now, held)
		}
	}
	for _, s := range m.accepted {
		if receipt, err := m.again(s); err != nil || receipt.Position != s.at {
			t.Fatalf("sale %s, accepted at %s, is accepted at %s, %v", s.key, s.at, receipt.Position, err)
		}
	}
}

func TestWhatRetentionDroppedIsSkippedAfterARewind(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 60)
	for m.j.Stats().Waiting > 0 {
		do(t, m.deliver(100))
	}
	first := m.j.Epochs("", 1)[0]
	do(t, m.restart())
	m.sellMany(t, 30)
	do(t, m.deliver(100))
	do(t, m.j.Keep())
	m.live(15 * 24 * time.Hour)
	do(t, m.j.Keep())
	do(t, m.j.Keep())
	if len(m.disk.Files(".zst")) > 0 {
		t.Fatalf("files %v, want the packed segments dropped", m.disk.Files(""))
	}
	do(t, m.j.Rewind(m.marksAt(t, nil), 2))
	b, err := m.j.Read(protocol.Position{Epoch: first, Seq: 1}, 10, 1<<20)
	if err != nil || b.Skip == nil || b.Skip.From != 1 || b.Skip.To != 61 || b.Skip.Reason != protocol.SkipTrimmed || b.Skip.Seal == nil || b.Skip.Seal.Before != nil {
		t.Fatalf("batch %+v, %v, want the first epoch skipped whole with its seal", b, err)
	}
	do(t, m.j.Acked(mark(b), 2))
	next := m.j.Next(protocol.Position{Epoch: first, Seq: 61})
	if b, err = m.j.Read(next, 100, 1<<20); err != nil || b.Skip == nil || b.Skip.From != 1 || b.Skip.Seal == nil || b.Skip.Seal.Before == nil || b.Skip.Seal.Before.Through != 61 {
		t.Fatalf("batch %+v, %v, want a skip with the lost seal", b, err)
	}
	skipped := b.Skip
	b, err = m.j.Read(protocol.Position{Epoch: next.Epoch, Seq: skipped.To + 1}, 100, 1<<20)
	if err != nil || len(b.Records) == 0 || b.Prev != skipped.Hash {
		t.Fatalf("batch %+v, %v, want records that follow the skip's hash", b, err)
	}
	if d := m.j.Damage(); len(d) > 0 {
		t.Errorf("damage %v, want none: retention did it", d)
	}
}

// TestALostSegmentLeavesItsNeighboursAlone loses the middle one of three epochs. The first, of
// which nothing was delivered, is neither dropped nor forgotten.
func TestALostSegmentLeavesItsNeighboursAlone(t *testing.T) {
	for _, index := range []string{"kept", "lost before", "lost after"} {
		t.Run("index "+index, func(t *testing.T) {
			m := opened(t)
			m.sellMany(t, 5)
			for range 2 {
				do(t, m.restart())
				m.sellMany(t, 5)
			}
			m.disk.Kill()
			m.disk.Delete(m.disk.Files(".seg")[1])
			if index == "lost before" {
				m.index.Lose()
			}
			do(t, m.open())
			for range 3 {
				m.live(15 * 24 * time.Hour)
				do(t, m.j.Keep())
			}
			if index == "lost after" {
				m.disk.Kill()
				m.index.Lose()
				do(t, m.open())
			}
			held := map[string]bool{}
			for _, b := range m.waiting(t) {
				for _, r := range b.Records {
					held[string(r.Body)] = true
				}
			}
			for i, s := range m.accepted {
				if middle := 5 <= i && i < 10; !held[s.body] && (!middle || index == "kept") {
					t.Errorf("sale %d is not held any more; damage %q", i, m.j.Damage())
				}
			}
			if len(m.j.Damage()) == 0 && index != "kept" {
				t.Error("no loss is named")
			}
		})
	}
}

// TestAnAckOfWhatTheDiskHasLostIsTaken: the relay has records whose ack never came, and the disk
// loses them. Nothing here can be compared with the ack; to wait for it for ever helps nobody.
func TestAnAckOfWhatTheDiskHasLostIsTaken(t *testing.T) {
	m := opened(t)
	m.sellMany(t, 5)
	oldest, _ := m.j.Heads()
	b, err := m.j.Read(oldest, 4, 1<<20)
	do(t, err)
	do(t, m.restart())
	m.sellMany(t, 1)
	m.disk.Kill()
	m.disk.Damage(m.disk.Files(".seg")[0], func(b []byte) []byte { return b[:9000] })
	m.index.Lose()
	do(t, m.open())
	if len(m.j.Damage()) == 0 {
		t.Fatal("no loss is named")
	}
	do(t, m.j.Acked(mark(b), 1))
	for m.j.Stats().Waiting > 0 {
		do(t, m.deliver(100))
	}
}
