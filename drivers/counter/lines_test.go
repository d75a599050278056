package counter

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

const ms = time.Millisecond

// A beamStep is the levels of two beams from a moment on.
type beamStep struct {
	at      time.Duration
	in, out bool
}

// walkThrough samples the steps every 5 ms until 3 s after the last.
func walkThrough(c *LinesCodec, steps []beamStep) (in, out int) {
	began := time.Unix(1000, 0)
	var now beamStep
	for at := time.Duration(0); at < steps[len(steps)-1].at+3*time.Second; at += 5 * ms {
		for len(steps) > 1 && steps[0].at <= at {
			now, steps = steps[0], steps[1:]
		}
		if steps[0].at <= at {
			now = steps[0]
		}
		i, o := c.Sample(now.in, now.out, began.Add(at))
		in, out = in+i, out+o
	}
	return in, out
}

func TestLines(t *testing.T) {
	for _, tt := range []struct {
		name      string
		window    time.Duration
		steps     []beamStep
		in, out   int
		undecided int
	}{
		{"a pulse of 50 ms", 0, []beamStep{{100 * ms, true, false}, {150 * ms, false, false}}, 1, 0, 0},
		{"bouncing", 0, []beamStep{{100 * ms, true, false}, {110 * ms, false, false}, {115 * ms, true, false}, {140 * ms, false, false}}, 0, 0, 0},
		{"bouncing, then a person", 0, []beamStep{{100 * ms, true, false}, {110 * ms, false, false}, {115 * ms, true, false}, {300 * ms, false, false}, {310 * ms, true, false}, {320 * ms, false, false}}, 1, 0, 0},
		{"each contact for itself", 0, []beamStep{{100 * ms, true, true}, {200 * ms, false, false}, {300 * ms, false, true}, {400 * ms, false, false}}, 1, 2, 0},
		{"active when it begins", 0, []beamStep{{0, true, false}, {500 * ms, false, false}}, 0, 0, 0},
		{"in", time.Second, []beamStep{{100 * ms, true, false}, {160 * ms, true, true}, {300 * ms, false, true}, {360 * ms, false, false}}, 1, 0, 0},
		{"out", time.Second, []beamStep{{100 * ms, false, true}, {160 * ms, true, true}, {300 * ms, true, false}, {360 * ms, false, false}}, 0, 1, 0},
		{"apart: in", time.Second, []beamStep{{100 * ms, true, false}, {200 * ms, false, false}, {400 * ms, false, true}, {500 * ms, false, false}}, 1, 0, 0},
		{"apart: one in, one out", time.Second, []beamStep{{100 * ms, true, false}, {200 * ms, false, false}, {300 * ms, false, true}, {400 * ms, false, false},
			{600 * ms, false, true}, {700 * ms, false, false}, {800 * ms, true, false}, {900 * ms, false, false}}, 1, 1, 0},
		{"turned round", time.Second, []beamStep{{100 * ms, true, false}, {300 * ms, false, false}}, 0, 0, 0},
		{"turned round, and somebody comes out later", time.Second, []beamStep{{100 * ms, true, false}, {300 * ms, false, false}, {2000 * ms, false, true}, {2100 * ms, true, true}, {2200 * ms, false, false}}, 0, 1, 0},
		{"turned round, and somebody comes out at once", time.Second, []beamStep{{100 * ms, true, false}, {200 * ms, false, false}, {300 * ms, false, true}, {360 * ms, true, true}, {420 * ms, true, false}, {480 * ms, false, false}}, 0, 1, 0},
		{"two who turn round", time.Second, []beamStep{{100 * ms, true, false}, {200 * ms, false, false}, {300 * ms, false, true}, {400 * ms, false, false}}, 0, 0, 0},
		{"both at once", time.Second, []beamStep{{100 * ms, true, true}, {300 * ms, false, false}}, 0, 0, 1},
		{"both at once, leaves as one who comes in", time.Second, []beamStep{{100 * ms, true, true}, {300 * ms, false, true}, {360 * ms, false, false}}, 1, 0, 0},
		{"both at once, leaves as one who goes out", time.Second, []beamStep{{100 * ms, true, true}, {300 * ms, true, false}, {360 * ms, false, false}}, 0, 1, 0},
		{"apart: one behind the other", time.Second, []beamStep{{100 * ms, true, false}, {200 * ms, false, false}, {300 * ms, true, true}, {400 * ms, false, false}, {500 * ms, false, true}, {600 * ms, false, false}}, 2, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &LinesCodec{Debounce: 30 * ms, Window: tt.window, Apart: strings.HasPrefix(tt.name, "apart")}
			if in, out := walkThrough(c, tt.steps); in != tt.in || out != tt.out || c.Undecided != tt.undecided {
				t.Errorf("%d in, %d out, %d undecided; want %d, %d, %d", in, out, c.Undecided, tt.in, tt.out, tt.undecided)
			}
		})
	}
}

// A PC that is busy for 80 ms sees the end of a pulse alone.
func TestLinesCountAPulseThatIsSeenLate(t *testing.T) {
	c := &LinesCodec{Debounce: 30 * ms}
	at := time.Unix(1000, 0)
	people := 0
	for _, look := range []struct {
		after  time.Duration
		active bool
	}{{0, false}, {5 * ms, false}, {80 * ms, true}, {5 * ms, false}, {5 * ms, false}, {40 * ms, false}} {
		at = at.Add(look.after)
		in, _ := c.Sample(look.active, false, at)
		people += in
	}
	if people != 1 {
		t.Errorf("%d people, want 1", people)
	}
}

// Each byte is a sample: two levels and the milliseconds since the sample before.
func FuzzLines(f *testing.F) {
	f.Add([]byte{0, 0x15, 0x15, 0x7D, 0x7C, 0x7E, 0x7C}, false, false)
	f.Add([]byte{0, 0x7D, 0x7D, 0x7C, 0x7E, 0x7E, 0x7C}, true, true)
	f.Fuzz(func(t *testing.T, samples []byte, byOrder, apart bool) {
		c := &LinesCodec{Debounce: 30 * ms, Apart: apart}
		if byOrder {
			c.Window = time.Second
		}
		var in, out int
		at := time.Unix(1000, 0)
		var times []time.Time
		var a, b []bool
		for _, s := range samples {
			at = at.Add(time.Duration(s>>2) * ms)
			times, a, b = append(times, at), append(a, s&1 != 0), append(b, s&2 != 0)
			i, o := c.Sample(s&1 != 0, s&2 != 0, at)
			in, out = in+i, out+o
		}
		first, second := persons(times, a), persons(times, b)
		if !byOrder && (in != first || out != second) {
			t.Errorf("%d and %d counted, want %d and %d", in, out, first, second)
		}
		if byOrder && in+out > max(first, second) {
			t.Errorf("%d in and %d out of %d and %d broken beams", in, out, first, second)
		}
	})
}

// persons counts, run by run of one level, those that last 30 ms after a lasting run of the
// other level.
func persons(times []time.Time, levels []bool) (n int) {
	if len(levels) == 0 {
		return 0
	}
	lasting := levels[0]
	for i := 0; i < len(levels); {
		end := i
		for end+1 < len(levels) && levels[end+1] == levels[i] {
			end++
		}
		if levels[i] != lasting && times[end].Sub(times[max(i-1, 0)]) >= 30*ms {
			lasting = levels[i]
			if lasting {
				n++
			}
		}
		i = end + 1
	}
	return n
}

// A contactPort is a port whose lines the test moves.
type contactPort struct {
	serialport.Port
	mu    sync.Mutex // guards what follows
	lines serialport.ModemLines
	err   error
}

func (p *contactPort) ModemLines() (serialport.ModemLines, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines, p.err
}

func (p *contactPort) Close() error { return nil }

func (p *contactPort) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// person breaks the beam on a line for 100 ms.
func (p *contactPort) person(line *bool) {
	p.set(func() { *line = !*line })
	time.Sleep(100 * ms) // virtual
	p.set(func() { *line = !*line })
	time.Sleep(100 * ms) // virtual
}

func startLines(t *testing.T, port *contactPort, host *memoryHost, settings map[string]any) *rig {
	t.Helper()
	d, err := NewLines(drivers.Spec{ID: "door", Driver: "lines", Port: "COM3", Settings: settings},
		func(context.Context, serialport.Config) (serialport.Port, error) { return port, nil })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &rig{t: t, host: host, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- d.Run(ctx, host) }()
	return r
}

func TestLinesCountPeopleAndQuietIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, port := &memoryHost{}, &contactPort{}
		port.lines.DSR = true // normally closed
		r := startLines(t, port, host, map[string]any{"in_line": "DSR", "active": "off", "interval": "10s"})
		pass(time.Second)
		for range 3 {
			port.person(&port.lines.DSR)
		}
		pass(25 * time.Second)
		r.stop()
		counts := host.taken()
		if len(counts) != 2 || counts[0].In != 3 || counts[1].In != 0 || !counts[0].Undirect || counts[0].RawIn != 3 || counts[0].Quality != protocol.QualityOK {
			t.Errorf("counts = %+v, want 3 passages and then none", counts)
		}
	})
}

// Nothing is counted while the agent is away, and the next count says so.
func TestLinesAreBlindWhileTheAgentIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, port := &memoryHost{}, &contactPort{}
		for _, want := range []protocol.Quality{protocol.QualityOK, protocol.QualityGap} {
			r := startLines(t, port, host, map[string]any{"out_line": "RI", "interval": "10s"})
			pass(ms)
			port.person(&port.lines.RI)
			pass(12 * time.Second)
			r.stop()
			counts := host.taken()
			if last := counts[len(counts)-1]; last.Out != 1 || last.Quality != want {
				t.Errorf("last count = %+v, want one out, %s", last, want)
			}
		}
		counts := host.taken()
		if last := counts[len(counts)-1]; last.RawOut != 2 {
			t.Errorf("our own total = %d after two people", last.RawOut)
		}
	})
}

func TestLinesReportABlockedBeamOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, port := &memoryHost{}, &contactPort{}
		r := startLines(t, port, host, map[string]any{"blocked": "1m"})
		pass(time.Second)
		port.set(func() { port.lines.CTS = true })
		pass(5 * time.Minute)
		online := host.online
		pass(time.Second)
		if len(host.states) != 1 || host.states[0].State != protocol.DeviceFault || host.online != online {
			t.Errorf("states = %+v, want one fault and no sign of life after it", host.states)
		}
		port.set(func() { port.lines.CTS = false })
		pass(time.Second)
		if host.online == online {
			t.Error("not online again after the beam was free")
		}
		r.stop()
	})
}

func TestLinesNeedAPortWithLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, port := &memoryHost{}, &contactPort{err: serialport.ErrNoLines}
		r := startLines(t, port, host, nil)
		var fault *drivers.Fault
		if err := <-r.done; !errors.As(err, &fault) || fault.Hint == "" {
			t.Errorf("err = %v, want a hint", err)
		}
	})
}

func TestLinesSettingsThatCannotBe(t *testing.T) {
	for field, settings := range map[string]map[string]any{
		"settings.out_line": {"direction": "order"},
		"settings.window":   {"direction": "order", "out_line": "RI", "window": "50ms", "debounce": "60ms"},
		"settings.in_line":  {"in_line": "DTR"},
	} {
		_, err := NewLines(drivers.Spec{ID: "door", Driver: "lines", Port: "COM3", Settings: settings}, nil)
		var faults protocol.Faults
		if !errors.As(err, &faults) || faults[0].Field != field {
			t.Errorf("%v: %v, want a fault of %s", settings, err, field)
		}
	}
	if _, err := NewLines(drivers.Spec{ID: "door", Driver: "lines", Port: "COM3", Settings: map[string]any{"out_line": "CTS"}}, nil); err == nil {
		t.Error("one line for both contacts is accepted")
	}
}
