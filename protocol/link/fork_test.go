package link_test

import (
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link/linktest"
)

func TestAClonedDiskIsForkedAndBothDeliver(t *testing.T) {
	for _, memory := range []bool{true, false} {
		w := linktest.NewWorld(6, small())
		w.Source.Begin(1)
		for range 20 {
			w.Source.Append(100)
		}
		if err := w.Run(time.Minute); err != nil {
			t.Fatal(err)
		}
		w.Source.Append(100) // neither copy knows whether this one has been sent
		clone := w.Clone(w.Agent, memory)
		for range 30 {
			w.Source.Append(100)
			clone.Source.Append(100)
		}
		settle(t, w)
		if n := w.Sender.Status().Forks + clone.Sender.Status().Forks; n != 1 {
			t.Errorf("%d forks (with memory: %v), want the slower copy to fork once; status %+v and %+v", n, memory, w.Sender.Status(), clone.Sender.Status())
		}
	}
}

func TestARolledBackDiskIsForkedAndDelivers(t *testing.T) {
	w := linktest.NewWorld(7, small())
	w.Source.Begin(1)
	for range 20 {
		w.Source.Append(100)
	}
	older := w.Source.Copy()
	if err := w.Run(time.Minute); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		w.Source.Append(100)
	}
	if err := w.Run(time.Minute); err != nil {
		t.Fatal(err)
	}
	w.Rollback(w.Agent, older, true)
	w.Source.Append(100)
	settle(t, w)
	if s := w.Sender.Status(); s.Forks != 1 || !strings.Contains(s.Forked, "/41") {
		t.Errorf("status %+v, want one fork that names where the relay stands", s)
	}
}

func TestForksThatFollowEachOtherHaveGrowingPauses(t *testing.T) {
	w := linktest.NewWorld(8, small())
	w.Source.Begin(1)
	w.Source.Append(10)
	tries(t, w, protocol.VerdictFork)
	s := w.Sender.Status()
	if s.Forks < 5 || s.Forks > 20 || s.Sent > 2*s.Forks {
		t.Errorf("status %+v, want some forks with pauses that grow to 5 minutes", s)
	}
	if !strings.Contains(s.Forked, "as the test wants") {
		t.Errorf("forked %q, want the relay's reason", s.Forked)
	}
	w.Sink.Judge = nil
	settle(t, w)
	if now := w.Sender.Status(); now.Forks > s.Forks+1 || now.Forked == "" {
		t.Errorf("status %+v, want at most the one that was due, and the newest still shown", now)
	}
}

// The pauses hold over connections, or a relay that lets go after each fork would get around
// them.
func TestForksHavePausesOverConnectionsToo(t *testing.T) {
	d := newDesk(t, records(9, 100), nil, small())
	began := d.now
	for n := range 4 {
		d.sender.Connected(d.now, "me")
		d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1}})
		d.wait(time.Hour)
		d.answer(protocol.VerdictFork, protocol.Mark{Epoch: d.batches[0].Epoch})
		d.wait(time.Hour)
		if got := d.sender.Status().Forks; got != int64(n+1) {
			t.Fatalf("%d forks, want %d", got, n+1)
		}
		d.sender.Lost(nil)
	}
	if waited := d.now.Sub(began); waited < 5*time.Second+10*time.Second+20*time.Second {
		t.Errorf("4 forks within %s, want 35 s at least between them", waited)
	}
}

func TestAForkThatCannotBeWrittenEndsTheConnectionAndIsTriedAgain(t *testing.T) {
	source := &failing{Source: records(9, 100), forks: 1}
	d := newDesk(t, source, nil, small())
	d.step()
	d.answer(protocol.VerdictFork, protocol.Mark{Epoch: d.batches[0].Epoch})
	if _, _, err := d.sender.Step(d.now); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Fatalf("err %v, want the disk's", err)
	}
	if s := d.sender.Status(); s.Forks != 0 || s.Forked != "" {
		t.Errorf("status %+v, want no fork", s)
	}
	d.sender.Connected(d.now, "me")
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1}})
	d.step()
	d.answer(protocol.VerdictFork, protocol.Mark{Epoch: d.batches[0].Epoch})
	d.step()
	if s := d.sender.Status(); s.Forks != 1 || len(d.batches) != 1 || d.batches[0].First != 1 {
		t.Errorf("status %+v, batches %+v, want the fork and its first batch", s, d.batches)
	}
}

// What is not of the agent's own records is a fork, whichever message says so.
func TestAMarkThatIsNotOursIsAFork(t *testing.T) {
	for name, down := range map[string]func(end protocol.Mark) protocol.Down{
		"ack of another hash": func(m protocol.Mark) protocol.Down {
			m.Hash[0]++
			return protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: 1, Epoch: m.Epoch, Through: m.Through, Hash: m.Hash}}
		},
		"ack beyond": func(m protocol.Mark) protocol.Down {
			return protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: 1, Epoch: m.Epoch, Through: 10, Hash: m.Hash}}
		},
		"gap beyond": func(m protocol.Mark) protocol.Down {
			return protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictGap, Incarnation: 1, Epoch: m.Epoch, Through: 10}}
		},
		"welcome of another hash": func(m protocol.Mark) protocol.Down {
			m.Hash[0]++
			return protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1, Marks: []protocol.Mark{m}}}
		},
		"welcome beyond": func(m protocol.Mark) protocol.Down {
			m.Through = 10
			return protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1, Marks: []protocol.Mark{m}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			source := records(9, 100)
			d := newDesk(t, source, nil, small())
			d.step()
			before := d.batches[0].Epoch
			d.hear(down(end(d.batches[0])))
			if oldest, _ := source.Heads(); oldest.Seq != 1 || oldest.Epoch != before {
				t.Errorf("oldest %v, want every record kept", oldest)
			}
			d.step()
			s := d.sender.Status()
			if s.Forks != 1 || s.Forked == "" || len(d.batches) != 1 || d.batches[0].Epoch == before {
				t.Fatalf("status %+v, batches %+v, want the records in a new epoch", s, d.batches)
			}
			if was := d.batches[0].Records[1].Was; was == nil || was.Epoch != before || was.Seq != 2 {
				t.Errorf("was %+v, want where it stood first", was)
			}
			// The other batches under way are answered the same way; that is no news.
			d.hear(down(protocol.Mark{Epoch: before, Through: 3}))
			d.answer(protocol.VerdictFork, protocol.Mark{Epoch: before, Through: 3})
			d.now = d.now.Add(time.Second)
			if d.step(); d.sender.Status().Forks != 1 || d.sender.Status().FlyingBatches != 1 {
				t.Errorf("status %+v, want no further fork", d.sender.Status())
			}
		})
	}
}

// An epoch that is left behind is named at each connection; nothing of it is to come.
func TestAMarkOfAnEpochThatIsLeftIsNoFork(t *testing.T) {
	source := records(9, 100)
	d := newDesk(t, source, nil, small())
	d.step()
	for len(d.batches) > 0 {
		for len(d.batches) > 0 {
			d.ack()
		}
		d.step()
	}
	left, _ := source.LastAck()
	source.Begin(2)
	d.step()
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1, Marks: []protocol.Mark{{Epoch: left.Epoch, Through: left.Through + 7}}}})
	if d.step(); d.sender.Status().Forks != 0 {
		t.Errorf("status %+v, want no fork", d.sender.Status())
	}
	// In between it is live: records of it are still to be sent.
	source = records(9, 100)
	source.Begin(2)
	source.Append(100)
	source.Begin(3)
	d = newDesk(t, source, nil, small())
	middle := source.Epochs("", 3)[1]
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1, Marks: []protocol.Mark{{Epoch: middle, Through: 7}}}})
	if d.step(); d.sender.Status().Forks != 1 {
		t.Errorf("status %+v, want a fork", d.sender.Status())
	}
}

func TestAForkThatIsDueIsDroppedWhenItsEpochHasEnded(t *testing.T) {
	source := records(3, 100)
	d := newDesk(t, source, nil, small())
	d.step()
	d.answer(protocol.VerdictFork, protocol.Mark{Epoch: d.batches[0].Epoch})
	d.step()
	second := d.batches[0]
	d.answer(protocol.VerdictFork, protocol.Mark{Epoch: second.Epoch})
	if d.step(); len(d.batches) != 0 || d.sender.Status().Forks != 1 {
		t.Fatalf("status %+v, want a pause before the next fork", d.sender.Status())
	}
	d.answer(protocol.VerdictAck, end(second)) // it is taken after all
	source.Begin(9)
	if d.step(); len(d.batches) != 1 || d.batches[0].First != 1 || d.batches[0].Epoch == second.Epoch || d.sender.Status().Forks != 1 {
		t.Errorf("batches %+v, status %+v, want the next epoch sent at once", d.batches, d.sender.Status())
	}
}
