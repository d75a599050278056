package checkout

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

// A memoryHost keeps what a driver emits.
type memoryHost struct {
	mu     sync.Mutex // guards what follows
	refuse bool
	state  []byte
	cash   []protocol.CashIn
	notes  map[string]int
	online int
}

func (h *memoryHost) Emit(_ context.Context, kind protocol.Kind, body any, state []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse {
		return errors.New("disk is full")
	}
	if c, ok := body.(protocol.CashIn); ok {
		if err := c.Validate(); err != nil || kind != protocol.KindCashIn {
			panic(fmt.Sprint(kind, err))
		}
		h.cash = append(h.cash, c)
	}
	if state != nil {
		h.state = state
	}
	return nil
}

func (h *memoryHost) State() ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state, nil
}

func (h *memoryHost) Online() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.online++
}

func (h *memoryHost) Note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.notes == nil {
		h.notes = map[string]int{}
	}
	h.notes[what]++
}

func (h *memoryHost) noted(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.notes[what]
}

func (h *memoryHost) Now() time.Time { return time.Now() }

func (h *memoryHost) setRefuse(refuse bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = refuse
}

// said are the cash records as "event/channel/amount/count".
func (h *memoryHost) said() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s []string
	for i, c := range h.cash {
		amount := ""
		if c.Amount != nil {
			amount = c.Amount.String()
		}
		s = append(s, fmt.Sprintf("%s/%d/%s/%d", c.Event, c.Channel, amount, c.Count))
		if c.Number != int64(i+1) {
			s = append(s, fmt.Sprintf("number %d is not %d", c.Number, i+1))
		}
	}
	return s
}

// A pipePort is a serial port whose other end is a net.Pipe.
type pipePort struct{ net.Conn }

func (p pipePort) Read(ctx context.Context, b []byte) (int, error) {
	p.SetReadDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { p.SetReadDeadline(time.Unix(1, 0)) })()
	n, err := p.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, ctx.Err()
	}
	return n, err
}

func (p pipePort) Write(ctx context.Context, b []byte) error {
	deadline, _ := ctx.Deadline()
	p.SetWriteDeadline(deadline)
	_, err := p.Conn.Write(b)
	return err
}

func (p pipePort) ModemLines() (serialport.ModemLines, error) {
	return serialport.ModemLines{}, serialport.ErrNoLines
}

type newDriver func(drivers.Spec, serialport.OpenFunc) (drivers.Driver, error)

// A rig runs a driver in a synctest bubble; answer is called with what the device is sent
// and returns what it says to that.
type rig struct {
	t      *testing.T
	driver drivers.Driver
	device net.Conn
	cancel context.CancelFunc
	done   chan error
	read   chan struct{} // closed when the device's end is gone

	mu  sync.Mutex // guards got
	got []byte
}

func start(t *testing.T, host *memoryHost, create newDriver, settings map[string]any, answer func([]byte) []byte) *rig {
	t.Helper()
	ours, theirs := net.Pipe()
	r := &rig{t: t, device: theirs, done: make(chan error, 1), read: make(chan struct{})}
	d, err := create(drivers.Spec{ID: "device1", Driver: "x", Port: "COM1", Settings: settings},
		func(context.Context, serialport.Config) (serialport.Port, error) { return pipePort{ours}, nil })
	if err != nil {
		t.Fatal(err)
	}
	r.driver = d
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() {
		defer close(r.read)
		for b := make([]byte, 256); ; {
			n, err := theirs.Read(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.got = append(r.got, b[:n]...)
			r.mu.Unlock()
			if answer != nil {
				if said := answer(slices.Clone(b[:n])); len(said) > 0 {
					theirs.Write(said)
				}
			}
		}
	}()
	go func() { r.done <- r.driver.Run(ctx, host) }()
	synctest.Wait()
	return r
}

func (r *rig) send(b ...byte) {
	r.t.Helper()
	if _, err := r.device.Write(b); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; !errors.Is(err, context.Canceled) {
		r.t.Errorf("Run = %v, want Canceled", err)
	}
	r.device.Close()
	<-r.read
}

// hangUp pulls the plug and wants Run to say so.
func (r *rig) hangUp() {
	r.t.Helper()
	r.device.Close()
	if err := <-r.done; err == nil || errors.Is(err, context.Canceled) {
		r.t.Errorf("Run = %v, want the port's error", err)
	}
	<-r.read
}

// expectFault wants err to be faults of which one names the field.
func expectFault(t *testing.T, err error, field string) {
	t.Helper()
	var faults protocol.Faults
	if !errors.As(err, &faults) || !slices.ContainsFunc(faults, func(f protocol.Fault) bool { return f.Field == field }) {
		t.Errorf("error = %v, want a fault of %s", err, field)
	}
}
