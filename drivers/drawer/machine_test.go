package drawer

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

func newMachine(level string) *machine {
	return &machine{id: "drawer1", openLevel: level, leftOpen: 2 * time.Minute}
}

// after is noon plus milliseconds.
func after(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }

// said are the events as "event/cause/openMs/reason", and empties the list.
func (m *machine) said() []string {
	var s []string
	for _, o := range m.out {
		if err := o.event.Validate(); err != nil {
			s = append(s, err.Error())
		}
		s = append(s, fmt.Sprintf("%s/%s/%d/%s", o.event.Event, o.event.Cause, o.event.OpenMS, o.event.Reason))
	}
	m.out = nil
	return s
}

func expect(t *testing.T, m *machine, want ...string) {
	t.Helper()
	if got := m.said(); !slices.Equal(got, want) {
		t.Errorf("events = %q, want %q", got, want)
	}
}

var sale = drivers.OpenCommand{Reason: "sale", Reference: "0042/1/2026-03-02/7", Operator: "op1"}

// restart is the machine after a crash: what the last event stored.
func restart(t *testing.T, m *machine, state State) *machine {
	t.Helper()
	stored, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	again := newMachine(m.openLevel)
	if err := json.Unmarshal(stored, &again.state); err != nil {
		t.Fatal(err)
	}
	return again
}

func TestCommandedOpeningAndClosing(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.pulsed(sale, after(1000))
	m.saw(true, after(1150))
	if e := m.out[0].event; e.Reason != sale.Reason || e.Reference != sale.Reference || e.Operator != sale.Operator || !e.At.Equal(after(1150)) {
		t.Errorf("opened = %+v, want the command's words", e)
	}
	m.saw(true, after(1200))
	m.saw(false, after(9150))
	expect(t, m, "opened/commanded/0/sale", "closed//8000/")
}

func TestAnOpeningWithoutACommandIsManual(t *testing.T) {
	m := newMachine(levelLow)
	m.saw(true, after(0))
	m.saw(false, after(500))
	expect(t, m, "opened/manual/0/")
	m.saw(true, after(700))
	m.pulsed(sale, after(1000))
	m.saw(false, after(3001)) // not within two seconds
	expect(t, m, "closed//200/", "opened/manual/0/")
}

func TestOpenAtFirstSightIsUnknown(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(true, after(0))
	expect(t, m, "opened/unknown/0/")
	if open, known := m.opened(); !open || !known {
		t.Errorf("opened = %t, %t, want it open", open, known)
	}
}

func TestACommandThatOpensNothingFails(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.pulsed(sale, after(0))
	m.tick(after(2000))
	expect(t, m)
	m.tick(after(2001))
	m.tick(after(5000))
	expect(t, m, "openFailed/commanded/0/sale")
}

// Every command is a record, however soon the next one comes; a double click is one.
func TestACommandBeforeTheLimitOfAnotherSettlesIt(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.pulsed(sale, after(0))
	m.pulsed(sale, after(200))
	m.pulsed(sale, after(1200))
	m.saw(true, after(1400))
	expect(t, m, "openFailed/commanded/0/sale", "opened/commanded/0/sale")
}

func TestOpeningAnOpenDrawerIsNothing(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.saw(true, after(10))
	m.said()
	m.pulsed(sale, after(100))
	m.tick(after(5000))
	expect(t, m)
}

func TestLeftOpenIsSaidOnceAlsoOverARestart(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.saw(true, after(1000))
	m.tick(after(120_999))
	expect(t, m, "opened/manual/0/")
	m.tick(after(121_000))
	state := m.out[0].state
	m.tick(after(500_000))
	expect(t, m, "leftOpen/manual/120000/")
	m = restart(t, m, state)
	m.saw(true, after(600_000))
	m.tick(after(900_000))
	expect(t, m)
	m.saw(false, after(901_000))
	expect(t, m, "closed//900000/")
}

func TestClosedWhileNobodyLookedIsMarkedUnknown(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.saw(true, after(1000))
	m = restart(t, m, m.out[0].state)
	m.saw(false, after(60_000))
	expect(t, m, "closed/unknown/0/")
}

func TestLearnTakesTheLevelOfOurOwnPulse(t *testing.T) {
	for _, openIsHigh := range []bool{true, false} {
		m := newMachine(levelLearn)
		m.saw(!openIsHigh, after(0))
		m.saw(openIsHigh, after(100)) // a hand: it cannot be told yet what it did
		m.saw(!openIsHigh, after(200))
		expect(t, m)
		if _, known := m.opened(); known {
			t.Error("known before anything was learned")
		}
		m.pulsed(sale, after(1000))
		m.saw(openIsHigh, after(1150))
		m.saw(!openIsHigh, after(2150))
		state := m.out[len(m.out)-1].state
		expect(t, m, "opened/commanded/0/sale", "closed//1000/")
		m = restart(t, m, state)
		m.saw(!openIsHigh, after(3000))
		m.saw(openIsHigh, after(4000))
		expect(t, m, "opened/manual/0/")
	}
}

func TestLearnIgnoresALevelThatOurPulseCannotHaveCaused(t *testing.T) {
	for _, ms := range []int{99, 701} {
		m := newMachine(levelLearn)
		m.saw(false, after(0))
		m.pulsed(sale, after(0))
		m.saw(true, after(ms))
		if m.state.Level != "" {
			t.Errorf("learned from a change after %d ms", ms)
		}
	}
}

func TestADrawerWithoutASwitchIsFoundOut(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	for i := range blindAfter {
		m.pulsed(sale, after(10_000*i))
		m.tick(after(10_000*i + 3000))
	}
	expect(t, m, "openFailed/commanded/0/sale", "openFailed/commanded/0/sale", "openFailed/commanded/0/sale")
	if _, known := m.opened(); known {
		t.Error("the state of a drawer without a switch is known")
	}
	m.pulsed(sale, after(50_000))
	m.tick(after(60_000))
	expect(t, m, "opened/commanded/0/sale")
	m.saw(true, after(70_000)) // it has one after all
	expect(t, m, "opened/manual/0/")
	if _, known := m.opened(); !known {
		t.Error("a switch that moved is still taken as none")
	}
}

func TestACommandIsSettledAfterThePortWasLost(t *testing.T) {
	m := newMachine(levelHigh)
	m.saw(false, after(0))
	m.pulsed(sale, after(1000))
	m.reopen()
	m.tick(after(9000))
	expect(t, m)
	m.saw(true, after(10_000))
	expect(t, m, "opened/commanded/0/sale")

	m = newMachine(levelHigh)
	m.saw(false, after(0))
	m.pulsed(sale, after(1000))
	m.reopen()
	m.saw(false, after(10_000))
	m.tick(after(10_000))
	expect(t, m, "openFailed/commanded/0/sale")
}

// Whatever happens: openings and closings alternate, times are not negative, and each
// command ends in one event at most.
func TestEventsAlternate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(rapid.SampledFrom([]string{levelHigh, levelLow, levelLearn}).Draw(t, "level"))
		at, commands := noon, 0
		t.Repeat(map[string]func(*rapid.T){
			"level":  func(t *rapid.T) { m.saw(rapid.Bool().Draw(t, "high"), at) },
			"pulse":  func(*rapid.T) { commands++; m.pulsed(sale, at) },
			"reopen": func(*rapid.T) { m.reopen() },
			"time": func(t *rapid.T) {
				at = at.Add(time.Duration(rapid.IntRange(0, 200_000).Draw(t, "ms")) * time.Millisecond)
				m.tick(at)
			},
		})
		open, commanded := false, 0
		for _, o := range m.out {
			e := o.event
			if err := e.Validate(); err != nil || e.OpenMS < 0 {
				t.Fatalf("%+v: %v", e, err)
			}
			if e.Cause == protocol.CauseCommanded && e.Event != protocol.DrawerLeftOpen {
				commanded++
			}
			if !m.state.Moved {
				continue // a drawer without a switch says openings alone
			}
			switch e.Event {
			case protocol.DrawerOpened:
				if open && o.state.Open && o.state.Moved && e.Cause != protocol.CauseCommanded {
					t.Fatalf("opened twice: %q", m.said())
				}
				open = o.state.Open
			case protocol.DrawerClosed:
				if !open {
					t.Fatalf("closed twice: %q", m.said())
				}
				open = false
			}
		}
		if commanded > commands {
			t.Fatalf("%d commands ended in %d events", commands, commanded)
		}
	})
}
