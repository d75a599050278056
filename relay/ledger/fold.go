package ledger

import (
	"math"

	"github.com/storelay/storelay/protocol"
)

// A share is what one transaction adds to the sums of its store and business day
// (docs/kpi.md). Only merchandise and services count; deposits and gift cards sold, struck
// lines and rounding do not.
type share struct {
	currency string
	kpi      KPIRow
	tenders  []tenderShare
	items    []itemShare
}

// A tenderShare counts the transactions in which a tender occurs; change is part of amount.
type tenderShare struct {
	kind          string
	count, amount int64
}

type itemShare struct {
	item, group   string
	units, amount int64
}

func newShare(t *protocol.Transaction) *share {
	s := &share{currency: t.Currency, items: make([]itemShare, 0, len(t.Lines))}
	k := &s.kpi
	for i := range t.Lines {
		line := &t.Lines[i]
		if !line.Merchandise() {
			continue
		}
		units := line.Quantity.Units()
		if line.Type == protocol.LineSale {
			k.SalesTransactions = 1
			k.UnitsSold += units
			k.GrossSales += line.ExtendedAmount + line.DiscountAmount
			k.Discounts += line.DiscountAmount
		} else {
			k.ReturnTransactions = 1
			k.ReturnLines++
			k.UnitsReturned -= units
			k.ReturnsAmount -= line.ExtendedAmount
		}
		k.TurnoverIncl += line.ExtendedAmount
		k.TurnoverEx += line.ExtendedAmount - line.TaxAmount
		s.items = append(s.items, itemShare{storable(line.Item), storable(line.Group), units, line.ExtendedAmount})
	}
	k.Customers = k.SalesTransactions
next:
	for _, tender := range t.Tenders {
		for i := range s.tenders {
			if s.tenders[i].kind == tender.Type {
				s.tenders[i].amount += tender.Amount
				continue next
			}
		}
		s.tenders = append(s.tenders, tenderShare{tender.Type, 1, tender.Amount})
	}
	return s
}

// add adds another row's sums, times n, which is 1, 0 or -1.
func (k *KPIRow) add(o *KPIRow, n int64) {
	to, from := k.sums(), o.sums()
	for i := range to {
		plus(to[i], n*(*from[i]))
	}
}

// sums are the row's columns that add up, in the order of kpiColumns.
func (k *KPIRow) sums() [17]*int64 {
	return [...]*int64{
		&k.Customers,
		&k.SalesTransactions,
		&k.ReturnTransactions,
		&k.UnitsSold,
		&k.UnitsReturned,
		&k.ReturnLines,
		&k.GrossSales,
		&k.Discounts,
		&k.ReturnsAmount,
		&k.TurnoverIncl,
		&k.TurnoverEx,
		&k.DrawerOpens,
		&k.PassagesIn,
		&k.PassagesOut,
		&k.PassagesUndirected,
		&k.FootfallCounts,
		&k.FootfallDoubtful,
	}
}

const kpiColumns = `customers, sales_transactions, return_transactions, units_sold, units_returned, return_lines, gross_sales, discounts, returns_amount, turnover_incl, turnover_ex, drawer_opens, passages_in, passages_out, passages_undirected, footfall_counts, footfall_doubtful`

// plus adds without wrapping around: a sum that does not fit stays at the edge, which the
// database refuses.
func plus(sum *int64, v int64) {
	switch {
	case v > 0 && *sum > math.MaxInt64-v:
		*sum = math.MaxInt64
	case v < 0 && *sum < math.MinInt64-v:
		*sum = math.MinInt64
	default:
		*sum += v
	}
}

// Sums that a commit changes, folded: one upsert for each row touched.
type sums struct {
	kpis    map[kpiKey]*KPIRow
	tenders map[tenderKey]*tenderShare
	items   map[itemKey]*itemShare
}

type kpiKey struct{ store, day, currency string }

type tenderKey struct {
	kpiKey
	kind string
}

type itemKey struct {
	kpiKey
	item, group string
}

func newSums() sums {
	return sums{map[kpiKey]*KPIRow{}, map[tenderKey]*tenderShare{}, map[itemKey]*itemShare{}}
}

// kpi is the row to change by a record at pos.
func (s *sums) kpi(key kpiKey, pos int64) *KPIRow {
	row := s.kpis[key]
	if row == nil {
		row = &KPIRow{}
		s.kpis[key] = row
	}
	row.Version = max(row.Version, pos)
	return row
}

// transaction adds a transaction's share n times: 1 when it comes, -1 when it is voided, 0
// when it was voided before it came, so that the rows are the same in any order.
func (s *sums) transaction(key saleKey, sh *share, n, pos int64) {
	day := kpiKey{key.store, key.day, sh.currency}
	s.kpi(day, pos).add(&sh.kpi, n)
	if n == 0 {
		return
	}
	for i := range sh.tenders {
		t := &sh.tenders[i]
		k := tenderKey{day, t.kind}
		sum := s.tenders[k]
		if sum == nil {
			sum = &tenderShare{}
			s.tenders[k] = sum
		}
		plus(&sum.count, n*t.count)
		plus(&sum.amount, n*t.amount)
	}
	for i := range sh.items {
		t := &sh.items[i]
		k := itemKey{day, t.item, t.group}
		sum := s.items[k]
		if sum == nil {
			sum = &itemShare{}
			s.items[k] = sum
		}
		plus(&sum.units, n*t.units)
		plus(&sum.amount, n*t.amount)
	}
}

// footfall adds a count to the day's row without currency.
func (s *sums) footfall(store, day string, c *protocol.FootfallCount, pos int64) {
	row := s.kpi(kpiKey{store, day, ""}, pos)
	if c.Undirect {
		plus(&row.PassagesUndirected, c.In)
	} else {
		plus(&row.PassagesIn, c.In)
		plus(&row.PassagesOut, c.Out)
	}
	row.FootfallCounts++
	if c.Quality != protocol.QualityOK && c.Quality != protocol.QualityWrap {
		row.FootfallDoubtful++
	}
}

// drawer counts openings on the day's row without currency.
func (s *sums) drawer(store, day string, e *protocol.DrawerEvent, pos int64) {
	if e.Event == protocol.DrawerOpened {
		s.kpi(kpiKey{store, day, ""}, pos).DrawerOpens++
	}
}
