package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A rejectFolder keeps what a till sent and the agent refused, beside the reason, so that
// nothing a shop has rung up is ever gone without a trace. Safe for concurrent use.
type rejectFolder struct {
	dir   string
	limit int64       // bytes on disk; beyond it refusals are still answered, logged and counted
	tight func() bool // the disk is nearly full: its room is for sales
	now   func() time.Time

	mu      sync.Mutex // guards what follows
	used    int64      // bytes on disk
	count   int        // bodies
	notKept int        // bodies since the start
}

const (
	rejectLimit = 64 << 20 // of the folder; the journal's floor is 96 MiB
	diskBlock   = 4 << 10  // bytes that a file takes at least, on most disks
)

// onDisk is what a file of so many bytes takes.
func onDisk(size int64) int64 { return (size + diskBlock - 1) / diskBlock * diskBlock }

func openRejects(dir string, now func() time.Time, tight func() bool) (*rejectFolder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make rejected folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read rejected folder: %w", err)
	}
	r := &rejectFolder{dir: dir, limit: rejectLimit, tight: tight, now: now}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // somebody empties the folder
		}
		r.used += onDisk(info.Size())
		if filepath.Ext(e.Name()) == ".report" {
			r.count++
		}
	}
	return r, nil
}

// A rejectReport stands beside a rejected body.
type rejectReport struct {
	At     time.Time       `json:"at"`
	Faults protocol.Faults `json:"faults"`
	Body   string          `json:"body"` // name of the file with the body as it came
}

// keep writes the body and its report under the name; the same name again replaces them. What
// there is no room for is counted.
func (r *rejectFolder) keep(name string, body []byte, faults protocol.Faults) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.write(name, body, faults); err != nil {
		r.notKept++
		return fmt.Errorf("keep rejected body %s: %w", name, err)
	}
	return nil
}

// full says why so many bytes more have no room. It needs mu.
func (r *rejectFolder) full(more int64) error {
	switch {
	case r.tight():
		return errors.New("the disk is nearly full, what is left of it is for sales; make room on it")
	case more > 0 && r.used+more > r.limit:
		return fmt.Errorf("%s holds %d MiB already; look at it and empty it", r.dir, r.used>>20)
	}
	return nil
}

// write needs mu.
func (r *rejectFolder) write(name string, body []byte, faults protocol.Faults) error {
	report, err := json.MarshalIndent(rejectReport{r.now().UTC(), faults, name + ".body"}, "", "  ")
	if err != nil {
		return err
	}
	files := []struct {
		path string
		data []byte
	}{{filepath.Join(r.dir, name+".body"), body}, {filepath.Join(r.dir, name+".report"), report}}
	more, known := int64(0), 0
	for _, f := range files {
		more += onDisk(int64(len(f.data)))
		if info, err := os.Stat(f.path); err == nil {
			more -= onDisk(info.Size())
			known++
		}
	}
	if err := r.full(more); err != nil {
		return err
	}
	r.used += more // what of it fails is counted anew at the next start
	for _, f := range files {
		if err := writeSynced(f.path, f.data); err != nil {
			return err
		}
	}
	if known < len(files) {
		r.count++
	}
	return nil
}

func writeSynced(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// kept is the number of rejected bodies in the folder, notKept of those since the start that
// had no room there, and full says why the next will have none; empty when it will.
func (r *rejectFolder) status() (kept, notKept int, full string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.full(2 * diskBlock); err != nil {
		full = err.Error()
	}
	return r.count, r.notKept, full
}
