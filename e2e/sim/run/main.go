// Command run simulates the whole chain; see package sim.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/storelay/storelay/e2e/sim"
)

func main() {
	seed := flag.Uint64("seed", 0, "run this seed")
	file := flag.String("file", "", "run the schedule in this file")
	runs := flag.Uint64("runs", 0, "run so many seeds, from -from on, and stop at the first that fails")
	from := flag.Uint64("from", 1, "the first seed of -runs")
	workers := flag.Int("workers", runtime.NumCPU(), "runs at once")
	verbose := flag.Bool("v", false, "print all that happens")
	shrink := flag.Bool("shrink", true, "of a schedule that fails, look for the smallest that does")
	all := flag.Bool("all", false, "do not stop at the first that fails; name each")
	out := flag.String("out", "", "write the smallest schedule that fails to this file")
	flag.Parse()
	if *runs > 0 {
		os.Exit(many(*from, *runs, *workers, *all))
	}
	s := sim.Generate(*seed)
	if *file != "" {
		text, err := os.ReadFile(*file)
		if err == nil {
			s = sim.Schedule{}
			err = json.Unmarshal(text, &s)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	os.Exit(one(s, *verbose, *shrink, *out))
}

// one runs one schedule.
func one(s sim.Schedule, verbose, shrink bool, out string) int {
	fmt.Print(s.String())
	var trace sim.Tracer
	if verbose {
		trace = func(line string) { fmt.Println(line) }
	}
	r := sim.Run(s, trace)
	fmt.Printf("digest %s  %+v\n", r.Digest, r.Stats)
	if r.Err == nil {
		return 0
	}
	fmt.Println("FAILED:", r.Err)
	if shrink {
		s = sim.Shrink(s, func(s sim.Schedule, err error) { fmt.Printf("still fails with %d faults: %v\n", len(s.Faults), err) })
		fmt.Print(s.String())
	}
	if out != "" {
		if err := os.WriteFile(out, s.JSON(), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return 1
}

// many runs seeds on all cores.
func many(from, runs uint64, workers int, all bool) int {
	var next, done atomic.Uint64
	next.Store(from - 1)
	var mu sync.Mutex
	var failed *sim.Result
	var failing atomic.Bool
	began := time.Now()
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for !failing.Load() {
				seed := next.Add(1)
				if seed >= from+runs {
					return
				}
				r := sim.Run(sim.Generate(seed), nil)
				if n := done.Add(1); n%100 == 0 {
					fmt.Printf("%d of %d runs, %.0f s\n", n, runs, time.Since(began).Seconds())
				}
				if r.Err != nil {
					mu.Lock()
					if all {
						fmt.Printf("seed %d: %.200s\n", seed, r.Err)
					}
					failing.Store(!all)
					if failed == nil || r.Schedule.Seed < failed.Schedule.Seed {
						failed = &r
					}
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	if failed != nil {
		fmt.Printf("FAILED: seed %d: %v\nmake sim SEED=%d\n", failed.Schedule.Seed, failed.Err, failed.Schedule.Seed)
		return 1
	}
	fmt.Printf("%d runs, none failed, %.0f s\n", done.Load(), time.Since(began).Seconds())
	return 0
}
