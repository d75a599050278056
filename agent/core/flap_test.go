package core

import (
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

func TestAFlappingDrawerIsMutedAndReported(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	var g flapGuard
	opened, closed := 0, 0
	second := func() { // a switch that bounces for a second: ten openings
		for range 10 {
			if g.admit(&protocol.DrawerEvent{Event: protocol.DrawerOpened, Cause: protocol.CauseManual}, now) {
				opened++
			}
			if g.admit(&protocol.DrawerEvent{Event: protocol.DrawerClosed}, now) {
				closed++
			}
			now = now.Add(100 * time.Millisecond)
		}
	}
	for range 3600 {
		second()
	}
	if most := flapBurst + int(time.Hour/flapEvery); opened > most || opened != closed || opened < flapBurst {
		t.Errorf("%d openings and %d closings of an hour of flapping are accepted, want as many of both, at least %d and at most %d", opened, closed, flapBurst, most)
	}
	reason, count, due := g.report(now)
	if !due || count != 36000-opened || !strings.Contains(reason, "were not recorded") {
		t.Errorf("report %q of %d, %v; want all %d that were left out", reason, count, due, 36000-opened)
	}
	g.done(count, now)
	if _, _, due := g.report(now); due {
		t.Error("it is told twice")
	}
	now = now.Add(time.Hour)
	opened = 0
	second()
	if opened != 10 {
		t.Errorf("after an hour of rest %d of 10 openings are accepted", opened)
	}
}

func TestCommandedOpeningsAreNeverMuted(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	var g flapGuard
	for i := range 10000 {
		for _, e := range []protocol.DrawerEvent{{Event: protocol.DrawerOpened, Cause: protocol.CauseCommanded}, {Event: protocol.DrawerClosed}, {Event: protocol.DrawerLeftOpen}, {Event: protocol.DrawerOpenFailed}} {
			if !g.admit(&e, now) {
				t.Fatalf("%s number %d is left out", e.Event, i)
			}
		}
	}
}
