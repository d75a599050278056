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
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

// A house is a ledger with a history of every kind, whose agents signed their days.
type house struct {
	t   *testing.T
	url string
	ca  *ca.CA
	*ledger.Ledger
	stop func()
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
func (h *house) trade() (pc, other *signing) {
	h.t.Helper()
	if err := h.PutStore(h.t.Context(), chain, ledger.Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}); err != nil {
		h.t.Fatal(err)
	}
	pc, other = h.agent("0001", "pc", 1), h.agent("0002", "pc2", 9)
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
	return pc, other
}

func (h *house) audit(opts ledger.AuditOptions) *ledger.AuditReport {
	h.t.Helper()
	opts.Roots = h.ca.Roots()
	report, err := h.Audit(h.t.Context(), opts)
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
		report := h.audit(ledger.AuditOptions{})
		for _, f := range report.Findings {
			t.Errorf("found: %s", f)
		}
		if report.Records != 24 || report.Streams != 3 || report.Marks != 4 || report.Certificates != 1 || report.Holes != 1 || report.Unsigned != 3 {
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
	db := database(h.t, h.url)
	defer db.Close()
	var stream, through int64
	if err := db.QueryRow("SELECT id, through FROM streams WHERE agent = 'pc' AND epoch = $1", string(epochOf(epoch))).Scan(&stream, &through); err != nil {
		h.t.Fatal(err)
	}
	if upTo != nil {
		through = upTo[0]
	}
	hash := protocol.Genesis(chain, "0001", "pc", epochOf(epoch))
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
	return protocol.Mark{Epoch: epochOf(epoch), Through: uint64(through), Hash: hash}
}

const (
	e1 = "chain demo, store 0001, agent pc, epoch 00000000000000000000000000000001, "
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

		"a record removed":       {func(h *house) { h.sql("DELETE FROM records WHERE pos = 12") }, []string{e1 + "record 9: missing: stands in no table", "chain demo, store 0001: projection: 2026-03-02: drawer_opens", "chain demo, position 12: position: the chain has no record at position 12"}},
		"two records removed":    {func(h *house) { h.sql("DELETE FROM records WHERE pos IN (11, 12)") }, []string{e1 + "records 8 to 9: missing", "chain demo, store 0001: projection: 2026-03-02: drawer_opens", "chain demo, position 11: position: the chain has no record at positions 11 to 12"}},
		"a duplicate removed":    {func(h *house) { h.sql("DELETE FROM duplicates WHERE seq = 7") }, []string{e1 + "record 7: missing"}},
		"a quarantined one gone": {func(h *house) { h.sql("DELETE FROM quarantined WHERE seq = 10") }, []string{e1 + "record 10: missing"}},
		"the tail removed": {func(h *house) { h.sql("DELETE FROM records WHERE pos = 22") }, []string{
			e2 + "record 7: missing", "chain demo, store 0001: projection", "chain demo, store 0001: projection", "chain demo, position 22: position: the chain's last position is 22, and its last record stands at 21",
			"chain demo, store 0001: position: the last sale number", "chain demo, store 0001, position 22: columns: a receipt's business key without its record", "chain demo: columns: there are"}},
		"the tail of an epoch removed, and its stream's row made to fit": {func(h *house) {
			h.sql("DELETE FROM records WHERE pos IN (15, 16, 17)")
			h.sql("DELETE FROM business_keys WHERE pos IN (15, 16)")
			h.sql("DELETE FROM day_marks WHERE seq = 14")
			h.sql("UPDATE streams SET through = 11, hash = (SELECT hash FROM records WHERE pos = 13) WHERE epoch = $1", string(epochOf(1)))
		}, []string{e1 + "records 12 to 14: missing: epoch 00000000000000000000000000000002 goes on behind them, and its stream ends before", "chain demo, store 0001: projection", "chain demo, store 0001: projection",
			"chain demo, position 15: position: the chain has no record at positions 15 to 17", "chain demo, store 0001, position 19: position: no record has the sale numbers 5 to 6, and the one behind stands here"}},
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

		"a position moved": {func(h *house) { h.sql("UPDATE records SET pos = 99 WHERE pos = 12") }, []string{"chain demo, position 12: position: the chain has no record at position 12"}},
		"a number moved":   {func(h *house) { h.sql("UPDATE records SET number = 50 WHERE pos = 16") }, []string{"chain demo, store 0001, position 19: position: no record has the sale number 6, and the one behind stands here"}},
		"two numbers swapped": {func(h *house) {
			h.sql("UPDATE records SET number = 1000 WHERE pos = 15")
			h.sql("UPDATE records SET number = 5 WHERE pos = 16")
			h.sql("UPDATE records SET number = 6 WHERE pos = 15")
		}, []string{"chain demo, store 0001, position 15: position: sale number 6 stands here, and number 5 behind it at position 16"}},
		"a jump made up": {func(h *house) {
			h.sql("INSERT INTO jumps (chain, incarnation, head_before, head_after, at) VALUES (1, 2, 11, 12, 0)")
			h.sql("DELETE FROM records WHERE pos = 12")
		}, []string{e1 + "record 9: missing", "chain demo, store 0001: projection", "chain demo, position 12: position: a jump from 11 to 12 is none that a raise to incarnation 2 makes"}},
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
			report := h.audit(ledger.AuditOptions{})
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

// What nothing signed speaks of can be taken away without a trace by somebody who makes all
// rows fit; the audit says how much that is.
func TestBEY10TheAuditSaysWhatNoMarkCovers(t *testing.T) {
	h := openHouse(t, sqliteURL(t))
	h.trade()
	before := h.audit(ledger.AuditOptions{})
	h.sql("DELETE FROM records WHERE pos = 22")
	h.sql("DELETE FROM business_keys WHERE pos = 22")
	h.sql("UPDATE chains SET head = 21")
	h.sql("UPDATE numbers SET last = last - 1 WHERE store = '0001' AND type = 'sale'")
	h.sql("UPDATE streams SET through = 6, hash = (SELECT hash FROM records WHERE pos = 21) WHERE id = 3")
	h.sql(`UPDATE kpis SET customers = customers - 1, sales_transactions = sales_transactions - 1, units_sold = units_sold - 1, gross_sales = gross_sales - 10500,
		discounts = discounts - 500, turnover_incl = turnover_incl - 10000, turnover_ex = turnover_ex - 8000 WHERE store = '0001' AND currency = 'SEK'`)
	h.sql("UPDATE tender_days SET count = count - 1, amount = amount - 10000 WHERE store = '0001'")
	after := h.audit(ledger.AuditOptions{})
	if len(after.Findings) != 0 || before.Unsigned != after.Unsigned+1 {
		t.Errorf("%d unsigned before, %d after, and found %v", before.Unsigned, after.Unsigned, after.Findings)
	}
}

// A cell is one stored value of a record.
type cell struct{ table, key, column, kind string }

func (h *house) cells() (all []cell) {
	for table, columns := range map[string]map[string]string{
		"records": {"pos": "number", "stream": "number", "seq": "number", "mono": "number", "number": "number", "voided": "number", "store": "text", "kind": "text",
			"at": "text", "day": "text", "business_day": "text", "type": "text", "hash": "bytes", "body": "bytes", "was": "bytes"},
		"duplicates":  {"stream": "number", "seq": "number", "hash": "bytes", "record": "bytes"},
		"quarantined": {"stream": "number", "seq": "number", "store": "text", "agent": "text", "epoch": "text", "kind": "text", "day": "text", "hash": "bytes", "record": "bytes"},
	} {
		for column, kind := range columns {
			for _, key := range selected(h.t, h.url, "SELECT rowid FROM "+table+" WHERE "+column+" IS NOT NULL") {
				all = append(all, cell{table, key, column, kind})
			}
		}
	}
	slices.SortFunc(all, func(a, b cell) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return all
}

// TestBEY10AnySingleChangeOfARecordIsFound changes one byte, or one number, of any stored value
// of any record, in whichever table it stands. (When it was received, the key of its personal
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
		if report := h.audit(ledger.AuditOptions{}); len(report.Findings) == 0 {
			rt.Errorf("%+v: %q became %q, and nothing is found", c, before, after)
		}
		if err := set(before); err != nil {
			rt.Fatalf("%+v: %v", c, err)
		}
	})
	if found := h.audit(ledger.AuditOptions{}).Findings; len(found) > 0 {
		t.Errorf("with everything put back: %v", found)
	}
}
