//go:build linux && powercut

package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/e2e/chain"
)

// A lineState is what the line does when the power goes.
type lineState string

const (
	up       lineState = "up"       // each sale is delivered as it comes
	down     lineState = "down"     // what is sold stays on the disk, through more cuts
	draining lineState = "draining" // what was sold before is on its way
	starting lineState = "starting" // as it was before: the agent reads what the cut before has left
)

// lineages are what happens to one disk, cut after cut.
var lineages = [][]lineState{
	{up, down, starting, down, draining},
	{down, starting, draining, down, up},
}

// A cut is one line of the summary.
type cut struct {
	agent   string
	disk, n int
	line    lineState
	hurried bool                 // write-back was in a hurry
	waiting int64                // at the agent, just before
	sales   []drivertest.Receipt // answered since the cut before
	known   int                  // of asked, which the agent knew after the cut
	asked   int
	rebuilt bool
	died    int // starts that ended by themselves
	started time.Duration
	damage  []string
	found   int
	lost    int
	doubled int
}

// TestPowerCuts cuts the power POWERCUT_CUTS times, half of them under the agent as it is
// shipped and half under the agent with Windows' msync, in lineages of at most five cuts of
// the same disk. After a cut the agent must start, know the newest sales it has answered,
// and name no damage, unless the power goes again while it starts. At the end of a lineage
// everything that was ever answered must be in the ledger once, to the öre.
func TestPowerCuts(t *testing.T) {
	t.Parallel() // with the keeper's test, which waits most of the time
	total := number(t, "POWERCUT_CUTS", 20)
	seed := seed(t)
	var all []*cut
	for v, agent := range []struct {
		name  string
		build func() (string, error)
		cuts  int
	}{{"msync", shipped, (total + 1) / 2}, {"no msync", withoutMsync, total / 2}} {
		for n := 0; agent.cuts > 0; n++ {
			plan := lineages[n%len(lineages)]
			plan = plan[:min(agent.cuts, len(plan))]
			agent.cuts -= len(plan)
			t.Run(fmt.Sprintf("%s, disk %d", agent.name, n+1), func(t *testing.T) {
				bin, err := agent.build()
				check(t, err)
				random := rand.New(rand.NewPCG(seed, uint64(v<<32+n)))
				r := begin(t, bin, random)
				for i, line := range plan {
					c := &cut{agent: agent.name, disk: n + 1, n: i + 1, line: line, hurried: random.IntN(2) == 0}
					all = append(all, c)
					r.round(c)
				}
				r.powerOn()
				r.prove()
			})
		}
	}
	judge(t, all)
}

// seed is where the random moments come from; the moments of the programs are their own.
func seed(t *testing.T) uint64 {
	t.Helper()
	seed := number(t, "POWERCUT_SEED", int(time.Now().UnixNano()%1_000_000)+1)
	t.Logf("POWERCUT_SEED=%d", seed)
	return uint64(seed)
}

// judge prints what became of each cut, and fails the test for what should not be.
func judge(t *testing.T, all []*cut) {
	t.Helper()
	summarize(t, all)
	for _, c := range all {
		if c.lost+c.doubled > 0 || c.known != c.asked {
			t.Errorf("cut %d of disk %d, %s: %d sales lost, %d doubled, %d of %d known again", c.n, c.disk, c.agent, c.lost, c.doubled, c.known, c.asked)
		}
		if len(c.damage) > 0 {
			t.Errorf("after cut %d of disk %d, %s, the agent names damage: %q", c.n, c.disk, c.agent, c.damage)
		}
	}
}

// A rig is a chain whose one agent has its data on a disk that is cut.
type rig struct {
	t      *testing.T
	chain  *chain.Chain
	store  *chain.Store
	disk   *disk
	random *rand.Rand
	log    string // the agent's
	cuts   []*cut
	taken  map[*drivertest.Till]int // sales that belong to earlier cuts
}

func begin(t *testing.T, bin string, random *rand.Rand) *rig {
	t.Helper()
	return beginOn(t, bin, random, diskMB)
}

// beginOn begins with a disk of so many MB.
func beginOn(t *testing.T, bin string, random *rand.Rand, mb int) *rig {
	t.Helper()
	dir := t.TempDir()
	d := newDisk(t, filepath.Join(dir, "store-0001", "data"), mb)
	c := start(t, bin, dir)
	return &rig{t: t, chain: c, store: c.Stores[0], disk: d, random: random, log: filepath.Join(dir, "agent-0001.log"), taken: map[*drivertest.Till]int{}}
}

// round starts the agent on what the cut before has left, sells for a while and cuts the
// power.
func (r *rig) round(c *cut) {
	t := r.t
	if c.line == starting {
		check(t, r.store.Agent.Start())
		wait(between(r.random, 0, 200*time.Millisecond))
		r.cut(c, func() {})
		return
	}
	if len(r.cuts) > 0 {
		r.powerOn()
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var selling sync.WaitGroup
	defer selling.Wait()
	selling.Go(func() { sell(ctx, r.store) })
	if c.hurried {
		random := rand.New(rand.NewPCG(r.random.Uint64(), 2))
		selling.Go(func() { writeBack(filepath.Join(r.disk.at, "journal"), random, ctx.Done()) })
	}
	switch c.line {
	case down:
		r.store.Line.Cut()
		wait(between(r.random, 1500*time.Millisecond, 4*time.Second))
	case up:
		r.store.Line.Mend()
		r.delivered()
		wait(between(r.random, 1500*time.Millisecond, 4*time.Second))
	case draining: // what the rounds before have left
		before := r.head()
		until := time.Now().Add(20 * time.Second)
		r.store.Line.Mend()
		for r.head() == before {
			if time.Now().After(until) {
				t.Fatal("nothing is delivered over the line that was mended")
			}
			wait(2 * time.Millisecond)
		}
		wait(between(r.random, 0, 100*time.Millisecond))
	}
	if status, err := r.store.Status(t.Context()); err == nil { // a rough figure for the table
		c.waiting = status.Queue.Waiting
	}
	r.cut(c, func() {
		stop()
		selling.Wait()
	})
}

// cut takes the power; stop ends what sold meanwhile.
func (r *rig) cut(c *cut, stop func()) {
	r.disk.cut(func() {
		if err := syscall.Kill(r.store.Agent.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) { // it may have died at its start
			r.t.Fatal(err)
		}
	}, func() {
		stop()
		for r.store.Agent.Running() {
			wait(time.Millisecond)
		}
	})
	r.cuts = append(r.cuts, c)
	for _, till := range r.store.Tills {
		accepted := till.Accepted()
		c.sales = append(c.sales, accepted[r.taken[till]:]...)
		r.taken[till] = len(accepted)
	}
}

func (r *rig) head() int64 {
	var head struct{ Pos int64 }
	check(r.t, r.chain.Get(r.t.Context(), "/v1/head", &head))
	return head.Pos
}

// powerOn starts the agent on what the newest cut has left, as a service manager does, again
// when it ends by itself: Badger may panic once over it, and the marker tells the next start.
func (r *rig) powerOn() {
	r.t.Helper()
	c := r.cuts[len(r.cuts)-1]
	began, logged := time.Now(), len(r.logged())
	for !r.starts() {
		if c.died++; c.died == 3 {
			r.t.Fatalf("the agent does not start after the cut; its log ends:\n%s", r.logged()[logged:])
		}
	}
	c.started = time.Since(began)
	c.rebuilt = strings.Contains(r.logged()[logged:], "built anew from the journal")
	c.damage = r.status().Damage
	r.ask(c)
}

func (r *rig) logged() string {
	text, err := os.ReadFile(r.log)
	check(r.t, err)
	return string(text)
}

// starts is false when the agent ends before it answers.
func (r *rig) starts() bool {
	check(r.t, r.store.Agent.Start())
	until := time.Now().Add(time.Minute)
	for r.store.Agent.Running() {
		if _, err := r.store.Status(r.t.Context()); err == nil {
			return true
		}
		if time.Now().After(until) {
			r.t.Fatal("the agent does not answer within a minute")
		}
		wait(5 * time.Millisecond)
	}
	return false
}

// A status is what these tests look at of the agent's.
type status struct {
	Damage                 []string
	SettingsFromHeadOffice bool
	StoreSettings          struct{ Name string }
}

func (r *rig) status() (s status) {
	r.t.Helper()
	_, text := r.call(http.MethodGet, "/v1/status", r.store.Token, "", nil)
	check(r.t, json.Unmarshal(text, &s))
	return s
}

// call speaks to the agent as a till.
func (r *rig) call(method, path, token, key string, body []byte) (*http.Response, []byte) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.store.API+path, bytes.NewReader(body))
	check(r.t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := http.DefaultClient.Do(req)
	check(r.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	check(r.t, err)
	return res, text
}

// ask posts sales again that were answered before the cut, the newest of each till and some
// others: the agent must know them. One that it had lost would be accepted as new.
func (r *rig) ask(c *cut) {
	for _, till := range r.store.Tills {
		accepted := till.Accepted()
		for n := range min(10, len(accepted)) {
			sale := accepted[len(accepted)-1-n]
			if n >= 5 {
				sale = accepted[r.random.IntN(len(accepted))]
			}
			res, text := r.call(http.MethodPost, "/v1/transactions", r.store.TokenOf(sale.Workstation), sale.Key, sale.Body)
			c.asked++
			if res.StatusCode == http.StatusCreated && res.Header.Get("Idempotency-Replayed") == "true" {
				c.known++
			} else if c.asked == c.known+1 { // the first says enough
				r.t.Logf("sale %s was answered before the cut, and is not known after it: %s %s", sale.Reference(), res.Status, text)
			}
		}
	}
}

// delivered waits until next to nothing waits at the agent.
func (r *rig) delivered() {
	r.t.Helper()
	until := time.Now().Add(time.Minute)
	for {
		status, err := r.store.Status(r.t.Context())
		check(r.t, err)
		if status.Queue.Waiting < 100 {
			return
		}
		if time.Now().After(until) {
			r.t.Fatalf("%d records still wait after a minute on a line that works", status.Queue.Waiting)
		}
		wait(10 * time.Millisecond)
	}
}

// prove delivers all that waits and wants all that was answered in the ledger, once and to
// the öre.
func (r *rig) prove() {
	r.t.Helper()
	r.store.Line.Mend()
	check(r.t, r.store.Awake(r.t.Context()))
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	for _, till := range r.store.Tills { // the sale that the power went at may be on the disk
		_, err := till.Sale(ctx)
		check(r.t, err)
	}
	r.store.Counter.Walk(1, 0) // with the next person the counter says who passed before
	prover := r.chain.NewProver()
	proof, err := prover.Drain(r.t.Context(), time.Minute)
	if err != nil {
		_, status := r.call(http.MethodGet, "/v1/status", r.store.Token, "", nil)
		var quarantine json.RawMessage
		err = errors.Join(err, r.chain.Get(r.t.Context(), "/v1/quarantine", &quarantine))
		r.t.Errorf("%v; the agent says %s; in quarantine: %s", err, status, quarantine)
	}
	wrong := 0
	for _, sale := range r.store.Accepted() {
		if n := prover.Times(sale); n != 1 {
			if wrong++; wrong <= 10 {
				r.t.Errorf("sale %s was answered and is in the ledger %d times", sale.Reference(), n)
			}
		}
	}
	r.count(prover)
	r.t.Log(proof)
}

// count compares the ledger with what was answered, cut by cut.
func (r *rig) count(prover *chain.Prover) {
	for _, c := range r.cuts {
		for _, sale := range c.sales {
			switch n := prover.Times(sale); n {
			case 0:
				c.lost++
			case 1:
				c.found++
			default:
				c.doubled++
			}
		}
	}
}

// TestWithoutSyncsACutIsSeen shows that these cuts bite: of an agent whose journal does not
// sync its groups they take what it has answered.
func TestWithoutSyncsACutIsSeen(t *testing.T) {
	bin, err := withoutSync()
	check(t, err)
	r := begin(t, bin, rand.New(rand.NewPCG(1, 1)))
	c := &cut{agent: "no sync", line: down}
	r.round(c)
	r.powerOn()
	r.store.Line.Mend()
	r.delivered()
	prover := r.chain.NewProver()
	_, err = prover.Observe(t.Context())
	check(t, err)
	r.count(prover)
	if c.lost == 0 || c.known == c.asked {
		t.Errorf("of %d sales %d are lost, and %d of %d are known again: want losses, or no cut of these tests proves anything", len(c.sales), c.lost, c.known, c.asked)
	}
	t.Logf("%d of %d sales lost, %d of %d known again", c.lost, len(c.sales), c.known, c.asked)
}

// summarize prints what became of each cut.
func summarize(t *testing.T, all []*cut) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "agent\tdisk\tcut\tline\thurried\twaiting\tanswered\tfound\tlost\tdoubled\tknown again\tindex rebuilt\tdied at start\ts to start\t")
	row := func(c *cut, name string, cuts, rebuilt string) {
		fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%d\t%d\t%d\t%d\t%d\t%d of %d\t%s\t%d\t%.2f\t\n", name, cuts, c.line, c.hurried, c.waiting,
			len(c.sales), c.found, c.lost, c.doubled, c.known, c.asked, rebuilt, c.died, c.started.Seconds())
	}
	var order []string
	sums, rebuilt := map[string]*cut{}, map[string]int{}
	for _, c := range all {
		again := "-"
		if c.rebuilt {
			again = "yes"
			rebuilt[c.agent]++
		}
		row(c, c.agent, fmt.Sprintf("%d\t%d", c.disk, c.n), again)
		s := sums[c.agent]
		if s == nil {
			s = &cut{agent: c.agent}
			sums[c.agent], order = s, append(order, c.agent)
		}
		s.n++
		s.sales = append(s.sales, c.sales...)
		s.waiting, s.found, s.lost, s.doubled = max(s.waiting, c.waiting), s.found+c.found, s.lost+c.lost, s.doubled+c.doubled
		s.known, s.asked, s.died, s.started = s.known+c.known, s.asked+c.asked, s.died+c.died, max(s.started, c.started)
	}
	w.Flush()
	for _, agent := range order {
		s := sums[agent]
		fmt.Fprintf(&text, "%s: %d cuts, %d sales answered, %d found, %d lost, %d doubled; %d of %d known when posted again; index built anew %d times, %d starts died in Badger; at most %d waiting, %.2f s to start\n",
			s.agent, s.n, len(s.sales), s.found, s.lost, s.doubled, s.known, s.asked, rebuilt[s.agent], s.died, s.waiting, s.started.Seconds())
	}
	t.Logf("\n%s", text.String())
}
