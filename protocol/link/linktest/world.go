package linktest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol/link"
)

// Faults of a line: probabilities per message, or per message for a cut.
type Faults struct {
	Drop, Double, Cut float64
	Delay             time.Duration // longest; with it messages overtake each other
}

// A World is one sender and one receiver on a faulty line, on a virtual clock.
type World struct {
	Now     time.Time
	Source  *Source
	Replica *Replica
	Sink    *Sink
	Sender  *link.Sender
	Faults  Faults

	receiver *link.Receiver
	rand     *rand.Rand
	events   []event // by time
	wake     time.Time
	conn     int // number of the connection
	up       bool
}

type event struct {
	at   time.Time
	conn int
	do   func()
}

// NewWorld makes a world whose every choice comes from the seed.
func NewWorld(seed uint64, o link.Options) *World {
	w := &World{Now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Source: NewSource(), Replica: NewReplica(), Sink: NewSink(),
		rand: rand.New(rand.NewPCG(seed, 1))}
	w.Sender = link.NewSender(w.Source, w.Replica, []string{"config", "items"}, o, rand.New(rand.NewPCG(seed, 2)))
	w.receiver = link.NewReceiver(w.Sink)
	return w
}

// Run lets so much virtual time pass.
func (w *World) Run(d time.Duration) error {
	end := w.Now.Add(d)
	for {
		if err := w.step(); err != nil {
			return err
		}
		if err := Sound(w.Source, w.Sink); err != nil {
			return err
		}
		next := w.wake
		if len(w.events) > 0 && (next.IsZero() || w.events[0].at.Before(next)) {
			next = w.events[0].at
		}
		if next.IsZero() || next.After(end) {
			w.Now = end
			return nil
		}
		w.Now = next
		for len(w.events) > 0 && !w.events[0].at.After(w.Now) {
			e := w.events[0]
			w.events = w.events[1:]
			if e.conn == w.conn && w.up {
				e.do()
			}
		}
	}
}

// step connects when the line is down, and asks the sender what to publish.
func (w *World) step() error {
	if !w.up {
		w.conn++
		w.up = true
		w.Sender.Connected(w.Now, fmt.Sprintf("pc-1-%d", w.conn))
	}
	outs, wake, err := w.Sender.Step(w.Now)
	if err != nil {
		return fmt.Errorf("step: %w", err)
	}
	w.wake = wake
	for _, out := range outs {
		if w.rand.Float64() < w.Faults.Cut {
			w.cut()
			return nil
		}
		w.travel(func() { w.arrive(out) })
	}
	return nil
}

// cut ends the connection; what is on the way is gone.
func (w *World) cut() {
	w.up = false
	w.Sender.Lost(nil)
	w.wake = w.Now.Add(time.Second)
}

// travel lets a message arrive once, twice or never.
func (w *World) travel(do func()) {
	n := 1
	switch x := w.rand.Float64(); {
	case x < w.Faults.Drop:
		n = 0
	case x < w.Faults.Drop+w.Faults.Double:
		n = 2
	}
	for range n {
		delay := time.Millisecond
		if w.Faults.Delay > 0 {
			delay += time.Duration(w.rand.Int64N(int64(w.Faults.Delay)))
		}
		e := event{w.Now.Add(delay), w.conn, do}
		i, _ := slices.BinarySearchFunc(w.events, e, func(a, b event) int {
			if a.at.After(b.at) {
				return 1
			}
			return -1 // behind those of the same time
		})
		w.events = slices.Insert(w.events, i, e)
	}
}

// arrive is the relay's end.
func (w *World) arrive(out link.Out) {
	answer, err := w.receiver.Handle(context.Background(), Origin(), fmt.Sprintf("pc-1-%d", w.conn), out.Topic, out.Payload)
	if err != nil {
		w.cut()
		return
	}
	if answer == nil {
		return
	}
	if w.rand.Float64() < w.Faults.Cut {
		w.cut()
		return
	}
	w.travel(func() {
		if err := w.Sender.Received(w.Now, link.TopicDown, answer); err != nil {
			w.cut()
		}
	})
}

// News lets a hint arrive at the agent.
func (w *World) News(payload string) {
	w.travel(func() { _ = w.Sender.Received(w.Now, link.TopicNews, []byte(payload)) }) // a hint has no error
}
