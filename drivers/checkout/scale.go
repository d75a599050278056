package checkout

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// The wire of a Toledo 8217 scale: 9600 7E1, W asks for the weight. The answer is
// STX weight CR, with an N behind the weight when it is net, or STX ? status CR when there
// is none. The status byte stands alike in the 8213's table (Transcell PC 150, page B-3);
// its bits 5 and 6 differ by model and are not read, bit 7 is the parity.
const (
	stx = 0x02
	cr  = 0x0D

	scaleMotion    = 0x01
	scaleOver      = 0x02
	scaleUnder     = 0x04
	scaleZeroRange = 0x08
	scaleZero      = 0x10

	scaleMax      = 16 // bytes between STX and CR
	scaleMaxDigit = 9
)

// A ScaleFrame is one answer.
type ScaleFrame struct {
	State string // as in drivers.Weighing
	Milli int64  // thousandths of the scale's unit
	Net   bool
}

// A ScaleCodec finds answers.
type ScaleCodec struct {
	Decimals int // of a weight without a point
	Noise    int // bytes that belonged to no answer

	frame []byte
	in    bool // a frame has begun
}

// Push takes bytes and returns the answers that they complete.
func (c *ScaleCodec) Push(data []byte) []ScaleFrame {
	var out []ScaleFrame
	for _, b := range data {
		b &= 0x7F
		switch {
		case b == stx:
			c.Noise += len(c.frame)
			c.in, c.frame = true, c.frame[:0]
		case !c.in:
			c.Noise++
		case b == cr:
			if f, ok := parseScale(c.frame, c.Decimals); ok {
				out = append(out, f)
			} else {
				c.Noise += len(c.frame) + 2
			}
			c.in, c.frame = false, c.frame[:0]
		case len(c.frame) == scaleMax:
			c.Noise += len(c.frame) + 1
			c.in, c.frame = false, c.frame[:0]
		default:
			c.frame = append(c.frame, b)
		}
	}
	return out
}

// reset forgets what has begun.
func (c *ScaleCodec) reset() { c.in, c.frame = false, c.frame[:0] }

// parseScale reads what stands between STX and CR.
func parseScale(text []byte, decimals int) (ScaleFrame, bool) {
	if len(text) > 0 && text[0] == '?' {
		switch len(text) {
		case 1:
			return ScaleFrame{State: drivers.WeightNone}, true
		case 2:
			return ScaleFrame{State: scaleState(text[1])}, true
		}
		return ScaleFrame{}, false
	}
	var f ScaleFrame
	text = bytes.TrimLeft(text, " ")
	text, f.Net = bytes.CutSuffix(text, []byte("N"))
	whole, fraction, point := bytes.Cut(text, []byte("."))
	digits := append(bytes.Clone(whole), fraction...)
	if point {
		decimals = len(fraction)
	}
	if len(digits) == 0 || len(digits) > scaleMaxDigit || point && len(fraction) == 0 {
		return ScaleFrame{}, false
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			return ScaleFrame{}, false
		}
		f.Milli = f.Milli*10 + int64(d-'0')
	}
	for ; decimals < 3; decimals++ {
		f.Milli *= 10
	}
	for ; decimals > 3; decimals-- {
		if f.Milli%10 != 0 {
			return ScaleFrame{}, false // finer than a thousandth: the record could not hold it
		}
		f.Milli /= 10
	}
	f.State = drivers.WeightStable
	return f, true
}

// scaleState names the status byte; of several the one that a person has to see to first.
func scaleState(status byte) string {
	switch {
	case status&scaleOver != 0:
		return drivers.WeightOver
	case status&scaleUnder != 0:
		return drivers.WeightUnder
	case status&scaleMotion != 0:
		return drivers.WeightMotion
	case status&scaleZeroRange != 0:
		return drivers.WeightZeroRange
	case status&scaleZero != 0:
		return drivers.WeightZero
	}
	return drivers.WeightNone
}

// A Scale is the driver "scale". It is a drivers.Weigher. A weighing is no record: what was
// sold by it is a line of the receipt.
type Scale struct {
	spec     drivers.Spec
	open     serialport.OpenFunc
	config   serialport.Config
	command  []byte
	unit     string
	decimals int
	twice    bool
	timeout  time.Duration
	every    time.Duration

	presence presence
	asks     chan weighRequest
}

type weighRequest struct {
	ctx    context.Context
	answer chan weighAnswer // cap 1
}

type weighAnswer struct {
	weighing drivers.Weighing
	err      error
}

// ScaleSettings are the keys of the driver.
func ScaleSettings() []drivers.Setting {
	return append([]drivers.Setting{
		{Name: "command", Type: drivers.TypeText, Default: "W", Help: `what asks for the weight; some scales want W\r`},
		{Name: "unit", Type: drivers.TypeChoice, Default: "KGM", Choices: []string{"KGM", "GRM", "LBR", "ONZ"}, Help: "unit of the scale (UN/ECE Recommendation 20): kilogram, gram, pound, ounce"},
		{Name: "decimals", Type: drivers.TypeInt, Default: 3, Min: 0, Max: 3, Help: "decimals of a weight that comes without a point"},
		{Name: "twice", Type: drivers.TypeBool, Default: true, Help: "a weight counts when the scale says it twice: the answer has no checksum"},
		{Name: "timeout", Type: drivers.TypeDuration, Default: time.Second, Min: int64(50 * time.Millisecond), Max: int64(10 * time.Second), Help: "for one answer; some scales wait for the weight to come to rest"},
		{Name: "poll", Type: drivers.TypeDuration, Default: 10 * time.Second, Min: 0, Max: int64(time.Hour), Help: "asked so often for a sign of life; 0s: only when a till asks"},
	}, serialSettings(9600, 7, "even")...)
}

// NewScale makes the driver; errors are protocol.Faults.
func NewScale(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, ScaleSettings())
	command, err := drivers.Unescape(v.Text("command"))
	if err != nil || len(command) == 0 {
		faults.Add("settings.command", `such as W or W\r`, "want a command, got %q", v.Text("command"))
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return &Scale{spec: spec, open: open, config: portConfig(spec, v), command: command, unit: v.Text("unit"), decimals: v.Int("decimals"),
		twice: v.Bool("twice"), timeout: v.Duration("timeout"), every: v.Duration("poll"), asks: make(chan weighRequest)}, nil
}

// Weigh implements drivers.Weigher.
func (d *Scale) Weigh(ctx context.Context) (drivers.Weighing, error) {
	gone := d.presence.here()
	if gone == nil {
		return drivers.Weighing{}, offline(d.spec.ID, "is the scale switched on and connected?")
	}
	r := weighRequest{ctx, make(chan weighAnswer, 1)}
	select {
	case d.asks <- r:
	case <-gone:
		return drivers.Weighing{}, offline(d.spec.ID, "the connection to the scale was just lost; try again")
	case <-ctx.Done():
		return drivers.Weighing{}, ctx.Err()
	}
	select {
	case a := <-r.answer:
		return a.weighing, a.err
	case <-ctx.Done():
		return drivers.Weighing{}, ctx.Err()
	}
}

// unanswered questions in a row after which the scale is offline.
const scaleUnanswered = 3

// Run implements drivers.Driver.
func (d *Scale) Run(ctx context.Context, host drivers.Host) error {
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open scale: %w", err)
	}
	defer port.Close()
	defer d.presence.begin()()
	r := weighing{d: d, host: host, port: port, codec: ScaleCodec{Decimals: d.decimals}}
	if d.every == 0 {
		host.Online()
	}
	poll := time.NewTimer(0)
	defer poll.Stop()
	for {
		var request *weighRequest
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
			if d.every == 0 {
				continue
			}
			poll.Reset(d.every)
		case got := <-d.asks:
			if request = &got; got.ctx.Err() != nil {
				continue
			}
		}
		w, err := r.weigh(ctx)
		if request != nil {
			a := weighAnswer{weighing: w}
			if err != nil || w.State == "" {
				a.err = offline(d.spec.ID, "the scale does not answer: is it switched on? check baud and parity")
			}
			request.answer <- a
		}
		if err != nil {
			return err
		}
		if r.unanswered >= scaleUnanswered {
			return &drivers.Fault{Device: d.spec.ID, Err: ErrSilent, Hint: "scale off, wrong baud or parity, or another command"}
		}
	}
}

// A weighing is one Run.
type weighing struct {
	d          *Scale
	host       drivers.Host
	port       serialport.Port
	codec      ScaleCodec
	unanswered int
}

// weigh asks, and asks again until two answers agree. An error means that the port is lost;
// no state, that nothing came.
func (r *weighing) weigh(ctx context.Context) (drivers.Weighing, error) {
	var last ScaleFrame
	for range 4 {
		f, err := r.ask(ctx)
		if err != nil || f.State == "" {
			return drivers.Weighing{}, err
		}
		if f.State != drivers.WeightStable || f == last || !r.d.twice {
			return r.d.weighing(f, r.host.Now()), nil
		}
		last = f
	}
	return r.d.weighing(ScaleFrame{State: drivers.WeightMotion}, r.host.Now()), nil // each time another weight
}

func (d *Scale) weighing(f ScaleFrame, at time.Time) drivers.Weighing {
	w := drivers.Weighing{State: f.State, At: at.UTC()}
	if f.State == drivers.WeightStable || f.State == drivers.WeightZero {
		w.Weight = protocol.Quantity{Milli: f.Milli, Unit: d.unit}
	}
	return w
}

// ask sends the command once and waits for one answer; none is the zero frame.
func (r *weighing) ask(ctx context.Context) (ScaleFrame, error) {
	buf := make([]byte, 256)
	for { // what came too late answers nothing
		n, err := readFor(ctx, r.port, buf, time.Millisecond)
		if err != nil {
			return ScaleFrame{}, err
		}
		if n == 0 {
			break
		}
	}
	r.codec.reset()
	if err := write(ctx, r.port, r.d.command); err != nil {
		return ScaleFrame{}, err
	}
	noise := r.codec.Noise
	defer func() {
		if r.codec.Noise > noise {
			r.host.Note("noise on the line")
		}
	}()
	limited, cancel := context.WithTimeout(ctx, r.d.timeout)
	defer cancel()
	for {
		n, err := readUntil(ctx, limited, r.port, buf)
		if err != nil {
			return ScaleFrame{}, err
		}
		if got := r.codec.Push(buf[:n]); len(got) > 0 {
			r.unanswered = 0
			r.host.Online()
			return got[len(got)-1], nil
		}
		if n == 0 {
			r.unanswered++
			r.host.Note("no answer of the scale")
			return ScaleFrame{}, nil
		}
	}
}
