package ledger_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// deliver commits a batch of one agent's records on the connection of another.
func deliver(t *testing.T, l *ledger.Ledger, by, of *agent, b protocol.Batch) protocol.Answer {
	t.Helper()
	b.Of = &of.from
	return commit(t, l, by, b)
}

func drained(t *testing.T, l *ledger.Ledger, by, of *agent, b protocol.Batch, hash protocol.Hash) {
	t.Helper()
	got := deliver(t, l, by, of, b)
	if got.Verdict != protocol.VerdictAck || got.Epoch != b.Epoch || got.Through != b.Last() || got.Hash != hash {
		t.Fatalf("%d..%d of %s: %+v, want an ack with hash %s", b.First, b.Last(), of.from, got, hash)
	}
}

func retry(t *testing.T, l *ledger.Ledger, ids ...int64) {
	t.Helper()
	for _, id := range ids {
		if err := l.RetryQuarantined(t.Context(), chain, id); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhatAnotherAgentDeliversWaitsInQuarantine(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		old, by := newAgent(t, "0001", "old", 1), newAgent(t, "0002", "new", 2)
		acked(t, l, old, old.begin(sales(t, 1)...))
		known := old.mark()
		acked(t, l, by, by.begin())
		if err := l.RegisterAgent(t.Context(), old.from); !errors.Is(err, ledger.ErrExists) {
			t.Fatal(err)
		}
		if err := l.SetAgentState(t.Context(), old.from, ledger.AgentRevoked); err != nil {
			t.Fatal(err)
		}
		count := record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: 3, Quality: protocol.QualityOK})
		rest := old.batch(append(sales(t, 2), count, record(t, "new kind", []byte(`{}`)))...)
		through := old.hash
		for range 2 {
			drained(t, l, by, old, rest, through)
		}
		whole := protocol.Batch{Epoch: old.epoch, First: 1, Prev: protocol.Genesis(chain, "0001", "old", old.epoch)}
		whole.Records = slices.Concat([]protocol.Record{withSeq(seal(t, nil, false), 1), withSeq(sales(t, 1)[0], 2)}, rest.Records)
		drained(t, l, by, old, whole, old.hash) // what the ledger holds is known
		skipped := old.lose(sales(t, 3, 4), sales(t, 5)...)
		for range 2 {
			drained(t, l, by, old, skipped, old.hash)
		}
		q := quarantined(t, l)
		if len(q) != 4 || q[0].Agent != "old" || q[0].Store != "0001" || q[0].Seq != 3 || q[0].Reason != "delivered by 0002/new in its place" ||
			!strings.HasPrefix(q[2].Reason, "delivered by 0002/new in its place; kind: ") || q[3].Seq != 8 {
			t.Fatalf("quarantine %+v, want records 3, 4, 5 and 8", q)
		}
		if got := holes(t, url); !slices.Equal(got, []string{"old " + string(old.epoch) + " 6..7 damaged 2026-03-02 "}) {
			t.Errorf("holes %q, want the skip", got)
		}
		w, err := l.Marks(t.Context(), old.from, protocol.MarksAsk{Epochs: []protocol.Epoch{old.epoch}})
		if err != nil || w.Marks[0] != known {
			t.Errorf("marks %+v, %v, want the stream where it was: %+v", w, err, known)
		}

		retry(t, l, q[0].ID, q[1].ID)
		if err := l.RetryQuarantined(t.Context(), chain, q[2].ID); err == nil || !strings.Contains(err.Error(), "kind: ") {
			t.Errorf("retry of an unknown kind: %v", err)
		}
		if err := l.RetryQuarantined(t.Context(), chain, q[0].ID); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("retry again: %v, want ErrNotFound", err)
		}
		drained(t, l, by, old, rest, through) // what was applied is known
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 2}) {
			t.Errorf("applied %d, want 1 and 2", got)
		}
		kpis, err := l.KPIs(t.Context(), chain, "0001", day, day)
		if err != nil || len(kpis) != 2 || kpis[0].FootfallCounts != 1 {
			t.Errorf("kpis %+v, %v, want one count", kpis, err)
		}
		if q := quarantined(t, l); len(q) != 2 {
			t.Errorf("quarantine %+v, want the unknown kind and what was not tried", q)
		}
		all := records(t, l)
		last := all[len(all)-1]
		if last.Was == nil || last.Was.Epoch != old.epoch || last.Was.Seq != 4 || last.Agent != "old" || last.Kind != protocol.KindFootfall {
			t.Errorf("record %+v, want it to name where it was accepted", last)
		}
		if kinds := alarmKinds(t, l); !slices.Equal(kinds, []string{ledger.AlarmHole}) {
			t.Errorf("alarms %q", kinds)
		}
		checkHashes(t, url)
	})
}

// However the same record comes, plain, with was, and through another agent, and in whichever
// order, it is applied once.
func TestADrainedRecordIsAppliedOnceWhateverElseComes(t *testing.T) {
	type step func(t *testing.T, l *ledger.Ledger, w *drainWorld)
	plain := func(t *testing.T, l *ledger.Ledger, w *drainWorld) { acked(t, l, w.a, w.late) }
	again := func(t *testing.T, l *ledger.Ledger, w *drainWorld) { acked(t, l, w.a, w.forked) }
	asides := func(t *testing.T, l *ledger.Ledger, w *drainWorld) {
		deliver(t, l, w.by, w.a, w.late)
		for _, q := range quarantined(t, l) {
			retry(t, l, q.ID)
		}
	}
	waits := func(t *testing.T, l *ledger.Ledger, w *drainWorld) {
		deliver(t, l, w.by, w.a, w.late)
		deliver(t, l, w.by, w.a, w.forked)
	}
	for name, steps := range map[string][]step{
		"aside, plain, again": {asides, plain, again},
		"aside, again, plain": {asides, again, plain},
		"plain, aside, again": {plain, asides, again},
		"again, aside, plain": {again, asides, plain},
		"waits, again, plain": {waits, again, plain, asides},
		"waits, plain, again": {waits, plain, again, asides},
		"waits, aside, again": {waits, asides, again, plain},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, url string) {
				l, _ := open(t, url)
				w := newDrainWorld(t, l)
				for _, step := range steps {
					step(t, l, w)
				}
				kpis, err := l.KPIs(t.Context(), chain, "0001", day, day)
				if err != nil || len(kpis) != 1 || kpis[0].FootfallCounts != 2 || kpis[0].PassagesIn != 8 {
					t.Errorf("kpis %+v, %v, want both counts once", kpis, err)
				}
				if q := quarantined(t, l); len(q) != 0 {
					t.Errorf("quarantine %+v, want nothing", q)
				}
			})
		})
	}
}

// A drainWorld holds an agent whose last two records can come in three ways.
type drainWorld struct {
	a, by        *agent
	late, forked protocol.Batch
}

func newDrainWorld(t *testing.T, l *ledger.Ledger) *drainWorld {
	count := func(in int64) protocol.Record {
		return record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: in, Quality: protocol.QualityOK})
	}
	w := &drainWorld{a: newAgent(t, "0001", "pc", 1), by: newAgent(t, "0001", "new", 2)}
	acked(t, l, w.by, w.by.begin())
	acked(t, l, w.a, w.a.begin())
	end := w.a.mark()
	w.late = w.a.batch(count(3), count(5))
	b := w.a.next(3)
	w.forked = b.batch(seal(t, &end, true), was(count(3), w.a.epoch, 2), was(count(5), w.a.epoch, 3))
	return w
}

// A PC and its clone are both drained: the same numbers, two contents.
func TestTwoContentsOfOnePositionAreBothKept(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a, by := newAgent(t, "0001", "old", 1), newAgent(t, "0001", "new", 2)
		acked(t, l, by, by.begin())
		acked(t, l, a, a.begin())
		clone := *a
		one, two := a.batch(sales(t, 1)...), clone.batch(sales(t, 2)...)
		acked(t, l, a, one)
		drained(t, l, by, a, two, clone.hash)
		three := *a
		three.seq, three.hash = 1, one.Prev
		b := three.batch(sales(t, 3)...)
		drained(t, l, by, a, b, three.hash)
		q := quarantined(t, l)
		if len(q) != 2 || q[0].Seq != 2 || q[1].Seq != 2 {
			t.Fatalf("quarantine %+v, want both contents of record 2", q)
		}
		retry(t, l, q[0].ID, q[1].ID)
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 2, 3}) {
			t.Errorf("applied %d, want all three", got)
		}
		checkHashes(t, url)
	})
}

func TestTwoPeopleWhoRetryApplyOnce(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a, by := newAgent(t, "0001", "old", 1), newAgent(t, "0001", "new", 2)
		acked(t, l, by, by.begin())
		a.begin()
		drained(t, l, by, a, a.batch(record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: 3, Quality: protocol.QualityOK})), a.hash)
		q := quarantined(t, l)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := l.RetryQuarantined(context.Background(), chain, q[0].ID); err != nil && !errors.Is(err, ledger.ErrNotFound) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if kpis, err := l.KPIs(t.Context(), chain, "0001", day, day); err != nil || len(kpis) != 1 || kpis[0].FootfallCounts != 1 {
			t.Errorf("kpis %+v, %v, want one count", kpis, err)
		}
		if kinds := alarmKinds(t, l); len(kinds) != 0 {
			t.Errorf("alarms %q, want none", kinds)
		}
		// The agent itself comes with its first epoch: what the ledger appended for it is not one.
		c := newAgent(t, "0001", "old", 7)
		acked(t, l, c, c.begin())
		if kinds := alarmKinds(t, l); len(kinds) != 0 {
			t.Errorf("alarms %q, want none", kinds)
		}
	})
}

func TestABatchOfAnotherIsRefusedWhereItCannotBe(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a, by := newAgent(t, "0001", "old", 1), newAgent(t, "0001", "new", 2)
		acked(t, l, by, by.begin())
		first := a.begin()
		for name, of := range map[string]protocol.Origin{
			"another chain": {Chain: "other", Store: "0001", Agent: "old"},
			"itself":        by.from,
			"nobody":        {Chain: chain},
		} {
			b := first
			b.Of = &of
			if got := commit(t, l, by, b); got.Verdict != protocol.VerdictRefused || !strings.HasPrefix(got.Reason, "of: ") {
				t.Errorf("%s: %+v, want refused", name, got)
			}
		}
		if err := l.SetAgentState(t.Context(), by.from, ledger.AgentRevoked); err != nil {
			t.Fatal(err)
		}
		if got := deliver(t, l, by, a, first); got.Verdict != protocol.VerdictRefused {
			t.Errorf("a revoked agent delivers: %+v, want refused", got)
		}
		if q := quarantined(t, l); len(q) != 0 {
			t.Errorf("quarantine %+v, want nothing", q)
		}
	})
}

// The hello of an agent that drains another's journal may show that one's ack.
func TestAnAckOfAnotherAgentRaisesNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a, by := newAgent(t, "0001", "old", 1), newAgent(t, "0001", "new", 2)
		acked(t, l, a, a.begin(sales(t, 1)...))
		mark := a.mark()
		if w, err := l.Welcome(t.Context(), by.from, protocol.Hello{Incarnation: 1, LastAck: &mark}); err != nil || w.Incarnation != 1 {
			t.Errorf("welcome %+v, %v, want incarnation 1", w, err)
		}
	})
}
