package link

import (
	"fmt"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

// A window is what is under way on a connection. It begins with one batch, grows by what is
// acknowledged, and falls back to one batch whenever the link goes back.
type window struct {
	next   protocol.Position // to be sent; zero = the oldest record without an ack
	flying []flight
	bytes  int // that fly, on the wire
	limit  int // bytes; a batch is sent while less flies, and one always does

	stall   time.Duration // without an ack for so long, the link goes back
	stallAt time.Time
	paused  time.Time         // nothing is sent before
	gapped  protocol.Position // where the newest gap sent the link back to
	raw     protocol.Position // this record is sent raw
}

// A flight is a batch under way.
type flight struct {
	first protocol.Position
	last  uint64
	bytes int
	whole bool           // it cannot be halved: one record, or a skip alone
	skip  bool           // it begins with a skip, which cannot be sent raw
	after protocol.Epoch // the relay may want this epoch's end first; "" = no other
}

// up gives the batches that the window allows, or else what must come before them.
func (s *Sender) up(now time.Time) ([]Out, time.Time, error) {
	if s.resync != nil {
		return s.askMarks(now)
	}
	if s.forkDue != nil && !s.live(s.forkDue.epoch) {
		s.forkDue = nil // it has ended by itself
	}
	if s.forkDue != nil {
		if wait := s.forks.next; now.Before(wait) {
			return nil, wait, nil
		}
		if err := s.fork(now); err != nil {
			return nil, time.Time{}, err
		}
	}
	if now.Before(s.paused) {
		return nil, s.paused, nil
	}
	return s.send(now)
}

func (s *Sender) send(now time.Time) (outs []Out, wake time.Time, err error) {
	if len(s.flying) > 0 && !now.Before(s.stallAt) {
		s.stall = min(2*s.stall, s.opt.MaxStall)
		s.gapped = protocol.Position{}
		s.rewind(protocol.Position{})
	}
	for len(s.flying) == 0 || s.bytes < s.limit {
		out, ok, err := s.batch()
		if err != nil {
			return nil, time.Time{}, err
		}
		if !ok {
			break
		}
		if len(s.flying) == 1 {
			s.stallAt = now.Add(s.jitter(s.stall))
		}
		outs = append(outs, out)
	}
	s.note(func(st *Status) { st.Sent += int64(len(outs)) })
	s.noteWindow()
	if len(s.flying) > 0 {
		wake = s.stallAt
	}
	return outs, wake, nil
}

// batch makes the next batch and counts it as under way; false when there is none.
func (s *Sender) batch() (Out, bool, error) {
	batch, err := s.read()
	if err != nil || empty(&batch) {
		return Out{}, false, err
	}
	f := flight{first: protocol.Position{Epoch: batch.Epoch, Seq: batch.First}, skip: batch.Skip != nil}
	if batch.First == 1 {
		f.after = waitsFor(&batch)
	}
	if f.skip && s.records == 1 {
		batch.Records = nil
	}
	raw := f.first == s.raw && !f.skip
	if raw {
		batch.Records = batch.Records[:1]
	}
	for {
		f.last, f.whole = batch.Last(), len(batch.Records) == 0 || len(batch.Records) == 1 && !f.skip
		out := batch
		if raw {
			r := &batch.Records[0]
			out.Raw, out.Records = r.AppendJSON(nil), nil
			out.Skip = &protocol.Skip{From: r.Seq, To: r.Seq, Hash: r.Hash(batch.Prev), Reason: protocol.SkipUnread}
		}
		payload, err := s.pack.pack(out.Encode())
		if err != nil {
			return Out{}, false, err
		}
		if len(payload) <= protocol.MaxWire {
			if mutant.On(mutant.ForgetOnPuback) {
				s.forget(&batch)
			}
			s.fly(f, len(payload))
			return Out{TopicRecords, payload}, true, nil
		}
		if f.whole {
			return Out{}, false, fmt.Errorf("send record %s: %w: %d bytes on the wire, at most %d; it should not have been accepted",
				f.first, ErrTooBig, len(payload), protocol.MaxWire)
		}
		batch.Records = batch.Records[:len(batch.Records)/2]
	}
}

// read reads what is next to be sent; an empty batch when nothing is. An epoch does not
// overtake the one before, which may turn out to be forked.
func (s *Sender) read() (protocol.Batch, error) {
	oldest, _ := s.source.Heads()
	if s.next == (protocol.Position{}) {
		s.next = oldest
	}
	for jumped := false; s.next.Seq > 1 || s.next.Seq == 1 && len(s.flying) == 0; {
		batch, err := s.source.Read(s.next, s.records, s.opt.MaxBytes)
		if err != nil {
			return protocol.Batch{}, fmt.Errorf("read records from %s: %w", s.next, err)
		}
		if !empty(&batch) {
			return batch, nil
		}
		// The epoch may have ended behind the last record that was sent.
		after := s.next
		if s.next.Seq > 1 {
			after = s.source.Next(protocol.Position{Epoch: s.next.Epoch, Seq: s.next.Seq - 1})
		}
		if after == s.next && len(s.flying) == 0 && oldest != (protocol.Position{}) && !jumped {
			after, jumped = oldest, true // nothing is here, and nothing that is under way leads on
		}
		if after == s.next {
			break
		}
		s.next = after
	}
	return protocol.Batch{}, nil
}

func empty(b *protocol.Batch) bool { return b.Skip == nil && len(b.Records) == 0 }

// waitsFor is the epoch whose end the relay may want first, by the seal in a batch that
// begins an epoch; "" when it waits for none.
func waitsFor(b *protocol.Batch) protocol.Epoch {
	var seal protocol.Seal
	if b.Skip != nil && b.Skip.Seal != nil {
		seal = *b.Skip.Seal
	} else if b.Skip == nil {
		seal, _ = protocol.DecodeSeal(b.Records[0].Body) // one that cannot be read names none
	}
	if seal.Before == nil || seal.Forked {
		return ""
	}
	return seal.Before.Epoch
}

// fly counts a batch as under way.
func (s *Sender) fly(f flight, bytes int) {
	f.bytes = bytes
	s.flying = append(s.flying, f)
	s.bytes += bytes
	s.limit = min(max(s.limit, s.flying[0].bytes), s.opt.Window)
	s.next = s.source.Next(protocol.Position{Epoch: f.first.Epoch, Seq: f.last})
}

// forget takes a batch off the queue before it is acknowledged, which is a bug.
func (s *Sender) forget(b *protocol.Batch) {
	hash := b.Prev
	if b.Skip != nil {
		hash = b.Skip.Hash
	}
	for i := range b.Records {
		hash = b.Records[i].Hash(hash)
	}
	_ = s.source.Acked(protocol.Mark{Epoch: b.Epoch, Through: b.Last(), Hash: hash}, s.highest)
}

// landed takes the batches off that an ack of an epoch covers; false when there are none.
func (s *Sender) landed(now time.Time, epoch protocol.Epoch, through uint64) bool {
	n, bytes := 0, 0
	for n < len(s.flying) && s.flying[n].first.Epoch == epoch && s.flying[n].last <= through {
		bytes += s.flying[n].bytes
		n++
	}
	if n == 0 {
		return false
	}
	s.flying = slices.Delete(s.flying, 0, n)
	s.bytes -= bytes
	s.limit = min(s.limit+bytes, s.opt.Window)
	s.stall = s.opt.Stall
	s.stallAt = now.Add(s.jitter(s.stall))
	s.gapped, s.raw = protocol.Position{}, protocol.Position{}
	return true
}

// rewind forgets what is under way and goes on from a position; the zero position is the
// oldest record without an ack.
func (s *Sender) rewind(to protocol.Position) {
	s.flying, s.bytes, s.limit, s.next = nil, 0, 0, to
	s.note(func(st *Status) { st.Resent++ })
	s.noteWindow()
}

func (s *Sender) noteWindow() {
	s.note(func(st *Status) { st.FlyingBatches, st.FlyingBytes, st.WindowBytes = len(s.flying), s.bytes, s.limit })
}
