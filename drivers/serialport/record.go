package serialport

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A recording is text, one entry a line, which people can read, cut and annotate:
//
//	# storelay recording 1: seconds, then > to the device, < from it, = lines that are high, ! note
//	0.000000 ! open COM3 9600 8none1
//	0.000312 > 01 04 00 3C 00 04 31 C5                              |...<..1.|
//	0.021877 < 01 04 08 00 01 11 70 00 01 11 3E AA 07               |.....
//	1.500000 = CTS DSR
//
// Time counts from the first entry. What follows | is for people; lines that begin with # and
// empty lines are comments.
const recordingHead = "# storelay recording 1: seconds, then > to the device, < from it, = lines that are high, ! note"

// The kinds of an Entry.
const (
	Sent     = '>' // to the device
	Received = '<' // from the device
	Lines    = '=' // the input lines have changed
	Note     = '!'
)

// An Entry is one line of a recording.
type Entry struct {
	At    time.Duration // since the first entry, in microseconds
	Kind  byte          // Sent, Received, Lines or Note
	Bytes []byte        // Sent and Received
	Lines ModemLines    // Lines
	Text  string        // Note: one line
}

// recordedLine is how many bytes stand in one line of a recording.
const recordedLine = 16

// String is the entry as it stands in a recording: one line, or several when it has more than
// 16 bytes.
func (e Entry) String() string {
	var b strings.Builder
	stamp := fmt.Sprintf("%.6f %c ", e.At.Seconds(), e.Kind)
	switch e.Kind {
	case Sent, Received:
		for first := 0; first == 0 || first < len(e.Bytes); first += recordedLine {
			part := e.Bytes[first:min(first+recordedLine, len(e.Bytes))]
			text := make([]byte, len(part))
			for i, c := range part {
				if text[i] = c; c < ' ' || c > '~' {
					text[i] = '.'
				}
			}
			fmt.Fprintf(&b, "%s%-*s |%s|\n", stamp, 3*recordedLine-1, fmt.Sprintf("% X", part), text)
		}
		return strings.TrimSuffix(b.String(), "\n")
	case Lines:
		return strings.TrimSpace(stamp + e.Lines.String())
	}
	return strings.TrimSpace(stamp + oneLine(e.Text))
}

// oneLine is text that stands in one line of UTF-8.
func oneLine(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text))
}

var lineNames = []struct {
	name  string
	level func(*ModemLines) *bool
}{
	{"CTS", func(l *ModemLines) *bool { return &l.CTS }},
	{"DSR", func(l *ModemLines) *bool { return &l.DSR }},
	{"RI", func(l *ModemLines) *bool { return &l.RI }},
	{"DCD", func(l *ModemLines) *bool { return &l.DCD }},
}

// String names the lines that are high.
func (l ModemLines) String() string {
	var high []string
	for _, n := range lineNames {
		if *n.level(&l) {
			high = append(high, n.name)
		}
	}
	return strings.Join(high, " ")
}

// ReadRecording reads a recording, or a part that was cut out of one. Entries must not go back
// in time. Errors name the line.
func ReadRecording(r io.Reader) ([]Entry, error) {
	var all []Entry
	scanner := bufio.NewScanner(r)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		entry, err := readEntry(line)
		if err == nil && len(all) > 0 && entry.At < all[len(all)-1].At {
			err = errors.New("goes back in time")
		}
		if err != nil {
			return nil, fmt.Errorf("read recording: line %d: %w", n, err)
		}
		if n := len(all); n > 0 && continues(all[n-1], entry) {
			all[n-1].Bytes = append(all[n-1].Bytes, entry.Bytes...)
			continue
		}
		all = append(all, entry)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("read recording: %w", err)
	}
	return all, nil
}

// continues says whether an entry is the next line of the one before it.
func continues(before, e Entry) bool {
	return e.Kind == before.Kind && e.At == before.At && len(before.Bytes) > 0 && len(before.Bytes)%recordedLine == 0
}

func readEntry(line string) (e Entry, err error) {
	stamp, rest, _ := strings.Cut(line, " ")
	seconds, err := strconv.ParseFloat(stamp, 64)
	if err != nil || !(seconds >= 0 && seconds < 1e9) {
		return e, fmt.Errorf("want seconds, got %q", stamp)
	}
	e.At = time.Duration(seconds*1e6+0.5) * time.Microsecond
	kind, body, _ := strings.Cut(strings.TrimSpace(rest), " ")
	if len(kind) != 1 {
		return e, fmt.Errorf("want > < = or !, got %q", kind)
	}
	body = strings.TrimSpace(body)
	switch e.Kind = kind[0]; e.Kind {
	case Sent, Received:
		digits, _, _ := strings.Cut(body, "|")
		if e.Bytes, err = hex.DecodeString(strings.Join(strings.Fields(digits), "")); err != nil {
			return e, fmt.Errorf("want bytes in hex: %w", err)
		}
	case Lines:
		for name := range strings.FieldsSeq(body) {
			known := false
			for _, n := range lineNames {
				if known = n.name == name; known {
					*n.level(&e.Lines) = true
					break
				}
			}
			if !known {
				return e, fmt.Errorf("want CTS, DSR, RI or DCD, got %q", name)
			}
		}
	case Note:
		e.Text = oneLine(body)
	default:
		return e, fmt.Errorf("want > < = or !, got %q", kind)
	}
	return e, nil
}

// A Recorder writes what passes through ports as a recording. It is safe for concurrent use.
type Recorder struct {
	now func() time.Time

	mu    sync.Mutex // guards the fields below
	w     io.Writer
	start time.Time // of the first entry
	err   error     // the first of w; nothing is written after it
}

// NewRecorder begins a recording.
func NewRecorder(w io.Writer, now func() time.Time) *Recorder {
	r := &Recorder{now: now, w: w}
	_, r.err = io.WriteString(w, recordingHead+"\n")
	return r
}

// Err is the first error of a write.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Note writes a line of text.
func (r *Recorder) Note(text string) { r.add(Entry{Kind: Note, Text: text}) }

func (r *Recorder) add(e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if r.start.IsZero() {
		r.start = now
	}
	e.At = max(0, now.Sub(r.start))
	if r.err == nil {
		_, r.err = io.WriteString(r.w, e.String()+"\n")
	}
}

// Open gives an OpenFunc whose ports are recorded: bytes at the moment when they were read, or
// before they are written, changes of the input lines when they are looked at, and what the
// port is opened with, its faults and its end as notes.
func (r *Recorder) Open(open OpenFunc) OpenFunc {
	return func(ctx context.Context, config Config) (Port, error) {
		port, err := open(ctx, config)
		if err != nil {
			r.Note("open " + config.Name + ": " + err.Error())
			return nil, err
		}
		r.Note("open " + config.String())
		return &recordedPort{Port: port, recorder: r}, nil
	}
}

// String is the port and its settings, such as COM3 9600 8none1.
func (c Config) String() string {
	orElse := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	baud, bits := c.Baud, c.DataBits
	if baud == 0 {
		baud = 9600
	}
	if bits == 0 {
		bits = 8
	}
	s := fmt.Sprintf("%s %d %d%s%s", c.Name, baud, bits, orElse(c.Parity, "none"), orElse(c.StopBits, "1"))
	if c.DTR != "" {
		s += " dtr " + string(c.DTR)
	}
	if c.RTS != "" {
		s += " rts " + string(c.RTS)
	}
	return s
}

// A recordedPort records one port.
type recordedPort struct {
	Port
	recorder *Recorder

	mu     sync.Mutex // guards the fields below
	looked bool
	lines  ModemLines
	closed bool
}

// Read implements Port.
func (p *recordedPort) Read(ctx context.Context, b []byte) (int, error) {
	n, err := p.Port.Read(ctx, b)
	if n > 0 {
		p.recorder.add(Entry{Kind: Received, Bytes: b[:n]})
	}
	p.fault("read", err)
	return n, err
}

// Write implements Port.
func (p *recordedPort) Write(ctx context.Context, b []byte) error {
	p.recorder.add(Entry{Kind: Sent, Bytes: b})
	err := p.Port.Write(ctx, b)
	p.fault("write", err)
	return err
}

// fault notes an error, unless it is that of a ctx.
func (p *recordedPort) fault(op string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		p.recorder.Note(op + ": " + err.Error())
	}
}

// ModemLines implements Port.
func (p *recordedPort) ModemLines() (ModemLines, error) {
	lines, err := p.Port.ModemLines()
	p.mu.Lock()
	changed := err == nil && (!p.looked || lines != p.lines)
	if changed {
		p.looked, p.lines = true, lines
	}
	p.mu.Unlock()
	if changed {
		p.recorder.add(Entry{Kind: Lines, Lines: lines})
	}
	return lines, err
}

// SetDTR moves DTR, where the port can.
func (p *recordedPort) SetDTR(on bool) error {
	return p.output("DTR", on, func(o outputs) error { return o.SetDTR(on) })
}

// SetRTS moves RTS, where the port can.
func (p *recordedPort) SetRTS(on bool) error {
	return p.output("RTS", on, func(o outputs) error { return o.SetRTS(on) })
}

type outputs interface {
	SetDTR(on bool) error
	SetRTS(on bool) error
}

func (p *recordedPort) output(name string, on bool, set func(outputs) error) error {
	o, ok := p.Port.(outputs)
	if !ok {
		return ErrNoLines
	}
	level := "off"
	if on {
		level = "on"
	}
	p.recorder.Note(name + " " + level)
	return set(o)
}

// Close implements Port.
func (p *recordedPort) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	p.mu.Unlock()
	if first {
		p.recorder.Note("close")
	}
	return p.Port.Close()
}
