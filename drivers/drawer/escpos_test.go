package drawer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

type memoryHost struct {
	mu     sync.Mutex
	refuse bool
	block  chan struct{} // not nil: Emit waits until it is closed
	state  []byte
	events []string
	faults []string
	notes  []string
	online int
}

func (h *memoryHost) Emit(_ context.Context, kind protocol.Kind, body any, state []byte) error {
	h.mu.Lock()
	block := h.block
	h.mu.Unlock()
	if block != nil {
		<-block
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse {
		return errors.New("disk is full")
	}
	switch b := body.(type) {
	case protocol.DrawerEvent:
		if err := b.Validate(); err != nil || kind != protocol.KindDrawer {
			panic(fmt.Sprint(kind, err))
		}
		h.events = append(h.events, fmt.Sprintf("%s/%s/%d/%s", b.Event, b.Cause, b.OpenMS, b.Reason))
	case protocol.DeviceState:
		h.faults = append(h.faults, b.State)
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
	h.notes = append(h.notes, what)
}

func (h *memoryHost) Now() time.Time { return time.Now() }

func (h *memoryHost) setRefuse(refuse bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = refuse
}

func (h *memoryHost) setBlock(block chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.block = block
}

func (h *memoryHost) said() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// A pipePort is a serial port whose other end is a net.Pipe.
type pipePort struct{ net.Conn }

func (p pipePort) Read(ctx context.Context, b []byte) (int, error) {
	defer context.AfterFunc(ctx, func() { p.SetReadDeadline(time.Unix(1, 0)) })()
	n, err := p.Conn.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, context.Cause(ctx)
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

// A rig runs the driver in a synctest bubble; got collects what the printer was sent.
type rig struct {
	t      *testing.T
	driver drivers.Driver
	device net.Conn
	cancel context.CancelFunc
	done   chan error

	mu  sync.Mutex
	got []byte
}

func start(t *testing.T, host *memoryHost, settings map[string]any) *rig {
	t.Helper()
	return startDriver(t, host, NewESCPOS, settings)
}

func startDriver(t *testing.T, host *memoryHost, create func(drivers.Spec, serialport.OpenFunc) (drivers.Driver, error), settings map[string]any) *rig {
	t.Helper()
	ours, theirs := net.Pipe()
	return startOn(t, host, create, settings, pipePort{ours}, theirs)
}

func startOn(t *testing.T, host *memoryHost, create func(drivers.Spec, serialport.OpenFunc) (drivers.Driver, error), settings map[string]any, port serialport.Port, theirs net.Conn) *rig {
	t.Helper()
	r := &rig{t: t, done: make(chan error, 1)}
	r.device = theirs
	d, err := create(drivers.Spec{ID: "drawer1", Driver: "escpos", Port: "COM1", Settings: settings},
		func(context.Context, serialport.Config) (serialport.Port, error) { return port, nil })
	if err != nil {
		t.Fatal(err)
	}
	r.driver = d
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() {
		for b := make([]byte, 64); ; {
			n, err := theirs.Read(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.got = append(r.got, b[:n]...)
			r.mu.Unlock()
		}
	}()
	go func() { r.done <- r.driver.Run(ctx, host) }()
	synctest.Wait()
	return r
}

func (r *rig) opener() drivers.Opener { return r.driver.(drivers.Opener) }

// sent is all that the device was sent.
func (r *rig) sent() []byte {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// expectFault wants err to be faults of which one names the field.
func expectFault(t *testing.T, err error, field string) {
	t.Helper()
	var faults protocol.Faults
	if !errors.As(err, &faults) || !slices.ContainsFunc(faults, func(f protocol.Fault) bool { return f.Field == field }) {
		t.Errorf("error = %v, want a fault of %s", err, field)
	}
}

func (r *rig) send(b ...byte) {
	r.t.Helper()
	if _, err := r.device.Write(b); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

// count says how often the printer was sent b.
func (r *rig) count(b []byte) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(string(r.got), string(b))
}

func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; !errors.Is(err, context.Canceled) {
		r.t.Errorf("Run = %v, want Canceled", err)
	}
	r.device.Close()
}

func TestRunOpensTheDrawerAndSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, map[string]any{"open_level": "high"})
		if r.count(asbEnable) != 1 || r.count(askStatus) != 1 {
			t.Errorf("the printer was sent % X, want ASB enabled and the status asked", r.got)
		}
		r.send(0x12)
		if err := r.opener().Open(t.Context(), sale); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if r.count([]byte{0x1B, 0x70, 0, 0x32, 0x32}) != 1 {
			t.Errorf("the printer was sent % X, want the pulse", r.got)
		}
		time.Sleep(150 * time.Millisecond) // virtual: the drawer moves
		r.send(0x14, 0, 0, 0)
		if open, known := r.opener().Opened(); !open || !known {
			t.Errorf("Opened = %t, %t, want it open", open, known)
		}
		time.Sleep(2 * time.Second)
		r.send(0x10, 0, 0, 0)
		r.stop()
		if want := []string{"opened/commanded/0/sale", "closed//2000/"}; !slices.Equal(host.said(), want) {
			t.Errorf("events = %q, want %q", host.said(), want)
		}
		if _, known := r.opener().Opened(); known {
			t.Error("known while offline")
		}
	})
}

func TestRunPollsUntilThePrinterSpeaksByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, nil)
		time.Sleep(10*time.Second + time.Millisecond)
		if n := r.count(askStatus); n != 11 {
			t.Errorf("asked %d times in 10 s, want 11", n)
		}
		r.send(0x10, 0, 0, 0)
		before := r.count(askStatus)
		time.Sleep(9 * time.Second)
		if n := r.count(askStatus) - before; n > 1 {
			t.Errorf("asked %d times in 9 s of a printer that speaks by itself", n)
		}
		r.stop()
	})
}

func TestAPrinterThatNeverAnswersIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, nil)
		err := <-r.done
		var fault *drivers.Fault
		if !errors.Is(err, ErrSilent) || !errors.As(err, &fault) || fault.Hint == "" || host.online != 0 {
			t.Errorf("Run = %v with %d signs of life, want ErrSilent with a hint", err, host.online)
		}
		if err := r.opener().Open(t.Context(), sale); !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Open = %v, want ErrOffline", err)
		}
		r.device.Close()
	})
}

func TestWithoutStatusThePulseIsTheEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, map[string]any{"status": false, "pin": 5, "realtime": true})
		time.Sleep(time.Hour)
		if err := r.opener().Open(t.Context(), sale); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if string(r.got) != "\x10\x14\x01\x01\x01" || host.online == 0 {
			t.Errorf("sent % X, online %d, want the pulse alone, and online", r.got, host.online)
		}
		if _, known := r.opener().Opened(); known {
			t.Error("known without a status")
		}
		r.stop()
		if want := []string{"opened/commanded/0/sale"}; !slices.Equal(host.said(), want) {
			t.Errorf("events = %q, want %q", host.said(), want)
		}
	})
}

func TestAnOfflinePrinterKeepsNoPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, map[string]any{"open_level": "high"})
		r.send(0x18, 0, 0, 0)
		r.send(0x18, 0, 0, 0)
		err := r.opener().Open(t.Context(), sale)
		var fault *drivers.Fault
		if !errors.Is(err, drivers.ErrOffline) || !errors.As(err, &fault) || fault.Hint == "" {
			t.Errorf("Open = %v, want ErrOffline with a hint", err)
		}
		if r.count([]byte{0x1B, 0x70}) != 0 {
			t.Error("a pulse was left in the printer's buffer")
		}
		if want := []string{protocol.DeviceFault}; !slices.Equal(host.faults, want) {
			t.Errorf("faults = %q, want one", host.faults)
		}
		r.send(0x10, 0, 0, 0)
		if err := r.opener().Open(t.Context(), sale); err != nil {
			t.Errorf("Open after the paper was changed = %v", err)
		}
		r.stop()
	})
}

func TestEventsWaitForTheDiskInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, map[string]any{"open_level": "high"})
		r.send(0x10, 0, 0, 0)
		host.setRefuse(true)
		r.send(0x14, 0, 0, 0)
		time.Sleep(3 * time.Second)
		r.send(0x10, 0, 0, 0)
		host.setRefuse(false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if want := []string{"opened/manual/0/", "closed//3000/"}; !slices.Equal(host.said(), want) {
			t.Errorf("events = %q, want %q", host.said(), want)
		}
		r.stop()
	})
}

func TestAnOpenDrawerSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, map[string]any{"open_level": "high"})
		r.send(0x10, 0, 0, 0)
		r.send(0x14, 0, 0, 0)
		r.stop()
		time.Sleep(10 * time.Second)
		r = start(t, host, map[string]any{"open_level": "high"})
		r.send(0x16)
		r.send(0x12)
		r.stop()
		if want := []string{"opened/manual/0/", "closed//10000/"}; !slices.Equal(host.said(), want) {
			t.Errorf("events = %q, want %q", host.said(), want)
		}
	})
}

func TestALostPortEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, nil)
		r.device.Close()
		if err := <-r.done; err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want the port's error", err)
		}
	})
}
