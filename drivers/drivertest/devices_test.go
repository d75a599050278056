package drivertest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

// A client is the far end of a line in virtual time: what arrives is collected.
type client struct {
	t    *testing.T
	conn net.Conn

	mu      sync.Mutex // guards arrived
	arrived []byte
}

// attach runs a simulator on a pipe until the test ends; it must be called in a bubble. The
// line is wrapped with faults when seed is not 0.
func attach(t *testing.T, run func(context.Context, io.ReadWriter) error, seed uint64) (*client, *drivertest.FaultyLine) {
	t.Helper()
	device, conn := drivertest.Pipe()
	line := drivertest.NewFaultyLine(device, seed)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, line) }()
	c := &client{t: t, conn: conn}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 256)
		for {
			n, err := conn.Read(buf)
			c.mu.Lock()
			c.arrived = append(c.arrived, buf[:n]...)
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v, want context.Canceled", err)
		}
		conn.Close()
		<-read
	})
	synctest.Wait()
	return c, line
}

// took returns what has arrived since the last call, as hex.
func (c *client) took() string { return fmt.Sprintf("% X", c.bytes()) }

func (c *client) bytes() []byte {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.arrived
	c.arrived = nil
	return b
}

func (c *client) send(s string) {
	c.t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// ask sends hex and returns what comes back within d of virtual time.
func (c *client) ask(s string, d time.Duration) string {
	c.t.Helper()
	c.took()
	c.send(s)
	time.Sleep(d)
	return c.took()
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func begins(t *testing.T, what, got, want string) {
	t.Helper()
	if !strings.HasPrefix(got, want) {
		t.Errorf("%s: got %q, want %q and more", what, got, want)
	}
}

// bubble runs a test in virtual time; the cleanups of its t run inside.
func bubble(t *testing.T, f func(*testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestTerabeeSaysTheVectorsOfItsManual(t *testing.T) {
	for _, tt := range []struct {
		name                string
		short               bool
		passage, afterReset string
	}{
		{"long", false, "50 43 00 00 00 01 00 00 00 05 00 0C 00 07 AE", "50 43 00 00 00 01 00 00 00 00 00 00 00 00 AC"},
		{"short", true, "50 43 00 00 00 05 00 0C 00 07 47", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := drivertest.NewTerabee(drivertest.TerabeeOptions{Every: -1, Short: tt.short})
				c, _ := attach(t, s.Run, 1)
				s.Walk(11, 7)
				c.took()
				s.Walk(1, 0)
				same(t, "PC frame", c.took(), tt.passage)
				if tt.afterReset != "" {
					same(t, "answer to reset counters", c.ask("00 55 08 00 00 00 00 7C", 0), tt.afterReset)
					if got, want := s.Truth(), (drivertest.Passages{In: 12, Out: 7}); got != want {
						t.Errorf("truth after a reset is %+v, want %+v", got, want)
					}
				}
			})
		})
	}
}

func TestTerabeeObeysOnlyGoodCommands(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewTerabee(drivertest.TerabeeOptions{Every: -1, Short: true})
		c, _ := attach(t, s.Run, 1)
		s.Walk(3, 1)
		c.took()
		same(t, "reset with a bad checksum", c.ask("00 55 08 00 00 00 00 7D", 0), "")
		if s.Refused() != 1 {
			t.Errorf("%d commands refused, want 1", s.Refused())
		}
		same(t, "commands without a public answer", c.ask("00 61 01 E7 00 61 02 EE 00 21 0A 8D", 0), "")
		same(t, "reset presence after noise", c.ask("FF 00 55 09 00 00 00 00 1E", 0)[:17], "50 43 00 00 00 00")
		if got, want := s.Totals(), (drivertest.Passages{In: 3, Out: 1}); got != want {
			t.Errorf("totals after reset presence are %+v, want %+v", got, want)
		}
		c.send("00 55 08 00")
		synctest.Wait()
		if got := c.ask("00 00 00 7C", 0); !strings.HasPrefix(got, "50 43 00 00 00 00 00 00 00 00") {
			t.Errorf("reset in two writes was answered with %q", got)
		}
	})
}

func TestTerabeeStreamsDistances(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewTerabee(drivertest.TerabeeOptions{Seed: 7})
		c, _ := attach(t, s.Run, 1)
		time.Sleep(time.Second + time.Millisecond)
		c.took()
		time.Sleep(time.Second)
		got := c.bytes()
		if len(got) != 10*7 {
			t.Fatalf("%d bytes in a second, want 10 frames of 7", len(got))
		}
		for frame := range bytes.SplitSeq(got[2:], []byte("DD")) {
			if len(frame) != 5 || frame[0] != 0x07 {
				t.Errorf("distance frame % X, want about 1900 mm", frame)
			}
		}
	})
}

func TestTerabeeRegistersWrapAndForget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewTerabee(drivertest.TerabeeOptions{Every: -1})
		c, _ := attach(t, s.Run, 1)
		s.Preset(65530, 0)
		s.Walk(9, 0)
		if got := c.took(); !strings.Contains(got, "FF FF 00 00") {
			t.Errorf("no total of 65535 in %q", got)
		}
		if got, want := s.Totals(), (drivertest.Passages{In: 3}); got != want {
			t.Errorf("totals after the wrap are %+v, want %+v", got, want)
		}
		s.PowerCycle()
		same(t, "after power cycle", c.took(), "")
		if got := s.Totals(); got != (drivertest.Passages{}) {
			t.Errorf("totals after the power cycle are %+v, want none", got)
		}
		if got := s.Truth(); got.In != 9 {
			t.Errorf("truth is %+v, want 9 in", got)
		}
	})
}

func TestLineCounterSpeaksItsDialect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewLineCounter(drivertest.LineCounterOptions{Uptime: 100 * time.Second})
		c, _ := attach(t, s.Run, 1)
		say := func(what, body string) {
			t.Helper()
			var sum byte
			for i := range len(body) {
				sum ^= body[i]
			}
			want := fmt.Sprintf("%s*%02X\r\n", body, sum)
			if got := string(c.bytes()); got != want {
				t.Errorf("%s: got %q, want %q", what, got, want)
			}
		}
		s.Walk(1, 0)
		say("passage", "C,1,1,0,100")
		time.Sleep(5 * time.Second)
		c.send("52 0D 0A")
		say("R", "C,2,1,0,105")
		c.send("52 0D")
		synctest.Wait()
		c.send("0A")
		say("R in two writes", "C,3,1,0,105")
		c.send("5A 0D 0A")
		say("Z", "C,4,0,0,105")
		s.Walk(0, 1)
		say("passage after Z", "C,5,0,1,105")
		s.PowerCycle()
		time.Sleep(2 * time.Second)
		c.send("52 0D 0A")
		say("R after reboot", "C,1,0,0,2")
		if got, want := s.Truth(), (drivertest.Passages{In: 1, Out: 1}); got != want {
			t.Errorf("truth is %+v, want %+v", got, want)
		}
	})
}

func TestDrawerMovesAfterEitherKick(t *testing.T) {
	for _, tt := range []struct{ name, kick string }{
		{"ESC p", "1B 70 00 32 32"},
		{"ESC p with ASCII pin", "1B 70 30 28 28"},
		{"DLE DC4", "10 14 01 00 01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := drivertest.NewPrinter(drivertest.PrinterOptions{})
				c, _ := attach(t, p.Run, 1)
				same(t, "status enabled", c.ask("1D 61 01", 0), "10 00 00 00")
				same(t, "before it moves", c.ask(tt.kick, 149*time.Millisecond), "")
				time.Sleep(time.Millisecond)
				same(t, "when it has moved", c.took(), "14 00 00 00")
				p.PushIn()
				same(t, "pushed in", c.took(), "10 00 00 00")
				p.KeyOpen()
				same(t, "opened with the key", c.took(), "14 00 00 00")
				var causes []string
				for _, m := range p.Truth() {
					causes = append(causes, fmt.Sprint(m.Open, m.Cause))
				}
				same(t, "truth", strings.Join(causes, " "), "truecommanded false truekey")
			})
		})
	}
}

func TestDrawerOnTheOtherPinStaysShut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewPrinter(drivertest.PrinterOptions{Connector: 1})
		c, _ := attach(t, p.Run, 1)
		c.ask("1B 70 00 32 32 10 14 01 00 01", time.Second)
		if p.Opened() {
			t.Error("a kick of pin 2 opened the drawer on pin 5")
		}
		c.ask("1B 70 31 32 32", time.Second)
		if !p.Opened() {
			t.Error("a kick of pin 5 did not open the drawer on pin 5")
		}
	})
}

func TestDrawerPolarityJamAndMissingSwitch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		low := drivertest.NewPrinter(drivertest.PrinterOptions{OpenLow: true})
		c, _ := attach(t, low.Run, 1)
		same(t, "closed, open is low", c.ask("1D 61 01", 0), "14 00 00 00")
		same(t, "open is low", c.ask("1B 70 00 32 32", time.Second), "10 00 00 00")

		none := drivertest.NewPrinter(drivertest.PrinterOptions{NoSwitch: true})
		c, _ = attach(t, none.Run, 1)
		same(t, "no switch", c.ask("1D 61 01 1B 70 00 32 32", time.Second), "10 00 00 00")
		if !none.Opened() {
			t.Error("the drawer without a switch did not open")
		}

		jam := drivertest.NewPrinter(drivertest.PrinterOptions{})
		jam.SetJammed(true)
		c, _ = attach(t, jam.Run, 1)
		same(t, "jammed", c.ask("1D 61 01 1B 70 00 32 32", time.Second), "10 00 00 00")
		jam.SetJammed(false)
		same(t, "free again", c.ask("1B 70 00 32 32", time.Second), "14 00 00 00")
	})
}

func TestPrinterStatusBytesKeepTheirClasses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewPrinter(drivertest.PrinterOptions{})
		c, _ := attach(t, p.Run, 1)
		same(t, "DLE EOT 1", c.ask("10 04 01", 0), "12")
		same(t, "GS r 2, closed", c.ask("1D 72 02", 0), "00")
		p.KeyOpen()
		same(t, "DLE EOT 1, open", c.ask("10 04 01", 0), "16")
		same(t, "GS r 2, open", c.ask("1D 72 32", 0), "01")
		same(t, "ESC u 0, open", c.ask("1B 75 00", 0), "01")
		c.ask("1D 61 0F", 0)
		set := []func(bool){p.SetCover, p.SetPaperEnd, p.SetOffline, p.SetError}
		for mask := range 1 << len(set) {
			for i, f := range set {
				f(mask>>i&1 != 0)
			}
			c.took()
			c.send("10 04 01 10 04 02 10 04 03 10 04 04")
			got := c.bytes()
			for i, b := range got {
				if b&0x93 != 0x12 {
					t.Errorf("DLE EOT %d answered %02X, not 0xx1xx10", i+1, b)
				}
			}
			if len(got) != 4 {
				t.Fatalf("%d answers to 4 real-time requests (mask %b)", len(got), mask)
			}
			if off, cover := got[0]&0x08 != 0, got[1]&0x04 != 0; off != (mask != 0) || cover != (mask&1 != 0) {
				t.Errorf("mask %b: offline %t, cover open %t", mask, off, cover)
			}
		}
		for _, f := range set {
			f(false)
			c.took()
			f(true)
			for got := range slices.Chunk(c.bytes(), 4) {
				if len(got) != 4 || got[0]&0x93 != 0x10 || (got[1]|got[2]|got[3])&0x90 != 0 {
					t.Errorf("automatic status % X is out of its class", got)
				}
			}
		}
		c.took()
		p.SetCover(false)
		c.took()
		p.SetCover(true)
		if got := c.took(); !strings.HasPrefix(got, "3C") {
			t.Errorf("cover open, drawer open: got %q, want byte 1 3C", got)
		}
	})
}

func TestAutomaticStatusNamesItsCauses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewPrinter(drivertest.PrinterOptions{})
		c, _ := attach(t, p.Run, 1)
		c.ask("1D 61 01", 0)
		p.SetOffline(true)
		same(t, "offline with n=1", c.took(), "")
		p.SetOffline(false)
		same(t, "n=2 at once", c.ask("1D 61 02", 0), "10 00 00 00")
		p.KeyOpen()
		same(t, "drawer with n=2", c.took(), "")
		p.SetOffline(true)
		same(t, "offline with n=2", c.took(), "1C 00 00 00")
		p.SetOffline(false)
		c.ask("1D 61 01 1B 40", 0)
		p.PushIn()
		same(t, "drawer after ESC @", c.took(), "")
		same(t, "n=0", c.ask("1D 61 00", 0), "")
		c.ask("1D 61 0F", 0)
		p.PowerCycle()
		p.KeyOpen()
		same(t, "drawer after a power cycle", c.took(), "")
	})
}

func TestBufferedKickWaitsAndRealTimeKickDoesNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewPrinter(drivertest.PrinterOptions{PerByte: 100 * time.Millisecond})
		c, _ := attach(t, p.Run, 1)
		c.send("41 42 43 1B 70 00 32 32")
		time.Sleep(440 * time.Millisecond)
		if p.Opened() {
			t.Error("the kick did not wait for 3 bytes of text")
		}
		time.Sleep(11 * time.Millisecond)
		if !p.Opened() || p.Printed() != "ABC" {
			t.Errorf("after the text: open %t, printed %q", p.Opened(), p.Printed())
		}
		p.PushIn()
		p.SetPaperEnd(true)
		c.ask("44 1B 70 00 32 32 1D 72 02", time.Minute)
		if p.Opened() || p.Printed() != "ABC" {
			t.Error("the buffered kick or text came through while the paper was out")
		}
		c.ask("10 14 01 00 08 10 14 01 00 01", time.Second)
		p.PushIn()
		if n := len(p.Truth()); n != 4 {
			t.Errorf("%d movements, want 4: the real-time kick works offline, once while its pulse runs", n)
		}
		p.SetError(true)
		c.ask("10 14 01 00 01", time.Second)
		if p.Opened() {
			t.Error("the real-time kick worked in an error")
		}
		p.SetError(false)
		p.SetPaperEnd(false)
		time.Sleep(time.Second)
		if !p.Opened() || p.Printed() != "ABCD" {
			t.Errorf("with paper again: open %t, printed %q", p.Opened(), p.Printed())
		}
		same(t, "the GS r that had waited", c.took(), "00")
	})
}

func TestSimulatorRefusesASecondLine(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewTerabee(drivertest.TerabeeOptions{})
		attach(t, s.Run, 1)
		device, _ := drivertest.Pipe()
		if err := s.Run(t.Context(), device); !errors.Is(err, drivertest.ErrBusy) {
			t.Errorf("second Run: %v, want ErrBusy", err)
		}
	})
}
