package linktest

import (
	"context"
	"errors"
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

// A World is one relay and its agents, each on a faulty line of its own, on a virtual clock.
// The first agent's fields are the world's own.
type World struct {
	*Agent
	Now    time.Time
	Sink   *Sink
	Faults Faults

	agents   []*Agent
	opt      link.Options
	receiver *link.Receiver
	rand     *rand.Rand
	events   []event // by time
}

// An Agent is one sender with what it stands on.
type Agent struct {
	Source  *Source
	Replica *Replica
	Sender  *link.Sender

	name string
	wake time.Time
	conn int // number of the connection
	up   bool
}

type event struct {
	at    time.Time
	agent *Agent
	conn  int
	do    func()
}

// NewWorld makes a world whose every choice comes from the seed.
func NewWorld(seed uint64, o link.Options) *World {
	w := &World{Now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Sink: NewSink(), opt: o, rand: rand.New(rand.NewPCG(seed, 1))}
	w.receiver = link.NewReceiver(w.Sink)
	w.Agent = w.add(NewSource())
	return w
}

func (w *World) add(source *Source) *Agent {
	a := &Agent{Source: source, Replica: NewReplica(), name: fmt.Sprintf("pc-1-%d", len(w.agents)+1)}
	w.start(a)
	w.agents = append(w.agents, a)
	return a
}

// start gives an agent a new sender, which knows nothing of the one before.
func (w *World) start(a *Agent) {
	a.up, a.wake = false, w.Now
	a.Sender = link.NewSender(a.Source, a.Replica, []string{"config", "items"}, w.opt, rand.New(rand.NewPCG(w.rand.Uint64(), 2)))
}

// Agents are all agents of the world.
func (w *World) Agents() []*Agent { return w.agents }

// Clone copies an agent's disk into another PC with the same identity, which starts. With
// memory it goes on in the epoch under way, as a copied virtual machine does.
func (w *World) Clone(a *Agent, memory bool) *Agent {
	source := a.Source.Copy()
	if !memory {
		source.Restart()
	}
	return w.add(source)
}

// Crash ends an agent without notice, and starts it again in a new epoch.
func (w *World) Crash(a *Agent) {
	a.Source.Crash()
	a.Source.Restart()
	w.start(a)
}

// Rollback makes an agent's disk an older copy; with memory it goes on in that one's epoch.
func (w *World) Rollback(a *Agent, to *Source, memory bool) {
	a.Source.Rollback(to)
	if !memory {
		a.Source.Restart()
	}
	w.start(a)
}

// Restore restores the sink from a backup.
func (w *World) Restore(b Backup, silent bool) {
	w.Sink.Restore(b, silent)
	for _, a := range w.agents {
		w.Cut(a, time.Second)
	}
}

// Cut ends an agent's connection, and lets none begin for so long.
func (w *World) Cut(a *Agent, d time.Duration) {
	if a.up {
		w.cut(a, nil)
	}
	a.wake = w.Now.Add(d)
}

// Run lets so much virtual time pass.
func (w *World) Run(d time.Duration) error {
	end := w.Now.Add(d)
	for {
		var next time.Time
		for _, a := range w.agents {
			if err := w.step(a); err != nil {
				return err
			}
			if !a.wake.IsZero() && (next.IsZero() || a.wake.Before(next)) {
				next = a.wake
			}
		}
		for _, a := range w.agents {
			if err := Sound(a.Source, w.Sink); err != nil {
				return err
			}
		}
		if len(w.events) > 0 && (next.IsZero() || w.events[0].at.Before(next)) {
			next = w.events[0].at
		}
		if next.IsZero() || next.After(end) {
			w.Now = end
			return nil
		}
		if next.After(w.Now) {
			w.Now = next
		}
		for len(w.events) > 0 && !w.events[0].at.After(w.Now) {
			e := w.events[0]
			w.events = w.events[1:]
			if e.conn == e.agent.conn && e.agent.up {
				e.do()
			}
		}
	}
}

// Settle lets the lines be whole for an hour, and checks that everything has arrived.
func (w *World) Settle() error {
	w.Faults = Faults{}
	if err := w.Run(time.Hour); err != nil {
		return err
	}
	for _, a := range w.agents {
		if err := Check(a.Source, w.Sink); err != nil {
			return fmt.Errorf("agent %s: %w; status %+v", a.name, err, a.Sender.Status())
		}
	}
	return nil
}

// step connects when the line is down, and asks the sender what to publish.
func (w *World) step(a *Agent) error {
	if !a.up {
		if w.Now.Before(a.wake) {
			return nil
		}
		a.conn++
		a.up = true
		a.Sender.Connected(w.Now, fmt.Sprintf("%s-%d", a.name, a.conn))
	}
	outs, wake, err := a.Sender.Step(w.Now)
	if err != nil {
		return fmt.Errorf("agent %s: step: %w", a.name, err)
	}
	a.wake = wake
	for _, out := range outs {
		if w.rand.Float64() < w.Faults.Cut {
			w.cut(a, nil)
			return nil
		}
		w.travel(a, func() { w.arrive(a, out) })
	}
	return nil
}

// cut ends a connection; what is on the way is gone.
func (w *World) cut(a *Agent, err error) {
	a.up = false
	a.Sender.Lost(err)
	a.wake = w.Now.Add(time.Second)
}

// travel lets a message arrive once, twice or never.
func (w *World) travel(a *Agent, do func()) {
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
		e := event{w.Now.Add(delay), a, a.conn, do}
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
func (w *World) arrive(a *Agent, out link.Out) {
	answer, err := w.receiver.Handle(context.Background(), Origin(), fmt.Sprintf("%s-%d", a.name, a.conn), out.Topic, out.Payload)
	if err != nil {
		w.cut(a, errors.New("the relay has let go"))
		return
	}
	if answer == nil {
		return
	}
	if w.rand.Float64() < w.Faults.Cut {
		w.cut(a, nil)
		return
	}
	w.travel(a, func() {
		if err := a.Sender.Received(w.Now, link.TopicDown, answer); err != nil {
			w.cut(a, err)
		}
	})
}

// News lets a hint arrive at every agent.
func (w *World) News(payload string) {
	for _, a := range w.agents {
		w.travel(a, func() { _ = a.Sender.Received(w.Now, link.TopicNews, []byte(payload)) }) // a hint has no error
	}
}
