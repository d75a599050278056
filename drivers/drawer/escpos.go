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
	pollPlain    = time.Second            // DLE EOT 1 while the printer has not sent a status by itself
	pollASB      = 10 * time.Second       // and once it has: a sign of life
	pollMoving   = 150 * time.Millisecond // while a pulse waits for its opening
	answerLimit  = 30 * time.Second       // without any status: the printer is offline
	writeTimeout = 2 * time.Second
	emitRetry    = time.Second
	maxHeld      = 1000 // events that wait for the disk
)

// ErrSilent is the end of a Run in which the printer answered nothing.
var ErrSilent = errors.New("printer does not answer")

// An ESCPOS is the driver "escpos": a cash drawer at an ESC/POS printer whose port the agent
// owns.
type ESCPOS struct {
	spec   drivers.Spec
	open   serialport.OpenFunc
	config serialport.Config
	pulse  Pulse
	status bool // the printer answers

	machine machine // owned by Run
	loaded  bool    // owned by Run: state was read from the host once

	mu          sync.Mutex // guards what follows
	session     *session   // nil: offline
	drawerOpen  bool
	drawerKnown bool
}

// A session is one Run with an open port.
type session struct {
	requests chan request
	done     chan struct{} // closed when the Run ends
}

type request struct {
	command drivers.OpenCommand
	answer  chan error // cap 1
}

// ESCPOSSettings are the keys of the driver.
func ESCPOSSettings() []drivers.Setting {
	return append([]drivers.Setting{
		{Name: "pin", Type: drivers.TypeChoice, Default: "2", Choices: []string{"2", "5"}, Help: "pin of the kick-out connector that opens the drawer"},
		{Name: "on_ms", Type: drivers.TypeInt, Default: 100, Min: 2, Max: 510, Help: "length of the opening pulse, ms"},
		{Name: "off_ms", Type: drivers.TypeInt, Default: 100, Min: 2, Max: 510, Help: "pause after it, ms"},
		{Name: "realtime", Type: drivers.TypeBool, Default: false, Help: "open past the print buffer (DLE DC4), also when the printer is out of paper"},
		{Name: "status", Type: drivers.TypeBool, Default: true, Help: "the printer answers and the drawer has a switch; false: pulses only"},
		{Name: "open_level", Type: drivers.TypeChoice, Default: levelLearn, Choices: []string{levelHigh, levelLow, levelLearn}, Help: "level of pin 3 while the drawer is open; learn: what our first pulse leads to"},
		{Name: "left_open_ms", Type: drivers.TypeInt, Default: 120_000, Min: 0, Max: 86_400_000, Help: "open for so long is said once, ms; 0: never"},
	}, drivers.SerialSettings(9600)...)
}

// NewESCPOS makes the driver; it is a drivers.Opener. Errors are protocol.Faults.
func NewESCPOS(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, ESCPOSSettings())
	if err := faults.Err(); err != nil {
		return nil, err
	}
	ms := func(name string) time.Duration { return time.Duration(v.Int(name)) * time.Millisecond }
	pin := 2
	if v.Text("pin") == "5" {
		pin = 5
	}
	return &ESCPOS{
		spec: spec, open: open, status: v.Bool("status"),
		config: serialport.Config{
			Name: spec.Port, Baud: v.Int("baud"), DataBits: v.Int("data_bits"), Parity: v.Text("parity"), StopBits: v.Text("stop_bits"),
			DTR: serialport.Signal(v.Text("dtr")), RTS: serialport.Signal(v.Text("rts")),
		},
		pulse:   Pulse{Pin: pin, On: ms("on_ms"), Off: ms("off_ms"), RealTime: v.Bool("realtime")},
		machine: machine{id: spec.ID, openLevel: v.Text("open_level"), leftOpen: ms("left_open_ms"), noSwitch: !v.Bool("status")},
	}, nil
}

// Open implements drivers.Opener. Without realtime it is ErrOffline also while the printer
// says that it is offline, since the pulse would wait there and open the drawer at any time.
func (d *ESCPOS) Open(ctx context.Context, command drivers.OpenCommand) error {
	d.mu.Lock()
	s := d.session
	d.mu.Unlock()
	if s == nil {
		return &drivers.Fault{Device: d.spec.ID, Err: drivers.ErrOffline, Hint: "is the printer switched on and connected?"}
	}
	r := request{command, make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-s.done:
		return &drivers.Fault{Device: d.spec.ID, Err: drivers.ErrOffline, Hint: "the connection to the printer was just lost; try again"}
	case <-ctx.Done():
		return ctx.Err()
	}
	select { // Run has it and answers within writeTimeout
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Opened implements drivers.Opener.
func (d *ESCPOS) Opened() (open, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.drawerOpen, d.drawerKnown
}

// publish lets Open and Opened see what Run knows.
func (d *ESCPOS) publish(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = s
	d.drawerOpen, d.drawerKnown = false, false
	if s != nil {
		d.drawerOpen, d.drawerKnown = d.machine.opened()
	}
}

// load reads the stored state at the first Run; later the machine is ahead of it.
func (d *ESCPOS) load(host drivers.Host) error {
	d.machine.reopen()
	if d.loaded {
		return nil
	}
	stored, err := host.State()
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if len(stored) > 0 {
		if err := json.Unmarshal(stored, &d.machine.state); err != nil {
			host.Note("stored state is unreadable")
			d.machine.state = State{}
		}
	}
	d.loaded = true
	return nil
}

// Run implements drivers.Driver.
func (d *ESCPOS) Run(ctx context.Context, host drivers.Host) error {
	if err := d.load(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open printer: %w", err)
	}
	s := &session{requests: make(chan request), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	chunks, lost := make(chan []byte), make(chan error, 1)
	var reading sync.WaitGroup
	reading.Go(func() { lost <- read(ctx, port, chunks) })
	defer reading.Wait()
	defer port.Close()
	defer cancel()
	defer close(s.done)
	defer d.publish(nil)

	r := &running{d: d, host: host, port: port, heard: host.Now()}
	if err := r.begin(ctx); err != nil {
		return err
	}
	for {
		r.deliver(ctx)
		d.publish(s)
		timer := time.NewTimer(r.wait())
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case err = <-lost:
		case chunk := <-chunks:
			r.take(ctx, chunk)
		case request := <-s.requests:
			err = r.kick(ctx, request)
		case <-timer.C:
		}
		timer.Stop()
		if err == nil {
			err = r.due(ctx)
		}
		if err != nil {
			last, done := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
			defer done()
			r.deliver(last)
			return err
		}
	}
}

// read hands over what arrives until the port is lost or ctx ends.
func read(ctx context.Context, port serialport.Port, chunks chan<- []byte) error {
	buf := make([]byte, 1024)
	for {
		n, err := port.Read(ctx, buf)
		if err != nil {
			return fmt.Errorf("read printer: %w", err)
		}
		select {
		case chunks <- append([]byte(nil), buf[:n]...):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// running is what one Run knows beside the machine.
type running struct {
	d       *ESCPOS
	host    drivers.Host
	port    serialport.Port
	codec   Codec
	asked   time.Time
	heard   time.Time
	auto    bool // the printer sends its status by itself
	offline bool // the printer says that it does not print
	retry   time.Time
}

func (r *running) write(ctx context.Context, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := r.port.Write(ctx, b); err != nil {
		return fmt.Errorf("write to printer: %w", err)
	}
	return nil
}

// begin asks for the status, now and at each change. A printer that is not to be asked
// counts as online once its port is open.
func (r *running) begin(ctx context.Context) error {
	if !r.d.status {
		r.host.Online()
		return nil
	}
	if err := r.write(ctx, asbEnable); err != nil {
		return err
	}
	return r.ask(ctx)
}

func (r *running) ask(ctx context.Context) error {
	r.asked = r.host.Now()
	return r.write(ctx, askStatus)
}

func (r *running) every() time.Duration {
	switch {
	case r.d.machine.pending != nil:
		return pollMoving
	case r.auto:
		return pollASB
	}
	return pollPlain
}

// wait is the time until due has something to do.
func (r *running) wait() time.Duration {
	now := r.host.Now()
	wait := time.Hour
	if next := r.d.machine.next(now); next > 0 {
		wait = min(wait, next)
	}
	if r.d.status {
		wait = min(wait, r.asked.Add(r.every()).Sub(now))
	}
	if len(r.d.machine.out) > 0 {
		wait = min(wait, r.retry.Sub(now))
	}
	return max(wait, time.Millisecond)
}

// due does what the time asks for.
func (r *running) due(ctx context.Context) error {
	now := r.host.Now()
	r.d.machine.tick(now)
	if !r.d.status {
		return nil
	}
	if quiet := now.Sub(r.heard); quiet >= answerLimit {
		return &drivers.Fault{Device: r.d.spec.ID, Err: ErrSilent, Hint: "no status for " + quiet.Round(time.Second).String() + ": printer off, wrong baud, or a cable without the way back (then set status to false)"}
	}
	if now.Sub(r.asked).Abs() >= r.every() {
		return r.ask(ctx)
	}
	return nil
}

// take reads what the printer sent.
func (r *running) take(ctx context.Context, chunk []byte) {
	now, noise := r.host.Now(), r.codec.Noise
	for _, s := range r.codec.Push(chunk, now) {
		if !r.d.status {
			continue
		}
		r.heard = now
		r.auto = r.auto || s.Auto
		r.health(ctx, s.Offline, now)
		r.d.machine.saw(s.High, now)
	}
	if r.codec.Noise > noise {
		r.host.Note("noise on the line")
	}
}

// health reports the printer's own word on itself.
func (r *running) health(ctx context.Context, offline bool, now time.Time) {
	if !offline {
		r.offline = false
		r.host.Online()
		return
	}
	if r.offline {
		return
	}
	r.offline = true
	state := protocol.DeviceState{Device: r.d.spec.ID, Driver: r.d.spec.Driver, Class: drivers.ClassDrawer, State: protocol.DeviceFault,
		At: now.UTC(), Reason: "the printer is offline", Hint: "paper, cover, or an error of the printer"}
	if err := r.host.Emit(ctx, protocol.KindDevice, state, nil); err != nil { // the supervisor takes it
		r.host.Note("fault not accepted")
	}
}

// kick sends the pulse and answers the request. An error means that the port is lost.
func (r *running) kick(ctx context.Context, request request) error {
	if r.offline && !r.d.pulse.RealTime {
		request.answer <- &drivers.Fault{Device: r.d.spec.ID, Err: drivers.ErrOffline, Hint: "the printer is out of paper, open, or in error"}
		return nil
	}
	if err := r.write(ctx, r.d.pulse.Bytes()); err != nil {
		request.answer <- &drivers.Fault{Device: r.d.spec.ID, Err: fmt.Errorf("%w: %w", drivers.ErrOffline, err), Hint: "the printer takes no data: is it switched on?"}
		return err
	}
	r.d.machine.pulsed(request.command, r.host.Now())
	request.answer <- nil
	return nil
}

// deliver emits what the machine has said. What the host refuses is tried again in a second,
// in order.
func (r *running) deliver(ctx context.Context) {
	m := &r.d.machine
	if len(m.out) > maxHeld {
		r.host.Note("drawer events lost: the disk took none for too long")
		m.out = m.out[len(m.out)-maxHeld:]
	}
	if r.host.Now().Before(r.retry) {
		return
	}
	for len(m.out) > 0 {
		next := m.out[0]
		state, err := json.Marshal(next.state)
		if err != nil {
			panic("drawer: state does not encode: " + err.Error()) // texts, numbers and times only
		}
		if err := r.host.Emit(ctx, protocol.KindDrawer, next.event, state); err != nil {
			r.host.Note("drawer event not accepted, kept")
			r.retry = r.host.Now().Add(emitRetry)
			return
		}
		m.out = m.out[1:]
	}
}
