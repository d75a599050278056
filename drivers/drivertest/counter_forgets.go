package drivertest

import (
	"testing"
	"time"
)

// forgetfulChecks are the suite for devices that keep no totals. People pass only while the
// driver listens, and what it has heard is emitted before anything is taken away from it.
func (s CounterSuite) forgetfulChecks() []check {
	var all []check
	for _, f := range counterFaults {
		if f.faults.Flip > 0 || f.faults.Duplicate > 0 {
			continue // one frame is one person
		}
		all = append(all, check{f.name, func(t testing.TB) {
			c := s.listen(t)
			c.rig.line.Set(f.faults)
			for range 8 {
				c.walk()
			}
			c.arrive(f.name)
			c.rig.line.Set(Faults{})
			c.arrive("the end of " + f.name)
		}})
	}
	for _, trouble := range s.Troubles {
		all = append(all, check{trouble.Name, func(t testing.TB) {
			c := s.listen(t)
			trouble.Set(c.device, true)
			for range 8 {
				c.walk()
			}
			c.arrive(trouble.Name)
			trouble.Set(c.device, false)
			c.arrive("the end of " + trouble.Name)
		}})
	}
	return append(all,
		check{"hang-up", func(t testing.TB) {
			c := s.listen(t)
			for range 3 {
				c.walk()
				c.arrive("walks before the hang-up")
				c.rig.hangUp()
				c.rig.plugIn()
				c.rig.listening()
				c.arrive("hang-up")
			}
		}},
		check{"power cycle", func(t testing.TB) {
			c := s.listen(t)
			c.device.PowerCycle()
			c.rig.listening()
			c.device.Walk(3, 2)
			c.arrive("power cycle")
		}},
		check{"disk full", func(t testing.TB) {
			c := s.listen(t)
			c.rig.host.Refuse(true)
			if !c.nudge(func() bool { return c.rig.host.Refused() > 0 }) {
				t.Fatalf("nothing was emitted while the disk was full (seed %d)", c.seed)
			}
			c.walk()
			c.rig.host.Refuse(false)
			c.arrive("a full disk")
		}},
		check{"restart", func(t testing.TB) {
			c := s.listen(t)
			for range 3 {
				c.walk()
				c.arrive("walks before the restart")
				c.rig.kill()
				c.rig.start()
				c.rig.listening()
				c.arrive("restart")
			}
		}},
		check{"cancel", func(t testing.TB) {
			c := s.listen(t)
			c.rig.kill() // reports a Run that does not return
			c.rig.line.Set(Faults{Silent: true})
			c.rig.start()
			c.rig.kill()
			c.rig.hangUp()
			c.rig.start()
			c.rig.kill()
		}},
	)
}

// listen starts a driver and waits until it listens: from then on everybody counts.
func (s CounterSuite) listen(t testing.TB) *counterRun {
	t.Helper()
	c := s.prepare(t, nil)
	c.rig.start()
	c.rig.listening()
	c.walk()
	c.arrive("the start")
	return c
}

// quiet is how long a sum that is right must stay so.
const quiet = 300 * time.Millisecond

// arrive waits until everybody has passed and is emitted, and nobody more, and fails when that
// does not come.
func (c *counterRun) arrive(after string) {
	c.t.Helper()
	good := func() bool { return c.emitted() == c.passed() }
	if device, ok := c.device.(interface{ Still() bool }); ok {
		c.rig.host.Until(c.rig.wait, device.Still)
	}
	if !c.rig.host.Until(c.rig.wait, good) || c.rig.host.Until(quiet, func() bool { return !good() }) {
		c.t.Fatalf("after %s: emitted %+v, passed %+v; last counts %+v; notes %v (seed %d)",
			after, c.emitted(), c.passed(), tail(c.rig.host.Counts(), 5), c.rig.host.Notes(), c.seed)
	}
}
