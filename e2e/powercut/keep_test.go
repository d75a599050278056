//go:build linux && powercut

package powercut

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
)

// TestACutWhileTheKeeperWorks cuts the power when the keeper does its round, a minute after
// the agent's start: it compresses what is acknowledged, takes a snapshot, and, the disk being
// low, drops the segments that the snapshot stands for. Only the snapshot knows their keys
// then, when the index is lost in the same cut.
func TestACutWhileTheKeeperWorks(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(seed(t), 1))
	type one struct {
		*rig
		cut     *cut
		started time.Time
	}
	var rigs []one
	var all []*cut
	for n := range 6 { // one after the other, so that their keepers come one after the other
		build, c := shipped, &cut{agent: "msync", disk: n + 1, n: 1, line: up}
		if n%2 == 1 {
			build, c.agent = withoutMsync, "no msync"
		}
		bin, err := build()
		check(t, err)
		r := beginOn(t, bin, rand.New(rand.NewPCG(random.Uint64(), 1)), 320)
		r.leave(3 * floorMB) // low enough to drop, and more than enough to sell
		started := time.Now()
		for range 3 { // each start begins a segment, and closes the one before
			stop := r.keepSelling()
			wait(time.Second)
			stop()
			check(t, r.store.Agent.Stop())
			if started = time.Now(); !r.starts() {
				t.Fatalf("the agent does not start again; its log ends:\n%s", tail(r.logged()))
			}
		}
		rigs, all = append(rigs, one{r, c, started}), append(all, c)
	}
	for _, r := range rigs {
		wait(time.Until(r.started.Add(57 * time.Second)))
		stop := r.keepSelling()
		for until := r.started.Add(90 * time.Second); len(kept(t, r.disk.at)) == 0; wait(time.Millisecond) {
			if time.Now().After(until) {
				stop()
				t.Fatal("the keeper does not come")
			}
		}
		wait(between(random, 0, 250*time.Millisecond))
		r.rig.cut(r.cut, stop)
		left := fmt.Sprint(kept(t, r.disk.at))
		r.powerOn()
		t.Logf("%s: the cut left of the keeper's work %s; index rebuilt: %t", r.cut.agent, left, r.cut.rebuilt)
	}
	for _, r := range rigs {
		r.prove()
	}
	judge(t, all)
}

// kept are the files of the keeper's making.
func kept(t *testing.T, at string) (names []string) {
	t.Helper()
	for _, pattern := range []string{"*.zst*", "*.snap*"} {
		found, err := filepath.Glob(filepath.Join(at, "journal", pattern))
		check(t, err)
		for _, path := range found {
			names = append(names, filepath.Base(path))
		}
	}
	return names
}
