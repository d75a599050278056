package journal

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A Disk is the file system under a journal's segments and snapshots. The system's own is
// used unless Options.Disk says otherwise; journaltest has one in memory that fails on
// purpose. A Disk is safe for concurrent use.
type Disk interface {
	MkdirAll(dir string) error
	// List gives the files of a folder by name.
	List(dir string) ([]FileInfo, error)
	// Open reads a file from its beginning; fs.ErrNotExist when there is none.
	Open(path string) (io.ReadCloser, error)
	// Create makes a file of so many bytes whose blocks are taken already; fs.ErrExist when
	// there is one.
	Create(path string, room int64) (File, error)
	Remove(path string) error
	// Rename takes the place of a file that has the new name.
	Rename(from, to string) error
	// SyncDir makes the names in a folder durable.
	SyncDir(dir string) error
	// Free is the space left on the disk that holds dir, in bytes.
	Free(dir string) (uint64, error)
	// Lock takes a lock that dies with the process; errLocked when another has it.
	Lock(path string) (io.Closer, error)
}

// A FileInfo is a file of a folder.
type FileInfo struct {
	Name    string
	Size    int64
	ModTime time.Time
}

// A File is a file that is written.
type File interface {
	io.WriterAt
	Truncate(size int64) error
	// Datasync makes the bytes durable that were written within the room of the file; Sync its
	// size and times too. After an error nothing is known of what was written before it.
	Datasync() error
	Sync() error
	Close() error
}

// osDisk is the system's own.
type osDisk struct{}

func (osDisk) MkdirAll(dir string) error               { return os.MkdirAll(dir, 0o700) }
func (osDisk) Open(path string) (io.ReadCloser, error) { return os.Open(path) }
func (osDisk) Remove(path string) error                { return os.Remove(path) }
func (osDisk) Rename(from, to string) error            { return os.Rename(from, to) }
func (osDisk) SyncDir(dir string) error                { return syncDir(dir) }
func (osDisk) Free(dir string) (uint64, error)         { return freeBytes(dir) }

func (osDisk) Lock(path string) (io.Closer, error) {
	f, err := lockFile(path)
	if err != nil {
		return nil, err // not a nil *os.File in an interface
	}
	return f, nil
}

func (osDisk) List(dir string) ([]FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		if !e.IsDir() {
			list = append(list, FileInfo{info.Name(), info.Size(), info.ModTime()})
		}
	}
	return list, nil
}

func (osDisk) Create(path string, room int64) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if room > 0 {
		if err := takeBlocks(f, room); err != nil {
			return nil, errors.Join(err, f.Close(), os.Remove(path))
		}
	}
	return osFile{f}, nil
}

// takeBlocks gives f its size in blocks that have been written and synced once. Blocks that are only
// allocated will not do: a sync of the first data in them has more to do, and when ext4 turns
// read-only under it, it says that all is well and the data are gone.
func takeBlocks(f *os.File, size int64) error {
	if err := preallocate(f, size); err != nil {
		return err
	}
	if err := writeZeros(f, size); err != nil {
		return err
	}
	return f.Sync()
}

type osFile struct{ *os.File }

func (f osFile) Datasync() error { return dataSync(f.File) }

// readFile reads a whole file.
func readFile(d Disk, path string) ([]byte, error) {
	f, err := d.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// replaceFile writes a file under its final name: temp, sync, rename, sync dir.
func replaceFile(d Disk, path string, write func(io.Writer) error) error {
	tmp := path + ".tmp"
	if err := d.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.Create(tmp, 0)
	if err != nil {
		return err
	}
	err = write(&fileWriter{f: f})
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = d.Rename(tmp, path)
	}
	if err != nil {
		if rm := d.Remove(tmp); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
			err = errors.Join(err, rm)
		}
		return err
	}
	return d.SyncDir(filepath.Dir(path))
}

// A fileWriter writes a file from its beginning.
type fileWriter struct {
	f   File
	off int64
}

func (w *fileWriter) Write(b []byte) (int, error) {
	n, err := w.f.WriteAt(b, w.off)
	w.off += int64(n)
	return n, err
}
