package ca

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// revokedFile is the deny list in an authority's folder. It is backed up with the authority
// and apart from the database, so that an older database that is restored does not let a
// revoked agent in again.
const revokedFile = "revoked.jsonl"

// A DenyList is the agents that were revoked, one JSON object a line, only ever appended to.
// Its methods are safe for concurrent use, also beside another process that appends.
type DenyList struct {
	path string

	mu     sync.Mutex // guards what follows
	read   fs.FileInfo
	agents []protocol.Origin
	set    map[protocol.Origin]bool
}

type revoked struct {
	protocol.Origin
	At time.Time `json:"at"`
}

// Denied is the deny list of the authority in dir. A file that is not there is an empty list.
func Denied(dir string) *DenyList { return &DenyList{path: filepath.Join(dir, revokedFile)} }

// Add makes an agent's entry durable.
func (d *DenyList) Add(o protocol.Origin, at time.Time) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("deny %s: %w", o, err)
		}
	}()
	if has, err := d.Has(o); err != nil || has {
		return err
	}
	line, err := json.Marshal(revoked{o, at.UTC()})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(d.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	// A line that a crash tore is ended first, so that it spoils no other.
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, info.Size()-1); last[0] != '\n' {
			line = append([]byte("\n"), line...)
		}
	}
	if err == nil {
		_, err = f.Write(append(line, '\n'))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// Has says whether an agent is denied.
func (d *DenyList) Has(o protocol.Origin) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refresh(); err != nil {
		return false, fmt.Errorf("read deny list: %w", err)
	}
	return d.set[o], nil
}

// All lists the agents that are denied, in the order in which they were.
func (d *DenyList) All() ([]protocol.Origin, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refresh(); err != nil {
		return nil, fmt.Errorf("read deny list: %w", err)
	}
	return slices.Clone(d.agents), nil
}

// refresh reads the file when it has changed; mu is held.
func (d *DenyList) refresh() error {
	info, err := os.Stat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		d.read, d.agents, d.set = nil, nil, nil
		return nil
	} else if err != nil {
		return err
	}
	if d.read != nil && os.SameFile(d.read, info) && d.read.Size() == info.Size() && d.read.ModTime().Equal(info.ModTime()) {
		return nil
	}
	data, err := os.ReadFile(d.path)
	if err != nil {
		return err
	}
	agents, set := []protocol.Origin(nil), map[protocol.Origin]bool{}
	lines := bytes.Split(data, []byte("\n"))
	for i, line := range lines {
		var r revoked
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if err := json.Unmarshal(line, &r); err != nil {
			if torn(line) {
				continue // a crash: whoever revoked was told so
			}
			return fmt.Errorf("%s: line %d: %w", d.path, i+1, err)
		}
		if !set[r.Origin] {
			set[r.Origin] = true
			agents = append(agents, r.Origin)
		}
	}
	d.read, d.agents, d.set = info, agents, set
	return nil
}

// torn says whether a line is the beginning of one.
func torn(line []byte) bool {
	var v any
	err := json.Unmarshal(line, &v)
	var syntax *json.SyntaxError
	return errors.As(err, &syntax) && syntax.Offset == int64(len(line)) && bytes.HasPrefix([]byte(`{"chain":`), line[:min(len(line), 9)])
}
