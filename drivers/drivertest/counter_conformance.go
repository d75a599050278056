package drivertest

import (
	"context"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
)

// A CounterDevice is a simulated counter, such as Terabee. One whose totals roll over has
// NearWrap(in, out int) too, which sets them so that they do after so many people.
type CounterDevice interface {
	Run(ctx context.Context, line io.ReadWriter) error
	Walk(in, out int)
	PowerCycle()
	Totals() Passages
	Truth() Passages
}

// A CounterSuite is what every driver of a footfall counter must pass: whatever happens on
// the line, on the disk or to the agent, the sum of the emitted counts is the number of
// people who passed after the baseline, the counter's first reading.
type CounterSuite struct {
	New    NewDriver
	On     NewDriverOn                     // not nil: instead of New, on a FakePort instead of a pseudo-terminal
	Spec   drivers.Spec                    // Port is the suite's; Settings should make polls and emissions quick
	Device func(seed uint64) CounterDevice // a new simulator
	// Troubles are what else a device of this kind does wrong: each is set, people pass, and
	// it is ended again.
	Troubles []Trouble[CounterDevice]
	// Forgets says that the device keeps no totals: who passes while no driver listens is never
	// counted, and a frame that is lost or comes twice is a person. The suite then asks for
	// everybody who passed while the driver listened to a good line. It needs On.
	Forgets bool
	Seed    uint64        // of walks and faults; 0 = 1
	Wait    time.Duration // at most, for a sum to come right; 0 = 15 s
}

// A Trouble is something that goes wrong inside a simulated device.
type Trouble[Device any] struct {
	Name string
	Set  func(device Device, on bool)
}

// CounterConformance runs the suite: with On in virtual time, else in real time and all
// checks at once.
func CounterConformance(t *testing.T, s CounterSuite) {
	if s.On != nil {
		runVirtually(t, s.checks())
		return
	}
	runChecks(t, s.checks())
}

// counterFaults are the lines that a counter driver must cope with. Bytes are not dropped:
// a checksum of 8 bits lets one in 256 such frames through.
var counterFaults = []struct {
	name   string
	faults Faults
}{
	{"clean line", Faults{}},
	{"noise", Faults{Noise: 50}},
	{"split frames", Faults{Split: true}},
	{"slow bytes", Faults{Slow: 2 * time.Millisecond}},
	{"joined frames", Faults{Join: 50 * time.Millisecond}},
	{"bad checksums", Faults{Flip: 40}},
	{"duplicates", Faults{Duplicate: 50}},
	{"echo", Faults{Echo: true}},
	{"all at once", Faults{Split: true, Noise: 20, Flip: 20, Duplicate: 20, Echo: true}},
}

func (s CounterSuite) checks() []check {
	if s.Forgets {
		return s.forgetfulChecks()
	}
	var all []check
	for _, f := range counterFaults {
		all = append(all, check{f.name, func(t testing.TB) {
			c := s.begin(t, nil)
			c.rig.line.Set(f.faults)
			before := c.rig.line.Hits()
			struck := func() bool { // echo alone strikes only a driver that sends
				hits := c.rig.line.Hits()
				return hits.Frames >= before.Frames+20 &&
					(hits.faults() >= 1 || f.name == "clean line" || f.name == "echo")
			}
			for range 8 {
				c.walk()
			}
			if !c.nudge(struck) {
				t.Errorf("no fault has struck: %+v (seed %d)", c.rig.line.Hits(), c.seed)
			}
			c.rig.line.Set(Faults{})
			c.settle(f.name)
		}})
	}
	for _, trouble := range s.Troubles {
		all = append(all, check{trouble.Name, func(t testing.TB) {
			c := s.begin(t, nil)
			for range 2 {
				trouble.Set(c.device, true)
				for range 4 {
					c.walk()
					c.rig.host.Until(200*time.Millisecond, func() bool { return false })
				}
				trouble.Set(c.device, false)
				c.settle(trouble.Name)
			}
		}})
	}
	return append(all,
		check{"silence", func(t testing.TB) {
			c := s.begin(t, nil)
			c.rig.line.Set(Faults{Silent: true})
			c.walk()
			c.rig.host.Advance(time.Minute)
			c.walk()
			c.rig.line.Set(Faults{})
			c.settle("silence")
		}},
		check{"hang-up", func(t testing.TB) {
			c := s.begin(t, nil)
			for range 3 {
				c.walk()
				c.rig.hangUp()
				c.walk()
				c.rig.plugIn()
				c.settle("hang-up")
			}
		}},
		check{"power cycle", func(t testing.TB) {
			c := s.begin(t, nil)
			c.device.Walk(60, 60)
			c.settle("walks before the power cycle")
			c.rig.hangUp()
			c.device.PowerCycle()
			c.rig.plugIn()
			c.device.Walk(3, 2)
			c.settle("power cycle")
		}},
		check{"wrap", func(t testing.TB) {
			device := s.Device(s.seed())
			p, ok := device.(interface{ NearWrap(in, out int) })
			if !ok {
				t.Logf("the device's totals do not wrap")
				return
			}
			p.NearWrap(36, 6)
			high := device.Totals()
			c := s.begin(t, device)
			for range 8 {
				c.rig.host.Advance(20 * time.Second)
				c.device.Walk(5, 4)
				c.settle("wrap")
			}
			if got := device.Totals(); got.In >= high.In || got.Out >= high.Out {
				t.Errorf("the registers have not wrapped: %+v", got)
			}
		}},
		check{"disk full", func(t testing.TB) {
			c := s.begin(t, nil)
			c.rig.host.Refuse(true)
			if !c.nudge(func() bool { return c.rig.host.Refused() > 0 }) {
				t.Fatalf("nothing was emitted while the disk was full (seed %d)", c.seed)
			}
			for range 4 {
				c.walk()
			}
			c.rig.host.Refuse(false)
			c.settle("a full disk")
		}},
		check{"restart", func(t testing.TB) {
			c := s.begin(t, nil)
			for range 3 {
				c.walk()
				c.rig.kill()
				c.walk()
				c.rig.start()
				c.settle("restart")
			}
		}},
		check{"restart while the disk is full", func(t testing.TB) {
			c := s.begin(t, nil)
			c.rig.host.Refuse(true)
			if !c.nudge(func() bool { return c.rig.host.Refused() > 0 }) {
				t.Fatalf("nothing was emitted while the disk was full (seed %d)", c.seed)
			}
			c.rig.kill()
			c.rig.host.Refuse(false)
			c.rig.start()
			c.settle("restart while the disk was full")
		}},
		check{"cancel", func(t testing.TB) {
			c := s.begin(t, nil)
			c.rig.kill() // reports a Run that does not return
			c.rig.start()
			c.rig.kill()
			c.rig.line.Set(Faults{Silent: true})
			c.rig.start()
			c.rig.kill()
			c.rig.hangUp()
			c.rig.start()
			c.rig.kill()
		}},
	)
}

func (s CounterSuite) seed() uint64 {
	if s.Seed == 0 {
		return 1
	}
	return s.Seed
}

// A counterRun is one check under way.
type counterRun struct {
	t      testing.TB
	rig    *rig
	device CounterDevice
	seed   uint64
	rng    *rand.Rand
	base   Passages // who passed before the baseline
}

// prepare makes a check on a device (nil = a new one); no driver runs yet.
func (s CounterSuite) prepare(t testing.TB, device CounterDevice) *counterRun {
	t.Helper()
	seed, wait := s.seed(), s.Wait
	if wait == 0 {
		wait = 15 * time.Second
	}
	if device == nil {
		device = s.Device(seed)
	}
	return &counterRun{t: t, device: device, seed: seed, rng: rand.New(rand.NewPCG(seed, 2)),
		rig: newRig(t, s.New, s.On, s.Spec, device.Run, seed, wait)}
}

// begin starts a driver on a device (nil = a new one) and lets people pass until the driver
// has taken its baseline and emitted all since.
func (s CounterSuite) begin(t testing.TB, device CounterDevice) *counterRun {
	t.Helper()
	c := s.prepare(t, device)
	c.rig.start()
	walked := c.device.Truth()
	if !c.nudge(func() bool { return c.rig.host.Sum().In > 0 && c.current() }) {
		t.Fatalf("people pass and nothing is emitted, or not the counter's totals %+v; sum %+v, notes %v (seed %d)",
			c.device.Totals(), c.rig.host.Sum(), c.rig.host.Notes(), c.seed)
	}
	truth, sum := c.device.Truth(), c.rig.host.Sum()
	c.base = Passages{truth.In - sum.In, truth.Out - sum.Out}
	if c.base.In < walked.In || c.base.Out < walked.Out {
		t.Fatalf("emitted %+v, more than the %+v who passed (seed %d)", sum, truth, c.seed)
	}
	return c
}

// current says whether the last count carries the counter's totals.
func (c *counterRun) current() bool {
	counts, totals := c.rig.host.Counts(), c.device.Totals()
	if len(counts) == 0 {
		return false
	}
	last := counts[len(counts)-1]
	return last.RawIn == totals.In && last.RawOut == totals.Out
}

// walk lets a few people pass.
func (c *counterRun) walk() { c.device.Walk(c.rng.IntN(5), c.rng.IntN(4)) }

// nudge lets one person pass at a time until good holds: a counter that speaks only when
// somebody passes may have spoken while nobody listened.
func (c *counterRun) nudge(good func() bool) bool {
	for end := time.Now().Add(c.rig.wait); time.Now().Before(end); {
		c.device.Walk(1, 0)
		if c.rig.host.Until(500*time.Millisecond, good) {
			return true
		}
	}
	return false
}

// settle waits until the sum of what was emitted is the truth, and fails when it is not.
func (c *counterRun) settle(after string) {
	c.t.Helper()
	if !c.nudge(func() bool { return c.emitted() == c.passed() }) {
		c.t.Fatalf("after %s: emitted %+v, passed %+v; last counts %+v (seed %d)", after, c.emitted(), c.passed(), tail(c.rig.host.Counts(), 5), c.seed)
	}
}

func (c *counterRun) emitted() Passages { return c.rig.host.Sum() }

// passed is who passed since the baseline.
func (c *counterRun) passed() Passages {
	truth := c.device.Truth()
	return Passages{truth.In - c.base.In, truth.Out - c.base.Out}
}

func tail[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }
