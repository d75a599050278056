package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// doubtAfter is how far the PC's clock may be from what else is known before it is doubted.
	doubtAfter = 24 * time.Hour
	saveEvery  = time.Hour // the relay's time is written to disk
	// maxDrift is how far the clocks of PC and relay move apart between two welcomes. The relay
	// takes no mark of a day that has not ended there.
	maxDrift = 5 * time.Minute
)

// A clock compares the PC's clock with the newest time that a relay has told, so that a dead
// battery does not silence a shop. It never corrects a record's time.
type clock struct {
	path   string
	now    func() time.Time
	mono   func() time.Duration // since boot
	bootID string
	build  time.Time // zero = not known

	mu    sync.Mutex // guards what follows
	heard heard
	saved time.Time // heard.Relay as it is on disk
	other bool      // the next TLS handshake is tried with the relay's time
}

// heard is what a relay said, and when that was.
type heard struct {
	Relay  time.Time     `json:"relay"`
	Mono   time.Duration `json:"mono"` // since boot, ns
	BootID string        `json:"bootId"`
}

func openClock(path string, now func() time.Time, mono func() time.Duration, bootID string) (*clock, error) {
	c := &clock{path: path, now: now, mono: mono, bootID: bootID, build: buildTime()}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	} else if err != nil {
		return nil, fmt.Errorf("read clock: %w", err)
	}
	if json.Unmarshal(text, &c.heard) != nil {
		c.heard = heard{} // torn: the next welcome tells again
	}
	c.saved = c.heard.Relay
	return c, nil
}

// buildTime is when the program was made from its sources, or the zero time.
func buildTime() time.Time {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" {
				at, _ := time.Parse(time.RFC3339, s.Value) // zero when it is no time
				return at
			}
		}
	}
	return time.Time{}
}

// told takes the time of a relay's welcome. An error is about keeping it for the next start.
func (c *clock) told(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = heard{at, c.mono(), c.bootID}
	if gone := at.Sub(c.saved); gone >= 0 && gone < saveEvery {
		return nil
	}
	text, err := json.Marshal(c.heard)
	if err == nil {
		tmp := c.path + ".tmp"
		if err = os.MkdirAll(filepath.Dir(c.path), 0o700); err == nil {
			err = os.WriteFile(tmp, text, 0o600)
		}
		if err == nil {
			err = os.Rename(tmp, c.path)
		}
	}
	if err != nil {
		return fmt.Errorf("keep the relay's time: %w", err)
	}
	c.saved = at
	return nil
}

// relayTime is what a relay's clock shows at least; exact says that the PC has run since it
// told, so that it is what that clock shows now.
func (c *clock) relayTime() (at time.Time, exact bool) {
	if c.heard.Relay.IsZero() {
		return time.Time{}, false
	}
	if c.bootID != "" && c.heard.BootID == c.bootID {
		if gone := c.mono() - c.heard.Mono; gone >= 0 {
			return c.heard.Relay.Add(gone), true
		}
	}
	return c.heard.Relay, false
}

// Skew is how far the PC's clock is ahead of what else is known; negative when it is behind,
// zero within the day that is not doubted.
func (c *clock) Skew() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew()
}

func (c *clock) skew() time.Duration {
	now := c.now()
	at, exact := c.relayTime()
	floor := at
	if c.build.After(floor) {
		floor = c.build
	}
	if behind := floor.Sub(now); behind > doubtAfter {
		return -behind
	}
	if ahead := now.Sub(at); exact && ahead > doubtAfter {
		return ahead
	}
	return 0
}

// passed is the latest time that has passed by the PC's clock, and by the relay's where it has
// told in this run of the PC: then it is proven.
func (c *clock) passed() (at time.Time, proven bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	relay, exact := c.relayTime()
	if relay = relay.Add(-maxDrift); exact && relay.Before(now) {
		return relay, true
	}
	return now, exact
}

// validity is the time against which certificates are checked: the latest of the PC's clock,
// the program's build and the relay's last word; or, after failed, the relay's word alone
// when the PC's clock is far ahead of it.
func (c *clock) validity() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, _ := c.relayTime()
	if c.other && c.skew() > 0 {
		return at
	}
	for _, t := range []time.Time{c.now(), c.build} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// failed notes that a relay was not reached, perhaps because of the time: the other one is
// tried next.
func (c *clock) failed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.other = !c.other
}
