package drivertest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
)

// A ScaleDevice is a simulated scale, such as Scale.
type ScaleDevice interface {
	Run(ctx context.Context, line io.ReadWriter) error
	Place(milli int64)
	SetMoving(moving bool)
	SetBadParity(percent int)
	PowerCycle()
	Weight() (milli int64, ok bool)
}

// A ScaleSuite is what every driver of a scale must pass: whatever happens on the line, a
// weight that it gives is the one that lies on the scale when it is asked, at rest.
type ScaleSuite struct {
	New    NewDriver
	On     NewDriverOn  // not nil: instead of New, on a FakePort instead of a pseudo-terminal
	Spec   drivers.Spec // Port is the suite's
	Device func(seed uint64) ScaleDevice
	// Weigh asks the driver for the weight now, in thousandths; ok is false when there is
	// none, for a reason that the scale gave.
	Weigh func(ctx context.Context, driver drivers.Driver) (milli int64, ok bool, err error)
	Noise []byte        // bytes that the device never sends; nil = some that are no weight
	Seed  uint64        // of weights and faults; 0 = 1
	Wait  time.Duration // at most, for a weight; 0 = 15 s
}

// ScaleConformance runs the suite: with On in virtual time, else in real time and all checks
// at once.
func ScaleConformance(t *testing.T, s ScaleSuite) { runSuite(t, s.On != nil, s.checks()) }

func (s ScaleSuite) checks() []check {
	noise := s.Noise
	if noise == nil {
		noise = []byte{0x00, 0x15, 0x7F, 0x80, 0xFF, 'x'}
	}
	var all []check
	for _, f := range []struct {
		name   string
		faults Faults
	}{
		{"clean line", Faults{}},
		{"noise", Faults{Noise: 50, NoiseBytes: noise}},
		{"split frames", Faults{Split: true}},
		{"slow bytes", Faults{Slow: 2 * time.Millisecond}},
		{"joined frames", Faults{Join: 50 * time.Millisecond}},
		{"duplicates", Faults{Duplicate: 60}},
		{"echo", Faults{Echo: true}},
	} {
		all = append(all, check{f.name, func(t testing.TB) {
			r := s.begin(t)
			r.rig.line.Set(f.faults)
			for range 8 {
				r.place()
				r.expect()
			}
			if f.name != "clean line" && r.rig.line.Hits().faults() == 0 {
				t.Errorf("no fault has struck (seed %d)", r.seed)
			}
			r.rig.line.Set(Faults{})
			r.place()
			r.expect()
		}})
	}
	return append(all,
		check{"bad parity", func(t testing.TB) {
			r := s.begin(t)
			r.device.SetBadParity(60)
			for range 8 {
				r.place()
				r.expect()
			}
			r.device.SetBadParity(100)
			r.place()
			r.none("while every answer has bad parity")
			r.device.SetBadParity(0)
			r.expect()
		}},
		check{"motion", func(t testing.TB) {
			r := s.begin(t)
			r.device.SetMoving(true)
			r.place()
			r.none("in motion")
			r.device.SetMoving(false)
			r.expect()
		}},
		check{"no weight", func(t testing.TB) {
			r := s.begin(t)
			r.device.Place(-100)
			r.none("under zero")
			r.device.Place(1_000_000)
			r.none("over capacity")
			r.place()
			r.expect()
			r.device.PowerCycle()
			if _, ok := r.device.Weight(); !ok {
				r.none("switched on with a load")
			}
			r.device.Place(0)
			r.expect()
		}},
		check{"silence", func(t testing.TB) {
			r := s.begin(t)
			r.rig.line.Set(Faults{Silent: true})
			r.offline()
			r.rig.line.Set(Faults{})
			r.place()
			r.expect()
		}},
		check{"hang-up", func(t testing.TB) {
			r := s.begin(t)
			for range 2 {
				r.rig.hangUp()
				r.offline()
				r.rig.plugIn()
				r.place()
				r.expect()
			}
		}},
		check{"cancel", func(t testing.TB) {
			r := s.begin(t)
			r.rig.kill() // reports a Run that does not return
			r.offline()
			r.rig.line.Set(Faults{Silent: true})
			r.rig.start()
			r.rig.kill()
			r.rig.hangUp()
			r.rig.start()
			r.rig.kill()
		}},
	)
}

// A scaleRun is one check under way.
type scaleRun struct {
	t      testing.TB
	suite  ScaleSuite
	rig    *rig
	device ScaleDevice
	seed   uint64
	rng    *rand.Rand
}

// begin starts a driver and waits for its first weight.
func (s ScaleSuite) begin(t testing.TB) *scaleRun {
	t.Helper()
	seed, wait := max(s.Seed, 1), s.Wait
	if wait == 0 {
		wait = 15 * time.Second
	}
	device := s.Device(seed)
	r := &scaleRun{t: t, suite: s, device: device, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)),
		rig: newRig(t, s.New, s.On, s.Spec, device.Run, seed, wait)}
	r.rig.start()
	r.place()
	r.expect()
	return r
}

// place puts something on the scale that every scale can weigh, and that is too much for a new
// zero.
func (r *scaleRun) place() { r.device.Place(10 * (50 + r.rng.Int64N(900))) }

// weigh asks the driver once; it fails the test when it does not answer, or gives a weight that
// does not lie there.
func (r *scaleRun) weigh() (ok bool, err error) {
	r.t.Helper()
	type answer struct {
		milli int64
		ok    bool
		err   error
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.rig.wait)
	defer cancel()
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.milli, a.ok, a.err = r.suite.Weigh(ctx, r.rig.driver)
		answers <- a
	}()
	select {
	case a := <-answers:
		want, can := r.device.Weight()
		if a.err == nil && a.ok && (!can || a.milli != want) {
			r.t.Fatalf("the driver weighs %d; on the scale lies %d, at rest and in range: %t (seed %d)", a.milli, want, can, r.seed)
		}
		return a.ok, a.err
	case <-time.After(2 * r.rig.wait):
		r.t.Fatalf("Weigh has not returned %s after its ctx was done (seed %d)", r.rig.wait, r.seed)
		return false, nil
	}
}

// expect weighs until there is a weight.
func (r *scaleRun) expect() {
	r.t.Helper()
	var err error
	for end := time.Now().Add(r.rig.wait); time.Now().Before(end); {
		var ok bool
		if ok, err = r.weigh(); ok && err == nil {
			return
		}
		r.rig.host.Until(20*time.Millisecond, func() bool { return false })
	}
	want, _ := r.device.Weight()
	r.t.Fatalf("no weight came, and %d lies on the scale; last error %v; notes %v (seed %d)", want, err, r.rig.host.Notes(), r.seed)
}

// none weighs a few times; there must be no weight.
func (r *scaleRun) none(when string) {
	r.t.Helper()
	for range 4 {
		if ok, err := r.weigh(); ok && err == nil {
			r.t.Fatalf("there is a weight %s (seed %d)", when, r.seed)
		}
	}
}

// offline weighs until the driver says that the scale is not there.
func (r *scaleRun) offline() {
	r.t.Helper()
	var ok bool
	var err error
	for end := time.Now().Add(r.rig.wait); time.Now().Before(end); {
		if ok, err = r.weigh(); errors.Is(err, drivers.ErrOffline) {
			return
		}
		r.rig.host.Until(20*time.Millisecond, func() bool { return false })
	}
	r.t.Fatalf("Weigh of a scale that is not there: %t, %v, want ErrOffline (seed %d)", ok, err, r.seed)
}
