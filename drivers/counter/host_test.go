package counter

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// A memoryHost accepts records in memory; its clock is time.Now, which a synctest bubble
// makes virtual.
type memoryHost struct {
	mu     sync.Mutex
	refuse bool
	state  []byte
	counts []protocol.FootfallCount
	states []protocol.DeviceState
	notes  map[string]int
	online int
}

var errRefused = errors.New("disk is full")

func (h *memoryHost) Emit(_ context.Context, kind protocol.Kind, body any, state []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse {
		return errRefused
	}
	switch b := body.(type) {
	case protocol.FootfallCount:
		if err := b.Validate(); err != nil || kind != protocol.KindFootfall {
			panic(err)
		}
		h.counts = append(h.counts, b)
	case protocol.DeviceState:
		h.states = append(h.states, b)
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

func (h *memoryHost) Now() time.Time { return time.Now() }

func (h *memoryHost) setRefuse(refuse bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = refuse
}

// taken returns the counts so far.
func (h *memoryHost) taken() []protocol.FootfallCount {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]protocol.FootfallCount(nil), h.counts...)
}

func sum(counts []protocol.FootfallCount) (in, out int64) {
	for _, c := range counts {
		in, out = in+c.In, out+c.Out
	}
	return in, out
}

// A pipePort is a serial port whose other end is a net.Pipe.
type pipePort struct{ net.Conn }

func (p pipePort) Read(ctx context.Context, b []byte) (int, error) {
	deadline, _ := ctx.Deadline()
	p.SetReadDeadline(deadline)
	n, err := p.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, context.DeadlineExceeded
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

// A rig runs a driver in a synctest bubble against a device that the test plays.
type rig struct {
	t      *testing.T
	host   *memoryHost
	device net.Conn
	cancel context.CancelFunc
	done   chan error
}

// start runs the driver that make makes.
func start(t *testing.T, host *memoryHost, driver func(serialport.OpenFunc) drivers.Driver) *rig {
	t.Helper()
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	r := &rig{t: t, host: host, device: theirs, cancel: cancel, done: make(chan error, 1)}
	d := driver(func(context.Context, serialport.Config) (serialport.Port, error) { return pipePort{ours}, nil })
	go func() { r.done <- d.Run(ctx, host) }()
	return r
}

func (r *rig) send(b []byte) {
	r.t.Helper()
	if _, err := r.device.Write(b); err != nil {
		r.t.Fatalf("send: %v; the driver ended with %v", err, <-r.done)
	}
}

// stop ends the driver and gives Run's error.
func (r *rig) stop() error {
	r.cancel()
	return <-r.done
}
