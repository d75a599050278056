package link

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

// A resync is what the agent does when the relay's ledger was restored from a backup: it asks
// how far that ledger knows every epoch that the agent ever had, in pages, and then lets the
// source go back to there. Until then nothing is sent, and no ack is taken.
type resync struct {
	incarnation int64
	found       []protocol.Mark  // of the pages answered
	page        []protocol.Epoch // asked for; nil = none yet
	askAt       time.Time        // the page again
	stall       time.Duration
}

// heed takes note of the incarnation of the ledger that is speaking, and says whether it is
// the one whose acks the source has. One below the highest heard of is left.
func (s *Sender) heed(incarnation int64) (present bool, err error) {
	_, seen := s.source.LastAck()
	if highest := max(seen, s.highest); incarnation < highest {
		return false, fmt.Errorf("%w: its ledger has incarnation %d, %d was seen", ErrLeave, incarnation, highest)
	}
	s.highest = incarnation
	s.note(func(st *Status) { st.Incarnation = incarnation })
	if seen == 0 || incarnation == seen || mutant.On(mutant.KeepOldMarks) {
		return true, nil
	}
	if s.resync == nil || s.resync.incarnation < incarnation {
		s.resync = &resync{incarnation: incarnation}
		s.forkDue = nil // it was about another ledger
		s.rewind(protocol.Position{})
		s.note(func(st *Status) { st.Rewinding = true })
	}
	return false, nil
}

// askMarks asks for the next page of marks, or again for one without an answer, and rewinds
// the source when there are all.
func (s *Sender) askMarks(now time.Time) ([]Out, time.Time, error) {
	r := s.resync
	if r.page == nil {
		after := protocol.Epoch("")
		if n := len(r.found); n > 0 {
			after = r.found[n-1].Epoch
		}
		r.page, r.askAt, r.stall = s.source.Epochs(after, protocol.MaxEpochs), now, s.opt.Stall
	}
	if len(r.page) == 0 {
		if err := s.source.Rewind(r.found, r.incarnation); err != nil {
			return nil, time.Time{}, fmt.Errorf("go back to what the restored ledger has: %w", err)
		}
		s.window = window{stall: s.opt.Stall}
		s.resync = nil
		s.note(func(st *Status) {
			st.Rewinds++
			st.Rewinding = false
		})
		return s.up(now)
	}
	if now.Before(r.askAt) {
		return nil, r.askAt, nil
	}
	payload, err := json.Marshal(protocol.Ask{Marks: &protocol.MarksAsk{Epochs: r.page}})
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("encode question for marks: %w", err)
	}
	r.askAt = now.Add(s.jitter(r.stall))
	r.stall = min(2*r.stall, s.opt.MaxStall)
	return []Out{{TopicAsk, payload}}, r.askAt, nil
}

// marks takes a page of marks: the one that was asked for, complete and in order, and no
// other.
func (s *Sender) marks(m *protocol.Marks) error {
	if _, err := s.heed(m.Incarnation); err != nil {
		return err
	}
	r := s.resync
	if r == nil || len(r.page) == 0 || !slices.EqualFunc(m.Marks, r.page, func(m protocol.Mark, e protocol.Epoch) bool { return m.Epoch == e }) {
		return nil
	}
	for _, mark := range m.Marks {
		r.found = append(r.found, s.ours(mark))
	}
	r.page = nil
	return nil
}

// ours is a mark that is of the source's own records, as far as they are held, or else one at
// 0: what the ledger has of that epoch is another copy's, so that all of it is sent again, and
// the ledger says where the two part.
func (s *Sender) ours(mark protocol.Mark) protocol.Mark {
	if mark.Through > 0 && (s.beyond(mark.Epoch, mark.Through) || s.hashAt(mark) != mark.Hash) {
		return protocol.Mark{Epoch: mark.Epoch}
	}
	return mark
}
