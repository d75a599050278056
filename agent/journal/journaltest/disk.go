// Package journaltest has a disk in memory that fails on purpose: it tears writes, loses
// what was not synced, fills up, and dies at any step that a test names.
package journaltest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/storelay/storelay/agent/journal"
)

// sector is what a disk writes whole or not at all, in bytes.
const sector = 512

// ErrDead is the answer of a disk whose machine has lost its power, until Crash.
var ErrDead = errors.New("the power is gone")

// A Disk is a journal.Disk in memory. It is safe for concurrent use.
type Disk struct {
	// Capacity is how much fits, in bytes; what is created beyond it gets ENOSPC. 0 = no end.
	Capacity int64
	// Short, when set, says how many of n bytes a write takes.
	Short func(path string, n int) int
	// FreeBytes, when set, is what Free says, whatever Capacity has left.
	FreeBytes func() uint64
	// ReadOnly answers every change with EROFS.
	ReadOnly bool
	// Lies lets syncs return at once and do nothing, as some hardware does.
	Lies bool
	// Fail, when set, is asked before each step that changes or reads something; its error is
	// the step's. Step is "create", "write", "datasync" and so on.
	Fail func(step, path string) error

	now  func() time.Time
	rand *rand.Rand

	mu     sync.Mutex // guards what follows
	steps  int
	dieAt  int // the step at which the power goes; 0 = never
	dead   bool
	life   int // counts Crashes: handles of an earlier life are dead
	names  map[string]*inode
	synced map[string]*inode // what the folders say on the platter
	locked map[string]int    // life in which it was locked
}

// An inode is a file's content: as the system sees it, and as it is on the platter.
type inode struct {
	data    []byte
	platter []byte
	dirty   map[int64]bool // sectors that differ, by number
	mod     time.Time
}

// NewDisk makes an empty disk whose every choice comes from the seed.
func NewDisk(seed uint64, now func() time.Time) *Disk {
	return &Disk{now: now, rand: rand.New(rand.NewPCG(seed, 7)), names: map[string]*inode{}, synced: map[string]*inode{}, locked: map[string]int{}}
}

// Steps is how many steps the disk has done: writes, syncs, creations, removals, renames.
func (d *Disk) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// DieAt lets the power go at the nth step from now on.
func (d *Disk) DieAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dieAt = d.steps + n
}

// Dead says that the power has gone.
func (d *Disk) Dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// Kill ends the process that uses the disk: the system keeps all it was given, and locks are
// free again. Handles of that process are dead.
func (d *Disk) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.dieAt = false, 0
	d.life++
}

// Crash is a power cut and the next boot: what was synced is there; of the rest each sector
// and each name may be, or not.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.dieAt = false, 0
	d.life++
	now := map[string]*inode{}
	for _, name := range d.sorted(d.names, d.synced) {
		node, was := d.names[name], d.synced[name]
		if node != was && d.rand.IntN(2) == 0 { // the change of the name was not written
			node = was
		}
		if node != nil {
			now[name] = node
		}
	}
	done := map[*inode]bool{}
	for _, name := range d.sorted(now, nil) {
		if n := now[name]; !done[n] {
			done[n] = true
			d.tear(n)
		}
	}
	d.names, d.synced = now, cloneNames(now)
}

func cloneNames(m map[string]*inode) map[string]*inode {
	out := make(map[string]*inode, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// sorted are the names of both, so that the seed alone decides.
func (d *Disk) sorted(a, b map[string]*inode) []string {
	seen := map[string]bool{}
	var all []string
	for _, m := range []map[string]*inode{a, b} {
		for name := range m {
			if !seen[name] {
				seen[name] = true
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	return all
}

// tear lets some of the sectors that were not synced reach the platter.
func (d *Disk) tear(n *inode) {
	size := len(n.platter)
	if len(n.data) != size && d.rand.IntN(2) == 0 {
		size = len(n.data)
	}
	out := make([]byte, size)
	copy(out, n.platter)
	var dirty []int64
	for s := range n.dirty {
		dirty = append(dirty, s)
	}
	slices.Sort(dirty)
	// A writer in order is the usual case; any order is possible.
	whole := d.rand.IntN(3)
	for i, s := range dirty {
		keep := d.rand.IntN(2) == 0
		if whole == 0 {
			keep = i < len(dirty)/2
		}
		from := s * sector
		if !keep || from >= int64(len(n.data)) || from >= int64(size) {
			continue
		}
		copy(out[from:], n.data[from:min(from+sector, int64(len(n.data)))])
	}
	n.data, n.platter, n.dirty = out, bytes.Clone(out), map[int64]bool{}
}

// Clone copies the disk as its image would be: with everything that was written.
func (d *Disk) Clone(seed uint64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := NewDisk(seed, d.now)
	c.Capacity = d.Capacity
	for name, n := range d.names {
		c.names[name] = &inode{data: bytes.Clone(n.data), platter: bytes.Clone(n.data), dirty: map[int64]bool{}, mod: n.mod}
	}
	c.synced = cloneNames(c.names)
	return c
}

// Files lists the files whose name ends so, in order.
func (d *Disk) Files(suffix string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, name := range d.sorted(d.names, nil) {
		if strings.HasSuffix(name, suffix) {
			out = append(out, name)
		}
	}
	return out
}

// Damage changes a file's bytes behind everybody's back.
func (d *Disk) Damage(path string, change func([]byte) []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.names[path]; n != nil {
		n.data = change(bytes.Clone(n.data))
		n.platter, n.dirty = bytes.Clone(n.data), map[int64]bool{}
	}
}

// Delete removes a file for good.
func (d *Disk) Delete(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.names, path)
	delete(d.synced, path)
}

// step counts a step and says whether it may be done. It needs d.mu.
func (d *Disk) step(what, path string, life int, changes bool) error {
	if life >= 0 && life != d.life || d.dead {
		return fmt.Errorf("%s %s: %w", what, filepath.Base(path), ErrDead)
	}
	if changes {
		if d.ReadOnly {
			return &fs.PathError{Op: what, Path: path, Err: syscall.EROFS}
		}
		d.steps++
		if d.dieAt > 0 && d.steps >= d.dieAt {
			d.dead = true
			return fmt.Errorf("%s %s: %w", what, filepath.Base(path), ErrDead)
		}
	}
	if d.Fail != nil {
		if err := d.Fail(what, path); err != nil {
			return &fs.PathError{Op: what, Path: path, Err: err}
		}
	}
	return nil
}

func (d *Disk) used() (n int64) {
	for _, i := range d.names {
		n += int64(len(i.data))
	}
	return n
}

// MkdirAll implements journal.Disk.
func (d *Disk) MkdirAll(string) error { return nil }

// List implements journal.Disk.
func (d *Disk) List(dir string) ([]journal.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("list", dir, -1, false); err != nil {
		return nil, err
	}
	var list []journal.FileInfo
	for _, name := range d.sorted(d.names, nil) {
		if filepath.Dir(name) == filepath.Clean(dir) {
			n := d.names[name]
			list = append(list, journal.FileInfo{Name: filepath.Base(name), Size: int64(len(n.data)), ModTime: n.mod})
		}
	}
	return list, nil
}

// Open implements journal.Disk.
func (d *Disk) Open(path string) (io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("open", path, -1, false); err != nil {
		return nil, err
	}
	n := d.names[path]
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return io.NopCloser(bytes.NewReader(bytes.Clone(n.data))), nil
}

// Create implements journal.Disk.
func (d *Disk) Create(path string, room int64) (journal.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("create", path, -1, true); err != nil {
		return nil, err
	}
	if d.names[path] != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	if d.Capacity > 0 && d.used()+room > d.Capacity {
		return nil, &fs.PathError{Op: "create", Path: path, Err: syscall.ENOSPC}
	}
	n := &inode{data: make([]byte, room), dirty: map[int64]bool{}, mod: d.now()}
	for s := int64(0); s*sector < room; s++ {
		n.dirty[s] = true
	}
	d.names[path] = n
	return &file{d, path, n, d.life}, nil
}

// Remove implements journal.Disk.
func (d *Disk) Remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.names[path] == nil {
		return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
	}
	if err := d.step("remove", path, -1, true); err != nil {
		return err
	}
	delete(d.names, path)
	return nil
}

// Rename implements journal.Disk.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("rename", from, -1, true); err != nil {
		return err
	}
	n := d.names[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	delete(d.names, from)
	d.names[to] = n
	return nil
}

// SyncDir implements journal.Disk.
func (d *Disk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("syncdir", dir, -1, true); err != nil {
		return err
	}
	if !d.Lies {
		dir = filepath.Clean(dir)
		for name, n := range d.names {
			if filepath.Dir(name) == dir {
				d.synced[name] = n
			}
		}
		for name := range d.synced {
			if d.names[name] == nil && filepath.Dir(name) == dir {
				delete(d.synced, name)
			}
		}
	}
	return nil
}

// Free implements journal.Disk.
func (d *Disk) Free(string) (uint64, error) {
	if d.FreeBytes != nil {
		return d.FreeBytes(), nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.Capacity == 0 {
		return 1 << 40, nil
	}
	return uint64(max(0, d.Capacity-d.used())), nil
}

// Lock implements journal.Disk.
func (d *Disk) Lock(path string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step("lock", path, -1, false); err != nil {
		return nil, err
	}
	if life, held := d.locked[path]; held && life == d.life {
		return nil, errors.New("another process has it open")
	}
	d.locked[path] = d.life
	return unlock{d, path}, nil
}

type unlock struct {
	d    *Disk
	path string
}

func (u unlock) Close() error {
	u.d.mu.Lock()
	defer u.d.mu.Unlock()
	delete(u.d.locked, u.path)
	return nil
}

// A file is a handle of one life of the machine.
type file struct {
	d    *Disk
	path string
	n    *inode
	life int
}

// WriteAt implements journal.File.
func (f *file) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step("write", f.path, f.life, true); err != nil {
		if f.d.dead && f.life == f.d.life { // torn: a part of it is on its way
			f.put(b[:f.d.rand.IntN(len(b)+1)], off)
		}
		return 0, err
	}
	if f.d.Short != nil {
		if n := f.d.Short(f.path, len(b)); n < len(b) {
			f.put(b[:n], off)
			return n, io.ErrShortWrite
		}
	}
	if grow := off + int64(len(b)) - int64(len(f.n.data)); f.d.Capacity > 0 && grow > 0 && f.d.used()+grow > f.d.Capacity {
		fits := max(0, int64(len(b))-grow)
		f.put(b[:fits], off)
		return int(fits), &fs.PathError{Op: "write", Path: f.path, Err: syscall.ENOSPC}
	}
	f.put(b, off)
	return len(b), nil
}

func (f *file) put(b []byte, off int64) {
	if need := int(off) + len(b); need > len(f.n.data) {
		f.n.data = append(f.n.data, make([]byte, need-len(f.n.data))...)
	}
	copy(f.n.data[off:], b)
	for s := off / sector; s*sector < off+int64(len(b)); s++ {
		f.n.dirty[s] = true
	}
	f.n.mod = f.d.now()
}

// Truncate implements journal.File.
func (f *file) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step("truncate", f.path, f.life, true); err != nil {
		return err
	}
	if size < int64(len(f.n.data)) {
		f.n.data = bytes.Clone(f.n.data[:size])
	} else {
		f.n.data = append(f.n.data, make([]byte, size-int64(len(f.n.data)))...)
	}
	return nil
}

// Datasync implements journal.File.
func (f *file) Datasync() error { return f.sync("datasync") }

// Sync implements journal.File.
func (f *file) Sync() error { return f.sync("sync") }

func (f *file) sync(what string) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.step(what, f.path, f.life, true); err != nil {
		return err
	}
	if !f.d.Lies {
		if len(f.n.platter) == len(f.n.data) {
			for s := range f.n.dirty {
				from := s * sector
				if from < int64(len(f.n.data)) {
					copy(f.n.platter[from:], f.n.data[from:min(from+sector, int64(len(f.n.data)))])
				}
			}
		} else {
			f.n.platter = bytes.Clone(f.n.data)
		}
		f.n.dirty = map[int64]bool{}
	}
	return nil
}

// Close implements journal.File.
func (f *file) Close() error { return nil }
