package sim

import (
	"io"
	"strings"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
)

// A rebased disk has the paths of one PC's own folder, so that its image can be put into
// another PC.
type rebased struct {
	*journaltest.Disk
	dir string
}

func (r rebased) path(p string) string { return "/pc" + strings.TrimPrefix(p, r.dir) }

// List implements journal.Disk.
func (r rebased) List(dir string) ([]journal.FileInfo, error) { return r.Disk.List(r.path(dir)) }

// Open implements journal.Disk.
func (r rebased) Open(path string) (io.ReadCloser, error) { return r.Disk.Open(r.path(path)) }

// Create implements journal.Disk.
func (r rebased) Create(path string, room int64) (journal.File, error) {
	return r.Disk.Create(r.path(path), room)
}

// Remove implements journal.Disk.
func (r rebased) Remove(path string) error { return r.Disk.Remove(r.path(path)) }

// Rename implements journal.Disk.
func (r rebased) Rename(from, to string) error { return r.Disk.Rename(r.path(from), r.path(to)) }

// SyncDir implements journal.Disk.
func (r rebased) SyncDir(dir string) error { return r.Disk.SyncDir(r.path(dir)) }

// Lock implements journal.Disk.
func (r rebased) Lock(path string) (io.Closer, error) { return r.Disk.Lock(r.path(path)) }
