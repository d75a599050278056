package drivertest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers/serialport"
)

// ContactsOptions shape a Contacts.
type ContactsOptions struct {
	In, Out   string        // the lines: cts, dsr, dcd or ri; "" = cts and dsr
	Direction bool          // both beams stand in one doorway: In breaks before Out when a person comes in
	Single    bool          // there is only In: everybody breaks it, whichever way
	Inverted  bool          // a line falls when its beam is broken; else it rises
	Hold      time.Duration // how long a beam is broken; 0 = 120 ms
	Step      time.Duration // from the first beam to the second; 0 = 60 ms
	Gap       time.Duration // between two persons; 0 = 120 ms
	Bounce    int           // how often a contact falls back at each change, within 8 ms
	Glitch    int           // percent of gaps with a pulse of 4 ms that nobody made
	Seed      uint64        // of bounce and glitches
}

// Contacts simulates relay contacts of light barriers between RTS or DTR and the modem lines
// of a port. Its line must be a FakePort. Nothing is kept: who passes while no driver looks
// is never counted.
type Contacts struct {
	opts ContactsOptions
	wake chan struct{} // capacity 1

	mu     sync.Mutex // guards the fields below
	rng    *rand.Rand
	lines  serialport.ModemLines
	queue  []passage
	truth  Passages
	moving bool // a person is in the doorway
}

// A passage is one person, or one who turns back in the doorway.
type passage struct{ out, back bool }

// NewContacts makes contacts whose beams are whole.
func NewContacts(opts ContactsOptions) *Contacts {
	if opts.In == "" {
		opts.In = "cts"
	}
	if opts.Out == "" {
		opts.Out = "dsr"
	}
	for d, otherwise := range map[*time.Duration]time.Duration{
		&opts.Hold: 120 * time.Millisecond, &opts.Step: 60 * time.Millisecond, &opts.Gap: 120 * time.Millisecond,
	} {
		if *d == 0 {
			*d = otherwise
		}
	}
	c := &Contacts{opts: opts, wake: make(chan struct{}, 1), rng: rand.New(rand.NewPCG(opts.Seed, 3))}
	for _, name := range []string{opts.In, opts.Out} {
		*c.place(name) = opts.Inverted
	}
	return c
}

func (c *Contacts) place(name string) *bool {
	return map[string]*bool{"cts": &c.lines.CTS, "dsr": &c.lines.DSR, "dcd": &c.lines.DCD, "ri": &c.lines.RI}[name]
}

// Walk lets people pass, one after the other, in and out by turns.
func (c *Contacts) Walk(in, out int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.truth.In += int64(in)
	c.truth.Out += int64(out)
	for ; in > 0 || out > 0; in, out = in-1, out-1 {
		if in > 0 {
			c.queue = append(c.queue, passage{})
		}
		if out > 0 {
			c.queue = append(c.queue, passage{out: true})
		}
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// TurnBack lets somebody break the first beam of a Direction, and go back: nobody has passed.
func (c *Contacts) TurnBack(out bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, passage{out: out, back: true})
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Still says whether everybody who walks has passed.
func (c *Contacts) Still() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue) == 0 && !c.moving
}

// PowerCycle does nothing: contacts keep nothing.
func (c *Contacts) PowerCycle() {}

// Totals are everyone who ever passed, since contacts have no registers.
func (c *Contacts) Totals() Passages { return c.Truth() }

// Truth is everyone who ever passed. With Single all of them are In for a driver.
func (c *Contacts) Truth() Passages {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opts.Single {
		return Passages{In: c.truth.In + c.truth.Out}
	}
	return c.truth
}

// Run moves the lines until ctx ends or the line is lost.
func (c *Contacts) Run(ctx context.Context, line io.ReadWriter) error {
	side := modemLines(line)
	if side == nil {
		return errors.New("contacts need a line with modem lines")
	}
	return newOutbox().serve(ctx, line, func([]byte) {}, func(ctx context.Context) error {
		c.mu.Lock()
		side.SetModemLines(c.lines)
		c.mu.Unlock()
		for {
			c.mu.Lock()
			var next *passage
			if len(c.queue) > 0 {
				next, c.queue = &c.queue[0], c.queue[1:]
			}
			c.moving = next != nil
			glitch := next != nil && c.rng.IntN(100) < c.opts.Glitch
			c.mu.Unlock()
			if next == nil {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-c.wake:
				}
				continue
			}
			c.pass(ctx, side, *next, glitch)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	})
}

// pass lets one person pass.
func (c *Contacts) pass(ctx context.Context, side modemSide, p passage, glitch bool) {
	first, second := c.opts.In, c.opts.Out
	if p.out && !c.opts.Single {
		first, second = second, first
	}
	if glitch {
		pause(ctx, c.opts.Gap/2)
		c.set(side, first, true)
		pause(ctx, 4*time.Millisecond)
		c.set(side, first, false)
		pause(ctx, c.opts.Gap/2)
	}
	c.move(ctx, side, first, true)
	if !c.opts.Direction || p.back {
		pause(ctx, c.opts.Hold)
		c.move(ctx, side, first, false)
		pause(ctx, c.opts.Gap)
		return
	}
	pause(ctx, c.opts.Step)
	c.move(ctx, side, second, true)
	pause(ctx, c.opts.Hold-c.opts.Step)
	c.move(ctx, side, first, false)
	pause(ctx, c.opts.Step)
	c.move(ctx, side, second, false)
	pause(ctx, c.opts.Gap)
}

// move breaks a beam or makes it whole, and bounces.
func (c *Contacts) move(ctx context.Context, side modemSide, name string, broken bool) {
	for range c.opts.Bounce {
		c.set(side, name, broken)
		pause(ctx, c.moment())
		c.set(side, name, !broken)
		pause(ctx, c.moment())
	}
	c.set(side, name, broken)
}

// moment is a random part of 8 ms, so that all bounces of a change take no longer.
func (c *Contacts) moment() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(1+c.rng.IntN(int(8*time.Millisecond)/(2*c.opts.Bounce))) * time.Nanosecond
}

func (c *Contacts) set(side modemSide, name string, broken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*c.place(name) = broken != c.opts.Inverted
	side.SetModemLines(c.lines)
}

// pause waits for d, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
