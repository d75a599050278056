package drawer

import (
	"context"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// An ESCPOS is the driver "escpos": a cash drawer at an ESC/POS printer. The agent owns the
// printer's port, or stands as a tap between the till and the printer.
type ESCPOS struct {
	drawer
	open   serialport.OpenFunc
	config serialport.Config
	till   *serialport.Config // of the till's side; nil: no tap
	pause  time.Duration      // tap: silence of the till before we say anything
	poll   time.Duration      // tap: between two questions of ours; 0: none
	pulse  Pulse
	status bool // the printer answers
	every  time.Duration
}

// ESCPOSSettings are the keys of the driver.
func ESCPOSSettings() []drivers.Setting {
	return append(append([]drivers.Setting{
		{Name: "pin", Type: drivers.TypeChoice, Default: "2", Choices: []string{"2", "5"}, Help: "pin of the kick-out connector that opens the drawer"},
		{Name: "on_ms", Type: drivers.TypeInt, Default: 100, Min: 2, Max: 510, Help: "length of the opening pulse, ms"},
		{Name: "off_ms", Type: drivers.TypeInt, Default: 100, Min: 2, Max: 510, Help: "pause after it, ms"},
		{Name: "realtime", Type: drivers.TypeBool, Default: false, Help: "open past the print buffer (DLE DC4), also when the printer is out of paper"},
		{Name: "status", Type: drivers.TypeBool, Default: true, Help: "the printer answers and the drawer has a switch; false: pulses only"},
		pollSetting(time.Second),
		{Name: "till_port", Type: drivers.TypeText, Default: "", Help: "tap: the port to which the till is connected, while port is the printer's; all bytes pass both ways; empty: the agent owns the printer"},
		{Name: "till_baud", Type: drivers.TypeInt, Default: 0, Min: 0, Max: 4_000_000, Help: "tap: bits per second on the till's side; 0: as on the printer's"},
		{Name: "tap_pause", Type: drivers.TypeDuration, Default: 50 * time.Millisecond, Min: int64(10 * time.Millisecond), Max: int64(10 * time.Second), Help: "tap: the till must have been silent for so long, between two commands, before the agent opens the drawer"},
		{Name: "tap_poll", Type: drivers.TypeDuration, Default: time.Duration(0), Min: 0, Max: int64(time.Hour), Help: "tap: ask the printer for its status so often in pauses and keep the answers from the till; 0s: read what the till asks for and what the printer says by itself"},
	}, levelSettings(levelLearn)...), drivers.SerialSettings(9600)...)
}

// NewESCPOS makes the driver; it is a drivers.Opener. Errors are protocol.Faults.
func NewESCPOS(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, ESCPOSSettings())
	if till := v.Text("till_port"); till != "" && till == spec.Port {
		faults.Add("settings.till_port", "the till and the printer are on two ports", "also the printer's port")
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	ms := func(name string) time.Duration { return time.Duration(v.Int(name)) * time.Millisecond }
	pin := 2
	if v.Text("pin") == "5" {
		pin = 5
	}
	d := &ESCPOS{
		drawer: newDrawer(spec, v, !v.Bool("status")), open: open, config: portConfig(spec, v), status: v.Bool("status"), every: v.Duration("poll"),
		pulse: Pulse{Pin: pin, On: ms("on_ms"), Off: ms("off_ms"), RealTime: v.Bool("realtime")},
		pause: v.Duration("tap_pause"), poll: v.Duration("tap_poll"),
	}
	if till := v.Text("till_port"); till != "" {
		config := d.config
		config.Name, config.DTR, config.RTS = till, "", ""
		if baud := v.Int("till_baud"); baud > 0 {
			config.Baud = baud
		}
		d.till = &config
		d.machine.passive = true
	}
	return d, nil
}

// Run implements drivers.Driver. Without realtime a command is refused while the printer
// says that it is offline, since the pulse would wait there and open the drawer at any time.
func (d *ESCPOS) Run(ctx context.Context, host drivers.Host) error {
	if err := d.load(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open printer: %w", err)
	}
	if d.till == nil {
		w := &printer{d: d, host: host, port: port, asker: asker{d: &d.drawer, plain: d.every, heard: host.Now()}}
		return d.serve(ctx, host, w, func() { port.Close() })
	}
	till, err := d.open(ctx, *d.till)
	if err != nil {
		port.Close()
		return fmt.Errorf("open the till's side: %w", err)
	}
	w := newTap(d, host, port, till)
	return d.serve(ctx, host, w, func() { port.Close(); till.Close() })
}

// A printer is the wire of a printer whose port the agent owns.
type printer struct {
	d     *ESCPOS
	host  drivers.Host
	port  serialport.Port
	codec Codec
	asker
	health
}

func (p *printer) feed(ctx context.Context, chunks chan<- chunk) error {
	return read(ctx, p.host, p.port, chunks)
}

// begin asks for the status, now and at each change. A printer that is not to be asked
// counts as online once its port is open.
func (p *printer) begin(ctx context.Context) error {
	if !p.d.status {
		p.host.Online()
		return nil
	}
	if err := write(ctx, p.port, asbEnable); err != nil {
		return err
	}
	return p.ask(ctx)
}

func (p *printer) ask(ctx context.Context) error {
	p.asked = p.host.Now()
	return write(ctx, p.port, askStatus)
}

func (p *printer) wait(now time.Time) time.Duration {
	if !p.d.status {
		return time.Hour
	}
	return p.asker.wait(now)
}

func (p *printer) due(ctx context.Context) error {
	if !p.d.status {
		return nil
	}
	if now, err := p.asker.due(p.host.Now()); err != nil || !now {
		return err
	}
	return p.ask(ctx)
}

// take reads what the printer sent.
func (p *printer) take(ctx context.Context, c chunk) {
	noise := p.codec.Noise
	for _, s := range p.codec.Push(c.data, c.at) {
		if !p.d.status {
			continue
		}
		p.heard = c.at
		p.auto = p.auto || s.Auto
		p.say(ctx, &p.d.drawer, p.host, s.Offline, c.at)
		p.d.machine.saw(s.High, c.at)
	}
	if p.codec.Noise > noise {
		p.host.Note("noise on the line")
	}
}

func (p *printer) ready(time.Time) (time.Duration, error) {
	if p.offline && !p.d.pulse.RealTime {
		return 0, p.refuse(&p.d.drawer)
	}
	return 0, nil
}

func (p *printer) kick(ctx context.Context) (bool, error) {
	return true, write(ctx, p.port, p.d.pulse.Bytes())
}
