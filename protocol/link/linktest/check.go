package linktest

import (
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// Check compares the sink with a source at rest: every record that the source accepted is
// applied once and in order, or stands in a hole that is named, since the disk has lost it;
// and all is acknowledged.
func Check(source *Source, sink *Sink) error {
	if err := Sound(source, sink); err != nil {
		return err
	}
	source.mu.Lock()
	list := source.disk.copy().accepted
	source.mu.Unlock()
	sink.mu.Lock()
	defer sink.mu.Unlock()
	last := -1
	for n, a := range list {
		i, applied := sink.books.applied[a.content]
		lost := source.history.lost(a.at)
		switch {
		case !applied && !named(lost, sink.books.holes):
			return fmt.Errorf("record %d of %d, first at %s, is not applied", n+1, len(list), a.at[0])
		case !applied || len(lost) > 0: // what one copy of the disk has lost may come late from another
		case i < last:
			return fmt.Errorf("record %d of %d, first at %s, is applied before the one before it", n+1, len(list), a.at[0])
		default:
			last = i
		}
	}
	if oldest, _ := source.Heads(); oldest != (protocol.Position{}) {
		return fmt.Errorf("%s and what follows is not acknowledged", oldest)
	}
	return nil
}

// lost are those positions of a record at which a disk has lost it.
func (h *history) lost(at []protocol.Position) (lost []protocol.Position) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range at {
		if h.damage[p] {
			lost = append(lost, p)
		}
	}
	return lost
}

// named says whether one of the holes is over one of the positions.
func named(lost []protocol.Position, holes []protocol.Loss) bool {
	for _, p := range lost {
		for _, hole := range holes {
			if hole.Epoch == p.Epoch && hole.From <= p.Seq && p.Seq <= hole.To {
				return true
			}
		}
	}
	return false
}

// Sound checks what must hold at every moment: nothing is applied twice, and nothing is
// acknowledged that is not committed.
func Sound(source *Source, sink *Sink) error {
	source.mu.Lock()
	defer source.mu.Unlock()
	sink.mu.Lock()
	defer sink.mu.Unlock()
	if faults := sink.books.faults; len(faults) > 0 {
		return fmt.Errorf("the sink found %d faults, the first: %s", len(faults), faults[0])
	}
	if sink.silent || source.disk.acks.incarnation != sink.Incarnation {
		return nil // the acks are of a ledger that is no more
	}
	for _, e := range source.disk.epochs {
		if st := sink.books.streams[e.id]; e.acked > 0 && (st == nil || e.acked > st.through) {
			return fmt.Errorf("epoch %s is acknowledged through %d, which is not committed", e.id, e.acked)
		}
	}
	return nil
}
