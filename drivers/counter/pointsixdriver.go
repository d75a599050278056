package counter

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// A PointSix is the driver "pointsix": the sensors behind one receiver.
type PointSix struct {
	spec    drivers.Spec
	open    serialport.OpenFunc
	config  serialport.Config
	little  bool
	silence time.Duration
	names   map[uint32]string // serial -> name; nil: the one sensor there is
	fresh   func(counter string) tally

	sensors map[uint32]*pointSixSensor // owned by Run
}

// A pointSixSensor is one counting line.
type pointSixSensor struct {
	name  string // as in the settings; "" is the device itself
	tally tally
	host  *part
	heard time.Time // or the beginning of the Run
	state string    // what was last said of it: "", or its fault
}

// PointSixSettings are the keys of the driver.
func PointSixSettings() []drivers.Setting {
	return append(append(tallySettings(),
		drivers.Setting{Name: "sensors", Type: drivers.TypeText, Default: "", Help: "serial=name of each sensor, such as 30864=front, 30865=yard: they become the counters ID-front and ID-yard of a device ID; unset: there is one sensor, which is the device itself"},
		drivers.Setting{Name: "serial_order", Type: drivers.TypeChoice, Default: "big", Choices: []string{"big", "little"}, Help: "order of the bytes of a serial number"},
		drivers.Setting{Name: "silence", Type: drivers.TypeDuration, Default: 10 * time.Minute, Min: int64(time.Second), Max: int64(24 * time.Hour), Help: "without a packet of a sensor for so long it is a fault, and without any the receiver is offline"},
	), drivers.SerialSettings(19200)...)
}

// NewPointSix makes the driver; errors are protocol.Faults.
func NewPointSix(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, PointSixSettings())
	names, err := readSensors(v.Text("sensors"), spec.ID)
	if err != nil {
		faults.Add("settings.sensors", "such as 30864=front, 30865=yard", "%s", err)
	}
	return &PointSix{
		spec: spec, open: open, config: portConfig(spec, v), little: v.Text("serial_order") == "little", silence: v.Duration("silence"), names: names,
		fresh: func(counter string) tally { t := newTally(counter, v); t.undirected = true; return t },
	}, faults.Err()
}

// readSensors reads "serial=name, ...".
func readSensors(s, device string) (map[uint32]string, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	names, taken := map[uint32]string{}, map[string]bool{}
	for entry := range strings.SplitSeq(s, ",") {
		number, name, ok := strings.Cut(strings.TrimSpace(entry), "=")
		serial, err := strconv.ParseUint(strings.TrimSpace(number), 10, 30)
		name = strings.TrimSpace(name)
		switch {
		case !ok || err != nil:
			return nil, fmt.Errorf("not serial=name: %q", entry)
		case name == "" || !protocol.ValidID(device+"-"+name):
			return nil, fmt.Errorf("not a name: %q", name)
		case names[uint32(serial)] != "" || taken[name]:
			return nil, fmt.Errorf("twice: %q", entry)
		}
		names[uint32(serial)], taken[name] = name, true
	}
	return names, nil
}

// Run implements drivers.Driver.
func (d *PointSix) Run(ctx context.Context, host drivers.Host) error {
	if err := d.begin(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open counter: %w", err)
	}
	defer context.AfterFunc(ctx, func() { port.Close() })() // unblocks Read
	defer port.Close()
	defer func() {
		for _, s := range d.inOrder() {
			s.tally.close(ctx, s.host)
		}
	}()

	codec := &PointSixCodec{LittleSerial: d.little}
	noise, heard, buf := 0, host.Now(), make([]byte, 4096)
	for {
		now := host.Now()
		wait := d.silence - now.Sub(heard)
		for _, s := range d.sensors {
			wait = min(wait, s.tally.wait(now))
		}
		n, err := readFor(ctx, port, buf, max(wait, 0))
		if err != nil {
			return err
		}
		now = host.Now()
		for _, f := range codec.Push(buf[:n]) {
			heard = now
			if err := d.take(ctx, host, f, now); err != nil {
				return err
			}
		}
		if codec.Noise > noise {
			noise = codec.Noise
			host.Note("noise on the line")
		}
		if quiet := now.Sub(heard); quiet >= d.silence {
			return &drivers.Fault{Device: d.spec.ID, Err: ErrSilent, Hint: "no packet for " + quiet.Round(time.Second).String() + ": is it a Point Host receiver, powered, at this baud, with its sensors in range?"}
		}
		for _, s := range d.inOrder() {
			if now.Sub(s.heard) >= d.silence {
				s.tally.alive = false // no counts of zero for a sensor that is not there
				d.say(ctx, host, s, "is silent", now)
			}
			s.tally.emit(ctx, s.host)
		}
	}
}

// begin opens the tallies: of the sensors in the settings, or of the one that was heard
// before.
func (d *PointSix) begin(host drivers.Host) error {
	if d.sensors == nil {
		parts, err := newParts(host)
		if err != nil {
			return err
		}
		d.sensors = map[uint32]*pointSixSensor{}
		for serial, name := range d.names {
			d.add(serial, name, parts)
		}
		for _, key := range parts.keys() {
			serial, err := strconv.ParseUint(key, 10, 30)
			if err == nil && d.names == nil && len(d.sensors) == 0 {
				d.add(uint32(serial), "", parts)
			}
		}
	}
	for _, s := range d.sensors {
		s.host.Host, s.heard, s.state = host, host.Now(), ""
		if err := s.tally.open(s.host); err != nil {
			return err
		}
	}
	return nil
}

func (d *PointSix) add(serial uint32, name string, p *parts) *pointSixSensor {
	counter := d.spec.ID
	if name != "" {
		counter += "-" + name
	}
	s := &pointSixSensor{name: name, tally: d.fresh(counter), host: p.part(strconv.FormatUint(uint64(serial), 10))}
	d.sensors[serial] = s
	return s
}

// inOrder gives the sensors by serial.
func (d *PointSix) inOrder() []*pointSixSensor {
	var list []*pointSixSensor
	for _, serial := range slices.Sorted(maps.Keys(d.sensors)) {
		list = append(list, d.sensors[serial])
	}
	return list
}

// take adds one packet to its sensor's tally.
func (d *PointSix) take(ctx context.Context, host drivers.Host, f PointSixFrame, now time.Time) error {
	if f.Other {
		host.Note("packet of another kind of sensor")
		return nil
	}
	s, known := d.sensors[f.Serial]
	if !known {
		if d.names != nil {
			host.Note("sensor " + strconv.FormatUint(uint64(f.Serial), 10) + " is not in the settings")
			return nil
		}
		if len(d.sensors) > 0 {
			only := slices.Collect(maps.Keys(d.sensors))[0]
			return &drivers.Fault{Device: d.spec.ID, Err: fmt.Errorf("two sensors are heard, %d and %d", only, f.Serial),
				Hint: fmt.Sprintf("say which are ours: sensors: %d=front, %d=yard", only, f.Serial)}
		}
		p, err := newParts(host)
		if err != nil {
			return err
		}
		s = d.add(f.Serial, "", p)
		s.host.Host = host
		if err := s.tally.open(s.host); err != nil {
			return err
		}
	}
	s.heard = now
	s.tally.alive = true
	if r := (Reading{In: uint64(f.Total), Width: pointSixWidth, At: now}); s.tally.believe(r) { // a sum of 8 bits lets some noise through
		s.tally.total(r)
	} else {
		host.Note("odd total, waiting for another")
	}
	switch {
	case f.Blocked:
		d.say(ctx, host, s, "reports a blocked beam", now)
	case f.Service:
		d.say(ctx, host, s, "is in service mode", now)
	default:
		s.state = ""
		if f.Fringe {
			host.Note("misaligned beam" + of(s.name))
		}
	}
	if !slices.ContainsFunc(d.inOrder(), func(s *pointSixSensor) bool { return s.state != "" }) {
		host.Online()
	}
	return nil
}

// say reports a fault of one sensor, once.
func (d *PointSix) say(ctx context.Context, host drivers.Host, s *pointSixSensor, what string, now time.Time) {
	if s.state == what {
		return
	}
	state := protocol.DeviceState{Device: d.spec.ID, Driver: d.spec.Driver, Class: drivers.ClassCounter, State: protocol.DeviceFault,
		At: now.UTC(), Reason: "the sensor" + of(s.name) + " " + what, Hint: "look at the beam, the battery and the distance to the receiver"}
	if err := host.Emit(ctx, protocol.KindDevice, state, nil); err != nil {
		host.Note("fault not accepted")
		return
	}
	s.state = what
}

func of(name string) string {
	if name == "" {
		return ""
	}
	return " " + name
}

// parts keep the states of several counting lines in the one state of a device.
type parts struct{ all map[string]json.RawMessage }

func newParts(host drivers.Host) (*parts, error) {
	p := &parts{}
	if err := drivers.LoadState(host, &p.all, unreadable); err != nil {
		return nil, err
	}
	if p.all == nil {
		p.all = map[string]json.RawMessage{}
	}
	return p, nil
}

func (p *parts) keys() []string { return slices.Sorted(maps.Keys(p.all)) }

func (p *parts) part(key string) *part { return &part{parts: p, key: key} }

// A part is the Host of one counting line of a device.
type part struct {
	drivers.Host
	parts *parts
	key   string
}

// State implements drivers.Host.
func (p *part) State() ([]byte, error) { return p.parts.all[p.key], nil }

// Emit implements drivers.Host: the other lines' states stay as they are.
func (p *part) Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error {
	if state == nil {
		return p.Host.Emit(ctx, kind, body, nil)
	}
	all := maps.Clone(p.parts.all)
	all[p.key] = state
	joined, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := p.Host.Emit(ctx, kind, body, joined); err != nil {
		return err
	}
	p.parts.all = all
	return nil
}
