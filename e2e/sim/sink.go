package sim

import (
	"context"

	"github.com/storelay/storelay/protocol"
)

// A committed batch is one that the ledger has acknowledged.
type committed struct {
	from  protocol.Origin
	batch protocol.Batch
}

// A sink is the ledger with an eye on what it says.
type sink struct{ r *relay }

// Commit implements link.Sink.
func (s sink) Commit(ctx context.Context, from protocol.Origin, batch protocol.Batch) (protocol.Answer, error) {
	answer, err := s.r.ledger.Commit(ctx, from, batch)
	if err != nil {
		if s.r.dead { // whether it is there is seen at the next start
			s.r.doubtful = append(s.r.doubtful, committed{from, batch})
		}
		return answer, err
	}
	s.r.w.stats.Commits++
	s.r.saw(answer.Incarnation)
	switch answer.Verdict {
	case protocol.VerdictAck:
		s.r.acknowledged(from, batch, answer)
	case protocol.VerdictGap:
	default:
		s.r.w.say("relay: %s to %s at %s/%d: %s", answer.Verdict, from, short(batch.Epoch), batch.First, answer.Reason)
	}
	return answer, nil
}

// acknowledged notes what an agent is told.
func (r *relay) acknowledged(from protocol.Origin, batch protocol.Batch, answer protocol.Answer) {
	r.committed = append(r.committed, committed{from, batch})
	if batch.Of != nil {
		return
	}
	key := stream{from, answer.Epoch}
	was := r.promised.marks[key]
	switch {
	case answer.Through < was.through:
		r.w.fail("I12: %s was told that %s is committed up to %d, and now up to %d", from, short(answer.Epoch), was.through, answer.Through)
	case answer.Through == was.through && answer.Hash != was.hash:
		r.w.fail("I12: the hash of %s/%d of %s has changed", short(answer.Epoch), answer.Through, from)
	}
	r.promised.set(key, mark{answer.Through, answer.Hash})
}

// saw looks at an incarnation: it rises after a restore and never else.
func (r *relay) saw(incarnation int64) {
	switch {
	case incarnation == r.incarnation:
	case r.incarnation == 0:
		r.incarnation = incarnation
	case incarnation > r.incarnation && r.rises > 0:
		r.w.say("relay: incarnation %d", incarnation)
		r.incarnation = incarnation
		r.rises--
	default:
		r.w.fail("the ledger's incarnation is %d after %d, and nothing was restored", incarnation, r.incarnation)
	}
}

// keepsPromises checks after a crash that what agents were told is there, and settles what
// was in doubt.
func (r *relay) keepsPromises() {
	for _, c := range r.doubtful {
		m, err := r.ledger.Marks(r.w.ctx(), c.from, protocol.MarksAsk{Epochs: []protocol.Epoch{c.batch.Epoch}})
		if err != nil {
			r.w.fail("marks: %v", err)
			return
		}
		if m.Marks[0].Through >= c.batch.Last() && c.batch.Of == nil {
			r.committed = append(r.committed, c)
		}
	}
	r.doubtful = nil
	for _, key := range r.promised.order {
		want := r.promised.marks[key]
		m, err := r.ledger.Marks(r.w.ctx(), key.origin, protocol.MarksAsk{Epochs: []protocol.Epoch{key.epoch}})
		if err != nil {
			r.w.fail("marks: %v", err)
			return
		}
		got := m.Marks[0]
		if got.Through < want.through || got.Through == want.through && got.Hash != want.hash {
			r.w.fail("I12: %s was told that %s is committed up to %d, and after a restart the ledger has %d", key.origin, short(key.epoch), want.through, got.Through)
			return
		}
	}
}

// Welcome implements link.Sink.
func (s sink) Welcome(ctx context.Context, from protocol.Origin, hello protocol.Hello) (protocol.Welcome, error) {
	w, err := s.r.ledger.Welcome(ctx, from, hello)
	if err == nil {
		s.r.saw(w.Incarnation)
	}
	return w, err
}

// Marks implements link.Sink.
func (s sink) Marks(ctx context.Context, from protocol.Origin, ask protocol.MarksAsk) (protocol.Marks, error) {
	return s.r.ledger.Marks(ctx, from, ask)
}

// FeedPage implements link.Sink.
func (s sink) FeedPage(ctx context.Context, from protocol.Origin, ask protocol.FeedAsk) (protocol.FeedPage, error) {
	return s.r.ledger.FeedPage(ctx, from, ask)
}

func short(e protocol.Epoch) string { return string(e[:min(8, len(e))]) }
