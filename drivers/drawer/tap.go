package drawer

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

const (
	tillForgets = 2 * time.Second        // the till said half a command and no more: it is not going on
	tapAnswer   = time.Second            // an answer of the printer comes within it, or not at all
	tapText     = 500 * time.Millisecond // after a question that is answered with text, statuses are not looked for
	tapGrace    = 2 * time.Second        // for what is under way when the Run ends
)

// tillKick is the reason of an opening that the till ordered by itself.
const tillKick = "till"

// A tap is the wire of a port pair: the till on one, the printer on the other. What one
// sends goes to the other at once and as it is, whatever the disk or the machine does; the
// machine gets copies. Flow control on lines (DTR, RTS) is not passed on.
type tap struct {
	d       *ESCPOS
	host    drivers.Host
	printer serialport.Port
	till    serialport.Port
	pin     byte
	health

	writing chan struct{} // cap 1: held by who writes to the printer, and guards what follows
	stream  tillStream
	spoke   time.Time // when the till last said something

	mu    sync.Mutex // guards what follows
	asks  []ask      // DLE EOT that the printer has not answered, oldest first
	deaf  time.Time  // until then the printer sends text
	codec Codec
	heap  []chunk // copies that the machine has not taken
	wake  chan struct{}

	asked    time.Time // owned by the Run's goroutine, as is what follows
	answered time.Time
}

// An ask is one question to the printer.
type ask struct {
	n    byte
	ours bool
	at   time.Time
}

func newTap(d *ESCPOS, host drivers.Host, printer, till serialport.Port) *tap {
	t := &tap{d: d, host: host, printer: printer, till: till, pin: byte(d.pulse.Pin),
		writing: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	t.asked, t.answered = host.Now(), host.Now()
	return t
}

// feed passes the bytes on both ways.
func (t *tap) feed(ctx context.Context, chunks chan<- chunk) error {
	g, ctx := errgroup.WithContext(ctx)
	// What was read is written also when the Run ends meanwhile.
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(tapGrace, cancel) })()
	g.Go(func() error { return t.down(ctx, late) })
	g.Go(func() error { return t.up(ctx, late) })
	g.Go(func() error { return t.hand(ctx, chunks) })
	return g.Wait()
}

// down carries what the till says to the printer.
func (t *tap) down(ctx, late context.Context) error {
	buf := make([]byte, 4096)
	for {
		n, err := t.till.Read(ctx, buf)
		if err != nil {
			return fmt.Errorf("read till: %w", err)
		}
		select {
		case t.writing <- struct{}{}:
		case <-late.Done():
			return late.Err()
		}
		t.told(t.stream.push(buf[:n]))
		t.spoke = t.host.Now()
		err = t.printer.Write(late, buf[:n]) // no limit: a printer that has no paper holds the till back
		t.spoke = t.host.Now()
		<-t.writing
		if err != nil {
			return fmt.Errorf("write to printer: %w", err)
		}
	}
}

// told notes the till's orders before the printer has them, so that no answer is earlier.
func (t *tap) told(orders []order) {
	if len(orders) == 0 {
		return
	}
	now := t.host.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range orders {
		switch o.kind {
		case orderAsk:
			t.forget(now)
			t.asks = append(t.asks, ask{n: o.n, at: now})
		case orderText:
			t.deaf = now.Add(tapText)
		}
	}
	t.keep(chunk{till: orders, at: now})
}

// forget drops questions that are not answered any more; t.mu is held.
func (t *tap) forget(now time.Time) {
	for len(t.asks) > 0 && now.Sub(t.asks[0].at).Abs() > tapAnswer {
		t.asks = t.asks[1:]
	}
}

// up carries what the printer says to the till, but the answers to our own questions.
func (t *tap) up(ctx, late context.Context) error {
	buf := make([]byte, 1024)
	for {
		n, err := t.printer.Read(ctx, buf)
		if err != nil {
			return fmt.Errorf("read printer: %w", err)
		}
		pass := t.heard(buf[:n])
		if len(pass) == 0 {
			continue
		}
		if err := t.till.Write(late, pass); err != nil {
			return fmt.Errorf("write to till: %w", err)
		}
	}
}

// heard reads statuses in passing and returns what the till is to have.
func (t *tap) heard(data []byte) []byte {
	now := t.host.Now()
	pass := make([]byte, 0, len(data))
	var levels []byte
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Before(t.deaf) {
		t.codec = Codec{}
		return append(pass, data...)
	}
	t.forget(now)
	for _, b := range data {
		s, ok := t.codec.push(b, now)
		if ok && !s.Auto { // one byte: it answers the oldest question
			if len(t.asks) == 0 {
				ok = false
			} else {
				first := t.asks[0]
				t.asks = t.asks[1:]
				ok = first.n == 1
				if first.ours {
					levels = append(levels, b)
					continue
				}
			}
		}
		pass = append(pass, b)
		if !ok {
			continue
		}
		level := byte(eotFirst)
		if s.Auto {
			level = asbFirst
		}
		if s.High {
			level |= bitPin3
		}
		if s.Offline {
			level |= bitOffline
		}
		levels = append(levels, level)
	}
	if len(levels) > 0 {
		t.keep(chunk{data: levels, at: now})
	}
	return pass
}

// keep leaves a copy for the machine; t.mu is held. The machine may wait for the disk, the
// bytes must not.
func (t *tap) keep(c chunk) {
	if len(t.heap) >= maxHeld {
		t.host.Note("statuses lost: the disk took no event for too long")
		t.heap = t.heap[1:]
	}
	t.heap = append(t.heap, c)
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// hand gives the copies to the machine, in order.
func (t *tap) hand(ctx context.Context, chunks chan<- chunk) error {
	for {
		t.mu.Lock()
		heap := t.heap
		t.heap = nil
		t.mu.Unlock()
		for _, c := range heap {
			select {
			case chunks <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin counts the printer as online: it need not say anything to us.
func (t *tap) begin(context.Context) error {
	t.host.Online()
	return nil
}

// take gives the machine the levels and the till's own kicks. A level is one byte of heard.
func (t *tap) take(ctx context.Context, c chunk) {
	m := &t.d.machine
	for _, o := range c.till {
		switch {
		case o.kind == orderMute:
			m.auto = false
		case o.kind == orderKick && o.n == t.pin && (m.pending == nil || c.at.Sub(m.pending.at) > learnTo): // else it opens what is opening
			m.pulsed(drivers.OpenCommand{Reason: tillKick}, c.at)
		}
	}
	if !t.d.status {
		return
	}
	for _, b := range c.data {
		t.answered = c.at
		m.auto = m.auto || b&statusMask == asbFirst
		t.say(ctx, &t.d.drawer, t.host, b&bitOffline != 0, c.at)
		m.saw(b&bitPin3 != 0, c.at)
	}
}

// paused gives how long the till's silence has to last yet; the holder of writing may ask.
func (t *tap) paused(now time.Time) time.Duration {
	silent := now.Sub(t.spoke).Abs() // a clock that was set back is no reason to wait for ever
	if !t.stream.boundary() {
		if silent < tillForgets {
			return tillForgets - silent
		}
		t.stream.reset()
	}
	return t.d.pause - silent
}

// ready implements wire: a command waits for a pause of the till.
func (t *tap) ready(now time.Time) (time.Duration, error) {
	if t.offline && !t.d.pulse.RealTime {
		return 0, t.refuse(&t.d.drawer)
	}
	select {
	case t.writing <- struct{}{}:
		defer func() { <-t.writing }()
		return min(max(t.paused(now), 0), t.d.pause), nil
	default:
		return t.d.pause, nil // the till is being served
	}
}

func (t *tap) kick(ctx context.Context) (bool, error) {
	return t.inject(ctx, t.d.pulse.Bytes(), nil)
}

// inject says something to the printer between two commands of the till.
func (t *tap) inject(ctx context.Context, b []byte, before func()) (bool, error) {
	select {
	case t.writing <- struct{}{}:
	default:
		return false, nil
	}
	defer func() { <-t.writing }()
	if t.paused(t.host.Now()) > 0 {
		return false, nil
	}
	if before != nil {
		before()
	}
	return true, write(ctx, t.printer, b)
}

func (t *tap) every() time.Duration {
	if t.d.machine.pending != nil {
		return min(pollMoving, t.d.poll)
	}
	return t.d.poll
}

func (t *tap) wait(now time.Time) time.Duration {
	if t.d.poll == 0 || !t.d.status {
		return time.Hour
	}
	return max(t.asked.Add(t.every()).Sub(now), t.d.pause/2)
}

// due asks the printer for its status, if we are told to and nobody waits for an answer.
func (t *tap) due(ctx context.Context) error {
	now := t.host.Now()
	if t.d.poll == 0 || !t.d.status || now.Sub(t.asked).Abs() < t.every() {
		return nil
	}
	if now.Sub(t.answered) >= answerLimit { // the till's bytes go on all the same
		t.say(ctx, &t.d.drawer, t.host, true, now)
	}
	t.mu.Lock()
	free := now.After(t.deaf) && (len(t.asks) == 0 || now.Sub(t.asks[len(t.asks)-1].at) > tapAnswer)
	t.mu.Unlock()
	if !free {
		return nil
	}
	sent, err := t.inject(ctx, askStatus, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.asks = append(t.asks, ask{n: 1, ours: true, at: now})
	})
	if sent {
		t.asked = now
	}
	return err
}
