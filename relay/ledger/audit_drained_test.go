package ledger_test

import (
	"crypto"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// backlog is a house in which an agent was revoked when an epoch of it had not come at all, and
// an older one in part; another agent has delivered both. Their marks are in the backlog:
//
//	epoch 1: 1 seal, 2 sale 1; delivered: 3 sale 2, 4 mark
//	epoch 2: delivered: 1 seal, 2 sale 3, 3 sale 4, 4 mark
func backlog(t *testing.T, url string) *house {
	t.Helper()
	h, pc := openShop(t, url)
	pc.sell(1)
	other := h.agent("0001", "pc-b", 9)
	acked(t, h.Ledger, other.agent, other.begin())
	if err := h.SetAgentState(t.Context(), pc.from, ledger.AgentRevoked); err != nil {
		t.Fatal(err)
	}
	bring := func(records ...protocol.Record) {
		b := pc.batch(records...)
		drained(t, h.Ledger, other.agent, pc.agent, b, pc.hash)
	}
	mark := func(on protocol.Day) protocol.Record {
		m, err := protocol.SignDayMark(pc.from, on, pc.mark(), pc.pair.Certificate[0], pc.pair.PrivateKey.(crypto.Signer))
		if err != nil {
			t.Fatal(err)
		}
		r := record(t, protocol.KindDayMark, m)
		r.Day = on
		return r
	}
	bring(sales(t, 2)...)
	bring(mark(day))
	before := pc.mark()
	pc.epoch, pc.seq, pc.hash = epochOf(2), 0, protocol.Genesis(chain, "0001", "pc", epochOf(2))
	bring(append([]protocol.Record{seal(t, &before, false)}, sales(t, 3, 4)...)...)
	bring(mark(day.AddDays(1)))
	return h
}

// ids are the records in quarantine, in the order in which they came.
func (h *house) ids() (all []int64) {
	for _, q := range quarantined(h.t, h.Ledger) {
		all = append(all, q.ID)
	}
	return all
}

func TestBEY10AMarkOfADrainedBacklogSpeaksForWhatWasApplied(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := backlog(t, url)
		for range 6 { // one after the other is applied, the last first
			ids := h.ids()
			retry(t, h.Ledger, ids[len(ids)-1])
			if r := h.audit(); len(r.Findings) != 0 {
				t.Errorf("%d records wait: %v", len(ids)-1, r.Findings)
			}
		}
		h = backlog(t, sqliteURL(t))
		before := h.audit()
		retry(t, h.Ledger, h.ids()...)
		after := h.audit()
		if len(after.Findings) != 0 || after.Marks != 2 || before.Marks != 0 || after.Unsigned != before.Unsigned+2 {
			t.Errorf("%+v, and before anything was applied %+v", after, before)
		}
	})
}

func TestBEY10ABacklogThatWasChangedIsNamed(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(h *house)
		find string
	}{
		"a sale that waits": {func(h *house) { h.sql("DELETE FROM quarantined WHERE seq = 3 AND epoch = $1", string(epochOf(2))) },
			e2 + "record 3: missing: the agent signed the mark of 2026-03-03 behind them, and what came beside their stream has a gap or ends before"},
		"all that waits": {func(h *house) { h.sql("DELETE FROM quarantined WHERE epoch = $1", string(epochOf(2))) },
			e2 + "records 1 to 3: missing: the agent signed the mark of 2026-03-03 behind them, and the ledger has nothing of the epoch"},
		"the one behind the stream": {func(h *house) { h.sql("DELETE FROM quarantined WHERE epoch = $1", string(epochOf(1))) },
			e1 + "record 3: missing: the agent signed the mark of 2026-03-02 behind them, and its stream ends before"},
		"the content of one that waits": {func(h *house) {
			h.tamper("SELECT record FROM quarantined WHERE seq = 3 AND epoch = '"+string(epochOf(2))+"'", "UPDATE quarantined SET record = $1 WHERE seq = 3 AND epoch = '"+string(epochOf(2))+"'", dearer)
		}, e2 + "record 3: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			h := backlog(t, sqliteURL(t))
			ids := h.ids()
			retry(t, h.Ledger, ids[1], ids[5]) // the marks
			tt.do(h)
			if r := h.audit(); len(r.Findings) == 0 || !strings.HasPrefix(r.Findings[0].String(), tt.find) {
				t.Errorf("found %v, want %s", r.Findings, tt.find)
			}
		})
	}
	t.Run("one that was applied", func(t *testing.T) {
		h := backlog(t, sqliteURL(t))
		retry(t, h.Ledger, h.ids()...)
		h.tamper("SELECT body FROM records WHERE pos = 7", "UPDATE records SET body = $1 WHERE pos = 7", dearer)
		db := database(t, h.url)
		defer db.Close()
		var epoch string
		if err := db.QueryRow("SELECT s.epoch FROM records r JOIN streams s ON s.id = r.stream WHERE r.pos = 7").Scan(&epoch); err != nil {
			t.Fatal(err)
		}
		h.forgeEpoch(protocol.Epoch(epoch), 0)
		want := e2 + "records 1 to 3: changed: one of them, which came beside their stream, was changed: at record 3 the agent signed another hash in its mark of 2026-03-03"
		if r := h.audit(); len(r.Findings) == 0 || r.Findings[0].String() != want {
			t.Errorf("found %v, want %s", r.Findings, want)
		}
	})
}
