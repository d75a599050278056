package core

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/drivers/serialport"
)

// A sheet is what a recording is written on; it may be full.
type sheet struct {
	mu   sync.Mutex // guards the fields below
	text strings.Builder
	full bool
}

func (s *sheet) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return 0, errors.New("no space left on device")
	}
	return s.text.Write(p)
}

func (s *sheet) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.text.String() }

// plugged runs a simulator on a port in memory until the test ends.
func plugged(t *testing.T, run func(context.Context, io.ReadWriter) error) *drivertest.FakePort {
	t.Helper()
	port := drivertest.NewFakePort("memory")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		port.Serve(ctx, func() error { return run(ctx, port) })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return port
}

// recorded runs Record while do runs, and returns the recording.
func recorded(t *testing.T, o RecordOptions, do func()) string {
	t.Helper()
	var out sheet
	o.Out = &out
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Record(ctx, o) }()
	synctest.Wait()
	do()
	synctest.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Record: %v", err)
	}
	return out.String()
}

func wants(t *testing.T, recording string, lines ...string) {
	t.Helper()
	rest := recording
	for _, line := range lines {
		_, after, ok := strings.Cut(rest, line)
		if !ok {
			t.Fatalf("want %q, in this order, in\n%s", lines, recording)
		}
		rest = after
	}
}

func TestRecordListensAndSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scale := drivertest.NewScale(drivertest.ScaleOptions{})
		scale.Place(1250)
		port := plugged(t, scale.Run)
		text := recorded(t, RecordOptions{Port: "memory", Open: port.Open, Send: "57", Every: time.Second,
			Settings: []string{"data_bits=7", "parity=even"}}, func() {
			time.Sleep(500 * time.Millisecond)
			port.SetModemLines(serialport.ModemLines{DSR: true})
			time.Sleep(time.Second)
			port.HangUp()
			time.Sleep(500 * time.Millisecond)
			port.Return()
			time.Sleep(2 * time.Second)
		})
		wants(t, text, "0.000000 ! open memory 9600 7even1", " > 57 ", "0.020000 < 02 30 31 2E 32 35 30 0D ", "|.01.250.|",
			" = DSR", "1.000000 > 57", "port is lost", "! close", "! open memory 9600 7even1", " > 57 ", " < 02 30 31 2E")
		if entries, err := serialport.ReadRecording(strings.NewReader(text)); err != nil || len(entries) < 10 {
			t.Errorf("%d entries, %v", len(entries), err)
		}
	})
}

func TestRecordLetsADriverSpeakAndPlaysBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		settings := []string{"poll=R\r\n", "poll_interval=500ms", "interval=1s"}
		counter := drivertest.NewLineCounter(drivertest.LineCounterOptions{})
		port := plugged(t, counter.Run)
		text := recorded(t, RecordOptions{Port: "memory", Open: port.Open, Driver: "line", Settings: settings}, func() {
			for range 5 {
				time.Sleep(700 * time.Millisecond)
				counter.Walk(2, 1)
			}
			time.Sleep(5 * time.Second)
		})
		wants(t, text, " > 52 0D 0A ", " < 43 2C ", "! footfallCount {", `"rawIn":10`)

		playback, err := drivertest.NewPlayback(strings.NewReader(text), drivertest.PlaybackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		again := recorded(t, RecordOptions{Port: "memory", Open: plugged(t, playback.Run).Open, Driver: "line", Settings: settings}, func() {
			time.Sleep(10 * time.Second)
		})
		wants(t, again, `"rawIn":10`)
		if err := playback.Err(); err != nil {
			t.Errorf("the same driver said something else: %v", err)
		}
	})
}

func TestRecordStandsBetweenTwoPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		printer := drivertest.NewPrinter(drivertest.PrinterOptions{})
		till := drivertest.NewTapTill(drivertest.TapTillOptions{Kick: 100, Ask: 100, Seed: 3})
		ports := map[string]*drivertest.FakePort{"printer": plugged(t, printer.Run), "till": plugged(t, till.Run)}
		text := recorded(t, RecordOptions{Port: "printer", Between: "till",
			Open: func(ctx context.Context, config serialport.Config) (serialport.Port, error) {
				return ports[config.Name].Open(ctx, config)
			}}, func() {
			time.Sleep(20 * time.Second)
			till.SetSilent(true)
			time.Sleep(5 * time.Second)
		})
		if asked, answered := till.Asked(); asked == 0 || asked != answered || printer.Printed() != till.Printing() || !printer.Opened() {
			t.Errorf("asked %d, answered %d, printed %t, opened %t", asked, answered, printer.Printed() == till.Printing(), printer.Opened())
		}
		wants(t, text, " > ", " < 16 ")
	})
}

func TestRecordSaysWhatIsWrong(t *testing.T) {
	free := func(context.Context, serialport.Config) (serialport.Port, error) { return nil, fs.ErrNotExist }
	for _, tt := range []struct {
		name string
		o    RecordOptions
		want string
	}{
		{"no port", RecordOptions{}, "file does not exist"},
		{"unknown driver", RecordOptions{Driver: "abacus"}, `unknown driver "abacus" (known: `},
		{"unknown setting", RecordOptions{Driver: "line", Settings: []string{"colour=red"}}, "settings.colour"},
		{"wrong setting", RecordOptions{Settings: []string{"baud=fast"}}, "settings.baud"},
		{"no setting", RecordOptions{Settings: []string{"baud"}}, "want name=value"},
		{"two speakers", RecordOptions{Driver: "line", Send: "57"}, "only one may speak"},
		{"not hex", RecordOptions{Send: "W"}, "write them in hex"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Port, tt.o.Open, tt.o.Out = "memory", free, io.Discard
			if err := Record(t.Context(), tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestRecordEndsWhenTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port := plugged(t, drivertest.NewTerabee(drivertest.TerabeeOptions{}).Run)
		out := &sheet{}
		done := make(chan error, 1)
		go func() {
			done <- Record(t.Context(), RecordOptions{Port: "memory", Out: out, Open: port.Open})
		}()
		time.Sleep(time.Second)
		out.mu.Lock()
		out.full = true
		out.mu.Unlock()
		time.Sleep(3 * time.Second)
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "no space left") {
				t.Errorf("Record: %v", err)
			}
		default:
			t.Error("Record goes on with a full disk")
		}
	})
}
