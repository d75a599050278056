package ledger_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

const (
	e1 = "chain demo, store 0001, agent pc, epoch 00000000000000000000000000000001, "
	// What was counted when a day was certified.
	certified = "chain demo, store 0001: certificate: certificate of 2026-03-02, version 1: up to position 14 the ledger had 1 records of kind "

	e2 = "chain demo, store 0001, agent pc, epoch 00000000000000000000000000000002, "
)

// record row of an epoch of pc; stream 1 and 3 are its epochs 1 and 2.
func dearer(body []byte) []byte {
	return []byte(strings.Replace(string(body), `"extendedAmount":10000`, `"extendedAmount":90000`, 1))
}

// TestBEY10EachTamperingIsNamed changes the database in one way after another. Finds is how the
// first findings begin; what follows are sums and positions that come of it, and no stream that
// was not touched.
func TestBEY10EachTamperingIsNamed(t *testing.T) {
	body := func(h *house, pos int) {
		h.tamper(fmt.Sprintf("SELECT body FROM records WHERE pos = %d", pos), fmt.Sprintf("UPDATE records SET body = $1 WHERE pos = %d", pos), dearer)
	}
	for name, tt := range map[string]struct {
		do    func(h *house)
		finds []string
	}{
		"a sale made dearer": {func(h *house) { body(h, 8) }, []string{
			e1 + "record 4, position 8: changed: its content is not what the hash stored with it is of; or that of records 1 to 3",
			"chain demo, store 0001: projection: 2026-03-02 SEK: gross_sales is"}},
		"the time of a sale": {func(h *house) { h.sql("UPDATE records SET at = '2026-03-02T12:00:01+01:00' WHERE pos = 16") }, []string{
			e1 + "record 13, position 16: changed: its content is not what the hash stored with it is of; or that of records 11 to 12 before it is not, and its hash was made anew; the hashes stored behind it are those that the agent signed in its mark of 2026-03-03"}},
		"the day of a record":  {func(h *house) { h.sql("UPDATE records SET day = '2026-03-03' WHERE pos = 19") }, []string{e2 + "record 2, position 19: changed"}},
		"the kind of a record": {func(h *house) { h.sql("UPDATE records SET kind = 'deviceState' WHERE pos = 12") }, []string{e1 + "record 9, position 12: changed", "chain demo, store 0001: projection: 2026-03-02: drawer_opens is 1, and the records give 0"}},
		"where a record was first": {func(h *house) {
			h.tamper("SELECT was FROM records WHERE pos = 20", "UPDATE records SET was = $1 WHERE pos = 20", func(was []byte) []byte {
				return []byte(strings.Replace(string(was), `"seq":15`, `"seq":16`, 1))
			})
		}, []string{e2 + "record 5, position 20: changed"}},
		"a receipt that came twice": {func(h *house) {
			h.tamper("SELECT record FROM duplicates WHERE seq = 7", "UPDATE duplicates SET record = $1 WHERE seq = 7", dearer)
		}, []string{e1 + "record 7: changed"}},
		"white space in a quarantined record": {func(h *house) {
			h.tamper("SELECT record FROM quarantined WHERE seq = 10", "UPDATE quarantined SET record = $1 WHERE seq = 10", func(text []byte) []byte { return append([]byte(" "), text...) })
		}, []string{e1 + "record 10: changed: it is not written as we write it"}},
		"a stored hash": {func(h *house) {
			h.sql("UPDATE records SET hash = (SELECT hash FROM records WHERE pos = 1) WHERE pos = 9")
		}, []string{e1 + "record 5, position 9: changed: has its content, and another hash is stored with it"}},
		"the last stored hash": {func(h *house) {
			h.sql("UPDATE records SET hash = (SELECT hash FROM records WHERE pos = 1) WHERE pos = 22")
		}, []string{e2 + "record 7, position 22: changed: has its content, and another hash is stored with it"}},
		"a sale and its own hash": {func(h *house) {
			body(h, 15)
			h.forge(1, 11, 12)
		}, []string{e1 + "record 13, position 16: changed: its content is not what the hash stored with it is of; or that of records 11 to 12 before it is not, and its hash was made anew", "chain demo, store 0001: projection: 2026-03-02 SEK: gross_sales"}},

		"two sales swapped": {func(h *house) {
			h.swap(8, 16)
		}, []string{e1 + "record 4, position 8: swapped: stands where record 13 belongs, and that one here"}},
		"two neighbours swapped": {func(h *house) {
			h.swap(15, 16)
		}, []string{e1 + "record 12, position 15: swapped: stands where record 13 belongs, and that one here"}},
		"two neighbours swapped with their hashes": {func(h *house) {
			h.sql("UPDATE records SET seq = 1000 WHERE pos = 15")
			h.sql("UPDATE records SET seq = 12 WHERE pos = 16")
			h.sql("UPDATE records SET seq = 13 WHERE pos = 15")
		}, []string{e1 + "record 12, position 16: swapped: stands where record 13 belongs, and that one here"}},

		"a record removed":       {func(h *house) { h.sql("DELETE FROM records WHERE pos = 12") }, []string{e1 + "record 9: missing: stands in no table", "chain demo, store 0001: projection: 2026-03-02: drawer_opens", certified + "drawerEvent of the day, and has 0", "chain demo, position 12: position: the chain has no record at position 12"}},
		"two records removed":    {func(h *house) { h.sql("DELETE FROM records WHERE pos IN (11, 12)") }, []string{e1 + "records 8 to 9: missing", "chain demo, store 0001: projection: 2026-03-02: drawer_opens", certified + "drawerEvent of the day, and has 0", certified + "footfallCount of the day, and has 0", "chain demo, position 11: position: the chain has no record at positions 11 to 12"}},
		"a duplicate removed":    {func(h *house) { h.sql("DELETE FROM duplicates WHERE seq = 7") }, []string{e1 + "record 7: missing"}},
		"a quarantined one gone": {func(h *house) { h.sql("DELETE FROM quarantined WHERE seq = 10") }, []string{e1 + "record 10: missing"}},
		"the tail removed": {func(h *house) { h.sql("DELETE FROM records WHERE pos = 22") }, []string{
			e2 + "record 7: missing", "chain demo, store 0001: projection", "chain demo, store 0001: projection",
			"chain demo, store 0001: columns: 2026-03-02: its records are looked for at positions 1 to 22, and they stand at 1 to 20", "chain demo, position 22: position: the chain's last position is 22, and its last record stands at 21",
			"chain demo, store 0001: position: the last sale number", "chain demo, store 0001, position 22: columns: a receipt's business key without its record", "chain demo: columns: there are"}},
		"the tail of an epoch removed, and its stream's row made to fit": {func(h *house) {
			h.sql("DELETE FROM records WHERE pos IN (15, 16, 17)")
			h.sql("DELETE FROM business_keys WHERE pos IN (15, 16)")
			h.sql("DELETE FROM day_marks WHERE seq = 14")
			h.sql("UPDATE streams SET through = 11, hash = (SELECT hash FROM records WHERE pos = 13) WHERE epoch = $1", string(epochOf(1)))
		}, []string{e1 + "records 12 to 14: missing: epoch 00000000000000000000000000000002 goes on behind them, and its stream ends before", "chain demo, store 0001: projection", "chain demo, store 0001: projection",
			"chain demo, store 0001: columns: 2026-03-03: its records are looked for at positions 17 to 17, and they stand at 0 to 0", "chain demo, position 15: position: the chain has no record at positions 15 to 17", "chain demo, store 0001, position 19: position: no record has the sale numbers 5 to 6, and the one behind stands here"}},
		"the tail under a mark removed, and its stream's row made to fit": {func(h *house) {
			h.sql("DELETE FROM records WHERE pos IN (20, 21, 22)")
			h.sql("UPDATE streams SET through = 4, hash = (SELECT hash FROM holes) WHERE epoch = $1", string(epochOf(2)))
		}, []string{e2 + "record 5: missing: the agent signed the mark of 2026-03-04 behind them, and its stream ends before"}},
		"an agent wiped out, whose day was certified": {func(h *house) {
			for _, table := range []string{"streams", "day_marks", "holes", "alarms"} {
				h.sql("DELETE FROM " + table + " WHERE agent = 'pc'")
			}
			h.sql("DELETE FROM records WHERE store = '0001'")
			h.sql("DELETE FROM duplicates")
			h.sql("DELETE FROM quarantined")
		}, []string{e1 + "records 1 to 10: missing: the agent signed the mark of 2026-03-02 behind them, and the ledger has nothing of the epoch"}},

		"a sale made dearer, and every hash made anew": {func(h *house) {
			body(h, 15)
			h.forge(1, 11)
		}, []string{e1 + "records 11 to 13, position 13: changed: one of them was changed, removed or inserted, and every hash behind it made anew: at record 13 the agent signed another hash in its mark of 2026-03-03; the last mark before it that holds is at record 10 of epoch 00000000000000000000000000000001",
			"chain demo, store 0001: projection"}},
		"the same, with the next epoch's seal": {func(h *house) {
			body(h, 15)
			end := h.forge(1, 11)
			h.tamper("SELECT body FROM records WHERE pos = 18", "UPDATE records SET body = $1 WHERE pos = 18", func(body []byte) []byte {
				var seal protocol.Seal
				if err := json.Unmarshal(body, &seal); err != nil {
					h.t.Fatal(err)
				}
				seal.Before = &end
				again, err := json.Marshal(seal)
				if err != nil {
					h.t.Fatal(err)
				}
				return again
			})
			h.forge(2, 0)
		}, []string{e1 + "records 11 to 13, position 13: changed", "chain demo, store 0001: projection"}},
		"the same, with the mark": {func(h *house) {
			body(h, 15)
			h.forge(1, 11)
			h.tamper("SELECT body FROM records WHERE pos = 17", "UPDATE records SET body = $1 WHERE pos = 17", func(body []byte) []byte {
				var m protocol.DayMark
				if err := json.Unmarshal(body, &m); err != nil {
					h.t.Fatal(err)
				}
				db := database(h.t, h.url)
				defer db.Close()
				var hash []byte
				if err := db.QueryRow("SELECT hash FROM records WHERE pos = 16").Scan(&hash); err != nil {
					h.t.Fatal(err)
				}
				m.Head.Hash = protocol.Hash(hash)
				if _, err := db.Exec("UPDATE day_marks SET head_hash = $1 WHERE seq = 14", hash); err != nil {
					h.t.Fatal(err)
				}
				again, err := json.Marshal(m)
				if err != nil {
					h.t.Fatal(err)
				}
				return again
			})
			h.forge(1, 11)
		}, []string{e1 + "record 14: mark: the mark of 2026-03-03 was not signed by its agent: the signature is not the agent's", e1 + "records 11 to 14, position 13: changed: one of them was changed, and the hashes behind it made anew: epoch 00000000000000000000000000000002 names another hash", "chain demo, store 0001: projection"}},

		"a record put behind the end": {func(h *house) {
			h.sql("INSERT INTO records (chain, pos, stream, seq, store, kind, at, mono, day, received, hash, body) SELECT chain, 23, stream, 15, store, kind, at, mono, day, received, hash, body FROM records WHERE pos = 12")
			h.sql("UPDATE chains SET head = 23")
		}, []string{e1 + "record 15, position 23: inserted: stands in records behind the last record of its stream"}},
		"a record put in": {func(h *house) {
			h.sql("UPDATE records SET seq = seq + 1000 WHERE stream = 1 AND seq > 11")
			h.sql("UPDATE records SET seq = seq - 999 WHERE stream = 1 AND seq > 1000")
			h.sql("INSERT INTO records (chain, pos, stream, seq, store, kind, at, mono, day, received, hash, body) SELECT chain, 23, stream, 12, store, kind, at, mono, day, received, hash, body FROM records WHERE pos = 12")
			h.sql("UPDATE streams SET through = 15 WHERE id = 1")
			h.sql("UPDATE chains SET head = 23")
		}, []string{e1 + "record 12, position 23: inserted: was never sent: the records behind it belong one place before theirs"}},
		"a record that stands twice": {func(h *house) {
			h.sql("INSERT INTO duplicates (chain, stream, seq, hash, reason) SELECT chain, stream, seq, hash, 'x' FROM records WHERE pos = 9")
		}, []string{e1 + "record 5: inserted: stands a second time, in duplicates, or in a hole"}},
		"records put in behind a head, with seal and hashes": {func(h *house) {
			h.sql("INSERT INTO records (chain, pos, stream, seq, store, kind, at, mono, day, received, hash, body) SELECT chain, 23, stream, 15, store, kind, at, mono, day, received, hash, body FROM records WHERE pos = 12")
			h.sql("UPDATE chains SET head = 23")
			h.sql("UPDATE streams SET through = 15 WHERE id = 1")
			h.forge(1, 14)
		}, []string{e1 + "record 15: inserted: stands behind the end that epoch 00000000000000000000000000000002 names"}},

		"the store of a row":   {func(h *house) { h.sql("UPDATE records SET store = '0002' WHERE pos = 11") }, []string{e1 + "record 8, position 11: columns: its row says that it is of store 0002"}},
		"the type of a sale":   {func(h *house) { h.sql("UPDATE records SET type = 'return' WHERE pos = 16") }, []string{e1 + "record 13, position 16: columns: the receipt is a sale of 2026-03-02, and its row says return 6"}},
		"the day of a sale":    {func(h *house) { h.sql("UPDATE records SET business_day = '2026-03-01' WHERE pos = 16") }, []string{e1 + "record 13, position 16: columns"}},
		"a sale marked voided": {func(h *house) { h.sql("UPDATE records SET voided = 1 WHERE pos = 16") }, []string{e1 + "record 13, position 16: columns: its row says voided true, and the table of voids false", "chain demo, store 0001: projection"}},
		"a void undone": {func(h *house) {
			h.sql("UPDATE records SET voided = 0 WHERE pos = 4")
			h.sql("DELETE FROM voids")
		}, []string{e1 + "record 6, position 10: columns: voids transaction 0001/1/2026-03-02/2, and the table of voids does not say so", "chain demo, store 0001: projection"}},
		"a footfall count made a sale": {func(h *house) {
			h.sql("UPDATE records SET business_day = day, type = 'sale', number = 10, voided = 0 WHERE pos = 11")
		}, []string{e1 + "record 8, position 11: columns: its row says that it is a transaction"}},
		"a business key moved":   {func(h *house) { h.sql("UPDATE business_keys SET pos = 15 WHERE pos = 16") }, []string{e1 + "record 13, position 16: columns: the business key of transaction 0001/1/2026-03-02/6 is at position 15"}},
		"a business key gone":    {func(h *house) { h.sql("DELETE FROM business_keys WHERE pos = 16") }, []string{e1 + "record 13, position 16: columns: transaction 0001/1/2026-03-02/6 has no business key"}},
		"the kind in quarantine": {func(h *house) { h.sql("UPDATE quarantined SET kind = 'x'") }, []string{e1 + "record 10: columns: its row in quarantine says x"}},

		"a position moved": {func(h *house) { h.sql("UPDATE records SET pos = 99 WHERE pos = 12") }, []string{"chain demo, store 0001: columns: 2026-03-02: its records are looked for at positions 1 to 22, and they stand at 1 to 99", certified + "drawerEvent of the day, and has 0", "chain demo, position 12: position: the chain has no record at position 12"}},
		"a number moved":   {func(h *house) { h.sql("UPDATE records SET number = 50 WHERE pos = 16") }, []string{"chain demo, store 0001, position 19: position: no record has the sale number 6, and the one behind stands here"}},
		"two numbers swapped": {func(h *house) {
			h.sql("UPDATE records SET number = 1000 WHERE pos = 15")
			h.sql("UPDATE records SET number = 5 WHERE pos = 16")
			h.sql("UPDATE records SET number = 6 WHERE pos = 15")
		}, []string{"chain demo, store 0001, position 15: position: sale number 6 stands here, and number 5 behind it at position 16"}},
		"a jump made up": {func(h *house) {
			h.sql("INSERT INTO jumps (chain, incarnation, head_before, head_after, at) VALUES (1, 2, 11, 12, 0)")
			h.sql("DELETE FROM records WHERE pos = 12")
		}, []string{e1 + "record 9: missing", "chain demo, store 0001: projection", certified + "drawerEvent of the day, and has 0", "chain demo, position 12: position: a jump from 11 to 12 is none that a raise to incarnation 2 makes"}},
		"a record of no stream": {func(h *house) {
			h.sql("INSERT INTO records (chain, pos, stream, seq, store, kind, at, mono, day, received, hash, body) SELECT chain, 23, 77, 1, store, kind, at, mono, day, received, hash, body FROM records WHERE pos = 12")
			h.sql("UPDATE chains SET head = 23")
		}, []string{"chain demo, store 0001, position 23: inserted: a record of a stream that is not there"}},

		"a day's turnover": {func(h *house) {
			h.sql("UPDATE kpis SET turnover_incl = turnover_incl + 100 WHERE store = '0001' AND currency = 'SEK'")
		}, []string{"chain demo, store 0001: projection: 2026-03-02 SEK: turnover_incl is 80100, and the records give 80000"}},
		"a day's cash":  {func(h *house) { h.sql("UPDATE tender_days SET amount = amount - 1 WHERE store = '0002'") }, []string{"chain demo, store 0002: projection: 2026-03-02 SEK: tender cash is 3 receipts and 29999, and the records give 3 and 30000"}},
		"a day made up": {func(h *house) { h.sql("INSERT INTO tender_days VALUES (1, '0001', '2026-03-09', 'SEK', 'cash', 1, 1)") }, []string{"chain demo, store 0001: projection: 2026-03-09 SEK: tender cash"}},

		"a mark's row gone":    {func(h *house) { h.sql("DELETE FROM day_marks WHERE seq = 14") }, []string{e1 + "record 14, position 17: mark: is a day mark, and the table of day marks does not have it"}},
		"a mark's row changed": {func(h *house) { h.sql("UPDATE day_marks SET day = '2026-03-09' WHERE seq = 14") }, []string{e1 + "record 14: mark: the mark of 2026-03-09 was not signed by its agent", e1 + "record 14, position 17: mark: is a day mark, and the table of day marks says something else"}},
		"a mark's row made up": {func(h *house) {
			h.sql("INSERT INTO day_marks SELECT chain, store, day, agent, epoch, 99, head_epoch, head_seq, head_hash, certificate, signature FROM day_marks WHERE seq = 14")
		}, []string{e1 + "record 99: missing: is the agent's mark of 2026-03-03, of which the table of day marks knows, and its record is not there"}},
		"an agent's certificate gone": {func(h *house) { h.sql("DELETE FROM agent_certificates WHERE agent = 'pc2'") }, []string{"chain demo, store 0002, agent pc2, epoch 00000000000000000000000000000009, record 5: mark: the mark of 2026-03-02 was not signed by its agent: the certificate with which it was signed is not kept"}},
		"a seal's row":                {func(h *house) { h.sql("UPDATE streams SET sealed = -1 WHERE id = 1") }, []string{e1 + "record 14: columns: its stream's row says that it is open"}},
		"a stream's hash":             {func(h *house) { h.sql("UPDATE streams SET hash = (SELECT hash FROM holes) WHERE id = 3") }, []string{e2 + "record 7: changed: has another hash than the row of its stream says"}},
		"a stream's end":              {func(h *house) { h.sql("UPDATE streams SET through = 9 WHERE id = 3") }, []string{e2 + "records 8 to 9: missing"}},
		"a hole's hash":               {func(h *house) { h.sql("UPDATE holes SET hash = (SELECT hash FROM records WHERE pos = 1)") }, []string{e2 + "record 5, position 20: changed"}},
		"a hole over a record": {func(h *house) {
			h.sql("UPDATE holes SET last_seq = 5, hash = (SELECT hash FROM records WHERE pos = 20)")
		}, []string{e2 + "record 5, position 20: inserted: stands a second time, in records, or in a hole"}},
		"a certificate that was given": {func(h *house) {
			h.tamper("SELECT body FROM day_certificates", "UPDATE day_certificates SET body = $1", func(body []byte) []byte {
				return []byte(strings.Replace(string(body), `"state":"incomplete"`, `"state":"complete"`, 1))
			})
		}, []string{"chain demo, store 0001: certificate: certificate of 2026-03-02, version 1: the signature does not hold"}},
		"a certificate's row":  {func(h *house) { h.sql("UPDATE day_certificates SET state = 'complete'") }, []string{"chain demo, store 0001: certificate: certificate of 2026-03-02, version 1: its row says something else than the certificate"}},
		"a version taken away": {func(h *house) { h.sql("UPDATE day_certificates SET version = 2") }, []string{"chain demo, store 0001: certificate: certificate of 2026-03-02, version 2: version 1 before it is not there"}},
	} {
		named := func(t *testing.T, url string) {
			h := openHouse(t, url)
			h.trade()
			tt.do(h)
			report := h.audit()
			var found []string
			for _, f := range report.Findings {
				found = append(found, f.String())
			}
			for i, want := range tt.finds {
				if i >= len(found) || !strings.HasPrefix(found[i], want) {
					t.Fatalf("finding %d is not\n%s\nAll of them:\n%s", i, want, strings.Join(found, "\n"))
				}
			}
			for _, f := range report.Findings {
				if f.Agent != "" && !slices.ContainsFunc(tt.finds, func(want string) bool { return strings.Contains(want, string(f.Epoch)) }) {
					t.Errorf("also found: %s", f)
				}
			}
		}
		t.Run(name, func(t *testing.T) { named(t, sqliteURL(t)) })
		if onPostgres[name] {
			t.Run(name+" on postgres", func(t *testing.T) { named(t, ledgertest.Postgres(t)) })
		}
	}
}

// onPostgres are the tamperings that are tried there too.
var onPostgres = map[string]bool{"a sale made dearer": true, "two records removed": true, "the tail removed": true, "a number moved": true, "a jump made up": true,
	"a record that stands twice": true, "a sale made dearer, and every hash made anew": true, "a business key moved": true, "a mark's row gone": true}
