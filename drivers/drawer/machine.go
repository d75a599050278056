package drawer

import (
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

const (
	commandLimit = 2 * time.Second        // from our pulse to the opening that it caused
	learnFrom    = 100 * time.Millisecond // a drawer needs so long to move
	learnTo      = 700 * time.Millisecond
	blindAfter   = 3 // pulses that moved nothing: the drawer has no switch
)

// The settings of open_level.
const (
	levelHigh  = "high"
	levelLow   = "low"
	levelLearn = "learn"
)

// A State is what has to be remembered of a drawer; it is stored with its last event.
type State struct {
	Open     bool      `json:"open"`
	Since    time.Time `json:"since,omitzero"`     // of the opening, while Open
	Cause    string    `json:"cause,omitempty"`    // of the opening
	LeftOpen bool      `json:"leftOpen,omitempty"` // said already
	Level    string    `json:"level,omitempty"`    // high or low: what open looks like, once learned
	Moved    bool      `json:"moved,omitempty"`    // a pulse or a hand has changed the level once
	Unmoved  int       `json:"unmoved,omitempty"`  // pulses in a row that moved nothing
}

// An outgoing event, with the state after it.
type outgoing struct {
	event protocol.DrawerEvent
	state State
}

// A machine turns levels, pulses and time into the events of one drawer. It is pure: it
// knows the time from its caller, and leaves the events in out.
type machine struct {
	id        string
	openLevel string        // high, low or learn
	leftOpen  time.Duration // 0: never said
	noSwitch  bool          // configured: levels mean nothing
	passive   bool          // levels are read in passing: that none comes says nothing, unless auto

	state   State
	seen    bool // a level since the port was opened
	high    bool // the last level
	sawAt   time.Time
	auto    bool      // passive: the device sends its level at each change
	assumed time.Time // passive: an opening that was said and not seen
	out     []outgoing
	pending *pulse // the command that waits for its opening
}

type pulse struct {
	command drivers.OpenCommand
	at      time.Time
	before  bool // the level at that time
}

// reopen forgets the level. A command that still waits is settled by the next one.
func (m *machine) reopen() { m.seen, m.auto = false, false }

// blind says that the drawer's state cannot be seen.
func (m *machine) blind() bool {
	return m.noSwitch || (!m.state.Moved && m.state.Unmoved >= blindAfter)
}

// level is the level that means open; known is false until it is learned.
func (m *machine) level() (high, known bool) {
	switch level := m.openLevel; {
	case level == levelHigh, level == levelLearn && m.state.Level == levelHigh:
		return true, true
	case level == levelLow, level == levelLearn && m.state.Level == levelLow:
		return false, true
	}
	return false, false
}

// opened is what Opener.Opened answers.
func (m *machine) opened() (open, known bool) {
	_, known = m.level()
	known = known && m.seen && !m.blind()
	return known && m.state.Open, known
}

// saw takes a level of pin 3.
func (m *machine) saw(high bool, at time.Time) {
	first := !m.seen
	changed := m.seen && high != m.high
	m.seen, m.high, m.sawAt = true, high, at
	if m.noSwitch {
		return
	}
	if changed {
		m.state.Moved, m.state.Unmoved = true, 0
	}
	if m.openLevel == levelLearn && m.state.Level == "" && !m.learn(high, changed, at) {
		return
	}
	want, _ := m.level()
	assumed := m.assumed
	m.assumed = time.Time{}
	switch open := high == want; {
	case open && !m.state.Open && !assumed.IsZero():
		m.state.Open, m.state.Since, m.state.Cause, m.state.LeftOpen = true, assumed, protocol.CauseCommanded, false
	case open && !m.state.Open:
		m.opening(first, at)
	case !open && m.state.Open:
		m.closing(first, at)
	}
}

// learn takes the level that our own pulse leads to as open.
func (m *machine) learn(high, changed bool, at time.Time) bool {
	if m.pending == nil || !changed || high == m.pending.before {
		return false
	}
	if after := at.Sub(m.pending.at); after < learnFrom || after > learnTo {
		return false
	}
	m.state.Level = levelLow
	if high {
		m.state.Level = levelHigh
	}
	return true
}

func (m *machine) opening(first bool, at time.Time) {
	e := protocol.DrawerEvent{Event: protocol.DrawerOpened, Cause: protocol.CauseManual}
	switch {
	case m.pending != nil && (first || at.Sub(m.pending.at) <= commandLimit):
		e = m.commanded(protocol.DrawerOpened)
	case first:
		e.Cause = protocol.CauseUnknown
	}
	m.state.Open, m.state.Since, m.state.Cause, m.state.LeftOpen = true, at, e.Cause, false
	m.emit(e, at)
}

// closing of a drawer that was found closed has no time of its own: nobody saw it.
func (m *machine) closing(first bool, at time.Time) {
	e := protocol.DrawerEvent{Event: protocol.DrawerClosed, OpenMS: max(at.Sub(m.state.Since).Milliseconds(), 0)}
	if first {
		e.Cause, e.OpenMS = protocol.CauseUnknown, 0
	}
	m.state.Open, m.state.Since, m.state.Cause, m.state.LeftOpen = false, time.Time{}, "", false
	m.emit(e, at)
}

// pulsed notes that the pulse is with the printer. Opening an open drawer is nothing. Of two
// pulses before an opening the later one caused it; the earlier one is forgotten when the
// drawer had no time to move, and has failed when it had.
func (m *machine) pulsed(command drivers.OpenCommand, at time.Time) {
	if open, known := m.opened(); known && open {
		return
	}
	if m.pending != nil && (m.seen || m.passive) && at.Sub(m.pending.at) > learnTo {
		m.settle(at)
	}
	m.pending = &pulse{command: command, at: at, before: m.high}
	if m.blind() { // nothing will be seen: the event says that the pulse went out
		m.emit(m.commanded(protocol.DrawerOpened), at)
	}
}

// settle ends a pulse that moved nothing. One of which nobody could see what it did is an
// opening.
func (m *machine) settle(at time.Time) {
	if m.passive && !m.auto && m.sawAt.Before(m.pending.at.Add(learnFrom)) {
		m.assumed = m.pending.at
		m.emit(m.commanded(protocol.DrawerOpened), at)
		return
	}
	m.state.Unmoved++
	m.emit(m.commanded(protocol.DrawerOpenFailed), at)
}

// tick lets time pass.
func (m *machine) tick(at time.Time) {
	if m.pending != nil && (m.seen || m.passive) && at.Sub(m.pending.at) > commandLimit {
		m.settle(at)
	}
	if m.state.Open && m.seen && m.leftOpen > 0 && !m.state.LeftOpen {
		if open := at.Sub(m.state.Since); open >= m.leftOpen {
			m.state.LeftOpen = true
			m.emit(protocol.DrawerEvent{Event: protocol.DrawerLeftOpen, Cause: m.state.Cause, OpenMS: open.Milliseconds()}, at)
		}
	}
}

// commanded is the event that the pending command ends with.
func (m *machine) commanded(event string) protocol.DrawerEvent {
	c := m.pending.command
	m.pending = nil
	return protocol.DrawerEvent{Event: event, Cause: protocol.CauseCommanded, Reason: c.Reason, Reference: c.Reference, Operator: c.Operator}
}

func (m *machine) emit(e protocol.DrawerEvent, at time.Time) {
	e.Drawer, e.At = m.id, at.UTC()
	m.out = append(m.out, outgoing{e, m.state})
}

// next is the time until tick has something to do; 0 = nothing is due.
func (m *machine) next(now time.Time) time.Duration {
	var wait time.Duration
	if m.pending != nil && (m.seen || m.passive) {
		wait = max(m.pending.at.Add(commandLimit).Sub(now), 0) + time.Millisecond
	}
	if m.state.Open && m.seen && m.leftOpen > 0 && !m.state.LeftOpen {
		left := max(m.state.Since.Add(m.leftOpen).Sub(now), time.Millisecond)
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}
