package counter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// The frames of the Terabee TeraRanger Evo People Counter (TR-EVO-PPC-USB and -UART): user
// manual of 2021, pages 18 and 19; without the sensor id in the manual of the TR-EVO-SWP-PL
// of 2020, pages 24 to 27. Byte order as in Terabee's ROS driver for distances
// (teraranger_evo.cpp); for counts it is not printed, so it is a setting.
//
//	DD d1(2) d2(2) crc                      distances in mm, all the time
//	PC id(4) net(4) in(2) out(2) crc        at each passage, 2021
//	PC net(4) in(2) out(2) crc              at each passage, 2020
//
// The counts are 16 bits wide and begin at zero when the counter loses its power.
const (
	terabeeDistanceLen = 7
	terabeeLongLen     = 15
	terabeeShortLen    = 11
	terabeeLock        = 3               // passages of one length after which only that is looked for
	terabeeWidth       = 16              // bits of in and out
	terabeeSilence     = 3 * time.Second // distances come many times a second
	terabeeSettle      = 100 * time.Millisecond
)

// ErrSilent is the end of a Run in which a device that should speak did not.
var ErrSilent = errors.New("device is silent")

// A TerabeeFrame is one good frame.
type TerabeeFrame struct {
	Passage bool   // PC; otherwise a distance frame, a sign of life
	Sensor  uint32 // PC, 15 bytes only
	Net     int32  // PC: in - out
	In, Out uint16 // PC: people since the counter's zero
	D1, D2  uint16 // DD: mm
}

// A TerabeeCodec finds frames in a stream of bytes. The zero value reads big endian.
type TerabeeCodec struct {
	Little bool // byte order
	Noise  int  // bytes that belonged to no frame

	buf         []byte
	length      int // of passage frames, once locked
	long, short int // hits before
}

// Push takes bytes and gives the frames that they complete. Bytes that are part of no frame
// are dropped one by one and counted as Noise.
func (c *TerabeeCodec) Push(data []byte) []TerabeeFrame { return c.push(data, false) }

// Settle gives the frames that only wait for more bytes to rule out another reading; for
// when the line has been quiet for a moment.
func (c *TerabeeCodec) Settle() []TerabeeFrame { return c.push(nil, true) }

func (c *TerabeeCodec) push(data []byte, settle bool) (frames []TerabeeFrame) {
	c.buf = append(c.buf, data...)
	at := 0
	for at < len(c.buf) {
		frame, n := c.frame(c.buf[at:], settle)
		if n < 0 {
			break
		}
		if n == 0 {
			c.Noise++
			at++
			continue
		}
		frames = append(frames, frame)
		at += n
	}
	c.buf = append(c.buf[:0], c.buf[at:]...)
	return frames
}

// frame reads the frame at the start of b: its length, 0 when there is none, -1 when more
// bytes are needed to tell.
func (c *TerabeeCodec) frame(b []byte, settle bool) (TerabeeFrame, int) {
	more := -1
	if settle {
		more = 0
	}
	switch {
	case b[0] != 'D' && b[0] != 'P':
		return TerabeeFrame{}, 0
	case len(b) == 1:
		return TerabeeFrame{}, more
	case b[0] == 'D' && b[1] == 'D':
		if len(b) < terabeeDistanceLen {
			return TerabeeFrame{}, more
		}
		if crc8(b[:terabeeDistanceLen-1]) != b[terabeeDistanceLen-1] {
			return TerabeeFrame{}, 0
		}
		o := c.order()
		return TerabeeFrame{D1: o.Uint16(b[2:]), D2: o.Uint16(b[4:])}, terabeeDistanceLen
	case b[0] == 'P' && b[1] == 'C':
		return c.passage(b, more)
	}
	return TerabeeFrame{}, 0
}

// passage tries 15 bytes, then 11, until one of them is locked.
func (c *TerabeeCodec) passage(b []byte, more int) (TerabeeFrame, int) {
	fits := func(n int) bool { return c.length == 0 || c.length == n }
	if fits(terabeeLongLen) {
		if len(b) < terabeeLongLen {
			if more < 0 || c.length != 0 {
				return TerabeeFrame{}, more
			}
		} else if crc8(b[:terabeeLongLen-1]) == b[terabeeLongLen-1] {
			c.hit(&c.long, terabeeLongLen)
			f := c.counts(b[6:])
			f.Sensor = c.order().Uint32(b[2:])
			return f, terabeeLongLen
		}
	}
	if fits(terabeeShortLen) {
		if len(b) < terabeeShortLen {
			return TerabeeFrame{}, more
		}
		if crc8(b[:terabeeShortLen-1]) == b[terabeeShortLen-1] {
			c.hit(&c.short, terabeeShortLen)
			return c.counts(b[2:]), terabeeShortLen
		}
	}
	return TerabeeFrame{}, 0
}

func (c *TerabeeCodec) hit(hits *int, length int) {
	if *hits++; *hits >= terabeeLock {
		c.length = length
	}
}

func (c *TerabeeCodec) counts(b []byte) TerabeeFrame {
	o := c.order()
	return TerabeeFrame{Passage: true, Net: int32(o.Uint32(b)), In: o.Uint16(b[4:]), Out: o.Uint16(b[6:])}
}

func (c *TerabeeCodec) order() binary.ByteOrder {
	if c.Little {
		return binary.LittleEndian
	}
	return binary.BigEndian
}

// crc8 is the CRC of the manual: polynomial 0x07, begins at 0, not reflected, over all bytes
// before it.
func crc8(data []byte) byte {
	var crc byte
	for _, b := range data {
		crc = crc8Table[crc^b]
	}
	return crc
}

// crc8Table is written once, at its declaration.
var crc8Table = func() (table [256]byte) {
	for i := range table {
		crc := byte(i)
		for range 8 {
			high := crc&0x80 != 0
			crc <<= 1
			if high {
				crc ^= 0x07
			}
		}
		table[i] = crc
	}
	return table
}()

// A Terabee is the driver "terabee".
type Terabee struct {
	spec    drivers.Spec
	open    serialport.OpenFunc
	config  serialport.Config
	tally   tally // owned by Run
	little  bool
	silence time.Duration
}

// TerabeeSettings are the keys of the driver.
func TerabeeSettings() []drivers.Setting {
	return append(append(tallySettings(),
		drivers.Setting{Name: "byte_order", Type: drivers.TypeChoice, Default: "big", Choices: []string{"big", "little"}, Help: "order of the bytes of a number"},
		drivers.Setting{Name: "silence", Type: drivers.TypeDuration, Default: terabeeSilence, Min: int64(time.Second), Max: int64(time.Hour), Help: "without any frame for so long the counter is offline"},
	), drivers.SerialSettings(115200)...)
}

// NewTerabee makes the driver; errors are protocol.Faults.
func NewTerabee(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, TerabeeSettings())
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return &Terabee{spec: spec, open: open, config: portConfig(spec, v), tally: newTally(spec.ID, v), little: v.Text("byte_order") == "little", silence: v.Duration("silence")}, nil
}

// Run implements drivers.Driver.
func (d *Terabee) Run(ctx context.Context, host drivers.Host) error {
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

	codec := &TerabeeCodec{Little: d.little}
	first, noise := true, 0
	heard, buf := host.Now(), make([]byte, 4096)
	for {
		now := host.Now()
		settle := len(codec.buf) > 0
		wait := min(t.wait(now), max(d.silence-now.Sub(heard), 0))
		if settle {
			wait = min(wait, terabeeSettle)
		}
		frames, err := d.read(ctx, port, codec, buf, wait)
		if err != nil {
			return err
		}
		now = host.Now()
		for _, f := range frames {
			heard = now
			t.heard(host)
			if f.Passage {
				takePassage(t, f, now, first)
				first = false
			}
		}
		if codec.Noise > noise {
			noise = codec.Noise
			host.Note("noise on the line")
		}
		t.emit(ctx, host)
		if quiet := now.Sub(heard); quiet >= d.silence {
			return &drivers.Fault{Device: d.spec.ID, Err: ErrSilent, Hint: "no frame for " + quiet.Round(time.Second).String() + ": is it a Terabee people counter, powered, at this baud?"}
		}
	}
}

// read waits for frames, at most for wait.
func (d *Terabee) read(ctx context.Context, port serialport.Port, codec *TerabeeCodec, buf []byte, wait time.Duration) ([]TerabeeFrame, error) {
	n, err := readFor(ctx, port, buf, wait)
	if err != nil {
		return nil, err
	}
	if n == 0 && wait >= terabeeSettle {
		return codec.Settle(), nil
	}
	return codec.Push(buf[:n]), nil
}

// readFor reads, and gives 0 when wait ends first.
func readFor(ctx context.Context, port serialport.Port, buf []byte, wait time.Duration) (int, error) {
	if wait <= 0 {
		return 0, nil
	}
	rctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	n, err := port.Read(rctx, buf)
	switch {
	case err == nil:
		return n, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return 0, nil
	}
	return 0, fmt.Errorf("read counter: %w", err)
}

// takePassage adds the totals of a passage frame. The counter loses them with its power:
// totals of zero, and at the first frame after opening totals below the stored ones, mean
// that it began again. What passed before the first frame has no known time.
func takePassage(t *tally, f TerabeeFrame, now time.Time, first bool) {
	r := Reading{In: uint64(f.In), Out: uint64(f.Out), Width: terabeeWidth, At: now}
	last := t.state
	if t.invert {
		last.In, last.Out = last.Out, last.In
	}
	if last.Known {
		below := r.In < last.In || r.Out < last.Out
		r.Reset = (r.In == 0 && r.Out == 0 && last.In+last.Out > 0) || (first && below)
	}
	if d := t.total(r); first && d.In+d.Out > 1 {
		t.doubt(protocol.QualityGap)
	}
}
