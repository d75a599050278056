package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

// apply gives a record its position and adds what it says to the projections; or notes why
// it is only acknowledged: a duplicate, or quarantined.
func (g *group) apply(ctx context.Context, t tx, from protocol.Origin, s *stream, it *item) error {
	if it.cause != "" {
		g.quarantine(from, s.key, s.id, it, it.cause, it.reason)
		return nil
	}
	r := it.record
	first := resentKey{s.key, r.Seq, protocol.Hash{}}
	var was []byte
	if r.Was != nil && !mutant.On(mutant.ForgetWas) {
		first = resentKey{streamKey{s.key.store, s.key.agent, r.Was.Epoch}, r.Was.Seq, r.Was.SHA256}
		twin, err := g.stands(ctx, t, first, s.key)
		if err != nil {
			return err
		}
		if twin {
			g.duplicate(s, it, fmt.Sprintf("accepted first as %s/%d", r.Was.Epoch, r.Was.Seq))
			return nil
		}
	} else if len(g.resent) > 0 && !mutant.On(mutant.ForgetWas) {
		first.sha256 = r.ContentHash()
		if g.resent[first] {
			g.duplicate(s, it, "came before in a later epoch")
			return nil
		}
	}
	if r.Was != nil {
		var err error
		if was, err = json.Marshal(r.Was); err != nil {
			return err
		}
	}
	// A record that goes into quarantine after all has not come again yet: it would be a duplicate
	// of itself when it is tried again.
	applied := func() {
		if r.Was != nil && !mutant.On(mutant.ForgetWas) {
			g.changes.resent.add(g.id, first.store, first.agent, string(first.epoch), int64(first.seq), bytes.Clone(first.sha256[:]))
			g.resent[first] = true
		}
	}
	if it.sale != nil {
		if g.applySale(from, s, it, was) {
			applied()
		}
		return nil
	}
	if it.footfall != nil {
		if reason := g.countedBefore(counterKey{from.Store, from.Agent, storable(it.footfall.Counter)}, it.footfall); reason != "" {
			g.quarantine(from, s.key, s.id, it, causeCounted, reason)
			return nil
		}
	}
	applied()
	g.head++
	g.changes.records.add(g.id, g.head, s.id, int64(r.Seq), from.Store, string(r.Kind), r.At, r.Mono, it.day, g.at0, it.hash[:], nullable(r.Key), r.Body, nullable(was))
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
	case it.mark != nil:
		m := it.mark
		g.marks.add(g.id, from.Store, m.Day.String(), from.Agent, string(s.key.epoch), int64(r.Seq), string(m.Head.Epoch), int64(m.Head.Through), m.Head.Hash[:],
			m.Certificate[:], append([]byte{}, m.Signature...))
	case it.loss != nil:
		return g.lose(ctx, t, from, *it.loss)
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
	if s == nil || s.through < first.seq || s.key == own {
		return false, nil
	}
	p, err := g.at(ctx, t, s, first.seq)
	if err != nil || p.hole {
		return false, err
	}
	// A nil record is a duplicate of one that stands.
	return p.record == nil || p.record.ContentHash() == first.sha256, nil
}

// applySale applies a transaction, unless its business key is taken.
func (g *group) applySale(from protocol.Origin, s *stream, it *item, was []byte) (applied bool) {
	r, sale := it.record, it.sale
	if k := g.sales[sale.key]; k != nil {
		if bytes.Equal(k.body, r.Body) {
			if mutant.On(mutant.FoldTwice) && sale.share != nil {
				g.sums.transaction(sale.key, sale.share, 1, g.head)
			}
			g.duplicate(s, it, fmt.Sprintf("transaction %s is at position %d", sale.key, k.pos))
		} else {
			g.quarantine(from, s.key, s.id, it, causeBusiness, fmt.Sprintf("sequenceNumber: transaction %s is at position %d with other content", sale.key, k.pos))
		}
		return false
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
	g.changes.sales.add(g.id, g.head, s.id, int64(r.Seq), from.Store, string(r.Kind), r.At, r.Mono, it.day, g.at0, it.hash[:], nullable(r.Key), r.Body, nullable(was),
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
	return true
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

// duplicate notes a record that is only acknowledged. Its content is kept, as a part of the
// stream's hashes, without its key: that is beside the record that stands.
func (g *group) duplicate(s *stream, it *item, reason string) {
	r := *it.record
	r.Key = nil
	g.changes.duplicates.add(g.id, s.id, int64(r.Seq), it.hash[:], reason, r.AppendJSON(nil))
}

// quarantine keeps a record that is not applied; stream 0 says that no stream moved over it,
// and is followed by one that does.
func (g *group) quarantine(whose protocol.Origin, key streamKey, stream int64, it *item, cause, reason string) {
	r := it.record
	place := quarantineKey{key, r.Seq, it.hash}
	if before, twice := g.quarantining[place]; twice {
		if before != 0 || stream == 0 {
			return
		}
		g.changes.quarantined.drop(func(row []any) bool {
			return row[3] == int64(r.Seq) && row[4] == whose.Store && row[5] == whose.Agent && row[6] == string(key.epoch) && bytes.Equal(row[12].([]byte), it.hash[:])
		})
	}
	g.quarantining[place] = stream
	g.lastQuarantined++
	g.changes.quarantined.add(g.id, g.lastQuarantined, stream, int64(r.Seq), whose.Store, whose.Agent, string(key.epoch),
		storable(string(r.Kind)), it.day, cause, storable(reason), g.at0, it.hash[:], r.AppendJSON(nil), receiptDay(r, whose.Store))
}

// A quarantineKey is one content at one position.
type quarantineKey struct {
	streamKey
	seq  uint64
	hash protocol.Hash
}

// quarantineRaw keeps what could not be read at all, beside its stream: that moves over it by
// a hole, if the agent says its hash.
func (g *group) quarantineRaw(j *job) {
	if !j.epoch.Valid() || int64(j.first) <= 0 {
		return
	}
	whose := j.whose()
	place := quarantineKey{streamKey{whose.Store, whose.Agent, j.epoch}, j.first, protocol.Hash{}}
	if _, twice := g.quarantining[place]; twice {
		return
	}
	g.quarantining[place] = 0
	g.lastQuarantined++
	g.changes.quarantined.add(g.id, g.lastQuarantined, int64(0), int64(j.first), whose.Store, whose.Agent, string(j.epoch),
		"", "", causeRaw, storable("cannot be read: "+j.unread), g.at0, []byte{}, j.raw, "")
}

// nullable keeps nil nil when it becomes an argument.
func nullable(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}
