package ledger_test

import (
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// openStore opens a house with store 0001.
func openStore(t *testing.T, url string) *house {
	t.Helper()
	h := openHouse(t, url)
	if err := h.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}); err != nil {
		t.Fatal(err)
	}
	return h
}

// certificate gives the certificate of store 0001's day as anybody reads it.
func (h *house) certificate(day protocol.Day) *ledger.DayCertificate {
	h.t.Helper()
	file, err := h.DayCertificate(h.t.Context(), chain, "0001", day, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := ledger.ReadDayCertificate(file, h.ca.Roots())
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// wants checks the state of a day, and that each reason begins a text in order.
func (h *house) wants(day protocol.Day, state string, reasons ...string) {
	h.t.Helper()
	c := h.certificate(day)
	ok := c.State == state && len(c.Reasons) == len(reasons)
	for i := 0; ok && i < len(reasons); i++ {
		ok = strings.HasPrefix(c.Reasons[i].What, reasons[i])
	}
	if !ok {
		h.t.Errorf("%s is %s: %+v; want %s with %q", day, c.State, c.Reasons, state, reasons)
	}
}

// skip loses the agent's next n records, with a raw one beside when that is not nil.
func (s *signing) skip(n uint64, raw []byte) {
	s.h.t.Helper()
	skip := &protocol.Skip{From: s.seq + 1, To: s.seq + n, Hash: protocol.Hash{byte(n)}, Reason: protocol.SkipDamaged}
	answer := commit(s.h.t, s.h.Ledger, s.agent, protocol.Batch{Epoch: s.epoch, First: skip.From, Prev: s.hash, Skip: skip, Raw: raw, Records: []protocol.Record{}})
	if answer.Verdict != protocol.VerdictAck || answer.Through != skip.To {
		s.h.t.Fatalf("skip: %+v", answer)
	}
	s.seq, s.hash = skip.To, skip.Hash
}

func TestAMarkThatNobodySignedBoundsNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2, 3)
		pc.end(day)
		h.wants(day, ledger.DayComplete)
		h.tamper("SELECT body FROM records WHERE pos = 2", "UPDATE records SET body = $1 WHERE pos = 2", dearer)
		const changed = "agent pc: record 2 of epoch"
		h.wants(day, ledger.DayIncomplete, changed)
		// Below it nothing would be looked at.
		h.sql("INSERT INTO day_marks (chain, store, day, agent, epoch, seq, head_epoch, head_seq, head_hash, certificate, signature) SELECT 1, '0001', $1, 'pc', $2, 3, $2, 3, hash, $3, $3 FROM records WHERE pos = 3",
			day.AddDays(-1).String(), string(epochOf(1)), []byte{1})
		h.wants(day, ledger.DayIncomplete, changed)
	})
}

func TestAHoleIsFilledByRecordsAlone(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2)
		pc.skip(2, nil)
		pc.end(day)
		const lost = "records 4 to 5 of epoch"
		h.wants(day, ledger.DayIncomplete, lost)
		h.sql("INSERT INTO resent (chain, store, agent, epoch, seq, sha256) VALUES (1, '0001', 'pc', $1, 4, $2), (1, '0001', 'pc', $1, 5, $2)", string(epochOf(1)), make([]byte, 32))
		h.wants(day, ledger.DayIncomplete, lost)
		h.sql("DELETE FROM resent")
		// One comes again and is applied, one is known by its business key already.
		fourth, fifth := transaction(t, sale("0001", 3)), transaction(t, sale("0001", 1))
		fourth.Was = &protocol.Was{Epoch: epochOf(1), Seq: 4, SHA256: fourth.ContentHash()}
		fifth.Was = &protocol.Was{Epoch: epochOf(1), Seq: 5, SHA256: fifth.ContentHash()}
		pc.restart(2)
		pc.send(fourth)
		h.wants(day, ledger.DayIncomplete, lost)
		pc.send(fifth)
		h.wants(day, ledger.DayComplete)
		h.tamper("SELECT body FROM records WHERE was IS NOT NULL", "UPDATE records SET body = $1 WHERE was IS NOT NULL", dearer)
		h.wants(day, ledger.DayIncomplete, lost)
	})
}

// TestAnUnreadableRecordFillsNoHole: it may have been of the day, and comes a day late.
func TestAnUnreadableRecordFillsNoHole(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2)
		pc.skip(1, []byte("{nonsense"))
		pc.end(day)
		h.wants(day, ledger.DayIncomplete, "record 4 of epoch "+string(epochOf(1))+" was lost at the agent")
	})
}
