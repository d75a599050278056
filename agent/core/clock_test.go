package core

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A pc is the clocks of a store's PC.
type pc struct {
	wall time.Time
	mono time.Duration
}

func (p *pc) pass(d time.Duration) { p.wall, p.mono = p.wall.Add(d), p.mono+d }

func (p *pc) clock(t *testing.T, path, boot string) *clock {
	t.Helper()
	c, err := openClock(path, func() time.Time { return p.wall }, func() time.Duration { return p.mono }, boot)
	if err != nil {
		t.Fatal(err)
	}
	c.build = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return c
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestADeadBatteryIsNoticedAndDoesNotSilenceTheShop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "clock")
	p := &pc{wall: noon}
	c := p.clock(t, path, "boot-1")
	if err := c.told(noon); err != nil || c.Skew() != 0 {
		t.Fatalf("skew %s, %v; want none", c.Skew(), err)
	}
	p.wall, p.mono = time.Date(2009, 1, 1, 0, 0, 0, 0, time.UTC), 0 // the next morning
	c = p.clock(t, path, "boot-2")
	if got := c.Skew(); got >= 0 {
		t.Errorf("skew %s, want far behind", got)
	}
	if got := c.validity(); !got.Equal(noon) {
		t.Errorf("certificates are checked against %s, want the relay's last word, %s", got, noon)
	}
}

func TestAPCWithoutAnyRelayYetTakesItsBuildForTheEarliestTime(t *testing.T) {
	p := &pc{wall: time.Date(2009, 1, 1, 0, 0, 0, 0, time.UTC)}
	c := p.clock(t, filepath.Join(t.TempDir(), "clock"), "boot-1")
	if got := c.validity(); !got.Equal(c.build) || c.Skew() >= 0 {
		t.Errorf("checked against %s, skew %s; want the build's time, and behind", got, c.Skew())
	}
}

func TestAClockThatJumpsAheadIsDoubtedAndTheRelaysTimeIsTriedToo(t *testing.T) {
	p := &pc{wall: noon}
	c := p.clock(t, filepath.Join(t.TempDir(), "clock"), "boot-1")
	if err := c.told(noon); err != nil {
		t.Fatal(err)
	}
	p.pass(time.Hour)
	p.wall = p.wall.AddDate(10, 0, 0)
	if c.Skew() < 9*365*24*time.Hour {
		t.Errorf("skew %s, want ten years", c.Skew())
	}
	tried := map[time.Time]bool{}
	for range 2 {
		tried[c.validity()] = true
		c.failed()
	}
	if !tried[p.wall] || !tried[noon.Add(time.Hour)] {
		t.Errorf("tried %v, want the PC's time and the relay's", tried)
	}
}

func TestAWeekendWithoutPowerIsNoJump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	p := &pc{wall: noon}
	if err := p.clock(t, path, "boot-1").told(noon); err != nil {
		t.Fatal(err)
	}
	p.wall, p.mono = noon.AddDate(0, 0, 3), time.Minute
	if got := p.clock(t, path, "boot-2").Skew(); got != 0 {
		t.Errorf("skew %s, want none: the PC was off", got)
	}
}

func TestATornClockFileIsForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clock")
	if err := os.WriteFile(path, []byte(`{"relay":"20`), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pc{wall: noon}
	if got := p.clock(t, path, "b").Skew(); got != 0 {
		t.Errorf("skew %s, want none", got)
	}
}
