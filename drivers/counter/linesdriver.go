package counter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// How two contacts tell in from out.
const (
	byLine  = "line"  // each contact counts its own direction, or one counts both
	byOrder = "order" // two beams side by side: who breaks in_line's first comes in
)

const noLine = "none"

const lateLook = 50 * time.Millisecond // between two looks: shorter pulses may be lost

// A Lines is the driver "lines": contacts on the modem lines of a port.
type Lines struct {
	spec     drivers.Spec
	open     serialport.OpenFunc
	config   serialport.Config
	tally    tally // owned by Run
	in, out  string
	off      bool // active is the level off
	debounce time.Duration
	window   time.Duration // 0: by line
	apart    bool
	every    time.Duration
	blocked  time.Duration // 0: never
}

// LinesSettings are the keys of the driver.
func LinesSettings() []drivers.Setting {
	return append(append(tallySettings(),
		drivers.Setting{Name: "in_line", Type: drivers.TypeChoice, Default: "CTS", Choices: []string{"CTS", "DSR", "DCD", "RI"}, Help: "input line of the contact that counts in, or of the first beam"},
		drivers.Setting{Name: "out_line", Type: drivers.TypeChoice, Default: noLine, Choices: []string{noLine, "CTS", "DSR", "DCD", "RI"}, Help: "input line of the contact that counts out, or of the second beam; none: one beam, both ways"},
		drivers.Setting{Name: "direction", Type: drivers.TypeChoice, Default: byLine, Choices: []string{byLine, byOrder}, Help: "line: each contact counts its own direction; order: who breaks the beam of in_line first and then that of out_line comes in"},
		drivers.Setting{Name: "window", Type: drivers.TypeDuration, Default: time.Second, Min: int64(50 * time.Millisecond), Max: int64(10 * time.Second), Help: "direction order: time from the first beam to the second; who takes longer, or turns round, is not counted"},
		drivers.Setting{Name: "beams", Type: drivers.TypeChoice, Default: "close", Choices: []string{"close", "apart"}, Help: "direction order: close, a person is in both beams for a moment; apart, a person may have left the first before the second, so that one who turns round and another who comes towards are taken for one"},
		drivers.Setting{Name: "active", Type: drivers.TypeChoice, Default: "on", Choices: []string{"on", "off"}, Help: "level of the line while a person is in the beam"},
		drivers.Setting{Name: "debounce", Type: drivers.TypeDuration, Default: 30 * time.Millisecond, Min: 0, Max: int64(time.Second), Help: "a level counts when it has lasted so long; shorter pulses are bouncing"},
		drivers.Setting{Name: "poll_interval", Type: drivers.TypeDuration, Default: 5 * time.Millisecond, Min: int64(time.Millisecond), Max: int64(100 * time.Millisecond), Help: "time between two looks at the lines; a pulse has to last debounce and two of these"},
		drivers.Setting{Name: "blocked", Type: drivers.TypeDuration, Default: 2 * time.Minute, Min: 0, Max: int64(24 * time.Hour), Help: "a contact that is active for so long is a fault: something stands in the beam; 0s: never"},
	), drivers.SerialSettings(9600)...)
}

// NewLines makes the driver; errors are protocol.Faults.
func NewLines(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, LinesSettings())
	d := &Lines{
		spec: spec, open: open, config: portConfig(spec, v), tally: newTally(spec.ID, v), in: v.Text("in_line"), out: v.Text("out_line"),
		off: v.Text("active") == "off", debounce: v.Duration("debounce"), every: v.Duration("poll_interval"), blocked: v.Duration("blocked"),
	}
	if d.out == d.in {
		faults.Add("settings.out_line", "the other beam's line, or none", "also in_line")
	}
	if v.Text("direction") == byOrder {
		d.window, d.apart = v.Duration("window"), v.Text("beams") == "apart"
		if d.out == noLine {
			faults.Add("settings.out_line", "direction order takes two beams", "missing")
		}
		if d.window <= d.debounce {
			faults.Add("settings.window", "", "not longer than debounce")
		}
	}
	d.tally.undirected = d.out == noLine
	return d, faults.Err()
}

// Run implements drivers.Driver.
func (d *Lines) Run(ctx context.Context, host drivers.Host) error {
	t := &d.tally
	if err := t.open(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open counter: %w", err)
	}
	defer port.Close()
	defer t.close(ctx, host)
	t.blind()

	codec := &LinesCodec{Debounce: d.debounce, Window: d.window, Apart: d.apart}
	timer := time.NewTimer(0)
	defer timer.Stop()
	last, elapsed := host.Now(), time.Unix(0, 0)
	undecided, turned, faulty := 0, 0, false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			timer.Reset(d.every)
		}
		lines, err := port.ModemLines()
		if errors.Is(err, serialport.ErrNoLines) {
			return &drivers.Fault{Device: d.spec.ID, Err: err, Hint: "this port has no input lines: take a serial port or adapter with CTS, DSR, DCD and RI"}
		}
		if err != nil {
			return fmt.Errorf("read counter: %w", err)
		}
		now := host.Now()
		step := d.step(now.Sub(last))
		if step > lateLook {
			host.Note("late look at the lines, the PC is busy")
		}
		elapsed = elapsed.Add(step)
		last = now
		in, out := codec.Sample(d.active(lines, d.in), d.active(lines, d.out), elapsed)
		if in+out > 0 {
			t.passed(uint64(in), uint64(out), now)
		}
		if codec.Undecided > undecided {
			undecided = codec.Undecided
			host.Note("both beams at once, not counted")
		}
		if codec.Turned > turned {
			turned = codec.Turned
			host.Note("one beam alone, not counted")
		}
		faulty = d.report(ctx, host, codec.Blocked(elapsed), now, faulty)
		t.emit(ctx, host)
	}
}

// step is the time between two looks, which does not go back or leap with the clock.
func (d *Lines) step(by time.Duration) time.Duration {
	if by < 0 {
		return d.every
	}
	return min(by, time.Second)
}

// active says whether a person is in the beam of a line.
func (d *Lines) active(lines serialport.ModemLines, name string) bool {
	var on bool
	switch name {
	case "CTS":
		on = lines.CTS
	case "DSR":
		on = lines.DSR
	case "DCD":
		on = lines.DCD
	case "RI":
		on = lines.RI
	default:
		return false
	}
	return on != d.off
}

// report says that the lines are read, or that a beam is blocked.
func (d *Lines) report(ctx context.Context, host drivers.Host, blocked time.Duration, now time.Time, faulty bool) bool {
	if d.blocked == 0 || blocked < d.blocked {
		d.tally.heard(host)
		return false
	}
	d.tally.alive = true
	if !faulty {
		state := protocol.DeviceState{Device: d.spec.ID, Driver: d.spec.Driver, Class: drivers.ClassCounter, State: protocol.DeviceFault,
			At: now.UTC(), Reason: "the beam is blocked", Hint: "is something in the beam, the sender dirty, or active the wrong way round?"}
		if err := host.Emit(ctx, protocol.KindDevice, state, nil); err != nil {
			host.Note("fault not accepted")
			return false
		}
	}
	return true
}
