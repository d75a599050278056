// Package serialport opens serial ports by path, by id or by USB id, and gives them what
// go.bug.st/serial does not: reads and writes that end with their context, and errors that
// a driver can tell apart and a person can act on.
//
// What it hides, read in the source of go.bug.st/serial v1.8.0 and measured on ptys: a read
// that times out returns (0, nil); there is no write timeout, and a blocked write survives
// Close; a write after Close may hit a descriptor that was opened since; a port that is
// unplugged answers with PortClosed or with a bare errno; the library's own list of ports
// opens every /dev/ttyS*.
package serialport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"go.bug.st/serial"
)

// The causes that a caller may tell apart, beside fs.ErrNotExist, fs.ErrPermission and
// os.ErrClosed (after the caller's own Close).
var (
	ErrLost    = errors.New("port is lost")            // unplugged, hung up, or a write got stuck: close and open again
	ErrBusy    = errors.New("port is in use")          // by another program
	ErrSetting = errors.New("port refuses a setting")  // baud, bits, parity, signals
	ErrName    = errors.New("not one port's name")     // malformed, or fits several ports
	ErrNoLines = errors.New("port has no modem lines") // a pty, some adapters
)

// An Error says what was done to which port, and what a person can do about it.
type Error struct {
	Op   string // open, read, write, modem lines
	Port string // as configured
	Err  error
	Hint string // may be empty
}

func (e *Error) Error() string { return e.Op + " " + e.Port + ": " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Advice is the hint.
func (e *Error) Advice() string { return e.Hint }

// A Signal is the wished level of an output line; the zero Signal leaves it alone.
type Signal string

// The levels of DTR and RTS.
const (
	SignalOn  Signal = "on"
	SignalOff Signal = "off"
)

// A Config names a port and its line settings. Zero values mean 9600 8N1.
type Config struct {
	Name     string // path, COM3, by-id:NAME or usb:VID:PID[:SERIAL]
	Baud     int
	DataBits int    // 5..8
	Parity   string // none, odd, even, mark, space
	StopBits string // 1, 1.5, 2
	DTR, RTS Signal // unset: the system raises both. Setting one raises the other unless set too.
}

// A Port is an open port. One goroutine may read while another writes; each direction has
// one user at a time. After any error but a context's the port is to be closed.
type Port interface {
	// Read waits for at least one byte. It returns ctx's error when ctx ends first, which
	// leaves the port as good as before.
	Read(ctx context.Context, p []byte) (int, error)
	// Write hands all of p to the system. When ctx ends first it returns an error that is
	// both ErrLost and ctx's: part of p may be out, and the port must be opened again.
	Write(ctx context.Context, p []byte) error
	// ModemLines reads the input lines; ErrNoLines where there are none.
	ModemLines() (ModemLines, error)
	// Close ends a Read that waits. It may be called from anywhere and more than once.
	Close() error
}

// An OutputLines is a Port whose output lines can be moved; an open Port may be one. Errors
// are ErrNoLines where there are none.
type OutputLines interface {
	SetDTR(on bool) error
	SetRTS(on bool) error
}

// ModemLines are the levels of the input lines.
type ModemLines struct{ CTS, DSR, RI, DCD bool }

// An OpenFunc opens a port; Open is one, and tests have others.
type OpenFunc func(ctx context.Context, config Config) (Port, error)

const (
	readSlice  = 200 * time.Millisecond // how late a Read may notice that ctx was cancelled
	writeSlice = 512                    // bytes; fits into a buffer that Close has emptied
	closeGrace = 100 * time.Millisecond // for a write under way to end before Close
)

// Open finds the port that config names and opens it for this process alone. On Linux a
// process of root gets past that lock: do not run the agent as root.
func Open(ctx context.Context, config Config) (Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	mode, err := config.mode()
	if err != nil {
		return nil, &Error{Op: "open", Port: config.Name, Err: err}
	}
	path, err := Resolve(config.Name)
	if err != nil {
		return nil, explain(config.Name, err)
	}
	raw, err := serial.Open(path, mode)
	if err != nil {
		return nil, explain(config.Name, err)
	}
	return newPort(config.Name, raw), nil
}

func (c Config) mode() (*serial.Mode, error) {
	m := &serial.Mode{BaudRate: c.Baud, DataBits: c.DataBits}
	if m.BaudRate == 0 {
		m.BaudRate = 9600
	}
	if m.DataBits == 0 {
		m.DataBits = 8
	}
	var ok bool
	if m.Parity, ok = map[string]serial.Parity{"": serial.NoParity, "none": serial.NoParity, "odd": serial.OddParity,
		"even": serial.EvenParity, "mark": serial.MarkParity, "space": serial.SpaceParity}[c.Parity]; !ok {
		return nil, fmt.Errorf("%w: parity %q", ErrSetting, c.Parity)
	}
	if m.StopBits, ok = map[string]serial.StopBits{"": serial.OneStopBit, "1": serial.OneStopBit,
		"1.5": serial.OnePointFiveStopBits, "2": serial.TwoStopBits}[c.StopBits]; !ok {
		return nil, fmt.Errorf("%w: stop bits %q", ErrSetting, c.StopBits)
	}
	if c.DTR != "" || c.RTS != "" { // fails on ports without the lines, so only on demand
		m.InitialStatusBits = &serial.ModemOutputBits{DTR: c.DTR != SignalOff, RTS: c.RTS != SignalOff}
	}
	return m, nil
}

// explain gives the library's mixed errors of opening a port one form.
func explain(name string, err error) *Error {
	e := &Error{Op: "open", Port: name, Err: err}
	var pe *serial.PortError
	switch {
	case errors.Is(err, ErrName):
		e.Hint = "list the ports with the doctor command and take a name that fits one of them"
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = "is the device plugged in and switched on? by-id names survive a change of socket"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = permissionHint
	case !errors.As(err, &pe):
		e.Err = fmt.Errorf("%w: %w", ErrLost, err)
	default:
		switch pe.Code() {
		case serial.PortNotFound:
			e.Err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
			e.Hint = "is the device plugged in and switched on?"
		case serial.PermissionDenied:
			e.Err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
			e.Hint = permissionHint
		case serial.PortBusy:
			e.Err = fmt.Errorf("%w: %w", ErrBusy, err)
			e.Hint = "another program holds the port: close the till's own use of it, or the device's utility"
		case serial.InvalidSerialPort, serial.InvalidSpeed, serial.InvalidDataBits, serial.InvalidParity, serial.InvalidStopBits:
			e.Err = fmt.Errorf("%w: %w", ErrSetting, err)
			e.Hint = "not a serial port, or it cannot do this baud, parity, stop bits, dtr or rts"
		default:
			e.Err = fmt.Errorf("%w: %w", ErrLost, err)
		}
	}
	return e
}

const permissionHint = "run the agent as a user who may open serial ports: on Linux of the group dialout, on some systems uucp"

// A port is a Port over the library's.
type port struct {
	name string
	raw  serial.Port

	mu      sync.Mutex // guards what follows
	writing chan error // of the write under way, cap 1; nil = none
	stuck   bool       // a write was given up
	closed  bool
}

func newPort(name string, raw serial.Port) *port { return &port{name: name, raw: raw} }

// Read implements Port.
func (p *port) Read(ctx context.Context, buf []byte) (int, error) {
	if len(buf) == 0 {
		return 0, errors.New("read into an empty buffer")
	}
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		wait := readSlice
		if deadline, ok := ctx.Deadline(); ok {
			wait = min(wait, max(time.Until(deadline), time.Millisecond))
		}
		if err := p.raw.SetReadTimeout(wait); err != nil {
			return 0, p.lost("read", err)
		}
		n, err := p.raw.Read(buf)
		if n > 0 {
			return n, nil // an error comes again at the next Read
		}
		if err != nil {
			return 0, p.lost("read", err)
		}
	}
}

// Write implements Port.
func (p *port) Write(ctx context.Context, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	if p.closed || p.stuck {
		p.mu.Unlock()
		return p.lost("write", errors.New("an earlier write was given up"))
	}
	done := make(chan error, 1)
	p.writing = done
	p.mu.Unlock()
	go func() { done <- p.writeAll(data) }()
	select {
	case err := <-done:
		p.mu.Lock()
		p.writing = nil
		p.mu.Unlock()
		if err != nil {
			return p.lost("write", err)
		}
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		p.stuck = true
		p.mu.Unlock()
		return &Error{Op: "write", Port: p.name, Err: fmt.Errorf("%w: nothing takes the bytes: %w", ErrLost, ctx.Err()),
			Hint: "is the device switched on, and its flow control off?"}
	}
}

// writeAll writes on after the short writes that the library allows itself.
func (p *port) writeAll(data []byte) error {
	for len(data) > 0 {
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return os.ErrClosed // the descriptor may be another file's by now
		}
		n, err := p.raw.Write(data[:min(len(data), writeSlice)])
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("port takes nothing")
		}
		data = data[n:]
	}
	return nil
}

// ModemLines implements Port.
func (p *port) ModemLines() (ModemLines, error) {
	bits, err := p.raw.GetModemStatusBits()
	if err != nil {
		if noLines(err) {
			return ModemLines{}, &Error{Op: "modem lines of", Port: p.name, Err: fmt.Errorf("%w: %w", ErrNoLines, err)}
		}
		return ModemLines{}, p.lost("modem lines of", err)
	}
	return ModemLines{CTS: bits.CTS, DSR: bits.DSR, RI: bits.RI, DCD: bits.DCD}, nil
}

// SetDTR implements OutputLines.
func (p *port) SetDTR(on bool) error { return p.line("set DTR of", p.raw.SetDTR(on)) }

// SetRTS implements OutputLines.
func (p *port) SetRTS(on bool) error { return p.line("set RTS of", p.raw.SetRTS(on)) }

func (p *port) line(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case noLines(err):
		return &Error{Op: op, Port: p.name, Err: fmt.Errorf("%w: %w", ErrNoLines, err)}
	}
	return p.lost(op, err)
}

// Close implements Port. Throwing the system's output buffer away frees a write that is
// stuck on most hardware, and keeps the kernel from waiting for the buffer to drain. Where
// it does not, as on a pty, the write's goroutine lives until the other end drains the line
// or hangs up.
func (p *port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	writing := p.writing
	p.mu.Unlock()
	if writing != nil {
		_ = p.raw.ResetOutputBuffer() // where it does not help, closeGrace does
		select {
		case err := <-writing:
			writing <- err // for the Write that may still wait; cap 1
		case <-time.After(closeGrace):
		}
	}
	if err := p.raw.Close(); err != nil {
		return p.lost("close", err)
	}
	return nil
}

// lost is the error of a port that was good: everything but our own Close means that it has
// to be opened again.
func (p *port) lost(op string, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return &Error{Op: op, Port: p.name, Err: os.ErrClosed}
	}
	return &Error{Op: op, Port: p.name, Err: fmt.Errorf("%w: %w", ErrLost, err), Hint: "is the cable in, and the device switched on?"}
}
