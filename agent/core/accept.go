package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/filedrop"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
)

// Accept implements till.Agent: it returns nil when the transaction is on disk.
func (a *Agent) Accept(ctx context.Context, in till.Intake) (till.Accepted, error) {
	receipt, err := a.append(ctx, journal.Entry{
		Kind: protocol.KindTransaction, Day: in.Transaction.BusinessDay, Body: in.Body, Keys: in.Keys, Digest: in.Digest,
	})
	accepted := till.Accepted{Position: receipt.Position, At: receipt.At, Known: receipt.Known}
	for _, known := range []struct{ journal, till error }{
		{journal.ErrConflict, till.ErrConflict}, {journal.ErrFull, till.ErrFull}, {journal.ErrTooBig, till.ErrTooBig},
		{journal.ErrBusy, till.ErrBusy},
	} {
		if errors.Is(err, known.journal) {
			return accepted, fmt.Errorf("%w: %w", known.till, err)
		}
	}
	if err == nil && receipt.Known {
		accepted.Body, err = a.journal.Body(receipt.Position)
		if errors.Is(err, journal.ErrGone) {
			accepted.Body, err = nil, nil // dropped by retention: the answer is made from the till's own words
		}
	}
	return accepted, err
}

// Drawer implements till.Agent.
func (a *Agent) Drawer(id string) (drivers.Opener, bool) {
	driver, _ := a.Device(id)
	opener, ok := driver.(drivers.Opener)
	return opener, ok
}

// Device implements till.Agent.
func (a *Agent) Device(id string) (drivers.Driver, bool) {
	for _, d := range a.devices {
		if d.spec.ID == id {
			return d.driver, true
		}
	}
	return nil, false
}

// Reject implements till.Agent: the body and the reason are kept in the rejected folder.
func (a *Agent) Reject(_ context.Context, name string, body []byte, faults protocol.Faults) error {
	a.log.Warn("rejected", "name", name, "faults", faults.Error())
	return a.rejects.keep(name, body, faults)
}

// A device is one configured device: its driver, and the Host that the driver runs on.
type device struct {
	agent  *Agent
	spec   Device
	class  string
	driver drivers.Driver

	mu    sync.Mutex // guards what follows
	state protocol.DeviceState
	seen  time.Time        // last Online
	last  json.RawMessage  // last body that was accepted, not of a state
	notes map[string]int64 // how often
	flaps flapGuard
}

// coarseCount is the shortest interval of a count that is accepted while the disk is nearly
// full. What is refused is part of the counter's next count, so that sales are refused last.
const coarseCount = 15 * time.Minute

// stateKey is where the journal keeps the driver's state.
func (d *device) stateKey() string { return "device/" + d.spec.ID }

// Emit implements drivers.Host.
func (d *device) Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error {
	if e, ok := body.(protocol.DrawerEvent); ok && !d.admit(&e) {
		d.Note("flapping, not recorded")
		return nil
	}
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode %s of %s: %w", kind, d.spec.ID, err)
	}
	if c, ok := body.(protocol.FootfallCount); ok && c.To.Sub(c.From) < coarseCount && d.agent.journal.Tight() {
		return fmt.Errorf("%w: counts are accepted every %s", journal.ErrFull, coarseCount)
	}
	entry := journal.Entry{Kind: kind, Day: d.agent.day(body), Body: text, Minor: kind == protocol.KindDevice}
	if state != nil {
		entry.StateKey, entry.State = d.stateKey(), state
	}
	// The end of ctx is no answer: a driver that is told to end would put what may be on the
	// disk already into its last count once more. The journal outlives the drivers.
	if _, err := d.agent.append(context.WithoutCancel(ctx), entry); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if s, ok := body.(protocol.DeviceState); ok {
		d.state = s
	} else {
		d.last = text
	}
	return nil
}

func (d *device) admit(e *protocol.DrawerEvent) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flaps.admit(e, d.agent.now())
}

// tellFlaps writes down how many events of a flapping drawer were left out.
func (d *device) tellFlaps(ctx context.Context) {
	now := d.agent.now()
	d.mu.Lock()
	reason, count, due := d.flaps.report(now)
	d.mu.Unlock()
	if !due {
		return
	}
	state := protocol.DeviceState{Device: d.spec.ID, Driver: d.spec.Driver, Class: d.class, State: protocol.DeviceFault, Reason: reason,
		Hint: "look at the drawer's switch and its cable", At: now.UTC()}
	if err := d.Emit(ctx, protocol.KindDevice, state, nil); err != nil {
		d.agent.log.Warn("flapping drawer not reported, will be tried again", "device", d.spec.ID, "err", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flaps.done(count, now)
}

// day is the business day of what a driver emits: of the end of a count, of the moment of an
// event.
func (a *Agent) day(body any) protocol.Day {
	rule := a.settings.Load().rule
	switch b := body.(type) {
	case protocol.FootfallCount:
		return rule.Day(b.To.Add(-time.Nanosecond))
	case protocol.DrawerEvent:
		return rule.Day(b.At)
	case protocol.CashIn:
		return rule.Day(b.At)
	}
	return rule.Day(a.now())
}

// State implements drivers.Host.
func (d *device) State() ([]byte, error) { return d.agent.journal.State(d.stateKey()) }

// Online implements drivers.Host.
func (d *device) Online() {
	now := d.agent.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = now
}

// maxNotes bounds the kinds of notes of one device.
const maxNotes = 32

// Note implements drivers.Host.
func (d *device) Note(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.notes == nil {
		d.notes = map[string]int64{}
	}
	if _, known := d.notes[what]; !known && len(d.notes) >= maxNotes {
		what = "other"
	}
	d.notes[what]++
}

// Now implements drivers.Host.
func (d *device) Now() time.Time { return d.agent.now() }

// A DeviceStatus is a device on the status page.
type DeviceStatus struct {
	ID     string           `json:"id"`
	Driver string           `json:"driver"`
	Class  string           `json:"class"`
	Port   string           `json:"port"`
	State  string           `json:"state"` // online, offline, fault; "" = not heard yet
	Reason string           `json:"reason,omitempty"`
	Hint   string           `json:"hint,omitempty"`
	Seen   *time.Time       `json:"seen,omitempty"` // last good frame
	Opened *bool            `json:"opened,omitempty"`
	Last   json.RawMessage  `json:"last,omitempty"`
	Notes  map[string]int64 `json:"notes,omitempty"`
}

func (d *device) status() DeviceStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := DeviceStatus{ID: d.spec.ID, Driver: d.spec.Driver, Class: d.class, Port: d.spec.Port, State: d.state.State,
		Reason: d.state.Reason, Hint: d.state.Hint, Last: d.last, Notes: maps.Clone(d.notes)}
	if !d.seen.IsZero() {
		seen := d.seen.UTC()
		s.Seen = &seen
	}
	if drawer, ok := d.driver.(drivers.Opener); ok {
		if open, known := drawer.Opened(); known {
			s.Opened = &open
		}
	}
	return s
}

// A DropStatus is a folder of files on the status page.
type DropStatus struct {
	filedrop.Status
	State string `json:"state"` // online, offline, fault; "" = not looked yet
}

// Status is what GET /v1/status shows.
type Status struct {
	Version     string          `json:"version"`
	Origin      protocol.Origin `json:"origin"`
	Started     time.Time       `json:"started"`
	Now         time.Time       `json:"now"`
	BusinessDay protocol.Day    `json:"businessDay"`
	Store       protocol.Store  `json:"storeSettings"`
	Told        bool            `json:"settingsFromHeadOffice"`
	Link        any             `json:"link"`
	Queue       journal.Stats   `json:"queue"`
	Devices     []DeviceStatus  `json:"devices"`
	Drops       []DropStatus    `json:"drops,omitempty"`
	Rejected    int             `json:"rejected"` // bodies in the rejected folder
	// RejectedNotKept is how many bodies since the start had no room there, and RejectedFull why the
	// next will have none: what a till had refused is then in the till alone.
	RejectedNotKept int      `json:"rejectedNotKept,omitempty"`
	RejectedFull    string   `json:"rejectedFull,omitempty"`
	Damage          []string `json:"damage,omitempty"`
	// ClockAheadSeconds is how far the PC's clock is ahead of the relay's last word, negative
	// when it is behind; only where it is in doubt.
	ClockAheadSeconds int64   `json:"clockAheadSeconds,omitempty"`
	SetAside          []Aside `json:"setAside,omitempty"` // journals of former agents that wait for `storelay-agent drain`
}

// setAside lists what waits to be drained, by the incarnation of the ledger that the agent has
// heard of, in this run or before.
func (a *Agent) setAside() []Aside {
	_, taken := a.journal.LastAck()
	return asideOf(a.cfg.Data, max(taken, a.sender.Status().Incarnation))
}

// Status implements till.Agent.
func (a *Agent) Status() any {
	set, now := a.settings.Load(), a.now()
	s := Status{
		Version: a.version, Origin: a.origin, Started: a.started.UTC(), Now: now.UTC(), BusinessDay: set.rule.Day(now),
		Store: set.store, Told: set.told, Link: a.sender.Status(), Queue: a.journal.Stats(),
		Damage: a.journal.Damage(), ClockAheadSeconds: int64(a.clock.Skew().Seconds()), SetAside: a.setAside(),
	}
	s.Rejected, s.RejectedNotKept, s.RejectedFull = a.rejects.status()
	for _, d := range a.devices {
		s.Devices = append(s.Devices, d.status())
	}
	for _, d := range a.drops {
		s.Drops = append(s.Drops, DropStatus{Status: d.driver.(*filedrop.Drop).Status(), State: d.status().State})
	}
	return s
}
