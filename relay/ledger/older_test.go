package ledger_test

import (
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// TestAnAckOfAnotherBranchRaisesTheIncarnation: the ledger was restored by hand, and a clone
// has filled the stream up again before the agent came back. Only the hash tells.
func TestAnAckOfAnotherBranchRaisesTheIncarnation(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		at := time.Now()
		l, _ := openAt(t, url, func() time.Time { return at })
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.batch(seal(t, nil, false), transaction(t, sale("0001", 1)), transaction(t, sale("0001", 2))))
		for _, tt := range []struct {
			what string
			ack  protocol.Mark
			want int64
		}{
			{"its own newest", a.mark(), 1},
			{"its own seal", protocol.Mark{Epoch: a.epoch, Through: 1, Hash: firstHash(t, l, a)}, 1},
			{"another record before the newest", protocol.Mark{Epoch: a.epoch, Through: 2, Hash: protocol.Hash{9}}, 2},
			{"another newest", protocol.Mark{Epoch: a.epoch, Through: 3, Hash: protocol.Hash{9}}, 3},
		} {
			at = at.Add(time.Hour) // one agent raises it no sooner
			_, now, err := l.Head(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Newest: protocol.Position{Epoch: a.epoch, Seq: 3}, Incarnation: now, LastAck: &tt.ack})
			if err != nil || w.Incarnation != tt.want {
				t.Errorf("an ack of %s: incarnation %d, %v, want %d", tt.what, w.Incarnation, err, tt.want)
			}
		}
	})
}

// TestOneAgentRaisesTheIncarnationOnceAnHour: whoever holds one certificate invents acks as fast
// as hellos go. It must be no lever over all chains, must be named, and must not fill the ledger.
func TestOneAgentRaisesTheIncarnationOnceAnHour(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		at := time.Now()
		clock := func() time.Time { return at }
		l, stop := openAt(t, url, clock)
		a, b := newAgent(t, "0001", "pc", 1), newAgent(t, "0002", "pc", 2)
		acked(t, l, a, a.begin(sales(t, 1)...))
		acked(t, l, b, b.begin())
		hello := func(from protocol.Origin, ack protocol.Mark, want int64) {
			t.Helper()
			_, now, err := l.Head(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			w, err := l.Welcome(t.Context(), from, protocol.Hello{Incarnation: now, LastAck: &ack})
			if err != nil || w.Incarnation != want {
				t.Fatalf("incarnation %d, %v, want %d", w.Incarnation, err, want)
			}
			if n := len(w.Marks); n != 1 || w.Marks[0].Epoch != ack.Epoch {
				t.Errorf("marks %+v, want where the epoch stands: the agent goes on from there", w.Marks)
			}
		}
		for n := range 20 {
			hello(a.from, protocol.Mark{Epoch: epochOf(100 + n), Through: uint64(n + 1), Hash: protocol.Hash{byte(n)}}, 2)
			at = at.Add(time.Minute)
		}
		stop() // another relay, or the same one again, knows it too
		l, _ = openAt(t, url, clock)
		hello(a.from, protocol.Mark{Epoch: a.epoch, Through: 99}, 2)
		got := details(t, l, ledger.AlarmUnknownAck)
		if len(got) != 2 || !strings.Contains(got[0], "was raised to 2") || !strings.Contains(got[1], "is not believed: its hello has raised the incarnation less than an hour before") {
			t.Errorf("alarms %q, want one for the raise and one for all that was refused", got)
		}
		if got := details(t, l, ledger.AlarmRestored); len(got) != 1 || !strings.Contains(got[0], "by the hello of an agent (alarm unknownAck)") {
			t.Errorf("alarms %q, want one for the raise", got)
		}
		if got := commit(t, l, a, a.batch(sales(t, 2)...)); got.Verdict != protocol.VerdictAck || got.Incarnation != 2 {
			t.Errorf("answer to the agent that was refused: %+v, want its records taken", got)
		}
		hello(b.from, protocol.Mark{Epoch: a.epoch, Through: 99}, 2) // it is no epoch of b's
		hello(b.from, protocol.Mark{Epoch: b.epoch, Through: 99}, 3) // restored once more, and another agent says so
		at = at.Add(39 * time.Minute)
		hello(a.from, protocol.Mark{Epoch: a.epoch, Through: 99}, 3)
		at = at.Add(2 * time.Minute)
		hello(a.from, protocol.Mark{Epoch: a.epoch, Through: 99}, 4)
		at = at.AddDate(-1, 0, 0) // the relay's clock was wrong: that does not bind
		hello(a.from, protocol.Mark{Epoch: a.epoch, Through: 99}, 5)
		alarms, err := l.Alarms(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		named := map[string]bool{}
		for _, a := range alarms {
			if a.Kind == ledger.AlarmUnknownAck && strings.Contains(a.Detail, "was raised") {
				named[a.Store+"/"+a.Agent] = true
			}
		}
		if !named["0001/pc"] || !named["0002/pc"] {
			t.Errorf("alarms %+v, want each agent named whose hello raised it", alarms)
		}
	})
}

// firstHash is the hash of an agent's first record, as the ledger has it.
func firstHash(t *testing.T, l *ledger.Ledger, a *agent) protocol.Hash {
	t.Helper()
	records, err := l.Records(t.Context(), chain, 0, 1)
	if err != nil || len(records) != 1 {
		t.Fatalf("%d records, %v", len(records), err)
	}
	r := protocol.Record{Seq: 1, Kind: records[0].Kind, At: records[0].At, Day: records[0].Day, Body: records[0].Body, Mono: seal(t, nil, false).Mono}
	return r.Hash(protocol.Genesis(a.from.Chain, a.from.Store, a.from.Agent, a.epoch))
}

// TestAnAgentThatHasSeenALaterIncarnationIsNamed: the ledger was restored without its command,
// and the agent waits.
func TestAnAgentThatHasSeenALaterIncarnationIsNamed(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		for _, seen := range []int64{1 << 62, 5, 7} { // one that invents numbers does not fill the table
			w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Incarnation: seen})
			if err != nil || w.Incarnation != 1 {
				t.Fatalf("incarnation %d, %v: an agent's word alone must not raise it", w.Incarnation, err)
			}
			got := details(t, l, ledger.AlarmOlderLedger)
			if seen == 1<<62 && (len(got) != 1 || strings.Contains(got[0], "-above")) {
				t.Errorf("alarms %q, want one that does not ask to raise it", got)
			}
		}
		if _, err := l.Raise(t.Context(), 1<<62); err == nil {
			t.Error("raised above what no ledger can have had")
		}
		if got := details(t, l, ledger.AlarmOlderLedger); len(got) != 1 || !strings.Contains(got[0], "restore -raise -above 7") {
			t.Errorf("alarms %q, want one that says what to do", got)
		}
		if got, err := l.Raise(t.Context(), 7); err != nil || got != 8 {
			t.Errorf("raised to %d, %v, want 8", got, err)
		}
	})
}
