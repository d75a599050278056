package ledger_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

func TestAVoidTakesItsVictimBackInAnyOrder(t *testing.T) {
	void := sale("0001", 2)
	void.Type, void.Voids = protocol.TypeVoid, &protocol.TransactionID{Store: "0001", Workstation: "1", BusinessDay: day, Sequence: 1}
	again := void
	again.Sequence = 3
	for name, order := range map[string][][]protocol.Transaction{
		"after, one commit":  {{sale("0001", 1), void}},
		"after":              {{sale("0001", 1)}, {void}},
		"before, one commit": {{void, sale("0001", 1)}},
		"before":             {{void}, {sale("0001", 1)}},
		"twice":              {{sale("0001", 1)}, {void}, {again}},
		"twice, before":      {{again}, {void, sale("0001", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, url string) {
				l, _ := open(t, url)
				a := newAgent(t, "0001", "pc", 1)
				acked(t, l, a, a.begin())
				for _, batch := range order {
					var rs []protocol.Record
					for _, tr := range batch {
						rs = append(rs, transaction(t, tr))
					}
					acked(t, l, a, a.batch(rs...))
				}
				kpis, err := l.KPIs(t.Context(), chain, "", day, day)
				if err != nil || len(kpis) != 1 || kpis[0] != (ledger.KPIRow{Store: "0001", Day: day, Currency: "SEK", Version: kpis[0].Version}) {
					t.Errorf("kpis %+v, %v, want zeros", kpis, err)
				}
				if tenders, err := l.Tenders(t.Context(), chain, "", day); err != nil || len(tenders) != 0 {
					t.Errorf("tenders %+v, %v, want none", tenders, err)
				}
				rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale})
				if len(rows) != 1 || !rows[0].Voided || !slices.Contains(rows[0].Flags, ledger.FlagVoided) {
					t.Errorf("rows %+v, want the sale flagged voided", rows)
				}
			})
		})
	}
}

func TestTrainingCountsNowhere(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		practice, void := sale("0001", 2), sale("0001", 3)
		practice.Training = true
		void.Type, void.Training, void.Voids = protocol.TypeVoid, true, &protocol.TransactionID{Workstation: "1", BusinessDay: day, Sequence: 1}
		acked(t, l, a, a.begin(transaction(t, sale("0001", 1)), transaction(t, practice), transaction(t, void)))
		kpis, err := l.KPIs(t.Context(), chain, "", day, day)
		if err != nil || len(kpis) != 1 || kpis[0].Customers != 1 || kpis[0].TurnoverIncl != 10000 {
			t.Errorf("kpis %+v, %v, want the one sale", kpis, err)
		}
		if rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale}); len(rows) != 2 || rows[0].Voided {
			t.Errorf("rows %+v, want both kept and none voided", rows)
		}
	})
}

func TestFootfallAndDrawersCountOnTheRowWithoutCurrency(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		count := func(quality protocol.Quality, undirected bool) protocol.Record {
			return record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: 3, Out: 2, Quality: quality, Undirect: undirected})
		}
		drawer := func(event string) protocol.Record {
			return record(t, protocol.KindDrawer, protocol.DrawerEvent{Drawer: "till1", Event: event, At: sale("", 1).Begin})
		}
		state := func(device, state string) protocol.Record {
			return record(t, protocol.KindDevice, protocol.DeviceState{Device: device, Driver: "x", Class: "drawer", State: state, At: sale("", 1).Begin, Reason: "r", Hint: "h"})
		}
		acked(t, l, a, a.begin(count(protocol.QualityOK, false), count(protocol.QualityWrap, true), count(protocol.QualityGap, false),
			drawer(protocol.DrawerOpened), drawer(protocol.DrawerClosed), state("till1", protocol.DeviceOffline)))
		acked(t, l, a, a.batch(drawer(protocol.DrawerOpened), drawer(protocol.DrawerOpenFailed), state("till1", protocol.DeviceOnline), state("door", protocol.DeviceFault)))
		kpis, err := l.KPIs(t.Context(), chain, "0001", day, day)
		want := ledger.KPIRow{Store: "0001", Day: day, Version: 8, DrawerOpens: 2, PassagesIn: 6, PassagesOut: 4, PassagesUndirected: 3, FootfallCounts: 3, FootfallDoubtful: 1}
		if err != nil || len(kpis) != 1 || kpis[0] != want {
			t.Errorf("kpis %+v, %v\nwant %+v", kpis, err, want)
		}
		devices, err := l.Devices(t.Context(), chain, "0001")
		if err != nil || len(devices) != 2 || devices[0].State != "fault" || devices[0].Drawer != "" || devices[1].State != "online" || devices[1].Drawer != "open" || !devices[1].Since.Equal(sale("", 1).Begin) {
			t.Errorf("devices %+v, %v", devices, err)
		}
		for _, tt := range []struct {
			store string
			kind  protocol.Kind
			day   protocol.Day
			want  int
		}{
			{"", "", protocol.Day{}, 11}, {"0001", protocol.KindFootfall, day, 3}, {"0001", protocol.KindDrawer, protocol.Day{}, 4},
			{"", protocol.KindDevice, day, 3}, {"0002", "", day, 0}, {"0001", "", day.AddDays(1), 0},
		} {
			got, err := l.RecordsOf(t.Context(), chain, tt.store, tt.kind, tt.day, 0, 0)
			if err != nil || len(got) != tt.want {
				t.Errorf("records of %+v: %d, %v", tt, len(got), err)
			}
			if after, err := l.RecordsOf(t.Context(), chain, tt.store, tt.kind, tt.day, 1, 1); err != nil || len(after) != min(tt.want, 1) || (len(after) == 1 && after[0].Pos < 2) {
				t.Errorf("one of %+v after 1: %+v, %v", tt, after, err)
			}
		}
	})
}

// drawTransaction makes transactions of two stores, few tills, sequences and days, so that
// business keys and voids meet.
func drawTransaction(t *rapid.T, store string, sequence int64) protocol.Transaction {
	tr := sale(store, sequence)
	tr.Workstation = "1"
	tr.BusinessDay = day.AddDays(rapid.IntRange(0, 1).Draw(t, "day"))
	tr.Currency = rapid.SampledFrom([]string{"SEK", "EUR"}).Draw(t, "currency")
	tr.Training = rapid.IntRange(0, 9).Draw(t, "training") == 0
	tr.Lines, tr.Tenders = nil, nil
	for range rapid.IntRange(1, 3).Draw(t, "lines") {
		line := protocol.LineItem{
			Type: protocol.LineSale, Item: rapid.SampledFrom([]string{"A", "B"}).Draw(t, "item"), Quantity: protocol.Quantity{Milli: rapid.Int64Range(1, 3).Draw(t, "quantity") * 1000},
			ExtendedAmount: rapid.Int64Range(0, 9999).Draw(t, "amount"), TaxAmount: rapid.Int64Range(0, 99).Draw(t, "tax"), DiscountAmount: rapid.Int64Range(0, 99).Draw(t, "discount"),
			ItemType: rapid.SampledFrom([]string{"", "", "service", "deposit", "giftCard"}).Draw(t, "itemType"), Voided: rapid.IntRange(0, 5).Draw(t, "struck") == 0,
		}
		if rapid.IntRange(0, 3).Draw(t, "return") == 0 {
			line.Type = protocol.LineReturn
			line.Quantity.Milli *= -1
			line.ExtendedAmount *= -1
			line.TaxAmount *= -1
		}
		if rapid.IntRange(0, 4).Draw(t, "weighed") == 0 {
			line.Quantity = protocol.Quantity{Milli: line.Quantity.Milli / 7, Unit: "KGM"}
		}
		tr.Lines = append(tr.Lines, line)
	}
	for range rapid.IntRange(0, 3).Draw(t, "tenders") {
		tr.Tenders = append(tr.Tenders, protocol.Tender{Type: rapid.SampledFrom([]string{"cash", "card"}).Draw(t, "tender"), Amount: rapid.Int64Range(-99, 9999).Draw(t, "paid")})
	}
	if rapid.IntRange(0, 4).Draw(t, "void") == 0 {
		tr.Type = protocol.TypeVoid
		tr.Voids = &protocol.TransactionID{Store: store, Workstation: "1", BusinessDay: tr.BusinessDay, Sequence: rapid.Int64Range(1, 30).Draw(t, "victim")}
	}
	return tr
}

// recompute makes the KPI and tender rows from the transactions as docs/kpi.md defines them,
// one sum at a time.
func recompute(all []protocol.Transaction) (map[string]ledger.KPIRow, map[string]ledger.TenderSum) {
	voided := map[string]bool{}
	for _, t := range all {
		if t.Type == protocol.TypeVoid && !t.Training {
			voided[t.Voids.String()] = true
		}
	}
	kpis, tenders := map[string]ledger.KPIRow{}, map[string]ledger.TenderSum{}
	for _, t := range all {
		if t.Training || t.Type == protocol.TypeVoid {
			continue
		}
		key := t.Store + t.BusinessDay.String() + t.Currency
		k := kpis[key]
		k.Store, k.Day, k.Currency = t.Store, t.BusinessDay, t.Currency
		if !voided[t.ID().String()] {
			var sold, returned int64
			for _, l := range t.Lines {
				if l.Voided || l.ItemType == "deposit" || l.ItemType == "giftCard" {
					continue
				}
				if l.Quantity.Milli > 0 {
					sold = 1
					k.UnitsSold += l.Quantity.Units()
					k.GrossSales += l.ExtendedAmount + l.DiscountAmount
					k.Discounts += l.DiscountAmount
				} else {
					returned = 1
					k.UnitsReturned -= l.Quantity.Units()
					k.ReturnLines++
					k.ReturnsAmount -= l.ExtendedAmount
				}
				k.TurnoverIncl += l.ExtendedAmount
				k.TurnoverEx += l.ExtendedAmount - l.TaxAmount
			}
			k.Customers += sold
			k.SalesTransactions += sold
			k.ReturnTransactions += returned
			seen := map[string]bool{}
			for _, x := range t.Tenders {
				s := tenders[key+x.Type]
				s.Store, s.Day, s.Currency, s.Type = t.Store, t.BusinessDay, t.Currency, x.Type
				s.Amount += x.Amount
				if !seen[x.Type] {
					s.Count++
				}
				seen[x.Type] = true
				tenders[key+x.Type] = s
			}
		}
		kpis[key] = k
	}
	return kpis, tenders
}

// Whatever the batches, their order between agents and their repetitions: the sums are those
// of the transactions.
func TestSumsAreThoseOfTheTransactions(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		run := 0
		rapid.Check(t, func(rt *rapid.T) {
			var stores []string
			run++ // other stores and epochs in each run: one ledger serves them all
			var all []protocol.Transaction
			agents := make([]*agent, 4)
			batches := make([][]protocol.Batch, len(agents))
			for i := range agents {
				store := fmt.Sprintf("r%d-%d", run, i%2)
				if i < 2 {
					stores = append(stores, store)
				}
				agents[i] = newAgent(t, store, fmt.Sprint("pc", i), run*100+i)
				for n := range rapid.IntRange(1, 4).Draw(rt, "batches") {
					var rs []protocol.Record
					if n == 0 {
						rs = append(rs, seal(t, nil, false))
					}
					for range rapid.IntRange(1, 4).Draw(rt, "records") {
						tr := drawTransaction(rt, store, int64(len(all)+1))
						if len(all) > 0 && rapid.IntRange(0, 5).Draw(rt, "twice") == 0 {
							if same := rapid.SampledFrom(all).Draw(rt, "same"); same.Store == store {
								rs = append(rs, transaction(t, same)) // two agents read the same till
								continue
							}
						}
						all = append(all, tr)
						rs = append(rs, transaction(t, tr))
					}
					batches[i] = append(batches[i], agents[i].batch(rs...))
				}
			}
			for left := slices.Clone(batches); ; {
				open := slices.DeleteFunc([]int{0, 1, 2, 3}, func(i int) bool { return len(left[i]) == 0 })
				if len(open) == 0 {
					break
				}
				i := rapid.SampledFrom(open).Draw(rt, "agent")
				acked(t, l, agents[i], left[i][0])
				if rapid.Bool().Draw(rt, "again") {
					acked(t, l, agents[i], rapid.SampledFrom(batches[i][:len(batches[i])-len(left[i])+1]).Draw(rt, "batch"))
				}
				left[i] = left[i][1:]
			}
			wantKPIs, wantTenders := recompute(all)
			gotKPIs, gotTenders := map[string]ledger.KPIRow{}, map[string]ledger.TenderSum{}
			for _, store := range stores {
				kpis, err := l.KPIs(t.Context(), chain, store, day, day.AddDays(1))
				if err != nil {
					rt.Fatal(err)
				}
				for _, k := range kpis {
					k.Version = 0
					gotKPIs[k.Store+k.Day.String()+k.Currency] = k
				}
				for _, d := range []protocol.Day{day, day.AddDays(1)} {
					tenders, err := l.Tenders(t.Context(), chain, store, d)
					if err != nil {
						rt.Fatal(err)
					}
					for _, s := range tenders {
						gotTenders[s.Store+s.Day.String()+s.Currency+s.Type] = s
					}
				}
			}
			same(rt, gotKPIs, wantKPIs)
			same(rt, gotTenders, wantTenders)
		})
		if q := quarantined(t, l); len(q) != 0 {
			t.Errorf("quarantine %+v", q)
		}
	})
}

func same[T any](t *rapid.T, got, want map[string]T) {
	g, _ := json.Marshal(got)
	w, _ := json.Marshal(want)
	if string(g) != string(w) {
		t.Fatalf("got  %s\nwant %s", g, w)
	}
}

func TestTransactionsArePaged(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		want := map[string]int{}
		for i, store := range []string{"0001", "0002"} {
			a := newAgent(t, store, "pc", i+1)
			rs := []protocol.Record{}
			for n := range 25 {
				tr := sale(store, int64(n+1))
				if n%3 == 0 {
					tr.Type = protocol.TypeReturn
				}
				tr.BusinessDay = day.AddDays(n % 2)
				rs = append(rs, transaction(t, tr))
				for _, s := range []string{"", store} {
					for _, k := range []protocol.TransactionType{"", tr.Type} {
						for _, d := range []protocol.Day{{}, tr.BusinessDay} {
							want[s+string(k)+d.String()]++
						}
					}
				}
			}
			acked(t, l, a, a.begin(rs...))
		}
		for _, store := range []string{"", "0001", "0002", "0003"} {
			for _, kind := range []protocol.TransactionType{"", protocol.TypeSale, protocol.TypeReturn, protocol.TypeVoid} {
				for _, d := range []protocol.Day{{}, day, day.AddDays(1), day.AddDays(2)} {
					q := ledger.TransactionQuery{Chain: chain, Store: store, Type: kind, Day: d, Limit: 4}
					running := store != "" && kind != ""
					place := func(r ledger.TransactionRow) int64 {
						if running {
							return r.Number
						}
						return r.Pos
					}
					var all []ledger.TransactionRow
					for more := true; more; {
						var rows []ledger.TransactionRow
						var err error
						if rows, more, err = l.Transactions(t.Context(), q); err != nil {
							t.Fatal(err)
						}
						if more && len(rows) != 4 || len(rows) > 4 {
							t.Fatalf("%+v: a page of %d, more %v", q, len(rows), more)
						}
						for _, r := range rows {
							if (store != "" && r.Store != store) || (kind != "" && r.Type != kind) || (!d.IsZero() && r.Day != d) {
								t.Errorf("%+v gave %+v", q, r)
							}
							q.From = place(r) + 1
						}
						all = append(all, rows...)
					}
					if len(all) != want[store+string(kind)+d.String()] {
						t.Errorf("%q %q %s: %d rows, want %d", store, kind, d, len(all), want[store+string(kind)+d.String()])
					}
					if !slices.IsSortedFunc(all, func(a, b ledger.TransactionRow) int { return cmp.Compare(place(a), place(b)) }) {
						t.Errorf("%q %q %s: not in order", store, kind, d)
					}
				}
			}
		}
	})
}

func TestARecordThatTheDatabaseRefusesIsQuarantinedAlone(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, stop := open(t, url)
		a, b, c := newAgent(t, "0001", "pc", 1), newAgent(t, "0001", "pc2", 2), newAgent(t, "0001", "pc3", 3)
		count := func(in int64) protocol.Record {
			return record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: in, Quality: protocol.QualityOK})
		}
		// A sum that overflows in memory, and two that overflow in the database.
		acked(t, l, a, a.begin(count(1), count(math.MaxInt64), count(2), count(4)))
		acked(t, l, b, b.begin(count(8), count(8_999_999_999_999_999_999), count(16)))
		acked(t, l, c, c.begin(count(8_999_999_999_999_999_999)))
		kpis, err := l.KPIs(t.Context(), chain, "0001", day, day)
		if err != nil || len(kpis) != 1 || kpis[0].PassagesIn != 1+2+4+8+16 || kpis[0].FootfallCounts != 5 {
			t.Errorf("kpis %+v, %v, want all but the three", kpis, err)
		}
		q := quarantined(t, l)
		if len(q) != 3 || q[0].Seq != 3 || q[1].Seq != 3 || q[2].Seq != 2 {
			t.Fatalf("quarantine %+v, want the three", q)
		}
		if err := l.RetryQuarantined(t.Context(), chain, q[1].ID); err == nil {
			t.Error("retry of a sum that still does not fit succeeded")
		}
		// With room for it, it is applied once, at a new position.
		execute(t, url, "UPDATE kpis SET passages_in = 0")
		before := heads(t, l)
		if err := l.RetryQuarantined(t.Context(), chain, q[1].ID); err != nil {
			t.Fatal(err)
		}
		all := records(t, l)
		if last := all[len(all)-1]; last.Pos != before+1 || last.Agent != "pc2" || last.Seq != 3 {
			t.Errorf("the last record is %+v", last)
		}
		if err := l.RetryQuarantined(t.Context(), chain, q[1].ID); err == nil {
			t.Error("a record was taken out of quarantine twice")
		}
		acked(t, l, b, b.batch(count(1))) // the stream had moved over it
		// A relay that starts applies by itself what only had an unknown kind.
		execute(t, url, "UPDATE quarantined SET cause = 'kind'")
		execute(t, url, "UPDATE kpis SET passages_in = 0")
		before = heads(t, l)
		stop()
		l, _ = open(t, url)
		acked(t, l, b, b.batch(count(1))) // comes after what is done at the start
		q = quarantined(t, l)
		if len(q) != 1 || q[0].Agent != "pc" || heads(t, l) != before+2 {
			t.Errorf("quarantine %+v, head %d, want the one that never fits, and %d", q, heads(t, l), before+2)
		}
	})
}
