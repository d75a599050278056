package counter

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

func codec(t testing.TB) LineCodec {
	t.Helper()
	re, _, _, err := compile(DefaultPattern)
	if err != nil {
		t.Fatal(err)
	}
	return LineCodec{Pattern: re, Checksum: checkXOR, Mark: "*", Ends: "\r\n", Max: 256}
}

// seal ends a text with a correct checksum.
func seal(kind, text string) string {
	if kind == checkNone {
		return text
	}
	return text + "*" + checksum(kind, text)
}

func TestLineParsesOurOwnDialect(t *testing.T) {
	c := codec(t)
	for _, tt := range []struct {
		name, line string
		want       LineFrame
		err        error
	}{
		{"quiet", "C,1,0,0,60*74", LineFrame{Counts: true, Seq: "1"}, nil},
		{"busy", "C,17,120,118,3600*4B", LineFrame{Counts: true, In: 120, Out: 118, Seq: "17"}, nil},
		{"bad checksum", "C,17,121,118,3600*74", LineFrame{}, errBadCheck},
		{"no checksum", "C,17,120,118,3600", LineFrame{}, errNoCheck},
		{"something else", seal(checkXOR, "Z,1"), LineFrame{}, errNoMatch},
		{"a number that cannot be", seal(checkXOR, "C,1,99999999999999999999,0,1"), LineFrame{}, errNoNumber},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.parse(tt.line)
			got.Uptime = nil
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("parse(%q) = %+v, %v, want %+v, %v", tt.line, got, err, tt.want, tt.err)
			}
		})
	}
	if f, err := c.parse(seal(checkXOR, "C,17,120,118,3600")); err != nil || f.Uptime == nil || *f.Uptime != 3600 {
		t.Errorf("uptime = %v, %v, want 3600", f.Uptime, err)
	}
}

// The published check values of "123456789", and an NMEA sentence without its $.
func TestChecksums(t *testing.T) {
	for _, tt := range []struct{ kind, text, want string }{
		{checkCRC16, "123456789", "4B37"}, {checkSum8, "123456789", "DD"}, {checkXOR, "123456789", "31"},
		{checkXOR, "GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,", "47"},
	} {
		if got := checksum(tt.kind, tt.text); got != tt.want {
			t.Errorf("checksum(%s, %q) = %s, want %s", tt.kind, tt.text, got, tt.want)
		}
		for _, mark := range []string{"*", ""} {
			if got, err := unseal(tt.kind, mark, tt.text+mark+strings.ToLower(tt.want)); got != tt.text || err != nil {
				t.Errorf("unseal(%s, mark %q) = %q, %v", tt.kind, mark, got, err)
			}
		}
	}
}

func TestLinesSurviveSplittingAndNoise(t *testing.T) {
	good := seal(checkXOR, "C,1,5,4,10")
	stream := []byte("\xff\x00noise\r\n" + good + "\r\n\r\n" + strings.Repeat("x", 300) + good + "\r\n" + good + "\n")
	for _, size := range []int{1, 2, 7, 100, len(stream)} {
		c := codec(t)
		var got []string
		for part := range slices.Chunk(stream, size) {
			c.Push(part, func(f LineFrame, err error) { got = append(got, fmt.Sprint(f.In, f.Out, err)) })
		}
		want := []string{"0 0 no checksum", "5 4 <nil>", "0 0 line is too long", "5 4 <nil>"}
		if !slices.Equal(got, want) {
			t.Errorf("in pieces of %d: %q, want %q", size, got, want)
		}
	}
}

func TestCRLFKeepsALoneCR(t *testing.T) {
	c := LineCodec{Pattern: regexp.MustCompile(`^(?P<in>\d+)\r(?P<out>\d+)$`), Checksum: checkNone, Ends: "\n", TrimCR: true, Max: 64}
	var got LineFrame
	c.Push([]byte("5\r4\r\n"), func(f LineFrame, err error) { got = f })
	if got.In != 5 || got.Out != 4 {
		t.Errorf("frame = %+v, want 5 in, 4 out", got)
	}
}

func TestHalfACountIsNone(t *testing.T) {
	re, _, _, err := compile(`^(I(?P<in>\d+))?(O(?P<out>\d+))?(F(?P<fault>.+))?$`)
	if err != nil {
		t.Fatal(err)
	}
	c := LineCodec{Pattern: re, Checksum: checkNone, Ends: "\n", Max: 64}
	if f, err := c.parse("I5"); err == nil {
		t.Errorf("in alone = %+v, want an error", f)
	}
	if f, err := c.parse("Fblocked"); err != nil || f.Counts || f.Fault != "blocked" {
		t.Errorf("fault alone = %+v, %v, want a fault without counts", f, err)
	}
}

func TestPatternsThatCannotCountAreRefused(t *testing.T) {
	for _, pattern := range []string{`(`, `^\d+$`, `(?P<inn>\d+)`, `(?P<in>\d)(?P<delta_out>\d)`, `(?P<in>\d)(?P<total>\d)`, `(?P<in>\d)|(?P<in>\d\d)`} {
		if _, _, _, err := compile(pattern); err == nil {
			t.Errorf("compile(%q) is accepted", pattern)
		}
	}
}

func TestNewLineNamesAllFaultsAtOnce(t *testing.T) {
	_, err := NewLine(drivers.Spec{Driver: "line", Settings: map[string]any{
		"pattern": "(", "poll": `\q`, "baud": "fast", "interval": "1ms", "checksum": "md5", "colour": "red"}}, nil)
	var faults protocol.Faults
	if !errors.As(err, &faults) {
		t.Fatalf("err = %v, want Faults", err)
	}
	var fields []string
	for _, f := range faults {
		fields = append(fields, f.Field)
	}
	slices.Sort(fields)
	want := []string{"id", "port", "settings.baud", "settings.checksum", "settings.colour", "settings.interval", "settings.pattern", "settings.poll"}
	if !slices.Equal(fields, want) {
		t.Errorf("fields = %q, want %q", fields, want)
	}
}

func FuzzLine(f *testing.F) {
	for _, body := range []string{"C,1,5,4,10", "C,1,,4,10", "C,9,18446744073709551615,0,0", "", "C,1,5,4,99999999999999999999"} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, kind := range []string{checkNone, checkXOR, checkSum8, checkCRC16} {
			c := codec(t)
			c.Checksum = kind
			got, err := c.parse(seal(kind, body))
			if errors.Is(err, errBadCheck) || errors.Is(err, errNoCheck) {
				t.Errorf("seal(%s, %q) is not a seal: %v", kind, body, err)
			}
			if err == nil && (!got.Counts || got.In > math.MaxInt64/2 || got.Out > math.MaxInt64/2 || !strings.HasPrefix(body, "C,")) {
				t.Errorf("parse(%q) = %+v, want an error", body, got)
			}
		}
	})
}

func line(t testing.TB, settings map[string]any) func(serialport.OpenFunc) drivers.Driver {
	return func(open serialport.OpenFunc) drivers.Driver {
		d, err := NewLine(drivers.Spec{ID: "door", Driver: "line", Port: "COM3", Settings: settings}, open)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func (r *rig) say(seq, in, out, uptime int) {
	r.t.Helper()
	r.send([]byte(seal(checkXOR, fmt.Sprintf("C,%d,%d,%d,%d", seq, in, out, uptime)) + "\r\n"))
}

func TestLinePollsAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, line(t, map[string]any{"poll": `R\r\n`, "poll_interval": "20s"}))
		total := 0
		for i := range 6 { // answers at 0, 20, 40, 60, 80 and 100 s
			ask := make([]byte, 16)
			n, err := r.device.Read(ask)
			if err != nil || string(ask[:n]) != "R\r\n" {
				t.Fatalf("poll = %q, %v", ask[:n], err)
			}
			total += 2
			r.say(i, total, 1, 1000+20*i)
		}
		synctest.Wait()
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 10 || out != 0 {
			t.Errorf("%d in and %d out, want 10 and 0: %+v", in, out, counts)
		}
		if len(counts) != 2 || counts[0].RawIn < 6 {
			t.Errorf("counts = %+v, want one for the minute and one at the end", counts)
		}
	})
}

func TestLineWithoutAnswersIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, line(t, map[string]any{"poll": "R", "poll_interval": "2s"}))
		began := time.Now()
		go func() {
			for b := make([]byte, 8); ; {
				if _, err := r.device.Read(b); err != nil {
					return
				}
			}
		}()
		if err := <-r.done; !errors.Is(err, ErrSilent) {
			t.Errorf("err = %v, want ErrSilent", err)
		}
		if took := time.Since(began); took != unansweredPolls*2*time.Second {
			t.Errorf("silent after %s, want %s", took, unansweredPolls*2*time.Second)
		}
		r.device.Close()
	})
}

// A counter that began again and has passed its old total already is seen by its uptime.
func TestLineSeesARestartByTheUptime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, line(t, nil))
		r.say(1, 10, 10, 5000)
		r.say(2, 12, 10, 5010)
		r.say(1, 15, 3, 30) // 15 > 12, yet it began again
		synctest.Wait()
		r.stop()
		if in, out := sum(host.taken()); in != 2+15 || out != 3 {
			t.Errorf("%d in and %d out, want 17 and 3", in, out)
		}
	})
}

func TestLineDeltasCountRepeatedLinesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, line(t, map[string]any{"checksum": "none", "interval": "1s",
			"pattern": `^(?P<seq>\d+) (?P<delta_in>\d+) (?P<delta_out>\d+)$`}))
		r.send([]byte("1 2 0\n1 2 0\n2 2 1\n"))
		synctest.Wait()
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 4 || out != 1 {
			t.Errorf("%d in and %d out, want 4 and 1", in, out)
		}
		r = start(t, host, line(t, map[string]any{"checksum": "none", "pattern": `^(?P<delta_in>\d+)$`}))
		r.send([]byte("3\n"))
		synctest.Wait()
		r.stop()
		counts = host.taken()
		if last := counts[len(counts)-1]; last.In != 3 || last.RawIn != 7 {
			t.Errorf("count after a restart = %+v, want 3 in of 7 in all", last)
		}
	})
}

func TestLineOfOneBeamIsUndirected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, line(t, map[string]any{"checksum": "none", "pattern": `^(?P<total>\d+)$`}))
		r.send([]byte("100\n108\n"))
		synctest.Wait()
		r.stop()
		if c := host.taken(); len(c) != 1 || c[0].In != 8 || !c[0].Undirect {
			t.Errorf("counts = %+v, want 8 undirected", c)
		}
	})
}

func TestLineReportsTheCountersFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, line(t, map[string]any{"checksum": "none", "pattern": `^(?P<in>\d+) (?P<out>\d+) ?(?P<fault>.*)$`}))
		r.send([]byte("1 1 blocked\n"))
		synctest.Wait()
		r.stop()
		if len(host.states) != 1 || host.states[0].State != protocol.DeviceFault || !strings.Contains(host.states[0].Reason, "blocked") {
			t.Errorf("states = %+v, want a fault that says blocked", host.states)
		}
		if err := host.states[0].Validate(); err != nil {
			t.Error(err)
		}
		if host.online != 0 {
			t.Error("online while the counter reports a fault")
		}
	})
}

func TestUnreadableStateIsANewBaseline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{state: []byte("{broken")}
		r := start(t, host, line(t, nil))
		r.say(1, 10, 10, 5000)
		r.say(2, 11, 10, 5000)
		synctest.Wait()
		r.stop()
		if in, _ := sum(host.taken()); in != 1 || len(host.notes) != 1 {
			t.Errorf("%d in with notes %v, want 1 and a note", in, host.notes)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	chunk := bytes.Repeat([]byte(seal(checkXOR, "C,17,120,118,3600")+"\r\n"), 200)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	c, lines := codec(b), 0
	for b.Loop() {
		c.Push(chunk, func(_ LineFrame, err error) {
			if err != nil {
				b.Fatal(err)
			}
			lines++
		})
	}
	b.ReportMetric(float64(lines)/b.Elapsed().Seconds(), "lines/s")
}
