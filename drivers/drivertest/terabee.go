package drivertest

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// Passages are people who crossed a counting line.
type Passages struct{ In, Out int64 }

// TerabeeOptions shape a Terabee simulator; the zero value is the sensor of the 2021 manual
// at a light rate.
type TerabeeOptions struct {
	Sensor uint32        // sensor id of the long frame; 0 = 1
	Short  bool          // the 11-byte PC frame without sensor id (manual of 2020)
	Every  time.Duration // between distance frames; 0 = 100 ms, negative = none
	Seed   uint64        // of the distances
}

// A Terabee simulates the people counter TeraRanger Evo PPC (user manual 2021, pages 18 and
// 19): it streams distance frames and says its totals at each validated passage. Totals are
// 16 bits wide and begin at zero with the power. It obeys reset counters and reset presence;
// the other commands are read and not answered, since the form of their answers is not
// public.
type Terabee struct {
	opts TerabeeOptions
	out  *outbox

	mu       sync.Mutex // guards the fields below
	rng      *rand.Rand
	in, left uint16 // the registers
	net      int32
	truth    Passages
	pending  []byte // bytes of a command that is not complete
	refused  int
}

// NewTerabee makes a sensor that has just been powered.
func NewTerabee(opts TerabeeOptions) *Terabee {
	if opts.Sensor == 0 {
		opts.Sensor = 1
	}
	if opts.Every == 0 {
		opts.Every = 100 * time.Millisecond
	}
	return &Terabee{opts: opts, out: newOutbox(), rng: rand.New(rand.NewPCG(opts.Seed, 1))}
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *Terabee) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, s.feed, func(ctx context.Context) error {
		if s.opts.Every < 0 {
			return nil
		}
		ticker := time.NewTicker(s.opts.Every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
				s.mu.Lock()
				s.out.send(distanceFrame(uint16(1900+s.rng.IntN(100)), uint16(1900+s.rng.IntN(100))))
				s.mu.Unlock()
			}
		}
	})
}

// Walk lets people pass, one after the other; the sensor says so at each.
func (s *Terabee) Walk(in, out int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for in > 0 || out > 0 {
		if in > 0 {
			in--
			s.in++
			s.net++
			s.truth.In++
			s.say()
		}
		if out > 0 {
			out--
			s.left++
			s.net--
			s.truth.Out++
			s.say()
		}
	}
}

// PowerCycle takes the power away and gives it back: totals are zero and nothing is said
// until the next passage. (On USB the port goes too: hang the line up beside it.)
func (s *Terabee) PowerCycle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.left, s.net, s.pending = 0, 0, 0, nil
}

// Preset sets the registers, to bring them near their end.
func (s *Terabee) Preset(in, out uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.left = in, out
}

// NearWrap sets the registers so that they roll over after so many people.
func (s *Terabee) NearWrap(in, out int) { s.Preset(uint16(65536-in), uint16(65536-out)) }

// Totals are the registers as the sensor would say them.
func (s *Terabee) Totals() Passages {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Passages{int64(s.in), int64(s.left)}
}

// Truth is everyone who ever passed; no reset touches it.
func (s *Terabee) Truth() Passages {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.truth
}

// Refused is the number of commands with a wrong checksum.
func (s *Terabee) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// say queues a PC frame; s.mu is held.
func (s *Terabee) say() {
	frame := []byte("PC")
	if !s.opts.Short {
		frame = binary.BigEndian.AppendUint32(frame, s.opts.Sensor)
	}
	frame = binary.BigEndian.AppendUint32(frame, uint32(s.net))
	frame = binary.BigEndian.AppendUint16(frame, s.in)
	frame = binary.BigEndian.AppendUint16(frame, s.left)
	s.out.send(append(frame, crc8(frame)))
}

func distanceFrame(a, b uint16) []byte {
	frame := binary.BigEndian.AppendUint16([]byte("DD"), a)
	frame = binary.BigEndian.AppendUint16(frame, b)
	return append(frame, crc8(frame))
}

// crc8 has polynomial 0x07 and begins at 0, without reflection.
func crc8(p []byte) byte {
	var crc byte
	for _, b := range p {
		crc ^= b
		for range 8 {
			if crc&0x80 != 0 {
				crc = crc<<1 ^ 0x07
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// feed reads commands: 00, a group, an operation, for group 55 four more bytes, CRC-8.
func (s *Terabee) feed(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, p...)
	for len(s.pending) >= 2 {
		size := 0
		if s.pending[0] == 0x00 {
			switch s.pending[1] {
			case 0x55:
				size = 8
			case 0x11, 0x21, 0x61:
				size = 4
			}
		}
		if size == 0 {
			s.pending = s.pending[1:]
			continue
		}
		if len(s.pending) < size {
			return
		}
		command := s.pending[:size]
		if crc8(command[:size-1]) != command[size-1] {
			s.refused++
			s.pending = s.pending[1:]
			continue
		}
		s.pending = s.pending[size:]
		switch {
		case command[1] == 0x55 && command[2] == 0x08: // reset counters
			s.in, s.left, s.net = 0, 0, 0
			s.say()
		case command[1] == 0x55 && command[2] == 0x09: // reset presence
			s.net = 0
			s.say()
		}
	}
}
