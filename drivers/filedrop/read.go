package filedrop

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
)

const (
	inFlight     = 8   // transactions of one file that are being accepted
	maxRefusals  = 200 // that a report names one by one
	maxReports   = 10  // in the status
	reportEnding = ".report.json"
)

// A Report stands beside a rejected file, as NAME.report.json.
type Report struct {
	File     string    `json:"file"`
	At       time.Time `json:"at"`
	Bytes    int64     `json:"bytes"`
	Problem  string    `json:"problem,omitempty"` // of the file as a whole: nothing of it was accepted by this reading
	Line     int       `json:"line,omitempty"`    // of Problem
	Hint     string    `json:"hint,omitempty"`
	Accepted int       `json:"accepted"` // transactions
	Known    int       `json:"known"`    // of these, accepted before
	Refused  int       `json:"refused"`
	Refusals []Refusal `json:"refusals,omitempty"` // the first 200
	keep     bool      // the records do not hold all of the file
}

// A Refusal is a transaction that was not accepted.
type Refusal struct {
	Line        int         `json:"line"`
	Transaction string      `json:"transaction,omitempty"` // workstation/day/number
	Faults      []lineFault `json:"faults"`
}

// read takes files in work from there to done or rejected, some at the same time.
func (d *Drop) read(ctx context.Context, root *os.Root, host drivers.Host, files []string) (errs []error) {
	errs = make([]error, len(files))
	var g errgroup.Group
	g.SetLimit(abreast)
	for i, name := range files {
		g.Go(func() error {
			errs[i] = d.readFile(ctx, root, host, name)
			return nil
		})
	}
	_ = g.Wait() // each error is in its place
	return errs
}

// readFile reads one file. An error means that it stays in work.
func (d *Drop) readFile(ctx context.Context, root *os.Root, host drivers.Host, name string) error {
	at := path.Join(workDir, name)
	info, err := root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody took it away, or the folder is gone: the next look tells
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	report := Report{File: name, At: host.Now().UTC(), Bytes: info.Size()}
	switch {
	case !info.Mode().IsRegular():
		report.Problem = "not a plain file"
	case info.Size() > int64(d.cfg.MaxMB)<<20:
		report.Problem, report.Hint = fmt.Sprintf("the file has %d MB, at most %d", info.Size()>>20, d.cfg.MaxMB), "let the till write smaller files, or set maxMB"
	case info.Size() == 0:
		report.Problem = "the file is empty"
	default:
		if err := d.readTwice(ctx, root, at, info, &report); err != nil {
			return err
		}
		if report.Problem != "" && !d.doubted(name, info) {
			return errUnripe
		}
	}
	if now, err := root.Lstat(at); err != nil || now.Size() != info.Size() || !now.ModTime().Equal(info.ModTime()) {
		return &laterError{name, errors.New("the file was written to while it was read"), "set ready: marker, or a longer settle", false}
	}
	if report.Problem != "" || report.Refused > 0 {
		return d.reject(root, host, report, info.ModTime())
	}
	to := ""
	day := path.Join(doneDir, d.desk.Rule().Day(host.Now()).String())
	if !d.cfg.Delete || report.keep {
		if err := root.MkdirAll(day, 0o770); err != nil {
			return fmt.Errorf("make folder %s: %w", day, err)
		}
		if to, err = free(root, day, name, info.ModTime()); err != nil {
			return err
		}
	}
	if err := d.finish(root, name, to); err != nil {
		return fmt.Errorf("put %s away: %w", name, err)
	}
	d.note(func(s *Status) {
		delete(d.doubt, name)
		s.Done++
		s.Last, s.LastAt = name, &report.At
	})
	return nil
}

// doubted says whether a file that cannot be read to its end was given time already.
func (d *Drop) doubted(name string, info os.FileInfo) bool {
	if d.cfg.Ready != ReadySettle {
		return true // the till has said that it is complete
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	before, known := d.doubt[name]
	d.doubt[name] = look{size: info.Size(), time: info.ModTime()}
	return known && before.size == info.Size() && before.time.Equal(info.ModTime())
}

// readTwice reads the file to see whether it can be read, and again to accept what is in it.
func (d *Drop) readTwice(ctx context.Context, root *os.Root, at string, info os.FileInfo, report *Report) error {
	bad, err := d.walk(ctx, root, at, info, true, func(found) error { return nil })
	if err != nil {
		return d.known(report.File, err)
	}
	if bad == nil {
		a := &acceptance{drop: d, report: report}
		if bad, err = d.walk(ctx, root, at, info, false, a.each(ctx)); err != nil {
			return d.known(report.File, errors.Join(a.wait(), err))
		}
		if err := a.wait(); err != nil {
			return err
		}
		slices.SortFunc(report.Refusals, func(a, b Refusal) int { return cmp.Compare(a.Line, b.Line) })
	}
	if bad != nil {
		report.Problem, report.Line, report.Hint = bad.problem, bad.line, bad.hint
	}
	return nil
}

// walk goes through the file once. A bad file is no error: an error says that its text could
// not be had.
func (d *Drop) walk(ctx context.Context, root *os.Root, at string, info os.FileInfo, rehearsal bool, each func(found) error) (bad *fileError, err error) {
	file, err := root.Open(at)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	src := open(ctx, file)
	src.rehearsal = rehearsal
	defer func() {
		if p := recover(); p != nil { // a mistake of ours must not stop the other files
			bad, err = &fileError{src.line, fmt.Sprintf("the agent made a mistake: %v", p), "send the file to the makers of the agent"}, nil
		}
	}()
	err = d.format(src, each)
	if src.file.err != nil {
		return nil, src.file.err
	}
	if src.file.end && src.file.n < info.Size() {
		return nil, fmt.Errorf("only %d of %d bytes could be read", src.file.n, info.Size())
	}
	if errors.As(err, &bad) {
		return bad, nil
	}
	return nil, err
}

// known makes every error of reading one that waits: a bad file is no error.
func (d *Drop) known(file string, err error) error {
	var later *laterError
	if errors.As(err, &later) {
		return later
	}
	if errors.Is(err, errStopped) {
		return err
	}
	hint := "the file is read again in a while; is the network folder reachable?"
	if errors.Is(err, fs.ErrPermission) {
		hint = "the agent must be allowed to read the files that the till writes"
	}
	return &laterError{file, err, hint, false}
}

// An acceptance hands the transactions of one file to the agent.
type acceptance struct {
	drop   *Drop
	report *Report
	group  *errgroup.Group

	mu sync.Mutex // guards report
}

func (a *acceptance) wait() error {
	if a.group == nil {
		return nil
	}
	return a.group.Wait()
}

func (a *acceptance) each(ctx context.Context) func(found) error {
	a.group, ctx = errgroup.WithContext(ctx)
	a.group.SetLimit(inFlight)
	return func(f found) error {
		if ctx.Err() != nil { // one of them could not be accepted: wait says why
			return ctx.Err()
		}
		a.group.Go(func() error { return a.accept(ctx, f) })
		return nil
	}
}

func (a *acceptance) accept(ctx context.Context, f found) error {
	if len(f.faults) > 0 {
		a.refuse(f, f.faults)
		return nil
	}
	intake, err := a.drop.desk.Take(f.body, a.drop.cfg.Workstation)
	if err != nil {
		a.refuse(f, a.faults(f, err))
		return nil
	}
	f.id = fmt.Sprintf("%s/%s/%d", intake.Transaction.Workstation, intake.Transaction.BusinessDay, intake.Transaction.Sequence)
	if f.digest != nil {
		intake.Digest = *f.digest
	}
	// By content too: the business day of one that does not say its own is the store's to
	// choose, and head office may change the rule before the file comes again.
	intake.Keys = append(intake.Keys, "c:"+hex.EncodeToString(intake.Digest[:]))
	if err := a.drop.before("accept"); err != nil {
		return fmt.Errorf("%w: %w", errStopped, err)
	}
	accepted, err := a.drop.agent.Accept(ctx, intake)
	switch {
	case errors.Is(err, till.ErrConflict):
		a.refuse(f, []lineFault{{f.line, protocol.Fault{Field: "sequenceNumber", Problem: "another transaction was accepted under this number: " + intake.Transaction.ID().String(),
			Hint: "a correction is a new transaction (a void or a return) with a number of its own"}}})
		return nil
	case errors.Is(err, till.ErrTooBig):
		a.refuse(f, []lineFault{{f.line, protocol.Fault{Problem: err.Error()}}})
		return nil
	case errors.Is(err, till.ErrFull):
		return &laterError{a.report.File, till.ErrFull, "free space on the store PC; the file is read again by itself", true}
	case err != nil:
		return &laterError{a.report.File, err, "the file is read again by itself", true}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report.Accepted++
	a.report.keep = a.report.keep || f.keep
	if accepted.Known {
		a.report.Known++
	}
	a.drop.note(func(s *Status) {
		if s.Accepted++; accepted.Known {
			s.Accepted--
			s.Known++
		}
	})
	return nil
}

// faults gives the faults of the desk their lines.
func (a *acceptance) faults(f found, err error) []lineFault {
	var all protocol.Faults
	if !errors.As(err, &all) {
		all = protocol.Faults{{Problem: err.Error()}}
	}
	lines := make([]lineFault, 0, len(all))
	for _, fault := range all[:min(len(all), 100)] {
		lines = append(lines, lineFault{lineOf(f.at, fault.Field, f.line), fault})
	}
	return lines
}

func (a *acceptance) refuse(f found, faults []lineFault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.report.Refused++; len(a.report.Refusals) < maxRefusals {
		a.report.Refusals = append(a.report.Refusals, Refusal{f.line, f.id, faults})
	}
	a.drop.note(func(s *Status) { s.Refused++ })
}

// reject moves a file to rejected, behind its report.
func (d *Drop) reject(root *os.Root, host drivers.Host, report Report, written time.Time) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("write report of %s: %w", report.File, err)
	}
	to, err := free(root, rejectedDir, report.File, written)
	if err != nil {
		return err
	}
	if err := d.before("write the report"); err != nil {
		return fmt.Errorf("%w: %w", errStopped, err)
	}
	if err := writeSynced(root, to+reportEnding, text); err != nil {
		return &laterError{report.File, fmt.Errorf("write report: %w", err), d.folderFault(err).Hint, false}
	}
	if err := d.finish(root, report.File, to); err != nil {
		return fmt.Errorf("put %s away: %w", report.File, err)
	}
	host.Note("file rejected")
	why := report.Problem
	if why == "" {
		why = fmt.Sprintf("%d transactions refused, %d accepted", report.Refused, report.Accepted)
	}
	d.note(func(s *Status) {
		delete(d.doubt, report.File)
		s.Last, s.LastAt = report.File, &report.At
		s.Rejected++
		s.Reports = append(s.Reports, report.File+": "+why)
		s.Reports = s.Reports[max(0, len(s.Reports)-maxReports):]
	})
	return nil
}

// writeSynced writes a file that is whole or not there.
func writeSynced(root *os.Root, name string, text []byte) error {
	part := name + ".part"
	file, err := root.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o660)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return root.Rename(part, name)
}
