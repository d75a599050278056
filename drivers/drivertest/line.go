// Package drivertest holds simulators of the devices of a store, lines to reach them by,
// faults for those lines, and the suites that every driver must pass.
//
// A simulator is written from the device's public description alone and shares no code with
// the driver that it tests. It keeps the truth (who passed, when the drawer moved), which a
// test compares with what the driver emitted.
//
// Every simulator has Run(ctx, line), which speaks on one line until ctx ends or the line is
// lost. What it would say while no Run is active is lost, as on a cable that is not plugged
// in. All other methods are safe for concurrent use and never wait for the line.
package drivertest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// ErrBusy is returned by a second Run of a simulator that already speaks on a line.
var ErrBusy = errors.New("the simulator is already on a line")

// ErrHungUp is what a line answers while it is hung up.
var ErrHungUp = errors.New("the line is hung up")

// Pipe is a line without a terminal: two ends in memory, which also work in virtual time
// (testing/synctest). A write waits for the other end's read.
func Pipe() (device, client net.Conn) { return net.Pipe() }

// maxQueue bounds what a simulator holds back for a client that does not read, in frames;
// the oldest frame is lost first, as on a line without flow control.
const maxQueue = 1024

// An outbox queues the frames that a simulator sends.
type outbox struct {
	wake chan struct{} // capacity 1

	mu     sync.Mutex // guards the fields below
	open   bool       // a Run is active
	frames [][]byte
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// send queues one frame; it goes out as one write.
func (o *outbox) send(frame []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.open {
		return
	}
	if len(o.frames) == maxQueue {
		o.frames = o.frames[1:]
	}
	o.frames = append(o.frames, frame)
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) next() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.frames) == 0 {
		return nil
	}
	frame := o.frames[0]
	o.frames = o.frames[1:]
	return frame
}

func (o *outbox) plug(in bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if in && o.open {
		return ErrBusy
	}
	o.open, o.frames = in, nil
	return nil
}

// serve moves bytes until ctx ends or the line is lost: what arrives goes to feed, what is
// in the outbox goes out. tick, when not nil, runs beside them. The line's deadline (or, if
// it has none, its Close) unblocks it when ctx ends.
func (o *outbox) serve(ctx context.Context, line io.ReadWriter, feed func([]byte), tick func(context.Context) error) error {
	if err := o.plug(true); err != nil {
		return err
	}
	defer func() { _ = o.plug(false) }() // to unplug always works
	setDeadline(line, time.Time{})
	g, gctx := errgroup.WithContext(ctx)
	unblocked := make(chan struct{})
	stop := context.AfterFunc(gctx, func() {
		defer close(unblocked)
		unblock(line)
	})
	g.Go(func() error {
		buf := make([]byte, 512)
		for {
			n, err := line.Read(buf)
			if n > 0 {
				feed(buf[:n])
			}
			if err != nil {
				return err
			}
		}
	})
	g.Go(func() error {
		for {
			for frame := o.next(); frame != nil; frame = o.next() {
				if _, err := line.Write(frame); err != nil {
					return err
				}
			}
			select {
			case <-gctx.Done():
				return gctx.Err()
			case <-o.wake:
			}
		}
	})
	if tick != nil {
		g.Go(func() error { return tick(gctx) })
	}
	err := g.Wait()
	if !stop() {
		<-unblocked
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

type deadliner interface{ SetDeadline(time.Time) error }

func setDeadline(line io.ReadWriter, t time.Time) bool {
	d, ok := line.(deadliner)
	return ok && d.SetDeadline(t) == nil
}

func unblock(line io.ReadWriter) {
	if setDeadline(line, time.Unix(1, 0)) {
		return
	}
	if c, ok := line.(io.Closer); ok {
		_ = c.Close() // to end a Read
	}
}
