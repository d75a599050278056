package drawer

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// An end is the far end of one line: what arrives is collected, with its times.
type end struct {
	t    *testing.T
	conn net.Conn
	mu   sync.Mutex // guards what follows
	got  []byte
	at   []time.Time // of each byte
	stop chan struct{}
}

func newEnd(t *testing.T, conn net.Conn) *end {
	e := &end{t: t, conn: conn, stop: make(chan struct{})}
	go func() {
		defer close(e.stop)
		for b := make([]byte, 256); ; {
			n, err := conn.Read(b)
			e.mu.Lock()
			e.got = append(e.got, b[:n]...)
			for range n {
				e.at = append(e.at, time.Now())
			}
			e.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return e
}

func (e *end) send(b ...byte) {
	e.t.Helper()
	if _, err := e.conn.Write(b); err != nil {
		e.t.Fatal(err)
	}
	synctest.Wait()
}

func (e *end) took() []byte {
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.got)
}

// A tapRig is the driver between a till and a printer.
type tapRig struct {
	t             *testing.T
	host          *memoryHost
	driver        drivers.Opener
	till, printer *end
	cancel        context.CancelFunc
	done          chan error
}

func startTap(t *testing.T, settings map[string]any) *tapRig {
	t.Helper()
	tillOurs, till := net.Pipe()
	printerOurs, printer := net.Pipe()
	all := map[string]any{"till_port": "COM2", "open_level": "high"}
	for k, v := range settings {
		all[k] = v
	}
	d, err := NewESCPOS(drivers.Spec{ID: "drawer1", Driver: "escpos", Port: "COM1", Settings: all},
		func(_ context.Context, c serialport.Config) (serialport.Port, error) {
			if c.Name == "COM2" {
				return pipePort{tillOurs}, nil
			}
			return pipePort{printerOurs}, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	r := &tapRig{t: t, host: &memoryHost{}, driver: d.(drivers.Opener), till: newEnd(t, till), printer: newEnd(t, printer), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.done <- d.Run(ctx, r.host) }()
	synctest.Wait()
	return r
}

func (r *tapRig) stop() {
	r.t.Helper()
	r.cancel()
	if err := <-r.done; !errors.Is(err, context.Canceled) {
		r.t.Errorf("Run = %v, want Canceled", err)
	}
	r.till.conn.Close()
	r.printer.conn.Close()
	<-r.till.stop
	<-r.printer.stop
}

func (r *tapRig) expect(want ...string) {
	r.t.Helper()
	synctest.Wait()
	if got := r.host.said(); !slices.Equal(got, want) {
		r.t.Errorf("events = %q, want %q", got, want)
	}
}

func TestATapPassesEveryByteBothWaysAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		var all []byte
		for i := range 256 {
			all = append(all, byte(i))
		}
		began := time.Now()
		for range 40 {
			r.till.send(all...)
			r.printer.send(all...)
		}
		want := bytes.Repeat(all, 40)
		if got := r.printer.took(); !bytes.Equal(got, want) {
			t.Errorf("the printer got %d bytes, want the till's %d as they were", len(got), len(want))
		}
		if got := r.till.took(); !bytes.Equal(got, want) {
			t.Errorf("the till got %d bytes, want the printer's %d as they were", len(got), len(want))
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the bytes were held up for %s", took)
		}
		r.stop()
	})
}

// The disk takes nothing, the till prints on.
func TestATapDoesNotWaitForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		release := make(chan struct{})
		r.host.setBlock(release)
		r.printer.send(0x10, 0, 0, 0)
		r.printer.send(0x14, 0, 0, 0) // an event that blocks
		began := time.Now()
		r.till.send([]byte("receipt\n")...)
		r.printer.send(0x10, 0, 0, 0)
		if got := r.printer.took(); string(got) != "receipt\n" || time.Since(began) != 0 {
			t.Errorf("the printer got %q after %s", got, time.Since(began))
		}
		if got := r.till.took(); len(got) != 12 {
			t.Errorf("the till got % X", got)
		}
		close(release)
		r.expect("opened/manual/0/", "closed//0/")
		r.stop()
	})
}

func TestAKickOfTheTillIsRecognisedWhereverItIsSplit(t *testing.T) {
	for cut := 1; cut < 5; cut++ {
		for _, kick := range [][]byte{{0x1B, 'p', 0, 50, 50}, {0x10, 0x14, 1, 0, 1}} {
			synctest.Test(t, func(t *testing.T) {
				r := startTap(t, nil)
				r.printer.send(0x10, 0, 0, 0)
				r.till.send(append([]byte("text"), kick[:cut]...)...)
				time.Sleep(20 * time.Millisecond)
				r.till.send(kick[cut:]...)
				time.Sleep(150 * time.Millisecond)
				r.printer.send(0x14, 0, 0, 0)
				time.Sleep(time.Second)
				r.printer.send(0x10, 0, 0, 0)
				r.expect("opened/commanded/0/till", "closed//1000/")
				if got := r.printer.took(); !bytes.Equal(got, append([]byte("text"), kick...)) {
					t.Errorf("the printer got % X", got)
				}
				r.stop()
			})
		}
	}
}

// Nothing comes back from the printer: the pulse is the opening, as for a drawer without a
// switch.
func TestAKickThatNobodySawIsAnOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		r.till.send(0x1B, 'p', 0, 50, 50, 0x1B, 'p', 0, 50, 50) // some tills kick twice
		time.Sleep(3 * time.Second)
		r.expect("opened/commanded/0/till")
		// The till asks much later: that is the same opening.
		r.till.send(0x10, 0x04, 0x01)
		r.printer.send(0x16)
		r.expect("opened/commanded/0/till")
		time.Sleep(time.Second)
		r.till.send(0x10, 0x04, 0x01)
		r.printer.send(0x12)
		if got := r.host.said(); len(got) != 2 || got[1][:7] != "closed/" {
			t.Errorf("events = %q, want it closed", got)
		}
		r.stop()
	})
}

// Two receipts within two seconds are two openings.
func TestTwoKicksThatNobodySawAreTwoOpenings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		r.till.send(0x1B, 'p', 0, 50, 50)
		time.Sleep(time.Second)
		r.till.send(0x1B, 'p', 0, 50, 50)
		time.Sleep(3 * time.Second)
		r.expect("opened/commanded/0/till", "opened/commanded/0/till")
		r.stop()
	})
}

func TestATillsKickThatMovesNothingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		r.printer.send(0x10, 0, 0, 0) // it speaks by itself
		r.till.send(0x1B, 'p', 0, 50, 50)
		time.Sleep(3 * time.Second)
		r.expect("openFailed/commanded/0/till")
		r.till.send(0x1B, 'p', 1, 50, 50) // the other drawer
		time.Sleep(3 * time.Second)
		r.expect("openFailed/commanded/0/till")
		r.stop()
	})
}

// Bit 2 of the answers to DLE EOT 2 to 4 is the cover or the paper, not pin 3.
func TestOnlyTheAnswerToTheRightQuestionIsALevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		r.till.send(0x10, 4, 1, 0x10, 4, 2, 0x10, 4, 4)
		r.printer.send(0x12, 0x16, 0x1E)
		r.printer.send(0x16)       // nobody asked
		r.till.send(0x1D, 'I', 67) // the name of the printer
		r.printer.send([]byte("_TM-T88V\x00")...)
		r.expect()
		time.Sleep(time.Second)
		r.till.send(0x10, 4, 1)
		r.printer.send(0x16)
		r.expect("opened/manual/0/")
		if got := r.till.took(); len(got) != 3+1+9+1 {
			t.Errorf("the till got % X, want every answer", got)
		}
		r.stop()
	})
}

func TestACommandWaitsForAPauseBetweenTwoCommandsOfTheTill(t *testing.T) {
	for name, tt := range map[string]struct {
		job, rest string // hex
		wait      time.Duration
	}{
		"in a line of text":            {"41 42", "43 0A", 50 * time.Millisecond},
		"in a raster":                  {"1D 76 30 00 04 00 01 00 FF FF", "FF FF 0A", 50 * time.Millisecond},
		"in a command that never ends": {"1D 76 30 00 04 00 01 00 FF FF", "", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startTap(t, nil)
				r.printer.send(0x10, 0, 0, 0)
				time.Sleep(time.Minute)
				r.till.send(unhex(t, tt.job)...)
				spoke := time.Now()
				opened := make(chan error)
				go func() { opened <- r.driver.Open(t.Context(), sale) }()
				time.Sleep(10 * time.Millisecond)
				if tt.rest != "" {
					time.Sleep(20 * time.Millisecond)
					r.till.send(unhex(t, tt.rest)...)
					spoke = time.Now()
				}
				if err := <-opened; err != nil {
					t.Fatal(err)
				}
				want := append(unhex(t, tt.job+tt.rest), 0x1B, 'p', 0, 50, 50)
				if got := r.printer.took(); !bytes.Equal(got, want) {
					t.Fatalf("the printer got % X, want % X", got, want)
				}
				if got := r.printer.at[len(want)-1].Sub(spoke); got < tt.wait || got > tt.wait+60*time.Millisecond {
					t.Errorf("kicked %s after the till, want %s", got, tt.wait)
				}
				time.Sleep(200 * time.Millisecond)
				r.printer.send(0x14, 0, 0, 0)
				r.expect("opened/commanded/0/sale")
				r.stop()
			})
		})
	}
}

// A till that never pauses is not interrupted: the command ends with its caller.
func TestABusyTillIsNotInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.till.send('x')
		opened := make(chan error)
		go func() { opened <- r.driver.Open(ctx, sale) }()
		for range 60 {
			r.till.send('x')
			time.Sleep(20 * time.Millisecond)
		}
		if err := <-opened; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open = %v, want DeadlineExceeded", err)
		}
		time.Sleep(time.Minute)
		if got := r.printer.took(); string(got) != string(bytes.Repeat([]byte{'x'}, 61)) {
			t.Errorf("the printer got % X, want the till's bytes alone", got)
		}
		r.stop()
	})
}

func TestATapKeepsTheAnswersToItsOwnQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startTap(t, map[string]any{"tap_poll": "1s"})
		time.Sleep(1100 * time.Millisecond)
		if got := r.printer.took(); !bytes.Equal(got, askStatus) {
			t.Fatalf("the printer got % X, want our question", got)
		}
		r.till.send(0x10, 4, 1)
		r.printer.send(0x12, 0x12)
		if got := r.till.took(); !bytes.Equal(got, []byte{0x12}) {
			t.Errorf("the till got % X, want its own answer alone", got)
		}
		time.Sleep(1100 * time.Millisecond)
		r.printer.send(0x16)
		r.expect("opened/manual/0/")
		if got := r.till.took(); len(got) != 1 {
			t.Errorf("the till got % X, want no answer to our question", got)
		}
		r.stop()
	})
}

func TestALostSideEndsTheRun(t *testing.T) {
	for _, side := range []string{"till", "printer"} {
		synctest.Test(t, func(t *testing.T) {
			r := startTap(t, nil)
			if side == "till" {
				r.till.conn.Close()
			} else {
				r.printer.conn.Close()
			}
			if err := <-r.done; err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v, want the %s's error", err, side)
			}
			if err := r.driver.Open(t.Context(), sale); !errors.Is(err, drivers.ErrOffline) {
				t.Errorf("Open = %v, want ErrOffline", err)
			}
			r.till.conn.Close()
			r.printer.conn.Close()
		})
	}
}

// What was read from the till when the agent is told to stop still reaches the printer.
func TestWhatWasReadIsWrittenWhenTheRunEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tillOurs, till := net.Pipe()
		printerOurs, printer := net.Pipe()
		d, err := NewESCPOS(drivers.Spec{ID: "d", Driver: "escpos", Port: "COM1", Settings: map[string]any{"till_port": "COM2"}},
			func(_ context.Context, c serialport.Config) (serialport.Port, error) {
				if c.Name == "COM2" {
					return pipePort{tillOurs}, nil
				}
				return pipePort{printerOurs}, nil
			})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx, &memoryHost{}) }()
		if _, err := till.Write([]byte("last line\n")); err != nil { // read; the printer takes nothing yet
			t.Fatal(err)
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		got := make([]byte, 32)
		n, err := printer.Read(got)
		if err != nil || string(got[:n]) != "last line\n" {
			t.Errorf("the printer got %q, %v", got[:n], err)
		}
		<-done
		till.Close()
		printer.Close()
	})
}

func TestTheTillAndThePrinterAreOnTwoPorts(t *testing.T) {
	_, err := NewESCPOS(drivers.Spec{ID: "d1", Port: "COM1", Settings: map[string]any{"till_port": "COM1"}}, nil)
	expectFault(t, err, "settings.till_port")
}
