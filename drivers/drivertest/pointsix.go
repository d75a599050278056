package drivertest

import (
	"context"
	"encoding/hex"
	"io"
	"strings"
	"sync"
	"time"
)

// PointSixOptions shape a PointSix.
type PointSixOptions struct {
	Serial     uint32        // 30 bits; 0 = 30864
	TextSum    bool          // the last byte sums up the characters (older manual); else the bytes
	Every      time.Duration // between packets; 0 = 100 ms
	Neighbours int           // other sensors that the same receiver hears
}

// A PointSix simulates the infrared beam sensor of Point Six as its receiver says it (Point
// Host manual, page 2): 14 bytes as 28 characters of hex and CR, again and again with the
// same total. The total has 24 bits and counts everybody who breaks the beam, whichever way.
// The CRC-16 is 1-Wire's by guess; the receiver has checked it already.
type PointSix struct {
	opts PointSixOptions
	out  *outbox

	mu      sync.Mutex // guards the fields below
	objects uint32     // 24 bits
	fringe  byte
	blocked bool
	seconds uint16 // blocked
	service bool
	truth   int64
}

// NewPointSix makes a sensor whose total is zero.
func NewPointSix(opts PointSixOptions) *PointSix {
	if opts.Serial == 0 {
		opts.Serial = 30864
	}
	if opts.Every == 0 {
		opts.Every = 100 * time.Millisecond
	}
	return &PointSix{opts: opts, out: newOutbox()}
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *PointSix) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, func([]byte) {}, func(ctx context.Context) error {
		ticker := time.NewTicker(s.opts.Every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
				s.say()
			}
		}
	})
}

// say queues a packet of the sensor, and one of each neighbour.
func (s *PointSix) say() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.opts.Neighbours {
		s.out.send(s.packet(0x11, s.opts.Serial+1+uint32(n), uint32(1000*n+777), 0, 0, false))
	}
	kind := byte(0x11)
	if s.service {
		kind = 0x10
	}
	s.out.send(s.packet(kind, s.opts.Serial, s.objects, s.fringe, s.seconds, s.blocked))
}

func (s *PointSix) packet(kind byte, serial, objects uint32, fringe byte, seconds uint16, blocked bool) []byte {
	flags := serial << 2
	if !blocked {
		flags |= 1
	}
	p := []byte{kind, byte(flags >> 24), byte(flags >> 16), byte(flags >> 8), byte(flags),
		byte(objects), byte(objects >> 8), byte(objects >> 16), fringe, byte(seconds), byte(seconds >> 8)}
	var crc uint16
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	p = append(p, byte(crc), byte(crc>>8))
	text := strings.ToUpper(hex.EncodeToString(p))
	summed := p
	if s.opts.TextSum {
		summed = []byte(text)
	}
	var sum byte
	for _, b := range summed {
		sum += b
	}
	return []byte(text + strings.ToUpper(hex.EncodeToString([]byte{sum})) + "\r")
}

// Walk lets people break the beam.
func (s *PointSix) Walk(in, out int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects = (s.objects + uint32(in+out)) & 0xFFFFFF
	s.truth += int64(in + out)
}

// PowerCycle is a press of the sensor's button: its total is zero.
func (s *PointSix) PowerCycle() { s.mu.Lock(); defer s.mu.Unlock(); s.objects = 0 }

// NearWrap sets the total so that it rolls over after so many people in; those who go out
// count too.
func (s *PointSix) NearWrap(in, _ int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects = 1<<24 - uint32(in)
}

// SetBlocked puts something into the beam for the seconds, or takes it away.
func (s *PointSix) SetBlocked(blocked bool, seconds uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked, s.seconds = blocked, seconds
}

// SetFringe sets the fringe counter; not 0 = the beam is not well aimed.
func (s *PointSix) SetFringe(n byte) { s.mu.Lock(); defer s.mu.Unlock(); s.fringe = n }

// SetService sets the service mode, in which packets have another ID.
func (s *PointSix) SetService(on bool) { s.mu.Lock(); defer s.mu.Unlock(); s.service = on }

// Totals have everybody in In.
func (s *PointSix) Totals() Passages {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Passages{In: int64(s.objects)}
}

// Truth has everybody who ever broke the beam in In.
func (s *PointSix) Truth() Passages { s.mu.Lock(); defer s.mu.Unlock(); return Passages{In: s.truth} }
