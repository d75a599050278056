package drivertest

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"
)

// PrinterOptions shape an ESC/POS printer with a cash drawer.
type PrinterOptions struct {
	OpenLow   bool             // the drawer's switch: pin 3 is low when it is open; else high
	NoSwitch  bool             // the drawer has no switch: pin 3 never changes
	Connector byte             // the drawer hangs on pin 2 (0) or pin 5 (1) of the kick-out
	MoveAfter time.Duration    // from the kick to the opening; 0 = 150 ms
	PerByte   time.Duration    // printing time of a byte of text
	Now       func() time.Time // of the truth; nil = time.Now
}

// The causes of a Movement.
const (
	MovedCommanded = "commanded"
	MovedKey       = "key"
)

// A Movement is one opening or closing of a simulated drawer.
type Movement struct {
	Open  bool   // opened; else closed
	Cause string // of an opening: commanded or key
	At    time.Time
}

// A Printer simulates an ESC/POS printer that has a cash drawer on its kick-out connector
// (Epson TM-T88III specification; Citizen and Bematech appendices on telling the answers
// apart). It obeys
//
//	ESC p m t1 t2    kick, after what is printed before it; waits while offline
//	DLE DC4 1 m t    kick at once, also offline; not in an error, not while a pulse runs
//	DLE EOT n        status at once: 1 printer, 2 cause of offline, 3 error, 4 paper
//	GS r n           1 paper, 2 pin 3 in bit 0; after what is printed before it
//	ESC u 0          pin 3 in bit 0 (older printers)
//	GS a n           automatic status: 4 bytes at once and at each change of what n names
//	GS v 0 m x x y y a raster image: x bytes by y lines, in which no byte is a command
//	ESC @            initialize: automatic status off
//
// and prints everything else. The pulse times are taken as they are; any pulse opens.
type Printer struct {
	opts PrinterOptions
	out  *outbox

	mu      sync.Mutex // guards the fields below
	unread  []byte     // bytes of a command that is not complete
	queue   []job      // what waits for the print head
	busy    bool       // the head is printing
	text    bytes.Buffer
	auto    byte // n of GS a
	last    [4]byte
	open    bool
	jammed  bool
	cover   bool
	paper   bool // paper is out
	offline bool // for another cause
	failed  bool // error status
	pulse   time.Time
	truth   []Movement
}

// A job is a byte of text or a buffered command.
type job struct {
	text byte
	do   func() // with p.mu held; nil = print text
}

// NewPrinter makes a printer that is online, with its drawer closed.
func NewPrinter(opts PrinterOptions) *Printer {
	if opts.MoveAfter == 0 {
		opts.MoveAfter = 150 * time.Millisecond
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Printer{opts: opts, out: newOutbox()}
}

// Run speaks on the line until ctx ends or the line is lost. The printer goes on printing
// what it has without a line.
func (p *Printer) Run(ctx context.Context, line io.ReadWriter) error {
	return p.out.serve(ctx, line, p.feed, nil)
}

// PushIn closes the drawer by hand.
func (p *Printer) PushIn() { p.change(func() { p.move(false, "") }) }

// KeyOpen opens the drawer with the key; a jam does not stop it.
func (p *Printer) KeyOpen() { p.change(func() { p.move(true, MovedKey) }) }

// SetJammed makes kicks do nothing, or work again.
func (p *Printer) SetJammed(jammed bool) { p.change(func() { p.jammed = jammed }) }

// SetCover opens or closes the cover; open is offline.
func (p *Printer) SetCover(open bool) { p.change(func() { p.cover = open }) }

// SetPaperEnd takes the paper away or gives it back; without paper the printer is offline.
func (p *Printer) SetPaperEnd(end bool) { p.change(func() { p.paper = end }) }

// SetOffline takes the printer offline for a cause of its own.
func (p *Printer) SetOffline(offline bool) { p.change(func() { p.offline = offline }) }

// SetError sets the error status; in it the real-time kick is ignored.
func (p *Printer) SetError(failed bool) { p.change(func() { p.failed = failed }) }

// PowerCycle turns the printer off and on: what waited is lost, automatic status is off. The
// drawer stays as it is.
func (p *Printer) PowerCycle() {
	p.change(func() { p.unread, p.queue, p.auto, p.pulse = nil, nil, 0, time.Time{} })
}

// Opened says whether the drawer is open.
func (p *Printer) Opened() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// Printed is all text so far.
func (p *Printer) Printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// Truth lists all movements of the drawer so far.
func (p *Printer) Truth() []Movement {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Movement(nil), p.truth...)
}

// change does something with the lock held, then prints what can be printed and says what
// has changed.
func (p *Printer) change(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	p.work()
	p.report()
}

// move moves the drawer; p.mu is held.
func (p *Printer) move(open bool, cause string) {
	if p.open == open {
		return
	}
	p.open = open
	p.truth = append(p.truth, Movement{Open: open, Cause: cause, At: p.opts.Now()})
}

// kick sends a pulse to a connector; p.mu is held.
func (p *Printer) kick(m byte, pulse time.Duration) {
	p.pulse = time.Now().Add(pulse)
	if m&1 != p.opts.Connector {
		return
	}
	time.AfterFunc(p.opts.MoveAfter, func() {
		p.change(func() {
			if !p.jammed {
				p.move(true, MovedCommanded)
			}
		})
	})
}

func (p *Printer) isOffline() bool { return p.offline || p.cover || p.paper || p.failed }

// pin3 is the level of the drawer's switch.
func (p *Printer) pin3() bool {
	open := p.open && !p.opts.NoSwitch
	return open != p.opts.OpenLow
}

func bit(on bool, n int) byte {
	if on {
		return 1 << n
	}
	return 0
}

// status is the automatic status: byte 1 is 0xx1xx00 with pin 3, offline, cover; the others
// have bits 4 and 7 clear. Byte 2 bit 5 (error) and byte 3 bits 2 and 3 (paper end) are from
// memory of Epson's table.
func (p *Printer) status() [4]byte {
	return [4]byte{
		0x10 | bit(p.pin3(), 2) | bit(p.isOffline(), 3) | bit(p.cover, 5),
		bit(p.failed, 5),
		bit(p.paper, 2) | bit(p.paper, 3),
		0,
	}
}

// report sends the automatic status when something that it is asked for has changed; p.mu
// is held.
func (p *Printer) report() {
	now := p.status()
	changed := p.auto&1 != 0 && (now[0]^p.last[0])&0x04 != 0 ||
		p.auto&2 != 0 && (now[0]^p.last[0])&0x28 != 0 ||
		p.auto&4 != 0 && now[1] != p.last[1] ||
		p.auto&8 != 0 && now[2] != p.last[2]
	p.last = now
	if changed {
		p.out.send(now[:])
	}
}

// realTime answers DLE EOT n: 0xx1xx10. Bits of 2, 3 and 4 other than cover open are from
// memory of Epson's table.
func (p *Printer) realTime(n byte) {
	switch n {
	case 1:
		p.out.send([]byte{0x12 | bit(p.pin3(), 2) | bit(p.isOffline(), 3)})
	case 2:
		p.out.send([]byte{0x12 | bit(p.cover, 2) | bit(p.paper, 5) | bit(p.failed, 6)})
	case 3:
		p.out.send([]byte{0x12 | bit(p.failed, 5)})
	case 4:
		p.out.send([]byte{0x12 | bit(p.paper, 5) | bit(p.paper, 6)})
	}
}

// feed takes what the client sends: real-time commands are obeyed as they arrive, the rest
// waits for the print head.
func (p *Printer) feed(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unread = append(p.unread, b...)
	for len(p.unread) > 0 {
		n := p.take(p.unread)
		if n == 0 {
			break
		}
		p.unread = p.unread[n:]
	}
	p.work()
	p.report()
}

const (
	dle, esc, gs = 0x10, 0x1B, 0x1D
)

// take reads one command or one byte of text from b and returns its length; 0 when the
// command is not complete. p.mu is held.
func (p *Printer) take(b []byte) int {
	if b[0] != dle && b[0] != esc && b[0] != gs {
		p.queue = append(p.queue, job{text: b[0]})
		return 1
	}
	if len(b) < 2 {
		return 0
	}
	if b[0] == gs && b[1] == 'v' {
		if len(b) < 8 {
			return 0
		}
		size := 8 + (int(b[4])|int(b[5])<<8)*(int(b[6])|int(b[7])<<8)
		if len(b) < size {
			return 0
		}
		for _, c := range b[:size] {
			p.queue = append(p.queue, job{text: c})
		}
		return size
	}
	size := map[[2]byte]int{
		{dle, 0x04}: 3, {dle, 0x14}: 5,
		{esc, 'p'}: 5, {esc, '@'}: 2, {esc, 'u'}: 3,
		{gs, 'r'}: 3, {gs, 'a'}: 3,
	}[[2]byte{b[0], b[1]}]
	switch {
	case size == 0: // another command: printed as it is
		p.queue = append(p.queue, job{text: b[0]})
		return 1
	case len(b) < size:
		return 0
	}
	switch arg := append([]byte(nil), b[2:size]...); {
	case b[0] == dle && b[1] == 0x04:
		p.realTime(arg[0])
	case b[0] == dle:
		if arg[0] == 1 && arg[1] <= 1 && arg[2] >= 1 && arg[2] <= 8 && !p.failed && !time.Now().Before(p.pulse) {
			p.kick(arg[1], time.Duration(arg[2])*100*time.Millisecond)
		}
	case b[1] == 'p':
		p.queue = append(p.queue, job{do: func() {
			if m := arg[0]; m <= 1 || m == '0' || m == '1' {
				p.kick(m&1, time.Duration(arg[1])*2*time.Millisecond)
			}
		}})
	case b[1] == '@':
		p.queue = append(p.queue, job{do: func() { p.auto = 0 }})
	case b[1] == 'u':
		p.queue = append(p.queue, job{do: func() { p.out.send([]byte{bit(p.pin3(), 0)}) }})
	case b[1] == 'r':
		p.queue = append(p.queue, job{do: func() {
			switch arg[0] {
			case 1, '1':
				p.out.send([]byte{bit(p.paper, 2) | bit(p.paper, 3)})
			case 2, '2':
				p.out.send([]byte{bit(p.pin3(), 0)})
			}
		}})
	case b[1] == 'a':
		p.queue = append(p.queue, job{do: func() {
			if p.auto = arg[0]; p.auto&0x0F != 0 {
				p.last = p.status()
				p.out.send(append([]byte(nil), p.last[:]...))
			}
		}})
	}
	return size
}

// work prints and obeys what waits, in order, while the printer is online; p.mu is held.
func (p *Printer) work() {
	for len(p.queue) > 0 && !p.busy && !p.isOffline() {
		next := p.queue[0]
		p.queue = p.queue[1:]
		if next.do != nil {
			next.do()
			continue
		}
		p.text.WriteByte(next.text)
		if p.opts.PerByte > 0 {
			p.busy = true
			time.AfterFunc(p.opts.PerByte, func() { p.change(func() { p.busy = false }) })
		}
	}
}
