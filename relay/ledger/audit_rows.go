package ledger

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// A rowCheck compares what stands beside the records of one stream with the records.
type rowCheck struct {
	s     *storeAudit
	st    *stream
	a     *agentAudit
	aside bool // the ledger's own

	first    *wrong
	seal     *protocol.Seal
	receipts []receipt // not compared yet
	claims   []claim   // not compared yet
}

// A receipt is a transaction, and what the other tables should say of it.
type receipt struct {
	entry  entry // without its record
	key    saleKey
	voids  bool // key is what it voids, and not its own
	voided bool
}

// faultOf is the text of an error that is a finding, and ends nothing; "" = none.
func faultOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (c *rowCheck) wrong(p *entry, kind, what string) {
	if c.first == nil {
		c.first = &wrong{kind: kind, seq: p.seq, last: p.seq, pos: p.pos, what: what}
	}
}

// visit looks at one record, in the order of the stream.
func (c *rowCheck) visit(ctx context.Context, p *entry, hash protocol.Hash) error {
	for _, m := range c.a.at[protocol.Position{Epoch: c.st.key.epoch, Seq: p.seq}] {
		m.hash, m.head = hash, true
	}
	if p.lost {
		c.s.report.Unkept++
	}
	if p.record == nil {
		return nil
	}
	if p.seq == 1 && p.record.Kind == protocol.KindSeal {
		if seal, err := protocol.DecodeSeal(p.record.Body); err == nil {
			c.seal = &seal
		}
	}
	if p.record.Was != nil {
		c.a.meet(c.st, p, c.aside)
	}
	switch p.table {
	case "quarantined":
		if p.said.kind != storable(string(p.record.Kind)) || p.said.day != p.record.Day.String() {
			c.wrong(p, wrongColumns, fmt.Sprintf("its row in quarantine says %s of %s", p.said.kind, p.said.day))
		}
		c.claim(p)
		return c.full(ctx)
	case "duplicates":
		c.claim(p)
		return c.full(ctx)
	}
	c.claim(p)
	c.s.spanned(p.said.day, p.pos)
	if p.said.store != c.s.store {
		c.wrong(p, wrongColumns, fmt.Sprintf("its row says that it is of store %s", p.said.store))
	}
	if p.record.Kind != protocol.KindTransaction && (p.said.businessDay != "" || p.said.types != "" || p.said.number != 0 || p.said.voided != -1) {
		c.wrong(p, wrongColumns, "its row says that it is a transaction")
	}
	switch p.record.Kind {
	case protocol.KindDayMark:
		if err := c.mark(ctx, p); err != nil {
			return err
		}
	case protocol.KindTransaction:
		c.transaction(p)
	case protocol.KindLoss:
		if l, err := protocol.DecodeLoss(p.record.Body); err == nil {
			c.s.losses = append(c.s.losses, toldLoss{c.st.key.agent, l})
		}
	default:
		c.count(p)
	}
	return c.full(ctx)
}

// transaction compares the columns with the receipt, and notes what the other tables should
// say.
func (c *rowCheck) transaction(p *entry) {
	t, err := readTransaction(p.record.Body)
	if fault := faultOf(err); fault != "" {
		c.wrong(p, wrongChanged, "is applied, and cannot be read: "+fault)
		return
	}
	sale := newSale(t)
	c.s.spanned(sale.key.day, p.pos)
	if p.said.businessDay != sale.key.day || p.said.types != string(sale.kind) || p.said.number <= 0 || p.said.voided != 0 && p.said.voided != 1 {
		c.wrong(p, wrongColumns, fmt.Sprintf("the receipt is a %s of %s, and its row says %s %d of %s, voided %d", sale.kind, sale.key.day, p.said.types, p.said.number, p.said.businessDay, p.said.voided))
	}
	bare := *p
	bare.record, bare.hash = nil, nil
	c.receipts = append(c.receipts, receipt{bare, sale.key, false, p.said.voided == 1})
	if sale.voids != nil {
		c.receipts = append(c.receipts, receipt{bare, *sale.voids, true, true})
	}
	if sale.share != nil {
		n := int64(1)
		if p.said.voided == 1 {
			n = 0
		}
		c.s.sums.transaction(sale.key, sale.share, n, p.pos)
		clear(c.s.sums.items) // too many to hold
	}
}

// full compares what was noted when it is much.
func (c *rowCheck) full(ctx context.Context) error {
	if len(c.receipts)+len(c.claims) < 100 {
		return nil
	}
	return c.flush(ctx)
}

// count adds what other records give to the sums of their day.
func (c *rowCheck) count(p *entry) {
	it := item{record: p.record, day: p.said.day}
	if k := p.record.Kind; k != protocol.KindFootfall && k != protocol.KindDrawer {
		return
	}
	if err := it.body(protocol.Origin{Chain: c.s.chain, Store: c.s.store, Agent: c.st.key.agent}); err != nil {
		c.wrong(p, wrongChanged, "is applied, and cannot be read: "+err.Error())
		return
	}
	switch {
	case it.footfall != nil:
		c.s.sums.footfall(c.s.store, it.day, it.footfall, p.pos)
	case it.drawer != nil:
		c.s.sums.drawer(c.s.store, it.day, it.drawer, p.pos)
	}
}

// flush compares what was noted with the other tables.
func (c *rowCheck) flush(ctx context.Context) error {
	if err := c.settle(ctx); err != nil {
		return err
	}
	return c.keys(ctx)
}

// keys compares the receipts noted with their business keys and with what was voided.
func (c *rowCheck) keys(ctx context.Context) error {
	if len(c.receipts) == 0 {
		return nil
	}
	args := []any{c.s.id}
	var values []string
	for i := range c.receipts {
		k, n := &c.receipts[i].key, len(args)
		values = append(values, fmt.Sprintf("(CAST($%d AS bigint), CAST($%d AS text), CAST($%d AS text), CAST($%d AS text), CAST($%d AS bigint))", n+1, n+2, n+3, n+4, n+5))
		args = append(args, int64(i), k.store, k.day, k.workstation, k.sequence)
	}
	type row struct{ i, pos, voided int64 }
	rows, err := ask(ctx, c.s.q, "WITH k(i, store, day, workstation, sequence) AS (VALUES "+strings.Join(values, ", ")+`)
		SELECT k.i, coalesce(b.pos, 0), coalesce(v.pos, 0) FROM k
		LEFT JOIN business_keys b ON b.chain = $1 AND b.store = k.store AND b.business_day = k.day AND b.workstation = k.workstation AND b.sequence = k.sequence
		LEFT JOIN voids v ON v.chain = $1 AND v.store = k.store AND v.business_day = k.day AND v.workstation = k.workstation AND v.sequence = k.sequence`, args,
		func(s scanner, r *row) error { return s.Scan(&r.i, &r.pos, &r.voided) })
	if err != nil {
		return fmt.Errorf("business keys of %s: %w", c.st, err)
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.i, b.i) })
	for _, r := range rows {
		at := &c.receipts[r.i]
		switch {
		case at.voids && r.voided == 0:
			c.wrong(&at.entry, wrongColumns, fmt.Sprintf("voids transaction %s, and the table of voids does not say so", at.key))
		case at.voids:
		case r.pos == 0:
			c.wrong(&at.entry, wrongColumns, fmt.Sprintf("transaction %s has no business key", at.key))
		case r.pos != at.entry.pos:
			c.wrong(&at.entry, wrongColumns, fmt.Sprintf("the business key of transaction %s is at position %d", at.key, r.pos))
		case at.voided != (r.voided != 0):
			c.wrong(&at.entry, wrongColumns, fmt.Sprintf("its row says voided %t, and the table of voids %t", at.voided, r.voided != 0))
		}
	}
	c.receipts = c.receipts[:0]
	return nil
}

// projections compares the stored sums of the store's days with what its records give.
func (s *storeAudit) projections(ctx context.Context) error {
	type row struct {
		key kpiKey
		KPIRow
	}
	rows, err := ask(ctx, s.q, "SELECT day, currency, "+kpiColumns+" FROM kpis WHERE chain = $1 AND store = $2", []any{s.id, s.store},
		func(found scanner, r *row) error {
			r.key.store = s.store
			dest := []any{&r.key.day, &r.key.currency}
			for _, sum := range r.sums() {
				dest = append(dest, sum)
			}
			return found.Scan(dest...)
		})
	if err != nil {
		return fmt.Errorf("sums: %w", err)
	}
	stored := map[kpiKey]*KPIRow{}
	for i := range rows {
		stored[rows[i].key] = &rows[i].KPIRow
	}
	names := strings.Split(kpiColumns, ", ")
	for _, key := range unionOf(stored, s.sums.kpis, compareKPI) {
		is, want := stored[key], s.sums.kpis[key]
		if is == nil {
			is = &KPIRow{}
		}
		if want == nil {
			want = &KPIRow{}
		}
		for i, sum := range is.sums() {
			if *sum != *want.sums()[i] {
				s.find("", "", wrong{kind: wrongProjection, what: fmt.Sprintf("%s: %s is %d, and the records give %d", dayOf(key), names[i], *sum, *want.sums()[i])})
				break
			}
		}
	}
	return s.tenders(ctx)
}

func (s *storeAudit) tenders(ctx context.Context) error {
	stored := map[tenderKey]*tenderShare{}
	_, err := ask(ctx, s.q, "SELECT day, currency, type, count, amount FROM tender_days WHERE chain = $1 AND store = $2", []any{s.id, s.store},
		func(found scanner, _ *struct{}) error {
			key, sum := tenderKey{kpiKey: kpiKey{store: s.store}}, &tenderShare{}
			err := found.Scan(&key.day, &key.currency, &key.kind, &sum.count, &sum.amount)
			stored[key] = sum
			return err
		})
	if err != nil {
		return fmt.Errorf("tenders: %w", err)
	}
	for _, key := range unionOf(stored, s.sums.tenders, func(a, b tenderKey) int {
		return cmp.Or(compareKPI(a.kpiKey, b.kpiKey), strings.Compare(a.kind, b.kind))
	}) {
		is, want := stored[key], s.sums.tenders[key]
		if is == nil {
			is = &tenderShare{}
		}
		if want == nil {
			want = &tenderShare{}
		}
		if is.count != want.count || is.amount != want.amount {
			s.find("", "", wrong{kind: wrongProjection, what: fmt.Sprintf("%s: tender %s is %d receipts and %d, and the records give %d and %d",
				dayOf(key.kpiKey), key.kind, is.count, is.amount, want.count, want.amount)})
		}
	}
	return nil
}

func dayOf(key kpiKey) string { return strings.TrimSpace(key.day + " " + key.currency) }

func compareKPI(a, b kpiKey) int {
	return cmp.Or(strings.Compare(a.day, b.day), strings.Compare(a.currency, b.currency))
}

// unionOf gives the keys of both maps in order.
func unionOf[K comparable, V any](a, b map[K]V, compare func(a, b K) int) []K {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.SortedFunc(maps.Keys(all), compare)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
