package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
)

// TapTillOptions shape a TapTill.
type TapTillOptions struct {
	Every time.Duration // between receipts; 0 = 200 ms
	Pause time.Duration // at most, within a receipt, also within a command; 0 = 20 ms
	Kick  int           // percent of receipts that end with a kick of pin 2
	Ask   int           // percent of receipts after which the till asks DLE EOT 1 and waits for the answer
	Image int           // percent of receipts with a raster image, which holds what looks like commands
	Seed  uint64
}

// A TapTill simulates a till that has the receipt printer for itself, as it believes: it
// prints, kicks the drawer and asks for the printer's status, while an agent stands between
// (a tap). It tears its commands into pieces, as a slow line does. What it wants printed must
// come out of the printer byte for byte, and it must hear the answers to its own questions
// and nothing else.
type TapTill struct {
	opts TapTillOptions

	mu       sync.Mutex // guards the fields below
	rng      *rand.Rand
	printing bytes.Buffer // what must be printed
	receipts int
	kicks    int
	asked    int
	answers  int
	waiting  bool
	strange  []byte // bytes that it did not ask for
	silent   bool
	heard    chan struct{} // capacity 1
}

// NewTapTill makes a till that has printed nothing.
func NewTapTill(opts TapTillOptions) *TapTill {
	if opts.Every == 0 {
		opts.Every = 200 * time.Millisecond
	}
	if opts.Pause == 0 {
		opts.Pause = 20 * time.Millisecond
	}
	return &TapTill{opts: opts, rng: rand.New(rand.NewPCG(opts.Seed, 5)), heard: make(chan struct{}, 1)}
}

// BehindTap is the Plug of a suite whose driver stands between a till and the printer: it puts
// a till on a port of its own, which it names in the setting. The till never kicks, since the
// suite knows of no other openings. (That the till is not disturbed is for a test with a
// TapTill and a Printer: the faults of a suite's line disturb it too.)
func BehindTap(setting string, opts TapTillOptions) func(t testing.TB, spec drivers.Spec) drivers.Spec {
	opts.Kick = 0
	return func(t testing.TB, spec drivers.Spec) drivers.Spec {
		t.Helper()
		pty, err := OpenPty(filepath.Join(t.TempDir(), "till"))
		if err != nil {
			t.Fatal(err)
		}
		till := NewTapTill(opts)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = pty.Serve(ctx, func() error { return till.Run(ctx, pty) })
		}()
		t.Cleanup(func() {
			cancel()
			<-done
			_ = pty.Close() // the till has ended
		})
		settings := map[string]any{}
		for name, value := range spec.Settings {
			settings[name] = value
		}
		settings[setting] = pty.Path()
		spec.Settings = settings
		return spec
	}
}

// Run prints receipts on the line until ctx ends or the line is lost.
func (s *TapTill) Run(ctx context.Context, line io.ReadWriter) error {
	return newOutbox().serve(ctx, line, s.hear, func(ctx context.Context) error {
		for {
			pause(ctx, s.opts.Every)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.mu.Lock()
			silent := s.silent
			s.mu.Unlock()
			if silent {
				continue
			}
			if err := s.receipt(ctx, line); err != nil {
				return err
			}
		}
	})
}

// receipt prints one receipt.
func (s *TapTill) receipt(ctx context.Context, line io.Writer) error {
	s.mu.Lock()
	var out bytes.Buffer
	s.receipts++
	fmt.Fprintf(&out, "receipt %d\n", s.receipts)
	for range 1 + s.rng.IntN(4) {
		fmt.Fprintf(&out, "item %8d  %6d.%02d\n", s.rng.IntN(1e8), s.rng.IntN(1000), s.rng.IntN(100))
	}
	if s.roll(s.opts.Image) {
		out.Write(s.image())
	}
	s.printing.Write(out.Bytes())
	if s.roll(s.opts.Kick) {
		s.kicks++
		out.Write([]byte{0x1B, 'p', 0, 50, 50})
	}
	ask := s.roll(s.opts.Ask)
	s.mu.Unlock()
	if err := s.tear(ctx, line, out.Bytes()); err != nil || !ask {
		return err
	}
	return s.ask(ctx, line)
}

func (s *TapTill) roll(percent int) bool { return s.rng.IntN(100) < percent }

// image is a raster image whose dots look like a kick and a question; s.mu is held.
func (s *TapTill) image() []byte {
	dots := []byte{0x1B, 'p', 0, 50, 50, 0x10, 0x04, 0x01, 0x10, 0x14, 1, 0, 1, 0x1D, 'a', 1}
	image := []byte{0x1D, 'v', '0', 0, 16, 0, 4, 0}
	for range 4 {
		image = append(image, dots...)
	}
	return image
}

// tear writes p in pieces with pauses between, shorter than a gap between commands.
func (s *TapTill) tear(ctx context.Context, line io.Writer, p []byte) error {
	for len(p) > 0 {
		s.mu.Lock()
		n := min(len(p), 1+s.rng.IntN(40))
		wait := time.Duration(s.rng.Int64N(int64(s.opts.Pause)))
		s.mu.Unlock()
		if _, err := line.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
		pause(ctx, wait)
	}
	return ctx.Err()
}

// ask asks for the printer's status and waits a second for one byte.
func (s *TapTill) ask(ctx context.Context, line io.Writer) error {
	s.mu.Lock()
	s.asked++
	s.waiting = true
	s.mu.Unlock()
	select {
	case <-s.heard:
	default:
	}
	if _, err := line.Write([]byte{0x10, 0x04, 0x01}); err != nil {
		return err
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-s.heard:
	case <-timer.C:
	}
	s.mu.Lock()
	s.waiting = false
	s.mu.Unlock()
	return ctx.Err()
}

func (s *TapTill) hear(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range p {
		if !s.waiting || b&0x93 != 0x12 {
			s.strange = append(s.strange, b)
			continue
		}
		s.waiting = false
		s.answers++
		select {
		case s.heard <- struct{}{}:
		default:
		}
	}
}

// SetSilent makes the till rest between receipts, or work again.
func (s *TapTill) SetSilent(silent bool) { s.mu.Lock(); defer s.mu.Unlock(); s.silent = silent }

// Printing is what must have been printed.
func (s *TapTill) Printing() string { s.mu.Lock(); defer s.mu.Unlock(); return s.printing.String() }

// Kicks is how often the till has kicked the drawer.
func (s *TapTill) Kicks() int { s.mu.Lock(); defer s.mu.Unlock(); return s.kicks }

// Asked is how often the till has asked for the status, and how many answers it had.
func (s *TapTill) Asked() (asked, answered int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.answers
}

// Strange are the bytes that the till did not ask for.
func (s *TapTill) Strange() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.strange...)
}
