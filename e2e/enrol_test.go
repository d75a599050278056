package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/e2e/chain"
)

// What becomes of a backlog when a PC gets another identity, is revoked, or retires.

// TestEDG05ReEnrolmentWithABacklog gives a PC a new identity while it holds what the former
// agent has not delivered.
func TestEDG05ReEnrolmentWithABacklog(t *testing.T) {
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
	if aside := asideOf(t, s); len(aside) != 1 {
		t.Errorf("set aside %+v, want the former agent's folder", aside)
	}
	drainAndRetry(t, c, s, 20)
	// A person did this, nothing is lost and nothing is doubtful: the backlog is shown by the PC
	// until it is drained, and in quarantine until it is applied. An alarm would tell of nothing.
	quiet(t, c)
}

// TestEDG05ARevokedPCWithABacklog revokes a PC that holds sales. They are delivered on site,
// under a new identity, into quarantine.
func TestEDG05ARevokedPCWithABacklog(t *testing.T) {
	c, s := one(t)
	sell(t, s)
	wait(2 * time.Second)
	delivered(t, s)
	_, err := c.Admin(t.Context(), "revoke", "-chain", chain.Name, "-store", s.ID, "-agent", "pc-"+s.ID)
	check(t, err)
	wait(6 * time.Second) // the live connection ends within seconds
	for range 20 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wait(time.Second)
	if status, err := s.Status(t.Context()); err != nil || status.Queue.Waiting < 20 {
		t.Errorf("%d records wait, %v: a revoked agent is served", status.Queue.Waiting, err)
	}
	check(t, s.Agent.Stop())
	check(t, c.Enrol(t.Context(), s, "pc-new"))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	if aside := asideOf(t, s); len(aside) != 1 {
		t.Errorf("set aside %+v, want the revoked agent's folder", aside)
	}
	drainAndRetry(t, c, s, 20)
	quiet(t, c) // as after any new identity; that the agent is revoked is in the list of agents
	list, err := c.Admin(t.Context(), "agent", "list", "-chain", chain.Name)
	check(t, err)
	if !strings.Contains(list, "revoked") {
		t.Errorf("agents:\n%s\nwant one that is revoked", list)
	}
}

// TestEDG05ARetiredPCWithABacklog lets an agent retire while it holds sales and its relay is down.
// It delivers them and what it still accepts, hears no more of head office, and is done when
// nothing waits: after it is revoked nothing is missing, and nothing is in quarantine.
func TestEDG05ARetiredPCWithABacklog(t *testing.T) {
	c, s := one(t)
	sell := func(n int) {
		t.Helper()
		for range n {
			if _, err := s.Till.Sale(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	zone := func() string {
		t.Helper()
		var status struct{ StoreSettings struct{ Zone string } }
		check(t, s.StatusInto(t.Context(), &status))
		return status.StoreSettings.Zone
	}
	sell(5)
	delivered(t, s)
	for limit := time.Now().Add(time.Minute); zone() != "Europe/Stockholm"; wait(50 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("zone %q, want that of head office", zone())
		}
	}
	check(t, c.Relays[0].Kill())
	sell(20)
	_, err := c.Admin(t.Context(), "agent", "retire", "-chain", chain.Name, "-store", s.ID, "-agent", "pc-"+s.ID)
	check(t, err)
	_, err = c.Admin(t.Context(), "store", "set", "-chain", chain.Name, "-id", s.ID, "-name", "High Street", "-zone", "Europe/Helsinki", "-currency", "SEK")
	check(t, err)
	if status, err := s.Status(t.Context()); err != nil || status.Queue.Waiting < 20 {
		t.Errorf("%d records wait, %v, want the backlog", status.Queue.Waiting, err)
	}
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	delivered(t, s)
	sell(5) // its tills are still at work
	prove(t, c, 30)
	list, err := c.Admin(t.Context(), "agent", "list", "-chain", chain.Name)
	check(t, err)
	if !strings.Contains(list, "retiring") {
		t.Errorf("agents:\n%s\nwant one that retires", list)
	}
	if got := zone(); got != "Europe/Stockholm" {
		t.Errorf("zone %q: a retiring agent is fed", got)
	}
	quiet(t, c) // a person did this, and nothing is lost

	check(t, s.Agent.Stop())
	_, err = c.Admin(t.Context(), "revoke", "-chain", chain.Name, "-store", s.ID, "-agent", "pc-"+s.ID)
	check(t, err)
	check(t, c.Enrol(t.Context(), s, "pc-new"))
	check(t, s.Agent.Start())
	check(t, s.Awake(t.Context()))
	drainAndRetry(t, c, s, 0)
	if got := zone(); got != "Europe/Helsinki" {
		t.Errorf("zone %q of the PC's next agent, want what head office has said since", got)
	}
}

// drainAndRetry delivers what a former agent holds, wants that many sales in quarantine, and
// applies them as a person would, once.
func drainAndRetry(t *testing.T, c *chain.Chain, s *chain.Store, sales int) {
	t.Helper()
	for range 2 { // a second drain finds nothing and changes nothing
		out, err := c.Drain(t.Context(), s)
		check(t, err)
		t.Log(out)
	}
	var quarantine struct {
		Items []struct {
			ID   int64
			Kind string
		}
	}
	check(t, c.Get(t.Context(), "/v1/quarantine", &quarantine))
	held := 0
	for _, q := range quarantine.Items {
		if q.Kind == "transaction" {
			held++
		}
		_, err := c.Admin(t.Context(), "quarantine", "retry", "-chain", chain.Name, "-id", fmt.Sprint(q.ID))
		check(t, err)
	}
	if held != sales {
		t.Errorf("%d sales in quarantine, want the %d that the former agent held", held, sales)
	}
	for range 10 {
		if _, err := s.Till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	prove(t, c, sales+10)
}
