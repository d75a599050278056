package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// A DrawerDevice is a simulated cash drawer, such as Printer.
type DrawerDevice interface {
	Run(ctx context.Context, line io.ReadWriter) error
	PushIn()
	KeyOpen()
	SetJammed(jammed bool)
	PowerCycle()
	Opened() bool
	Truth() []Movement
}

// A DrawerSuite is what every driver of a cash drawer must pass: whatever happens on the
// line, on the disk or to the agent, the opened and closed events are the movements of the
// drawer, in order, with their causes.
type DrawerSuite struct {
	New      NewDriver                      // of a drivers.Opener
	On       NewDriverOn                    // not nil: instead of New, on a FakePort instead of a pseudo-terminal
	Spec     drivers.Spec                   // Port is the suite's; Settings should make polls quick and name the switch's polarity
	Device   func(seed uint64) DrawerDevice // a new simulator
	NoSwitch func(seed uint64) DrawerDevice // a new simulator whose drawer has no switch; nil = there is none
	// Plug gives the spec of one check what it needs beside its port; nil = nothing.
	Plug  func(t testing.TB, spec drivers.Spec) drivers.Spec
	Noise []byte        // bytes that the device never sends
	Mute  bool          // the device sends no bytes: its switch is on a modem line
	Seed  uint64        // of the faults; 0 = 1
	Wait  time.Duration // at most, for an event; 0 = 15 s
}

// DrawerConformance runs the suite: with On in virtual time, else in real time and all checks
// at once.
func DrawerConformance(t *testing.T, s DrawerSuite) { runSuite(t, s.On != nil, s.checks()) }

func (s DrawerSuite) checks() []check {
	var all []check
	for _, f := range []struct {
		name   string
		faults Faults
	}{
		{"clean line", Faults{}},
		{"noise", Faults{Noise: 60, NoiseBytes: s.Noise}},
		{"split frames", Faults{Split: true}},
		{"slow bytes", Faults{Slow: 2 * time.Millisecond}},
		{"joined frames", Faults{Join: 50 * time.Millisecond}},
		{"duplicates", Faults{Duplicate: 60}},
	} {
		if f.name == "noise" && len(s.Noise) == 0 || s.Mute && f.name != "clean line" {
			continue
		}
		all = append(all, check{f.name, func(t testing.TB) {
			d := s.begin(t)
			d.rig.line.Set(f.faults)
			for i := range 2 {
				d.command(drivers.OpenCommand{Reason: "sale", Reference: fmt.Sprintf("1/2/2026-03-29/%d", i+1), Operator: "7"})
				d.push()
				d.key()
				d.push()
			}
			if f.name != "clean line" && d.rig.line.Hits().faults() == 0 {
				t.Errorf("no fault has struck (seed %d)", d.seed)
			}
			d.rig.line.Set(Faults{})
			d.key()
			d.done()
		}})
	}
	all = append(all,
		check{"jammed drawer", func(t testing.TB) {
			d := s.begin(t)
			d.device.SetJammed(true)
			if err := d.open(drivers.OpenCommand{Reason: "sale"}); err == nil {
				if !d.rig.host.Until(d.rig.wait, func() bool { return d.failures() > 0 }) {
					t.Errorf("a jammed drawer was commanded and no openFailed event came (seed %d)", d.seed)
				}
			}
			d.device.SetJammed(false)
			d.command(drivers.OpenCommand{Reason: "change"})
			d.push()
			d.done()
		}},
		check{"hang-up", func(t testing.TB) {
			d := s.begin(t)
			for range 2 {
				d.rig.hangUp()
				d.device.KeyOpen()
				d.rig.plugIn()
				d.expect(protocol.DrawerOpened, drivers.OpenCommand{}, protocol.CauseManual, protocol.CauseUnknown)
				d.rig.hangUp()
				d.device.PushIn()
				d.rig.plugIn()
				d.expect(protocol.DrawerClosed, drivers.OpenCommand{})
			}
			d.command(drivers.OpenCommand{Reason: "sale"})
			d.done()
		}},
		check{"power cycle", func(t testing.TB) {
			d := s.begin(t)
			d.device.PowerCycle()
			d.key()
			d.push()
			d.command(drivers.OpenCommand{Reason: "sale"})
			d.done()
		}},
		check{"command while offline", func(t testing.TB) {
			d := s.begin(t)
			d.rig.hangUp()
			if err := d.open(drivers.OpenCommand{Reason: "sale"}); !errors.Is(err, drivers.ErrOffline) {
				t.Errorf("Open of a drawer whose line is hung up: %v, want ErrOffline (seed %d)", err, d.seed)
			}
			d.rig.plugIn()
			d.device.KeyOpen() // perhaps before the driver is back
			d.expect(protocol.DrawerOpened, drivers.OpenCommand{}, protocol.CauseManual, protocol.CauseUnknown)
			d.done()
		}},
		check{"silence", func(t testing.TB) {
			d := s.begin(t)
			d.rig.line.Set(Faults{Silent: true})
			// It must return; the pulse is lost, if it is one that the line carries.
			if d.open(drivers.OpenCommand{Reason: "sale"}) == nil && !s.Mute {
				d.rig.host.Until(time.Second, func() bool { return d.rig.line.Hits().Silenced > 0 })
			}
			d.device.KeyOpen()
			d.rig.line.Set(Faults{})
			d.expect(protocol.DrawerOpened, drivers.OpenCommand{}, "") // the cause cannot be known
			d.push()
			d.key()
			d.done()
		}},
		check{"disk full", func(t testing.TB) {
			d := s.begin(t)
			d.rig.host.Refuse(true)
			d.device.KeyOpen()
			if !d.rig.host.Until(d.rig.wait, func() bool { return d.rig.host.Refused() > 0 }) {
				t.Fatalf("nothing was emitted while the disk was full (seed %d)", d.seed)
			}
			d.rig.host.Refuse(false)
			d.device.PushIn()
			d.expect(protocol.DrawerOpened, drivers.OpenCommand{}, protocol.CauseManual, protocol.CauseUnknown)
			d.expect(protocol.DrawerClosed, drivers.OpenCommand{})
			d.done()
		}},
		check{"restart", func(t testing.TB) {
			d := s.begin(t)
			d.key()
			d.restart(nil)
			d.push()
			d.restart(d.device.KeyOpen)
			d.expect(protocol.DrawerOpened, drivers.OpenCommand{}, protocol.CauseManual, protocol.CauseUnknown)
			d.restart(d.device.PushIn)
			d.expect(protocol.DrawerClosed, drivers.OpenCommand{})
			d.command(drivers.OpenCommand{Reason: "sale"})
			d.done()
		}},
		check{"cancel", func(t testing.TB) {
			d := s.begin(t)
			d.rig.kill() // reports a Run that does not return
			d.rig.line.Set(Faults{Silent: true})
			d.rig.start()
			d.rig.kill()
			d.rig.hangUp()
			d.rig.start()
			d.rig.kill()
		}})
	if s.NoSwitch != nil {
		all = append(all, check{"no switch", s.noSwitch})
	}
	return all
}

// noSwitch commands a drawer without a switch: in the end the driver must not claim to know
// whether it is open, and must not have invented anything.
func (s DrawerSuite) noSwitch(t testing.TB) {
	s.Device = s.NoSwitch
	d := s.plug(t)
	d.rig.start()
	if !d.rig.host.Until(d.rig.wait, func() bool { return d.rig.host.Onlines() > 0 }) {
		t.Fatalf("the driver never said that the drawer is online (seed %d)", d.seed)
	}
	unknown := func() bool { _, known := d.opener().Opened(); return !known }
	for range 10 {
		if err := d.open(drivers.OpenCommand{Reason: "sale"}); err != nil {
			t.Fatalf("open: %v (seed %d)", err, d.seed)
		}
		if !d.rig.host.Until(d.rig.wait, d.device.Opened) {
			t.Fatalf("the drawer has not opened (seed %d)", d.seed)
		}
		d.device.PushIn()
		d.rig.host.Until(4*time.Second, unknown) // a customer later
	}
	if !unknown() {
		t.Errorf("after 10 openings of a drawer without a switch Opened claims to know (seed %d)", d.seed)
	}
	for _, e := range d.rig.host.Events() {
		if e.Event == protocol.DrawerClosed || e.Event == protocol.DrawerOpened && e.Cause != protocol.CauseCommanded {
			t.Errorf("a drawer without a switch gave %+v (seed %d)", e, d.seed)
		}
	}
}

// A drawerRun is one check under way.
type drawerRun struct {
	t      testing.TB
	rig    *rig
	device DrawerDevice
	seed   uint64
	seen   int // movements that have been expected and seen
}

func (s DrawerSuite) plug(t testing.TB) *drawerRun {
	t.Helper()
	seed, wait := s.Seed, s.Wait
	if seed == 0 {
		seed = 1
	}
	if wait == 0 {
		wait = 15 * time.Second
	}
	device := s.Device(seed)
	if s.Plug != nil {
		s.Spec = s.Plug(t, s.Spec)
	}
	return &drawerRun{t: t, device: device, seed: seed, rig: newRig(t, s.New, s.On, s.Spec, device.Run, seed, wait)}
}

// begin starts a driver on a closed drawer and waits until it knows that it is closed.
func (s DrawerSuite) begin(t testing.TB) *drawerRun {
	t.Helper()
	d := s.plug(t)
	d.rig.start()
	d.agree()
	return d
}

func (d *drawerRun) opener() drivers.Opener {
	d.t.Helper()
	o, ok := d.rig.driver.(drivers.Opener)
	if !ok {
		d.t.Fatalf("%T is not a drivers.Opener", d.rig.driver)
	}
	return o
}

// agree waits until the driver says of the drawer what is true.
func (d *drawerRun) agree() {
	d.t.Helper()
	o := d.opener()
	if !d.rig.host.Until(d.rig.wait, func() bool {
		open, known := o.Opened()
		return known && open == d.device.Opened()
	}) {
		open, known := o.Opened()
		d.t.Fatalf("the drawer is open: %t; Opened says %t, known %t; notes %v (seed %d)",
			d.device.Opened(), open, known, d.rig.host.Notes(), d.seed)
	}
}

// open commands the drawer; it fails the test when Open does not return.
func (d *drawerRun) open(command drivers.OpenCommand) error {
	d.t.Helper()
	o := d.opener()
	ctx, cancel := context.WithTimeout(context.Background(), d.rig.wait)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- o.Open(ctx, command) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(2 * d.rig.wait):
		d.t.Fatalf("Open has not returned %s after its ctx was done (seed %d)", d.rig.wait, d.seed)
		return nil
	}
}

func (d *drawerRun) command(command drivers.OpenCommand) {
	d.t.Helper()
	if err := d.open(command); err != nil {
		d.t.Fatalf("open: %v (seed %d)", err, d.seed)
	}
	d.expect(protocol.DrawerOpened, command, protocol.CauseCommanded)
}

func (d *drawerRun) key() {
	d.t.Helper()
	d.device.KeyOpen()
	d.expect(protocol.DrawerOpened, drivers.OpenCommand{}, protocol.CauseManual)
}

func (d *drawerRun) push() {
	d.t.Helper()
	d.device.PushIn()
	d.expect(protocol.DrawerClosed, drivers.OpenCommand{})
}

// restart ends the driver, lets something happen, and starts a new one on the same state.
func (d *drawerRun) restart(meanwhile func()) {
	d.t.Helper()
	d.rig.kill()
	if meanwhile != nil {
		meanwhile()
	}
	d.rig.start()
	d.agree()
}

// moves are the opened and closed events.
func (d *drawerRun) moves() (moves []protocol.DrawerEvent) {
	for _, e := range d.rig.host.Events() {
		if e.Event == protocol.DrawerOpened || e.Event == protocol.DrawerClosed {
			moves = append(moves, e)
		}
	}
	return moves
}

func (d *drawerRun) failures() (n int) {
	for _, e := range d.rig.host.Events() {
		if e.Event == protocol.DrawerOpenFailed {
			n++
		}
	}
	return n
}

// expect waits for the next movement's event and compares it; no causes = closed, the cause
// "" = any cause and command.
func (d *drawerRun) expect(event string, command drivers.OpenCommand, causes ...string) {
	d.t.Helper()
	if !d.rig.host.Until(d.rig.wait, func() bool { return len(d.moves()) > d.seen }) {
		d.t.Fatalf("no %s event came; so far %+v; truth %+v; notes %v (seed %d)", event, d.rig.host.Events(), d.device.Truth(), d.rig.host.Notes(), d.seed)
	}
	got := d.moves()[d.seen]
	d.seen++
	want := protocol.DrawerEvent{Drawer: d.rig.spec.ID, Event: event, At: got.At, Cause: got.Cause, OpenMS: got.OpenMS,
		Reason: command.Reason, Reference: command.Reference, Operator: command.Operator}
	if slices.Contains(causes, "") {
		want.Reason, want.Reference, want.Operator = got.Reason, got.Reference, got.Operator
	}
	good := got.Drawer == want.Drawer && got.Event == want.Event && got.OpenMS >= 0
	if event == protocol.DrawerOpened { // a closing may repeat what the opening said
		good = good && got.Reason == want.Reason && got.Reference == want.Reference && got.Operator == want.Operator &&
			(slices.Contains(causes, "") || slices.Contains(causes, got.Cause))
	}
	if !good {
		d.t.Fatalf("got %+v, want %+v with a cause of %q (seed %d)", got, want, causes, d.seed)
	}
	d.agree()
}

// done compares all events with the truth, and listens a little longer for events of
// nothing.
func (d *drawerRun) done() {
	d.t.Helper()
	d.rig.host.Until(300*time.Millisecond, func() bool { return len(d.moves()) > d.seen })
	moves, truth := d.moves(), d.device.Truth()
	good := len(moves) == len(truth)
	for i := range min(len(moves), len(truth)) {
		good = good && (moves[i].Event == protocol.DrawerOpened) == truth[i].Open
	}
	if !good {
		d.t.Errorf("events %+v, truth %+v (seed %d)", moves, truth, d.seed)
	}
}
