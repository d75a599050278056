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

// A linePort is a pipe with modem lines.
type linePort struct {
	pipePort
	mu    sync.Mutex // guards what follows
	in    serialport.ModemLines
	moves []string // of the output lines
	at    []time.Time
	gone  error
}

func (p *linePort) ModemLines() (serialport.ModemLines, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.in, p.gone
}

func (p *linePort) set(in serialport.ModemLines) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.in = in
}

func (p *linePort) SetDTR(on bool) error { return p.move("DTR", on) }
func (p *linePort) SetRTS(on bool) error { return p.move("RTS", on) }

func (p *linePort) move(line string, on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		line += " on"
	} else {
		line += " off"
	}
	p.moves, p.at = append(p.moves, line), append(p.at, time.Now())
	return nil
}

func newSerial(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	spec.Driver = "serialdrawer"
	return NewSerial(spec, open)
}

func startLines(t *testing.T, host *memoryHost, settings map[string]any) (*rig, *linePort) {
	t.Helper()
	ours, theirs := net.Pipe()
	port := &linePort{pipePort: pipePort{ours}}
	return startOn(t, host, newSerial, settings, port, theirs), port
}

func TestProfilesSayWhatTheManualsSay(t *testing.T) {
	for _, tt := range []struct {
		profile string
		config  serialport.Config
		command string
		status  string
	}{
		{"apg484", serialport.Config{Baud: 9600, DataBits: 8, Parity: "none", StopBits: "1", DTR: "on", RTS: "on"}, "\a", statusCTS},
		{"apg212", serialport.Config{Baud: 9600, DataBits: 7, Parity: "odd", StopBits: "1"}, "[[", statusCTS},
		{"klic", serialport.Config{Baud: 1200, DataBits: 8, Parity: "none", StopBits: "1"}, "\a", statusNone},
		{"kc", serialport.Config{Baud: 300, DataBits: 8, Parity: "none", StopBits: "1"}, "@@@@", statusNone},
		{"ibm", serialport.Config{Baud: 9600, DataBits: 8, Parity: "none", StopBits: "1"}, "\a", statusQuery},
		{"relay", serialport.Config{Baud: 9600, DataBits: 8, Parity: "none", StopBits: "1", DTR: "off", RTS: "off"}, "\a", statusNone},
	} {
		d, err := newSerial(drivers.Spec{ID: "d1", Port: "COM1", Settings: map[string]any{"profile": tt.profile}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := d.(*Serial)
		tt.config.Name = "COM1"
		if s.config != tt.config || string(s.command) != tt.command || s.status != tt.status {
			t.Errorf("%s = %+v, %q, %s", tt.profile, s.config, s.command, s.status)
		}
	}
}

func TestASettingIsStrongerThanTheProfile(t *testing.T) {
	d, err := newSerial(drivers.Spec{ID: "d1", Port: "COM1", Settings: map[string]any{"profile": "apg484", "status": "ri", "warmup": "0s", "baud": 19200}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := d.(*Serial); s.status != statusRI || s.warmup != 0 || s.config.Baud != 19200 || s.minInterval != 6*time.Second {
		t.Errorf("driver = %+v", s)
	}
}

func TestSerialSettingsAreChecked(t *testing.T) {
	for field, settings := range map[string]map[string]any{
		"settings.open":    {"open": `\q`},
		"settings.query":   {"query": ""},
		"settings.profile": {"profile": "apg1"},
		"settings.status":  {"profile": "ksc", "status": "query"},
	} {
		_, err := newSerial(drivers.Spec{ID: "d1", Port: "COM1", Settings: settings}, nil)
		expectFault(t, err, field)
	}
}

// An APG 484A opens 12 s after its port was opened, and 6 s after it opened last.
func TestADrawerGetsItsWarmUpAndItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r, port := startLines(t, host, map[string]any{"profile": "apg484", "open_level": "high"})
		began := time.Now()
		for i, want := range []time.Duration{12 * time.Second, 18 * time.Second} {
			if err := r.opener().Open(t.Context(), sale); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(began); got != want {
				t.Errorf("opened after %s, want %s", got, want)
			}
			if r.count([]byte{0x07}) != i+1 {
				t.Errorf("the drawer was sent % X", r.sent())
			}
			port.set(serialport.ModemLines{CTS: true})
			time.Sleep(time.Second)
			port.set(serialport.ModemLines{})
			time.Sleep(time.Second)
		}
		r.stop()
		if got := host.said(); len(got) != 4 || got[0] != "opened/commanded/0/sale" || got[2] != got[0] {
			t.Errorf("events = %q", got)
		}
	})
}

// A command whose caller has gone away during the warm-up opens nothing later.
func TestACommandThatNobodyWaitsForIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := startLines(t, &memoryHost{}, map[string]any{"profile": "apg484"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.opener().Open(ctx, sale); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open = %v, want DeadlineExceeded", err)
		}
		time.Sleep(time.Minute)
		if got := r.sent(); len(got) != 0 {
			t.Errorf("the drawer was sent % X, want nothing", got)
		}
		r.stop()
	})
}

func TestACommandThatWaitsIsAnsweredWhenThePortIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := startLines(t, &memoryHost{}, map[string]any{"profile": "apg484"})
		answer := make(chan error)
		go func() { answer <- r.opener().Open(t.Context(), sale) }()
		synctest.Wait()
		r.device.Close()
		if err := <-answer; !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Open = %v, want ErrOffline", err)
		}
		<-r.done
	})
}

func TestALineIsReadOnlyWhenItHasSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r, port := startLines(t, host, map[string]any{"status": "dsr", "open_level": "high"})
		time.Sleep(time.Second + linePoll/2) // between two looks
		port.set(serialport.ModemLines{DSR: true})
		time.Sleep(linePoll) // one look: a bounce
		port.set(serialport.ModemLines{})
		time.Sleep(time.Second)
		if got := host.said(); len(got) != 0 {
			t.Errorf("events = %q, want none of a bounce", got)
		}
		port.set(serialport.ModemLines{DSR: true})
		time.Sleep(3 * linePoll)
		r.stop()
		if want := []string{"opened/manual/0/"}; !slices.Equal(host.said(), want) {
			t.Errorf("events = %q, want %q", host.said(), want)
		}
	})
}

func TestARelayGetsAPulseAndIsOffOtherwise(t *testing.T) {
	for by, line := range map[string]string{"rts": "RTS", "dtr": "DTR"} {
		synctest.Test(t, func(t *testing.T) {
			host := &memoryHost{}
			r, port := startLines(t, host, map[string]any{"profile": "relay", "open_by": by})
			if err := r.opener().Open(t.Context(), sale); err != nil {
				t.Fatal(err)
			}
			r.stop()
			if want := []string{line + " off", line + " on", line + " off"}; !slices.Equal(port.moves, want) {
				t.Errorf("moves = %q, want %q", port.moves, want)
			} else if d := port.at[2].Sub(port.at[1]); d != 150*time.Millisecond {
				t.Errorf("the pulse is %s long", d)
			}
			if want := []string{"opened/commanded/0/sale"}; !slices.Equal(host.said(), want) {
				t.Errorf("events = %q, want %q", host.said(), want)
			}
		})
	}
}

// The agent is told to stop while the relay is on.
func TestARelayIsNeverLeftOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, port := startLines(t, &memoryHost{}, map[string]any{"profile": "relay", "pulse": "5s"})
		go r.opener().Open(t.Context(), sale)
		synctest.Wait()
		r.stop()
		if want := []string{"RTS off", "RTS on", "RTS off"}; !slices.Equal(port.moves, want) {
			t.Errorf("moves = %q, want %q", port.moves, want)
		}
	})
}

func TestAPortWithoutLinesIsAFaultWithAHint(t *testing.T) {
	for _, settings := range []map[string]any{{"profile": "relay"}, {"status": "cts"}} {
		synctest.Test(t, func(t *testing.T) {
			r := startDriver(t, &memoryHost{}, newSerial, settings)
			err := <-r.done
			var fault *drivers.Fault
			if !errors.Is(err, serialport.ErrNoLines) || !errors.As(err, &fault) || fault.Hint == "" {
				t.Errorf("Run = %v, want ErrNoLines with a hint", err)
			}
			r.device.Close()
		})
	}
}

func TestAnIBMDrawerIsAskedAndAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := startDriver(t, host, newSerial, map[string]any{"profile": "ibm"})
		r.send(0x00)
		if err := r.opener().Open(t.Context(), sale); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		r.send(0x40)
		time.Sleep(1100 * time.Millisecond)
		r.send(0x80, 0x00) // noise, and closed
		r.send(0x40)       // nobody asked
		r.stop()
		if got := bytes.Count(r.sent(), []byte{0x07}); got != 1 {
			t.Errorf("the drawer was sent % X, want one BEL", r.sent())
		}
		if got := host.said(); len(got) != 2 || got[0] != "opened/commanded/0/sale" || got[1] != "closed//1100/" {
			t.Errorf("events = %q", got)
		}
	})
}

func TestWithoutAStatusThePulseIsTheOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := startDriver(t, host, newSerial, map[string]any{"profile": "klic"})
		time.Sleep(time.Hour)
		if err := r.opener().Open(t.Context(), sale); err != nil {
			t.Fatal(err)
		}
		r.send('x') // of a device that shares the port
		r.stop()
		if want := []string{"opened/commanded/0/sale"}; !slices.Equal(host.said(), want) || host.online == 0 {
			t.Errorf("events = %q, online %d, want %q", host.said(), host.online, want)
		}
	})
}

func TestOpenedTellsWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, port := startLines(t, &memoryHost{}, map[string]any{"status": "cts", "open_level": "high"})
		time.Sleep(time.Second)
		w := r.driver.(drivers.Watcher)
		changed := w.Changed()
		select {
		case <-changed:
			t.Error("changed before anything did")
		default:
		}
		port.set(serialport.ModemLines{CTS: true})
		<-changed
		if open, known := w.Opened(); !open || !known {
			t.Errorf("Opened = %t, %t, want it open", open, known)
		}
		r.stop()
	})
}
