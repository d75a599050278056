package checkout

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

const (
	gs1 = 0x1D // separates the parts of a GS1 code; the one control character within a scan

	keptScans = 64 // for tills that ask late
)

var (
	errScanLong    = errors.New("scan is too long")
	errScanControl = errors.New("scan has control characters: check baud and parity")
	errScanPrefix  = errors.New("scan has not the prefix")
)

// A ScanCodec finds scans in what a scanner sends.
type ScanCodec struct {
	Prefix []byte // of every scan; taken off
	Ends   []byte // each of these bytes ends a scan
	Max    int    // bytes

	buf  []byte
	over bool
}

// Push takes bytes and calls scan for each that they complete: its text, or what is wrong
// with it. Empty ones are skipped.
func (c *ScanCodec) Push(data []byte, scan func(string, error)) {
	for _, b := range data {
		switch {
		case bytes.IndexByte(c.Ends, b) >= 0:
			c.Flush(scan)
		case len(c.buf) == c.Max:
			c.over = true
		default:
			c.buf = append(c.buf, b)
		}
	}
}

// Flush ends the scan under way.
func (c *ScanCodec) Flush(scan func(string, error)) {
	defer func() { c.buf, c.over = c.buf[:0], false }()
	if len(c.buf) == 0 {
		return
	}
	if c.over {
		scan("", errScanLong)
		return
	}
	text, ok := bytes.CutPrefix(c.buf, c.Prefix)
	switch {
	case !ok:
		scan("", errScanPrefix)
	case bytes.ContainsFunc(text, func(r rune) bool { return (r < ' ' && r != gs1) || r == 0x7F }):
		scan("", errScanControl)
	case len(text) == 0:
	case utf8.Valid(text):
		scan(string(text), nil)
	default: // Latin-1, as most scanners that are no UTF-8
		var s strings.Builder
		for _, b := range text {
			s.WriteRune(rune(b))
		}
		scan(s.String(), nil)
	}
}

// A LineScanner is the driver "scanner": a bar code scanner that sends lines. It is a
// drivers.Scanner. A scan is no record: what was sold by it is a line of the receipt.
type LineScanner struct {
	spec   drivers.Spec
	open   serialport.OpenFunc
	config serialport.Config
	codec  ScanCodec // owned by Run
	idle   time.Duration
	run    string // names this start of the agent, so that cursors of another one are told apart

	presence presence
	mu       sync.Mutex // guards what follows
	scans    []drivers.Scan
	newest   int           // number of the last scan
	came     chan struct{} // closed at the next scan
}

// ScannerSettings are the keys of the driver.
func ScannerSettings() []drivers.Setting {
	return append([]drivers.Setting{
		{Name: "ends", Type: drivers.TypeText, Default: `\r\n\t`, Help: "each of these characters ends a scan; empty: only a pause does"},
		{Name: "prefix", Type: drivers.TypeText, Default: "", Help: "comes before every scan and is taken off; scans without it are dropped"},
		{Name: "max_length", Type: drivers.TypeInt, Default: 4096, Min: 1, Max: 8192, Help: "bytes of a scan; a longer one is dropped"},
		{Name: "idle", Type: drivers.TypeDuration, Default: time.Duration(0), Min: 0, Max: int64(10 * time.Second), Help: "a pause of so long ends a scan, for scanners that send no end; 0s: it does not"},
	}, drivers.SerialSettings(9600)...)
}

// NewScanner makes the driver; errors are protocol.Faults.
func NewScanner(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, ScannerSettings())
	ends, err := drivers.Unescape(v.Text("ends"))
	if err != nil {
		faults.Add("settings.ends", `such as \r\n`, "%s", err)
	}
	prefix, err := drivers.Unescape(v.Text("prefix"))
	if err != nil {
		faults.Add("settings.prefix", `such as \x02`, "%s", err)
	}
	if len(ends) == 0 && v.Duration("idle") == 0 {
		faults.Add("settings.ends", "set ends or idle", "nothing would end a scan")
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	run := make([]byte, 6)
	rand.Read(run) // never fails
	return &LineScanner{spec: spec, open: open, config: portConfig(spec, v), codec: ScanCodec{Prefix: prefix, Ends: ends, Max: v.Int("max_length")},
		idle: v.Duration("idle"), run: hex.EncodeToString(run), came: make(chan struct{})}, nil
}

// Run implements drivers.Driver. A scanner says nothing of itself: it is online while its
// port is open.
func (d *LineScanner) Run(ctx context.Context, host drivers.Host) error {
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open scanner: %w", err)
	}
	defer port.Close()
	defer d.presence.begin()()
	host.Online()
	d.codec.buf, d.codec.over = nil, false
	keep := func(text string, err error) {
		if err != nil {
			host.Note(err.Error())
			return
		}
		host.Online()
		d.keep(drivers.Scan{Data: text, At: host.Now().UTC()})
	}
	buf := make([]byte, 1024)
	for {
		wait := time.Hour
		if d.idle > 0 && len(d.codec.buf) > 0 {
			wait = d.idle
		}
		n, err := readFor(ctx, port, buf, wait)
		if err != nil {
			return err
		}
		if n == 0 && d.idle > 0 {
			d.codec.Flush(keep)
		}
		d.codec.Push(buf[:n], keep)
	}
}

func (d *LineScanner) keep(s drivers.Scan) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.newest++
	if d.scans = append(d.scans, s); len(d.scans) > keptScans {
		d.scans = slices.Clone(d.scans[1:])
	}
	close(d.came)
	d.came = make(chan struct{})
}

func (d *LineScanner) cursor(number int) string { return d.run + "-" + strconv.Itoa(number) }

// Scans implements drivers.Scanner.
func (d *LineScanner) Scans(ctx context.Context, after string) ([]drivers.Scan, string, error) {
	gone := d.presence.here()
	if gone == nil {
		return nil, after, offline(d.spec.ID, "is the scanner connected?")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	from := d.newest
	if after != "" {
		run, number, _ := strings.Cut(after, "-")
		n, err := strconv.Atoi(number)
		switch {
		case run != d.run:
			from = 0
		case err != nil || n < 0 || n > d.newest:
		default:
			from = n
		}
	}
	for err := error(nil); from == d.newest; {
		if err != nil {
			return nil, d.cursor(from), err
		}
		came := d.came
		d.mu.Unlock()
		select {
		case <-came:
		case <-gone:
			err = offline(d.spec.ID, "the connection to the scanner was just lost")
		case <-ctx.Done():
			err = ctx.Err()
		}
		d.mu.Lock()
	}
	fresh := min(d.newest-from, len(d.scans))
	return slices.Clone(d.scans[len(d.scans)-fresh:]), d.cursor(d.newest), nil
}
