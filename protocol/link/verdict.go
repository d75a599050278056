package link

import (
	"fmt"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

const (
	busyPause    = time.Second     // after busy, doubled by jitter
	refusedPause = 5 * time.Second // after refused, doubling
	maxRefused   = 5 * time.Minute
	growAfter    = 20 // acks in a row after which halved batches grow again
)

// answer takes the relay's word on a batch. It names no batch, so a word that only concerns
// one is about the first under way; when none is, it is late: the link has gone back since.
func (s *Sender) answer(now time.Time, a *protocol.Answer) error {
	present, err := s.heed(a.Incarnation)
	if err != nil || !present {
		return err
	}
	switch a.Verdict {
	case protocol.VerdictAck:
		return s.ack(now, a)
	case protocol.VerdictGap:
		s.gap(a)
		return nil
	case protocol.VerdictFork:
		if s.flies(func(f *flight) bool { return f.first.Epoch == a.Epoch }) {
			s.forkDue = &fork{a.Epoch, fmt.Sprintf("the relay has other records at %s/%d: %s", a.Epoch, a.Through, a.Reason)}
		}
		return nil
	case protocol.VerdictTooBig, protocol.VerdictUnreadable, protocol.VerdictBusy, protocol.VerdictRefused:
	default:
		return s.garbage()
	}
	if len(s.flying) == 0 {
		return nil
	}
	switch first := s.flying[0]; {
	case a.Verdict == protocol.VerdictBusy:
		s.paused = now.Add(s.jitter(busyPause))
	case a.Verdict == protocol.VerdictRefused:
		s.pause(now, a.Reason)
	case !first.whole:
		s.records, s.grown = max(1, s.records/2), 0
	case a.Verdict == protocol.VerdictUnreadable && !first.skip && s.raw != first.first:
		s.raw = first.first
	default:
		s.pause(now, fmt.Sprintf("record %s: %s: %s", first.first, a.Verdict, a.Reason))
	}
	s.rewind(protocol.Position{})
	return nil
}

// pause lets some time pass, more each time, before the relay is tried again, and shows why.
func (s *Sender) pause(now time.Time, reason string) {
	s.refused = min(max(2*s.refused, refusedPause), maxRefused)
	s.paused = now.Add(s.jitter(s.refused))
	s.note(func(st *Status) { st.Refused = reason })
}

func (s *Sender) flies(match func(*flight) bool) bool {
	return slices.ContainsFunc(s.flying, func(f flight) bool { return match(&f) })
}

func (s *Sender) ack(now time.Time, a *protocol.Answer) error {
	if ours, err := s.acked(protocol.Mark{Epoch: a.Epoch, Through: a.Through, Hash: a.Hash}, a.Incarnation); err != nil || !ours {
		return err
	}
	if s.landed(now, a.Epoch, a.Through) {
		s.refused = 0
		if s.grown++; s.grown >= growAfter && s.records < s.opt.MaxRecords {
			s.records, s.grown = min(2*s.records, s.opt.MaxRecords), 0
		}
		s.note(func(st *Status) { st.Refused = "" })
	}
	s.note(func(st *Status) { st.LastAck = now; st.Acked++ })
	s.noteWindow()
	return nil
}

// gap goes back to where the relay stands, once: the batches behind the gap are answered the
// same way. A relay that stands beyond the agent's own records has those of another disk.
func (s *Sender) gap(a *protocol.Answer) {
	from := protocol.Position{Epoch: a.Epoch, Seq: a.Through + 1}
	if from == s.gapped || !s.flies(func(f *flight) bool { return f.first.Epoch == a.Epoch || f.after == a.Epoch }) {
		return
	}
	if s.beyond(a.Epoch, a.Through) {
		s.forkDue = &fork{a.Epoch, fmt.Sprintf("the relay has %d records of epoch %s, more than this agent", a.Through, a.Epoch)}
		return
	}
	s.gapped = from
	if mutant.On(mutant.KeepOldMarks) {
		from = protocol.Position{}
	}
	s.rewind(from)
}
