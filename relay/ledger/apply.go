package ledger

import (
	"bytes"
	"context"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// apply gives a record its position and adds what it says to the projections; or notes why
// it is only acknowledged: a duplicate, or quarantined.
func (g *group) apply(ctx context.Context, t tx, from protocol.Origin, s *stream, it *item) error {
	if it.cause != "" {
		g.quarantine(from, s, it, it.cause, it.reason)
		return nil
	}
	r := it.record
	first := resentKey{s.key, r.Seq, protocol.Hash{}}
	if r.Was != nil {
		first = resentKey{streamKey{s.key.store, s.key.agent, r.Was.Epoch}, r.Was.Seq, r.Was.SHA256}
		twin, err := g.stands(ctx, t, first, s.key)
		if err != nil {
			return err
		}
		if twin {
			g.duplicate(s, it, fmt.Sprintf("accepted first as %s/%d", r.Was.Epoch, r.Was.Seq))
			return nil
		}
		g.changes.resent.add(g.id, first.store, first.agent, string(first.epoch), int64(first.seq), bytes.Clone(first.sha256[:]))
		g.resent[first] = true
	} else if len(g.resent) > 0 {
		first.sha256 = r.ContentHash()
		if g.resent[first] {
			g.duplicate(s, it, "came before in a later epoch")
			return nil
		}
	}
	if it.sale != nil {
		g.applySale(from, s, it)
		return nil
	}
	g.head++
	g.changes.records.add(g.id, g.head, s.id, int64(r.Seq), from.Store, string(r.Kind), r.At, r.Mono, it.day, g.at0, it.hash[:], nullable(r.Key), r.Body)
	g.span(from.Store, it.day)
	switch {
	case it.footfall != nil:
		g.sums.footfall(from.Store, it.day, it.footfall, g.head)
	case it.drawer != nil:
		g.sums.drawer(from.Store, it.day, it.drawer, g.head)
		if it.drawer.Event != protocol.DrawerOpenFailed { // says nothing about how the drawer stands
			g.drawers[deviceKey{from.Store, it.drawer.Drawer}] = it.drawer
		}
	case it.device != nil:
		g.devices[deviceKey{from.Store, it.device.Device}] = it.device
	}
	return nil
}

// stands says whether a record is in the ledger already at the position where it was first
// accepted, or by another record that names that position.
func (g *group) stands(ctx context.Context, t tx, first resentKey, own streamKey) (bool, error) {
	if g.resent[first] {
		return true, nil
	}
	s := g.streams[first.streamKey]
	if s == nil || s.through < first.seq || (s.id == 0 && len(s.items) == 0) || s.key == own {
		return false, nil
	}
	_, r, err := g.at(ctx, t, s, first.seq)
	if err != nil {
		return false, err
	}
	// A nil record is a duplicate of one that stands.
	return r == nil || r.ContentHash() == first.sha256, nil
}

func (g *group) applySale(from protocol.Origin, s *stream, it *item) {
	r, sale := it.record, it.sale
	if k := g.sales[sale.key]; k != nil {
		if bytes.Equal(k.body, r.Body) {
			g.duplicate(s, it, fmt.Sprintf("transaction %s is at position %d", sale.key, k.pos))
		} else {
			g.quarantine(from, s, it, causeBusiness, fmt.Sprintf("sequenceNumber: transaction %s is at position %d with other content", sale.key, k.pos))
		}
		return
	}
	n := g.numbers[numberKey{sale.key.store, sale.kind}]
	n.last++
	n.moved = true
	g.head++
	k := &known{pos: g.head, kind: sale.kind, body: r.Body, share: sale.share, row: g.changes.sales.len(), voided: g.voids[sale.key]}
	g.sales[sale.key] = k
	voided, times := int64(0), int64(1)
	if k.voided {
		voided, times = 1, 0
	}
	g.changes.sales.add(g.id, g.head, s.id, int64(r.Seq), from.Store, string(r.Kind), r.At, r.Mono, it.day, g.at0, it.hash[:], nullable(r.Key), r.Body,
		sale.key.day, string(sale.kind), n.last, voided)
	g.changes.keys.add(g.id, sale.key.store, sale.key.day, sale.key.workstation, sale.key.sequence, g.head)
	g.span(from.Store, it.day)
	g.span(from.Store, sale.key.day)
	if sale.share != nil {
		g.sums.transaction(sale.key, sale.share, times, g.head)
	}
	if sale.voids != nil {
		g.void(*sale.voids)
	}
}

// void takes back what a transaction added, now or when it comes. A second void of the same
// transaction changes nothing.
func (g *group) void(victim saleKey) {
	if g.voids[victim] {
		return
	}
	g.voids[victim] = true
	g.changes.voids.add(g.id, victim.store, victim.day, victim.workstation, victim.sequence, g.head)
	k := g.sales[victim]
	if k == nil {
		return
	}
	k.voided = true
	share := k.share
	if k.row >= 0 {
		g.changes.sales.values[(k.row+1)*len(salesTypes)-1] = int64(1)
	} else {
		g.changes.voided.add(g.id, k.pos)
		if t, err := readTransaction(k.body); err == nil { // it was read when it came
			share = newSale(t).share
		}
	}
	if share != nil {
		g.sums.transaction(victim, share, -1, g.head)
	}
}

func (g *group) duplicate(s *stream, it *item, reason string) {
	g.changes.duplicates.add(g.id, s.id, int64(it.record.Seq), it.hash[:], reason)
}

func (g *group) quarantine(from protocol.Origin, s *stream, it *item, cause, reason string) {
	r := it.record
	g.lastQuarantined++
	g.changes.quarantined.add(g.id, g.lastQuarantined, s.id, int64(r.Seq), from.Store, from.Agent, string(s.key.epoch),
		storable(string(r.Kind)), it.day, cause, storable(reason), g.at0, it.hash[:], r.AppendJSON(nil))
}

// quarantineRaw keeps what could not be read at all. Its stream does not move: the hash of a
// record that cannot be read is not known.
func (g *group) quarantineRaw(j *job) {
	if !j.epoch.Valid() || int64(j.first) <= 0 {
		return
	}
	g.lastQuarantined++
	g.changes.quarantined.add(g.id, g.lastQuarantined, int64(0), int64(j.first), j.from.Store, j.from.Agent, string(j.epoch),
		"", "", causeRaw, storable(j.refuse), g.at0, []byte{}, j.raw)
}

// applyAgain applies a quarantined record, whose stream has moved over it already.
func (g *group) applyAgain(ctx context.Context, t tx, j *job) error {
	it, s := j.items[0], g.stream(j.from, j.epoch)
	if s.id == 0 {
		return errNoRecord
	}
	before := g.lastQuarantined
	if err := g.apply(ctx, t, j.from, s, it); err != nil {
		return err
	}
	if g.lastQuarantined != before {
		values := g.changes.quarantined.values
		return protocol.Faults{{Problem: values[len(values)-4].(string)}}
	}
	return t.run(ctx, false, statement{text: "DELETE FROM quarantined WHERE chain = $1 AND id = $2", args: []any{g.id, j.again.ID}})
}

// nullable keeps nil nil when it becomes an argument.
func nullable(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}
