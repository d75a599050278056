package ledger_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

// hold moves a sale to the quarantine.
func (h *house) hold(pos, last int, cause string) {
	h.t.Helper()
	r, stream, hash := h.take(pos)
	h.unbook(pos, last)
	h.sql("UPDATE chains SET quarantined = quarantined + 1")
	h.sql(`INSERT INTO quarantined (chain, id, stream, seq, store, agent, epoch, kind, day, cause, reason, received, hash, record)
		SELECT 1, c.quarantined, s.id, $2, s.store, s.agent, s.epoch, 'transaction', $3, $4, 'x', 0, $5, $6 FROM chains c, streams s WHERE s.id = $1`,
		stream, int64(r.Seq), r.Day.String(), cause, hash, r.AppendJSON(nil))
}

// TestBEY10WhatStandsBesideTheStreamsIsComparedToo is what somebody does who can write in the
// database, has no agent's key, and makes everything else fit.
func TestBEY10WhatStandsBesideTheStreamsIsComparedToo(t *testing.T) {
	voided := func(h *house) {
		h.sql("INSERT INTO voids SELECT chain, store, business_day, workstation, 5, pos FROM voids")
		h.sql("UPDATE records SET voided = 1 WHERE pos = 15")
		h.sql(`UPDATE kpis SET customers = customers - 1, sales_transactions = sales_transactions - 1, units_sold = units_sold - 1, gross_sales = gross_sales - 10500,
			discounts = discounts - 500, turnover_incl = turnover_incl - 10000, turnover_ex = turnover_ex - 8000 WHERE store = '0001' AND currency = 'SEK'`)
		h.sql("UPDATE tender_days SET count = count - 1, amount = amount - 10000 WHERE store = '0001'")
	}
	const (
		store = "chain demo, store 0001: "
		agent = "chain demo, store 0001, agent pc: "
		why   = "alarm: is in quarantine, and nothing but its row says why"
	)
	for name, tt := range map[string]struct {
		do   func(h *house)
		find string
	}{
		"a sale in quarantine":                       {func(h *house) { h.hold(19, 22, "business") }, e2 + "record 2: " + why},
		"a sale that the database is said to refuse": {func(h *house) { h.hold(15, 22, "database") }, e1 + "record 12: " + why},
		"a sale voided by the void of another":       {voided, "chain demo, store 0001, position 10: columns: the table of voids says that this voids transaction 0001/1/2026-03-02/5, and it does not"},
		"a day's records looked for elsewhere": {func(h *house) {
			h.sql("UPDATE day_spans SET last_pos = 21 WHERE day = '2026-03-02' AND store = '0001'")
		}, store + "columns: 2026-03-02: its records are looked for at positions 1 to 21, and they stand at 1 to 22"},
		"a day's records looked for nowhere": {func(h *house) { h.sql("DELETE FROM day_spans WHERE day = '2026-03-03'") }, store + "columns: 2026-03-03: its records are looked for at positions 0 to 0, and they stand at 17 to 17"},
		"a hole moved to another day":        {func(h *house) { h.sql("UPDATE holes SET day = '2026-03-09'") }, e2 + "records 3 to 4: columns: the hole is said to be of \"2026-03-09\", and the record before it is of \"2026-03-02\""},
		"a chain without its row":            {func(h *house) { h.sql("UPDATE chains SET id = 7") }, "chain number 1: missing: there are streams of it, and it has no row"},
		"the alarm of a hole gone":           {func(h *house) { h.sql("DELETE FROM alarms") }, agent + "alarm: no alarm was raised when the ledger is said to have heard that records 3 to 4 of epoch 00000000000000000000000000000002 are lost"},
		"a hole told of and forgotten":       {func(h *house) { h.sql("UPDATE alarms SET detail = 'records 8 to 9 of epoch x are lost: damaged'") }, agent + "missing: the hole of which an alarm tells: records 8 to 9"},
		"a raise of the incarnation that never was": {func(h *house) {
			h.sql("INSERT INTO jumps (chain, incarnation, head_before, head_after, at) VALUES (1, 2, 22, 1000000000, 0)")
		}, "chain demo, position 1000000000: position: a raise to incarnation 2 is said to have moved positions on from 22, and the last is 22"},
		"a raise of the incarnation before a position": {func(h *house) {
			h.sql("INSERT INTO jumps (chain, incarnation, head_before, head_after, at) VALUES (1, 2, 5, 1000000000, 0)")
			h.sql("UPDATE chains SET head = 1000000000")
		}, "chain demo, position 1000000000: position: a raise to incarnation 2 is said to have moved positions on from 5, and a record stands at 6"},
	} {
		named := func(t *testing.T, url string) {
			h := openHouse(t, url)
			h.trade()
			tt.do(h)
			found := h.audit().Findings
			if !slices.ContainsFunc(found, func(f ledger.Finding) bool { return strings.HasPrefix(f.String(), tt.find) }) {
				t.Errorf("not found: %s\nbut %v", tt.find, found)
			}
		}
		t.Run(name, func(t *testing.T) { named(t, sqliteURL(t)) })
		t.Run(name+" on postgres", func(t *testing.T) { named(t, ledgertest.Postgres(t)) })
	}
}

// What an agent wrote of a loss must be in the table of holes; and what waits beside its stream
// must be as its row says.
func TestBEY10ALossOfWhichAnAgentWroteIsNotForgotten(t *testing.T) {
	h, pc := openShop(t, sqliteURL(t))
	pc.sell(1)
	lost := protocol.Loss{Epoch: epochOf(7), From: 3, To: 5, Reason: "damaged"}
	pc.send(record(t, protocol.KindLoss, lost))
	pc.end(day)
	if r := h.audit(); len(r.Findings) != 0 || r.Holes != 1 {
		t.Fatalf("untouched: %+v", r)
	}
	h.sql("DELETE FROM holes")
	h.sql("DELETE FROM alarms")
	want := "chain demo, store 0001, agent pc, epoch 00000000000000000000000000000007, records 3 to 5: missing: a record of the agent says that they are lost, and the table of holes does not"
	if r := h.audit(); len(r.Findings) != 1 || r.Findings[0].String() != want {
		t.Errorf("found %v, want %s", r.Findings, want)
	}
}

func TestBEY10WhatWaitsBesideItsStreamIsAsItsRowSays(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(h *house)
		find string
	}{
		"another day": {func(h *house) {
			h.sql("UPDATE quarantined SET day = '1999-01-01' WHERE epoch = $1 AND seq = 2", string(epochOf(2)))
		}, e2 + "record 2: columns: its row in quarantine says transaction of 1999-01-01"},
		"another business day": {func(h *house) {
			h.sql("UPDATE quarantined SET business_day = '1999-01-01' WHERE epoch = $1 AND seq = 2", string(epochOf(2)))
		}, e2 + `record 2: columns: its row in quarantine says business day "1999-01-01", and the record`},
		"another content": {func(h *house) {
			h.sql("UPDATE quarantined SET record = $2 WHERE epoch = $1 AND seq = 2", string(epochOf(2)), []byte("{}"))
		}, e2 + "record 2: changed: waits in quarantine"},
	} {
		t.Run(name, func(t *testing.T) {
			h := backlog(t, sqliteURL(t))
			tt.do(h)
			if r := h.audit(); len(r.Findings) != 1 || !strings.HasPrefix(r.Findings[0].String(), tt.find) {
				t.Errorf("found %v, want %s", r.Findings, tt.find)
			}
		})
	}
}

// A fork raises an alarm, always: whoever deletes it makes a day look whole.
func TestBEY10TheAlarmOfAForkIsMissed(t *testing.T) {
	h, pc := openShop(t, sqliteURL(t))
	pc.sell(1)
	before := pc.mark()
	pc.epoch, pc.seq, pc.hash = epochOf(2), 0, protocol.Genesis(chain, "0001", "pc", epochOf(2))
	pc.send(seal(t, &before, true))
	if r := h.audit(); len(r.Findings) != 0 {
		t.Fatalf("untouched: %v", r.Findings)
	}
	h.sql("DELETE FROM alarms")
	if r := h.audit(); kinds(r.Findings) != "alarm" || len(h.trusting().Findings) != 1 {
		t.Errorf("found %v", r.Findings)
	}
}

// Of two contents under one business key the first is applied, and the other held: nobody picks
// the dearer one later.
func TestBEY10OfTwoReceiptsTheFirstIsApplied(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h, pc := openShop(t, url)
		pc.sell(1)
		second := sale("0001", 1)
		second.Operator = "somebody else"
		pc.send(transaction(t, second))
		pc.sell(2)
		if r := h.audit(); len(r.Findings) != 0 || len(quarantined(t, h.Ledger)) != 1 {
			t.Fatalf("untouched: %+v", r)
		}
		r, _, hash := h.take(2)
		db := database(t, h.url)
		defer db.Close()
		var text, held []byte
		if err := db.QueryRow("SELECT record, hash FROM quarantined").Scan(&text, &held); err != nil {
			t.Fatal(err)
		}
		var other protocol.Record
		if err := json.Unmarshal(text, &other); err != nil {
			t.Fatal(err)
		}
		h.sql("UPDATE records SET seq = 3, body = $1, hash = $2 WHERE pos = 2", other.Body, held)
		h.sql("UPDATE quarantined SET seq = 2, record = $1, hash = $2", r.AppendJSON(nil), hash)
		h.finds(e1 + "record 2: alarm: is in quarantine, and nothing but its row says why")
	})
}

// Two disks seal the same epoch at the same place: only the alarm tells on which day.
func TestBEY10TheAlarmOfASecondSealIsMissed(t *testing.T) {
	h, pc := openShop(t, sqliteURL(t))
	pc.sell(1)
	back := *pc.agent
	pc.restart(2)
	pc.end(day)
	*pc.agent = back
	pc.restart(3)
	pc.end(day)
	if r := h.audit(); len(r.Findings) != 0 || len(r.Alarms) != 0 {
		t.Fatalf("untouched: %v, %v", r.Findings, r.Alarms)
	}
	h.sql("DELETE FROM alarms WHERE kind = 'sealedTwice'")
	h.finds("chain demo, store 0001, agent pc, epoch 00000000000000000000000000000003, record 1: alarm: seals epoch 00000000000000000000000000000001 a second time")
}
