package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers/serialport"
)

// A FakePort is a serial port in memory that has modem lines, which a pseudo-terminal has
// not. The driver opens it with Open; the simulator reads and writes the FakePort and moves
// the lines. It keeps virtual time (testing/synctest) and exists on every system.
type FakePort struct {
	name string

	mu       sync.Mutex // guards the fields below
	up       bool
	client   *fakeEnd // nil = nobody has it open
	config   serialport.Config
	in, out  []byte // towards the simulator, towards the driver
	lines    serialport.ModemLines
	outputs  Outputs
	watchers map[*watcher]bool
	stuck    bool
	expired  bool // a deadline that lies in the past
	opened   int
	looks    int           // at the lines, since the port was opened
	changed  chan struct{} // closed at each change of any field above
}

// Outputs are the lines that the driver's side moves.
type Outputs struct{ DTR, RTS bool }

// maxFake bounds what a FakePort holds for a side that does not read, in bytes; what comes
// after is lost.
const maxFake = 64 << 10

// NewFakePort makes a port that is plugged in, with all lines low.
func NewFakePort(name string) *FakePort {
	return &FakePort{name: name, up: true, changed: make(chan struct{})}
}

// change does something with the lock held and wakes everybody who waits.
func (p *FakePort) change(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	p.wake()
}

func (p *FakePort) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Open opens the port as serialport.Open does: one owner at a time, and both outputs rise
// for a moment whatever config says, as the system has it.
func (p *FakePort) Open(ctx context.Context, config serialport.Config) (serialport.Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.up {
		return nil, &serialport.Error{Op: "open", Port: config.Name, Err: fs.ErrNotExist}
	}
	if p.client != nil {
		return nil, &serialport.Error{Op: "open", Port: config.Name, Err: serialport.ErrBusy}
	}
	p.client, p.config, p.in, p.out, p.looks = &fakeEnd{port: p, name: config.Name}, config, nil, nil, 0
	p.opened++
	p.put(Outputs{DTR: true, RTS: true})
	p.put(Outputs{DTR: config.DTR != serialport.SignalOff, RTS: config.RTS != serialport.SignalOff})
	p.wake()
	return p.client, nil
}

// put moves the outputs and tells who watches; p.mu is held, so a watcher must not call p.
func (p *FakePort) put(o Outputs) {
	if p.outputs == o {
		return
	}
	p.outputs = o
	for w := range p.watchers {
		w.f(o, 0)
	}
}

type watcher struct{ f func(Outputs, time.Duration) }

// Watch calls f at each change of the outputs, and with the length of each break, until stop
// is called. F must not call the port.
func (p *FakePort) Watch(f func(o Outputs, broke time.Duration)) (stop func()) {
	w := &watcher{f}
	p.change(func() {
		if p.watchers == nil {
			p.watchers = map[*watcher]bool{}
		}
		p.watchers[w] = true
	})
	return func() { p.change(func() { delete(p.watchers, w) }) }
}

// Outputs are the levels of DTR and RTS; both are low while nobody has the port open.
func (p *FakePort) Outputs() Outputs { p.mu.Lock(); defer p.mu.Unlock(); return p.outputs }

// SetModemLines moves the lines that the driver reads.
func (p *FakePort) SetModemLines(lines serialport.ModemLines) { p.change(func() { p.lines = lines }) }

// Config is what the port was last opened with.
func (p *FakePort) Config() serialport.Config { p.mu.Lock(); defer p.mu.Unlock(); return p.config }

// Opened is how often the port was opened so far.
func (p *FakePort) Opened() int { p.mu.Lock(); defer p.mu.Unlock(); return p.opened }

// Listening says whether a driver has the port open; one that has looked at its lines must
// have done so a few times.
func (p *FakePort) Listening() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client != nil && (p.looks == 0 || p.looks > 3)
}

// SetStuck makes writes of the driver wait for ever, as flow control does when the device is
// off; or lets them through again.
func (p *FakePort) SetStuck(stuck bool) { p.change(func() { p.stuck = stuck }) }

// Path is the port's name in a Spec.
func (p *FakePort) Path() string { return p.name }

// HangUp pulls the plug: the driver's port is lost, and cannot be opened until Return.
func (p *FakePort) HangUp() error {
	p.change(func() {
		p.up = false
		if p.client != nil {
			p.client.lost, p.client = true, nil
		}
		p.put(Outputs{})
	})
	return nil
}

// Return puts the plug back.
func (p *FakePort) Return() error { p.change(func() { p.up = true }); return nil }

// Close hangs up for good.
func (p *FakePort) Close() error { return p.HangUp() }

// Serve calls run each time the port is plugged in, until ctx ends or run fails with another
// error than ErrHungUp.
func (p *FakePort) Serve(ctx context.Context, run func() error) error {
	for {
		p.mu.Lock()
		up, changed := p.up, p.changed
		p.mu.Unlock()
		if !up {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		err := run()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, ErrHungUp) {
			return err
		}
	}
}

// Read reads what the driver wrote; ErrHungUp while hung up.
func (p *FakePort) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		switch {
		case p.expired:
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case !p.up:
			p.mu.Unlock()
			return 0, ErrHungUp
		case len(p.in) > 0:
			n := copy(b, p.in)
			p.in = p.in[n:]
			p.mu.Unlock()
			return n, nil
		}
		changed := p.changed
		p.mu.Unlock()
		<-changed
	}
}

// Write sends to the driver; it is lost when nobody has the port open.
func (p *FakePort) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.up {
		return 0, ErrHungUp
	}
	if p.client != nil && len(p.out)+len(b) <= maxFake {
		p.out = append(p.out, b...)
		p.wake()
	}
	return len(b), nil
}

// SetDeadline knows two deadlines of reads: the zero time, and one that lies in the past.
func (p *FakePort) SetDeadline(t time.Time) error {
	p.change(func() { p.expired = !t.IsZero() })
	return nil
}

// A fakeEnd is the driver's side of a FakePort; port.mu guards its fields.
type fakeEnd struct {
	port   *FakePort
	name   string
	lost   bool
	closed bool
}

// fault is what ends every call; port.mu is held.
func (e *fakeEnd) fault(op string) error {
	switch {
	case e.closed:
		return &serialport.Error{Op: op, Port: e.name, Err: os.ErrClosed}
	case e.lost:
		return &serialport.Error{Op: op, Port: e.name, Err: serialport.ErrLost}
	}
	return nil
}

// await does something until it is done, the port fails, or ctx ends.
func (e *fakeEnd) await(ctx context.Context, op string, try func() bool) error {
	for {
		e.port.mu.Lock()
		err := e.fault(op)
		if err == nil {
			err = ctx.Err()
		}
		done := err == nil && try()
		changed := e.port.changed
		e.port.mu.Unlock()
		if err != nil || done {
			return err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// Read implements serialport.Port.
func (e *fakeEnd) Read(ctx context.Context, b []byte) (n int, err error) {
	err = e.await(ctx, "read", func() bool {
		n = copy(b, e.port.out)
		e.port.out = e.port.out[n:]
		return n > 0
	})
	return n, err
}

// Write implements serialport.Port.
func (e *fakeEnd) Write(ctx context.Context, b []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := e.await(ctx, "write", func() bool {
		if e.port.stuck {
			return false
		}
		if len(e.port.in)+len(b) <= maxFake {
			e.port.in = append(e.port.in, b...)
			e.port.wake()
		}
		return true
	})
	if err != nil && ctx.Err() != nil {
		return &serialport.Error{Op: "write", Port: e.name, Err: fmt.Errorf("%w: nothing takes the bytes: %w", serialport.ErrLost, ctx.Err())}
	}
	return err
}

// ModemLines implements serialport.Port.
func (e *fakeEnd) ModemLines() (lines serialport.ModemLines, err error) {
	e.port.mu.Lock()
	defer e.port.mu.Unlock()
	e.port.looks++
	return e.port.lines, e.fault("modem lines of")
}

// SetDTR moves DTR.
func (e *fakeEnd) SetDTR(on bool) error {
	return e.set("set DTR of", func(o *Outputs) { o.DTR = on })
}

// SetRTS moves RTS.
func (e *fakeEnd) SetRTS(on bool) error {
	return e.set("set RTS of", func(o *Outputs) { o.RTS = on })
}

func (e *fakeEnd) set(op string, move func(*Outputs)) error {
	e.port.mu.Lock()
	defer e.port.mu.Unlock()
	if err := e.fault(op); err != nil {
		return err
	}
	o := e.port.outputs
	move(&o)
	e.port.put(o)
	return nil
}

// Break holds the data line at its break level for d.
func (e *fakeEnd) Break(d time.Duration) error {
	e.port.mu.Lock()
	defer e.port.mu.Unlock()
	if err := e.fault("break on"); err != nil {
		return err
	}
	for w := range e.port.watchers {
		w.f(e.port.outputs, d)
	}
	return nil
}

// Close implements serialport.Port.
func (e *fakeEnd) Close() error {
	e.port.change(func() {
		e.closed = true
		if e.port.client == e {
			e.port.client = nil
			e.port.put(Outputs{})
		}
	})
	return nil
}

// A modemSide is what a simulator with modem lines needs of its line.
type modemSide interface {
	SetModemLines(lines serialport.ModemLines)
	Watch(f func(o Outputs, broke time.Duration)) (stop func())
	Outputs() Outputs
	Config() serialport.Config
}

// modemLines finds the modem lines of a line, beneath its faults; nil when it has none.
func modemLines(line io.ReadWriter) modemSide {
	if l, ok := line.(*FaultyLine); ok {
		line = l.line
	}
	side, _ := line.(modemSide)
	return side
}
