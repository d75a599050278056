package ledger_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// A house is a ledger with a history of every kind, whose agents signed their days.
type house struct {
	t   *testing.T
	url string
	ca  *ca.CA
	*ledger.Ledger
}

// openHouse opens an empty ledger with a certificate authority.
func openHouse(t *testing.T, url string) *house {
	t.Helper()
	h := &house{t: t, url: url}
	var err error
	if h.ca, err = ca.Create(filepath.Join(t.TempDir(), "ca")); err != nil {
		t.Fatal(err)
	}
	h.Ledger, err = ledger.Open(t.Context(), url, ledger.Options{Log: slog.New(slog.NewTextHandler(io.Discard, nil)), CA: h.ca})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

// A signing agent marks its days with the key of a certificate that the ledger keeps.
type signing struct {
	*agent
	h    *house
	pair tls.Certificate
}

func (h *house) agent(store, name string, epoch int) *signing {
	h.t.Helper()
	s := &signing{agent: newAgent(h.t, store, name, epoch), h: h}
	if err := h.RegisterAgent(h.t.Context(), s.from); err != nil {
		h.t.Fatal(err)
	}
	cert, key, err := h.ca.IssueAgent(s.from, 1<<40, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if s.pair, err = tls.X509KeyPair(cert, key); err != nil {
		h.t.Fatal(err)
	}
	if err := h.KeepCertificate(h.t.Context(), s.from, s.pair.Leaf); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (s *signing) send(records ...protocol.Record) {
	s.h.t.Helper()
	acked(s.h.t, s.h.Ledger, s.agent, s.batch(records...))
}

// restart begins another epoch.
func (s *signing) restart(epoch int) {
	s.h.t.Helper()
	before := s.mark()
	s.epoch, s.seq, s.hash = epochOf(epoch), 0, protocol.Genesis(chain, s.from.Store, s.from.Agent, epochOf(epoch))
	s.send(seal(s.h.t, &before, false))
}

// end marks a day.
func (s *signing) end(day protocol.Day) {
	s.h.t.Helper()
	m, err := protocol.SignDayMark(s.from, day, s.mark(), s.pair.Certificate[0], s.pair.PrivateKey.(crypto.Signer))
	if err != nil {
		s.h.t.Fatal(err)
	}
	r := record(s.h.t, protocol.KindDayMark, m)
	r.Day = day
	s.send(r)
}

// sell is sales of the store's till 1, with the given sequence numbers.
func (s *signing) sell(numbers ...int64) {
	s.h.t.Helper()
	for _, n := range numbers {
		s.send(transaction(s.h.t, sale(s.from.Store, n)))
	}
}

// trade is a history with everything that a ledger may hold: two stores; receipts, one of them
// voided and one sent twice; footfall and a drawer; a record in quarantine; two epochs; a hole; a
// record that was appended again; marks of three days; a certificate that was given out. Of
// agent pc:
//
//	epoch 1: 1 seal, 2..5 sales 1..4, 6 void of 2, 7 sale 1 again, 8 footfall, 9 drawer,
//	         10 unknown kind, 11 mark, 12..13 sales 5 and 6, 14 mark
//	epoch 2: 1 seal, 2 sale 7, 3..4 lost, 5 sale 8, first accepted as 15 of epoch 1, 6 mark, 7 sale 9
//
// Its positions are 1, 3, 4, 8..13, 15..17 and 18..22.
func (h *house) trade() {
	h.t.Helper()
	if err := h.PutStore(h.t.Context(), chain, ledger.Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}); err != nil {
		h.t.Fatal(err)
	}
	pc, other := h.agent("0001", "pc", 1), h.agent("0002", "pc2", 9)
	acked(h.t, h.Ledger, pc.agent, pc.begin())
	acked(h.t, h.Ledger, other.agent, other.begin())
	pc.sell(1, 2)
	other.sell(1, 2, 3)
	pc.sell(3, 4)
	void := sale("0001", 100)
	void.Type, void.Lines, void.Tenders, void.Total = protocol.TypeVoid, nil, nil, 0
	void.Voids = &protocol.TransactionID{Store: "0001", Workstation: "1", BusinessDay: day, Sequence: 2}
	pc.send(transaction(h.t, void))
	pc.sell(1)
	pc.send(record(h.t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", From: timeOf(h.t, noon), To: timeOf(h.t, noon), In: 3, Out: 2, Quality: protocol.QualityOK}))
	pc.send(record(h.t, protocol.KindDrawer, protocol.DrawerEvent{Drawer: "d", Event: protocol.DrawerOpened, At: timeOf(h.t, noon)}))
	pc.send(record(h.t, "strange", []byte(`{"x":1}`)))
	pc.end(day)
	other.end(day)
	if _, err := h.DayCertificate(h.t.Context(), chain, "0001", day, 0); err != nil {
		h.t.Fatal(err)
	}
	pc.sell(5, 6)
	pc.end(day.AddDays(1))
	pc.restart(2)
	pc.sell(7)
	skip := &protocol.Skip{From: 3, To: 4, Hash: protocol.Hash{5}, Reason: protocol.SkipDamaged}
	if answer := commit(h.t, h.Ledger, pc.agent, protocol.Batch{Epoch: pc.epoch, First: 3, Prev: pc.hash, Skip: skip, Records: []protocol.Record{}}); answer.Verdict != protocol.VerdictAck {
		h.t.Fatalf("skip: %+v", answer)
	}
	pc.seq, pc.hash = 4, skip.Hash
	again := transaction(h.t, sale("0001", 8))
	again.Was = &protocol.Was{Epoch: epochOf(1), Seq: 15, SHA256: again.ContentHash()}
	pc.send(again)
	pc.end(day.AddDays(2))
	pc.sell(9)
}

func (h *house) audit() *ledger.AuditReport {
	h.t.Helper()
	report, err := h.Audit(h.t.Context(), ledger.AuditOptions{Roots: h.ca.Roots()})
	if err != nil {
		h.t.Fatal(err)
	}
	return report
}

// sql changes the database behind the ledger's back.
func (h *house) sql(text string, args ...any) {
	h.t.Helper()
	db := database(h.t, h.url)
	defer db.Close()
	result, err := db.Exec(text, args...)
	if err != nil {
		h.t.Fatalf("%s: %v", text, err)
	}
	if n, _ := result.RowsAffected(); n == 0 {
		h.t.Fatalf("%s changed nothing", text)
	}
}

func TestBEY10AnUntouchedLedgerHasNothingToFind(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openHouse(t, url)
		h.trade()
		report := h.audit()
		for _, f := range report.Findings {
			t.Errorf("found: %s", f)
		}
		if report.Records != 24 || report.Streams != 3 || report.Marks != 4 || report.Certificates != 1 || report.Holes != 1 || report.Unsigned != 6 {
			t.Errorf("report %+v", report)
		}
	})
}

// tamper changes a stored row's bytes.
func (h *house) tamper(query, update string, change func([]byte) []byte) {
	h.t.Helper()
	db := database(h.t, h.url)
	defer db.Close()
	var value []byte
	if err := db.QueryRow(query).Scan(&value); err != nil {
		h.t.Fatalf("%s: %v", query, err)
	}
	result, err := db.Exec(update, change(value))
	if err != nil {
		h.t.Fatalf("%s: %v", update, err)
	}
	if n, _ := result.RowsAffected(); n != 1 {
		h.t.Fatalf("%s changed %d rows", update, n)
	}
}

// swap exchanges the bodies of two records.
func (h *house) swap(a, b int) {
	h.t.Helper()
	h.tamper(fmt.Sprintf("SELECT body FROM records WHERE pos = %d", a), fmt.Sprintf("UPDATE records SET body = $1 WHERE pos = %d", a), func(first []byte) (second []byte) {
		h.tamper(fmt.Sprintf("SELECT body FROM records WHERE pos = %d", b), fmt.Sprintf("UPDATE records SET body = $1 WHERE pos = %d", b), func(body []byte) []byte {
			second = body
			return first
		})
		return second
	})
}

// forge recomputes the hashes of an epoch of pc behind a record, from what is in the database,
// through another, or to the end with the row of its stream: what somebody does who can write
// there.
func (h *house) forge(epoch int, after uint64, upTo ...int64) protocol.Mark {
	h.t.Helper()
	return h.forgeEpoch(epochOf(epoch), after, upTo...)
}

func (h *house) forgeEpoch(epoch protocol.Epoch, after uint64, upTo ...int64) protocol.Mark {
	h.t.Helper()
	db := database(h.t, h.url)
	defer db.Close()
	var stream, through int64
	if err := db.QueryRow("SELECT id, through FROM streams WHERE agent = 'pc' AND epoch = $1", string(epoch)).Scan(&stream, &through); err != nil {
		h.t.Fatal(err)
	}
	if upTo != nil {
		through = upTo[0]
	}
	hash := protocol.Genesis(chain, "0001", "pc", epoch)
	for seq := int64(1); seq <= through; seq++ {
		table, key := "records", []any{stream, seq}
		r := protocol.Record{Seq: uint64(seq)}
		var text, was, stored []byte
		var on string
		err := db.QueryRow("SELECT kind, at, mono, day, body, was, hash FROM records WHERE stream = $1 AND seq = $2", key...).Scan(&r.Kind, &r.At, &r.Mono, &on, &r.Body, &was, &stored)
		if err == nil {
			if r.Day, err = protocol.ParseDay(on); err != nil {
				h.t.Fatal(err)
			}
			if was != nil {
				if err := json.Unmarshal(was, &r.Was); err != nil {
					h.t.Fatal(err)
				}
			}
		} else {
			for _, table = range []string{"duplicates", "quarantined"} {
				if err = db.QueryRow("SELECT record, hash FROM "+table+" WHERE stream = $1 AND seq = $2", key...).Scan(&text, &stored); err == nil {
					break
				}
			}
			if err == nil {
				err = json.Unmarshal(text, &r)
			} else if db.QueryRow("SELECT hash FROM holes WHERE last_seq = $1", seq).Scan(&stored) == nil {
				hash = protocol.Hash(stored)
				continue
			} else if db.QueryRow("SELECT 1 FROM holes WHERE first_seq <= $1 AND last_seq > $1", seq).Scan(new(int)) == nil {
				continue
			}
			if err != nil {
				h.t.Fatalf("record %d: %v", seq, err)
			}
		}
		if hash = r.Hash(hash); uint64(seq) <= after {
			hash = protocol.Hash(stored)
			continue
		}
		if _, err := db.Exec("UPDATE "+table+" SET hash = $3 WHERE stream = $1 AND seq = $2", stream, seq, hash[:]); err != nil {
			h.t.Fatal(err)
		}
	}
	if upTo != nil {
		return protocol.Mark{}
	}
	if _, err := db.Exec("UPDATE streams SET hash = $2 WHERE id = $1", stream, hash[:]); err != nil {
		h.t.Fatal(err)
	}
	return protocol.Mark{Epoch: epoch, Through: uint64(through), Hash: hash}
}

// What nothing signed speaks of can be taken away without a trace by somebody who makes all
// rows fit; the audit says how much that is.
func TestBEY10TheAuditSaysWhatNoMarkCovers(t *testing.T) {
	h := openHouse(t, sqliteURL(t))
	h.trade()
	before := h.audit()
	h.sql("DELETE FROM records WHERE pos = 22")
	h.sql("DELETE FROM business_keys WHERE pos = 22")
	h.sql("UPDATE chains SET head = 21")
	h.sql("UPDATE numbers SET last = last - 1 WHERE store = '0001' AND type = 'sale'")
	h.sql("UPDATE streams SET through = 6, hash = (SELECT hash FROM records WHERE pos = 21) WHERE id = 3")
	h.sql(`UPDATE kpis SET customers = customers - 1, sales_transactions = sales_transactions - 1, units_sold = units_sold - 1, gross_sales = gross_sales - 10500,
		discounts = discounts - 500, turnover_incl = turnover_incl - 10000, turnover_ex = turnover_ex - 8000 WHERE store = '0001' AND currency = 'SEK'`)
	h.sql("UPDATE tender_days SET count = count - 1, amount = amount - 10000 WHERE store = '0001'")
	h.sql("UPDATE day_spans SET last_pos = 20 WHERE store = '0001' AND day = '2026-03-02'")
	after := h.audit()
	if len(after.Findings) != 0 || before.Unsigned != after.Unsigned+1 {
		t.Errorf("%d unsigned before, %d after, and found %v", before.Unsigned, after.Unsigned, after.Findings)
	}
}

// A cell is one stored value of a record, or of a row beside it.
type cell struct{ table, key, column, kind string }

func (h *house) cells() (all []cell) {
	for table, columns := range map[string]map[string]string{
		"records": {"pos": "number", "stream": "number", "seq": "number", "mono": "number", "number": "number", "voided": "number", "store": "text", "kind": "text",
			"at": "text", "day": "text", "business_day": "text", "type": "text", "hash": "bytes", "body": "bytes", "was": "bytes"},
		"duplicates":    {"stream": "number", "seq": "number", "hash": "bytes", "record": "bytes"},
		"quarantined":   {"stream": "number", "seq": "number", "store": "text", "agent": "text", "epoch": "text", "kind": "text", "day": "text", "business_day": "text", "hash": "bytes", "record": "bytes"},
		"business_keys": {"business_day": "text", "workstation": "text", "sequence": "number", "pos": "number"},
		"voids":         {"business_day": "text", "workstation": "text", "sequence": "number", "pos": "number"},
		"resent":        {"store": "text", "agent": "text", "epoch": "text", "seq": "number", "sha256": "bytes"},
		"holes":         {"store": "text", "agent": "text", "epoch": "text", "first_seq": "number", "last_seq": "number", "hash": "bytes"},
		"day_marks": {"store": "text", "day": "text", "agent": "text", "epoch": "text", "seq": "number", "head_epoch": "text", "head_seq": "number", "head_hash": "bytes",
			"certificate": "bytes", "signature": "bytes"},
		"day_spans":        {"store": "text", "day": "text", "first_pos": "number", "last_pos": "number"},
		"day_certificates": {"store": "text", "day": "text", "version": "number", "state": "text", "digest": "bytes", "body": "bytes"},
		"streams":          {"id": "number", "store": "text", "agent": "text", "epoch": "text", "through": "number", "hash": "bytes"},
		"numbers":          {"store": "text", "type": "text", "last": "number"},
		"kpis":             {"store": "text", "day": "text", "currency": "text", "turnover_incl": "number", "customers": "number", "passages_in": "number"},
		"tender_days":      {"store": "text", "day": "text", "currency": "text", "type": "text", "count": "number", "amount": "number"},
		"chains":           {"head": "number"},
	} {
		for column, kind := range columns {
			for _, key := range selected(h.t, h.url, "SELECT rowid FROM "+table+" WHERE length("+column+") > 0") {
				all = append(all, cell{table, key, column, kind})
			}
		}
	}
	slices.SortFunc(all, func(a, b cell) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return all
}

// TestBEY10AnySingleChangeOfARecordIsFound changes one byte, or one number, of any stored value
// of any record, in whichever table it stands, and of what stands beside them. (When it was received, the key of its personal
// fields, and why it was not applied are beside the record: nobody signed them.)
func TestBEY10AnySingleChangeOfARecordIsFound(t *testing.T) {
	h := openHouse(t, sqliteURL(t))
	h.trade()
	cells := h.cells()
	db := database(t, h.url)
	defer db.Close()
	rapid.Check(t, func(rt *rapid.T) {
		c := cells[rapid.IntRange(0, len(cells)-1).Draw(rt, "cell")]
		set := func(value any) error {
			_, err := db.Exec("UPDATE "+c.table+" SET "+c.column+" = $1 WHERE rowid = $2", value, c.key)
			return err
		}
		var before, after any
		if err := db.QueryRow("SELECT "+c.column+" FROM "+c.table+" WHERE rowid = $1", c.key).Scan(&before); err != nil {
			rt.Fatalf("%+v: %v", c, err)
		}
		switch v := before.(type) {
		case int64:
			after = v + rapid.Int64Range(1000, 100_000).Draw(rt, "more") // no row stands there
		case string:
			b := []byte(v)
			i := rapid.IntRange(0, len(b)-1).Draw(rt, "byte")
			b[i] = rapid.SampledFrom([]byte(strings.ReplaceAll("abcxyz0123456789", string(b[i]), ""))).Draw(rt, "character")
			after = string(b)
		case []byte:
			b := slices.Clone(v)
			b[rapid.IntRange(0, len(b)-1).Draw(rt, "byte")] ^= byte(rapid.IntRange(1, 255).Draw(rt, "flip"))
			after = b
		default:
			rt.Fatalf("%+v is %T", c, before)
		}
		if err := set(after); err != nil {
			if !strings.Contains(err.Error(), "UNIQUE constraint") { // which the database finds by itself
				rt.Fatalf("%+v: %v", c, err)
			}
			return
		}
		if report := h.audit(); len(report.Findings) == 0 {
			rt.Errorf("%+v: %q became %q, and nothing is found", c, before, after)
		}
		if err := set(before); err != nil {
			rt.Fatalf("%+v: %v", c, err)
		}
	})
	if found := h.audit().Findings; len(found) > 0 {
		t.Errorf("with everything put back: %v", found)
	}
}
