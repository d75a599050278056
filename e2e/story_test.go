package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/e2e/chain"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

// bin is the folder with the two programs as they are shipped, built once.
var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "storelay-e2e-")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"agent", "relay"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "storelay-"+name), "../"+name)
		if out, err := build.CombinedOutput(); err != nil {
			panic(fmt.Sprintf("build %s: %v\n%s", name, err, out))
		}
	}
	bin = dir
	code := ledgertest.Main(m)
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// start starts a chain that is stopped and, when the test failed, whose logs are shown at
// the end.
func start(t *testing.T, o chain.Options) *chain.Chain {
	t.Helper()
	o.Dir, o.Bin = t.TempDir(), bin
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		logs, _ := filepath.Glob(filepath.Join(o.Dir, "*.log"))
		for _, log := range logs {
			text, _ := os.ReadFile(log)
			t.Logf("%s ends:\n%s", filepath.Base(log), text[max(0, len(text)-3000):])
		}
	})
	c, err := chain.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		// Whatever has happened, nobody changed the ledger. Of a disk that went back, alarms alone may tell.
		out, err := c.Admin(context.Background(), "audit", "-trust-alarms")
		if err != nil {
			t.Errorf("audit: %v\n%s", err, out)
		}
		t.Log(out)
	})
	return c
}

// trade lets all stores trade for a time.
func trade(ctx context.Context, c *chain.Chain, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var g sync.WaitGroup
	for i, s := range c.Stores {
		g.Go(func() {
			s.Trade(ctx, chain.Pace{Visitors: 50 * time.Millisecond, Sales: 80 * time.Millisecond, Seed: uint64(i + 1)}, 10*time.Second)
		})
	}
	g.Wait()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestEDG05ADayOfTrouble is the story of the product: the relay goes away, sales go on and
// counters count, the PC is killed, everything comes back, and the sums agree to the öre.
func TestEDG05ADayOfTrouble(t *testing.T) {
	c := start(t, chain.Options{Stores: 2, Interval: time.Second})
	trade(t.Context(), c, 2*time.Second)
	check(t, c.Relays[0].Kill())
	trade(t.Context(), c, 2*time.Second)
	victim := c.Stores[0]
	check(t, victim.Agent.Kill())
	victim.Counter.Walk(3, 2) // the counter counts while the PC is off
	check(t, victim.StartAgent(t.Context()))
	trade(t.Context(), c, 2*time.Second)

	status, err := victim.Status(t.Context())
	check(t, err)
	if status.Queue.Waiting == 0 {
		t.Error("the agent waits for nothing, though there is no relay")
	}
	check(t, c.StartRelay(t.Context(), c.Relays[0]))
	trade(t.Context(), c, time.Second)
	proof, err := c.NewProver().Drain(t.Context(), time.Minute)
	check(t, err)
	if len(victim.Till.Accepted()) < 10 || proof.Accepted < 100 {
		t.Errorf("too little happened to prove anything: %s", proof)
	}
	t.Log(proof)
}

// TestTwoRelaysKilledInTurn runs two relays over one PostgreSQL; agents know both.
func TestTwoRelaysKilledInTurn(t *testing.T) {
	c := start(t, chain.Options{Stores: 3, Relays: 2, Database: ledgertest.Postgres(t), Interval: time.Second})
	ctx, stop := context.WithCancel(t.Context())
	var trading sync.WaitGroup
	trading.Go(func() { trade(ctx, c, 20*time.Second) })
	for round := range 4 {
		relay := c.Relays[round%2]
		check(t, relay.Kill())
		alone := time.NewTimer(time.Second)
		<-alone.C // the other one serves alone for a while
		check(t, c.StartRelay(t.Context(), relay))
	}
	stop()
	trading.Wait()
	proof, err := c.NewProver().Drain(t.Context(), time.Minute)
	check(t, err)
	t.Log(proof)
}
