package drivertest

import (
	"context"
	"io"
	"sync"
	"time"
)

// TurnstileOptions shape a Turnstile.
type TurnstileOptions struct {
	InRightToLeft bool          // who comes in goes from right to left; else from left to right
	Resend        time.Duration // an event that is not acknowledged is said again so often; 0 = never
	Tries         int           // at most, with Resend; 0 = 3
}

// A Turnstile simulates the Digicon Tx1500 (manual, page 31; 115200 baud): 02, size of
// commands and check, low byte first, commands, XOR of all before. It says 1A when somebody
// goes from right to left and 1B from left to right, takes 48 (release), and acknowledges
// with 06 or refuses with 15. It keeps no totals. The manual does not say whether an event
// is repeated.
type Turnstile struct {
	opts TurnstileOptions
	out  *outbox

	mu       sync.Mutex // guards the fields below
	pending  []byte
	truth    Passages
	waiting  []byte // the event that is not acknowledged yet
	queue    [][]byte
	tries    int
	released int
	acked    int
	refused  int
}

// The commands of the Tx1500.
const (
	digiconACK     = 0x06
	digiconNACK    = 0x15
	digiconToLeft  = 0x1A
	digiconToRight = 0x1B
	digiconRelease = 0x48
)

// NewTurnstile makes a turnstile that nobody has passed.
func NewTurnstile(opts TurnstileOptions) *Turnstile {
	if opts.Tries == 0 {
		opts.Tries = 3
	}
	return &Turnstile{opts: opts, out: newOutbox()}
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *Turnstile) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, s.feed, nil)
}

// Walk lets people pass, one after the other; the turnstile says so at each.
func (s *Turnstile) Walk(in, out int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; in > 0 || out > 0; in, out = in-1, out-1 {
		if in > 0 {
			s.truth.In++
			s.event(!s.opts.InRightToLeft)
		}
		if out > 0 {
			s.truth.Out++
			s.event(s.opts.InRightToLeft)
		}
	}
}

// event says that somebody has passed; s.mu is held.
func (s *Turnstile) event(toRight bool) {
	command := byte(digiconToLeft)
	if toRight {
		command = digiconToRight
	}
	frame := digiconFrame(command)
	if s.opts.Resend == 0 {
		s.out.send(frame)
		return
	}
	s.queue = append(s.queue, frame)
	s.next()
}

// next says the next event when none waits for its acknowledgement; s.mu is held.
func (s *Turnstile) next() {
	if s.waiting != nil || len(s.queue) == 0 {
		return
	}
	s.waiting, s.queue, s.tries = s.queue[0], s.queue[1:], 0
	s.say()
}

func (s *Turnstile) say() {
	frame := s.waiting
	s.tries++
	s.out.send(frame)
	time.AfterFunc(s.opts.Resend, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.waiting) == 0 || &s.waiting[0] != &frame[0] {
			return // acknowledged
		}
		if s.tries < s.opts.Tries {
			s.say()
			return
		}
		s.waiting = nil
		s.next()
	})
}

func digiconFrame(commands ...byte) []byte {
	size := len(commands) + 1
	frame := append([]byte{0x02, byte(size), byte(size >> 8)}, commands...)
	return append(frame, xor(frame))
}

func (s *Turnstile) feed(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, p...)
	for len(s.pending) >= 3 {
		size := 3 + int(s.pending[1]) + int(s.pending[2])<<8
		if s.pending[0] != 0x02 || size < 5 || size > 64 {
			s.pending = s.pending[1:]
			continue
		}
		if len(s.pending) < size {
			return
		}
		frame := s.pending[:size]
		s.pending = s.pending[size:]
		if xor(frame[:size-1]) != frame[size-1] {
			s.refused++
			s.out.send(digiconFrame(digiconNACK))
			continue
		}
		switch frame[3] {
		case digiconACK:
			s.acked++
			s.waiting = nil
			s.next()
		case digiconNACK:
			if s.waiting != nil && s.tries < s.opts.Tries {
				s.tries++
				s.out.send(s.waiting)
			}
		case digiconRelease:
			s.released++
			s.out.send(digiconFrame(digiconACK))
		default:
			s.out.send(digiconFrame(digiconNACK))
		}
	}
}

// PowerCycle turns the turnstile off and on: what was not acknowledged is forgotten.
func (s *Turnstile) PowerCycle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending, s.waiting, s.queue = nil, nil, nil
}

// Released is how often the turnstile was released.
func (s *Turnstile) Released() int { s.mu.Lock(); defer s.mu.Unlock(); return s.released }

// Acked is how many acknowledgements came.
func (s *Turnstile) Acked() int { s.mu.Lock(); defer s.mu.Unlock(); return s.acked }

// Refused is how many frames came with a wrong check.
func (s *Turnstile) Refused() int { s.mu.Lock(); defer s.mu.Unlock(); return s.refused }

// Totals are everyone who ever passed, since the turnstile has no registers.
func (s *Turnstile) Totals() Passages { return s.Truth() }

// Truth is everyone who ever passed.
func (s *Turnstile) Truth() Passages { s.mu.Lock(); defer s.mu.Unlock(); return s.truth }
