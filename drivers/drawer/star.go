package drawer

import (
	"context"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// The wire of a Star printer in line mode, with a drawer at its peripheral connector. Star
// line mode specification, pages 58, 82, 184 and 186; TSP700, page 46. "Compulsion switch"
// is what the manuals call the drawer's switch.
const (
	starENQ = 0x05 // answered with one byte

	starSwitch     = 0x80 // of that byte: level of the switch; 0 is open in the TSP700's manual
	starENQZero    = 0x10 // is 0 in it
	starPaperEnd   = 0x08
	starMechanical = 0x04
	starFraming    = 0x03 // the printer could not read what it was sent

	starASBSwitch  = 0x04 // of the third byte of an automatic status, as are those below
	starASBOffline = 0x08
	starASBCover   = 0x20
	starASBMin     = 3 // bytes that we need of it
	starHeadMask   = 0x91
	starHead       = 0x01 // 0**0***1
	starRest       = 0x00 // 0**0***0, of all bytes behind the first
)

var starAskASB = []byte{0x1B, 0x06, 0x01} // ESC ACK SOH

// The ways to learn the status of a Star printer. ENQ is not to be used while the printer
// sends its status by itself.
const (
	starByENQ  = "enq"
	starByASB  = "asb"  // asked for, and by itself
	starByAuto = "auto" // by itself alone
	starByNone = "none"
)

// A StarStatus is one answer of a Star printer.
type StarStatus struct {
	High    bool // the switch's bit is set
	Offline bool // the printer does not print now
}

// starENQStatus reads the answer to ENQ.
func starENQStatus(b byte) (StarStatus, bool) {
	return StarStatus{High: b&starSwitch != 0, Offline: b&(starPaperEnd|starMechanical) != 0}, b&starENQZero == 0
}

// A StarCodec finds automatic statuses. Their first byte says how long they are.
type StarCodec struct {
	Noise int // bytes that belonged to none

	part  []byte
	began time.Time
}

// starLength is the number of bytes of the status that begins with b; 0 = none does.
func starLength(b byte) int {
	if b&starHeadMask != starHead {
		return 0
	}
	return int(b>>1&7 | b>>5&1<<3)
}

// Push takes bytes that arrived at a time. A status of which nothing more comes for 200 ms
// is dropped.
func (c *StarCodec) Push(data []byte, at time.Time) []StarStatus {
	var out []StarStatus
	if len(c.part) > 0 && at.Sub(c.began) > asbTimeout {
		c.Noise += len(c.part)
		c.part = nil
	}
	for _, b := range data {
		if b == xon || b == xoff {
			continue
		}
		if len(c.part) == 0 {
			if starLength(b) < starASBMin {
				c.Noise++
				continue
			}
			c.began = at
		} else if b&starHeadMask != starRest {
			c.Noise += len(c.part)
			c.part = nil
			if starLength(b) < starASBMin {
				c.Noise++
				continue
			}
			c.began = at
		}
		c.part = append(c.part, b)
		if len(c.part) == starLength(c.part[0]) {
			s := c.part[2]
			out = append(out, StarStatus{High: s&starASBSwitch != 0, Offline: s&(starASBOffline|starASBCover) != 0})
			c.part = nil
		}
	}
	return out
}

// A Star is the driver "star": a cash drawer at a Star printer whose port the agent owns.
type Star struct {
	drawer
	open      serialport.OpenFunc
	config    serialport.Config
	by        string
	setup     []byte // sent once
	command   []byte
	immediate bool
	every     time.Duration
}

// StarSettings are the keys of the driver.
func StarSettings() []drivers.Setting {
	return append(append([]drivers.Setting{
		{Name: "open", Type: drivers.TypeText, Default: `\a`, Help: `what opens the drawer: \a (BEL) the first one, after what is printed before it, \x1c (FS) the first at once, \x1a (SUB) the second; whether that waits is the model's own`},
		{Name: "immediate", Type: drivers.TypeBool, Default: false, Help: "that command works past the print buffer, also while the printer is offline"},
		{Name: "setup", Type: drivers.TypeText, Default: "", Help: `sent once after opening the port, such as \x1b\a\x14\x14 for a pulse and a pause of 20 times 10 ms; empty: nothing`},
		{Name: "status", Type: drivers.TypeChoice, Default: starByENQ, Choices: []string{starByENQ, starByASB, starByAuto, starByNone}, Help: "enq: asked with ENQ; asb: asked with ESC ACK SOH; auto: the printer's switches make it send by itself, and it is never asked; none: pulses only"},
		pollSetting(500 * time.Millisecond),
	}, levelSettings(levelLow)...), drivers.SerialSettings(9600)...)
}

// NewStar makes the driver; it is a drivers.Opener. Errors are protocol.Faults.
func NewStar(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, StarSettings())
	command, err := drivers.Unescape(v.Text("open"))
	if err != nil || len(command) == 0 {
		faults.Add("settings.open", `such as \a`, "want a command, got %q", v.Text("open"))
	}
	setup, err := drivers.Unescape(v.Text("setup"))
	if err != nil {
		faults.Add("settings.setup", "", "%s", err)
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	by := v.Text("status")
	return &Star{drawer: newDrawer(spec, v, by == starByNone), open: open, config: portConfig(spec, v),
		by: by, setup: setup, command: command, immediate: v.Bool("immediate"), every: v.Duration("poll")}, nil
}

// Run implements drivers.Driver.
func (d *Star) Run(ctx context.Context, host drivers.Host) error {
	if err := d.load(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open printer: %w", err)
	}
	w := &starPrinter{d: d, host: host, port: port, asker: asker{d: &d.drawer, plain: d.every, heard: host.Now()}}
	return d.serve(ctx, host, w, func() { port.Close() })
}

// A starPrinter is the wire of one Run.
type starPrinter struct {
	d       *Star
	host    drivers.Host
	port    serialport.Port
	codec   StarCodec
	waiting int         // ENQ that are not answered
	doubt   *StarStatus // another level than before: taken when the next answer agrees
	asker
	health
}

func (p *starPrinter) feed(ctx context.Context, chunks chan<- chunk) error {
	return read(ctx, p.host, p.port, chunks)
}

func (p *starPrinter) asks() bool { return p.d.by == starByENQ || p.d.by == starByASB }

func (p *starPrinter) begin(ctx context.Context) error {
	if len(p.d.setup) > 0 {
		if err := write(ctx, p.port, p.d.setup); err != nil {
			return err
		}
	}
	if !p.asks() {
		p.host.Online()
		return nil
	}
	return p.ask(ctx)
}

func (p *starPrinter) ask(ctx context.Context) error {
	p.asked = p.host.Now()
	if p.d.by == starByASB {
		return write(ctx, p.port, starAskASB)
	}
	p.waiting = 1 // an answer that has not come by now is not coming
	return write(ctx, p.port, []byte{starENQ})
}

func (p *starPrinter) wait(now time.Time) time.Duration {
	switch {
	case !p.asks():
		return time.Hour
	case p.doubt != nil && p.waiting == 0:
		return 0
	}
	return p.asker.wait(now)
}

func (p *starPrinter) due(ctx context.Context) error {
	if !p.asks() {
		return nil
	}
	now, err := p.asker.due(p.host.Now())
	if err != nil {
		return err
	}
	if now || p.doubt != nil && p.waiting == 0 {
		return p.ask(ctx)
	}
	return nil
}

// take reads what the printer sent.
func (p *starPrinter) take(ctx context.Context, c chunk) {
	switch p.d.by {
	case starByNone:
	case starByENQ:
		for _, b := range c.data {
			p.enq(ctx, b, c.at)
		}
	default:
		noise := p.codec.Noise
		for _, s := range p.codec.Push(c.data, c.at) {
			p.saw(ctx, s, c.at)
		}
		if p.codec.Noise > noise {
			p.host.Note("noise on the line")
		}
	}
}

// enq takes one byte. It has no checksum: only one that was asked for counts, and a level
// that is another than before counts when the next answer has it too.
func (p *starPrinter) enq(ctx context.Context, b byte, at time.Time) {
	s, ok := starENQStatus(b)
	if !ok || p.waiting == 0 {
		if b != xon && b != xoff {
			p.host.Note("noise on the line")
		}
		return
	}
	p.waiting--
	if b&starFraming != 0 {
		p.host.Note("the printer could not read what it was sent: check baud and parity")
	}
	m := &p.d.machine
	if m.seen && s.High != m.high && (p.doubt == nil || p.doubt.High != s.High) {
		p.doubt = &s
		return
	}
	p.doubt = nil
	p.saw(ctx, s, at)
}

func (p *starPrinter) saw(ctx context.Context, s StarStatus, at time.Time) {
	p.heard = at
	p.say(ctx, &p.d.drawer, p.host, s.Offline, at)
	p.d.machine.saw(s.High, at)
}

func (p *starPrinter) ready(time.Time) (time.Duration, error) {
	if p.offline && !p.d.immediate {
		return 0, p.refuse(&p.d.drawer)
	}
	return 0, nil
}

func (p *starPrinter) kick(ctx context.Context) (bool, error) {
	return true, write(ctx, p.port, p.d.command)
}
