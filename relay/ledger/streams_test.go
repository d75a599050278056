package ledger_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// next begins another epoch of the same agent.
func (a *agent) next(epoch int) *agent { return newAgent(a.t, a.from.Store, a.from.Agent, epoch) }

func alarmKinds(t *testing.T, l *ledger.Ledger) []string {
	t.Helper()
	alarms, err := l.Alarms(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, a := range alarms {
		if a.Kind != ledger.AlarmUnknownAgent {
			kinds = append(kinds, a.Kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

func TestAnEpochWaitsForTheOneBefore(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		first := a.begin(transaction(t, sale("0001", 1)))
		rest := a.batch(transaction(t, sale("0001", 2)))
		end := a.mark()
		b := a.next(2)
		sealed := b.batch(seal(t, &end, false), transaction(t, sale("0001", 3)))
		if got := commit(t, l, a, sealed); got.Verdict != protocol.VerdictGap || got.Epoch != a.epoch || got.Through != 0 {
			t.Errorf("before anything came: %+v, want a gap of the epoch before at 0", got)
		}
		acked(t, l, a, first)
		if got := commit(t, l, a, sealed); got.Verdict != protocol.VerdictGap || got.Epoch != a.epoch || got.Through != 2 {
			t.Errorf("before it is complete: %+v, want a gap of the epoch before at 2", got)
		}
		acked(t, l, a, rest)
		acked(t, l, a, sealed)
		if kinds := alarmKinds(t, l); len(kinds) != 0 {
			t.Errorf("alarms %q, want none", kinds)
		}
		checkOrder(t, l, 5)
	})
}

func TestASealThatContradictsRaisesAnAlarm(t *testing.T) {
	for name, test := range map[string]struct {
		second func(a *agent, middle, end protocol.Mark) protocol.Batch
		want   string
	}{
		"below": {func(a *agent, middle, _ protocol.Mark) protocol.Batch {
			return a.next(2).batch(seal(a.t, &middle, false))
		}, ledger.AlarmSealBelow},
		"other hash": {func(a *agent, _, end protocol.Mark) protocol.Batch {
			end.Hash[0]++
			return a.next(2).batch(seal(a.t, &end, false))
		}, ledger.AlarmSealDiffers},
		"other hash below": {func(a *agent, middle, _ protocol.Mark) protocol.Batch {
			middle.Hash[0]++
			return a.next(2).batch(seal(a.t, &middle, false))
		}, ledger.AlarmSealDiffers},
		"second first": {func(a *agent, _, _ protocol.Mark) protocol.Batch { return a.next(2).begin() }, ledger.AlarmSecondFirst},
		"forked": {func(a *agent, middle, _ protocol.Mark) protocol.Batch {
			return a.next(2).batch(seal(a.t, &middle, true))
		}, ledger.AlarmFork},
		"forked, unknown": {func(a *agent, _, _ protocol.Mark) protocol.Batch {
			return a.next(2).batch(seal(a.t, &protocol.Mark{Epoch: epochOf(9), Through: 7}, true))
		}, ledger.AlarmFork},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, url string) {
				l, _ := open(t, url)
				a := newAgent(t, "0001", "pc", 1)
				if err := l.RegisterAgent(t.Context(), a.from); err != nil {
					t.Fatal(err)
				}
				acked(t, l, a, a.begin())
				middle := a.mark()
				acked(t, l, a, a.batch(transaction(t, sale("0001", 1))))
				acked(t, l, a, test.second(a, middle, a.mark()))
				if kinds := alarmKinds(t, l); !slices.Equal(kinds, []string{test.want}) {
					t.Errorf("alarms %q, want %q", kinds, test.want)
				}
			})
		})
	}
}

func TestRecordsBehindASealRaiseAnAlarm(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin())
		end := a.mark()
		acked(t, l, a, a.next(2).batch(seal(t, &end, false)))
		acked(t, l, a, a.next(3).batch(seal(t, &end, false)))
		acked(t, l, a, a.batch(transaction(t, sale("0001", 1))))
		if kinds := alarmKinds(t, l); !slices.Equal(kinds, []string{ledger.AlarmBeyondSeal, ledger.AlarmSealedTwice}) {
			t.Errorf("alarms %q", kinds)
		}
		if rows := transactions(t, l, ledger.TransactionQuery{}); len(rows) != 1 {
			t.Errorf("%d transactions, want the one behind the seal taken", len(rows))
		}
	})
}

func TestARecordThatCameTwiceByForkIsAppliedOnce(t *testing.T) {
	count := func(t *testing.T) protocol.Record {
		return record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: 3, Quality: protocol.QualityOK})
	}
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(count(t))) // stands at 1/2
		known := a.mark()
		late := a.batch(count(t)) // 1/3, on its way
		b := a.next(2)
		// 1/2 stands; 1/3 comes here first; 1/4 has other content than what comes below.
		acked(t, l, b, b.batch(seal(t, &known, true), was(count(t), a.epoch, 2), was(count(t), a.epoch, 3), was(count(t), a.epoch, 4)))
		// The same again behind a further fork, in one group and batch with what it repeats.
		c := a.next(3)
		end := b.mark()
		acked(t, l, c, c.batch(seal(t, &end, true), was(count(t), a.epoch, 3), was(count(t), a.epoch, 9), was(count(t), a.epoch, 9)))
		acked(t, l, a, late) // the plain record of 1/3 after all
		other := count(t)
		other.Mono = 77
		acked(t, l, a, a.batch(other)) // 1/4 with other content is another record
		wrong := was(count(t), a.epoch, 20)
		wrong.Was.SHA256[0]++
		acked(t, l, c, c.batch(wrong))
		kpis, err := l.KPIs(t.Context(), chain, "0001", day, day)
		if err != nil || len(kpis) != 1 || kpis[0].FootfallCounts != 5 || kpis[0].PassagesIn != 15 {
			t.Errorf("kpis %+v, %v, want 5 counts: 1/2, 1/3, 1/4 twice with two contents, 1/9", kpis, err)
		}
		if q := quarantined(t, l); len(q) != 1 || q[0].Reason != "was.sha256: is not the hash of this record's content" {
			t.Errorf("quarantine %+v", q)
		}
		checkOrder(t, l, 3+5)
	})
}

func TestARevokedAgentIsRefused(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		if _, err := l.AgentState(t.Context(), a.from); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("state before: %v", err)
		}
		if err := l.SetAgentState(t.Context(), a.from, ledger.AgentRevoked); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("set state before: %v", err)
		}
		if err := l.RegisterAgent(t.Context(), a.from); err != nil {
			t.Fatal(err)
		}
		if err := l.RegisterAgent(t.Context(), a.from); !errors.Is(err, ledger.ErrExists) {
			t.Errorf("register twice: %v", err)
		}
		if err := l.SetAgentState(t.Context(), a.from, "asleep"); err == nil {
			t.Error("a state that is none was taken")
		}
		first := a.begin()
		if err := l.SetAgentState(t.Context(), a.from, ledger.AgentRetiring); err != nil {
			t.Fatal(err)
		}
		acked(t, l, a, first)
		if page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedConfig, After: 7}); err != nil || page.Reset || page.To != 7 {
			t.Errorf("page for a retiring agent %+v, %v, want nothing", page, err)
		}
		if err := l.SetAgentState(t.Context(), a.from, ledger.AgentRevoked); err != nil {
			t.Fatal(err)
		}
		if got := commit(t, l, a, first); got.Verdict != protocol.VerdictRefused || got.Reason == "" {
			t.Errorf("answer %+v, want refused", got)
		}
		if _, err := l.Welcome(t.Context(), a.from, protocol.Hello{}); !errors.Is(err, ledger.ErrRevoked) {
			t.Errorf("welcome %v, want ErrRevoked", err)
		}
		if state, err := l.AgentState(t.Context(), a.from); err != nil || state != ledger.AgentRevoked {
			t.Errorf("state %s, %v", state, err)
		}
	})
}

func TestAnAgentWithoutARowIsTakenAndFlagged(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a, b := newAgent(t, "0001", "pc", 1), newAgent(t, "0001", "pc2", 2)
		acked(t, l, a, a.begin())
		if _, err := l.Welcome(t.Context(), b.from, protocol.Hello{Version: "1.2"}); err != nil {
			t.Fatal(err)
		}
		alarms, err := l.Alarms(t.Context(), chain)
		if err != nil || len(alarms) != 2 || alarms[0].Kind != ledger.AlarmUnknownAgent || alarms[1].Kind != ledger.AlarmUnknownAgent {
			t.Errorf("alarms %+v, %v", alarms, err)
		}
		agents, err := l.Agents(t.Context(), chain)
		if err != nil || len(agents) != 2 || agents[0].LastSeen.IsZero() || agents[1].Version != "1.2" || agents[1].State != ledger.AgentActive || agents[1].LastSeen.IsZero() {
			t.Errorf("agents %+v, %v", agents, err)
		}
	})
}

func TestWelcomeTellsWhereTheEpochsStand(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(transaction(t, sale("0001", 1))))
		mark := a.mark()
		unknown := a.next(2)
		w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Oldest: protocol.Position{Epoch: a.epoch, Seq: 1}, Newest: protocol.Position{Epoch: unknown.epoch, Seq: 4}, Incarnation: 1, LastAck: &mark})
		if err != nil || w.Incarnation != 1 || w.Time == "" || !slices.Equal(w.Marks, []protocol.Mark{mark, unknown.mark()}) {
			t.Errorf("welcome %+v, %v, want marks %+v and the genesis of the unknown", w, err, mark)
		}
	})
}

func TestAnAckThatTheLedgerDoesNotKnowRaisesItsIncarnation(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		at := time.Now()
		l, _ := openAt(t, url, func() time.Time { return at })
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(transaction(t, sale("0001", 1))))
		if err := l.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "Europe/Stockholm", Currency: "SEK"}); err != nil {
			t.Fatal(err)
		}
		old, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedConfig})
		if err != nil || len(old.Changes) != 1 || old.Reset {
			t.Fatalf("page %+v, %v", old, err)
		}
		acked(t, l, a, a.batch(transaction(t, sale("0001", 2))))
		lost := protocol.Mark{Epoch: a.epoch, Through: 9}
		// Another incarnation's ack proves nothing; this one's does.
		for _, tt := range []struct{ seen, want int64 }{{0, 1}, {7, 1}, {1, 2}, {1, 2}, {2, 3}} {
			at = at.Add(time.Hour) // one agent raises it no sooner
			w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Incarnation: tt.seen, LastAck: &lost})
			if err != nil || w.Incarnation != tt.want || len(w.Marks) != 1 || w.Marks[0].Through != 3 {
				t.Errorf("welcome for incarnation %d: %+v, %v, want %d", tt.seen, w, err, tt.want)
			}
		}
		pos, incarnation, err := l.Head(t.Context(), chain)
		if err != nil || pos != 2_000_000_000 || incarnation != 3 {
			t.Errorf("head %d of incarnation %d, %v", pos, incarnation, err)
		}
		if got := commit(t, l, a, a.batch(transaction(t, sale("0001", 3)))); got.Verdict != protocol.VerdictAck || got.Incarnation != 3 {
			t.Errorf("answer %+v", got)
		}
		rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale, From: 3})
		if len(rows) != 1 || rows[0].Pos != 2_000_000_001 || rows[0].Number != 2_000_000_001 {
			t.Errorf("rows %+v, want the first of the new incarnation", rows)
		}
		page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedConfig, After: old.To})
		if err != nil || !page.Reset || page.From != old.To || len(page.Changes) != 1 || page.To <= old.To {
			t.Errorf("page %+v, %v, want a reset with the whole feed", page, err)
		}
		page, err = l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedConfig, After: page.To})
		if err != nil || page.Reset || len(page.Changes) != 0 {
			t.Errorf("page after the reset %+v, %v, want nothing more", page, err)
		}
	})
}
