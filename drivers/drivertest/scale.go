package drivertest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// ScaleOptions shape a Scale.
type ScaleOptions struct {
	Capacity  int64         // in thousandths of the unit; 0 = 15000
	Decimals  int           // 3 for kg, 2 for lb; 0 = 3
	Answers   time.Duration // from the question to the answer; 0 = 20 ms
	Zero      bool          // says center of zero by its status instead of the weight 0
	ParityBit bool          // bit 7 carries even parity, as a line of 8 bits without parity reads it
	Seed      uint64        // of bad parity
}

// A Scale simulates a checkout scale that speaks Toledo 8217 (9600 7E1):
//
//	W        STX weight CR, or STX ? status CR
//	Z T C    zero, tare, clear the tare: no answer
//	E ... F  echo: E is answered STX E CR, then each byte comes back, until F is answered STX F CR
//
// The weight has 5 digits and a point; N follows when there is a tare. The bits of the status
// are from memory: 0 motion, 1 over capacity, 2 under zero, 3 outside the zero range, 4 center
// of zero, 5 net; 6 is always set.
type Scale struct {
	opts ScaleOptions
	out  *outbox

	mu      sync.Mutex // guards the fields below
	rng     *rand.Rand
	on      int64 // what lies on it
	zero    int64
	tare    int64
	moving  bool
	started bool // outside the zero range since it was switched on
	echo    bool
	bad     int // percent of answers with a character of bad parity
	asked   int
	spoiled int
}

// The bits of the status byte.
const (
	scaleMotion = 1 << iota
	scaleOver
	scaleUnder
	scaleOutside
	scaleCenter
	scaleNet
	scaleStatus
)

// NewScale makes a scale with nothing on it.
func NewScale(opts ScaleOptions) *Scale {
	if opts.Capacity == 0 {
		opts.Capacity = 15000
	}
	if opts.Decimals == 0 {
		opts.Decimals = 3
	}
	if opts.Answers == 0 {
		opts.Answers = 20 * time.Millisecond
	}
	return &Scale{opts: opts, out: newOutbox(), rng: rand.New(rand.NewPCG(opts.Seed, 6))}
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *Scale) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, s.feed, nil)
}

// Place puts so many thousandths of the unit on the scale instead of what lies there; less
// than nothing is a hand that lifts the plate.
func (s *Scale) Place(milli int64) { s.mu.Lock(); defer s.mu.Unlock(); s.on = milli }

// SetMoving sets the scale in motion, or lets it come to rest.
func (s *Scale) SetMoving(moving bool) { s.mu.Lock(); defer s.mu.Unlock(); s.moving = moving }

// SetBadParity spoils one character of so many percent of the answers: the line gives NUL for
// it, as the system does for a character whose parity is wrong.
func (s *Scale) SetBadParity(percent int) { s.mu.Lock(); defer s.mu.Unlock(); s.bad = percent }

// PowerCycle turns the scale off and on: what lies on it is its new zero, unless that is too
// much (2 % of the capacity): then it gives no weight until it is taken off.
func (s *Scale) PowerCycle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tare, s.echo = 0, false
	if s.started = s.on > s.opts.Capacity/50; !s.started {
		s.zero = s.on
	}
}

// Weight is what the scale would say, in thousandths of the unit; ok is false when it would
// give no weight.
func (s *Scale) Weight() (milli int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, milli := s.look()
	return milli, status&^(scaleStatus|scaleNet|scaleCenter) == 0
}

// Asked is how often the weight was asked for.
func (s *Scale) Asked() int { s.mu.Lock(); defer s.mu.Unlock(); return s.asked }

// Spoiled is how many answers had bad parity.
func (s *Scale) Spoiled() int { s.mu.Lock(); defer s.mu.Unlock(); return s.spoiled }

// look weighs; s.mu is held.
func (s *Scale) look() (status byte, milli int64) {
	if s.started && s.on <= s.opts.Capacity/50 {
		s.started, s.zero = false, s.on
	}
	gross := s.on - s.zero
	milli = gross - s.tare
	status = scaleStatus
	if s.moving {
		status |= scaleMotion
	}
	if gross > s.opts.Capacity {
		status |= scaleOver
	}
	if milli < 0 {
		status |= scaleUnder
	}
	if s.started {
		status |= scaleOutside
	}
	if s.tare != 0 {
		status |= scaleNet
	}
	if milli == 0 && s.opts.Zero {
		status |= scaleCenter
	}
	return status, milli
}

func (s *Scale) feed(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range p {
		b &= 0x7F
		if s.echo && b != 'F' {
			s.out.send(s.line([]byte{b}))
			continue
		}
		switch b {
		case 'W':
			s.asked++
			time.AfterFunc(s.opts.Answers, s.answer)
		case 'Z':
			if s.on < s.opts.Capacity/50 {
				s.zero = s.on
			}
		case 'T':
			s.tare = s.on - s.zero
		case 'C':
			s.tare = 0
		case 'E', 'F':
			s.echo = b == 'E'
			s.out.send(s.line([]byte{0x02, b, 0x0D}))
		}
	}
}

// answer says what lies on the scale now.
func (s *Scale) answer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, milli := s.look()
	frame := []byte{0x02, '?', status, 0x0D}
	if status&(scaleMotion|scaleOver|scaleUnder|scaleOutside|scaleCenter) == 0 {
		unit, value := int64(1000), milli
		if s.opts.Decimals == 2 {
			unit, value = 100, milli/10
		}
		net := ""
		if status&scaleNet != 0 {
			net = "N"
		}
		frame = fmt.Appendf(nil, "\x02%0*d.%0*d%s\r", 5-s.opts.Decimals, value/unit, s.opts.Decimals, value%unit, net)
	}
	frame = s.line(frame)
	if s.rng.IntN(100) < s.bad {
		frame[s.rng.IntN(len(frame))] = 0
		s.spoiled++
	}
	s.out.send(frame)
}

// line adds the parity bit where the line shows it.
func (s *Scale) line(p []byte) []byte {
	if !s.opts.ParityBit {
		return p
	}
	for i, b := range p {
		odd := byte(0)
		for n := range 7 {
			odd ^= b >> n & 1
		}
		p[i] = b | odd<<7
	}
	return p
}
