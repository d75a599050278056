package link_test

import (
	"testing"
	"time"

	"github.com/storelay/storelay/protocol/link/linktest"
)

// These are schedules that once broke the link (docs/decisions/0006).

// run appends records to agents and lets a minute pass.
func run(t *testing.T, w *linktest.World, n int, agents ...*linktest.Agent) {
	t.Helper()
	for _, a := range agents {
		for range n {
			a.Source.Append(100)
		}
	}
	if err := w.Run(time.Minute); err != nil {
		t.Fatal(err)
	}
}

// The rolled back copy forks while the ledger holds a part of its first epoch that came from
// the other copy, and all of its second, whose ack it takes. After the restore the second
// epoch waits for the first, whose records have gone on in the third.
func TestBehindAForkARestoredLedgerGetsEverythingInOrder(t *testing.T) {
	for _, silent := range []bool{false, true} {
		w := linktest.NewWorld(10, small())
		empty := w.Sink.Backup()
		w.Source.Begin(1)
		for range 20 {
			w.Source.Append(100)
		}
		clone := w.Clone(w.Agent, false) // in a second epoch
		for range 10 {
			clone.Source.Append(100)
		}
		older := clone.Source.Copy()
		w.Cut(w.Agent, 2*time.Minute)
		run(t, w, 0)
		run(t, w, 5, w.Agent)
		run(t, w, 5, w.Agent)
		w.Rollback(clone, older, true)
		run(t, w, 0)
		run(t, w, 5, w.Agents()...)
		if s := clone.Sender.Status(); s.Forks != 1 {
			t.Fatalf("status %+v, want a fork", s)
		}
		w.Restore(empty, silent)
		w.Cut(w.Agent, 10*time.Minute) // the clone must do without it
		run(t, w, 5, clone)
		if err := linktest.Check(clone.Source, w.Sink); err != nil {
			t.Errorf("%v; status %+v", err, clone.Sender.Status())
		}
		settle(t, w)
		if n := w.Sender.Status().Rewinds + clone.Sender.Status().Rewinds; n != 2 {
			t.Errorf("%d rewinds, want one of each copy", n)
		}
	}
}

func TestARestoredLedgerThatTheCloneHasFilledGetsWhatItHadLost(t *testing.T) {
	for _, more := range []int{5, 9, 12} { // below, at and beyond the first copy's last ack
		for _, silent := range []bool{false, more > 5} {
			w := linktest.NewWorld(11, small())
			w.Source.Begin(1)
			run(t, w, 20, w.Agent)
			early, older := w.Sink.Backup(), w.Source.Copy()
			run(t, w, 9, w.Agent)
			w.Restore(early, silent)
			w.Cut(w.Agent, 10*time.Minute)
			clone := w.Clone(w.Agent, true)
			w.Rollback(clone, older, true)
			run(t, w, more, clone)
			settle(t, w)
			if s := w.Sender.Status(); s.Rewinds != 1 || s.Forks != 1 {
				t.Errorf("status %+v (%d more, silent: %v), want a rewind and a fork", s, more, silent)
			}
		}
	}
}

func TestABackupThatIsRestoredTwiceLosesNothing(t *testing.T) {
	w := linktest.NewWorld(12, small())
	w.Source.Begin(1)
	run(t, w, 3, w.Agent)
	early := w.Sink.Backup()
	for n := range 2 {
		run(t, w, 7, w.Agent)
		w.Sink.Put("a", string(rune('0'+n)))
		run(t, w, 7, w.Agent)
		w.Restore(early, false)
		w.Sink.Put("b", string(rune('0'+n)))
	}
	settle(t, w)
	if got, want := w.Replica.Values("items"), w.Sink.Values(); w.Sender.Status().Rewinds != 2 || len(got) != 1 || got["b"] != want["b"] {
		t.Errorf("feed %v, want %v; status %+v", got, want, w.Sender.Status())
	}
}
