package drivertest

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers/serialport"
)

// A SerialDrawerKind is how a serial drawer is opened and how it says that it is open.
type SerialDrawerKind string

// The kinds of serial drawers.
const (
	// APG484A is the APG 484A SerialPRO II: BEL at any baud from 600 to 19200. It lives on DTR
	// and RTS, both high: it is ready 12 s after they rise, and again 6 s after an opening.
	APG484A SerialDrawerKind = "apg484a"
	// APG212A is the APG 212A Smart SerialPRO: "[[" at 9600 7O1, power of its own; it shares
	// its line with a printer or display.
	APG212A SerialDrawerKind = "apg212a"
	// MSKSI is the M-S/MMF KSI and, with Ctrl-G, KLIC: one character, or the same one twice.
	MSKSI SerialDrawerKind = "ksi"
	// MSKC is the M-S/MMF KC: opens on 100 ms of break level: a break, any data at 300 baud, or
	// 20 times 40.
	MSKC SerialDrawerKind = "kc"
	// MSKSC is the M-S/MMF KSC: any data open it.
	MSKSC SerialDrawerKind = "ksc"
	// IBMDrawer is the drawer port of SurePOS 500: BEL opens drawer 1, ESC BEL drawer 2, 06 is
	// answered with a byte whose bit 6 says that drawer 1 is open, ESC 06 lets it say that by
	// itself, checked every 500 ms.
	IBMDrawer SerialDrawerKind = "ibm"
	// RelayRTS and RelayDTR open with a pulse of the line on a relay, and at each rise of the
	// line that lasts.
	RelayRTS SerialDrawerKind = "rts"
	RelayDTR SerialDrawerKind = "dtr"
)

// SerialDrawerOptions shape a SerialDrawer.
type SerialDrawerOptions struct {
	Kind        SerialDrawerKind
	Open        []byte           // what opens it; nil = as its kind does
	Baud        int              // at another baud nothing is understood, where the line tells it; 0 = any
	Line        string           // the switch: cts, dsr, dcd or ri; "" = cts, none for IBMDrawer
	OpenLow     bool             // the line is low when the drawer is open; else high
	NoSwitch    bool             // the drawer has no switch: the line, or the status, never changes
	Warmup      time.Duration    // of APG484A; 0 = 12 s
	MinInterval time.Duration    // of APG484A; 0 = 6 s
	MinPulse    time.Duration    // of the relays; 0 = 50 ms
	MoveAfter   time.Duration    // from the command to the opening; 0 = 100 ms
	Now         func() time.Time // of the truth; nil = time.Now
}

// A SerialDrawer simulates a cash drawer with a serial interface of its own (APG 484A and 212A
// guides, M-S/MMF EP-125 manuals, IBM SurePOS 500 reference). All but IBMDrawer need a FakePort
// as their line, since their switch is on a modem line. Data that do not open are ignored.
type SerialDrawer struct {
	*cashbox
	opts SerialDrawerOptions
	out  *outbox
	wake chan struct{} // capacity 1

	signalling sync.Mutex // guards signals; the port holds its lock when it takes it
	signals    []signal

	mu      sync.Mutex // guards the fields below
	side    modemSide  // nil = no Run, or a line without modem lines
	outputs Outputs
	since   time.Time // the outputs give power
	rise    int       // how often the relay's line has risen
	kicked  time.Time
	tail    []byte
	ats     int // 40 in a row
	unasked bool
	ignored int
}

// A signal is a change of the outputs, or a break.
type signal struct {
	outputs Outputs
	broke   time.Duration
}

// NewSerialDrawer makes a closed drawer.
func NewSerialDrawer(opts SerialDrawerOptions) *SerialDrawer {
	if opts.Open == nil {
		opts.Open = map[SerialDrawerKind][]byte{APG484A: {0x07}, APG212A: {0x5B, 0x5B}, MSKSI: {0x07}, IBMDrawer: {0x07}}[opts.Kind]
	}
	if opts.Line == "" && opts.Kind != IBMDrawer {
		opts.Line = "cts"
	}
	for d, otherwise := range map[*time.Duration]time.Duration{
		&opts.Warmup: 12 * time.Second, &opts.MinInterval: 6 * time.Second,
		&opts.MinPulse: 50 * time.Millisecond, &opts.MoveAfter: 100 * time.Millisecond,
	} {
		if *d == 0 {
			*d = otherwise
		}
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	d := &SerialDrawer{cashbox: &cashbox{moveAfter: opts.MoveAfter, now: opts.Now}, opts: opts, out: newOutbox(), wake: make(chan struct{}, 1)}
	d.cashbox.changed = d.show
	return d
}

// Run speaks on the line until ctx ends or the line is lost.
func (d *SerialDrawer) Run(ctx context.Context, line io.ReadWriter) error {
	side := modemLines(line)
	d.mu.Lock()
	d.side = side
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.side = nil
	}()
	if side != nil {
		defer side.Watch(func(o Outputs, broke time.Duration) { d.signal(signal{o, broke}) })()
		d.signal(signal{outputs: side.Outputs()})
	}
	d.show()
	return d.out.serve(ctx, line, d.feed, d.tick)
}

// tick obeys the outputs, and says the status when it was told to.
func (d *SerialDrawer) tick(ctx context.Context) error {
	ticker := time.NewTicker(500 * time.Millisecond)
	defer ticker.Stop()
	said := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.wake:
			d.obey()
		case <-ticker.C:
			d.mu.Lock()
			if open := d.status(); d.unasked && (open != 0) != said {
				said = open != 0
				d.out.send([]byte{open})
			}
			d.mu.Unlock()
		}
	}
}

func (d *SerialDrawer) signal(s signal) {
	d.signalling.Lock()
	defer d.signalling.Unlock()
	d.signals = append(d.signals, s)
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// obey takes the signals that have come.
func (d *SerialDrawer) obey() {
	d.signalling.Lock()
	all := d.signals
	d.signals = nil
	d.signalling.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range all {
		if s.broke > 0 {
			if d.opts.Kind == MSKC && s.broke >= 100*time.Millisecond || d.opts.Kind == MSKSC {
				d.openNow()
			}
			continue
		}
		was, now := d.outputs, s.outputs
		d.outputs = now
		if now.DTR && now.RTS && (!was.DTR || !was.RTS) {
			d.since = time.Now()
		}
		if d.coil(now) == d.coil(was) {
			continue
		}
		d.rise++
		if rise := d.rise; d.coil(now) {
			time.AfterFunc(d.opts.MinPulse, func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				if d.rise == rise {
					d.openNow()
				}
			})
		}
	}
}

// coil is the level of the relay's line.
func (d *SerialDrawer) coil(o Outputs) bool {
	return d.opts.Kind == RelayRTS && o.RTS || d.opts.Kind == RelayDTR && o.DTR
}

// openNow opens the drawer if it is ready; d.mu is held.
func (d *SerialDrawer) openNow() {
	now := time.Now()
	if d.opts.Kind == APG484A && (now.Sub(d.kicked) < d.opts.MinInterval || d.side != nil &&
		(!d.outputs.DTR || !d.outputs.RTS || now.Sub(d.since) < d.opts.Warmup)) {
		d.ignored++
		return
	}
	d.kicked = now
	d.kick()
}

// status is IBM's status byte: bit 7 is 0, bit 6 is drawer 1.
func (d *SerialDrawer) status() byte { return bit(d.Opened() && !d.opts.NoSwitch, 6) }

// show moves the line of the switch.
func (d *SerialDrawer) show() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.side == nil || d.opts.Line == "" {
		return
	}
	level := (d.Opened() && !d.opts.NoSwitch) != d.opts.OpenLow
	var l serialport.ModemLines
	*map[string]*bool{"cts": &l.CTS, "dsr": &l.DSR, "dcd": &l.DCD, "ri": &l.RI}[d.opts.Line] = level
	d.side.SetModemLines(l)
}

func (d *SerialDrawer) feed(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	baud := 0
	if d.side != nil {
		baud = d.side.Config().Baud
	}
	switch d.opts.Kind {
	case MSKSC:
		d.openNow()
		return
	case MSKC:
		for _, b := range p {
			if d.ats++; b != 0x40 {
				d.ats = 0
			}
			if d.ats == 20 || baud == 300 {
				d.ats = 0
				d.openNow()
			}
		}
		return
	case RelayRTS, RelayDTR:
		return
	}
	if d.opts.Baud != 0 && baud != 0 && baud != d.opts.Baud {
		return
	}
	for _, b := range p {
		before := append([]byte(nil), d.tail...)
		d.tail = append(d.tail, b)
		if over := len(d.tail) - max(1, len(d.opts.Open)); over > 0 {
			d.tail = d.tail[over:]
		}
		escaped := bytes.HasSuffix(before, []byte{0x1B})
		switch {
		case d.opts.Kind == IBMDrawer && escaped && b == 0x07: // drawer 2, which is not there
		case d.opts.Kind == IBMDrawer && escaped && b == 0x06:
			d.unasked = !d.unasked
		case d.opts.Kind == IBMDrawer && b == 0x06:
			d.out.send([]byte{d.status()})
		case bytes.Equal(d.tail, d.opts.Open):
			d.tail = nil
			d.openNow()
		}
	}
}

// PowerCycle takes the drawer's power away and gives it back; it stays as it is.
func (d *SerialDrawer) PowerCycle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.since, d.tail, d.unasked = time.Now(), nil, false
}

// Ignored is how many commands came while the drawer was not ready.
func (d *SerialDrawer) Ignored() int { d.mu.Lock(); defer d.mu.Unlock(); return d.ignored }
