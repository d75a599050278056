package counter

import (
	"context"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// The frames of Digicon turnstiles: manual of the Tx1500, page 31, and of the CATRAX Master,
// page 24; 115200 baud.
//
//	02 size(2, low byte first) commands bcc      size: commands and bcc; bcc: XOR of all before it
//
// The turnstile sends 1A and 1B at each passage, and 06 or 15 as its answer to a command. We
// send none: it is the access system's to command. Whether it wants a passage acknowledged,
// and repeats it otherwise, is not printed.
const (
	turnstileACK       = 0x06
	turnstileSTX       = 0x02
	turnstileRightLeft = 0x1A
	turnstileLeftRight = 0x1B
	turnstileMostSize  = 8 // the manual's commands have one or two bytes
	turnstileSettle    = 100 * time.Millisecond
)

// A TurnstileFrame is what one good frame says.
type TurnstileFrame struct {
	Commands []byte
}

// Passage says who passed, if the frame is of a passage.
func (f TurnstileFrame) Passage() (leftRight, rightLeft uint64) {
	if len(f.Commands) == 1 {
		switch f.Commands[0] {
		case turnstileLeftRight:
			return 1, 0
		case turnstileRightLeft:
			return 0, 1
		}
	}
	return 0, 0
}

// A TurnstileCodec finds frames in a stream of bytes. The zero value is ready.
type TurnstileCodec struct {
	Noise int // bytes that belonged to no frame

	buf []byte
}

// Push takes bytes and gives the frames that they complete.
func (c *TurnstileCodec) Push(data []byte) []TurnstileFrame { return c.push(data, false) }

// Settle gives the frames behind the beginning of one that never ended; for when the line has
// been quiet for a moment.
func (c *TurnstileCodec) Settle() []TurnstileFrame { return c.push(nil, true) }

func (c *TurnstileCodec) push(data []byte, settle bool) (frames []TurnstileFrame) {
	c.buf = append(c.buf, data...)
	at := 0
	for at < len(c.buf) {
		f, n := turnstileFrame(c.buf[at:])
		if n < 0 {
			if !settle {
				break
			}
			n = 0
		}
		if n == 0 {
			c.Noise++
			at++
			continue
		}
		frames = append(frames, f)
		at += n
	}
	c.buf = append(c.buf[:0], c.buf[at:]...)
	return frames
}

// turnstileFrame reads the frame at the start of b: its length, 0 when there is none, -1 when
// more bytes are needed to tell.
func turnstileFrame(b []byte) (TurnstileFrame, int) {
	if b[0] != turnstileSTX {
		return TurnstileFrame{}, 0
	}
	if len(b) < 3 {
		return TurnstileFrame{}, -1
	}
	size := int(b[1]) | int(b[2])<<8
	if size < 2 || size > turnstileMostSize {
		return TurnstileFrame{}, 0
	}
	n := 3 + size
	if len(b) < n {
		return TurnstileFrame{}, -1
	}
	if turnstileBCC(b[:n-1]) != b[n-1] {
		return TurnstileFrame{}, 0
	}
	return TurnstileFrame{Commands: append([]byte(nil), b[3:n-1]...)}, n
}

// A Turnstile is the driver "turnstile".
type Turnstile struct {
	spec    drivers.Spec
	open    serialport.OpenFunc
	config  serialport.Config
	tally   tally         // owned by Run
	right   bool          // left to right is out
	repeat  time.Duration // 0: nothing is a repetition
	silence time.Duration // 0: never
	answer  bool          // acknowledge passages
}

// TurnstileSettings are the keys of the driver.
func TurnstileSettings() []drivers.Setting {
	return append(append(tallySettings(),
		drivers.Setting{Name: "in", Type: drivers.TypeChoice, Default: "left-right", Choices: []string{"left-right", "right-left"}, Help: "way of passing that is in, in the manual's words, which contradict themselves: try it"},
		drivers.Setting{Name: "acknowledge", Type: drivers.TypeBool, Default: false, Help: "answer each passage, for a turnstile that repeats it otherwise; then set repeat too, since an answer may be lost"},
		drivers.Setting{Name: "repeat", Type: drivers.TypeDuration, Default: time.Duration(0), Min: 0, Max: int64(5 * time.Second), Help: "the same passage again within this is a repetition of the frame; 0s: it is another person, since the manual knows no repetitions"},
		drivers.Setting{Name: "silence", Type: drivers.TypeDuration, Default: time.Duration(0), Min: 0, Max: int64(24 * time.Hour), Help: "without any frame for so long the turnstile is offline; 0s: never, since it speaks at passages alone"},
	), drivers.SerialSettings(115200)...)
}

// NewTurnstile makes the driver; errors are protocol.Faults.
func NewTurnstile(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, TurnstileSettings())
	return &Turnstile{spec: spec, open: open, config: portConfig(spec, v), tally: newTally(spec.ID, v),
		right: v.Text("in") == "right-left", repeat: v.Duration("repeat"), silence: v.Duration("silence"), answer: v.Bool("acknowledge")}, faults.Err()
}

// Run implements drivers.Driver.
func (d *Turnstile) Run(ctx context.Context, host drivers.Host) error {
	t := &d.tally
	if err := t.open(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open counter: %w", err)
	}
	defer context.AfterFunc(ctx, func() { port.Close() })() // unblocks Read
	defer port.Close()
	defer t.close(ctx, host)
	t.blind()
	t.heard(host) // an open port is all that can be known of a turnstile that nobody passes

	codec := &TurnstileCodec{}
	var last [2]time.Time // passage in each direction
	noise, heard, buf := 0, host.Now(), make([]byte, 4096)
	for {
		now := host.Now()
		wait := t.wait(now)
		if d.silence > 0 {
			wait = min(wait, max(d.silence-now.Sub(heard), 0))
		}
		if len(codec.buf) > 0 {
			wait = min(wait, turnstileSettle)
		}
		n, err := readFor(ctx, port, buf, wait)
		if err != nil {
			return err
		}
		frames := codec.Push(buf[:n])
		if n == 0 && wait >= turnstileSettle {
			frames = codec.Settle()
		}
		now = host.Now()
		for _, f := range frames {
			heard = now
			t.heard(host)
			in, out := f.Passage()
			if in+out == 0 {
				continue
			}
			if d.answer {
				if err := acknowledge(ctx, port); err != nil {
					return err
				}
			}
			way := &last[out]
			if since := now.Sub(*way); !way.IsZero() && since >= 0 && since < d.repeat {
				host.Note("repeated passage")
				continue
			}
			*way = now
			if d.right {
				in, out = out, in
			}
			t.passed(in, out, now)
		}
		if codec.Noise > noise {
			noise = codec.Noise
			host.Note("noise on the line")
		}
		t.emit(ctx, host)
		if quiet := now.Sub(heard); d.silence > 0 && quiet >= d.silence {
			return &drivers.Fault{Device: d.spec.ID, Err: ErrSilent, Hint: "no frame for " + quiet.Round(time.Second).String() + ": is the turnstile powered and its cable in?"}
		}
	}
}

func acknowledge(ctx context.Context, port serialport.Port) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	ack := []byte{turnstileSTX, 2, 0, turnstileACK}
	if err := port.Write(ctx, append(ack, turnstileBCC(ack))); err != nil {
		return fmt.Errorf("acknowledge passage: %w", err)
	}
	return nil
}

// turnstileBCC is the check of the bytes before it.
func turnstileBCC(b []byte) (bcc byte) {
	for _, x := range b {
		bcc ^= x
	}
	return bcc
}
