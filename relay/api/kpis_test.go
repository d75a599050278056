package api

import (
	"encoding/json"
	"math"
	"net/http"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

func TestDDD10Customers(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.Customers.is(t, "customers", 3, 1, "3.000000", "ok") // the pure return is none, the exchange is one
	day.SalesTransactions.is(t, "salesTransactions", 3, 1, "3.000000", "ok")
	day.Currencies[0].SalePerCustomer.is(t, "salePerCustomer", 23800+1050+30000+12500, 3, "22450.000000", "ok")
	day.Currencies[0].NetPerNetSale.is(t, "netPerNetSale", 30450, 1, "30450.000000", "ok")
}

func TestDDD11UnitsSold(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.UnitsSold.is(t, "unitsSold", 5, 1, "5.000000", "ok") // 2 + 1 weighed, 1, 1; deposits and struck lines are none
	day.UnitsPerCustomer.is(t, "unitsPerCustomer", 5, 3, "1.666667", "ok")
}

func TestDDD12VisitorsKeepHalvesAndAreNullWithoutACounter(t *testing.T) {
	b := newBench(t)
	first := b.twoStores()
	for direction, want := range map[string]struct {
		halves     int64
		value      string
		conversion string
	}{"in": {19, "9.500000", "0.315789"}, "out": {19, "9.500000", "0.315789"}, "mean": {19, "9.500000", "0.315789"}} {
		day := b.kpis("admin", "0001", "day=2026-11-21&direction="+direction).Days[0].KPIs
		day.Visitors.is(t, direction, want.halves, 2, want.value, "ok")
		day.Conversion.is(t, direction+" conversion", 6, want.halves, want.conversion, "ok")
	}
	first.count(saturday, 2, 0, nil)
	for direction, halves := range map[string]int64{"in": 23, "out": 19, "mean": 21} {
		k := b.kpis("admin", "0001", "day=2026-11-21&direction="+direction).Days[0].KPIs.Visitors
		if *k.Num != halves || *k.Den != 2 {
			t.Errorf("visitors by %s: %d/%d, want %d/2", direction, *k.Num, *k.Den, halves)
		}
	}
	none := b.kpis("admin", "0002", "day=2026-11-21").Days[0].KPIs
	for name, k := range map[string]gotKPI{"visitors": none.Visitors, "conversion": none.Conversion, "salesPerVisitor": none.Currencies[0].SalesPerVisitor} {
		if k.Num != nil || k.Value != nil || k.Quality != "noCounter" {
			t.Errorf("%s without a counter: %+v, want null", name, k)
		}
	}
}

func TestDDD12ConversionIsNullWithoutVisitorsAndNeverClipped(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	a.sell(saturday, nil)
	a.sell(saturday, nil)
	a.count(saturday, 0, 0, nil)
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.Visitors.is(t, "visitors", 0, 2, "0.000000", "ok")
	if day.Conversion.Value != nil || day.Conversion.Quality != "undefined" {
		t.Errorf("conversion of no visitors: %+v, want null, undefined", day.Conversion)
	}
	a.count(saturday, 1, 1, nil)
	day = b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.Conversion.is(t, "conversion", 4, 2, "2.000000", "overOne")
	a.count(saturday, 9, 1, func(c *protocol.FootfallCount) { c.Quality = protocol.QualityReset })
	day = b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.Visitors.is(t, "visitors", 20, 2, "10.000000", "doubtful")
	if day.Passages.Counts != 3 || day.Passages.Doubtful != 1 {
		t.Errorf("passages %+v, want 3 counts, 1 doubtful", day.Passages)
	}
}

func TestDDD13Turnover(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	sek := day.Currencies[0]
	sek.TurnoverIncl.is(t, "turnoverIncl", 30450, 1, "30450.000000", "ok")
	sek.TurnoverEx.is(t, "turnoverEx", 30450-(4760+113+6000-2380-5000+2500), 1, "24457.000000", "ok")
	sek.GrossSales.is(t, "grossSales", 25800+1050+30000+12500, 1, "69350.000000", "ok")
	sek.Discounts.is(t, "discounts", 2000, 1, "2000.000000", "ok")
	sek.SalesPerVisitor.is(t, "salesPerVisitor", 2*30450, 19, "3205.263158", "ok")
	if sek.Currency != "SEK" || sek.TurnoverIncl.Currency != "SEK" || sek.TurnoverIncl.Unit != "minor" {
		t.Errorf("turnover %+v, want minor units of SEK", sek.TurnoverIncl)
	}
}

func TestDDD13EveryCurrencyHasItsBlock(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	a.sell(saturday, nil)
	a.sell(saturday, func(t *protocol.Transaction) {
		t.Currency = "EUR"
		t.Lines = []protocol.LineItem{line("4711", 3000, 999, 0)}
	})
	a.count(saturday, 4, 4, nil)
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	if len(day.Currencies) != 2 || day.Currencies[0].Currency != "EUR" || day.Currencies[1].Currency != "SEK" {
		t.Fatalf("currencies %+v, want EUR and SEK", day.Currencies)
	}
	day.Currencies[0].TurnoverIncl.is(t, "EUR", 999, 1, "999.000000", "ok")
	day.Currencies[1].TurnoverIncl.is(t, "SEK", 12500, 1, "12500.000000", "ok")
	day.Customers.is(t, "customers", 2, 1, "2.000000", "ok")
	day.UnitsSold.is(t, "unitsSold", 4, 1, "4.000000", "ok")
	day.Conversion.is(t, "conversion", 4, 8, "0.500000", "ok")
}

func TestDDD14Returns(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.ReturnTransactions.is(t, "returnTransactions", 2, 1, "2.000000", "ok")
	day.ReturnLines.is(t, "returnLines", 2, 1, "2.000000", "ok")
	day.UnitsReturned.is(t, "unitsReturned", 3, 1, "3.000000", "ok")
	day.Currencies[0].ReturnsAmount.is(t, "returnsAmount", 36900, 1, "36900.000000", "ok")
}

func TestDDD10ARangeHasEveryDayAndTotalsFromSums(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	r := b.kpis("admin", "0001", "from=2026-11-19&to=2026-11-22")
	if len(r.Days) != 4 || r.Days[0].Day != "2026-11-19" || r.Days[3].Day != "2026-11-22" || *r.Days[3].KPIs.Customers.Value != "0.000000" {
		t.Fatalf("days %+v, want all four", r.Days)
	}
	r.Total.Customers.is(t, "customers", 4, 1, "4.000000", "ok")
	// Friday has no counter: its customer is left out of the conversion, which is partial.
	r.Total.Conversion.is(t, "conversion", 6, 19, "0.315789", "partial")
	for query, say := range map[string]string{
		"": "give day", "day=2026-11-21&from=2026-11-20&to=2026-11-21": "give day", "from=2026-11-20": "give day", "from=2026-11-21&to=2026-11-20": "before",
		"from=2025-11-20&to=2026-11-21": "366",
	} {
		b.wantProblem(b.do("admin", "GET", "/v1/stores/0001/kpis?"+query, nil), http.StatusBadRequest, say)
	}
	b.wantProblem(b.do("admin", "GET", "/v1/stores/0001/kpis?day=21/11", nil), http.StatusUnprocessableEntity, "query.day")
	b.wantProblem(b.do("admin", "GET", "/v1/stores/0001/kpis?day=2026-11-21&direction=up", nil), http.StatusUnprocessableEntity, "query.direction")
}

func TestDDD10ChainTotalsAreSumsOfStores(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	type gotChain struct {
		Stores []struct {
			Store string
			KPIs  gotSet
		}
		Total gotSet
	}
	all := get[gotChain](b, "admin", "/v1/kpis?day=2026-11-21")
	if len(all.Stores) != 2 || all.Stores[0].Store != "0001" || all.Stores[1].Store != "0002" {
		t.Fatalf("stores %+v", all.Stores)
	}
	all.Total.Customers.is(t, "customers", 4, 1, "4.000000", "ok")
	all.Total.Currencies[0].TurnoverIncl.is(t, "turnover", 42950, 1, "42950.000000", "ok")
	all.Total.Conversion.is(t, "conversion", 6, 19, "0.315789", "partial") // store 0002 has no counter
	all.Total.Currencies[0].SalesPerVisitor.is(t, "salesPerVisitor", 2*30450, 19, "3205.263158", "partial")
	b.token("one", []string{"0001"}, ScopeKPIs)
	one := get[gotChain](b, "one", "/v1/kpis?day=2026-11-21")
	if len(one.Stores) != 1 {
		t.Errorf("a token for store 0001 sees %+v", one.Stores)
	}
	one.Total.Customers.is(t, "customers of its store", 3, 1, "3.000000", "ok")
}

func TestDDD10ADayWithQuarantinedRecordsIsIncomplete(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	a.sell(saturday, nil)
	a.send("strangeKind", saturday, `{"x":1}`)
	day := b.kpis("admin", "0001", "day=2026-11-21").Days[0].KPIs
	day.Customers.is(t, "customers", 1, 1, "1.000000", "incomplete")
	friday := b.kpis("admin", "0001", "day=2026-11-20").Days[0].KPIs
	friday.Customers.is(t, "customers of Friday", 0, 1, "0.000000", "ok")
}

func TestDecimalRoundsHalfAwayFromZero(t *testing.T) {
	for _, tt := range []struct {
		num, den int64
		want     string
	}{
		{1, 3, "0.333333"}, {2, 3, "0.666667"}, {-2, 3, "-0.666667"}, {19, 2, "9.500000"}, {1, 2_000_000, "0.000001"}, {-1, 2_000_000, "-0.000001"},
		{1, 2_000_001, "0.000000"}, {0, 7, "0.000000"}, {-1, 3_000_000, "0.000000"}, {math.MaxInt64, 1, "9223372036854775807.000000"},
		{math.MinInt64, 1, "-9223372036854775808.000000"}, {math.MaxInt64, math.MaxInt64, "1.000000"},
	} {
		if got := decimal(tt.num, tt.den); got != tt.want {
			t.Errorf("decimal(%d, %d) = %s, want %s", tt.num, tt.den, got, tt.want)
		}
	}
}

// Sums of parts are the sum of the whole, whatever the parts.
func TestDDD10AKPIOfTwoStoresIsTheSumOfBoth(t *testing.T) {
	one, two := ledger.KPIRow{Currency: "SEK", Customers: 3, TurnoverIncl: 100, PassagesIn: 7, FootfallCounts: 1}, ledger.KPIRow{Currency: "SEK", Customers: 5, TurnoverIncl: 11, PassagesUndirected: 9, FootfallCounts: 2}
	var a, c, both tally
	a.add([]ledger.KPIRow{one})
	c.add([]ledger.KPIRow{two})
	both.add([]ledger.KPIRow{one})
	both.add([]ledger.KPIRow{two})
	x, y, sum := a.set(), c.set(), both.set()
	if *sum.Conversion.Num != *x.Conversion.Num+*y.Conversion.Num || *sum.Conversion.Den != *x.Conversion.Den+*y.Conversion.Den || *sum.Visitors.Num != *x.Visitors.Num+*y.Visitors.Num {
		t.Errorf("sum %+v, parts %+v and %+v", sum.Conversion, x.Conversion, y.Conversion)
	}
	if out, err := json.Marshal(sum); err != nil || len(out) == 0 {
		t.Error(err)
	}
}
