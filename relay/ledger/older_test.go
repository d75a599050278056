package ledger_test

import (
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// TestAnAckOfAnotherBranchRaisesTheIncarnation: the ledger was restored by hand, and a clone
// has filled the stream up again before the agent came back. Only the hash tells.
func TestAnAckOfAnotherBranchRaisesTheIncarnation(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
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
		w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Incarnation: 7})
		if err != nil || w.Incarnation != 1 {
			t.Fatalf("incarnation %d, %v: an agent's word alone must not raise it", w.Incarnation, err)
		}
		if got := details(t, l, ledger.AlarmOlderLedger); len(got) != 1 || !strings.Contains(got[0], "restore -raise -above 7") {
			t.Errorf("alarms %q, want one that says what to do", got)
		}
		if got, err := l.Raise(t.Context(), 7); err != nil || got != 8 {
			t.Errorf("raised to %d, %v, want 8", got, err)
		}
	})
}
