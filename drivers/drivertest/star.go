package drivertest

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"
)

// StarOptions shape a Star.
type StarOptions struct {
	OpenHigh  bool             // the switch's bit is 1 when the drawer is open; else 0, as the TSP700 manual has it
	NoSwitch  bool             // the drawer has no switch: its bit says closed for ever
	Device    int              // the drawer hangs on device 1 or 2; 0 = 1
	Size      int              // bytes of an automatic status: 7, 8 or 9; 0 = 7
	Auto      bool             // automatic status is on from the start, by DIP switch
	MoveAfter time.Duration    // from the kick to the opening; 0 = 150 ms
	PerByte   time.Duration    // printing time of a byte of text
	Now       func() time.Time // of the truth; nil = time.Now
}

// A Star simulates a Star printer in line mode with a cash drawer (TSP700 and TUP manuals). It
// obeys
//
//	BEL              kick device 1, after what is printed before it
//	FS, SUB or EM    kick device 1, or 2, at once (from memory of the manual)
//	ESC BEL n1 n2    the pulse's length
//	ESC GS BEL m t t kick device m, after what is printed before it
//	ENQ              one byte at once: 7 the switch, 5 buffer empty, 3 paper end, 2 error
//	EOT              one byte at once: paper, with bit 4 set and bit 0 clear
//	ESC ACK SOH      one status as below
//	ESC RS a n       automatic status on (n odd) or off: at once and at each change
//
// and prints everything else. A status is a header with its length, the version, and status 1:
// bit 2 the switch, 3 offline, 5 cover open. While automatic status is on, ENQ, EOT and ESC
// ACK SOH are not answered, since the manual forbids them.
type Star struct {
	*cashbox
	opts StarOptions
	out  *outbox

	mu     sync.Mutex // guards the fields below
	unread []byte
	queue  []job
	busy   bool
	text   bytes.Buffer
	auto   bool
	last   []byte
	cover  bool
	paper  bool // paper is out
	failed bool
}

// NewStar makes a printer that is online, with its drawer closed.
func NewStar(opts StarOptions) *Star {
	if opts.Device == 0 {
		opts.Device = 1
	}
	if opts.Size == 0 {
		opts.Size = 7
	}
	if opts.MoveAfter == 0 {
		opts.MoveAfter = 150 * time.Millisecond
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	s := &Star{cashbox: &cashbox{moveAfter: opts.MoveAfter, now: opts.Now}, opts: opts, out: newOutbox(), auto: opts.Auto}
	s.cashbox.changed = func() { s.change(func() {}) }
	s.last = s.status()
	return s
}

// Run speaks on the line until ctx ends or the line is lost.
func (s *Star) Run(ctx context.Context, line io.ReadWriter) error {
	return s.out.serve(ctx, line, s.feed, nil)
}

// SetCover opens or closes the cover; open is offline.
func (s *Star) SetCover(open bool) { s.change(func() { s.cover = open }) }

// SetPaperEnd takes the paper away or gives it back; without paper the printer is offline.
func (s *Star) SetPaperEnd(end bool) { s.change(func() { s.paper = end }) }

// SetError sets a mechanical error; the printer is offline.
func (s *Star) SetError(failed bool) { s.change(func() { s.failed = failed }) }

// PowerCycle turns the printer off and on: what waited is lost, and automatic status is as the
// DIP switch has it. The drawer stays as it is.
func (s *Star) PowerCycle() {
	s.change(func() { s.unread, s.queue, s.auto = nil, nil, s.opts.Auto })
}

// Printed is all text so far.
func (s *Star) Printed() string { s.mu.Lock(); defer s.mu.Unlock(); return s.text.String() }

func (s *Star) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	s.work()
	if now := s.status(); !bytes.Equal(now, s.last) {
		s.last = now
		if s.auto {
			s.out.send(now)
		}
	}
}

func (s *Star) isOffline() bool { return s.cover || s.paper || s.failed }

// closed is the switch's bit.
func (s *Star) closed() bool {
	open := s.Opened() && !s.opts.NoSwitch
	return open == s.opts.OpenHigh
}

// status is the automatic status. Where the bits beyond status 1 stand is not public.
func (s *Star) status() []byte {
	p := make([]byte, s.opts.Size)
	n := byte(s.opts.Size)
	p[0] = 0x01 | n&7<<1 | n>>3&1<<5
	p[1] = 0x06
	p[2] = bit(s.closed(), 2) | bit(s.isOffline(), 3) | bit(s.cover, 5)
	return p
}

func (s *Star) feed(b []byte) {
	s.change(func() {
		s.unread = append(s.unread, b...)
		for len(s.unread) > 0 {
			n := s.take(s.unread)
			if n == 0 {
				return
			}
			s.unread = s.unread[n:]
		}
	})
}

// take reads one command or byte of text from b and returns its length; 0 when the command is
// not complete. s.mu is held.
func (s *Star) take(b []byte) int {
	switch b[0] {
	case 0x07:
		s.queue = append(s.queue, job{do: func() { s.pulse(1) }})
		return 1
	case 0x1C:
		s.pulse(1)
		return 1
	case 0x19, 0x1A:
		s.pulse(2)
		return 1
	case 0x05:
		if !s.auto {
			s.out.send([]byte{bit(s.closed(), 7) | bit(len(s.queue) == 0, 5) | bit(s.paper, 3) | bit(s.failed, 2)})
		}
		return 1
	case 0x04:
		if !s.auto {
			s.out.send([]byte{0x10 | bit(s.paper, 3)})
		}
		return 1
	case 0x1B:
	default:
		s.queue = append(s.queue, job{text: b[0]})
		return 1
	}
	for _, command := range []struct {
		begin string
		size  int
		do    func(arg []byte)
	}{
		{"\x1B\x07", 4, func([]byte) {}},
		{"\x1B\x1D\x07", 6, func(arg []byte) {
			m := int(arg[0])
			s.queue = append(s.queue, job{do: func() { s.pulse(m) }})
		}},
		{"\x1B\x06\x01", 3, func([]byte) {
			if !s.auto {
				s.out.send(s.status())
			}
		}},
		{"\x1B\x1Ea", 4, func(arg []byte) {
			if s.auto = arg[0]&1 != 0; s.auto {
				s.last = s.status()
				s.out.send(s.last)
			}
		}},
		{"\x1B@", 2, func([]byte) {}},
	} {
		have := min(len(b), len(command.begin))
		switch {
		case string(b[:have]) != command.begin[:have]:
		case len(b) < command.size:
			return 0
		default:
			command.do(b[len(command.begin):command.size])
			return command.size
		}
	}
	s.queue = append(s.queue, job{text: b[0]})
	return 1
}

func (s *Star) pulse(device int) {
	if device == s.opts.Device {
		s.kick()
	}
}

// work prints and obeys what waits, in order, while the printer is online; s.mu is held.
func (s *Star) work() {
	for len(s.queue) > 0 && !s.busy && !s.isOffline() {
		next := s.queue[0]
		s.queue = s.queue[1:]
		if next.do != nil {
			next.do()
			continue
		}
		s.text.WriteByte(next.text)
		if s.opts.PerByte > 0 {
			s.busy = true
			time.AfterFunc(s.opts.PerByte, func() { s.change(func() { s.busy = false }) })
		}
	}
}
