package counter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

const (
	modbusMisses      = 3                // polls without a good reading after which a unit is offline
	modbusReads       = 3                // readings of one poll at most, to confirm one that surprises
	modbusUptimeEvery = 10 * time.Second // between two looks at an uptime that nothing asks for
	modbusRetry       = time.Second      // after a poll without a good reading, if polls are rarer
)

// A Modbus is the driver "modbus": the totals of one unit on a Modbus RTU line. Several
// devices may share a port.
type Modbus struct {
	spec     drivers.Spec
	buses    *serialport.Buses
	open     serialport.OpenFunc
	config   serialport.Config
	tally    tally // owned by Run
	unit     byte
	m        modbusMap
	every    time.Duration
	timeout  time.Duration
	pause    time.Duration
	resetAt  uint64    // 0: never
	asked    bool      // a reset was written, and no lower total read since; owned by Run
	uptimeAt time.Time // when the uptime was read; owned by Run
}

// ModbusSettings are the keys of the driver.
func ModbusSettings() []drivers.Setting {
	return append(append(append([]drivers.Setting{
		{Name: "unit", Type: drivers.TypeInt, Default: 1, Min: 1, Max: 247, Help: "the unit's address on the line"},
	}, modbusMapSettings()...),
		drivers.Setting{Name: "undirected", Type: drivers.TypeChoice, Default: "auto", Choices: []string{"auto", "yes", "no"}, Help: "the total in counts people both ways (one beam); auto: when there is no total out"},
		drivers.Setting{Name: "poll_interval", Type: drivers.TypeDuration, Default: time.Second, Min: int64(50 * time.Millisecond), Max: int64(time.Hour), Help: "time between two readings"},
		drivers.Setting{Name: "timeout", Type: drivers.TypeDuration, Default: 300 * time.Millisecond, Min: int64(10 * time.Millisecond), Max: int64(10 * time.Second), Help: "for a whole reply; a radio gateway may need seconds"},
		drivers.Setting{Name: "pause", Type: drivers.TypeDuration, Default: 20 * time.Millisecond, Min: int64(2 * time.Millisecond), Max: int64(time.Second), Help: "the line is quiet for so long before a request; at least 3.5 characters"},
	), append(tallySettings(), drivers.SerialSettings(9600)...)...)
}

// NewModbus makes the driver; errors are protocol.Faults. Devices made with the same buses
// may share a port.
func NewModbus(spec drivers.Spec, open serialport.OpenFunc, buses *serialport.Buses) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, ModbusSettings())
	p, found := readModbusProfile(v.Text("profile"))
	faults = append(faults, found...)
	d := &Modbus{
		spec: spec, buses: buses, open: open, config: modbusPort(spec, v, p), tally: newTally(spec.ID, v),
		unit: byte(v.Int("unit")), m: readModbusMap(p, v, &faults),
		every: v.Duration("poll_interval"), timeout: v.Duration("timeout"), pause: v.Duration("pause"),
	}
	undirected := v.Text("undirected")
	d.tally.undirected = undirected == "yes" || undirected == "auto" && d.m.out < 0
	if len(d.m.resets) > 0 {
		if d.resetAt = uint64(v.Int("reset_above")); d.resetAt == 0 {
			d.resetAt = 3 << (d.m.width() - 2)
		}
	}
	if d.every > d.tally.interval {
		faults.Add("settings.poll_interval", "a count of an interval without a reading would say that nobody passed", "longer than interval, %s", d.tally.interval)
	}
	return d, faults.Err()
}

// ModbusPort is the port's configuration as the driver will ask for it, for a spec that is
// good.
func ModbusPort(spec drivers.Spec) serialport.Config {
	v, _ := drivers.ReadSettings(spec, ModbusSettings())
	p, _ := readModbusProfile(v.Text("profile"))
	return modbusPort(spec, v, p)
}

// modbusPort takes baud and stop bits from the profile where the device does not say them.
func modbusPort(spec drivers.Spec, v drivers.Values, p modbusProfile) serialport.Config {
	c := portConfig(spec, v)
	if _, given := spec.Settings["baud"]; !given && p.Baud != 0 {
		c.Baud = p.Baud
	}
	if _, given := spec.Settings["stop_bits"]; !given && p.StopBits != "" {
		c.StopBits = p.StopBits
	}
	return c
}

// Run implements drivers.Driver.
func (d *Modbus) Run(ctx context.Context, host drivers.Host) error {
	t := &d.tally
	if err := t.open(host); err != nil {
		return err
	}
	seat, err := d.buses.Take(ctx, d.config, d.open)
	if err != nil {
		return fmt.Errorf("open counter: %w", err)
	}
	defer seat.Leave()
	defer t.close(ctx, host)

	d.asked = false
	asked, missed := host.Now().Add(-d.every), 0
	for {
		now := host.Now()
		if now.Sub(asked).Abs() >= d.every {
			asked = now
			switch err := d.poll(ctx, host, seat); {
			case err == nil:
				missed = 0
			case !unheard(err):
				return err
			default:
				// A unit that was not heard at all gets one try, so that it costs the others little.
				if missed++; missed >= modbusMisses || !t.alive {
					return d.fault(err)
				}
				asked = asked.Add(min(modbusRetry, d.every) - d.every)
			}
		}
		t.emit(ctx, host)
		now = host.Now()
		if err := sleep(ctx, min(t.wait(now), d.every-now.Sub(asked))); err != nil {
			return err
		}
	}
}

// sleep waits, and is ended by ctx.
func sleep(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// errSurprise is a poll whose readings contradict each other.
var errSurprise = errors.New("readings contradict each other")

// unheard says whether err is one of a unit rather than of the port.
func unheard(err error) bool {
	var refusal ModbusRefusal
	return errors.Is(err, serialport.ErrNoReply) || errors.As(err, &refusal) || errors.Is(err, errNegative) || errors.Is(err, errSurprise)
}

// fault is what is said of a unit that gives no readings.
func (d *Modbus) fault(err error) error {
	hint := fmt.Sprintf("no reply from unit %d: check its power and address, A and B of the line, baud, parity and stop bits", d.unit)
	var refusal ModbusRefusal
	switch {
	case errors.As(err, &refusal):
		hint = fmt.Sprintf("unit %d is there and refuses: check profile, function and registers", d.unit)
	case errors.Is(err, errNegative), errors.Is(err, errSurprise):
		hint = fmt.Sprintf("unit %d is there and its totals make no sense: check profile, registers, width, word order and signed; or two units have this address", d.unit)
	case errors.Is(err, serialport.ErrNoReply):
		err = fmt.Errorf("%w: %w", ErrSilent, err)
	}
	return &drivers.Fault{Device: d.spec.ID, Err: err, Hint: hint}
}

// poll takes one reading into the tally. One that surprises is read again at once: Modbus
// does not say which request a reply belongs to, and a checksum of 16 bits is soon guessed
// on a bad line.
func (d *Modbus) poll(ctx context.Context, host drivers.Host, seat *serialport.Seat) error {
	for range modbusReads {
		r, err := d.read(ctx, host, seat)
		if err != nil {
			host.Note(modbusNote(err))
			return err
		}
		if d.tally.believe(r) {
			d.take(host, r)
			return d.reset(ctx, host, seat, r)
		}
	}
	host.Note(errSurprise.Error())
	return errSurprise
}

// modbusNote is the kind of an error of a unit.
func modbusNote(err error) string {
	var refusal ModbusRefusal
	if errors.As(err, &refusal) {
		return refusal.Error()
	}
	if errors.Is(err, serialport.ErrNoReply) {
		return serialport.ErrNoReply.Error()
	}
	if errors.Is(err, errNegative) {
		return errNegative.Error()
	}
	return "reading failed"
}

// take adds a believed reading.
func (d *Modbus) take(host drivers.Host, r Reading) {
	if last := d.tally.last(); d.asked && (r.In < last.In || r.Out < last.Out) {
		r.Reset, d.asked = true, false
	}
	d.tally.heard(host)
	d.tally.total(r)
}

// read asks for the totals and then for the uptime: in that order a unit that loses its
// power in between is seen to have done so now or at the next reading, not twice.
func (d *Modbus) read(ctx context.Context, host drivers.Host, seat *serialport.Seat) (Reading, error) {
	r := Reading{Width: d.m.width()}
	var err error
	words := d.m.words
	if d.m.out == d.m.in+words || d.m.in == d.m.out+words {
		var values []uint16
		if values, err = d.registers(ctx, host, seat, d.m.function, min(d.m.in, d.m.out), 2*words); err != nil {
			return r, err
		}
		in, out := values[:words], values[words:]
		if d.m.out < d.m.in {
			in, out = out, in
		}
		if r.In, err = modbusTotal(in, d.m.lowFirst, d.m.signed); err == nil {
			r.Out, err = modbusTotal(out, d.m.lowFirst, d.m.signed)
		}
	} else {
		if r.In, err = d.total(ctx, host, seat, d.m.in); err == nil && d.m.out >= 0 {
			r.Out, err = d.total(ctx, host, seat, d.m.out)
		}
	}
	if err != nil {
		return r, err
	}
	r.At = host.Now()
	if d.m.uptimeFunction == 0 || d.m.keeps {
		return r, nil
	}
	if r.Uptime = d.tally.state.Uptime; d.uptimeDue(r) {
		values, err := d.registers(ctx, host, seat, d.m.uptimeFunction, int(d.m.uptime), d.m.uptimeWords)
		if err != nil {
			return r, err
		}
		seconds, _ := modbusTotal(values, d.m.lowFirst, false)
		uptime := int64(seconds)
		r.Uptime, r.At = &uptime, host.Now()
		d.uptimeAt = r.At
	}
	return r, nil
}

// uptimeDue says whether the uptime has to be read too. Between two looks at it, a unit that
// begins again is seen by totals that fall, unless they were so low that they may be passed
// again by now.
func (d *Modbus) uptimeDue(r Reading) bool {
	last, rate := d.tally.last(), d.tally.rate
	since := r.At.Sub(d.uptimeAt).Abs()
	return last.Uptime == nil || since >= modbusUptimeEvery || max(last.In, last.Out) <= rate.most(since) ||
		d.tally.surprise != nil || !last.follows(r, rate)
}

func (d *Modbus) total(ctx context.Context, host drivers.Host, seat *serialport.Seat, at int) (uint64, error) {
	values, err := d.registers(ctx, host, seat, d.m.function, at, d.m.words)
	if err != nil {
		return 0, err
	}
	return modbusTotal(values, d.m.lowFirst, d.m.signed)
}

func (d *Modbus) registers(ctx context.Context, host drivers.Host, seat *serialport.Seat, function byte, at, n int) ([]uint16, error) {
	return d.ask(ctx, host, seat, ModbusRequest{Unit: d.unit, Function: function, Register: uint16(at), Count: uint16(n)})
}

func (d *Modbus) ask(ctx context.Context, host drivers.Host, seat *serialport.Seat, q ModbusRequest) ([]uint16, error) {
	reply := ModbusReply{Request: q}
	err := seat.Do(ctx, serialport.Exchange{Request: q.Frame(), Quiet: d.pause, Timeout: d.timeout, Reply: reply.Push})
	if reply.Noise > 0 {
		host.Note("noise on the line")
	}
	if err != nil {
		return nil, fmt.Errorf("ask unit %d: %w", d.unit, err)
	}
	return reply.Values, reply.Err
}

// reset sets the totals to zero when one has passed its mark and all who are in it are on
// disk. Whether it worked is seen in the next reading.
func (d *Modbus) reset(ctx context.Context, host drivers.Host, seat *serialport.Seat, r Reading) error {
	if d.resetAt == 0 || max(r.In, r.Out) < d.resetAt || !d.tally.put(ctx, host, host.Now()) {
		return nil
	}
	for _, q := range d.m.resets {
		q.Unit = d.unit
		d.asked = true
		if _, err := d.ask(ctx, host, seat, q); err != nil {
			host.Note("reset not confirmed: " + modbusNote(err))
			if !unheard(err) {
				return err
			}
		}
	}
	return nil
}
