package drivertest

import (
	"context"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
)

// A CoinDevice is a simulated coin acceptor, such as CoinAcceptor.
type CoinDevice interface {
	Run(ctx context.Context, line io.ReadWriter) error
	Insert(channel int) bool
	Takes(channel int) bool
	Trouble(code byte)
	Preset(counter byte)
	PowerCycle()
	Polls() int
	Truth() []int
}

// A CoinSuite is what every driver of a coin acceptor must pass: whatever happens on the line,
// on the disk or to the agent, the accepted coins are those that the acceptor has kept, in
// order, each once; and where it has forgotten some, the driver says how many are missed.
type CoinSuite struct {
	New    NewDriver
	On     NewDriverOn  // not nil: instead of New, on a FakePort instead of a pseudo-terminal
	Spec   drivers.Spec // Port is the suite's; Settings should make polls quick
	Device func(seed uint64) CoinDevice
	Seed   uint64        // of the faults; 0 = 1
	Wait   time.Duration // at most, for a coin; 0 = 15 s
}

// CoinConformance runs the suite: with On in virtual time, else in real time and all checks
// at once.
func CoinConformance(t *testing.T, s CoinSuite) { runSuite(t, s.On != nil, s.checks()) }

func (s CoinSuite) checks() []check {
	var all []check
	for _, f := range counterFaults {
		all = append(all, check{f.name, func(t testing.TB) {
			r := s.begin(t, nil)
			r.rig.line.Set(f.faults)
			for i := range 10 {
				r.insert(1 + i%6)
				r.expect()
			}
			r.rig.line.Set(Faults{})
			r.insert(5)
			r.expect()
		}})
	}
	return append(all,
		check{"several at once", func(t testing.TB) {
			r := s.begin(t, nil)
			for range 3 {
				for _, channel := range []int{6, 1, 1, 3, 2} { // as many as the acceptor remembers
					r.insert(channel)
				}
				r.expect()
			}
		}},
		check{"errors between", func(t testing.TB) {
			r := s.begin(t, nil)
			r.device.Trouble(1)
			r.insert(4)
			r.device.Trouble(2)
			r.expect()
		}},
		check{"wrap", func(t testing.TB) {
			device := s.Device(max(s.Seed, 1))
			device.Preset(249)
			r := s.begin(t, device)
			for i := range 12 {
				r.insert(1 + i%6)
				if i%3 == 2 {
					r.expect()
				}
			}
		}},
		check{"power cycle", func(t testing.TB) {
			r := s.begin(t, nil)
			for range 2 {
				r.insert(2)
				r.expect()
				r.device.PowerCycle()
				r.ready()
				r.insert(3)
				r.insert(3)
				r.expect()
			}
			r.rig.kill()
			r.device.PowerCycle()
			r.rig.start()
			r.ready()
			r.insert(4)
			r.expect()
		}},
		check{"lost polls", func(t testing.TB) {
			r := s.begin(t, nil)
			r.rig.line.Set(Faults{Silent: true})
			for range 8 { // it remembers five
				r.insert(6)
			}
			r.rig.line.Set(Faults{})
			r.missing(3)
		}},
		check{"silence", func(t testing.TB) {
			r := s.begin(t, nil)
			r.rig.line.Set(Faults{Silent: true})
			r.insert(1)
			r.insert(6)
			r.rig.host.Until(300*time.Millisecond, func() bool { return false })
			r.rig.line.Set(Faults{})
			r.expect()
		}},
		check{"hang-up", func(t testing.TB) {
			r := s.begin(t, nil)
			for range 2 {
				r.rig.hangUp()
				r.insert(1)
				r.insert(2)
				r.rig.plugIn()
				r.expect()
			}
		}},
		check{"disk full", func(t testing.TB) {
			r := s.begin(t, nil)
			r.rig.host.Refuse(true)
			r.insert(1)
			if !r.rig.host.Until(r.rig.wait, func() bool { return r.rig.host.Refused() > 0 }) {
				t.Fatalf("nothing was emitted while the disk was full (seed %d)", r.seed)
			}
			r.device.Insert(2) // a driver may let no coin in that it cannot write down
			r.device.Insert(3)
			r.rig.host.Refuse(false)
			r.expect()
		}},
		check{"restart", func(t testing.TB) {
			r := s.begin(t, nil)
			for range 2 {
				r.rig.kill()
				r.device.Insert(1) // a driver may let no coin in when it ends
				r.device.Insert(2)
				r.rig.start()
				r.ready()
				r.expect()
			}
		}},
		check{"crash", func(t testing.TB) {
			r := s.begin(t, nil)
			for range 2 {
				r.rig.hangUp() // so that the driver cannot say that it ends
				r.rig.kill()
				r.insert(1)
				r.insert(2)
				r.rig.plugIn()
				r.rig.start()
				r.expect()
			}
			r.rig.host.Refuse(true)
			r.insert(3)
			if !r.rig.host.Until(r.rig.wait, func() bool { return r.rig.host.Refused() > 0 }) {
				t.Fatalf("nothing was emitted while the disk was full (seed %d)", r.seed)
			}
			r.rig.kill()
			r.rig.host.Refuse(false)
			r.rig.start()
			r.expect()
		}},
		check{"cancel", func(t testing.TB) {
			r := s.begin(t, nil)
			r.rig.kill() // reports a Run that does not return
			r.rig.line.Set(Faults{Silent: true})
			r.rig.start()
			r.rig.kill()
			r.rig.hangUp()
			r.rig.start()
			r.rig.kill()
		}},
	)
}

// A coinRun is one check under way.
type coinRun struct {
	t      testing.TB
	rig    *rig
	device CoinDevice
	seed   uint64
}

// begin starts a driver on an acceptor (nil = a new one), and waits until it takes a coin and
// that is emitted.
func (s CoinSuite) begin(t testing.TB, device CoinDevice) *coinRun {
	t.Helper()
	seed, wait := max(s.Seed, 1), s.Wait
	if wait == 0 {
		wait = 15 * time.Second
	}
	if device == nil {
		device = s.Device(seed)
	}
	r := &coinRun{t: t, device: device, seed: seed, rig: newRig(t, s.New, s.On, s.Spec, device.Run, seed, wait)}
	r.rig.start()
	r.ready()
	r.insert(1)
	r.expect()
	return r
}

// ready waits until the acceptor takes coins, and the driver has asked for its events since.
func (r *coinRun) ready() {
	r.t.Helper()
	if !r.rig.host.Until(r.rig.wait, func() bool { return r.device.Takes(1) }) {
		r.t.Fatalf("the driver does not let the acceptor take coins; notes %v (seed %d)", r.rig.host.Notes(), r.seed)
	}
	polls := r.device.Polls()
	if !r.rig.host.Until(r.rig.wait, func() bool { return r.device.Polls() >= polls+3 }) {
		r.t.Fatalf("the driver does not ask for events; notes %v (seed %d)", r.rig.host.Notes(), r.seed)
	}
}

// insert throws in a coin that the acceptor must keep.
func (r *coinRun) insert(channel int) {
	r.t.Helper()
	if !r.device.Insert(channel) {
		r.t.Fatalf("the acceptor gives coin %d back; notes %v (seed %d)", channel, r.rig.host.Notes(), r.seed)
	}
}

// heard are the channels of the coins that were emitted, and how many were missed.
func (r *coinRun) heard() (channels []int, missed int64) {
	for _, e := range r.rig.host.Coins() {
		switch e.Event {
		case "accepted":
			channels = append(channels, e.Channel)
		case "missed":
			missed += e.Count
		}
	}
	return channels, missed
}

// expect waits until the coins that were emitted are the truth, and stay so a little while.
func (r *coinRun) expect() {
	r.t.Helper()
	good := func() bool {
		channels, missed := r.heard()
		return slices.Equal(channels, r.device.Truth()) && missed == 0
	}
	if !r.rig.host.Until(r.rig.wait, good) || r.rig.host.Until(quiet/3, func() bool { return !good() }) {
		channels, missed := r.heard()
		r.t.Fatalf("emitted %v, missed %d; kept %v; notes %v (seed %d)", channels, missed, r.device.Truth(), r.rig.host.Notes(), r.seed)
	}
}

// missing waits until all coins but n are emitted, and n are said to be missed: the oldest.
func (r *coinRun) missing(n int) {
	r.t.Helper()
	truth := r.device.Truth()
	good := func() bool {
		channels, missed := r.heard()
		return missed == int64(n) && len(channels) == len(truth)-n
	}
	if !r.rig.host.Until(r.rig.wait, good) || r.rig.host.Until(quiet, func() bool { return !good() }) {
		channels, missed := r.heard()
		r.t.Fatalf("emitted %v, missed %d; kept %v, of which %d are forgotten; notes %v (seed %d)", channels, missed, truth, n, r.rig.host.Notes(), r.seed)
	}
}
