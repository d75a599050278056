// Package filedrop takes transactions from tills that write files into a folder: POSLog XML
// of ARTS/OMG 2.x and 6.x, CSV with a mapping in the configuration, and our own JSON.
//
// A file is taken when it is complete (Config.Ready), by renaming it into the folder work:
// from then on it is ours, and the till may write another one of its name. It is read twice,
// first to see that all of it can be read, then to accept it, one transaction after the
// other, at the same desk as what comes over HTTP: each transaction is accepted once, however
// often it stands in files or was posted. When the agent has all of it on its disk, the file
// goes to done. A file in which anything was refused goes to rejected, beside a report that
// names line and field; what was right in it is accepted all the same, so that it may be
// mended and dropped again. A file that cannot be read to its end is refused as a whole.
//
// The program or the PC may end at any step: what is in work is taken up again, and what was
// accepted is known.
package filedrop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
)

// Class is the class of a drop in protocol.DeviceState.
const Class = "drop"

// Driver is its driver there.
const Driver = "filedrop"

// An Accepter puts a transaction on disk, as till.Agent does.
type Accepter interface {
	Accept(ctx context.Context, intake till.Intake) (till.Accepted, error)
}

// A Drop is one folder. It is a drivers.Driver.
type Drop struct {
	cfg    Config
	desk   till.Desk
	agent  Accepter
	format format
	clock  *time.Location          // of times without an offset; nil: the store's
	seen   map[string]look         // owned by Run
	step   func(what string) error // tests: before each step that changes anything; nil in a program

	mu     sync.Mutex // guards what follows
	status Status
	doubt  map[string]look // files in work that could not be read to their end, once
}

// A Status is what a drop shows on GET /v1/status.
type Status struct {
	ID       string           `json:"id"`
	Folder   string           `json:"folder"`
	Format   string           `json:"format"`
	Waiting  int              `json:"waiting"`           // files that are there and not read yet, as far as it looks at once
	Ignored  int              `json:"ignored"`           // files that the pattern does not match, or that are no plain files
	Done     int64            `json:"done"`              // files since the start
	Rejected int              `json:"rejected"`          // reports in the folder rejected
	Accepted int64            `json:"accepted"`          // transactions since the start
	Known    int64            `json:"known"`             // that were accepted before
	Refused  int64            `json:"refused"`           // transactions
	Last     string           `json:"last,omitempty"`    // the last file read
	LastAt   *time.Time       `json:"lastAt,omitempty"`  // when
	Problem  string           `json:"problem,omitempty"` // why it does not go on; "" = it does
	Hint     string           `json:"hint,omitempty"`    // what to do
	Unread   map[string]int64 `json:"unread,omitempty"`  // POSLog elements that are kept and not understood: how often
	Reports  []string         `json:"reports,omitempty"` // the last files that were rejected, and why
}

// New makes the drop of a checked configuration; it opens nothing.
func New(cfg Config, desk till.Desk, agent Accepter) *Drop {
	d := &Drop{cfg: cfg.withDefaults(), desk: desk, agent: agent, seen: map[string]look{}, doubt: map[string]look{}}
	d.status = Status{ID: cfg.ID, Folder: cfg.Folder, Format: cfg.Format}
	if cfg.Zone != "" {
		d.clock, _ = time.LoadLocation(cfg.Zone) // Check has loaded it
	}
	switch cfg.Format {
	case FormatPOSLog:
		d.format = d.poslog
	case FormatCSV:
		d.format = d.csvFile
	default:
		d.format = d.jsonFile
	}
	return d
}

// Status is safe for concurrent use.
func (d *Drop) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	s.Unread, s.Reports = map[string]int64{}, append([]string(nil), s.Reports...)
	for name, n := range d.status.Unread {
		s.Unread[name] = n
	}
	return s
}

func (d *Drop) note(change func(s *Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.status)
}

// maxUnread bounds the names in Status.Unread.
const maxUnread = 32

// unread counts an element that is kept and not understood, when the file is read for good.
func (d *Drop) unread(src *source, name string) {
	if src.rehearsal {
		return
	}
	d.note(func(s *Status) {
		if s.Unread == nil {
			s.Unread = map[string]int64{}
		}
		if _, known := s.Unread[name]; !known && len(s.Unread) >= maxUnread {
			name = "other"
		}
		s.Unread[name]++
	})
}

// store is what the files call the store.
func (d *Drop) store() string {
	if d.cfg.Store != "" {
		return d.cfg.Store
	}
	return d.desk.Store
}

// zone is that of times without an offset.
func (d *Drop) zone() *time.Location {
	if d.clock != nil {
		return d.clock
	}
	return d.desk.Rule().Zone
}

// The pauses before a file is tried again that could not be accepted or read.
const (
	firstPause = time.Second
	lastPause  = time.Minute
)

// Run implements drivers.Driver: it reads files until ctx ends. It returns when the folder is
// not there or cannot be used; the supervisor comes again.
func (d *Drop) Run(ctx context.Context, host drivers.Host) error {
	pause := firstPause
	for {
		more, err := d.round(ctx, host)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := d.cfg.Poll
		var later *laterError
		switch {
		case errors.As(err, &later): // the folder is well, something else is not
			d.fault(ctx, host, later)
			wait = pause
			pause = min(2*pause, lastPause)
		case err != nil:
			fault := d.folderFault(err)
			d.note(func(s *Status) { s.Problem, s.Hint = fault.Err.Error(), fault.Hint })
			return fault
		default:
			pause = firstPause
			d.note(func(s *Status) { s.Problem, s.Hint = "", "" })
			host.Online()
			if more {
				continue
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// A laterError says why a file must wait: nothing is wrong with it.
type laterError struct {
	file  string
	err   error
	hint  string
	agent bool // the agent cannot accept it now, nor any other
}

func (l *laterError) Error() string { return l.file + " waits: " + l.err.Error() }
func (l *laterError) Unwrap() error { return l.err }

// fault tells the status and head office why files wait.
func (d *Drop) fault(ctx context.Context, host drivers.Host, later *laterError) {
	d.note(func(s *Status) { s.Problem, s.Hint = later.Error(), later.hint })
	host.Note("file waits")
	state := protocol.DeviceState{Device: d.cfg.ID, Driver: Driver, Class: Class, State: protocol.DeviceFault, Reason: later.err.Error(), Hint: later.hint, At: host.Now().UTC()}
	if err := host.Emit(ctx, protocol.KindDevice, state, nil); err != nil {
		host.Note("state not recorded")
	}
}

// folderFault explains an error of the folder to a person.
func (d *Drop) folderFault(err error) *drivers.Fault {
	hint := "is the network folder reachable?"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "make the folder " + d.cfg.Folder + ", or correct `folder` in the configuration; is the network drive connected?"
	case errors.Is(err, fs.ErrPermission):
		hint = "the agent must be allowed to read, write and delete in " + d.cfg.Folder
	case isFull(err):
		hint = "free space on the disk of " + d.cfg.Folder
	}
	return &drivers.Fault{Device: d.cfg.ID, Err: err, Hint: hint}
}

// before runs a test's hook before a step that changes anything.
func (d *Drop) before(what string) error {
	if d.step == nil {
		return nil
	}
	return d.step(what)
}

// openFolder opens the folder so that nothing within it, such as a link, leads outside.
func (d *Drop) openFolder() (*os.Root, error) {
	root, err := os.OpenRoot(d.cfg.Folder)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	for _, name := range []string{workDir, readyDir, doneDir, rejectedDir} {
		if err := root.Mkdir(name, 0o770); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, errors.Join(fmt.Errorf("make folder %s: %w", name, err), root.Close())
		}
	}
	return root, nil
}
