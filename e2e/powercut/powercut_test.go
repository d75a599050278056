//go:build linux

// Package powercut takes the power from under the agent: the program as it is shipped runs on
// a file system in an image file, tills sell, and at a random moment the image is taken as the
// cut leaves it, mounted again, and the agent started on it. What was answered 201 must be in
// the relay's ledger once. `make powercut` runs it, as root, on Linux.
//
// What needs no root is TestACopyTakenWhileItRuns, and runs with every other test.
package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/e2e/chain"
)

// bins is the folder of the programs that the tests have built.
var bins string

func TestMain(m *testing.M) {
	if dir := os.Getenv(readEnv); dir != "" {
		if err := printJournal(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if code, done := enter(); done {
		return code
	}
	dir, err := os.MkdirTemp("", "storelay-powercut-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bins = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// shipped is a folder with both programs as `make build` makes them.
var shipped = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(bins, "shipped")
	return dir, errors.Join(build(filepath.Join(dir, "storelay-agent"), "../../agent"), build(filepath.Join(dir, "storelay-relay"), "../../relay"))
})

func build(program, from string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", program}, flags...)
	cmd := exec.Command("go", append(args, from)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	return nil
}

// start starts a chain of one store with many tills. It is stopped at the end, and its logs
// are shown when the test failed.
func start(t *testing.T, bin, dir string) *chain.Chain {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		for _, log := range logs {
			text, _ := os.ReadFile(log)
			t.Logf("%s ends:\n%s", filepath.Base(log), tail(string(text)))
		}
	})
	c, err := chain.Start(t.Context(), chain.Options{Dir: dir, Bin: bin, Stores: 1, Tills: tills, Lines: true, NoDrawer: true, Interval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

const tills = 6

// sell lets all tills sell as fast as they are answered, and people walk in, until ctx ends.
// A sale without an answer is posted again by the next sell.
func sell(ctx context.Context, s *chain.Store) {
	var all sync.WaitGroup
	for _, till := range s.Tills {
		all.Go(func() {
			for ctx.Err() == nil {
				_, _ = till.Sale(ctx) // what was not accepted is not in the till's list
			}
		})
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			s.Counter.Walk(1, 0)
		case <-ctx.Done():
		}
	}
	all.Wait()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wait(d time.Duration) { <-time.NewTimer(d).C }

// between is a random time from the first to the second.
func between(random *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(random.Int64N(int64(to-from)))
}

// tail is the end of a log without the sales refused, or how a panic or a fatal signal in it
// begins.
func tail(text string) string {
	var rest strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "transaction not accepted") {
			rest.WriteString(line)
		}
	}
	text = rest.String()
	for _, begin := range []string{"SIGBUS", "panic:", "fatal error:"} {
		if i := strings.LastIndex(text, begin); i >= 0 {
			return text[max(0, i-300):min(len(text), i+2000)]
		}
	}
	return text[max(0, len(text)-2000):]
}
