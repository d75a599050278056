package core

import (
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A drawer whose switch flaps must not fill the disk: after flapBurst openings that nobody
// commanded there is one per flapEvery. While it is muted nothing is accepted; it is heard
// again when half of the burst is left, and a record says how many openings were left out.
const (
	flapBurst = 60
	flapEvery = 10 * time.Second
)

// A flapGuard decides which events of one drawer are accepted. Device states have a limit of
// their own, drivers.Supervise, and counts are one per interval.
type flapGuard struct {
	tokens float64
	filled time.Time // when tokens was last brought up to date; zero = full
	muted  bool
	left   bool      // the opening before was left out, and its closing is too
	count  int       // openings left out since the last report
	since  time.Time // the first of them
}

// admit says whether an event is accepted.
func (g *flapGuard) admit(e *protocol.DrawerEvent, now time.Time) bool {
	g.fill(now)
	switch {
	case e.Event == protocol.DrawerClosed && g.left:
		g.left = false
		return false
	case e.Event != protocol.DrawerOpened || e.Cause == protocol.CauseCommanded:
		return true
	}
	if g.tokens < 1 {
		g.muted = true
	}
	if g.left = g.muted; g.muted {
		if g.count++; g.count == 1 {
			g.since = now
		}
		return false
	}
	g.tokens--
	return true
}

func (g *flapGuard) fill(now time.Time) {
	if g.filled.IsZero() {
		g.tokens = flapBurst
	} else if gone := now.Sub(g.filled); gone > 0 {
		g.tokens = min(flapBurst, g.tokens+float64(gone)/float64(flapEvery))
	}
	g.filled = now
	if g.tokens >= flapBurst/2 {
		g.muted = false
	}
}

// report is the state that tells of what was left out; false when it is not time for one.
// Call done when it is on disk.
func (g *flapGuard) report(now time.Time) (reason string, count int, due bool) {
	g.fill(now)
	if g.count == 0 || g.muted && now.Sub(g.since) < time.Minute {
		return "", 0, false
	}
	return fmt.Sprintf("flapping: %d openings since %s were not recorded", g.count, g.since.UTC().Format(time.RFC3339)), g.count, true
}

func (g *flapGuard) done(count int, now time.Time) { g.count, g.since = g.count-count, now }
