package filedrop

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/drivers"
)

// The folders within a drop's.
const (
	workDir     = "work"       // files that are ours and not accepted yet
	readyDir    = "work/ready" // markers of files that are being taken
	doneDir     = "done"       // by day
	rejectedDir = "rejected"
)

const (
	window  = 2048 // files that are looked at at once, those first by name
	abreast = 8    // files that are read at the same time
)

// A look is what a file looked like.
type look struct {
	size  int64
	time  time.Time
	since time.Time // it has looked so since then
}

// A waiting file's name goes to the end of the names when there are too many.
type names []string

func (n names) Len() int           { return len(n) }
func (n names) Less(i, j int) bool { return n[i] > n[j] } // the last one on top
func (n names) Swap(i, j int)      { n[i], n[j] = n[j], n[i] }
func (n *names) Push(x any)        { *n = append(*n, x.(string)) }
func (n *names) Pop() any {
	last := (*n)[len(*n)-1]
	*n = (*n)[:len(*n)-1]
	return last
}

// list calls each for the entries of a folder, some at a time: a folder may have 100,000.
func list(root *os.Root, dir string, each func(e fs.DirEntry)) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	for {
		entries, err := f.ReadDir(1000)
		for _, e := range entries {
			each(e)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// round looks at the folder once and reads what is ready. More says that it is worth to look
// again at once. A *laterError is about a file, any other error about the folder.
func (d *Drop) round(ctx context.Context, host drivers.Host) (more bool, err error) {
	root, err := d.openFolder()
	if err != nil {
		return false, err
	}
	defer root.Close() //nolint:errcheck // it was only read
	if err := d.resume(root); err != nil {
		return false, err
	}
	work, err := d.find(root, workDir, func(string) bool { return true })
	if err != nil {
		return false, fmt.Errorf("look at what is at work: %w", err)
	}
	var stuck *laterError // the first file that must wait; the others need not
	wait := func(err error) error {
		var later *laterError
		if !errors.As(err, &later) || later.agent {
			return err
		}
		if stuck == nil {
			stuck = later
		}
		return nil
	}
	readAll := func(files []string) error {
		for i, err := range d.read(ctx, root, host, files) {
			if errors.Is(err, errUnripe) {
				d.ripen(root, files[i], host.Now())
			} else if err := wait(err); err != nil {
				return err
			}
		}
		return nil
	}
	if err := readAll(d.settled(root, host.Now(), workDir, work)); err != nil {
		return false, err
	}
	candidates, err := d.find(root, ".", d.matches)
	if err != nil {
		return false, fmt.Errorf("look at the folder: %w", err)
	}
	d.note(func(s *Status) { s.Waiting = len(candidates) + len(work) })
	d.countReports(root)
	read := 0
	for chunk := range slices.Chunk(d.settled(root, host.Now(), ".", candidates), abreast) {
		var ours []string
		for _, name := range chunk {
			taken, err := d.take(root, name)
			if err := wait(err); err != nil {
				return false, err
			}
			if taken {
				ours = append(ours, name)
			}
		}
		if err := readAll(ours); err != nil {
			return false, err
		}
		read += len(ours)
		if d.note(func(s *Status) { s.Waiting -= len(ours) }); stuck == nil {
			host.Online()
		}
	}
	if stuck != nil {
		return false, stuck
	}
	return read > 0, nil
}

// errUnripe says that a file cannot be read to its end, and is given time.
var errUnripe = errors.New("not complete yet")

// patience is how many times Settle a file is given that looked complete and is not: a copy
// over the network may have its size before it has its content.
const patience = 10

// ripen leaves a file in work alone until it changes, or its time is up.
func (d *Drop) ripen(root *os.Root, name string, now time.Time) {
	at := path.Join(workDir, name)
	if info, err := root.Lstat(at); err == nil {
		d.seen[at] = look{info.Size(), info.ModTime(), now.Add((patience - 1) * d.cfg.Settle)}
	}
}

// matches says whether a file is one of the till's.
func (d *Drop) matches(name string) bool {
	ok, err := path.Match(strings.ToLower(d.cfg.Files), strings.ToLower(name))
	return ok && err == nil && !d.isMarker(name)
}

func (d *Drop) isMarker(name string) bool {
	return d.cfg.Ready == ReadyMarker && strings.HasSuffix(strings.ToLower(name), strings.ToLower(d.cfg.Marker))
}

// find gives the first names of plain files, in order, and forgets looks at files that are
// gone.
func (d *Drop) find(root *os.Root, dir string, matches func(name string) bool) ([]string, error) {
	var first names
	ignored := 0
	err := list(root, dir, func(e fs.DirEntry) {
		switch {
		case e.IsDir():
			return
		case !matches(e.Name()) || !e.Type().IsRegular() && dir == ".":
			if !d.isMarker(e.Name()) {
				ignored++
			}
			return
		case len(first) == window && e.Name() > first[0]:
			return
		}
		heap.Push(&first, e.Name())
		if len(first) > window {
			heap.Pop(&first)
		}
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(first)
	if dir == "." {
		d.note(func(s *Status) { s.Ignored = ignored })
	}
	maps.DeleteFunc(d.seen, func(at string, _ look) bool {
		if path.Dir(at) != dir {
			return false
		}
		_, here := slices.BinarySearch(first, path.Base(at))
		return !here
	})
	return first, nil
}

// settled gives those of the names that are complete.
func (d *Drop) settled(root *os.Root, now time.Time, dir string, candidates []string) []string {
	var ready []string
	for _, name := range candidates {
		at := path.Join(dir, name)
		info, err := root.Lstat(at)
		if err != nil {
			delete(d.seen, at)
			continue
		}
		if dir == "." && d.cfg.Ready == ReadyMarker {
			if _, ok := d.markerOf(root, name); ok {
				ready = append(ready, name)
			}
			continue
		}
		before, known := d.seen[at]
		if !known || before.size != info.Size() || !before.time.Equal(info.ModTime()) {
			before = look{info.Size(), info.ModTime(), now}
			d.seen[at] = before
		}
		if now.Sub(before.since) >= d.cfg.Settle && (info.Size() > 0 || d.cfg.Ready != ReadySettle || dir != ".") {
			ready = append(ready, name) // an empty one may be about to be written, and holds nothing yet
		}
	}
	return ready
}

// markerOf is the marker of a file, if it is there.
func (d *Drop) markerOf(root *os.Root, name string) (string, bool) {
	for _, marker := range []string{name + d.cfg.Marker, strings.TrimSuffix(name, path.Ext(name)) + d.cfg.Marker} {
		if info, err := root.Lstat(marker); err == nil && info.Mode().IsRegular() {
			return marker, true
		}
	}
	return "", false
}

// take makes a file ours: it renames it into work. On Windows that fails while another
// program has it open. False: it is not to be had now.
func (d *Drop) take(root *os.Root, name string) (bool, error) {
	if _, err := root.Lstat(path.Join(workDir, name)); err == nil {
		return false, nil // an older one of this name is still at work
	}
	if d.cfg.Ready == ReadyMarker {
		// The marker goes first: one that stayed behind would vouch for the till's next file.
		marker, ok := d.markerOf(root, name)
		if !ok {
			return false, nil
		}
		if err := d.move(root, "take the marker", marker, path.Join(readyDir, name)); err != nil {
			return false, d.notNow(name, err)
		}
	}
	if err := d.move(root, "take the file", name, path.Join(workDir, name)); err != nil {
		return false, d.notNow(name, err)
	}
	seen, known := d.seen[name]
	delete(d.seen, name)
	info, err := root.Lstat(path.Join(workDir, name))
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", name, err)
	}
	if known && (seen.size != info.Size() || !seen.time.Equal(info.ModTime())) {
		return false, nil // it was written to at the last moment: it settles where it is now
	}
	return true, nil
}

// notNow takes an error about one file that others need not suffer from.
func (d *Drop) notNow(name string, err error) error {
	switch {
	case errors.Is(err, errStopped), isFull(err):
		return err
	case errors.Is(err, fs.ErrNotExist): // the till took it back, or the folder is gone: the next look tells
		return nil
	}
	return &laterError{name, err, "another program has the file open, or the agent may not delete in the folder", false}
}

// errStopped is the error of a test's hook.
var errStopped = errors.New("stopped")

func (d *Drop) move(root *os.Root, what, from, to string) error {
	if err := d.before(what); err != nil {
		return fmt.Errorf("%w: %w", errStopped, err)
	}
	return root.Rename(from, to)
}

// resume ends the taking of files that was begun when the agent last ended.
func (d *Drop) resume(root *os.Root) error {
	if d.cfg.Ready != ReadyMarker {
		return nil
	}
	var marked []string
	if err := list(root, readyDir, func(e fs.DirEntry) { marked = append(marked, e.Name()) }); err != nil {
		return fmt.Errorf("look at markers: %w", err)
	}
	for _, name := range marked {
		if _, err := root.Lstat(path.Join(workDir, name)); err == nil {
			continue // it was taken
		}
		if _, err := root.Lstat(name); err == nil {
			if err := d.move(root, "take the file after all", name, path.Join(workDir, name)); err != nil {
				return d.notNow(name, err)
			}
			continue
		}
		if err := root.Remove(path.Join(readyDir, name)); err != nil {
			return fmt.Errorf("remove marker of %s: %w", name, err)
		}
	}
	return nil
}

// finish takes a file out of work, behind its marker; to "" deletes it.
func (d *Drop) finish(root *os.Root, name, to string) error {
	if d.cfg.Ready == ReadyMarker {
		if err := d.before("remove the marker"); err != nil {
			return fmt.Errorf("%w: %w", errStopped, err)
		}
		if err := root.Remove(path.Join(readyDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove marker of %s: %w", name, err)
		}
	}
	from := path.Join(workDir, name)
	if to == "" {
		if err := d.before("delete the file"); err != nil {
			return fmt.Errorf("%w: %w", errStopped, err)
		}
		return root.Remove(from)
	}
	return d.move(root, "move the file away", from, to)
}

// free is a place in dir for a file of that name; nothing is ever written over. Another file
// of the name gets its time of writing into its own.
func free(root *os.Root, dir, name string, written time.Time) (string, error) {
	ending := path.Ext(name)
	stem := strings.TrimSuffix(name, ending)
	for n := 0; ; n++ {
		at := path.Join(dir, name)
		if n > 0 {
			at = path.Join(dir, fmt.Sprintf("%s.%s.%d%s", stem, written.UTC().Format("20060102T150405.000"), n, ending))
		}
		_, err := root.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			return at, nil
		}
		if err != nil {
			return "", fmt.Errorf("find a name for %s: %w", name, err)
		}
	}
}

// countReports tells the status how many reports wait for a person.
func (d *Drop) countReports(root *os.Root) {
	n := 0
	if err := list(root, rejectedDir, func(e fs.DirEntry) {
		if strings.HasSuffix(e.Name(), reportEnding) {
			n++
		}
	}); err == nil { // the number is for people alone
		d.note(func(s *Status) { s.Rejected = n })
	}
}
