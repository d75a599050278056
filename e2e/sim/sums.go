package sim

import (
	"fmt"
	"maps"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// A total is what a store's business day comes to, by the book's own reckoning.
type total struct {
	turnover, gross, discounts, returned, units, back int64
	customers, returns                                int64
	in, out, counts                                   int64
	card, cash                                        int64
}

type storeDay struct{ store, day string }

// sums compares the sums of each store and day with those of the entries that are there.
func (c *checker) sums() {
	want := map[storeDay]*total{}
	of := func(store string, day protocol.Day) *total {
		k := storeDay{store, day.String()}
		if want[k] == nil {
			want[k] = &total{}
		}
		return want[k]
	}
	voided := map[protocol.TransactionID]bool{}
	for _, e := range c.present {
		if e.sale != nil && e.sale.Type == protocol.TypeVoid && !e.sale.Training {
			v := *e.sale.Voids
			v.Store = e.pc.store.id
			voided[v] = true
		}
	}
	for _, e := range c.present {
		t := of(e.pc.store.id, e.day)
		switch {
		case e.count != nil:
			t.in += e.count.In
			t.out += e.count.Out
			t.counts++
		case e.sale.Training || e.sale.Type == protocol.TypeVoid || voided[e.id]:
		default:
			t.sale(e.sale)
		}
	}
	got, err := c.ledgerTotals()
	if err != nil {
		c.w.fail("sums: %v", err)
		return
	}
	keys := slices.SortedFunc(maps.Keys(want), func(a, b storeDay) int { return slices.Compare([]string{a.store, a.day}, []string{b.store, b.day}) })
	for _, k := range keys {
		g := got[k]
		if g == nil {
			g = &total{}
		}
		c.w.say("sums of %s on %s: %+v", k.store, k.day, *g)
		if *g != *want[k] {
			c.w.fail("sums of store %s on %s: the ledger has %+v, the shop %+v", k.store, k.day, *g, *want[k])
			return
		}
		delete(got, k)
	}
	for k, g := range got {
		if *g != (total{}) {
			c.w.fail("sums of store %s on %s: the ledger has %+v, the shop nothing", k.store, k.day, *g)
			return
		}
	}
}

// sale adds a sale to its day.
func (t *total) sale(s *protocol.Transaction) {
	sold, taken := int64(0), int64(0)
	for _, l := range s.Lines {
		if l.ItemType == protocol.ItemGiftCard || l.ItemType == protocol.ItemDeposit || l.Voided {
			continue
		}
		t.turnover += l.ExtendedAmount
		if l.Type == protocol.LineSale {
			sold = 1
			t.gross += l.ExtendedAmount + l.DiscountAmount
			t.discounts += l.DiscountAmount
			t.units++
		} else {
			taken = 1
			t.returned -= l.ExtendedAmount
			t.back++
		}
	}
	t.customers += sold
	t.returns += taken
	for _, p := range s.Tenders {
		if p.Type == protocol.TenderCash {
			t.cash += p.Amount
		} else {
			t.card += p.Amount
		}
	}
}

func (c *checker) ledgerTotals() (map[storeDay]*total, error) {
	got := map[storeDay]*total{}
	l := c.w.relay.ledger
	rows, err := l.KPIs(c.w.ctx(), chain, "", protocol.Day{Year: 1970, Month: 1, Date: 1}, protocol.Day{Year: 2199, Month: 1, Date: 1})
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		k := storeDay{r.Store, r.Day.String()}
		if got[k] == nil {
			got[k] = &total{}
		}
		t := got[k]
		t.turnover += r.TurnoverIncl
		t.gross += r.GrossSales
		t.discounts += r.Discounts
		t.returned += r.ReturnsAmount
		t.units += r.UnitsSold
		t.back += r.UnitsReturned
		t.customers += r.Customers
		t.returns += r.ReturnTransactions
		t.in += r.PassagesIn
		t.out += r.PassagesOut
		t.counts += r.FootfallCounts
	}
	for k, t := range got {
		day, err := protocol.ParseDay(k.day)
		if err != nil {
			return nil, err
		}
		tenders, err := l.Tenders(c.w.ctx(), chain, k.store, day)
		if err != nil {
			return nil, err
		}
		for _, s := range tenders {
			if s.Type == protocol.TenderCash {
				t.cash += s.Amount
			} else {
				t.card += s.Amount
			}
		}
	}
	return got, nil
}

// people compares what the counters over the doors show with what was accepted, where nothing
// made a PC forget; that it is in the ledger is checked apart. Who passed before the first
// count that was ever accepted is nobody's: until then no total is on the disk.
func (c *checker) people() {
	counted := map[string]*total{}
	for _, e := range c.w.book.entries {
		if e.count == nil || e.doubt && !slices.Contains(c.present, e) {
			continue
		}
		k := fmt.Sprintf("%s/%s", e.pc.name, e.count.Counter)
		if counted[k] == nil {
			counted[k] = &total{in: e.count.RawIn - e.count.In, out: e.count.RawOut - e.count.Out}
		}
		counted[k].in += e.count.In
		counted[k].out += e.count.Out
	}
	for _, p := range c.w.pcs {
		if len(p.taints) > 0 || p.former != nil || !p.main {
			continue
		}
		for _, g := range p.counters {
			got := counted[p.name+"/"+g.id]
			if got == nil {
				got = &total{}
			}
			if got.in != int64(g.meter.in) || got.out != int64(g.meter.out) {
				c.w.fail("people: through %s of %s went %d in and %d out, accepted are %d and %d", g.id, p.name, g.meter.in, g.meter.out, got.in, got.out)
				return
			}
		}
	}
}
