package ledger_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

func transaction(t testing.TB, tr protocol.Transaction) protocol.Record {
	return record(t, protocol.KindTransaction, tr)
}

func transactions(t testing.TB, l *ledger.Ledger, q ledger.TransactionQuery) []ledger.TransactionRow {
	t.Helper()
	q.Chain = chain
	rows, more, err := l.Transactions(t.Context(), q)
	if err != nil || more {
		t.Fatalf("transactions: more %v, %v", more, err)
	}
	return rows
}

func records(t testing.TB, l *ledger.Ledger) []ledger.StoredRecord {
	t.Helper()
	var all []ledger.StoredRecord
	for {
		after := int64(0)
		if len(all) > 0 {
			after = all[len(all)-1].Pos
		}
		page, err := l.Records(t.Context(), chain, after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
	}
}

func quarantined(t testing.TB, l *ledger.Ledger) []ledger.QuarantinedRecord {
	t.Helper()
	q, err := l.Quarantined(t.Context(), chain, 0)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func TestASaleIsARowANumberAndSums(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(transaction(t, sale("0001", 7)), transaction(t, sale("0001", 8))))

		rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale, From: 1})
		if len(rows) != 2 {
			t.Fatalf("transactions %+v, want two", rows)
		}
		r := rows[0]
		if r.Pos != 2 || r.Number != 1 || r.Sequence != 7 || r.Day != day || r.Total != 10000 || r.Currency != "SEK" || len(r.Flags) != 0 || r.Voided {
			t.Errorf("row %+v", r)
		}
		kpis, err := l.KPIs(t.Context(), chain, "", day, day)
		want := ledger.KPIRow{Store: "0001", Day: day, Currency: "SEK", Version: 3, Customers: 2, SalesTransactions: 2, UnitsSold: 2,
			GrossSales: 21000, Discounts: 1000, TurnoverIncl: 20000, TurnoverEx: 16000}
		if err != nil || len(kpis) != 1 || kpis[0] != want {
			t.Errorf("kpis %+v, %v\nwant %+v", kpis, err, want)
		}
		tenders, err := l.Tenders(t.Context(), chain, "0001", day)
		if err != nil || len(tenders) != 1 || tenders[0] != (ledger.TenderSum{Store: "0001", Day: day, Currency: "SEK", Type: "cash", Count: 2, Amount: 20000}) {
			t.Errorf("tenders %+v, %v", tenders, err)
		}
		if pos := heads(t, l); pos != 3 {
			t.Errorf("head %d, want 3", pos)
		}
	})
}

func TestABodyKeepsItsBytes(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		body := []byte(`{"note":"nul \u0000, bad ` + "\xff\xfe" + `", "store":"0001","workstation":"1","businessDay":"2026-03-02","sequenceNumber":7,"type":"sale","begin":"2026-03-02T12:00:00+01:00",` +
			`"end":"2026-03-02T12:00:00+01:00","customer":"\u0000","currency":"SEK","lines":[{"type":"sale","item":"A\u0000","group":"\u0000","quantity":{"milli":1000},"extendedAmount":1}],"tenders":[],"total":1}`)
		device := protocol.DeviceState{Device: "d", State: protocol.DeviceFault, At: time.Unix(1, 0), Reason: "a\x00b"}
		acked(t, l, a, a.begin(record(t, protocol.KindTransaction, body), record(t, protocol.KindDevice, device), record(t, "new\x00kind", []byte(`{"x":"\u0000"}`))))
		if got := records(t, l); len(got) != 3 || string(got[1].Body) != string(body) {
			t.Errorf("records %+v, want the body as it came", got)
		}
		if rows := transactions(t, l, ledger.TransactionQuery{}); len(rows) != 1 || rows[0].Customer != "\x00" {
			t.Errorf("transactions %+v", rows)
		}
		if q := quarantined(t, l); len(q) != 1 || !strings.HasPrefix(q[0].Reason, "kind: ") {
			t.Errorf("quarantine %+v, want the unknown kind", q)
		}
	})
}

func TestABusinessKeyCountsOnce(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a, b := newAgent(t, "0001", "pc", 1), newAgent(t, "0001", "pc2", 2)
		other := sale("0001", 7)
		other.Operator = "someone else"
		// Twice in one batch, and again from another agent.
		acked(t, l, a, a.begin(transaction(t, sale("0001", 7)), transaction(t, sale("0001", 7))))
		acked(t, l, b, b.begin(transaction(t, sale("0001", 7)), transaction(t, other), transaction(t, sale("0001", 8))))
		rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale})
		if len(rows) != 2 || rows[0].Number != 1 || rows[1].Number != 2 || rows[1].Sequence != 8 {
			t.Errorf("transactions %+v, want 7 and 8 numbered 1 and 2", rows)
		}
		q := quarantined(t, l)
		if len(q) != 1 || q[0].Agent != "pc2" || q[0].Seq != 3 || !strings.HasPrefix(q[0].Reason, "sequenceNumber: ") {
			t.Fatalf("quarantine %+v, want the other content", q)
		}
		days, err := l.IncompleteDays(t.Context(), chain, "", day, day)
		if err != nil || len(days) != 1 || days[0] != (ledger.IncompleteDay{Store: "0001", Day: day, Records: 1}) {
			t.Errorf("incomplete days %+v, %v", days, err)
		}
		if err := l.RetryQuarantined(t.Context(), chain, q[0].ID); err == nil || !strings.Contains(err.Error(), "sequenceNumber: ") {
			t.Errorf("retry of a clash: %v, want the reason", err)
		}
		if q := quarantined(t, l); len(q) != 1 {
			t.Errorf("quarantine after a vain retry %+v", q)
		}
	})
}

func TestAFaultIsQuarantinedAndNamesItsField(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		noDay, badTime, count := transaction(t, sale("0002", 1)), transaction(t, sale("0001", 2)), record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "c", Quality: protocol.QualityOK})
		badTime.At = "noon"
		count.Day = protocol.Day{}
		void := sale("0001", 3)
		void.Type, void.Voids = protocol.TypeVoid, &protocol.TransactionID{Store: "0002", Workstation: "1", BusinessDay: day, Sequence: 1}
		reset := seal(t, nil, false)
		acked(t, l, a, a.begin(noDay, badTime, count, transaction(t, void), reset, record(t, protocol.KindTransaction, []byte(`{"total":"x"}`)), transaction(t, sale("0001", 9))))
		var fields []string
		for _, q := range quarantined(t, l) {
			field, _, _ := strings.Cut(q.Reason, ":")
			fields = append(fields, field)
		}
		if want := []string{"store", "at", "day", "voids.store", "kind", "total"}; !slices.Equal(fields, want) {
			t.Errorf("quarantined for %q, want %q", fields, want)
		}
		if rows := transactions(t, l, ledger.TransactionQuery{}); len(rows) != 1 || rows[0].Number != 1 || rows[0].Pos != 2 {
			t.Errorf("transactions %+v, want the good one at number 1, position 2", rows)
		}
		// A known batch is compared with what is in quarantine too.
		if got := commit(t, l, a, protocol.Batch{Epoch: a.epoch, First: 1, Prev: protocol.Genesis(chain, "0001", "pc", a.epoch), Records: []protocol.Record{withSeq(seal(t, nil, false), 1), withSeq(noDay, 2)}}); got.Verdict != protocol.VerdictAck {
			t.Errorf("known head again: %+v, want ack", got)
		}
	})
}

func withSeq(r protocol.Record, seq uint64) protocol.Record {
	r.Seq = seq
	return r
}

func TestABatchIsAnsweredByWhatIsKnown(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		first := a.begin(transaction(t, sale("0001", 1)))
		after := a.mark()
		second := a.batch(transaction(t, sale("0001", 2)), transaction(t, sale("0001", 3)))
		third := a.batch(transaction(t, sale("0001", 4)))
		want := func(b protocol.Batch, verdict protocol.Verdict, through uint64) {
			t.Helper()
			if got := commit(t, l, a, b); got.Verdict != verdict || got.Through != through || (through == 2 && got.Hash != after.Hash) {
				t.Errorf("%d..%d: %+v, want %s through %d", b.First, b.Last(), got, verdict, through)
			}
		}
		want(second, protocol.VerdictGap, 0)
		want(first, protocol.VerdictAck, 2)
		want(third, protocol.VerdictGap, 2)
		forked := first
		forked.Records = slices.Clone(first.Records)
		forked.Records[1].Mono++
		want(forked, protocol.VerdictFork, 2)
		strange := second
		strange.Prev[0]++
		want(strange, protocol.VerdictFork, 2)
		whole := protocol.Batch{Epoch: a.epoch, First: 1, Prev: first.Prev, Records: slices.Concat(first.Records, second.Records)}
		want(whole, protocol.VerdictAck, 4) // its head is cut off
		want(first, protocol.VerdictAck, 4)
		want(forked, protocol.VerdictFork, 4)
		want(third, protocol.VerdictAck, 5)
		if pos := heads(t, l); pos != 5 {
			t.Errorf("head %d, want 5", pos)
		}
		alarms, err := l.Alarms(t.Context(), chain)
		if err != nil || !slices.ContainsFunc(alarms, func(a ledger.Alarm) bool { return a.Kind == ledger.AlarmFork && a.Agent == "pc" }) {
			t.Errorf("alarms %+v, %v, want a fork", alarms, err)
		}
	})
}

func TestABatchWithoutAFormIsRefused(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		for name, b := range map[string]protocol.Batch{
			"no seal":   {Epoch: a.epoch, First: 1, Prev: a.hash, Records: []protocol.Record{withSeq(transaction(t, sale("0001", 1)), 1)}},
			"bad seal":  {Epoch: a.epoch, First: 1, Prev: a.hash, Records: []protocol.Record{withSeq(record(t, protocol.KindSeal, []byte(`{"before":7}`)), 1)}},
			"own epoch": {Epoch: a.epoch, First: 1, Prev: a.hash, Records: []protocol.Record{withSeq(seal(t, &protocol.Mark{Epoch: a.epoch, Through: 1}, false), 1)}},
			"epoch":     {Epoch: "x", First: 1, Records: []protocol.Record{withSeq(seal(t, nil, false), 1)}},
			"empty":     {Epoch: a.epoch, First: 1},
			"seq":       {Epoch: a.epoch, First: 1, Prev: a.hash, Records: []protocol.Record{withSeq(seal(t, nil, false), 1), withSeq(seal(t, nil, false), 3)}},
			"raw":       {Epoch: a.epoch, First: 1, Prev: a.hash, Raw: []byte(`{"seq":1,`)},
		} {
			if got := commit(t, l, a, b); got.Verdict != protocol.VerdictRefused || got.Reason == "" || got.Incarnation != 1 {
				t.Errorf("%s: %+v, want refused with a reason", name, got)
			}
		}
		if q := quarantined(t, l); len(q) != 1 || string(q[0].Record) != `{"seq":1,` {
			t.Errorf("quarantine %+v, want the raw record", q)
		}
		// A raw record that can be read after all is a record.
		first := a.begin()
		if got := commit(t, l, a, protocol.Batch{Epoch: a.epoch, First: 1, Prev: first.Prev, Raw: first.Records[0].AppendJSON(nil)}); got.Verdict != protocol.VerdictAck || got.Hash != a.hash {
			t.Errorf("readable raw: %+v, want ack", got)
		}
		if _, err := l.Commit(t.Context(), protocol.Origin{Chain: "a b", Store: "1", Agent: "1"}, first); err == nil {
			t.Error("an origin without form was taken")
		}
	})
}

// checkOrder wants positions 1..head without holes, and numbers per store and type without
// holes in the order of positions.
func checkOrder(t *testing.T, l *ledger.Ledger, want int) {
	t.Helper()
	all := records(t, l)
	if len(all) != want || int64(want) != heads(t, l) {
		t.Errorf("%d records, head %d, want %d", len(all), heads(t, l), want)
	}
	numbers := map[string]int64{}
	place := map[string]bool{}
	for i, r := range all {
		if r.Pos != int64(i)+1 {
			t.Fatalf("record %d is at position %d", i, r.Pos)
		}
		at := string(r.Epoch) + "/" + r.Agent + "/" + protocol.Position{Seq: r.Seq}.String()
		if place[at] {
			t.Fatalf("%s is there twice", at)
		}
		place[at] = true
		if r.Kind == protocol.KindTransaction {
			if numbers[r.Store]++; r.Number != numbers[r.Store] {
				t.Fatalf("position %d of store %s has number %d, want %d", r.Pos, r.Store, r.Number, numbers[r.Store])
			}
		}
	}
}

// A crowd of agents sends batches doubled, overlapping, early and forked, until all are
// acknowledged.
func crowd(t *testing.T, agents, batches int, ledgers ...*ledger.Ledger) (records int) {
	var wg sync.WaitGroup
	var mu sync.Mutex // guards records
	for n := range agents {
		wg.Go(func() {
			store := "000" + string(rune('1'+n%3))
			a := newAgent(t, store, "pc"+string(rune('a'+n)), n)
			rnd := rand.New(rand.NewPCG(1, uint64(n)))
			genesis := a.hash
			var sent []protocol.Record
			hashes := []protocol.Hash{genesis}
			until := func(first, last int) protocol.Batch { // seqs
				return protocol.Batch{Epoch: a.epoch, First: uint64(first), Prev: hashes[first-1], Records: slices.Clone(sent[first-1 : last])}
			}
			for i := range batches {
				fresh := []protocol.Record{}
				if i == 0 {
					fresh = append(fresh, seal(t, nil, false))
				}
				for range 1 + rnd.IntN(4) {
					fresh = append(fresh, transaction(t, sale(store, int64(n*10000+len(sent)+len(fresh)))))
				}
				before := len(sent)
				a.batch(fresh...)
				h := hashes[len(hashes)-1]
				for j := range fresh {
					h = fresh[j].Hash(h)
					hashes = append(hashes, h)
				}
				sent = append(sent, fresh...)
				l := ledgers[rnd.IntN(len(ledgers))]
				if got := commit(t, l, a, until(before+1, len(sent))); got.Verdict != protocol.VerdictAck {
					t.Errorf("agent %d: %+v", n, got)
				}
				l = ledgers[rnd.IntN(len(ledgers))]
				first := 1 + rnd.IntN(len(sent))
				switch rnd.IntN(4) {
				case 0: // doubled or overlapping
					if got := commit(t, l, a, until(first, first+rnd.IntN(len(sent)-first+1))); got.Verdict != protocol.VerdictAck || got.Through != uint64(len(sent)) {
						t.Errorf("agent %d again: %+v", n, got)
					}
				case 1: // early
					b := until(first, len(sent))
					shift := uint64(len(sent))
					b.First += shift
					for k := range b.Records {
						b.Records[k].Seq += shift
					}
					if b.First > uint64(len(sent))+1 {
						if got := commit(t, l, a, b); got.Verdict != protocol.VerdictGap || got.Through != uint64(len(sent)) {
							t.Errorf("agent %d early: %+v", n, got)
						}
					}
				case 2: // forked
					b := until(first, len(sent))
					b.Records[rnd.IntN(len(b.Records))].Mono = 99
					if got := commit(t, l, a, b); got.Verdict != protocol.VerdictFork {
						t.Errorf("agent %d forked: %+v", n, got)
					}
				}
			}
			mu.Lock()
			records += len(sent)
			mu.Unlock()
		})
	}
	wg.Wait()
	return records
}

func TestManyAgentsGetOneOrder(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		checkOrder(t, l, crowd(t, 20, 25, l))
	})
}

func TestTwoRelaysShareOneOrder(t *testing.T) {
	url := ledgertest.Postgres(t)
	one, _ := open(t, url)
	two, _ := open(t, url)
	checkOrder(t, one, crowd(t, 20, 25, one, two))
}

func TestARestartLosesAndDoublesNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, stop := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		total := 0
		for i := range 5 {
			fresh := []protocol.Record{transaction(t, sale("0001", int64(10*i+1))), transaction(t, sale("0001", int64(10*i+2)))}
			if i == 0 {
				fresh = append([]protocol.Record{seal(t, nil, false)}, fresh...)
			}
			b := a.batch(fresh...)
			acked(t, l, a, b)
			total += len(b.Records)
			stop()
			if _, err := l.Commit(t.Context(), a.from, b); err == nil {
				t.Fatal("a closed ledger took a batch")
			}
			l, stop = open(t, url)
			acked(t, l, a, b) // the ack was lost
		}
		checkOrder(t, l, total)
	})
}

func TestCommitGivesUpWithItsContext(t *testing.T) {
	l, err := ledger.Open(t.Context(), sqliteURL(t), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := newAgent(t, "0001", "pc", 1)
	if _, err := l.Commit(ctx, a.from, a.begin()); err == nil { // nobody runs the ledger
		t.Error("commit without Run gave an answer")
	}
}
