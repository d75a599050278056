package drivertest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/drivers/serialport"
)

func openFake(t *testing.T, p *drivertest.FakePort, config serialport.Config) serialport.Port {
	t.Helper()
	port, err := p.Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	return port
}

func TestFakePortPassesBytesBothWays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewFakePort("memory")
		p.Write([]byte("lost, since nobody listens"))
		port := openFake(t, p, serialport.Config{})
		p.Write([]byte("to the driver"))
		buf := make([]byte, 64)
		if n, err := port.Read(t.Context(), buf); err != nil || string(buf[:n]) != "to the driver" {
			t.Errorf("driver read %q, %v", buf[:n], err)
		}
		go port.Write(t.Context(), []byte("to the device"))
		if n, err := p.Read(buf); err != nil || string(buf[:n]) != "to the device" {
			t.Errorf("device read %q, %v", buf[:n], err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := port.Read(ctx, buf); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read of nothing: %v, want context.DeadlineExceeded", err)
		}
		p.Write([]byte("!"))
		if n, err := port.Read(t.Context(), buf); err != nil || n != 1 {
			t.Errorf("read after a deadline: %d, %v", n, err)
		}
	})
}

func TestFakePortHasOneOwnerAndCanBeLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewFakePort("memory")
		port := openFake(t, p, serialport.Config{})
		if _, err := p.Open(t.Context(), serialport.Config{}); !errors.Is(err, serialport.ErrBusy) {
			t.Errorf("second open: %v, want ErrBusy", err)
		}
		read := make(chan error, 1)
		go func() { _, err := port.Read(t.Context(), make([]byte, 1)); read <- err }()
		synctest.Wait()
		p.HangUp()
		if err := <-read; !errors.Is(err, serialport.ErrLost) {
			t.Errorf("read of a port that is unplugged: %v, want ErrLost", err)
		}
		if _, err := p.Open(t.Context(), serialport.Config{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("open of a port that is unplugged: %v, want fs.ErrNotExist", err)
		}
		p.Return()
		if err := port.Write(t.Context(), []byte("x")); !errors.Is(err, serialport.ErrLost) {
			t.Errorf("write after the plug is back: %v, want ErrLost", err)
		}
		again := openFake(t, p, serialport.Config{})
		go func() { _, err := again.Read(t.Context(), make([]byte, 1)); read <- err }()
		synctest.Wait()
		again.Close()
		if err := <-read; !errors.Is(err, os.ErrClosed) {
			t.Errorf("read of a closed port: %v, want os.ErrClosed", err)
		}
		if p.Opened() != 2 {
			t.Errorf("opened %d times, want 2", p.Opened())
		}
	})
}

func TestFakePortRaisesItsOutputsForAMoment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewFakePort("memory")
		var seen []string
		p.Watch(func(o drivertest.Outputs, broke time.Duration) { seen = append(seen, fmt.Sprint(o.DTR, o.RTS, broke)) })
		port := openFake(t, p, serialport.Config{RTS: serialport.SignalOff})
		lines := port.(interface {
			SetDTR(bool) error
			SetRTS(bool) error
			Break(time.Duration) error
		})
		if err := errors.Join(lines.SetDTR(false), lines.SetRTS(true), lines.Break(150*time.Millisecond), port.Close()); err != nil {
			t.Fatal(err)
		}
		same(t, "outputs", strings.Join(seen, ", "),
			"true true 0s, true false 0s, false false 0s, false true 0s, false true 150ms, false false 0s")
	})
}

func TestFakePortStuckWriteEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewFakePort("memory")
		port := openFake(t, p, serialport.Config{})
		p.SetStuck(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := port.Write(ctx, []byte("x")); !errors.Is(err, serialport.ErrLost) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stuck write: %v, want ErrLost and context.DeadlineExceeded", err)
		}
	})
}

// trace runs contacts in virtual time and returns each change of the lines with its time.
func trace(t *testing.T, opts drivertest.ContactsOptions, walk func(*drivertest.Contacts)) string {
	t.Helper()
	p := drivertest.NewFakePort("memory")
	port := openFake(t, p, serialport.Config{})
	s := drivertest.NewContacts(opts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, drivertest.NewFaultyLine(p, 1)) }()
	synctest.Wait()
	walk(s)
	var seen []string
	var last serialport.ModemLines
	start := time.Now()
	for i := 0; !s.Still() || i == 0; i++ {
		time.Sleep(time.Millisecond)
		synctest.Wait()
		now, err := port.ModemLines()
		if err != nil {
			t.Fatal(err)
		}
		if now != last {
			seen = append(seen, fmt.Sprintf("%d:%s", time.Since(start).Milliseconds(), names(now)))
		}
		last = now
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run ended with %v, want context.Canceled", err)
	}
	return strings.Join(seen, " ")
}

func names(l serialport.ModemLines) (s string) {
	for _, line := range []struct {
		name string
		on   bool
	}{{"cts", l.CTS}, {"dsr", l.DSR}, {"ri", l.RI}, {"dcd", l.DCD}} {
		if line.on {
			s += line.name
		}
	}
	return s
}

func TestContactsShowTheWayInTheOrderOfTheirLines(t *testing.T) {
	in := func(s *drivertest.Contacts) { s.Walk(1, 0) }
	out := func(s *drivertest.Contacts) { s.Walk(0, 1) }
	for _, tt := range []struct {
		name string
		opts drivertest.ContactsOptions
		walk func(*drivertest.Contacts)
		want string
	}{
		{"in", drivertest.ContactsOptions{Direction: true}, in, "1:cts 60:ctsdsr 120:dsr 180:"},
		{"out", drivertest.ContactsOptions{Direction: true}, out, "1:dsr 60:ctsdsr 120:cts 180:"},
		{"turned back", drivertest.ContactsOptions{Direction: true}, func(s *drivertest.Contacts) { s.TurnBack(false) }, "1:cts 120:"},
		{"a line for each way", drivertest.ContactsOptions{In: "dcd", Out: "ri"}, out, "1:ri 120:"},
		{"one beam", drivertest.ContactsOptions{Single: true}, out, "1:cts 120:"},
		{"inverted", drivertest.ContactsOptions{Inverted: true}, in, "1:dsr 120:ctsdsr"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				got := trace(t, tt.opts, tt.walk)
				if got != tt.want { // the sampling may be a millisecond late
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestContactsBounceAndGlitch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		got := strings.Fields(trace(t, drivertest.ContactsOptions{Bounce: 2, Glitch: 100, Seed: 4}, func(s *drivertest.Contacts) { s.Walk(1, 0) }))
		if len(got) < 6 || got[0] != "61:cts" && got[0] != "60:cts" {
			t.Errorf("got %q, want a glitch at 60 ms and then bounces", got)
		}
	})
}

func TestContactsNeedModemLines(t *testing.T) {
	device, _ := drivertest.Pipe()
	if err := drivertest.NewContacts(drivertest.ContactsOptions{}).Run(t.Context(), device); err == nil {
		t.Error("contacts run on a line without modem lines")
	}
}
