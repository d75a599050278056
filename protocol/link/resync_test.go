package link_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// old is a source of many epochs that a ledger of incarnation 1 has acknowledged, and one
// that it has not.
func old(t *testing.T, epochs int) (*linktest.Source, map[protocol.Epoch]protocol.Mark) {
	t.Helper()
	s := linktest.NewSource()
	marks := map[protocol.Epoch]protocol.Mark{}
	for n := range epochs {
		s.Begin(n + 1)
		for range 2 {
			s.Append(1)
		}
		_, newest := s.Heads()
		b, err := s.Read(protocol.Position{Epoch: newest.Epoch, Seq: 1}, 9, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		marks[b.Epoch] = end(b)
		if n == epochs-1 {
			break
		}
		if err := s.Acked(end(b), 1); err != nil {
			t.Fatal(err)
		}
	}
	return s, marks
}

// pages answers the questions for marks as a ledger that has lost the last record of every
// epoch, until batches are sent.
func pages(d *desk, incarnation int64, marks map[protocol.Epoch]protocol.Mark) (asked []protocol.Epoch) {
	d.t.Helper()
	for {
		if d.wait(time.Minute); len(d.batches) > 0 {
			return asked
		}
		page := d.asks[0].Marks.Epochs
		asked = append(asked, page...)
		d.hear(protocol.Down{Marks: halfOf(d.t, d.source, incarnation, page, marks)})
	}
}

func halfOf(t *testing.T, source link.Source, incarnation int64, page []protocol.Epoch, marks map[protocol.Epoch]protocol.Mark) *protocol.Marks {
	t.Helper()
	m := &protocol.Marks{Incarnation: incarnation}
	for _, e := range page {
		b, err := source.Read(protocol.Position{Epoch: e, Seq: marks[e].Through}, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		m.Marks = append(m.Marks, protocol.Mark{Epoch: e, Through: marks[e].Through - 1, Hash: b.Prev})
	}
	return m
}

func TestARestoredLedgerIsToldEverythingThatItHasLost(t *testing.T) {
	source, marks := old(t, 1200)
	d := newDesk(t, source, nil, link.Options{})
	d.step()
	flying := d.batches[0]
	mark := end(flying)
	d.hear(protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: 2, Epoch: mark.Epoch, Through: mark.Through, Hash: mark.Hash}})
	if oldest, _ := source.Heads(); oldest.Epoch != flying.Epoch {
		t.Errorf("oldest %v, want no ack taken before the marks are known", oldest)
	}
	asked := pages(d, 2, marks)
	if len(asked) != 1200 {
		t.Fatalf("%d epochs asked for, want 1200 in pages", len(asked))
	}
	if _, incarnation := source.LastAck(); incarnation != 2 {
		t.Errorf("incarnation %d, want 2 taken over", incarnation)
	}
	if b := d.batches[0]; b.Epoch != asked[0] || b.First != 3 {
		t.Errorf("then sent %s/%d, want the oldest record that was lost, 3 of the first epoch", b.Epoch, b.First)
	}
	if s := d.sender.Status(); s.Rewinds != 1 || s.Forks != 0 {
		t.Errorf("status %+v, want one rewind", s)
	}
}

// An agent that has nothing to send hears of a restored ledger with a page of a feed, and says
// in its status that what waits is not known yet.
func TestAPageTellsOfARestoredLedger(t *testing.T) {
	source, marks := old(t, 3)
	d := newDesk(t, source, []string{"items"}, link.Options{})
	d.step()
	mark := end(d.batches[0])
	d.hear(protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: 1, Epoch: mark.Epoch, Through: mark.Through, Hash: mark.Hash}})
	if oldest, _ := source.Heads(); oldest.Seq != 0 {
		t.Fatalf("%s waits, want nothing", oldest)
	}
	told := page(0, 0, false)
	told.Page.Incarnation = 2
	d.hear(told)
	if s := d.sender.Status(); !s.Rewinding || s.Incarnation != 2 {
		t.Errorf("status %+v, want it rewinding to incarnation 2", s)
	}
	pages(d, 2, marks)
	if s := d.sender.Status(); s.Rewinding || s.Rewinds != 1 {
		t.Errorf("status %+v, want one rewind, and done", s)
	}
	told.Page.Incarnation = 1
	if err := d.try(told); !errors.Is(err, link.ErrLeave) {
		t.Errorf("a page of an older ledger: %v, want ErrLeave", err)
	}
}

func TestMarksThatAreNotTheAnswerAreIgnored(t *testing.T) {
	source, marks := old(t, 600)
	d := newDesk(t, source, nil, link.Options{})
	d.hear(protocol.Down{Marks: halfOf(t, source, 1, source.Epochs("", 5), marks)}) // nobody asked
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 2}})
	d.step()
	page := d.asks[0].Marks.Epochs
	first := halfOf(t, source, 2, page, marks)
	for name, m := range map[string]*protocol.Marks{
		"half":         {Incarnation: 2, Marks: first.Marks[:len(page)/2]},
		"none":         {Incarnation: 2},
		"more":         {Incarnation: 2, Marks: append(first.Marks[:len(page):len(page)], first.Marks[0])},
		"others":       halfOf(t, source, 2, source.Epochs(page[0], len(page)), marks),
		"second page":  halfOf(t, source, 2, source.Epochs(page[len(page)-1], 500), marks),
		"out of order": {Incarnation: 2, Marks: append([]protocol.Mark{first.Marks[1], first.Marks[0]}, first.Marks[2:]...)},
	} {
		d.hear(protocol.Down{Marks: m})
		if d.step(); len(d.asks) != 0 || len(d.batches) != 0 {
			t.Fatalf("%s: taken for the answer", name)
		}
	}
	waited := d.wait(time.Minute) // the answer was lost: asked again
	if again := d.asks[0].Marks.Epochs; waited < 3*time.Second || waited > 6*time.Second || len(again) != len(page) || again[0] != page[0] {
		t.Errorf("asked again after %s, want the same page after 3 to 6 s", waited)
	}
	if waited := d.wait(time.Minute); waited < 6*time.Second || waited > 12*time.Second {
		t.Errorf("asked a third time after %s, want the pause doubled", waited)
	}
	d.hear(protocol.Down{Marks: first})
	d.hear(protocol.Down{Marks: first}) // doubled
	d.step()
	rest := d.asks[0].Marks.Epochs
	d.hear(protocol.Down{Marks: first}) // late
	if d.step(); len(d.asks)+len(d.batches) != 0 {
		t.Error("the first page's marks were taken for the second's")
	}
	d.hear(protocol.Down{Marks: halfOf(t, source, 2, rest, marks)})
	if d.step(); len(d.batches) == 0 || len(page)+len(rest) != 600 || d.sender.Status().Rewinds != 1 {
		t.Errorf("%d epochs, status %+v, want one rewind with all marks", len(page)+len(rest), d.sender.Status())
	}
}

func TestAStillHigherIncarnationStartsOver(t *testing.T) {
	source, marks := old(t, 600)
	d := newDesk(t, source, nil, link.Options{})
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 2}})
	d.step()
	d.hear(protocol.Down{Marks: halfOf(t, source, 2, d.asks[0].Marks.Epochs, marks)})
	d.step()
	d.hear(protocol.Down{Marks: halfOf(t, source, 3, d.asks[0].Marks.Epochs, marks)}) // restored once more
	if asked := pages(d, 3, marks); len(asked) != 600 {
		t.Errorf("%d epochs asked for, want all 600 from the start", len(asked))
	}
	if _, incarnation := source.LastAck(); incarnation != 3 || d.sender.Status().Rewinds != 1 {
		t.Errorf("incarnation %d, status %+v, want one rewind to 3", incarnation, d.sender.Status())
	}
	if err := d.try(protocol.Down{Marks: &protocol.Marks{Incarnation: 2}}); !errors.Is(err, link.ErrLeave) {
		t.Errorf("the older ledger: %v, want ErrLeave", err)
	}
}

func TestARewindThatCannotBeWrittenIsTriedAgain(t *testing.T) {
	s, marks := old(t, 3)
	source := &failing{Source: s, rewinds: 1}
	d := newDesk(t, source, nil, link.Options{})
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 2}})
	d.step()
	d.hear(protocol.Down{Marks: halfOf(t, source, 2, d.asks[0].Marks.Epochs, marks)})
	if _, _, err := d.sender.Step(d.now); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Fatalf("err %v, want the disk's", err)
	}
	d.sender.Connected(d.now, "me")
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 2}})
	if asked := pages(d, 2, marks); len(asked) != 3 || d.sender.Status().Rewinds != 1 {
		t.Errorf("asked for %d epochs, status %+v, want all again and one rewind", len(asked), d.sender.Status())
	}
}

func TestTheFirstLedgerThatIsSeenNeedsNoMarks(t *testing.T) {
	source := records(3, 10)
	d := newDesk(t, source, nil, link.Options{})
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 7}})
	if d.step(); len(d.batches) != 1 || len(d.asks) != 0 {
		t.Errorf("%d batches, asks %+v, want the records sent", len(d.batches), d.asks)
	}
}

func TestABackupThatIsRestoredLosesAndDoublesNothing(t *testing.T) {
	for _, silent := range []bool{false, true} {
		w := linktest.NewWorld(9, small())
		w.Source.Begin(1)
		for range 30 {
			w.Source.Append(100)
		}
		if err := w.Run(time.Minute); err != nil {
			t.Fatal(err)
		}
		backup := w.Sink.Backup()
		w.Crash(w.Agent)
		for range 30 {
			w.Source.Append(100)
		}
		if err := w.Run(time.Minute); err != nil {
			t.Fatal(err)
		}
		before := len(w.Sink.Committed())
		w.Restore(backup, silent)
		settle(t, w)
		if s := w.Sender.Status(); s.Rewinds != 1 || len(w.Sink.Committed()) != before {
			t.Errorf("%d records (silent: %v), want %d; status %+v", len(w.Sink.Committed()), silent, before, s)
		}
	}
}

// A ledger went back in time and was not raised for this agent: its mark is below the newest
// ack. The agent goes back to there at once, though nothing waits, and once.
func TestAMarkBelowTheNewestAckIsGoneBackTo(t *testing.T) {
	source, marks := old(t, 3)
	newest := source.Epochs("", 3)[2]
	if err := source.Acked(marks[newest], 1); err != nil {
		t.Fatal(err)
	}
	begin, err := source.Read(protocol.Position{Epoch: newest, Seq: 1}, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		mark protocol.Mark
		from uint64 // the first that is sent; 0 = nothing is
	}{
		"the ack's own": {marks[newest], 0},
		"below it":      {end(begin), 2},
		"nothing of it": {protocol.Mark{Epoch: newest, Hash: begin.Prev}, 1},
	} {
		d := newDesk(t, source, nil, link.Options{})
		d.sender.Connected(d.now, "me")
		d.step()
		welcome := protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1, Marks: []protocol.Mark{tt.mark}}}
		d.hear(welcome)
		d.step()
		sent := uint64(0)
		if len(d.batches) > 0 {
			sent = d.batches[0].First
		}
		if sent != tt.from || sent > 0 && d.batches[0].Epoch != newest {
			t.Errorf("%s: sent from %d, want %d", name, sent, tt.from)
		}
		d.hear(welcome) // again, since the hello was sent twice
		if d.step(); len(d.batches) > 0 {
			t.Errorf("%s: the same welcome again sent the link back once more", name)
		}
	}
}
