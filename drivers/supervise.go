package drivers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/storelay/storelay/protocol"
)

// The pauses between two tries of a device.
const (
	MinPause = 500 * time.Millisecond
	MaxPause = 30 * time.Second
	healthy  = time.Minute // online for so long: the next pause is MinPause again
)

// Options of Supervise. Driver and Class go into the device's state records.
type Options struct {
	Driver string         // name in the registry
	Class  string         // ClassCounter, ClassDrawer ...
	Log    *slog.Logger   // nil: no log
	Jitter func() float64 // 0 <= x < 1; nil: math/rand
}

// Supervise runs the driver until ctx ends and returns ctx's error. When Run returns or
// panics, Supervise waits MinPause, doubled at each further try up to MaxPause (each pause
// is cut by up to half, so that a shop's devices do not come back all at once), and runs
// it again. A minute of being online begins the pauses anew.
//
// A change of the device's state is emitted as a protocol.DeviceState: online when the
// driver calls Host.Online, offline with reason and hint when Run has returned, fault when
// the driver emits one itself. The same state with the same reason is emitted once. After
// StateBurst records there is at most one per StatePause; it says how many changes before
// it were left out. A record that the host does not accept is tried again.
func Supervise(ctx context.Context, id string, driver Driver, host Host, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Jitter == nil {
		o.Jitter = rand.Float64
	}
	o.Log = o.Log.With("device", id, "driver", o.Driver)
	a := newAnnouncer(protocol.DeviceState{Device: id, Driver: o.Driver, Class: o.Class})
	var reporting sync.WaitGroup
	defer reporting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reporting.Go(func() { a.report(ctx, host, o.Log) })

	pause := MinPause
	for {
		watched := &watchedHost{Host: host, announcer: a}
		err := runOnce(ctx, driver, watched, o.Log)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if watched.onlineFor() >= healthy {
			pause = MinPause
		}
		a.observe(offline(err), host.Now())
		wait := pause/2 + time.Duration(o.Jitter()*float64(pause/2))
		pause = min(2*pause, MaxPause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// runOnce is Run that turns a panic into an error: one driver's mistake must not stop the
// tills of the shop.
func runOnce(ctx context.Context, driver Driver, host Host, log *slog.Logger) (err error) {
	defer func() {
		if r := recover(); r != nil {
			log.Error("driver panicked", "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("driver panicked: %v", r)
		}
	}()
	return driver.Run(ctx, host)
}

// offline is the state after Run has returned err.
func offline(err error) report {
	r := report{state: protocol.DeviceOffline, reason: "the driver ended"}
	if err == nil {
		return r
	}
	r.reason = err.Error()
	var fault *Fault
	var advised interface{ Advice() string }
	if errors.As(err, &fault) {
		r.reason, r.hint = fault.Err.Error(), fault.Hint
	}
	if r.hint == "" && errors.As(err, &advised) {
		r.hint = advised.Advice()
	}
	return r
}

// A watchedHost is the driver's Host of one Run. It sees the driver's signs of life and
// leads device states to the announcer.
type watchedHost struct {
	Host
	announcer *announcer
	online    atomic.Bool
	first     atomic.Int64 // unix ns of the first Online, 0 = none
}

// Online implements Host.
func (h *watchedHost) Online() {
	h.Host.Online() // the agent shows when a device was last heard
	if h.online.Load() || h.online.Swap(true) {
		return
	}
	now := h.Now()
	h.first.CompareAndSwap(0, now.UnixNano())
	h.announcer.observe(report{state: protocol.DeviceOnline}, now)
}

// Emit implements Host. A DeviceState is taken as what the device says of itself and goes
// the announcer's way, so that it is limited like the supervisor's own.
func (h *watchedHost) Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error {
	s, ok := body.(protocol.DeviceState)
	if kind != protocol.KindDevice || !ok {
		return h.Host.Emit(ctx, kind, body, state)
	}
	h.online.Store(s.State == protocol.DeviceOnline)
	h.announcer.observe(report{state: s.State, reason: s.Reason, hint: s.Hint}, h.Now())
	return nil
}

func (h *watchedHost) onlineFor() time.Duration {
	first := h.first.Load()
	if first == 0 {
		return 0
	}
	return h.Now().Sub(time.Unix(0, first))
}
