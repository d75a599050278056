package drivertest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
)

// A ScannerDevice is a simulated scanner, such as Scanner.
type ScannerDevice interface {
	Run(ctx context.Context, line io.ReadWriter) error
	Scan(code string)
	Say(p string)
}

// A ScannerSuite is what every driver of a barcode scanner must pass: each code that is scanned
// while the driver listens comes once, in order, whole and as it is.
type ScannerSuite struct {
	New    NewDriver
	On     NewDriverOn  // not nil: instead of New, on a FakePort instead of a pseudo-terminal
	Spec   drivers.Spec // Port is the suite's
	Device func(seed uint64) ScannerDevice
	// Listen gives every code that the driver hears to take, until ctx ends. It is called
	// again after each start of a driver.
	Listen func(ctx context.Context, driver drivers.Driver, take func(code string)) error
	Seed   uint64        // of faults; 0 = 1
	Wait   time.Duration // at most, for a code; 0 = 15 s
}

// ScannerConformance runs the suite: with On in virtual time, else in real time and all checks
// at once.
func ScannerConformance(t *testing.T, s ScannerSuite) { runSuite(t, s.On != nil, s.checks()) }

// scannerCodes are codes of all kinds: GTIN, one that begins with zeros, GS1 with its
// separator, a QR text.
var scannerCodes = []string{"7350053850019", "00012345678905", "01073500538500191725123110A1\x1D2100042", "https://example.com/r?a=1&b=å", "7350053850019"}

func (s ScannerSuite) checks() []check {
	var all []check
	for _, f := range []struct {
		name   string
		faults Faults
	}{
		{"clean line", Faults{}},
		{"split frames", Faults{Split: true}},
		{"slow bytes", Faults{Slow: 2 * time.Millisecond}},
		{"joined frames", Faults{Join: 50 * time.Millisecond}},
		{"echo", Faults{Echo: true}},
	} {
		all = append(all, check{f.name, func(t testing.TB) {
			r := s.begin(t)
			r.rig.line.Set(f.faults)
			for _, code := range scannerCodes {
				r.scan(code)
			}
			r.expect()
			r.rig.line.Set(Faults{})
			r.scan("7350053850019")
			r.expect()
		}})
	}
	return append(all,
		check{"silence", func(t testing.TB) {
			r := s.begin(t)
			r.rig.line.Set(Faults{Silent: true})
			r.device.Scan("4006381333931") // lost
			r.rig.host.Until(200*time.Millisecond, func() bool { return false })
			r.rig.line.Set(Faults{})
			r.scan("7350053850019")
			r.expect()
		}},
		check{"hang-up", func(t testing.TB) {
			r := s.begin(t)
			for range 2 {
				r.device.Say("40063")
				r.rig.host.Until(100*time.Millisecond, func() bool { return false })
				r.rig.hangUp()
				r.rig.plugIn()
				r.wake()
				r.scan("7350053850019")
				r.expect()
			}
		}},
		check{"endless line", func(t testing.TB) {
			r := s.begin(t)
			for range 16 {
				r.device.Say(strings.Repeat("0123456789ABCDEF", 64))
			}
			r.device.Say("\r\n")
			r.scan("7350053850019")
			r.expect()
		}},
		check{"restart", func(t testing.TB) {
			r := s.begin(t)
			r.stop()
			r.start()
			r.wake()
			r.scan("7350053850019")
			r.expect()
		}},
		check{"cancel", func(t testing.TB) {
			r := s.begin(t)
			r.stop() // reports a Run that does not return
			r.rig.hangUp()
			r.start()
			r.stop()
		}},
	)
}

// A scannerRun is one check under way.
type scannerRun struct {
	t      testing.TB
	suite  ScannerSuite
	rig    *rig
	device ScannerDevice
	seed   uint64
	waked  int
	end    func() // of Listen; nil when no driver runs
	want   []string

	mu  sync.Mutex // guards got
	got []string
}

func (s ScannerSuite) begin(t testing.TB) *scannerRun {
	t.Helper()
	seed, wait := max(s.Seed, 1), s.Wait
	if wait == 0 {
		wait = 15 * time.Second
	}
	device := s.Device(seed)
	r := &scannerRun{t: t, suite: s, device: device, seed: seed, rig: newRig(t, s.New, s.On, s.Spec, device.Run, seed, wait)}
	t.Cleanup(func() { r.stop() })
	r.start()
	r.wake()
	return r
}

// start runs a driver and listens to it.
func (r *scannerRun) start() {
	r.t.Helper()
	r.rig.start()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	driver := r.rig.driver
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := r.suite.Listen(ctx, driver, r.take); err != nil && ctx.Err() == nil {
				r.rig.host.Note("Listen: " + err.Error())
				pause(ctx, 20*time.Millisecond)
			}
		}
	}()
	r.end = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(r.rig.wait):
			r.t.Errorf("Listen has not returned %s after its ctx was done (seed %d)", r.rig.wait, r.seed)
		}
	}
}

func (r *scannerRun) stop() {
	if r.end != nil {
		r.end()
		r.end = nil
	}
	r.rig.kill()
}

func (r *scannerRun) take(code string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !strings.HasPrefix(code, "wake ") {
		r.got = append(r.got, code)
		return
	}
	var n int
	if _, err := fmt.Sscanf(code, "wake %d!", &n); err == nil {
		r.waked = max(r.waked, n)
	}
}

// wake scans until the driver hears it: from then on every code counts.
func (r *scannerRun) wake() {
	r.t.Helper()
	r.mu.Lock()
	from := r.waked
	r.mu.Unlock()
	heard := func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.waked > from
	}
	n := from
	for end := time.Now().Add(r.rig.wait); time.Now().Before(end); {
		n++
		r.device.Scan(fmt.Sprintf("wake %d!", n))
		if r.rig.host.Until(200*time.Millisecond, heard) {
			return
		}
	}
	r.t.Fatalf("codes are scanned and none is heard; notes %v (seed %d)", r.rig.host.Notes(), r.seed)
}

func (r *scannerRun) scan(code string) {
	r.want = append(r.want, code)
	r.device.Scan(code)
}

// expect waits until all codes have come, and for more than that a little longer.
func (r *scannerRun) expect() {
	r.t.Helper()
	count := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.got)
	}
	r.rig.host.Until(r.rig.wait, func() bool { return count() >= len(r.want) })
	r.rig.host.Until(quiet/2, func() bool { return count() > len(r.want) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.got, r.want) {
		r.t.Fatalf("heard %s, want %s; notes %v (seed %d)", brief(r.got), brief(r.want), r.rig.host.Notes(), r.seed)
	}
}

// brief writes codes, the long ones in part.
func brief(codes []string) string {
	short := slices.Clone(codes)
	for i, c := range short {
		if len(c) > 60 {
			short[i] = fmt.Sprintf("%s... of %d bytes", c[:60], len(c))
		}
	}
	return fmt.Sprintf("%q", short)
}
