package api

import (
	"cmp"
	"fmt"
	"math/big"
	"slices"

	"github.com/storelay/storelay/relay/ledger"
)

// The qualities of a KPI, worst first where several hold.
const (
	qualityNoCounter  = "noCounter"  // no counter: visitors are not known, which is not 0
	qualityUndefined  = "undefined"  // nothing to divide by
	qualityOverOne    = "overOne"    // more customers than visitors: somebody was not counted
	qualityDoubtful   = "doubtful"   // some counts are lower bounds, late or implausible
	qualityIncomplete = "incomplete" // records of the day are in quarantine: the figures lack them
	qualityPartial    = "partial"    // some stores or days have no counter; they are left out on both sides
	qualityOK         = "ok"
)

// A kpi is num/den; value is that as decimal text with 6 places, rounded half away from zero.
// Sums over days and stores are made from num and den, never from values.
type kpi struct {
	Num      *int64  `json:"num" doc:"null when it is not known"`
	Den      *int64  `json:"den"`
	Value    *string `json:"value" doc:"num/den with 6 decimals; null when it is not known or there is nothing to divide by"`
	Quality  string  `json:"quality" enum:"ok,partial,incomplete,doubtful,overOne,undefined,noCounter"`
	Unit     string  `json:"unit" enum:"count,minor,ratio" doc:"minor = minor units of currency"`
	Currency string  `json:"currency,omitempty" doc:"ISO 4217"`
}

// A kpiSet is the KPIs of one or more stores and days. Visitors are counted in half
// passages, so their den is 2, and what is divided by them is doubled.
type kpiSet struct {
	Version            int64         `json:"version" doc:"Position of the last record that changed the figures"`
	Customers          kpi           `json:"customers" doc:"Transactions that sell at least one merchandise line"`
	SalesTransactions  kpi           `json:"salesTransactions"`
	ReturnTransactions kpi           `json:"returnTransactions" doc:"Transactions with a return line; an exchange is in both"`
	UnitsSold          kpi           `json:"unitsSold" doc:"A weighed line is one unit; returns are not taken off"`
	UnitsReturned      kpi           `json:"unitsReturned"`
	ReturnLines        kpi           `json:"returnLines"`
	UnitsPerCustomer   kpi           `json:"unitsPerCustomer" doc:"unitsSold / customers"`
	DrawerOpens        kpi           `json:"drawerOpens"`
	Visitors           kpi           `json:"visitors" doc:"By direction; passages of a beam without direction count half"`
	Conversion         kpi           `json:"conversion" doc:"customers / visitors; never clipped at 1"`
	Passages           passages      `json:"passages" doc:"What visitors are made of"`
	Currencies         []currencySet `json:"currencies" nullable:"false" doc:"One block per currency"`
}

type passages struct {
	In         int64 `json:"in"`
	Out        int64 `json:"out"`
	Undirected int64 `json:"undirected"`
	Counts     int64 `json:"counts" doc:"Footfall counts behind the passages; 0 = no counter"`
	Doubtful   int64 `json:"doubtful" doc:"Of which the quality is in doubt"`
}

type currencySet struct {
	Currency        string `json:"currency"`
	Customers       kpi    `json:"customers" doc:"Those who paid in this currency"`
	GrossSales      kpi    `json:"grossSales" doc:"Before discounts and returns"`
	Discounts       kpi    `json:"discounts"`
	ReturnsAmount   kpi    `json:"returnsAmount"`
	TurnoverIncl    kpi    `json:"turnoverIncl" doc:"Net of returns, VAT included"`
	TurnoverEx      kpi    `json:"turnoverEx" doc:"Net of returns, without VAT"`
	SalePerCustomer kpi    `json:"salePerCustomer" doc:"ATV: what was sold, before returns / customers"`
	NetPerNetSale   kpi    `json:"netPerNetSale" doc:"ATV, basis net: turnoverIncl / (salesTransactions - returnTransactions)"`
	SalesPerVisitor kpi    `json:"salesPerVisitor" doc:"turnoverIncl / visitors"`
}

// A tally adds up rows.
type tally struct {
	direction  string
	rows       ledger.KPIRow // sums of the counts
	halves     int64         // visitors, doubled
	counted    int           // (store, day) with a counter
	uncounted  int           // (store, day) without
	customers  int64         // of those with a counter
	lacking    bool          // records are in quarantine
	currencies map[string]*moneyTally
}

type moneyTally struct {
	rows    ledger.KPIRow
	visited int64 // turnover where there is a counter
}

// add takes in all rows of one store and day.
func (t *tally) add(rows []ledger.KPIRow) {
	var sum ledger.KPIRow
	for i := range rows {
		addRow(&sum, &rows[i])
	}
	addRow(&t.rows, &sum)
	counter := sum.FootfallCounts > 0
	if counter {
		t.counted++
		t.customers += sum.Customers
		switch t.direction {
		case "out":
			t.halves += 2*sum.PassagesOut + sum.PassagesUndirected
		case "mean":
			t.halves += sum.PassagesIn + sum.PassagesOut + sum.PassagesUndirected
		default:
			t.halves += 2*sum.PassagesIn + sum.PassagesUndirected
		}
	} else {
		t.uncounted++
	}
	for i := range rows {
		if rows[i].Currency == "" {
			continue
		}
		if t.currencies == nil {
			t.currencies = map[string]*moneyTally{}
		}
		m := t.currencies[rows[i].Currency]
		if m == nil {
			m = &moneyTally{}
			t.currencies[rows[i].Currency] = m
		}
		addRow(&m.rows, &rows[i])
		if counter {
			m.visited += rows[i].TurnoverIncl
		}
	}
}

func addRow(to, r *ledger.KPIRow) {
	to.Version = max(to.Version, r.Version)
	to.Customers += r.Customers
	to.SalesTransactions += r.SalesTransactions
	to.ReturnTransactions += r.ReturnTransactions
	to.UnitsSold += r.UnitsSold
	to.UnitsReturned += r.UnitsReturned
	to.ReturnLines += r.ReturnLines
	to.GrossSales += r.GrossSales
	to.Discounts += r.Discounts
	to.ReturnsAmount += r.ReturnsAmount
	to.TurnoverIncl += r.TurnoverIncl
	to.TurnoverEx += r.TurnoverEx
	to.DrawerOpens += r.DrawerOpens
	to.PassagesIn += r.PassagesIn
	to.PassagesOut += r.PassagesOut
	to.PassagesUndirected += r.PassagesUndirected
	to.FootfallCounts += r.FootfallCounts
	to.FootfallDoubtful += r.FootfallDoubtful
}

// set is the tally's KPIs.
func (t *tally) set() kpiSet {
	r := &t.rows
	s := kpiSet{
		Version:   r.Version,
		Customers: t.count(r.Customers), SalesTransactions: t.count(r.SalesTransactions), ReturnTransactions: t.count(r.ReturnTransactions),
		UnitsSold: t.count(r.UnitsSold), UnitsReturned: t.count(r.UnitsReturned), ReturnLines: t.count(r.ReturnLines), DrawerOpens: t.count(r.DrawerOpens),
		UnitsPerCustomer: t.ratio("ratio", "", r.UnitsSold, r.Customers),
		Visitors:         t.perVisitor("count", "", t.halves, 2),
		Conversion:       t.perVisitor("ratio", "", 2*t.customers, t.halves),
		Passages:         passages{r.PassagesIn, r.PassagesOut, r.PassagesUndirected, r.FootfallCounts, r.FootfallDoubtful},
		Currencies:       []currencySet{},
	}
	if s.Conversion.Value != nil && 2*t.customers > t.halves {
		s.Conversion.Quality = qualityOverOne
	}
	for currency, m := range t.currencies {
		r := &m.rows
		s.Currencies = append(s.Currencies, currencySet{
			Currency: currency, Customers: t.count(r.Customers),
			GrossSales: t.amount(currency, r.GrossSales), Discounts: t.amount(currency, r.Discounts), ReturnsAmount: t.amount(currency, r.ReturnsAmount),
			TurnoverIncl: t.amount(currency, r.TurnoverIncl), TurnoverEx: t.amount(currency, r.TurnoverEx),
			SalePerCustomer: t.ratio("minor", currency, r.TurnoverIncl+r.ReturnsAmount, r.Customers),
			NetPerNetSale:   t.ratio("minor", currency, r.TurnoverIncl, r.SalesTransactions-r.ReturnTransactions),
			SalesPerVisitor: t.perVisitor("minor", currency, 2*m.visited, t.halves),
		})
	}
	slices.SortFunc(s.Currencies, func(a, b currencySet) int { return cmp.Compare(a.Currency, b.Currency) })
	return s
}

// perVisitor is a KPI that rests on counters.
func (t *tally) perVisitor(unit, currency string, num, den int64) kpi {
	if t.counted == 0 {
		return kpi{Quality: qualityNoCounter, Unit: unit, Currency: currency}
	}
	k := t.ratio(unit, currency, num, den)
	switch {
	case k.Quality == qualityUndefined:
	case t.rows.FootfallDoubtful > 0:
		k.Quality = qualityDoubtful
	case t.uncounted > 0 && k.Quality == qualityOK:
		k.Quality = qualityPartial
	}
	return k
}

func (t *tally) count(n int64) kpi { return t.ratio("count", "", n, 1) }

func (t *tally) amount(currency string, n int64) kpi { return t.ratio("minor", currency, n, 1) }

func (t *tally) ratio(unit, currency string, num, den int64) kpi {
	k := kpi{Num: &num, Den: &den, Quality: qualityOK, Unit: unit, Currency: currency}
	if t.lacking {
		k.Quality = qualityIncomplete
	}
	if den <= 0 {
		k.Quality = qualityUndefined
		return k
	}
	v := decimal(num, den)
	k.Value = &v
	return k
}

// decimal is num/den with 6 places, rounded half away from zero. den > 0.
func decimal(num, den int64) string {
	n, d := big.NewInt(num), big.NewInt(den)
	sign := n.Sign()
	n.Abs(n).Mul(n, big.NewInt(2_000_000)).Add(n, d).Div(n, d.Mul(d, big.NewInt(2))) // floor((2n·10^6 + d) / 2d)
	if sign < 0 {
		n.Neg(n)
	}
	return decimalText(n)
}

func decimalText(n *big.Int) string {
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
	}
	whole, part := new(big.Int).QuoRem(new(big.Int).Abs(n), big.NewInt(1_000_000), new(big.Int))
	return sign + whole.String() + "." + fmt.Sprintf("%06d", part.Int64())
}
