package serialport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A pipe is a port whose other end is a net.Pipe.
type pipe struct{ net.Conn }

func (p pipe) Read(ctx context.Context, b []byte) (int, error) {
	for {
		deadline, _ := ctx.Deadline()
		p.SetReadDeadline(deadline)
		stop := context.AfterFunc(ctx, func() { p.SetReadDeadline(time.Unix(1, 0)) })
		n, err := p.Conn.Read(b)
		stop()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
	} // an earlier Read's context ended late
}

func (p pipe) Write(ctx context.Context, b []byte) error {
	deadline, _ := ctx.Deadline()
	p.SetWriteDeadline(deadline)
	_, err := p.Conn.Write(b)
	return err
}

func (p pipe) ModemLines() (ModemLines, error) { return ModemLines{}, ErrNoLines }

// A busRig is a bus whose units the test plays: a request is one byte, the unit's number,
// and its reply two bytes, the number twice. Unit 9 never replies.
type busRig struct {
	Buses
	mu     sync.Mutex // guards what follows
	opened int
	device net.Conn
	asked  []byte
}

func (r *busRig) open(context.Context, Config) (Port, error) {
	ours, theirs := net.Pipe()
	r.mu.Lock()
	r.opened++
	r.device = theirs
	r.mu.Unlock()
	go func() {
		for buf := make([]byte, 1); ; {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
			r.mu.Lock()
			r.asked = append(r.asked, buf[0])
			r.mu.Unlock()
			if buf[0] != 9 {
				theirs.Write([]byte{buf[0], buf[0]})
			}
		}
	}()
	return pipe{ours}, nil
}

func (r *busRig) take(t *testing.T) *Seat {
	t.Helper()
	seat, err := r.Take(t.Context(), Config{Name: "COM3"}, r.open)
	if err != nil {
		t.Fatal(err)
	}
	return seat
}

func ask(ctx context.Context, s *Seat, unit byte) error {
	var got []byte
	err := s.Do(ctx, Exchange{Request: []byte{unit}, Quiet: 10 * time.Millisecond, Timeout: 100 * time.Millisecond,
		Reply: func(p []byte) bool { got = append(got, p...); return len(got) >= 2 }})
	if err == nil && !bytes.Equal(got, []byte{unit, unit}) {
		return fmt.Errorf("unit %d was answered with %x", unit, got)
	}
	return err
}

func TestADeadUnitDoesNotStarveTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &busRig{}
		answers := map[byte]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		units := []byte{1, 9, 2, 9, 3}
		var seats []*Seat
		for range units {
			seats = append(seats, r.take(t))
		}
		for i, unit := range units {
			seat := seats[i]
			all.Go(func() {
				defer seat.Leave()
				for ctx.Err() == nil {
					err := ask(ctx, seat, unit)
					switch {
					case ctx.Err() != nil:
					case unit == 9 && !errors.Is(err, ErrNoReply):
						t.Errorf("dead unit: %v, want ErrNoReply", err)
					case unit != 9 && err != nil:
						t.Errorf("unit %d: %v", unit, err)
					case unit != 9:
						mu.Lock()
						answers[unit]++
						mu.Unlock()
					}
				}
			})
		}
		all.Wait()
		// One round costs 5 quiet times and 2 timeouts, 250 ms: 40 rounds.
		for _, unit := range []byte{1, 2, 3} {
			if n := answers[unit]; n < 38 || n > 41 {
				t.Errorf("unit %d was heard %d times in 10 s, want 40", unit, n)
			}
		}
		if r.opened != 1 {
			t.Errorf("the port was opened %d times", r.opened)
		}
	})
}

func TestALateReplyIsNotTakenForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &busRig{}
		seat := r.take(t)
		defer seat.Leave()
		if err := ask(t.Context(), seat, 9); !errors.Is(err, ErrNoReply) {
			t.Fatalf("err = %v, want ErrNoReply", err)
		}
		go r.device.Write([]byte{9, 9}) // comes while unit 1 is about to be asked
		if err := ask(t.Context(), seat, 1); err != nil {
			t.Error(err)
		}
	})
}

func TestABusIsLostForAllAndOpenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &busRig{}
		first, second := r.take(t), r.take(t)
		r.device.Close()
		if err := ask(t.Context(), first, 1); err == nil || errors.Is(err, ErrNoReply) {
			t.Errorf("first: %v, want the port's error", err)
		}
		if err := ask(t.Context(), second, 2); !errors.Is(err, ErrLost) {
			t.Errorf("second: %v, want ErrLost", err)
		}
		again := r.take(t)
		first.Leave()
		second.Leave() // of the port that is gone: the new one stays open
		second.Leave()
		if err := ask(t.Context(), again, 3); err != nil {
			t.Error(err)
		}
		if r.opened != 2 {
			t.Errorf("opened %d times, want 2", r.opened)
		}
		again.Leave()
		if _, err := r.device.Write([]byte{1}); err == nil {
			t.Error("the port is open after the last seat was given back")
		}
	})
}

func TestACancelledExchangeLeavesTheBusGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &busRig{}
		first, second := r.take(t), r.take(t)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := ask(ctx, first, 9); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoReply) {
			t.Errorf("err = %v, want the context's", err)
		}
		first.Leave()
		if err := ask(t.Context(), second, 2); err != nil {
			t.Error(err)
		}
		second.Leave()
		if !slices.Equal(r.asked, []byte{9, 2}) {
			t.Errorf("asked %v", r.asked)
		}
	})
}

func TestANoisyLineDoesNotHoldTheBusForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &busRig{}
		seat := r.take(t)
		var noise sync.WaitGroup
		noise.Go(func() {
			for {
				if _, err := r.device.Write([]byte{0xFF}); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond) // virtual: never quiet for 10 ms
			}
		})
		began := time.Now()
		if err := seat.Do(t.Context(), Exchange{Request: []byte{9}, Quiet: 10 * time.Millisecond, Timeout: 100 * time.Millisecond,
			Reply: func([]byte) bool { return false }}); !errors.Is(err, ErrNoReply) {
			t.Errorf("err = %v, want ErrNoReply", err)
		}
		if took := time.Since(began); took > 250*time.Millisecond {
			t.Errorf("the bus was held for %s", took)
		}
		seat.Leave()
		noise.Wait()
	})
}

func TestOneBusHasOneLineSetting(t *testing.T) {
	r := &busRig{}
	seat := r.take(t)
	defer seat.Leave()
	_, err := r.Take(t.Context(), Config{Name: "COM3", Baud: 19200}, r.open)
	var e *Error
	if !errors.Is(err, ErrSetting) || !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("err = %v, want ErrSetting with a hint", err)
	}
}
