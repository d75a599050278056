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

// take gives the record at a position, as it was sent.
func (h *house) take(pos int) (r protocol.Record, stream int64, hash []byte) {
	h.t.Helper()
	db := database(h.t, h.url)
	defer db.Close()
	var on string
	var was []byte
	if err := db.QueryRow("SELECT stream, seq, kind, at, mono, day, body, hash, was FROM records WHERE pos = $1", pos).Scan(&stream, &r.Seq, &r.Kind, &r.At, &r.Mono, &on, &r.Body, &hash, &was); err != nil {
		h.t.Fatal(err)
	}
	var err error
	if r.Day, err = protocol.ParseDay(on); err != nil {
		h.t.Fatal(err)
	}
	if was != nil {
		if err := json.Unmarshal(was, &r.Was); err != nil {
			h.t.Fatal(err)
		}
	}
	return r, stream, hash
}

// unbook takes a sale out of the books, of which the last position is given, with everything
// beside it: its business key, positions, numbers and sums.
func (h *house) unbook(pos, last int) {
	h.t.Helper()
	h.sql("DELETE FROM records WHERE pos = $1", pos)
	h.sql("DELETE FROM business_keys WHERE pos = $1", pos)
	for p := pos + 1; p <= last; p++ {
		h.sql("UPDATE records SET pos = pos - 1, number = CASE WHEN number IS NULL THEN NULL ELSE number - 1 END WHERE pos = $1", p)
	}
	if pos < last {
		h.sql("UPDATE business_keys SET pos = pos - 1 WHERE pos > $1", pos)
	}
	h.sql("UPDATE chains SET head = head - 1")
	h.sql("UPDATE numbers SET last = last - 1 WHERE store = '0001' AND type = 'sale'")
	h.sql(`UPDATE kpis SET customers = customers - 1, sales_transactions = sales_transactions - 1, units_sold = units_sold - 1, gross_sales = gross_sales - 10500,
		discounts = discounts - 500, turnover_incl = turnover_incl - 10000, turnover_ex = turnover_ex - 8000 WHERE store = '0001' AND currency = 'SEK'`)
	h.sql("UPDATE tender_days SET count = count - 1, amount = amount - 10000 WHERE store = '0001'")
}

// duplicate moves a sale to the duplicates.
func (h *house) duplicate(pos int, reason string) {
	h.t.Helper()
	r, stream, hash := h.take(pos)
	h.unbook(pos, 22)
	h.sql("INSERT INTO duplicates (chain, stream, seq, hash, reason, record) VALUES (1, $1, $2, $3, $4, $5)", stream, int64(r.Seq), hash, reason, r.AppendJSON(nil))
}

func TestBEY10ARecordMovedToTheDuplicatesIsNamed(t *testing.T) {
	const gone = e1 + "record 15: inserted: the table of what came again speaks of it, and no record does"
	for name, tt := range map[string]struct {
		do   func(h *house)
		find []string
	}{
		"a sale": {func(h *house) { h.duplicate(19, "came before") },
			[]string{e2 + "record 2: missing: is a duplicate of transaction 0001/1/2026-03-02/7, and that has not its content, or is not there"}},
		"a sale that says that it came in a later epoch": {func(h *house) {
			h.duplicate(19, "came before in a later epoch")
			r := protocol.Record{}
			h.tamper("SELECT record FROM duplicates WHERE seq = 2", "UPDATE duplicates SET record = $1 WHERE seq = 2", func(text []byte) []byte {
				if err := json.Unmarshal(text, &r); err != nil {
					h.t.Fatal(err)
				}
				return text
			})
			content := r.ContentHash()
			h.sql("INSERT INTO resent (chain, store, agent, epoch, seq, sha256) VALUES (1, '0001', 'pc', $1, 2, $2)", string(epochOf(2)), content[:])
		}, []string{e2 + "record 2: missing", e2 + "record 2: inserted: the table of what came again speaks of it"}},
		"a sale that had come again": {func(h *house) { h.duplicate(20, "accepted first as") },
			[]string{e2 + "record 5: missing: is a duplicate of record 15 of epoch 00000000000000000000000000000001, and that does not stand there"}},
		"the same, with its first place forgotten": {func(h *house) {
			h.duplicate(20, "accepted first as")
			h.sql("DELETE FROM resent")
		}, []string{e2 + "record 5: missing"}},
		"a count of people": {func(h *house) {
			r, stream, hash := h.take(11)
			h.sql("DELETE FROM records WHERE pos = 11")
			h.sql("INSERT INTO duplicates (chain, stream, seq, hash, reason, record) VALUES (1, $1, $2, $3, 'came before in a later epoch', $4)", stream, int64(r.Seq), hash, r.AppendJSON(nil))
		}, []string{e1 + "record 8: missing: is a duplicate, and no other record has its content"}},
		"a first place made up": {func(h *house) {
			h.sql("INSERT INTO resent (chain, store, agent, epoch, seq, sha256) VALUES (1, '0001', 'pc', $1, 3, $2)", string(epochOf(2)), make([]byte, 32))
		}, []string{e2 + "record 3: inserted: the table of what came again speaks of it, and no record does"}},
		"a first place made up of an agent that is not there": {func(h *house) {
			h.sql("INSERT INTO resent (chain, store, agent, epoch, seq, sha256) VALUES (1, '0003', 'pc', $1, 3, $2)", string(epochOf(2)), make([]byte, 32))
		}, []string{"chain demo, store 0003, agent pc, epoch 00000000000000000000000000000002, record 3: inserted"}},
		"a first place forgotten": {func(h *house) { h.sql("DELETE FROM resent") },
			[]string{e2 + "record 5, position 20: columns: came first as record 15 of epoch 00000000000000000000000000000001, and the table of what came again does not say so"}},
		"a first place with another content": {func(h *house) { h.sql("UPDATE resent SET sha256 = $1", make([]byte, 32)) },
			[]string{e2 + "record 5, position 20: columns: came first as", gone}},
	} {
		named := func(t *testing.T, url string) {
			h := openHouse(t, url)
			h.trade()
			tt.do(h)
			found := h.audit().Findings
			for i, want := range tt.find {
				if !slices.ContainsFunc(found, func(f ledger.Finding) bool { return strings.HasPrefix(f.String(), want) }) {
					t.Errorf("%d: not found: %s\nbut %v", i, want, found)
				}
			}
		}
		t.Run(name, func(t *testing.T) { named(t, sqliteURL(t)) })
		t.Run(name+" on postgres", func(t *testing.T) { named(t, ledgertest.Postgres(t)) })
	}
}

// A count that had come again and is held back is tried again: it is no duplicate of itself.
func TestARecordThatCameAgainAndIsHeldBackIsNoDuplicateOfItself(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		count := func(in, raw int) protocol.Record {
			return record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: int64(in), RawIn: int64(raw), Quality: protocol.QualityOK})
		}
		again := count(10, 110)
		again.Was = &protocol.Was{Epoch: epochOf(7), Seq: 3, SHA256: again.ContentHash()}
		acked(t, l, a, a.begin(count(5, 105), again))
		waiting := quarantined(t, l)
		if len(waiting) != 1 {
			t.Fatalf("quarantine %+v, want the second count", waiting)
		}
		if err := l.RetryQuarantined(t.Context(), chain, waiting[0].ID); err == nil || !strings.Contains(err.Error(), "counted before") {
			t.Errorf("retry: %v", err)
		}
		if waiting := quarantined(t, l); len(waiting) != 1 {
			t.Errorf("quarantine %+v, want it still there", waiting)
		}
	})
}
