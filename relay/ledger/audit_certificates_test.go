package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// certify has a day certified.
func (h *house) certify(on protocol.Day) *ledger.DayCertificate {
	h.t.Helper()
	file, err := h.DayCertificate(h.t.Context(), chain, "0001", on, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := ledger.ReadDayCertificate(file, h.ca.Roots())
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (h *house) finds(want string) {
	h.t.Helper()
	if found := h.audit().Findings; !slices.ContainsFunc(found, func(f ledger.Finding) bool { return strings.HasPrefix(f.String(), want) }) {
		h.t.Errorf("not found: %s\nbut %v", want, found)
	}
}

// What a certificate counted is signed by the relay, also of a day that no agent has marked.
func TestBEY10WhatACertificateCountedIsStillThere(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h, pc := openShop(t, url)
		pc.sell(1, 2, 3)
		if c := h.certify(day); c.State != ledger.DayIncomplete || c.Tills[0].Count != 3 {
			t.Fatalf("certificate: %+v", c)
		}
		pc.sell(4) // late
		if c := h.certify(day); c.Version != 2 {
			t.Fatalf("certificate: %+v", c)
		}
		if r := h.audit(); len(r.Findings) != 0 || r.Certificates != 2 {
			t.Fatalf("untouched: %+v", r)
		}
		for _, pos := range []int{5, 4} { // the last two, with everything beside them
			h.unbook(pos, pos)
			h.sql("UPDATE streams SET through = through - 1, hash = (SELECT hash FROM records WHERE pos = $1)", pos-1)
			h.sql("UPDATE day_spans SET last_pos = last_pos - 1")
		}
		h.finds("chain demo, store 0001: certificate: certificate of 2026-03-02, version 1: up to position 4 the ledger had 3 receipts of till 1 of the day, and has 2")
		if found := h.audit().Findings; kinds(found) != strings.TrimSpace(strings.Repeat("certificate ", 6)) {
			t.Errorf("found %v", found)
		}
	})
}

// A hole is the agent's word, and nobody signs it; but where a day was certified as complete
// there was none.
func TestBEY10ADayThatWasCompleteHasNoHole(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h, pc := openShop(t, url)
		pc.end(day.AddDays(-1))
		pc.sell(1, 2)
		pc.end(day)
		if c := h.certify(day); c.State != ledger.DayComplete {
			t.Fatalf("certificate: %+v", c.Reasons)
		}
		pc.sell(3)
		// The last sale under the mark becomes a hole.
		r, _, hash := h.take(4)
		h.unbook(4, 6)
		h.sql("INSERT INTO holes (chain, store, agent, epoch, first_seq, last_seq, hash, reason, day, received) VALUES (1, '0001', 'pc', $1, 4, 4, $2, 'damaged', $3, 0)", string(epochOf(1)), hash, r.Day.String())
		h.sql("INSERT INTO alarms (chain, store, agent, kind, detail, at) VALUES (1, '0001', 'pc', 'hole', $1, 0)", fmt.Sprintf("records 4 to 4 of epoch %s are lost: damaged", epochOf(1)))
		h.sql("UPDATE day_spans SET last_pos = last_pos - 1 WHERE day = '2026-03-02'")
		h.finds("chain demo, store 0001: certificate: certificate of 2026-03-02, version 1: the ledger had number 2 of till 1, and has it no more")
		h.finds(e1 + "record 4: certificate: stands as a hole in the ledger, and the certificate of 2026-03-02, version 1, says that nothing of the day is lost")
	})
}
