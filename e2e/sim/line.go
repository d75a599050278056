package sim

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

// A line is a store's way to the relay.
type line struct {
	down    int   // faults that hold it down
	silent  int   // faults that let nothing pass
	percent int64 // of messages that are lost, doubled or late; a tenth of it break the connection
}

// An end is the agent's end of a link: a sender that is driven over the store's line.
type end struct {
	w      *world
	name   string
	pc     *pc
	line   *line
	origin protocol.Origin
	cert   *x509.Certificate
	sender *link.Sender
	r      *rand.Rand
	heard  func(op func(*link.Sender)) // is told what the sender was told, and looks at what came of it

	closed   bool
	id       string // of the connection; "" = there is none
	connects int
	wake     time.Time // when an event will step; zero = none will
	pause    time.Duration
}

func (w *world) newEnd(name string, p *pc, sender *link.Sender, life int, heard func(func(*link.Sender))) *end {
	cert, err := certificateOf(filepath.Join(p.dir, "identity"))
	if err != nil {
		w.fail("harness: %v", err)
	}
	return &end{w: w, name: name, pc: p, line: &p.store.line, origin: p.origin, cert: cert, sender: sender, r: w.random("line of "+name, life), heard: heard}
}

const (
	minPause = time.Second // between two connections, doubling
	maxPause = 30 * time.Second
)

// connectSoon dials after a pause.
func (e *end) connectSoon() {
	e.pause = min(max(2*e.pause, minPause), maxPause)
	e.w.in(e.pause/2+time.Duration(e.r.Int64N(int64(e.pause))), e.connect)
}

func (e *end) connect() {
	if e.closed || e.id != "" {
		return
	}
	if e.line.down > 0 || e.line.silent > 0 || !e.w.relay.admits(e.origin, e.cert) {
		e.connectSoon()
		return
	}
	e.connects++
	e.id = fmt.Sprintf("%s%016x", e.origin.Agent, e.r.Uint64())
	now, id := e.w.now, e.id
	e.sender.Connected(now, id)
	e.heard(func(s *link.Sender) { s.Connected(now, id) })
	e.step()
}

// cut ends the connection.
func (e *end) cut(err error) {
	if e.closed || e.id == "" {
		return
	}
	e.id = ""
	e.sender.Lost(err)
	e.heard(func(s *link.Sender) { s.Lost(err) })
	if errors.Is(err, link.ErrLeave) {
		e.w.say("%s: leaves the relay: %v", e.name, err)
	}
	e.connectSoon()
}

// gone ends the end with its agent.
func (e *end) gone() { e.closed, e.id = true, "" }

// poke tells that something has become durable.
func (e *end) poke() {
	if e != nil {
		e.step()
	}
}

// step lets the sender send what it has.
func (e *end) step() {
	if e.closed || e.id == "" {
		return
	}
	now, id := e.w.now, e.id
	outs, wake, err := e.sender.Step(now)
	e.heard(func(s *link.Sender) { _, _, _ = s.Step(now) })
	if e.closed {
		return
	}
	if err != nil {
		e.cut(err)
		return
	}
	for _, out := range outs {
		if e.id != id {
			return
		}
		e.up(out)
	}
	if wake.IsZero() {
		return
	}
	if floor := now.Add(time.Millisecond); wake.Before(floor) {
		wake = floor
	}
	if e.wake.IsZero() || wake.Before(e.wake) {
		e.wake = wake
		e.w.at(wake, func() {
			if e.wake.Equal(wake) {
				e.wake = time.Time{}
				e.step()
			}
		})
	}
}

// up sends a payload to the relay.
func (e *end) up(out link.Out) {
	id := e.id
	e.travel(func() {
		answer, err := e.w.relay.handle(e, id, out.Topic, out.Payload)
		switch {
		case err != nil:
			if e.id == id {
				e.cut(err)
			}
		case answer != nil:
			e.travel(func() { e.down(link.TopicDown, answer) })
			for _, twin := range e.w.ends() { // a copy of the PC listens to the same topic
				if twin != e && twin.origin == e.origin {
					twin.travel(func() { twin.down(link.TopicDown, answer) })
				}
			}
		}
	})
}

// down brings a payload from the relay, to whatever connection there is now: the sender
// knows which it is for.
func (e *end) down(topic link.Topic, payload []byte) {
	if e.closed || e.id == "" {
		return
	}
	now := e.w.now
	before, known := e.cursor()
	err := e.sender.Received(now, topic, payload)
	if after, still := e.cursor(); known && still && after < before && !beginsAnew(payload) {
		e.w.fail("%s: a page took the feed back from %d to %d", e.name, before, after)
	}
	e.heard(func(s *link.Sender) { _ = s.Received(now, topic, payload) })
	if e.closed {
		return
	}
	if err != nil {
		e.cut(err)
		return
	}
	if e.sender.Status().Welcomed {
		e.pause = 0
	}
	e.step()
}

// cursor is how far the PC has applied head office's settings; false while it is down.
func (e *end) cursor() (int64, bool) {
	if e.pc.agent == nil {
		return 0, false
	}
	at, err := e.pc.agent.Journal().Cursor(protocol.FeedConfig)
	return at, err == nil
}

// beginsAnew says whether a payload begins a snapshot of a feed; one that is packed is no page of
// settings.
func beginsAnew(payload []byte) bool {
	var down protocol.Down
	return json.Unmarshal(payload, &down) != nil || down.Page != nil && down.Page.Reset
}

// travel lets something arrive once, twice, late or never.
func (e *end) travel(arrive func()) {
	if e.line.down > 0 || e.line.silent > 0 {
		return
	}
	delay := func() time.Duration { return time.Duration(1+e.r.IntN(40)) * time.Millisecond }
	n := 1
	if e.r.Int64N(100) < e.line.percent {
		switch e.r.IntN(4) {
		case 0:
			n = 0
		case 1:
			n = 2
		case 2:
			n = 3
		default:
			if e.r.IntN(3) == 0 {
				e.cut(errors.New("the connection breaks"))
				n = e.r.IntN(2)
			}
		}
	}
	for range n {
		d := delay()
		if e.r.Int64N(100) < e.line.percent {
			d += time.Duration(e.r.Int64N(int64(8 * time.Second)))
		}
		line := e.line
		e.w.in(d, func() {
			if line.silent == 0 {
				arrive()
			}
		})
	}
}

// fall ends the connections of a line.
func (w *world) fall(l *line, why string) {
	for _, e := range w.ends() {
		if e.line == l {
			e.cut(errors.New(why))
		}
	}
}

// ends are those of all agents that run, and of journals that are drained.
func (w *world) ends() []*end {
	var all []*end
	for _, p := range w.pcs {
		if p.end != nil {
			all = append(all, p.end)
		}
		if p.former != nil && p.former.end != nil {
			all = append(all, p.former.end)
		}
	}
	return all
}
