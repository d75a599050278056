package drivertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// A toyOpen is what the small drivers here have in common: the port while it is open.
type toyOpen struct {
	spec drivers.Spec
	open serialport.OpenFunc
	flaw string

	mu   sync.Mutex      // guards the port and one exchange on it
	port serialport.Port // nil while lost
}

// hold opens the port and keeps it until do returns.
func (d *toyOpen) hold(ctx context.Context, do func(serialport.Port) error) error {
	port, err := d.open(ctx, serialport.Config{Name: d.spec.Port})
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.port = port
	d.mu.Unlock()
	err = do(port)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.port = nil
	return errors.Join(err, port.Close())
}

// A toyScale is a small driver of a Toledo scale, right unless a flaw is named.
type toyScale struct {
	toyOpen
	last int64
}

func (d *toyScale) Run(ctx context.Context, _ drivers.Host) error {
	return d.hold(ctx, func(port serialport.Port) error {
		for { // until the port is lost, which a look at its lines tells
			if _, err := port.ModemLines(); err != nil {
				return err
			}
			if pause(ctx, 20*time.Millisecond); ctx.Err() != nil {
				return ctx.Err()
			}
		}
	})
}

func (d *toyScale) weigh(ctx context.Context) (int64, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.port == nil {
		return 0, false, drivers.ErrOffline
	}
	for d.flaw != "stale" { // throw away what is late
		late, cancel := context.WithTimeout(ctx, 60*time.Millisecond)
		_, err := d.port.Read(late, make([]byte, 256))
		cancel()
		if err != nil {
			break
		}
	}
	if err := d.port.Write(ctx, []byte("W")); err != nil {
		return 0, false, errors.Join(drivers.ErrOffline, err)
	}
	wait, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	var frame []byte
	for b := make([]byte, 1); ; {
		if _, err := d.port.Read(wait, b); err != nil {
			return 0, false, errors.Join(drivers.ErrOffline, err)
		}
		if b[0] == 0x02 {
			frame = nil
		}
		if frame = append(frame, b[0]); b[0] == 0x0D {
			break
		}
	}
	if d.flaw == "gullible" {
		frame = bytes.ReplaceAll(frame, []byte{0}, []byte("0"))
	}
	var kilos, grams int64
	if n, err := fmt.Sscanf(string(frame), "\x02%02d.%03d\r", &kilos, &grams); n != 2 || err != nil || len(frame) != 8 {
		if d.flaw == "hopeful" {
			return d.last, true, nil
		}
		return 0, false, nil
	}
	d.last = 1000*kilos + grams
	return d.last, true, nil
}

func toyScaleSuite(flaw string) ScaleSuite {
	return ScaleSuite{
		On: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
			return &toyScale{toyOpen: toyOpen{spec: spec, open: open, flaw: flaw}}, nil
		},
		Device: func(seed uint64) ScaleDevice { return NewScale(ScaleOptions{Seed: seed}) },
		Weigh: func(ctx context.Context, driver drivers.Driver) (int64, bool, error) {
			return driver.(*toyScale).weigh(ctx)
		},
		Wait: 4 * time.Second,
	}
}

func TestScaleSuitePassesARightDriver(t *testing.T) {
	ScaleConformance(t, toyScaleSuite(""))
}

func TestScaleSuiteCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"stale", "duplicates", "the driver weighs"},
		{"gullible", "bad parity", "the driver weighs"},
		{"hopeful", "motion", "the driver weighs"},
		{"hopeful", "no weight", "the driver weighs"},
	} {
		t.Run(tt.flaw+", "+tt.check, func(t *testing.T) {
			if said := virtualComplaints(t, toyScaleSuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}

// A toyScanner is a small driver of a scanner, right unless a flaw is named.
type toyScanner struct {
	toyOpen
	codes chan string
	line  []byte
	skip  bool // the rest of a line that was too long
	last  string
}

func (d *toyScanner) Run(ctx context.Context, _ drivers.Host) error {
	return d.hold(ctx, func(port serialport.Port) error {
		if d.flaw != "gluing" {
			d.line, d.skip = nil, false
		}
		for buf := make([]byte, 512); ; {
			n, err := port.Read(ctx, buf)
			for _, b := range buf[:n] {
				if b == '\n' {
					d.say(strings.TrimSuffix(string(d.line), "\r"))
					d.line, d.skip = nil, false
				} else if d.line = append(d.line, b); len(d.line) > 4096 && d.flaw != "boundless" {
					d.line, d.skip = nil, true
				}
			}
			if err != nil {
				return err
			}
		}
	})
}

func (d *toyScanner) say(code string) {
	if d.skip || d.flaw == "thrifty" && code == d.last {
		return
	}
	d.last = code
	if d.flaw == "numeric" {
		code = strings.TrimLeft(code, "0")
	}
	select {
	case d.codes <- code:
	default:
	}
}

func toyScannerSuite(flaw string) ScannerSuite {
	return ScannerSuite{
		On: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
			return &toyScanner{toyOpen: toyOpen{spec: spec, open: open, flaw: flaw}, codes: make(chan string, 100)}, nil
		},
		Device: func(uint64) ScannerDevice { return NewScanner(ScannerOptions{}) },
		Listen: func(ctx context.Context, driver drivers.Driver, take func(string)) error {
			for {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case code := <-driver.(*toyScanner).codes:
					take(code)
				}
			}
		},
		Wait: 4 * time.Second,
	}
}

func TestScannerSuitePassesARightDriver(t *testing.T) {
	ScannerConformance(t, toyScannerSuite(""))
}

func TestScannerSuiteCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"gluing", "hang-up", `heard ["40063`},
		{"boundless", "endless line", "of 16384 bytes"},
		{"numeric", "clean line", `"12345678905"`},
		{"thrifty", "clean line", "want"}, // the same code twice is two scans
	} {
		t.Run(tt.flaw, func(t *testing.T) {
			if said := virtualComplaints(t, toyScannerSuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}

// A toyCoins is a small driver of a coin acceptor at address 2, right unless a flaw is named.
type toyCoins struct{ toyOpen }

// A toyCoinState is what it keeps.
type toyCoinState struct {
	Counter byte
	Number  int64
}

func (d *toyCoins) Run(ctx context.Context, host drivers.Host) error {
	return d.hold(ctx, func(port serialport.Port) error {
		var state toyCoinState
		kept, err := host.State()
		if err != nil {
			return err
		}
		known := kept != nil
		if known {
			if err := json.Unmarshal(kept, &state); err != nil {
				return err
			}
		}
		if d.flaw == "forgetful" {
			known = false
		}
		for enabled := false; ; {
			if pause(ctx, 10*time.Millisecond); ctx.Err() != nil {
				return ctx.Err()
			}
			answer, err := d.ask(ctx, port, []byte{2, 0, 1, 0xE5, 0x18}, 11)
			if err != nil {
				return err
			} else if answer == nil {
				host.Note("no answer")
				continue
			}
			switch counter := answer[0]; {
			case !known:
				state.Counter, known = counter, true
			case counter == 0 && state.Counter != 0 && d.flaw != "headstrong":
				state.Counter, enabled = 0, false
			}
			if state, err = d.take(ctx, host, state, answer); err != nil {
				return err
			}
			if !enabled {
				_, err := d.ask(ctx, port, []byte{2, 2, 1, 0xE7, 0xFF, 0xFF, 0x16}, 0)
				if err != nil {
					return err
				}
				back, err := d.ask(ctx, port, []byte{2, 0, 1, 0xE6, 0x17}, 2)
				if err != nil {
					return err
				}
				enabled = slices.Equal(back, []byte{0xFF, 0xFF})
			}
		}
	})
}

// take emits what is new, and returns what is kept then.
func (d *toyCoins) take(ctx context.Context, host drivers.Host, state toyCoinState, answer []byte) (toyCoinState, error) {
	steps := int(answer[0]) - int(state.Counter)
	if steps < 0 {
		steps += 255
		if d.flaw == "round" {
			steps++ // as if the counter went to 0
		}
	}
	emit := func(after byte, event CoinEvent) (bool, error) {
		next := toyCoinState{after, state.Number + 1}
		event.Acceptor, event.Number = d.spec.ID, next.Number
		kept, err := json.Marshal(next)
		if err != nil {
			return false, err
		}
		if host.Emit(ctx, kindCoins, event, kept) != nil && d.flaw != "lossy" {
			return false, nil
		}
		state = next
		return true, nil
	}
	counter := func(back int) byte { // of the event so many before the newest
		if n := int(answer[0]) - back; n > 0 {
			return byte(n)
		} else {
			return byte(n + 255)
		}
	}
	if steps > 5 && d.flaw != "silent" {
		if ok, err := emit(counter(5), CoinEvent{Event: "missed", Count: int64(steps - 5)}); !ok || err != nil {
			return state, err
		}
	}
	for back := min(steps, 5) - 1; back >= 0; back-- {
		event := CoinEvent{Event: "accepted", Channel: int(answer[1+2*back])}
		if event.Channel == 0 && d.flaw != "blind" {
			event = CoinEvent{Event: "rejected", Count: 1}
		}
		if ok, err := emit(counter(back), event); !ok || err != nil {
			return state, err
		}
	}
	return state, nil
}

// ask sends a frame and returns the data of the answer to it; nil = none came.
func (d *toyCoins) ask(ctx context.Context, port serialport.Port, frame []byte, size int) ([]byte, error) {
	if err := port.Write(ctx, frame); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 60*time.Millisecond)
	defer cancel()
	var all, answer []byte
	for buf := make([]byte, 256); ; {
		n, err := port.Read(wait, buf)
		all = append(all, buf[:n]...)
		for i := 0; answer == nil && i+5+size <= len(all); i++ {
			f := all[i : i+5+size]
			var sum byte
			for _, b := range f {
				sum += b
			}
			if f[0] == 1 && int(f[1]) == size && f[2] == 2 && f[3] == 0 && (sum == 0 || d.flaw == "credulous") {
				answer = append([]byte{}, f[4:4+size]...)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case wait.Err() != nil: // the line was quiet: late answers are thrown away
			return answer, nil
		case err != nil:
			return nil, err
		}
	}
}

func toyCoinSuite(flaw string) CoinSuite {
	return CoinSuite{
		On: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
			return &toyCoins{toyOpen{spec: spec, open: open, flaw: flaw}}, nil
		},
		Device: func(uint64) CoinDevice { return NewCoinAcceptor(CoinAcceptorOptions{}) },
		Wait:   5 * time.Second,
	}
}

func TestCoinSuitePassesARightDriver(t *testing.T) {
	CoinConformance(t, toyCoinSuite(""))
}

func TestCoinSuiteCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"credulous", "bad checksums", "emitted ["},
		{"round", "wrap", "emitted ["},
		{"forgetful", "restart", "emitted ["},
		{"lossy", "disk full", "emitted ["},
		{"silent", "lost polls", "of which 3 are forgotten"},
		{"headstrong", "power cycle", "notes"},
		{"blind", "errors between", "emitted ["},
	} {
		t.Run(tt.flaw, func(t *testing.T) {
			if said := virtualComplaints(t, toyCoinSuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}
