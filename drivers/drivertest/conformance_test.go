//go:build linux

package drivertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// A toyCounter is a small driver of the line dialect, right unless a flaw is named.
type toyCounter struct {
	spec drivers.Spec
	flaw string
}

type toyState struct {
	At              time.Time
	In, Out, Uptime int64
}

func (d *toyCounter) Run(ctx context.Context, host drivers.Host) error {
	port, err := os.OpenFile(d.spec.Port, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	if d.flaw != "deaf" {
		defer context.AfterFunc(ctx, func() { port.Close() })()
	}
	var last *toyState
	if state, err := host.State(); err != nil {
		return err
	} else if state != nil && d.flaw != "forgetful" {
		last = new(toyState)
		if err := json.Unmarshal(state, last); err != nil {
			return err
		}
	}
	for lines := bufio.NewScanner(port); lines.Scan(); {
		line := lines.Bytes()
		if at := bytes.LastIndex(line, []byte("C,")); at > 0 {
			line = line[at:]
		}
		body, sum, _ := bytes.Cut(line, []byte("*"))
		var seq int64
		now := toyState{At: host.Now()}
		if n, _ := fmt.Sscanf(string(body), "C,%d,%d,%d,%d", &seq, &now.In, &now.Out, &now.Uptime); n != 4 ||
			d.flaw != "credulous" && fmt.Sprintf("%02X", xor(body)) != string(sum) {
			host.Note("noise")
			continue
		}
		if last == nil {
			last = &toyState{At: now.At, In: now.In, Out: now.Out, Uptime: now.Uptime}
		}
		count := protocol.FootfallCount{Counter: d.spec.ID, From: last.At, To: now.At,
			In: now.In - last.In, Out: now.Out - last.Out, RawIn: now.In, RawOut: now.Out, Quality: protocol.QualityOK}
		if now.Uptime < last.Uptime {
			count.In, count.Out, count.Quality = now.In, now.Out, protocol.QualityReset
		}
		if d.flaw == "double" && count.In == 0 && count.Out == 0 {
			count.In = 1 // takes each line for a passage
		}
		state, err := json.Marshal(now)
		if err != nil {
			return err
		}
		if err := host.Emit(ctx, protocol.KindFootfall, count, state); err != nil {
			if d.flaw == "lossy" {
				last = &now
			}
			continue
		}
		last = &now
	}
	return ctx.Err()
}

func toySuite(flaw string) CounterSuite {
	return CounterSuite{
		New:    func(spec drivers.Spec) (drivers.Driver, error) { return &toyCounter{spec, flaw}, nil },
		Device: func(uint64) CounterDevice { return NewLineCounter(LineCounterOptions{}) },
		Wait:   3 * time.Second,
	}
}

func TestCounterSuitePassesARightDriver(t *testing.T) {
	CounterConformance(t, toySuite(""))
}

func TestCounterSuiteCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"credulous", "bad checksums", "bad checksums"},
		{"double", "duplicates", "after duplicates"},
		{"lossy", "disk full", "after a full disk"},
		{"forgetful", "restart", "after restart"},
		{"deaf", "cancel", "Run has not returned"},
	} {
		t.Run(tt.flaw, func(t *testing.T) {
			t.Parallel()
			if said := complaints(t, toySuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}

// A toyDrawer is a small driver of an ESC/POS drawer whose open level is high, right unless
// a flaw is named.
type toyDrawer struct {
	spec drivers.Spec
	flaw string

	mu          sync.Mutex // guards the fields below
	port        *os.File   // nil while lost
	open, known bool
	command     *drivers.OpenCommand // under way
	due         time.Time            // the drawer has opened by then
	flat        int                  // kicks that moved nothing
	kept        []protocol.DrawerEvent
}

func (d *toyDrawer) Opened() (bool, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open, d.known && d.flat < 3
}

func (d *toyDrawer) Open(ctx context.Context, command drivers.OpenCommand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.port == nil && d.flaw != "absent" {
		return drivers.ErrOffline
	} else if d.port == nil {
		return nil
	}
	if _, err := d.port.Write([]byte{0x1B, 'p', 0, 50, 50}); err != nil && d.flaw != "absent" {
		return fmt.Errorf("%w: %w", drivers.ErrOffline, err)
	}
	d.command, d.due = &command, time.Now().Add(time.Second)
	return nil
}

func (d *toyDrawer) Run(ctx context.Context, host drivers.Host) error {
	port, err := os.OpenFile(d.spec.Port, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	defer context.AfterFunc(ctx, func() { port.Close() })()
	var wasOpen bool
	if state, err := host.State(); err != nil {
		return err
	} else if d.flaw != "forgetful" {
		wasOpen = string(state) == "open"
	}
	d.mu.Lock()
	d.open, d.known, d.port = wasOpen, false, port
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.port, d.known = nil, false
	}()
	lost := make(chan struct{})
	defer close(lost)
	go func() { // polls for ever: each answer is one byte
		for {
			if _, err := port.Write([]byte{0x10, 0x04, 0x01}); err != nil {
				return
			}
			select {
			case <-lost:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	buf := make([]byte, 64)
	for {
		n, err := port.Read(buf)
		for _, b := range buf[:n] {
			if b&0x93 == 0x12 || d.flaw == "credulous" {
				host.Online()
				d.see(ctx, host, b&4 != 0)
			}
		}
		if err != nil {
			return err
		}
	}
}

// see takes one reading of the switch and emits what it means, and what is still kept.
func (d *toyDrawer) see(ctx context.Context, host drivers.Host, open bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := protocol.DrawerEvent{Drawer: d.spec.ID, At: host.Now()}
	switch {
	case open == d.open && d.command != nil && time.Now().After(d.due):
		d.flat++
		e.Event, e.Reason, d.command = protocol.DrawerOpenFailed, d.command.Reason, nil
		if d.flaw == "silent" {
			e.Event = ""
		}
	case open == d.open:
	case !open:
		e.Event, d.flat = protocol.DrawerClosed, 0
	case d.command != nil && d.flaw != "blind":
		e.Event, e.Cause = protocol.DrawerOpened, protocol.CauseCommanded
		e.Reason, e.Reference, e.Operator = d.command.Reason, d.command.Reference, d.command.Operator
		d.command = nil
	default:
		e.Event, e.Cause = protocol.DrawerOpened, protocol.CauseManual
	}
	d.open, d.known = open, true
	if e.Event != "" {
		d.kept = append(d.kept, e)
	}
	for len(d.kept) > 0 {
		state := "closed"
		if d.kept[0].Event == protocol.DrawerOpened {
			state = "open"
		}
		if err := host.Emit(ctx, protocol.KindDrawer, d.kept[0], []byte(state)); err != nil && d.flaw != "lossy" {
			return
		}
		d.kept = d.kept[1:]
	}
}

func toyDrawerSuite(flaw string) DrawerSuite {
	return DrawerSuite{
		New:      func(spec drivers.Spec) (drivers.Driver, error) { return &toyDrawer{spec: spec, flaw: flaw}, nil },
		Device:   func(uint64) DrawerDevice { return NewPrinter(PrinterOptions{}) },
		NoSwitch: func(uint64) DrawerDevice { return NewPrinter(PrinterOptions{NoSwitch: true}) },
		Noise:    []byte{0x84, 0x8F, 0xFF, 0xF7},
		Wait:     4 * time.Second,
	}
}

func TestDrawerSuitePassesARightDriver(t *testing.T) {
	DrawerConformance(t, toyDrawerSuite(""))
}

func TestDrawerSuiteCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"credulous", "noise", "Event:opened"},
		{"blind", "clean line", "cause of [\"commanded\"]"},
		{"silent", "jammed drawer", "no openFailed event"},
		{"absent", "command while offline", "want ErrOffline"},
		{"lossy", "disk full", "Event:closed"},
		{"forgetful", "restart", "want {Drawer:device1 Event:closed"},
	} {
		t.Run(tt.flaw, func(t *testing.T) {
			t.Parallel()
			if said := complaints(t, toyDrawerSuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}
