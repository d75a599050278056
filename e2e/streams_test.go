package e2e

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/e2e/chain"
)

// Each of these is a mishap of a shop's PC or of the relay's database that a technician has
// seen. Each must be noticed, with its alarm, and repaired, and must not wedge the store.

// sell lets one store trade for a second.
func sell(t *testing.T, s *chain.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	s.Trade(ctx, chain.Pace{Visitors: 50 * time.Millisecond, Sales: 30 * time.Millisecond, Seed: uint64(time.Second)}, 10*time.Second)
}

// delivered waits until a store's agent holds nothing that is not acknowledged.
func delivered(t *testing.T, s *chain.Store) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); ; wait(50 * time.Millisecond) {
		status, err := s.Status(t.Context())
		if err == nil && status.Queue.Waiting == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d records still wait, %v", status.Queue.Waiting, err)
		}
	}
}

// alarmed wants an alarm of one of the kinds.
func alarmed(t *testing.T, c *chain.Chain, kinds ...string) {
	t.Helper()
	text, err := c.Admin(t.Context(), "alarms", "-chain", chain.Name)
	check(t, err)
	for _, kind := range kinds {
		if strings.Contains(text, kind) {
			return
		}
	}
	t.Errorf("alarms:\n%s\nwant one of %v", text, kinds)
}

func quiet(t *testing.T, c *chain.Chain) {
	t.Helper()
	text, err := c.Admin(t.Context(), "alarms", "-chain", chain.Name)
	check(t, err)
	if strings.Count(text, "\n") > 0 {
		t.Errorf("alarms:\n%s\nwant none", text)
	}
}

// one starts a chain of one store whose till alone sells.
func one(t *testing.T) (*chain.Chain, *chain.Store) {
	t.Helper()
	c := start(t, chain.Options{Stores: 1, Interval: time.Second, NoDrawer: true})
	return c, c.Stores[0]
}

func image(t *testing.T, s *chain.Store) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	check(t, s.Image(dir))
	return dir
}

// TestEDG05ADiskThatWasRolledBack puts an image of yesterday on a PC that has delivered since.
func TestEDG05ADiskThatWasRolledBack(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	check(t, s.Agent.Stop())
	old := image(t, s)
	check(t, s.StartAgent(t.Context()))
	s.Till.Sale(t.Context()) //nolint:errcheck // it is in the till's list when it was accepted
	s.Till.Sale(t.Context()) //nolint:errcheck // as above
	delivered(t, s)
	check(t, s.Agent.Kill())
	check(t, s.Restore(old))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	for range 20 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.Counter.Walk(1, 0) // with the next person the counter says who passed before
	prove(t, c, 20)
	alarmed(t, c, "sealedTwice", "sealBelow")
	check(t, s.Agent.Stop())
	check(t, s.Agent.Start()) // the alarm is not raised again and again
	check(t, s.Awake(t.Context()))
	prove(t, c, 20)
}

// TestEDG05APCThatWasCloned lets a PC and its copy both go on under one identity.
func TestEDG05APCThatWasCloned(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	check(t, s.Agent.Stop())
	copied := image(t, s)
	clone, err := c.Clone(s, copied, "2")
	check(t, err)
	check(t, s.Agent.Start())
	check(t, clone.Agent.Start())
	check(t, s.Awake(t.Context()))
	check(t, clone.Awake(t.Context()))
	trade(t.Context(), c, 2*time.Second)
	prove(t, c, 20)
	alarmed(t, c, "sealedTwice", "sealBelow", "beyondSeal")
}

// TestEDG05ACloneOnANewerDisk rolls the PC back to an older image than that of its copy.
func TestEDG05ACloneOnANewerDisk(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	check(t, s.Agent.Stop())
	older := image(t, s)
	check(t, s.StartAgent(t.Context()))
	for range 10 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	delivered(t, s)
	check(t, s.Agent.Stop())
	clone, err := c.Clone(s, image(t, s), "2")
	check(t, err)
	check(t, s.Restore(older))
	check(t, s.Agent.Start())
	check(t, clone.Agent.Start())
	check(t, s.Awake(t.Context()))
	check(t, clone.Awake(t.Context()))
	for range 20 {
		for _, pc := range []*chain.Store{s, clone} {
			if _, err := pc.Till.Sale(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	prove(t, c, 50)
	alarmed(t, c, "sealedTwice", "sealBelow", "beyondSeal")
}

// TestEDG05APCThatWasImagedAnew loses a PC's disk after everything was delivered.
func TestEDG05APCThatWasImagedAnew(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	wait(2 * time.Second) // the last count
	delivered(t, s)
	check(t, s.Agent.Kill())
	check(t, s.Restore(""))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	for range 20 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	prove(t, c, 30)
	alarmed(t, c, "secondFirst")
}

// TestEDG05ALostTail cuts the end off a PC's journal that the relay has had already, as a
// disk does that says "synced" and is not.
func TestEDG05ALostTail(t *testing.T) {
	c, s := one(t)
	for range 30 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	delivered(t, s)
	check(t, s.Agent.Kill())
	segments, err := filepath.Glob(filepath.Join(s.Data, "journal", "*.seg"))
	check(t, err)
	newest := segments[len(segments)-1]
	data, err := os.ReadFile(newest)
	check(t, err)
	used := len(strings.TrimRight(string(data), "\x00"))
	clear(data[used-4000:])
	check(t, os.WriteFile(newest, data, 0o600))
	check(t, os.RemoveAll(filepath.Join(s.Data, "journal", "index")))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	for range 20 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	prove(t, c, 50)
	alarmed(t, c, "sealBelow", "fork")
}

// TestEDG05ACrashLoop starts an agent again and again, killed each time as soon as it has
// written something, without a relay, and then lets it deliver. It is a hundred starts,
// and thousands in `make nightly`.
func TestEDG05ACrashLoop(t *testing.T) {
	c, s := one(t)
	check(t, c.Relays[0].Kill())
	for range 100 * longer(t) {
		check(t, s.Agent.Kill())
		check(t, s.Agent.Start())
		for limit := time.Now().Add(20 * time.Second); ; {
			if _, err := s.Till.Sale(t.Context()); err == nil {
				break
			} else if time.Now().After(limit) {
				t.Fatal(err)
			}
		}
	}
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	s.Counter.Walk(1, 0)
	prove(t, c, 100)
	quiet(t, c)
}

// TestEDG05ARelayRestoredFromAnOlderBackup restores the ledger while the shop sells. Agents
// send again what they still hold.
func TestEDG05ARelayRestoredFromAnOlderBackup(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	backup := filepath.Join(t.TempDir(), "backup.db")
	_, err := c.Admin(t.Context(), "backup", "-out", backup)
	check(t, err)
	sell(t, s)
	check(t, s.Agent.Kill())
	check(t, s.StartAgent(t.Context()))
	sell(t, s)
	check(t, c.Relays[0].Stop())
	sell(t, s)
	_, err = c.Admin(t.Context(), "restore", "-from", backup)
	check(t, err)
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	sell(t, s)
	var head struct{ Incarnation int64 }
	check(t, c.Get(t.Context(), "/v1/head", &head))
	if head.Incarnation < 2 {
		t.Errorf("incarnation %d after a restore, want it raised", head.Incarnation)
	}
	prove(t, c, 40)
	alarmed(t, c, "restored")
}

// TestEDG05ARelayRestoredUnnoticed copies an older database into its place, as a machine's own
// backup does, twice within an hour. The agent's hello tells, and the incarnation is raised;
// the second time it is not raised for the same agent, which sends what is lost all the same.
func TestEDG05ARelayRestoredUnnoticed(t *testing.T) {
	c, s := one(t)
	sell := func() {
		t.Helper()
		for range 10 {
			if _, err := s.Till.Sale(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		delivered(t, s)
	}
	database := filepath.Join(filepath.Dir(filepath.Dir(s.Data)), "relay-1", "relay.db")
	putBack := func() {
		t.Helper()
		sell()
		backup := filepath.Join(t.TempDir(), "backup.db")
		_, err := c.Admin(t.Context(), "backup", "-out", backup)
		check(t, err)
		sell()
		check(t, c.Relays[0].Stop())
		old, err := os.ReadFile(backup)
		check(t, err)
		check(t, os.WriteFile(database, old, 0o600))
		check(t, c.StartRelay(t.Context(), c.Relays[0]))
	}
	incarnation := func() int64 {
		t.Helper()
		var head struct{ Incarnation int64 }
		check(t, c.Get(t.Context(), "/v1/head", &head))
		return head.Incarnation
	}
	putBack()
	prove(t, c, 20)
	if got := incarnation(); got != 2 {
		t.Errorf("incarnation %d, want 2", got)
	}
	alarmed(t, c, "restored")
	alarmed(t, c, "its incarnation was raised to 2")
	putBack()
	prove(t, c, 40) // the agent has nothing new to say: it goes back to what the ledger has
	if got := incarnation(); got != 2 {
		t.Errorf("incarnation %d, want it raised no sooner than in an hour", got)
	}
	alarmed(t, c, "is not believed")
}

// TestEDG05ARelayRestoredAfterADrain restores the ledger from a backup that is older than a
// drain. Nobody but the drained folder holds what the former agent had: the PC says so, and a
// drain brings it once more.
func TestEDG05ARelayRestoredAfterADrain(t *testing.T) {
	c, s := one(t)
	check(t, c.Relays[0].Kill())
	for range 20 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	check(t, s.Agent.Stop())
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	check(t, c.Enrol(t.Context(), s, "pc-new"))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	if aside := asideOf(t, s); len(aside) != 1 || !strings.Contains(aside[0].Why, "never delivered") {
		t.Errorf("set aside %+v, want the former agent's folder", aside)
	}
	backup := filepath.Join(t.TempDir(), "backup.db")
	_, err := c.Admin(t.Context(), "backup", "-out", backup)
	check(t, err)
	drainAndRetry(t, c, s, 20)
	if aside := asideOf(t, s); len(aside) != 0 {
		t.Errorf("set aside %+v after the drain, want nothing", aside)
	}
	check(t, c.Relays[0].Stop())
	said, err := c.Admin(t.Context(), "restore", "-from", backup)
	check(t, err)
	if !strings.Contains(said, "storelay-agent drain") {
		t.Errorf("restore says %q, want it to say that PCs must be drained again", said)
	}
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	for limit := time.Now().Add(time.Minute); ; wait(100 * time.Millisecond) {
		if aside := asideOf(t, s); len(aside) == 1 && strings.Contains(aside[0].Why, "restored since") {
			break
		} else if time.Now().After(limit) {
			t.Fatalf("set aside %+v, want the drained folder once more", aside)
		}
	}
	drainAndRetry(t, c, s, 20)
	if aside := asideOf(t, s); len(aside) != 0 {
		t.Errorf("set aside %+v after the second drain, want nothing", aside)
	}
	alarmed(t, c, "restored")
}

// asideOf is what a PC's status says of journals that wait to be drained.
func asideOf(t *testing.T, s *chain.Store) []core.Aside {
	t.Helper()
	var status struct{ SetAside []core.Aside }
	check(t, s.StatusInto(t.Context(), &status))
	return status.SetAside
}

// TestEDG05ADeadClockBattery starts a PC whose clock stands in the year 2001: it connects,
// delivers, and says so, and no day is taken to have ended.
func TestEDG05ADeadClockBattery(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	wait(2 * time.Second)
	delivered(t, s)
	check(t, s.Agent.Stop())
	cfg, err := core.LoadConfig(s.Config)
	check(t, err)
	behind := time.Since(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC))
	agent, err := core.New(cfg, core.Options{Version: "test", Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(-behind) }})
	check(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- agent.Run(ctx) }()
	for range 20 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	delivered(t, s)
	var status struct {
		ClockAheadSeconds float64
		Queue             struct{ Waiting int }
	}
	check(t, s.StatusInto(t.Context(), &status))
	if year := 365 * 24 * time.Hour; status.ClockAheadSeconds > -20*year.Seconds() {
		t.Errorf("the status says that the clock is %.0f s ahead, want more than 20 years behind", status.ClockAheadSeconds)
	}
	alarmed(t, c, "clock")
	stop()
	check(t, <-ended)
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	s.Counter.Walk(1, 0)
	prove(t, c, 30)
}

// TestEDG05ARolledBackCounterCountsNobodyTwice rolls the disk back behind counts that were
// delivered: the counter goes on from totals that it has told already.
func TestEDG05ARolledBackCounterCountsNobodyTwice(t *testing.T) {
	c, s := one(t)
	s.Counter.Walk(3, 1)
	wait(3 * time.Second)
	check(t, s.Agent.Stop())
	old := image(t, s)
	check(t, s.StartAgent(t.Context()))
	s.Counter.Walk(5, 4)
	wait(3 * time.Second)
	delivered(t, s)
	check(t, s.Agent.Kill())
	check(t, s.Restore(old))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	s.Counter.Walk(2, 0)
	wait(3 * time.Second)
	delivered(t, s)
	s.Counter.Walk(1, 1) // from here on all is well again
	wait(3 * time.Second)
	delivered(t, s)
	proof, err := c.NewProver().Observe(t.Context())
	check(t, err)
	if proof.Twice != 0 || proof.Quarantined != 1 || proof.Committed < 3+1+5+4+1+1 {
		t.Errorf("%s; want nobody twice, and the one count in quarantine that goes from told totals", proof)
	}
}
