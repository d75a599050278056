package link

import (
	"fmt"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
)

// forkCalm is how long the agent must not have forked for the pause before the next fork to
// begin anew. It is above the longest pause.
const forkCalm = 3 * maxRefused

// Each fork writes what is not acknowledged to the disk once more. A relay that answers fork
// to whatever it is sent must not fill it, so forks that follow each other have pauses between
// them, as refusals have.
type forks struct {
	at    time.Time // of the newest; zero = none
	pause time.Duration
	next  time.Time // none before
}

// A fork is one that is due: an epoch has another content at the relay.
type fork struct {
	epoch  protocol.Epoch
	reason string
}

// fork lets the source close the epoch that has another content at the relay, and goes on
// from the oldest record in the new one.
func (s *Sender) fork(now time.Time) error {
	reason := s.forkDue.reason
	if err := s.source.Fork(reason); err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	if f := &s.forks; f.at.IsZero() || now.Sub(f.at) > forkCalm {
		f.pause = refusedPause
	} else {
		f.pause = min(2*f.pause, maxRefused)
	}
	s.forks.at, s.forks.next = now, now.Add(s.jitter(s.forks.pause))
	s.forkDue = nil
	s.gapped, s.raw = protocol.Position{}, protocol.Position{}
	s.note(func(st *Status) { st.Forked = reason; st.Forks++ })
	s.rewind(protocol.Position{})
	return nil
}

// live says whether anything of an epoch is still to be sent or written. Behind a fork the
// relay keeps naming the epoch that was left; that is no news.
func (s *Sender) live(epoch protocol.Epoch) bool {
	oldest, newest := s.source.Heads()
	if epoch == newest.Epoch || epoch == oldest.Epoch {
		return true
	}
	for at := oldest.Epoch; at != ""; {
		page := s.source.Epochs(at, protocol.MaxEpochs)
		if slices.Contains(page, epoch) {
			return true
		}
		if len(page) == 0 {
			break
		}
		at = page[len(page)-1]
	}
	return false
}

// beyond says whether a seq lies behind the newest durable record of an epoch.
func (s *Sender) beyond(epoch protocol.Epoch, seq uint64) bool {
	if _, newest := s.source.Heads(); epoch == newest.Epoch {
		return seq > newest.Seq
	}
	return seq > 0 && s.source.Next(protocol.Position{Epoch: epoch, Seq: seq - 1}).Epoch != epoch
}
