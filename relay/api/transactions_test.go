package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"sync"
	"testing"

	"github.com/storelay/storelay/protocol"
)

func newLog(w *safeBuffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// What the tests read: types of their own, so that a change of the API shows.
type gotTransaction struct {
	Number, Pos int64
	Store, Type string
	Voided      bool
	Flags       []string
	Computed    struct{ Total, Tax, Tenders int64 }
	Transaction json.RawMessage
}

type gotPage struct {
	Items []gotTransaction
	More  bool
	Next  string
}

// pages reads a whole list by its cursors.
func (b *bench) pages(token, path, cursor string) []gotTransaction {
	b.t.Helper()
	var all []gotTransaction
	for next := ""; ; {
		p := get[gotPage](b, token, path+"&"+cursor+"="+url.QueryEscape(next))
		all = append(all, p.Items...)
		if !p.More {
			return all
		}
		if p.Next == next {
			b.t.Fatalf("%s: next %q does not move", path, next)
		}
		next = p.Next
	}
}

type gotKPI struct {
	Num, Den      *int64
	Value         *string
	Quality, Unit string
	Currency      string
}

type gotSet struct {
	Version                                                              int64
	Customers, SalesTransactions, ReturnTransactions                     gotKPI
	UnitsSold, UnitsReturned, ReturnLines, UnitsPerCustomer, DrawerOpens gotKPI
	Visitors, Conversion                                                 gotKPI
	Passages                                                             struct{ In, Out, Undirected, Counts, Doubtful int64 }
	Currencies                                                           []gotCurrency
}

type gotCurrency struct {
	Currency                                                                  string
	Customers, GrossSales, Discounts, ReturnsAmount, TurnoverIncl, TurnoverEx gotKPI
	SalePerCustomer, NetPerNetSale, SalesPerVisitor                           gotKPI
}

type gotStoreKPIs struct {
	Store, Direction string
	Days             []struct {
		Day  string
		KPIs gotSet
	}
	Total gotSet
}

func (b *bench) kpis(token, store, query string) gotStoreKPIs {
	b.t.Helper()
	return get[gotStoreKPIs](b, token, "/v1/stores/"+store+"/kpis?"+query)
}

// is checks a KPI against num/den = value.
func (k gotKPI) is(t *testing.T, name string, num, den int64, value, quality string) {
	t.Helper()
	if k.Num == nil || k.Den == nil || k.Value == nil || *k.Num != num || *k.Den != den || *k.Value != value || k.Quality != quality {
		got, _ := json.Marshal(k)
		t.Errorf("%s: %s, want %d/%d = %s, %s", name, got, num, den, value, quality)
	}
}

func TestDDD01SumsOverTheReplyEqualThatDaysKPIs(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	b.token("club", nil, ScopeTransactions, ScopeKPIs)
	rows := b.pages("club", "/v1/stores/0001/transactions?day=2026-11-21&limit=2", "cursor")
	if len(rows) != 7 {
		t.Fatalf("%d transactions, want the 7 of the day and store", len(rows))
	}
	var customers, units, turnover, ex, discounts, returnLines int64
	for _, r := range rows {
		var said protocol.Transaction
		if err := json.Unmarshal(r.Transaction, &said); err != nil {
			t.Fatal(err)
		}
		if r.Voided || said.Training || r.Type == "void" {
			continue
		}
		sells := false
		for _, l := range said.Lines {
			if l.Voided || l.ItemType == "deposit" {
				continue
			}
			turnover += l.ExtendedAmount
			ex += l.ExtendedAmount - l.TaxAmount
			discounts += l.DiscountAmount
			if l.Type == "return" {
				returnLines++
				continue
			}
			sells = true
			if l.Quantity.Unit == "KGM" {
				units++
			} else {
				units += l.Quantity.Milli / 1000
			}
		}
		if sells {
			customers++
		}
	}
	if customers != 3 || units != 5 || turnover != 23800+1050+30000-11900-25000+12500 {
		t.Fatalf("the reply has %d customers, %d units, turnover %d: not what was sent", customers, units, turnover)
	}
	day := b.kpis("club", "0001", "day=2026-11-21").Days[0].KPIs
	sek := day.Currencies[0]
	for name, pair := range map[string]struct {
		kpi  gotKPI
		want int64
	}{
		"customers": {day.Customers, customers}, "unitsSold": {day.UnitsSold, units}, "returnLines": {day.ReturnLines, returnLines},
		"turnoverIncl": {sek.TurnoverIncl, turnover}, "turnoverEx": {sek.TurnoverEx, ex}, "discounts": {sek.Discounts, discounts},
	} {
		pair.kpi.is(t, name, pair.want, 1, fmt.Sprintf("%d.000000", pair.want), "ok")
	}
}

func TestDDD01ATransactionShowsWhatTheTillSaidAndWhatItAddsUpTo(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	rows := get[gotPage](b, "admin", "/v1/stores/0001/transactions?day=2026-11-21").Items
	first, victim, wrong := rows[0], rows[4], rows[6]
	if first.Computed.Total != 24850 || first.Computed.Tax != 4873 || first.Computed.Tenders != 24850 || len(first.Flags) != 0 || first.Number != 2 {
		t.Errorf("first: %+v, want total 24850, tax 4873, tenders 24850, number 2, no flags", first)
	}
	var said struct {
		Lines []struct {
			Item     string
			Quantity struct {
				Milli int64
				Unit  string
			}
		}
		Tenders []struct{ Type string }
	}
	if err := json.Unmarshal(first.Transaction, &said); err != nil || len(said.Lines) != 2 || said.Lines[1].Item != "banan" || said.Lines[1].Quantity.Milli != 420 || len(said.Tenders) != 2 {
		t.Errorf("body %s, %v", first.Transaction, err)
	}
	if !victim.Voided || !reflect.DeepEqual(victim.Flags, []string{"voided"}) {
		t.Errorf("victim: voided %v, flags %v", victim.Voided, victim.Flags)
	}
	if !reflect.DeepEqual(wrong.Flags, []string{"totalDiffers", "tendersDiffer"}) || wrong.Computed.Total != 12500 {
		t.Errorf("wrong: flags %v, computed %d, want both differences and 12500", wrong.Flags, wrong.Computed.Total)
	}
}

func TestDDD01UnknownMembersAndExactBytesArePassedOn(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	const said = `{"store":"0001","workstation":"1","businessDay":"2026-11-21","sequenceNumber":1,"type":"sale","begin":"2026-11-21T10:15:00+01:00","end":"2026-11-21T10:16:02+01:00","currency":"SEK","lines":[{"type":"sale","item":"<4711> & Söner","quantity":{"milli":1000},"extendedAmount":100,"serial":"S-9"}],"tenders":[{"type":"cash","amount":100}],"total":100,"loyaltyLevel":"gold"}`
	a.send(protocol.KindTransaction, saturday, said)
	rows := get[gotPage](b, "admin", "/v1/stores/0001/transactions?day=2026-11-21").Items
	if len(rows) != 1 || string(rows[0].Transaction) != said {
		t.Errorf("body\n got %s\nwant %s", rows[0].Transaction, said)
	}
}

func numbers(rows []gotTransaction) []int64 {
	var all []int64
	for _, r := range rows {
		all = append(all, r.Number)
	}
	return all
}

func TestDDD06AfterIsExclusiveAndFromIsInclusive(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	for range 5 {
		a.sell(saturday, nil)
	}
	a.sell(saturday, func(t *protocol.Transaction) {
		t.Type, t.Lines = protocol.TypeReturn, []protocol.LineItem{line("4711", -1000, -100, -20)}
	})
	for query, want := range map[string][]int64{
		"type=sale&store=0001":         {1, 2, 3, 4, 5},
		"type=sale&store=0001&after=0": {1, 2, 3, 4, 5},
		"type=sale&store=0001&after=3": {4, 5},
		"type=sale&store=0001&from=3":  {3, 4, 5},
		"type=sale&store=0001&from=1":  {1, 2, 3, 4, 5},
		"type=sale&store=0001&after=5": nil,
		"type=return&store=0001":       {1},
		"type=void&store=0001":         nil,
	} {
		p := get[gotPage](b, "admin", "/v1/transactions/running?"+query)
		if got := numbers(p.Items); !reflect.DeepEqual(got, want) || p.More {
			t.Errorf("%s: numbers %v, more %v, want %v and no more", query, got, p.More, want)
		}
	}
	for query, want := range map[string]string{"after=3": "5", "after=5": "5", "from=9": "8", "after=0&limit=2": "2"} {
		if p := get[gotPage](b, "admin", "/v1/transactions/running?type=sale&store=0001&"+query); p.Next != want {
			t.Errorf("%s: next %q, want %q", query, p.Next, want)
		}
	}
	for query, say := range map[string]string{
		"type=sale&store=0001&after=1&from=2": "not both", "type=sale&after=3": "store and type", "store=0001&after=3": "store and type",
		"from=3": "store and type", "type=sale&store=0001&after=x": "last number", "after=bm9wZQ": "not a cursor",
	} {
		b.wantProblem(b.do("admin", "GET", "/v1/transactions/running?"+query, nil), http.StatusBadRequest, say)
	}
}

// A caller that remembers only its last number must see every transaction once, while
// stores deliver what they held offline, and the relay and the caller restart.
func TestDDD06NoGapAndNoDoubleWhileStoresCatchUpAndRestart(t *testing.T) {
	b := newBench(t)
	agents := []*agent{b.agent("0001"), b.agent("0002"), b.agent("0003")}
	last := map[string]string{} // what the caller keeps
	seen := map[string][]int64{}
	chainWide, wide := "", []int64(nil)
	read := func() {
		for _, a := range agents {
			store := a.origin.Store
			for more := true; more; {
				p := get[gotPage](b, "admin", fmt.Sprintf("/v1/transactions/running?type=sale&store=%s&limit=3&after=%s", store, last[store]))
				seen[store] = append(seen[store], numbers(p.Items)...)
				last[store], more = p.Next, p.More
			}
		}
		for more := true; more; {
			p := get[gotPage](b, "admin", "/v1/transactions/running?limit=4&after="+chainWide)
			for _, r := range p.Items {
				wide = append(wide, r.Pos)
			}
			chainWide, more = p.Next, p.More
		}
	}
	for round := range 6 {
		var wg sync.WaitGroup
		for i, a := range agents {
			if i == 2 && round < 4 {
				continue // store 0003 is offline, and delivers older days later
			}
			n := round + i
			if i == 2 {
				n = 20
			}
			wg.Go(func() {
				for range n {
					a.sell(friday.AddDays(round%2), nil)
				}
			})
		}
		read() // in the midst of it
		wg.Wait()
		if round%2 == 1 {
			b.restart()
		}
		read()
	}
	total := 0
	for _, a := range agents {
		got := seen[a.origin.Store]
		total += len(got)
		for i, n := range got {
			if n != int64(i)+1 {
				t.Fatalf("store %s: numbers %v, want 1, 2, 3 ...", a.origin.Store, got)
			}
		}
		if len(got) != int(a.next) {
			t.Errorf("store %s: %d transactions, %d were sold", a.origin.Store, len(got), a.next)
		}
	}
	for i := 1; i < len(wide); i++ {
		if wide[i] <= wide[i-1] {
			t.Fatalf("chain-wide positions %v are not in order", wide)
		}
	}
	if len(wide) != total {
		t.Errorf("%d transactions chain-wide, want %d", len(wide), total)
	}
}

func TestDDD06ATokenForSomeStoresPagesOverTheOthers(t *testing.T) {
	b := newBench(t)
	one, two := b.agent("0001"), b.agent("0002")
	for range 9 {
		one.sell(saturday, nil)
	}
	two.sell(saturday, nil)
	b.token("two", []string{"0002"}, ScopeTransactions)
	rows := b.pages("two", "/v1/transactions/running?limit=2", "after")
	if len(rows) != 1 || rows[0].Store != "0002" {
		t.Errorf("rows %+v, want the one of store 0002", rows)
	}
	b.wantProblem(b.do("two", "GET", "/v1/transactions/running?type=sale&store=0001", nil), http.StatusForbidden, "0001")
	b.wantProblem(b.do("two", "GET", "/v1/stores/0001/transactions?day=2026-11-21", nil), http.StatusForbidden, "0001")
}
