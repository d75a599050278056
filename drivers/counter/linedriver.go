package counter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// What the numbers of a line are.
const (
	kindAuto     = "auto" // by the names of the pattern's groups
	kindAbsolute = "absolute"
	kindDelta    = "delta"
)

const (
	pollTimeout     = 2 * time.Second // for a poll to leave the PC
	unansweredPolls = 3               // polls without any line after which the counter is offline
)

// A Line is the driver "line": any counter that speaks lines of text.
type Line struct {
	spec    drivers.Spec
	open    serialport.OpenFunc
	config  serialport.Config
	codec   LineCodec // owned by Run
	tally   tally     // owned by Run
	kind    string
	width   int
	poll    []byte // nil: the counter speaks by itself
	every   time.Duration
	silence time.Duration // 0: silence is no fault
}

// LineSettings are the keys of the driver.
func LineSettings() []drivers.Setting {
	return append(append(tallySettings(),
		drivers.Setting{Name: "pattern", Type: drivers.TypeText, Default: DefaultPattern, Help: "regular expression (RE2) of a line without checksum and end, with named groups in, out | total | delta_in, delta_out, and fault, uptime, seq"},
		drivers.Setting{Name: "terminator", Type: drivers.TypeChoice, Default: "any", Choices: []string{"any", "cr", "lf", "crlf"}, Help: "what ends a line; any: CR, LF or both"},
		drivers.Setting{Name: "max_length", Type: drivers.TypeInt, Default: 256, Min: 8, Max: 4096, Help: "bytes of a line; a longer one is skipped"},
		drivers.Setting{Name: "checksum", Type: drivers.TypeChoice, Default: checkXOR, Choices: []string{checkNone, checkXOR, checkSum8, checkCRC16}, Help: "hex digits at the end of a line"},
		drivers.Setting{Name: "checksum_mark", Type: drivers.TypeText, Default: defaultMark, Help: "between text and checksum; may be empty"},
		drivers.Setting{Name: "kind", Type: drivers.TypeChoice, Default: kindAuto, Choices: []string{kindAuto, kindAbsolute, kindDelta}, Help: "running totals, or people since the last line; auto: by the names of the groups"},
		drivers.Setting{Name: "width", Type: drivers.TypeInt, Default: 32, Min: 0, Max: 62, Help: "bits of the counter's totals, which wrap there; 0: never"},
		drivers.Setting{Name: "poll", Type: drivers.TypeText, Default: "", Help: `what asks for a line, such as R\r\n; empty: the counter speaks by itself`},
		drivers.Setting{Name: "poll_interval", Type: drivers.TypeDuration, Default: 10 * time.Second, Min: int64(100 * time.Millisecond), Max: int64(time.Hour), Help: "time between two polls"},
		drivers.Setting{Name: "silence", Type: drivers.TypeDuration, Default: time.Duration(0), Min: 0, Max: int64(24 * time.Hour), Help: "without any line for so long the counter is offline; 0s: three polls, or never without poll"},
	), drivers.SerialSettings(9600)...)
}

// NewLine makes the driver; errors are protocol.Faults.
func NewLine(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, LineSettings())
	pattern, kind, undirected, err := compile(v.Text("pattern"))
	if err != nil {
		faults.Add("settings.pattern", "such as "+DefaultPattern, "%s", err)
	}
	if given := v.Text("kind"); given != kindAuto {
		if err == nil && given == kindAbsolute && kind == kindDelta {
			faults.Add("settings.kind", "", "the pattern has deltas, so it cannot be absolute")
		}
		kind = given
	}
	poll, err := unescape(v.Text("poll"))
	if err != nil {
		faults.Add("settings.poll", `such as R\r\n`, "%s", err)
	}
	d := &Line{
		spec: spec, open: open, config: portConfig(spec, v), tally: newTally(spec.ID, v), kind: kind, width: v.Int("width"),
		codec: LineCodec{
			Pattern: pattern, Checksum: v.Text("checksum"), Mark: v.Text("checksum_mark"), Max: v.Int("max_length"),
			Ends: map[string]string{"any": "\r\n", "cr": "\r", "lf": "\n", "crlf": "\n"}[v.Text("terminator")],
		},
		poll: poll, every: v.Duration("poll_interval"), silence: v.Duration("silence"),
	}
	d.codec.TrimCR = v.Text("terminator") == "crlf"
	d.tally.undirected = undirected
	if d.silence == 0 && len(poll) > 0 {
		d.silence = unansweredPolls * d.every
	}
	return d, faults.Err()
}

// unescape reads \r, \n, \t, \x1b and the like.
func unescape(s string) ([]byte, error) {
	var out []byte
	for s != "" {
		r, multi, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil {
			return nil, fmt.Errorf("not readable: %q", s)
		}
		if multi {
			out = append(out, string(r)...)
		} else {
			out = append(out, byte(r))
		}
		s = rest
	}
	return out, nil
}

// Run implements drivers.Driver.
func (d *Line) Run(ctx context.Context, host drivers.Host) error {
	if err := d.tally.open(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open counter: %w", err)
	}
	defer context.AfterFunc(ctx, func() { port.Close() })() // unblocks Read
	defer port.Close()
	defer d.tally.close(ctx, host)

	d.codec.buf, d.codec.over = nil, false
	var seq string
	buf, heard, asked := make([]byte, 4096), host.Now(), host.Now().Add(-d.every)
	for {
		now := host.Now()
		if len(d.poll) > 0 && now.Sub(asked).Abs() >= d.every {
			if err := d.ask(ctx, port); err != nil {
				return err
			}
			asked = now
		}
		n, err := readFor(ctx, port, buf, d.wait(now, asked, heard))
		if err != nil {
			return err
		}
		now = host.Now()
		d.codec.Push(buf[:n], func(f LineFrame, err error) {
			if err != nil {
				host.Note("bad line: " + noteOf(err))
				return
			}
			heard = now
			repeated := f.Seq != "" && f.Seq == seq
			seq = f.Seq
			d.take(ctx, host, f, repeated, now)
		})
		d.tally.emit(ctx, host)
		if quiet := now.Sub(heard); d.silence > 0 && quiet >= d.silence {
			return &drivers.Fault{Device: d.spec.ID, Err: ErrSilent, Hint: "no good line for " + quiet.Round(time.Second).String() + ": check baud, pattern and checksum"}
		}
	}
}

// wait is the time until something is to be done without the counter.
func (d *Line) wait(now, asked, heard time.Time) time.Duration {
	wait := d.tally.wait(now)
	if len(d.poll) > 0 {
		wait = min(wait, d.every-now.Sub(asked))
	}
	if d.silence > 0 {
		wait = min(wait, d.silence-now.Sub(heard))
	}
	return max(wait, 0)
}

func (d *Line) ask(ctx context.Context, port serialport.Port) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	if err := port.Write(ctx, d.poll); err != nil {
		return fmt.Errorf("poll counter: %w", err)
	}
	return nil
}

// take adds one good line to the tally.
func (d *Line) take(ctx context.Context, host drivers.Host, f LineFrame, repeated bool, now time.Time) {
	d.tally.alive = true
	if f.Fault != "" {
		// The supervisor takes it and limits how often it is recorded.
		state := protocol.DeviceState{Device: d.spec.ID, Driver: d.spec.Driver, Class: drivers.ClassCounter, State: protocol.DeviceFault,
			At: now.UTC(), Reason: "the counter reports " + strconv.Quote(f.Fault)}
		if err := host.Emit(ctx, protocol.KindDevice, state, nil); err != nil {
			host.Note("fault not accepted")
		}
	} else {
		d.tally.heard(host)
	}
	switch {
	case !f.Counts:
	case d.kind != kindDelta:
		d.tally.total(Reading{In: f.In, Out: f.Out, Width: d.width, At: now, Uptime: f.Uptime})
	case repeated:
		host.Note("repeated line")
	default:
		d.tally.passed(f.In, f.Out, now)
	}
}

// noteOf is the kind of a fault of a line, without the line's text, so that notes do not
// multiply.
func noteOf(err error) string {
	for _, kind := range []error{errNoCheck, errBadCheck, errNoMatch, errTooLong, errNoNumber} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return errNoNumber.Error()
}
