package sim

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol/mutant"
)

// runs is how many seeds `make test` tries; `make sim RUNS=n` tries more.
const runs = 200

// program builds the command without the race detector, which would make it many times
// slower: a run is one goroutine.
func program(t *testing.T, tags string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sim")
	build := exec.Command("go", "build", "-tags", tags, "-o", path, "./run")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// TestBEY02ChainsHoldThePromiseUnderAnyFaults runs chains from many seeds. A failure names the
// seed that shows it again.
func TestBEY02ChainsHoldThePromiseUnderAnyFaults(t *testing.T) {
	out, err := exec.Command(program(t, ""), "-runs", fmt.Sprint(runs), "-all").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// TestBEY02TheSameSeedGivesTheSameRun also lets the race detector look at some runs.
func TestBEY02TheSameSeedGivesTheSameRun(t *testing.T) {
	for seed := uint64(1001); seed < 1005; seed++ {
		a, b := Run(Generate(seed), nil), Run(Generate(seed), nil)
		if a.Err != nil || b.Err != nil {
			t.Errorf("seed %d: %v, %v", seed, a.Err, b.Err)
		}
		if a.Digest != b.Digest || a.Schedule.String() != b.Schedule.String() {
			t.Errorf("seed %d came to %s and then to %s", seed, a.Digest, b.Digest)
		}
	}
}

// kept are the schedules in testdata: those that once failed, and those that a mutant needs.
func kept(t *testing.T) map[string]Schedule {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no schedules are kept: %v", err)
	}
	all := map[string]Schedule{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s Schedule
		if err := json.Unmarshal(text, &s); err != nil || s.Found == "" {
			t.Fatalf("%s: %v; want a schedule that says what it found", file, err)
		}
		all[file] = s
	}
	return all
}

func TestBEY02SchedulesThatOnceFailedHold(t *testing.T) {
	for file, s := range kept(t) {
		if r := Run(s, nil); r.Err != nil {
			t.Errorf("%s (%s): %v", file, s.Found, r.Err)
		}
	}
}

// TestBEY02EverySeededBugIsFound puts in one bug after the other, and wants the simulation to
// find each.
func TestBEY02EverySeededBugIsFound(t *testing.T) {
	sim := program(t, "mutants")
	schedules := kept(t)
	for _, bug := range mutant.All() {
		t.Run(bug, func(t *testing.T) {
			try := func(args ...string) bool {
				cmd := exec.Command(sim, append(args, "-shrink=false", "-workers", fmt.Sprint(runtime.NumCPU()))...)
				cmd.Env = append(os.Environ(), "STORELAY_MUTANT="+bug)
				out, err := cmd.CombinedOutput()
				_, what, found := strings.Cut(string(out), "FAILED:")
				if found != (err != nil) {
					t.Fatalf("%v\n%s", err, out)
				}
				if found {
					t.Logf("found:%.300s", what)
				}
				return found
			}
			own := filepath.Join("testdata", "mutant-"+bug+".json")
			if _, is := schedules[own]; is && try("-file", own) {
				return
			}
			if !try("-runs", "150") {
				t.Error("150 seeds do not find it")
			}
		})
	}
}
