//go:build linux && powercut

package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A disk is an ext4 file system in an image file, mounted where an agent keeps its data, and
// cut on demand.
//
// The image lies alone on a file system of its own, the shelf, which is a loop-mounted image
// too. The loop device between the two does direct I/O, so that a write is in the image when
// the disk's file system has handed it to its device, and not before: what lives in the page
// cache of the mounted file system is not in the image. To cut the power the shelf is frozen
// (FIFREEZE): the kernel waits for writes under way and holds every later one, which makes
// the copy of the image one moment of the device, between two writes. The disk's own file
// system is never frozen or synced by that; to do so would write out just what a cut loses.
// While the shelf stands still the agent may go on thinking and sending what is on the disk
// already, but no sync of it returns; it is killed before the shelf thaws. So neither the
// relay nor a till has seen anything from after the moment of the copy. The copy is mounted
// like a disk after a power cut: ext4 replays its journal.
//
// What it does not show: a drive that loses or reorders writes which it was handed and not
// told to flush, or that lies about a flush; a torn sector; another file system than ext4.
type disk struct {
	t     *testing.T
	at    string // where it is mounted
	shelf string // where the file system with the image is mounted
	loop  string // device under at
	mb    int    // its size

	mounts []string // all that this disk has mounted, in order
}

const diskMB = 512 // enough for any run, and more than the agent keeps free

// newDisk makes an empty disk of so many MB and mounts it until the end of the test. What
// uses it is started later, so that it is stopped earlier.
func newDisk(t *testing.T, at string, mb int) *disk {
	t.Helper()
	d := &disk{t: t, at: at, mb: mb}
	t.Cleanup(func() {
		for _, at := range slices.Backward(d.mounts) {
			if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", at, err)
			}
		}
	})
	d.shelf = d.newShelf()
	create(t, d.image(), mb)
	command(t, "mkfs.ext4", "-q", "-F", "-m", "0", d.image()) // -m 0: the agent is root here, and would get the blocks kept for root
	check(t, os.MkdirAll(at, 0o700))
	d.loop = d.mount(d.image(), d.at)
	return d
}

func (d *disk) newShelf() string {
	d.t.Helper()
	dir := d.t.TempDir()
	image, shelf := filepath.Join(dir, "shelf.img"), filepath.Join(dir, "shelf")
	create(d.t, image, d.mb+d.mb/4+64)
	command(d.t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)
	check(d.t, os.Mkdir(shelf, 0o700))
	d.mount(image, shelf)
	return shelf
}

func (d *disk) image() string { return image(d.shelf) }

func image(shelf string) string { return filepath.Join(shelf, "disk.img") }

// mount puts an image on a loop device and mounts that.
func (d *disk) mount(image, at string) (loop string) {
	d.t.Helper()
	loop = command(d.t, "losetup", "--find", "--show", "--direct-io=on", image)
	out, err := exec.Command("mount", "-t", "ext4", "-o", "errors=remount-ro", loop, at).CombinedOutput()
	// From here on the device goes when the mount does, or at once when there is none.
	command(d.t, "losetup", "--detach", loop)
	if err != nil {
		d.t.Fatalf("mount %s: %v: %s", image, err, out)
	}
	d.mounts = append(d.mounts, at)
	return loop
}

// unmount waits for what still closes its files.
func (d *disk) unmount(at string) {
	d.t.Helper()
	until := time.Now().Add(10 * time.Second)
	for {
		err := unix.Unmount(at, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(until) {
			d.t.Fatalf("unmount %s: %v", at, err)
		}
		wait(10 * time.Millisecond)
	}
	i := slices.Index(d.mounts, at)
	d.mounts = slices.Delete(d.mounts, i, i+1)
}

// cut takes the power. kill must end every process that uses the disk without waiting for
// it, and gone waits until they have ended. Afterwards d is the disk as the cut left it.
func (d *disk) cut(kill, gone func()) {
	d.t.Helper()
	left := d.newShelf()
	thaw := freeze(d.t, d.shelf)
	command(d.t, "cp", "--sparse=always", d.image(), image(left))
	kill()
	thaw()
	gone()
	d.unmount(d.at)
	d.unmount(d.shelf)
	check(d.t, os.Remove(d.shelf+".img"))
	d.shelf = left
	if !dirty(d.t, d.image()) {
		d.t.Fatal("the copied file system was not in use: that was no power cut")
	}
	d.loop = d.mount(d.image(), d.at)
}

// freeze holds a file system still until the function it returns is called.
func freeze(t *testing.T, at string) (thaw func()) {
	t.Helper()
	const fifreeze, fithaw = 0xC0045877, 0xC0045878
	dir, err := os.Open(at)
	check(t, err)
	check(t, unix.IoctlSetInt(int(dir.Fd()), fifreeze, 0))
	thawed := false
	thaw = func() {
		if thawed {
			return
		}
		thawed = true
		if err := errors.Join(unix.IoctlSetInt(int(dir.Fd()), fithaw, 0), dir.Close()); err != nil {
			t.Errorf("thaw %s: %v", at, err)
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// dirty says whether an ext4 image has a journal to be replayed (superblock: incompatible
// feature 4).
func dirty(t *testing.T, image string) bool {
	t.Helper()
	f, err := os.Open(image)
	check(t, err)
	defer f.Close()
	var features [4]byte
	_, err = f.ReadAt(features[:], 1024+0x60)
	check(t, err)
	return binary.LittleEndian.Uint32(features[:])&4 != 0
}

// free is the space left on the disk, MB.
func (d *disk) free() int {
	d.t.Helper()
	var st unix.Statfs_t
	check(d.t, unix.Statfs(d.at, &st))
	return int(st.Bavail) * int(st.Bsize) >> 20
}

// writeBack is the system's own write-back in a hurry, until stop is closed: it hands pieces
// of files that nobody has synced to the device, here and there, as the page writer may at
// any time. So a cut finds some pages of Badger's files new, some old and some empty.
func writeBack(dir string, random *rand.Rand, stop <-chan struct{}) {
	const piece = 64 << 10
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		files, _ := filepath.Glob(filepath.Join(dir, "index", "*"))
		segments, _ := filepath.Glob(filepath.Join(dir, "*.seg"))
		if files = append(files, segments...); len(files) == 0 {
			continue
		}
		f, err := os.Open(files[random.IntN(len(files))])
		if err != nil {
			continue // removed meanwhile
		}
		if info, err := f.Stat(); err == nil && info.Size() > 0 {
			_ = unix.SyncFileRange(int(f.Fd()), random.Int64N(info.Size())/piece*piece, piece, unix.SYNC_FILE_RANGE_WRITE)
		}
		f.Close()
	}
}

// create makes an empty file of so many MB that takes no space yet.
func create(t *testing.T, path string, mb int) {
	t.Helper()
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, os.Truncate(path, int64(mb)<<20))
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// number is a number from the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatal(fmt.Errorf("%s is %q, want a number", name, text))
	}
	return n
}

// TestACutTakesWhatWasNotSynced holds the cut itself to its word.
func TestACutTakesWhatWasNotSynced(t *testing.T) {
	at := filepath.Join(t.TempDir(), "at")
	d := newDisk(t, at, diskMB)
	write := func(name, text string, sync bool) {
		f, err := os.Create(filepath.Join(at, name))
		check(t, err)
		_, err = f.WriteString(text)
		check(t, err)
		if sync {
			check(t, f.Sync())
		}
		check(t, f.Close())
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(at, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(text)
	}
	write("cached", "cached", false)
	write("synced", "synced", true)
	late := make(chan struct{})
	d.cut(func() {
		go func() {
			defer close(late)
			write("late", "late", true)
		}()
		select {
		case <-late:
			t.Error("a sync returned while the power was cut")
		case <-time.After(200 * time.Millisecond):
		}
	}, func() { <-late })
	for name, want := range map[string]string{"cached": "", "synced": "synced", "late": ""} {
		if got := read(name); got != want {
			t.Errorf("after the cut %s holds %q, want %q", name, got, want)
		}
	}
}
