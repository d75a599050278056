package serialport

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// A scriptPort is a port that answers from lists.
type scriptPort struct {
	reads []string
	lines []ModemLines
	err   error // of the Read after the last
}

func (p *scriptPort) Read(_ context.Context, b []byte) (int, error) {
	if len(p.reads) == 0 {
		return 0, p.err
	}
	n := copy(b, p.reads[0])
	p.reads = p.reads[1:]
	return n, nil
}

func (p *scriptPort) Write(context.Context, []byte) error { return nil }
func (p *scriptPort) Close() error                        { return nil }

func (p *scriptPort) ModemLines() (ModemLines, error) {
	l := p.lines[0]
	p.lines = p.lines[1:]
	return l, nil
}

func TestRecordingTellsBothDirectionsLinesAndFaults(t *testing.T) {
	now := time.Date(2026, 3, 29, 0, 59, 59, 0, time.UTC)
	var text strings.Builder
	r := NewRecorder(&text, func() time.Time { now = now.Add(1500 * time.Microsecond); return now })
	inner := &scriptPort{reads: []string{"\x01\x04\x02\x00\x07", strings.Repeat("receipt ", 3)}, lines: []ModemLines{{CTS: true}, {CTS: true}, {}}, err: ErrLost}
	open := r.Open(func(_ context.Context, c Config) (Port, error) {
		if c.Name == "COM9" {
			return nil, ErrBusy
		}
		return inner, nil
	})
	if _, err := open(t.Context(), Config{Name: "COM9"}); !errors.Is(err, ErrBusy) {
		t.Errorf("open: %v, want the port's own error", err)
	}
	port, err := open(t.Context(), Config{Name: "COM3", Baud: 19200, Parity: "even", DTR: SignalOff})
	if err != nil {
		t.Fatal(err)
	}
	if err := port.Write(t.Context(), []byte{0x01, 0x04, 0x00, 0x3C}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	for range 2 {
		if _, err := port.Read(t.Context(), buf); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := port.ModemLines(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := port.Read(t.Context(), buf); !errors.Is(err, ErrLost) {
		t.Errorf("read: %v, want ErrLost", err)
	}
	if err := port.(interface{ SetRTS(bool) error }).SetRTS(true); !errors.Is(err, ErrNoLines) {
		t.Errorf("RTS of a port without outputs: %v, want ErrNoLines", err)
	}
	port.Close()
	port.Close()
	want := recordingHead + `
0.000000 ! open COM9: port is in use
0.001500 ! open COM3 19200 8even1 dtr off
0.003000 > 01 04 00 3C                                     |...<|
0.004500 < 01 04 02 00 07                                  |.....|
0.006000 < 72 65 63 65 69 70 74 20 72 65 63 65 69 70 74 20 |receipt receipt |
0.006000 < 72 65 63 65 69 70 74 20                         |receipt |
0.007500 = CTS
0.009000 =
0.010500 ! read: port is lost
0.012000 ! close
`
	if got := text.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	entries, err := ReadRecording(strings.NewReader(text.String()))
	if err != nil || len(entries) != 9 || string(entries[4].Bytes) != "receipt receipt receipt " || entries[4].At != 6*time.Millisecond {
		t.Errorf("read back: %+v, %v", entries, err)
	}
}

func TestRecordingMayBeCutAndAnnotated(t *testing.T) {
	got, err := ReadRecording(strings.NewReader("# the second poll\r\n\r\n12.5 > 0104003C\r\n  12.75   <  01 04   # not a comment"))
	if err == nil || !strings.Contains(err.Error(), "line 4") {
		t.Errorf("got %+v, %v, want a fault in line 4", got, err)
	}
	got, err = ReadRecording(strings.NewReader("# the second poll\r\n\r\n12.5 > 0104003C\r\n  12.75   <  01 04 |.. whatever\n13 ="))
	want := []Entry{
		{At: 12500 * time.Millisecond, Kind: Sent, Bytes: []byte{1, 4, 0, 0x3C}},
		{At: 12750 * time.Millisecond, Kind: Received, Bytes: []byte{1, 4}},
		{At: 13 * time.Second, Kind: Lines},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestWrongRecordingNamesItsLine(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"x > 01", `line 1: want seconds, got "x"`},
		{"-1 > 01", "want seconds"},
		{"NaN > 01", "want seconds"},
		{"1 ? 01", `want > < = or !, got "?"`},
		{"1", "want > < = or !"},
		{"1 > 0", "want bytes in hex"},
		{"1 = RTS", `got "RTS"`},
		{"2 ! a\n1 ! b", "line 2: goes back in time"},
	} {
		if _, err := ReadRecording(strings.NewReader(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

// A fullDisk takes so many writes.
type fullDisk int

func (d *fullDisk) Write(p []byte) (int, error) {
	if *d--; *d < 0 {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

func TestRecorderKeepsItsFirstError(t *testing.T) {
	disk := fullDisk(2)
	r := NewRecorder(&disk, time.Now)
	r.Note("fits")
	if err := r.Err(); err != nil {
		t.Errorf("after a good write: %v", err)
	}
	r.Note("does not")
	if err := r.Err(); err == nil {
		t.Error("a full disk is not told")
	}
}

func FuzzRecording(f *testing.F) {
	f.Add("0.000000 ! open COM3 9600 8none1\n0.5 > 01 02 |..|\n0.5 < 00\n1 = CTS DCD\n")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := ReadRecording(strings.NewReader(text))
		if err != nil {
			return
		}
		var b strings.Builder
		for _, e := range entries {
			b.WriteString(e.String() + "\n")
		}
		again, err := ReadRecording(strings.NewReader(b.String()))
		if err != nil {
			t.Fatalf("what was read is written as %q, which is wrong: %v", b.String(), err)
		}
		for i := range again {
			again[i].At = entries[i].At // a float may round
			if len(again[i].Bytes) == 0 && len(entries[i].Bytes) == 0 {
				again[i].Bytes = entries[i].Bytes
			}
		}
		if !reflect.DeepEqual(again, entries) {
			t.Errorf("got %+v, want %+v", again, entries)
		}
	})
}
