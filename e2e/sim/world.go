package sim

import (
	"container/heap"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"time"
)

// chain is the chain of shops.
const chain = "sim"

// A Result is what a run came to.
type Result struct {
	Schedule Schedule
	Digest   string // of all that happened and of the ledger's state; the same for the same schedule
	Err      error  // what was wrong; nil = nothing
	Stats    Stats
}

// Stats say how much a run has done.
type Stats struct {
	Accepted, Records, Commits, Starts, Forks, Rewinds, Skips, Alarms int
}

// A Tracer is told, line by line, what happens; nil = nobody is.
type Tracer func(line string)

// Run runs a schedule.
func Run(s Schedule, trace Tracer) Result {
	dir, err := os.MkdirTemp(scratch(), "storelay-sim-")
	if err != nil {
		return Result{Schedule: s, Err: err}
	}
	defer os.RemoveAll(dir) //nolint:errcheck // what stays is in a temporary folder
	w := &world{s: s, dir: dir, now: s.begins(), trace: trace, sum: sha256.New()}
	w.book = newBook(w)
	err = w.live()
	w.over = true
	for _, p := range w.pcs {
		for _, g := range p.counters {
			g.end(false) // its driver would wait for ever
		}
	}
	if w.relay != nil {
		err = errors.Join(err, w.relay.end())
	}
	return Result{Schedule: s, Digest: fmt.Sprintf("%x", w.sum.Sum(nil)[:16]), Err: err, Stats: w.stats}
}

// scratch is where files may lie that need not survive anything.
func scratch() string {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		return memory
	}
	return ""
}

// A world is everything there is in a run, and its clock.
type world struct {
	s      Schedule
	dir    string
	now    time.Time
	events events
	number int // of events so far
	trace  Tracer
	sum    hash.Hash // of what was traced
	failed error     // the first thing that was wrong
	over   bool      // nothing is accepted any more
	calm   bool      // the faults have ended: what is broken heals
	stats  Stats

	stores   []*store
	pcs      []*pc
	relay    *relay
	receiver *receiver
	book     *book
}

// An event happens at its time; events of one time in the order in which they were made.
type event struct {
	at time.Time
	n  int
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = event{}
	*e = (*e)[:last]
	return x
}

// at lets something happen.
func (w *world) at(t time.Time, do func()) {
	if t.Before(w.now) {
		t = w.now
	}
	w.number++
	heap.Push(&w.events, event{t, w.number, do})
}

func (w *world) in(d time.Duration, do func()) { w.at(w.now.Add(d), do) }

// until lets time pass.
func (w *world) until(end time.Time) error {
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
		if w.failed != nil {
			return w.failed
		}
	}
	w.now = end
	return nil
}

// say traces what happens. It goes into the digest, so it must be the same in every run.
func (w *world) say(format string, args ...any) {
	line := w.now.UTC().Format("02 15:04:05.000") + "  " + fmt.Sprintf(format, args...)
	io.WriteString(w.sum, line+"\n") //nolint:errcheck // a hash takes everything
	if w.trace != nil {
		w.trace(line)
	}
}

// fail ends the run.
func (w *world) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = fmt.Errorf(format, args...)
		w.say("FAILED: %v", w.failed)
	}
}

// random is a source of choices that no other part draws from, so that a fault more or less
// leaves the shops' lives as they were.
func (w *world) random(what string, n int) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%d", what, n)
	return rand.New(rand.NewPCG(w.s.Seed, h.Sum64()))
}

func (w *world) ctx() context.Context { return context.Background() }

const (
	drainLimit = 8 * time.Hour // after the faults; what has not drained by then never will
	quiet      = 20 * time.Minute
)

// live is a whole run.
func (w *world) live() error {
	w.receiver = newReceiver(w)
	w.relay = newRelay(w)
	if err := w.relay.open(); err != nil {
		return err
	}
	for i := range w.s.Stores {
		if err := w.openStore(i); err != nil {
			return err
		}
	}
	for _, f := range w.s.Faults {
		w.at(w.s.begins().Add(time.Duration(f.At)), func() {
			if !w.calm {
				w.strike(f)
			}
		})
	}
	end := w.s.begins()
	for i := range w.stores {
		if t := w.s.opens(i, w.s.Days-1).Add(openFor + after); t.After(end) {
			end = t
		}
	}
	if err := w.until(end.Add(5*time.Minute + 37*time.Second)); err != nil {
		return err
	}
	w.say("the faults end")
	w.calm = true
	w.heal()
	if err := w.drain(); err != nil {
		return err
	}
	if err := w.everythingIsThere(); err != nil {
		return err
	}
	// The next day begins everywhere, so that the last one is marked.
	if err := w.until(w.now.Add(30 * time.Hour)); err != nil {
		return err
	}
	if err := w.drain(); err != nil {
		return err
	}
	return w.check()
}

// drain waits until everything has arrived, and a while more.
func (w *world) drain() error {
	limit, since := w.now.Add(drainLimit), time.Time{}
	for {
		if err := w.until(w.now.Add(61 * time.Second)); err != nil {
			return err
		}
		w.relay.replay()
		rest := w.undelivered()
		switch {
		case rest != "" && w.now.After(limit):
			w.fail("wedged: %s later %s", drainLimit, rest)
			return w.failed
		case rest != "":
			since = time.Time{}
		case since.IsZero():
			since = w.now
		case w.now.Sub(since) >= quiet:
			return nil
		}
	}
}

// undelivered says what is still on its way; "" = nothing.
func (w *world) undelivered() string {
	for _, p := range w.pcs {
		if rest := p.undelivered(); rest != "" {
			return rest
		}
	}
	return w.relay.undelivered()
}
