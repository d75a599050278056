package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// LineCounterOptions shape a LineCounter.
type LineCounterOptions struct {
	// Uptime is how long the counter has been up when it is made; 0 = a day, so that a
	// reboot is seen in its uptime.
	Uptime time.Duration
}

// A LineCounter simulates a counter that speaks ASCII lines:
//
//	C,<seq>,<in>,<out>,<uptime s>*<XOR of all bytes before the star, 2 hex digits>\r\n
//
// on each passage and as the answer to R\r\n. Z\r\n sets the totals to zero and is answered
// in the same way. Seq counts the lines since the boot, from 1. Totals do not wrap.
type LineCounter struct {
	out *outbox

	mu      sync.Mutex // guards the fields below
	booted  time.Time
	seq     int64
	totals  Passages
	truth   Passages
	pending []byte // a command without its end
}

// NewLineCounter makes a counter whose totals are zero.
func NewLineCounter(opts LineCounterOptions) *LineCounter {
	if opts.Uptime == 0 {
		opts.Uptime = 24 * time.Hour
	}
	return &LineCounter{out: newOutbox(), booted: time.Now().Add(-opts.Uptime)}
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *LineCounter) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, s.feed, nil)
}

// Walk lets people pass, one after the other; the counter says so at each.
func (s *LineCounter) Walk(in, out int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for in > 0 || out > 0 {
		if in > 0 {
			in--
			s.totals.In++
			s.truth.In++
			s.say()
		}
		if out > 0 {
			out--
			s.totals.Out++
			s.truth.Out++
			s.say()
		}
	}
}

// PowerCycle reboots the counter: totals, seq and uptime begin at zero and nothing is said.
func (s *LineCounter) PowerCycle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totals, s.seq, s.booted, s.pending = Passages{}, 0, time.Now(), nil
}

// Totals are what the counter would say.
func (s *LineCounter) Totals() Passages {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.totals
}

// Truth is everyone who ever passed; neither Z nor a reboot touches it.
func (s *LineCounter) Truth() Passages {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.truth
}

// say queues a line; s.mu is held.
func (s *LineCounter) say() {
	s.seq++
	body := fmt.Sprintf("C,%d,%d,%d,%d", s.seq, s.totals.In, s.totals.Out, int64(time.Since(s.booted)/time.Second))
	s.out.send(fmt.Appendf(nil, "%s*%02X\r\n", body, xor([]byte(body))))
}

func xor(p []byte) (sum byte) {
	for _, b := range p {
		sum ^= b
	}
	return sum
}

// maxCommand bounds what is kept of a command without its end, in bytes.
const maxCommand = 16

func (s *LineCounter) feed(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, p...)
	for {
		command, rest, ok := bytes.Cut(s.pending, []byte("\r\n"))
		if !ok {
			break
		}
		s.pending = rest
		switch string(command) {
		case "R":
			s.say()
		case "Z":
			s.totals = Passages{}
			s.say()
		}
	}
	if len(s.pending) > maxCommand {
		s.pending = s.pending[len(s.pending)-maxCommand:]
	}
}
