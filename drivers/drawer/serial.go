package drawer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// The ways to open a drawer that hangs on a serial port of its own.
const (
	openBytes = "bytes"
	openRTS   = "rts" // a pulse on the line, as for a relay
	openDTR   = "dtr"
)

// The ways to learn its status.
const (
	statusNone  = "none"
	statusQuery = "query"
	statusCTS   = "cts"
	statusDSR   = "dsr"
	statusDCD   = "dcd"
	statusRI    = "ri"
)

// serialProfiles are what the manuals say of each make, over the defaults of the settings:
//
//	apg484  APG 484A SerialPRO II: BEL as it leaves the factory; powered from DTR and RTS; 12 s
//	        after the first opening of the port, 6 s between two openings; status on CTS or RI
//	        by DIP, to be read 200 ms after the opening
//	apg212  APG 212A Smart SerialPRO: "[[", 9600 7O1 in the guide; status on CTS or RI by jumper
//	ksi     M-S/MMF KSI (EP-125): one character of 7 bits by DIP; other data is ignored
//	klic    M-S/MMF KLIC: Ctrl-G at 1200 baud
//	kc      M-S/MMF KC: opens on any data at 300 baud, or 20 times 40 at a higher one
//	ksc     M-S/MMF KSC: opens on any data
//	ibm     IBM/Toshiba SurePOS 500: BEL opens drawer 1 (ESC BEL drawer 2); ACK asks for a
//	        byte of which bit 6 is drawer 1 open and bit 7 is 0
//	relay   a relay on RTS
//
// What the copies of the manuals leave open is a setting: the APG's polarity (open_level is
// learned), the KSI's character, the line on which a KSC says that it is open.
var serialProfiles = map[string]map[string]any{
	"apg484": {"dtr": "on", "rts": "on", "warmup": 12 * time.Second, "min_interval": 6 * time.Second, "status": statusCTS},
	"apg212": {"open": "[[", "data_bits": 7, "parity": "odd", "status": statusCTS},
	"ksi":    {},
	"klic":   {"baud": 1200},
	"kc":     {"baud": 300, "open": "@@@@"},
	"ksc":    {},
	"ibm":    {"status": statusQuery, "open_level": levelHigh},
	"relay":  {"open_by": openRTS, "dtr": "off", "rts": "off"},
}

// linePoll is how often modem lines are looked at; a level counts when it stands twice.
const linePoll = 50 * time.Millisecond

// A Serial is the driver "serialdrawer": a cash drawer, or a relay that opens one, on a port
// of its own.
type Serial struct {
	drawer
	open        serialport.OpenFunc
	config      serialport.Config
	by          string
	command     []byte
	pulse       time.Duration
	status      string
	query       []byte
	mask        byte
	settle      time.Duration
	warmup      time.Duration
	minInterval time.Duration
	every       time.Duration
}

// SerialSettings are the keys of the driver.
func SerialSettings() []drivers.Setting {
	pause := func(name string, value, most time.Duration, help string) drivers.Setting {
		return drivers.Setting{Name: name, Type: drivers.TypeDuration, Default: value, Min: 0, Max: int64(most), Help: help}
	}
	profiles := slices.Sorted(maps.Keys(serialProfiles))
	return append(append([]drivers.Setting{
		{Name: "profile", Type: drivers.TypeChoice, Default: "", Choices: append([]string{""}, profiles...), Help: "make of the drawer; sets what is not set here"},
		{Name: "open_by", Type: drivers.TypeChoice, Default: openBytes, Choices: []string{openBytes, openRTS, openDTR}, Help: "what opens it: bytes, or a pulse on a line of the port; Linux raises both lines for some ms when the port is opened, so a relay must need longer than that"},
		{Name: "open", Type: drivers.TypeText, Default: `\a`, Help: `bytes that open it, such as \a (BEL) or [[`},
		pause("pulse", 150*time.Millisecond, 5*time.Second, "length of a pulse on a line"),
		{Name: "status", Type: drivers.TypeChoice, Default: statusNone, Choices: []string{statusNone, statusCTS, statusDSR, statusDCD, statusRI, statusQuery}, Help: "where it says whether it is open: a line of the port, or the answer to a query"},
		{Name: "query", Type: drivers.TypeText, Default: `\x06`, Help: "bytes that ask for the status; one byte comes back"},
		{Name: "query_mask", Type: drivers.TypeInt, Default: 0x40, Min: 1, Max: 0x7F, Help: "bit of that byte which is the drawer's switch"},
		pollSetting(500 * time.Millisecond),
		pause("settle", 200*time.Millisecond, 5*time.Second, "after an opening the status is not looked at for so long"),
		pause("warmup", 0, 5*time.Minute, "the port must have been open for so long before the drawer can be opened"),
		pause("min_interval", 500*time.Millisecond, 5*time.Minute, "between two openings"),
	}, levelSettings(levelLearn)...), drivers.SerialSettings(9600)...)
}

// NewSerial makes the driver; it is a drivers.Opener. Errors are protocol.Faults.
func NewSerial(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, SerialSettings())
	for name, value := range serialProfiles[v.Text("profile")] {
		if _, given := spec.Settings[name]; !given {
			v[name] = value
		}
	}
	command, err := drivers.Unescape(v.Text("open"))
	if err != nil || len(command) == 0 {
		faults.Add("settings.open", `such as \a`, "want bytes, got %q", v.Text("open"))
	}
	query, err := drivers.Unescape(v.Text("query"))
	if err != nil || len(query) == 0 {
		faults.Add("settings.query", `such as \x06`, "want bytes, got %q", v.Text("query"))
	}
	status := v.Text("status")
	if profile := v.Text("profile"); status == statusQuery && (profile == "kc" || profile == "ksc") {
		faults.Add("settings.status", "take a line of the port, or none", "any byte opens a drawer of profile %s, a query too", profile)
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return &Serial{
		drawer: newDrawer(spec, v, status == statusNone), open: open, config: portConfig(spec, v),
		by: v.Text("open_by"), command: command, pulse: v.Duration("pulse"), status: status, query: query, mask: byte(v.Int("query_mask")),
		settle: v.Duration("settle"), warmup: v.Duration("warmup"), minInterval: v.Duration("min_interval"), every: v.Duration("poll"),
	}, nil
}

// Run implements drivers.Driver.
func (d *Serial) Run(ctx context.Context, host drivers.Host) error {
	if err := d.load(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open drawer: %w", err)
	}
	w := &direct{d: d, host: host, port: port, opened: host.Now(), asker: asker{d: &d.drawer, plain: d.every, heard: host.Now()}}
	return d.serve(ctx, host, w, func() { port.Close() })
}

// A direct is the wire of one Run.
type direct struct {
	d       *Serial
	host    drivers.Host
	port    serialport.Port
	opened  time.Time // the port
	kicked  time.Time // the last pulse; zero = none
	waiting int       // queries that are not answered
	looked  time.Time // at the lines
	level   *bool     // what the lines said last, if it is not taken yet
	asker
}

func (w *direct) feed(ctx context.Context, chunks chan<- chunk) error {
	return read(ctx, w.host, w.port, chunks)
}

// lines says whether the status is a level of the port.
func (w *direct) lines() bool { return w.d.status != statusNone && w.d.status != statusQuery }

func (w *direct) begin(ctx context.Context) error {
	if w.d.by != openBytes {
		if err := w.drive(false); err != nil {
			return err
		}
	}
	switch {
	case w.d.status == statusQuery:
		return w.ask(ctx)
	case w.lines():
		if err := w.look(); err != nil {
			return err
		}
	}
	w.host.Online()
	return nil
}

func (w *direct) ask(ctx context.Context) error {
	w.asked, w.waiting = w.host.Now(), 1
	return write(ctx, w.port, w.d.query)
}

// settling says whether the status after a pulse is not to be trusted yet.
func (w *direct) settling(now time.Time) bool {
	return !w.kicked.IsZero() && now.Sub(w.kicked).Abs() < w.d.settle
}

func (w *direct) wait(now time.Time) time.Duration {
	switch {
	case w.d.status == statusQuery:
		return w.asker.wait(now)
	case w.lines():
		return w.looked.Add(linePoll).Sub(now)
	}
	return time.Hour
}

func (w *direct) due(ctx context.Context) error {
	now := w.host.Now()
	switch {
	case w.d.status == statusQuery:
		if yes, err := w.asker.due(now); err != nil || !yes {
			return err
		}
		return w.ask(ctx)
	case w.lines() && now.Sub(w.looked).Abs() >= linePoll:
		return w.look()
	}
	return nil
}

// look reads the line; a level counts when it stands at two looks.
func (w *direct) look() error {
	now := w.host.Now()
	w.looked = now
	lines, err := w.port.ModemLines()
	if err != nil {
		return w.noLines(err)
	}
	w.host.Online()
	high := map[string]bool{statusCTS: lines.CTS, statusDSR: lines.DSR, statusDCD: lines.DCD, statusRI: lines.RI}[w.d.status]
	if w.settling(now) {
		w.level = nil
		return nil
	}
	if w.level != nil && *w.level == high {
		w.d.machine.saw(high, now)
	}
	w.level = &high
	return nil
}

func (w *direct) noLines(err error) error {
	if errors.Is(err, serialport.ErrNoLines) {
		return &drivers.Fault{Device: w.d.spec.ID, Err: err, Hint: "this port has no such lines: take another port or adapter, or other values of status and open_by"}
	}
	return err
}

// take reads answers to our query. They have no checksum: one byte counts for each.
func (w *direct) take(_ context.Context, c chunk) {
	if w.d.status != statusQuery {
		return // a drawer has nothing else to say; a device that shares the port may
	}
	for _, b := range c.data {
		if w.waiting == 0 || b&0x80 != 0 {
			w.host.Note("noise on the line")
			continue
		}
		w.waiting--
		w.heard = c.at
		w.host.Online()
		if !w.settling(c.at) {
			w.d.machine.saw(b&w.d.mask != 0, c.at)
		}
	}
}

// ready implements wire: the drawer needs its time after the port was opened, and between
// two openings.
func (w *direct) ready(now time.Time) (time.Duration, error) {
	wait := w.d.warmup - now.Sub(w.opened).Abs()
	if !w.kicked.IsZero() {
		wait = max(wait, w.d.minInterval-now.Sub(w.kicked).Abs())
	}
	return max(wait, 0), nil
}

func (w *direct) kick(ctx context.Context) (bool, error) {
	if w.d.by == openBytes {
		err := write(ctx, w.port, w.d.command)
		w.kicked = w.host.Now()
		return true, err
	}
	if err := w.drive(true); err != nil {
		return false, err
	}
	timer := time.NewTimer(w.d.pulse)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done(): // the relay must not stay on
	}
	err := w.drive(false)
	w.kicked = w.host.Now()
	return true, err
}

// drive moves the line that opens the drawer.
func (w *direct) drive(on bool) error {
	out, ok := w.port.(serialport.OutputLines)
	if !ok {
		return w.noLines(fmt.Errorf("open_by %s: %w", w.d.by, serialport.ErrNoLines))
	}
	set := out.SetRTS
	if w.d.by == openDTR {
		set = out.SetDTR
	}
	if err := set(on); err != nil {
		return w.noLines(err)
	}
	return nil
}
