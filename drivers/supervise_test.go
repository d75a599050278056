package drivers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/protocol"
)

type stateHost struct {
	mu     sync.Mutex
	refuse bool
	states []protocol.DeviceState
	other  int
	online int
}

func (h *stateHost) Emit(_ context.Context, kind protocol.Kind, body any, _ []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse {
		return errors.New("disk is full")
	}
	s, ok := body.(protocol.DeviceState)
	if !ok {
		h.other++
		return nil
	}
	if err := s.Validate(); err != nil || kind != protocol.KindDevice {
		panic(fmt.Sprint(kind, err))
	}
	h.states = append(h.states, s)
	return nil
}
func (h *stateHost) State() ([]byte, error) { return nil, nil }
func (h *stateHost) Online() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.online++
}
func (h *stateHost) Note(string)    {}
func (h *stateHost) Now() time.Time { return time.Now() }

func (h *stateHost) said() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s []string
	for _, r := range h.states {
		s = append(s, r.State)
	}
	return strings.Join(s, " ")
}

func (h *stateHost) all() []protocol.DeviceState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]protocol.DeviceState(nil), h.states...)
}

type driverFunc func(ctx context.Context, host Host) error

func (f driverFunc) Run(ctx context.Context, host Host) error { return f(ctx, host) }

// supervise runs the driver for a virtual time.
func supervise(t *testing.T, host Host, d time.Duration, driver driverFunc) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	err := Supervise(ctx, "door", driver, host, Options{Driver: "line", Class: ClassCounter, Jitter: func() float64 { return 1 }})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Supervise = %v, want the context's error", err)
	}
}

var errCable = errors.New("cable is out")

func TestPausesGrowToTheirBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs []time.Duration
		began := time.Now()
		supervise(t, &stateHost{}, 2*time.Minute, func(context.Context, Host) error {
			runs = append(runs, time.Since(began))
			return errCable
		})
		want := []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond, 3500 * time.Millisecond, 7500 * time.Millisecond, 15500 * time.Millisecond,
			31500 * time.Millisecond, 61500 * time.Millisecond, 91500 * time.Millisecond}
		if fmt.Sprint(runs) != fmt.Sprint(want) {
			t.Errorf("runs at %v, want %v", runs, want)
		}
	})
}

func TestAMinuteOnlineBeginsThePausesAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		var pause time.Duration
		var ended time.Time
		supervise(t, &stateHost{}, 10*time.Minute, func(ctx context.Context, host Host) error {
			n++
			switch n {
			case 8:
				host.Online()
				time.Sleep(healthy)
				ended = time.Now()
			case 9:
				pause = time.Since(ended)
			}
			return errCable
		})
		if pause != MinPause {
			t.Errorf("pause after a minute online = %s, want %s", pause, MinPause)
		}
	})
}

func TestStatesAreEmittedOnChangeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, n := &stateHost{}, 0
		supervise(t, host, 10*time.Minute, func(ctx context.Context, h Host) error {
			n++
			if n == 5 {
				for range 100 {
					h.Online()
				}
				<-ctx.Done()
				return ctx.Err()
			}
			return &Fault{Device: "door", Err: errCable, Hint: "put it in"}
		})
		states := host.all()
		if host.said() != "offline online" {
			t.Fatalf("states = %s, want offline once and online once", host.said())
		}
		if host.online != 100 {
			t.Errorf("the host heard %d of 100 signs of life", host.online)
		}
		if s := states[0]; s.Reason != errCable.Error() || s.Hint != "put it in" || s.Device != "door" || s.Driver != "line" || s.Class != ClassCounter {
			t.Errorf("offline = %+v, want reason and hint", s)
		}
	})
}

type advised struct{ error }

func (advised) Advice() string { return "free the port" }

func TestAHintIsTakenFromAnyErrorThatHasAdvice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &stateHost{}
		supervise(t, host, time.Second, func(context.Context, Host) error { return fmt.Errorf("open counter: %w", advised{errCable}) })
		if s := host.all(); len(s) != 1 || s[0].Hint != "free the port" || s[0].Reason != "open counter: cable is out" {
			t.Errorf("states = %+v", s)
		}
	})
}

// A device that flaps for a day: a burst, then one record a minute that names what is left
// out, and every change is either recorded or named.
func TestAFlappingDeviceCannotFillTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, changes := &stateHost{}, 0
		supervise(t, host, 24*time.Hour, func(ctx context.Context, h Host) error {
			h.Online()
			time.Sleep(100 * time.Millisecond)
			changes += 2
			return errCable
		})
		states := host.all()
		if most := StateBurst + 24*60; len(states) > most {
			t.Errorf("%d records in a day, want at most %d", len(states), most)
		}
		named := len(states)
		for _, s := range states {
			if _, rest, ok := strings.Cut(s.Reason, "("); ok {
				var n int
				if _, err := fmt.Sscanf(rest, "%d changes", &n); err != nil {
					t.Fatalf("reason %q: %v", s.Reason, err)
				}
				named += n
			}
		}
		if left := changes - named; left < 0 || left > 20 {
			t.Errorf("%d changes, %d recorded or named", changes, named)
		}
	})
}

func TestAStateThatIsNotAcceptedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &stateHost{refuse: true}
		time.AfterFunc(time.Minute, func() {
			host.mu.Lock()
			defer host.mu.Unlock()
			host.refuse = false
		})
		supervise(t, host, 2*time.Minute, func(ctx context.Context, h Host) error {
			h.Online()
			<-ctx.Done()
			return ctx.Err()
		})
		if host.said() != "online" {
			t.Errorf("states = %q, want online", host.said())
		}
	})
}

func TestAPanicIsAnErrorOfThatDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, n := &stateHost{}, 0
		supervise(t, host, time.Second, func(context.Context, Host) error {
			n++
			panic("index out of range")
		})
		if n < 2 || host.said() != "offline" || !strings.Contains(host.all()[0].Reason, "index out of range") {
			t.Errorf("%d runs, states %+v, want it run again and offline", n, host.all())
		}
	})
}

func TestADriversOwnFaultIsAState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &stateHost{}
		supervise(t, host, time.Minute, func(ctx context.Context, h Host) error {
			for _, state := range []string{"online", "fault", "fault", "online"} {
				if state == "online" {
					h.Online()
				} else if err := h.Emit(ctx, protocol.KindDevice, protocol.DeviceState{Device: "door", State: state, At: h.Now(), Reason: "beam blocked"}, nil); err != nil {
					return err
				}
				synctest.Wait()
				time.Sleep(time.Second)
			}
			if err := h.Emit(ctx, protocol.KindFootfall, protocol.FootfallCount{}, nil); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if host.said() != "online fault online" || host.other != 1 {
			t.Errorf("states = %s and %d other records, want online fault online and 1", host.said(), host.other)
		}
	})
}
