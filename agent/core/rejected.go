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
	limit int64 // bytes kept; beyond it refusals are still answered, and only logged
	now   func() time.Time

	mu    sync.Mutex // guards what follows
	used  int64
	count int
}

// rejectLimit bounds the folder, in bytes.
const rejectLimit = 256 << 20

func openRejects(dir string, now func() time.Time) (*rejectFolder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make rejected folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read rejected folder: %w", err)
	}
	r := &rejectFolder{dir: dir, limit: rejectLimit, now: now}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && filepath.Ext(e.Name()) == ".report" {
			r.count++
			r.used += info.Size()
		} else if err == nil {
			r.used += info.Size()
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

// keep writes the body and its report under the name; the same name again replaces them.
func (r *rejectFolder) keep(name string, body []byte, faults protocol.Faults) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used+int64(len(body)) > r.limit {
		return fmt.Errorf("keep rejected body %s: the folder holds %d MB already (look at %s and empty it)", name, r.used>>20, r.dir)
	}
	report, err := json.MarshalIndent(rejectReport{r.now().UTC(), faults, name + ".body"}, "", "  ")
	if err != nil {
		return fmt.Errorf("keep rejected body %s: %w", name, err)
	}
	_, err = os.Stat(filepath.Join(r.dir, name+".report"))
	again := err == nil
	if err := writeSynced(filepath.Join(r.dir, name+".body"), body); err != nil {
		return fmt.Errorf("keep rejected body: %w", err)
	}
	if err := writeSynced(filepath.Join(r.dir, name+".report"), report); err != nil {
		return fmt.Errorf("keep report of rejected body: %w", err)
	}
	if !again {
		r.used += int64(len(body) + len(report))
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

// kept is the number of rejected bodies in the folder.
func (r *rejectFolder) kept() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}
