package e2e

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/e2e/chain"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

// The ledger of these tests is the simulated tills' and counters' own: they know what the
// agent has answered 201 to, and who has walked past.

// during trades in all stores until do has returned.
func during(t *testing.T, c *chain.Chain, do func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var trading sync.WaitGroup
	trading.Go(func() { trade(ctx, c, 10*time.Minute) })
	do()
	stop()
	trading.Wait()
}

// prove drains the chain and wants at least so many sales.
func prove(t *testing.T, c *chain.Chain, sales int) {
	t.Helper()
	proof, err := c.NewProver().Drain(t.Context(), 2*time.Minute)
	check(t, err)
	sold := 0
	for _, s := range c.Stores {
		sold += len(s.Till.Accepted())
	}
	if sold < sales {
		t.Errorf("%d sales prove nothing, want at least %d", sold, sales)
	}
	t.Logf("%d sales; %s", sold, proof)
}

func wait(d time.Duration) { <-time.NewTimer(d).C }

// longer is how many times as often or as long some tests do what they do: STORELAY_LONGER,
// which `make nightly` sets, or 1.
func longer(t *testing.T) int {
	t.Helper()
	text := os.Getenv("STORELAY_LONGER")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("STORELAY_LONGER=%q, want a number from 1 on", text)
	}
	return n
}

// TestEDG05AgentKilledFiftyTimes kills the agent at random moments while it sells, counts and
// sends.
func TestEDG05AgentKilledFiftyTimes(t *testing.T) {
	c := start(t, chain.Options{Stores: 1, Interval: time.Second, NoDrawer: true})
	random := rand.New(rand.NewPCG(1, 1))
	during(t, c, func() {
		for range 50 * longer(t) {
			wait(time.Duration(random.IntN(400)) * time.Millisecond)
			check(t, c.Stores[0].Agent.Kill())
			check(t, c.Stores[0].Agent.Start())
		}
		check(t, c.Stores[0].Awake(t.Context()))
	})
	c.Stores[0].Counter.Walk(1, 0) // with the next person the counter says who passed before
	prove(t, c, 20)
}

// TestEDG05RelayKilledInABurst kills the relay again and again while three stores deliver
// what they sold without it.
func TestEDG05RelayKilledInABurst(t *testing.T) {
	c := start(t, chain.Options{Stores: 3, Interval: time.Second, NoDrawer: true})
	random := rand.New(rand.NewPCG(2, 1))
	during(t, c, func() {
		for range 15 {
			check(t, c.Relays[0].Kill())
			wait(time.Duration(random.IntN(500)) * time.Millisecond)
			check(t, c.StartRelay(t.Context(), c.Relays[0]))
			wait(time.Duration(random.IntN(1000)) * time.Millisecond)
		}
	})
	prove(t, c, 50)
}

// TestEDG05PostgreSQLStopped stops the database server without a checkpoint, in a burst.
func TestEDG05PostgreSQLStopped(t *testing.T) {
	server := ledgertest.Private(t)
	url, err := server.Database(t.Context())
	check(t, err)
	c := start(t, chain.Options{Stores: 2, Database: url, Interval: time.Second, NoDrawer: true})
	during(t, c, func() {
		for range 3 {
			wait(time.Second)
			check(t, server.Crash(t.Context()))
			wait(2 * time.Second)
			check(t, server.Restart(t.Context()))
		}
		wait(time.Second)
	})
	prove(t, c, 20)
}

// TestEDG05LineCut cuts the line, and lets it go silent without an end, while stores sell.
// A cut of a minute is scaled down to seconds.
func TestEDG05LineCut(t *testing.T) {
	c := start(t, chain.Options{Stores: 2, Interval: time.Second, NoDrawer: true, Lines: true})
	during(t, c, func() {
		for range 2 {
			for _, s := range c.Stores {
				s.Line.Cut()
			}
			wait(time.Duration(longer(t)) * 3 * time.Second)
			for _, s := range c.Stores {
				s.Line.Mend()
			}
			wait(time.Second)
		}
		for _, s := range c.Stores {
			s.Line.Silence()
		}
		wait(time.Duration(longer(t)) * 4 * time.Second)
		for _, s := range c.Stores {
			s.Line.Mend()
		}
	})
	prove(t, c, 20)
}

// TestEDG05AgentStartsWhileOffline starts an agent when there is no relay to be reached, lets
// it sell through two more starts, and only then starts the relay.
func TestEDG05AgentStartsWhileOffline(t *testing.T) {
	c := start(t, chain.Options{Stores: 1, Interval: time.Second, NoDrawer: true})
	check(t, c.Relays[0].Kill())
	s := c.Stores[0]
	for range 3 {
		check(t, s.Agent.Stop())
		check(t, s.StartAgent(t.Context()))
		trade(t.Context(), c, 1500*time.Millisecond)
	}
	if status, err := s.Status(t.Context()); err != nil || status.Queue.Waiting < 20 {
		t.Errorf("%d records wait, %v; want what was sold", status.Queue.Waiting, err)
	}
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	prove(t, c, 20)
}
