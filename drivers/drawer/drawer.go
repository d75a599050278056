package drawer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

const (
	writeTimeout = 2 * time.Second
	emitRetry    = time.Second
	maxHeld      = 1000 // events that wait for the disk
)

// A drawer is the half of a driver that is the same on every wire: commands come in, the
// machine's events go out.
type drawer struct {
	spec    drivers.Spec
	machine machine // owned by Run
	loaded  bool    // owned by Run: state was read from the host once

	mu      sync.Mutex // guards what follows
	session *session   // nil: offline
	seen    sight
	changed chan struct{} // closed at the next change of seen; nil = nobody waits
}

// A sight is what Opened answers.
type sight struct{ open, known bool }

// A session is one Run with an open port.
type session struct {
	requests chan request
	done     chan struct{} // closed when the Run ends
}

type request struct {
	ctx     context.Context // of who waits: a command whose caller is gone is not sent
	command drivers.OpenCommand
	answer  chan error // cap 1
}

// A chunk is what one Read gave.
type chunk struct {
	data []byte
	at   time.Time
	till []order // tap: what the till has told the printer, and no data
}

// A wire is one Run's talk with the device. All methods but feed are called by one goroutine.
type wire interface {
	// feed hands over what is read until the port is lost or ctx ends.
	feed(ctx context.Context, chunks chan<- chunk) error
	// begin is called once, with an open port.
	begin(ctx context.Context) error
	take(ctx context.Context, c chunk)
	// ready says how long a command has to wait yet; an error refuses it.
	ready(now time.Time) (time.Duration, error)
	// kick sends the pulse. Not sent means: not now, ask ready again. An error means that the
	// port is lost.
	kick(ctx context.Context) (sent bool, err error)
	// wait is the time until due has something to do.
	wait(now time.Time) time.Duration
	due(ctx context.Context) error
}

// Open implements drivers.Opener.
func (d *drawer) Open(ctx context.Context, command drivers.OpenCommand) error {
	d.mu.Lock()
	s := d.session
	d.mu.Unlock()
	if s == nil {
		return &drivers.Fault{Device: d.spec.ID, Err: drivers.ErrOffline, Hint: "is the drawer or its printer switched on and connected?"}
	}
	r := request{ctx, command, make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-s.done:
		return d.justLost()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.answer:
		return err
	case <-s.done:
		select {
		case err := <-r.answer: // it was answered first
			return err
		default:
			return d.justLost()
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *drawer) justLost() error {
	return &drivers.Fault{Device: d.spec.ID, Err: drivers.ErrOffline, Hint: "the connection was just lost; try again"}
}

// Opened implements drivers.Opener.
func (d *drawer) Opened() (open, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen.open, d.seen.known
}

// Changed implements drivers.Watcher.
func (d *drawer) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.changed
}

// publish lets Open and Opened see what Run knows.
func (d *drawer) publish(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = s
	var now sight
	if s != nil {
		now.open, now.known = d.machine.opened()
	}
	if now == d.seen {
		return
	}
	d.seen = now
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// load reads the stored state at the first Run; later the machine is ahead of it.
func (d *drawer) load(host drivers.Host) error {
	d.machine.reopen()
	if d.loaded {
		return nil
	}
	if err := drivers.LoadState(host, &d.machine.state, "stored state is unreadable"); err != nil {
		return err
	}
	d.loaded = true
	return nil
}

// serve talks on an open wire until ctx ends or the wire is lost, then calls hangUp, which
// closes its ports.
func (d *drawer) serve(ctx context.Context, host drivers.Host, w wire, hangUp func()) error {
	s := &session{requests: make(chan request), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	chunks, lost := make(chan chunk), make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() { lost <- w.feed(ctx, chunks) })
	defer hangUp()
	defer reading.Wait()
	defer cancel()
	defer close(s.done)
	defer d.publish(nil)

	if err := w.begin(ctx); err != nil {
		return err
	}
	out := outbox{host: host, machine: &d.machine}
	var held []request
	for {
		out.deliver(ctx)
		d.publish(s)
		now := host.Now()
		timer := time.NewTimer(max(min(w.wait(now), out.wait(now), d.heldFor(w, held, now), time.Hour), time.Millisecond))
		var err error
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case err = <-lost:
		case c := <-chunks:
			w.take(ctx, c)
		case r := <-s.requests:
			held = append(held, r)
		case <-timer.C:
		}
		timer.Stop()
		if err == nil {
			d.machine.tick(host.Now())
			err = w.due(ctx)
		}
		if err == nil {
			held, err = d.obey(ctx, host, w, held)
		}
		if err != nil {
			last, done := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
			defer done()
			out.deliver(last)
			return err
		}
	}
}

// heldFor is the time until the machine or a held command has something to do.
func (d *drawer) heldFor(w wire, held []request, now time.Time) time.Duration {
	wait := time.Hour
	if next := d.machine.next(now); next > 0 {
		wait = next
	}
	if len(held) > 0 {
		if more, err := w.ready(now); err == nil {
			wait = min(wait, more)
		}
	}
	return wait
}

// obey sends the commands whose time has come and returns the others, in order. An error
// means that the port is lost.
func (d *drawer) obey(ctx context.Context, host drivers.Host, w wire, held []request) ([]request, error) {
	for len(held) > 0 {
		r := held[0]
		if r.ctx.Err() != nil {
			held = held[1:]
			continue
		}
		wait, err := w.ready(host.Now())
		if err != nil {
			r.answer <- err
			held = held[1:]
			continue
		}
		if wait > 0 {
			return held, nil
		}
		sent, err := w.kick(ctx)
		if err != nil {
			r.answer <- &drivers.Fault{Device: d.spec.ID, Err: fmt.Errorf("%w: %w", drivers.ErrOffline, err), Hint: "it takes no data: is it switched on?"}
			return held[1:], err
		}
		if !sent {
			return held, nil
		}
		d.machine.pulsed(r.command, host.Now())
		r.answer <- nil
		held = held[1:]
	}
	return nil, nil
}

// An outbox emits what a machine has said.
type outbox struct {
	host    drivers.Host
	machine *machine
	retry   time.Time // not before
}

// deliver emits in order. What the host refuses is tried again in a second.
func (o *outbox) deliver(ctx context.Context) {
	m := o.machine
	if len(m.out) > maxHeld {
		o.host.Note("drawer events lost: the disk took none for too long")
		m.out = m.out[len(m.out)-maxHeld:]
	}
	if o.host.Now().Before(o.retry) {
		return
	}
	for len(m.out) > 0 {
		next := m.out[0]
		state, err := json.Marshal(next.state)
		if err != nil {
			panic("drawer: state does not encode: " + err.Error()) // texts, numbers and times only
		}
		if err := o.host.Emit(ctx, protocol.KindDrawer, next.event, state); err != nil {
			o.host.Note("drawer event not accepted, kept")
			o.retry = o.host.Now().Add(emitRetry)
			return
		}
		m.out = m.out[1:]
	}
}

// wait is the time until deliver has something to do.
func (o *outbox) wait(now time.Time) time.Duration {
	if len(o.machine.out) == 0 {
		return time.Hour
	}
	return o.retry.Sub(now)
}

// read hands over what a port gives until it is lost or ctx ends.
func read(ctx context.Context, host drivers.Host, port serialport.Port, chunks chan<- chunk) error {
	buf := make([]byte, 1024)
	for {
		n, err := port.Read(ctx, buf)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		select {
		case chunks <- chunk{data: append([]byte(nil), buf[:n]...), at: host.Now()}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write sends within writeTimeout.
func write(ctx context.Context, port serialport.Port, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := port.Write(ctx, b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

const (
	pollASB     = 10 * time.Second       // once the device sends its status by itself: a sign of life
	pollMoving  = 150 * time.Millisecond // while a pulse waits for its opening
	answerLimit = 30 * time.Second       // without any status: the device is offline
)

// ErrSilent is the end of a Run in which the device answered nothing.
var ErrSilent = errors.New("the device does not answer")

// An asker asks for the status in time, and notices silence.
type asker struct {
	d            *drawer
	asked, heard time.Time
	plain        time.Duration // between two questions
	auto         bool          // the device sends its status by itself
}

func (a *asker) every() time.Duration {
	switch {
	case a.d.machine.pending != nil:
		return min(pollMoving, a.plain)
	case a.auto:
		return pollASB
	}
	return a.plain
}

func (a *asker) wait(now time.Time) time.Duration { return a.asked.Add(a.every()).Sub(now) }

// due says whether it is time to ask; an error is the end of a silent device.
func (a *asker) due(now time.Time) (bool, error) {
	if quiet := now.Sub(a.heard); quiet >= answerLimit {
		return false, &drivers.Fault{Device: a.d.spec.ID, Err: ErrSilent, Hint: "no status for " + quiet.Round(time.Second).String() + ": device off, wrong baud, or a cable without the way back (then say in the settings that it has no status)"}
	}
	return now.Sub(a.asked).Abs() >= a.every(), nil
}

// A health is what a printer says of itself.
type health struct{ offline bool }

// say reports the printer's own word.
func (h *health) say(ctx context.Context, d *drawer, host drivers.Host, offline bool, now time.Time) {
	if !offline {
		h.offline = false
		host.Online()
		return
	}
	if h.offline {
		return
	}
	h.offline = true
	state := protocol.DeviceState{Device: d.spec.ID, Driver: d.spec.Driver, Class: drivers.ClassDrawer, State: protocol.DeviceFault,
		At: now.UTC(), Reason: "the printer is offline", Hint: "paper, cover, or an error of the printer"}
	if err := host.Emit(ctx, protocol.KindDevice, state, nil); err != nil { // the supervisor takes it
		host.Note("fault not accepted")
	}
}

// refuse is the answer to a command that a printer would keep until it is online again.
func (h *health) refuse(d *drawer) error {
	return &drivers.Fault{Device: d.spec.ID, Err: drivers.ErrOffline, Hint: "the printer is out of paper, open, or in error"}
}

// pollSetting is the key of drivers that ask for the status.
func pollSetting(value time.Duration) drivers.Setting {
	return drivers.Setting{Name: "poll", Type: drivers.TypeDuration, Default: value, Min: int64(50 * time.Millisecond), Max: int64(10 * time.Second), Help: "between two questions for the status, while the device does not send it by itself; an opening that is shorter is not seen"}
}

// levelSettings are the keys that every drawer with a switch has.
func levelSettings(open string) []drivers.Setting {
	return []drivers.Setting{
		{Name: "open_level", Type: drivers.TypeChoice, Default: open, Choices: []string{levelHigh, levelLow, levelLearn}, Help: "level of the switch while the drawer is open; learn: what our first pulse leads to"},
		{Name: "left_open_ms", Type: drivers.TypeInt, Default: 120_000, Min: 0, Max: 86_400_000, Help: "open for so long is said once, ms; 0: never"},
	}
}

func newDrawer(spec drivers.Spec, v drivers.Values, noSwitch bool) drawer {
	return drawer{spec: spec, machine: machine{
		id: spec.ID, openLevel: v.Text("open_level"), leftOpen: time.Duration(v.Int("left_open_ms")) * time.Millisecond, noSwitch: noSwitch,
	}}
}

func portConfig(spec drivers.Spec, v drivers.Values) serialport.Config {
	return serialport.Config{
		Name: spec.Port, Baud: v.Int("baud"), DataBits: v.Int("data_bits"), Parity: v.Text("parity"), StopBits: v.Text("stop_bits"),
		DTR: serialport.Signal(v.Text("dtr")), RTS: serialport.Signal(v.Text("rts")),
	}
}
