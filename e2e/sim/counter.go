package sim

import (
	"context"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/counter"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// A meter is what a counter over a door shows: its running totals. It keeps them without the
// PC.
type meter struct{ in, out uint64 }

// A gauge is a counter on a port of a PC.
type gauge struct {
	pc    *pc
	id    string
	meter meter
	seq   int

	// of one life of the agent
	ctx    context.Context
	cancel context.CancelFunc
	step   func() (struct{}, bool) // lets the driver go on until it waits
	stop   func()
	yield  func(struct{}) bool
	lines  []byte // that the driver has not read
}

func (p *pc) addCounter(id string, m meter) {
	p.counters = append(p.counters, &gauge{pc: p, id: id, meter: m})
}

// counterSettings are those of every counter.
func counterSettings() map[string]any {
	return map[string]any{"interval": "10m", "poll": `R\r\n`, "poll_interval": "1m", "silence": "24h"}
}

// How often a driver is asked to go on, while the shop is open and else.
const (
	readEvery   = time.Minute
	readAtNight = 90 * time.Minute
)

// start runs the real driver, as a coroutine: it goes on when the simulation says so, and
// gives back when it would wait for its port.
func (g *gauge) start() {
	w, host := g.pc.w, g.pc.host(g.id)
	open := func(context.Context, serialport.Config) (serialport.Port, error) { return port{g}, nil }
	driver, err := counter.NewLine(drivers.Spec{ID: g.id, Driver: "line", Port: "sim", Settings: counterSettings()}, open)
	if err != nil {
		w.fail("counter %s: %v", g.id, err)
		return
	}
	g.run(driver, host)
	g.read(g.pc.lives, driver, host)
}

// run is one Run of the driver.
func (g *gauge) run(driver drivers.Driver, host drivers.Host) {
	g.lines = nil
	g.ctx, g.cancel = context.WithCancel(g.pc.w.ctx())
	ctx := g.ctx
	g.step, g.stop = iter.Pull(func(yield func(struct{}) bool) {
		g.yield = yield
		_ = driver.Run(ctx, host) // why it ends is the supervisor's, who runs it again
	})
}

// read lets the driver go on, again and again in the agent's life, and runs it again when it
// has ended.
func (g *gauge) read(life int, driver drivers.Driver, host drivers.Host) {
	if g.pc.lives != life || g.step == nil {
		return
	}
	_, goes := g.step()
	if g.pc.look(); g.step == nil {
		return
	}
	if !goes {
		g.cancel()
		g.run(driver, host)
	}
	every := readAtNight
	if g.pc.store.opened() {
		every = readEvery
	}
	g.pc.w.in(every, func() { g.read(life, driver, host) })
	g.pc.end.poke()
}

// end stops the driver: in good order, so that it emits what it has, or with its process.
func (g *gauge) end(order bool) {
	if g.step == nil {
		return
	}
	step, stop := g.step, g.stop
	g.step = nil
	if order {
		g.cancel()
		step()
	}
	stop()
	g.cancel()
}

// A port is the serial port of a gauge.
type port struct{ g *gauge }

// Read implements serialport.Port: it gives the line that was asked for, or waits.
func (p port) Read(ctx context.Context, b []byte) (int, error) {
	if len(p.g.lines) == 0 {
		if !p.g.yield(struct{}{}) {
			return 0, io.EOF
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		return 0, context.DeadlineExceeded
	}
	n := copy(b, p.g.lines)
	p.g.lines = p.g.lines[n:]
	return n, nil
}

// Write implements serialport.Port: any question is answered with the totals.
func (p port) Write(context.Context, []byte) error {
	g := p.g
	g.seq++
	text := fmt.Sprintf("C,%d,%d,%d,%d", g.seq, g.meter.in, g.meter.out, int64(g.pc.w.now.Sub(g.pc.w.s.begins()).Seconds()))
	check := byte(0)
	for i := range len(text) {
		check ^= text[i]
	}
	g.lines = fmt.Appendf(g.lines, "%s*%02X\r\n", text, check)
	return nil
}

// ModemLines implements serialport.Port.
func (port) ModemLines() (serialport.ModemLines, error) {
	return serialport.ModemLines{}, serialport.ErrNoLines
}

// Close implements serialport.Port.
func (port) Close() error { return nil }

// A booked host is the agent's, and tells the book what it has accepted.
type bookedHost struct {
	drivers.Host
	pc   *pc
	id   string
	life int
}

// Emit implements drivers.Host.
func (h bookedHost) Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error {
	if h.pc.lives != h.life || h.pc.w.over || h.pc.agent == nil || h.pc.disk.Dead() {
		return errGone
	}
	day := h.pc.dayOf(body)
	err := h.Host.Emit(ctx, kind, body, state)
	h.pc.w.book.counted(h.pc, kind, body, day, err)
	id := h.id
	h.pc.past.add(h.pc, func(a *core.Agent) {
		if again, ok := a.Host(id); ok {
			_ = again.Emit(ctx, kind, body, state)
		}
	})
	return err // the coroutine's caller looks at what came of it
}
