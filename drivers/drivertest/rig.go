package drivertest

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// A NewDriver makes a driver for a spec, as the catalogue does.
type NewDriver func(spec drivers.Spec) (drivers.Driver, error)

// A NewDriverOn makes a driver that opens its port with open, as an entry of the catalogue
// does.
type NewDriverOn func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error)

// A socket is what a device is plugged into: a Pty or a FakePort.
type socket interface {
	io.ReadWriter
	Path() string
	SetDeadline(t time.Time) error
	HangUp() error
	Return() error
	Close() error
	Serve(ctx context.Context, run func() error) error
}

// plugIn gives a socket and how drivers are made on it: a FakePort when on is not nil, else a
// pseudo-terminal, which a driver of create opens by its path.
func plugIn(t testing.TB, create NewDriver, on NewDriverOn) (socket, NewDriver) {
	t.Helper()
	if on != nil {
		port := NewFakePort("memory")
		return port, func(spec drivers.Spec) (drivers.Driver, error) { return on(spec, port.Open) }
	}
	pty, err := OpenPty(filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Fatal(err)
	}
	return pty, create
}

// A rig is one simulator on a socket with faults, a recording host, and a driver
// that is run again whenever it returns, as the supervisor does.
type rig struct {
	t    testing.TB
	new  NewDriver
	spec drivers.Spec
	host *Host
	port socket
	line *FaultyLine
	wait time.Duration // at most, for anything that a driver has to do

	driver drivers.Driver
	stop   func() // ends the driver; nil when none runs
}

// newRig plugs the simulator in; no driver runs yet.
func newRig(t testing.TB, create NewDriver, on NewDriverOn, spec drivers.Spec, run func(context.Context, io.ReadWriter) error, seed uint64, wait time.Duration) *rig {
	t.Helper()
	port, create := plugIn(t, create, on)
	spec.Port = port.Path()
	if spec.ID == "" {
		spec.ID = "device1"
	}
	r := &rig{t: t, new: create, spec: spec, host: NewHost(), port: port, line: NewFaultyLine(port, seed), wait: wait}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- port.Serve(ctx, func() error { return run(ctx, r.line) }) }()
	t.Cleanup(func() {
		r.kill()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the simulator ended with %v (seed %d)", err, seed)
		}
		port.Close()
		if err := r.host.Err(); err != nil {
			t.Errorf("bad records: %v (seed %d)", err, seed)
		}
		if t.Failed() {
			t.Logf("seed %d, hits %+v, notes %v", seed, r.line.Hits(), r.host.Notes())
		}
	})
	return r
}

// start runs a new driver. It fails the test when the driver is no good.
func (r *rig) start() {
	r.t.Helper()
	driver, err := r.new(r.spec)
	if err != nil {
		r.t.Fatalf("new driver: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := driver.Run(ctx, r.host); err != nil && ctx.Err() == nil {
				r.host.Note("Run: " + err.Error())
			}
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	r.driver = driver
	r.stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(r.wait):
			r.t.Errorf("Run has not returned %s after its ctx was done (seed %d)", r.wait, r.line.Seed())
		}
	}
}

// listening waits until the driver has the port open, where that can be known.
func (r *rig) listening() {
	r.t.Helper()
	port, ok := r.port.(*FakePort)
	if ok && !r.host.Until(r.wait, port.Listening) {
		r.t.Fatalf("the driver does not open its port; notes %v (seed %d)", r.host.Notes(), r.line.Seed())
	}
}

// kill ends the driver, if one runs, and waits for its Run to return.
func (r *rig) kill() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
}

// faults counts the faults that have struck.
func (h Hits) faults() int {
	return h.Split + h.Held + h.Noise + h.Flipped + h.Dropped + h.Duplicated + h.Echoed + h.Silenced + h.Slowed
}

// hangUp pulls the plug.
func (r *rig) hangUp() {
	r.t.Helper()
	if err := r.port.HangUp(); err != nil {
		r.t.Fatalf("hang up: %v", err)
	}
}

// plugIn puts the plug back.
func (r *rig) plugIn() {
	r.t.Helper()
	if err := r.port.Return(); err != nil {
		r.t.Fatalf("plug in: %v", err)
	}
}

// runSuite runs all checks in virtual or in real time.
func runSuite(t *testing.T, virtual bool, checks []check) {
	if virtual {
		runVirtually(t, checks)
		return
	}
	runChecks(t, checks)
}
