package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// snapshotKeys are the first bytes of the index's keys that a snapshot holds: everything but
// the queue, the point and the ring.
const snapshotKeys = "isrfeap"

// snapshotWindow is enough for what repeats in a snapshot.
const snapshotWindow = 64 << 10

// Snapshot writes what the index holds beside the queue (keys within RetainFor, states,
// replicas, acks, every epoch's seal) to a file of its own, synced, as of one point.
func (j *Journal) Snapshot() error {
	j.snapMu.Lock()
	defer j.snapMu.Unlock()
	var p point
	t := j.db.view()
	defer t.discard()
	raw, err := t.get(keyPoint)
	if raw == nil && err == nil {
		return nil // nothing was accepted yet
	}
	if err == nil {
		p, err = decodePoint(raw)
	}
	n := uint64(0)
	if err == nil {
		n, err = j.nextSnapshot()
	}
	if err == nil {
		err = replaceFile(j.opt.Disk, j.snapshotPath(n), func(w io.Writer) error {
			z, err := packer(w, snapshotWindow)
			if err != nil {
				return err
			}
			return errors.Join(j.writeSnapshot(t, p, z), z.Close())
		})
	}
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	j.mu.Lock()
	j.snapped, j.snappedAt = p, j.ageing.age
	j.mu.Unlock()
	list, err := j.snapshots()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, path := range list[min(2, len(list)):] {
		if err := j.opt.Disk.Remove(path); err != nil {
			return fmt.Errorf("drop old snapshot: %w", err)
		}
	}
	return nil
}

func (j *Journal) writeSnapshot(t view, p point, w io.Writer) error {
	if _, err := w.Write(appendFrame(nil, typeHeader, 0, p.encode())); err != nil {
		return err
	}
	n := uint64(0)
	put := func(k, v []byte) error {
		if k[0] == 'i' {
			if known, ok := decodeKnown(v); !ok || j.expired(known) {
				return nil
			}
		}
		n++
		_, err := w.Write(appendFrame(nil, typePair, 0, putBytes(putBytes(nil, k), v)))
		return err
	}
	for i := range len(snapshotKeys) {
		if err := t.each([]byte{snapshotKeys[i]}, []byte{snapshotKeys[i]}, put); err != nil {
			return err
		}
	}
	for _, key := range [][]byte{keyLast, keyAge} {
		if err := t.each(key, key, put); err != nil {
			return err
		}
	}
	_, err := w.Write(appendFrame(nil, typeEnd, 0, binary.AppendUvarint(nil, n)))
	return err
}

func (j *Journal) snapshotPath(n uint64) string {
	return filepath.Join(j.opt.Dir, fmt.Sprintf("%020d.snap", n))
}

// nextSnapshot is a number above those of all snapshots. It counts files, not time and not
// writes to the index: a clock is set back, and a fresh index counts from 1 again.
func (j *Journal) nextSnapshot() (uint64, error) {
	list, err := j.snapshots()
	if err != nil || len(list) == 0 {
		return 1, err
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(list[0]), ".snap"), 10, 64)
	return n + 1, err
}

// snapshots are the snapshot files, newest first.
func (j *Journal) snapshots() ([]string, error) {
	files, err := j.opt.Disk.List(j.opt.Dir)
	var paths []string
	for _, f := range slices.Backward(files) { // by name: the numbers have a fixed width
		if strings.HasSuffix(f.Name, ".snap") {
			paths = append(paths, filepath.Join(j.opt.Dir, f.Name))
		}
	}
	return paths, err
}

// loadSnapshot fills a fresh index from the newest snapshot that is whole, and gives the
// point that it stands for; false when there is none.
func (j *Journal) loadSnapshot() (point, bool, error) {
	paths, err := j.snapshots()
	if err != nil {
		return point{}, false, err
	}
	for _, path := range paths {
		data, err := readFile(j.opt.Disk, path)
		if err != nil {
			return point{}, false, err
		}
		c := j.db.change()
		p, ok := readSnapshot(data, c.set)
		if !ok {
			c.txn.discard()
			j.damaged("snapshot %s is not whole", filepath.Base(path))
			continue
		}
		if err := c.commit(); err != nil {
			return point{}, false, err
		}
		return p, true, nil
	}
	return point{}, false, nil
}

// readSnapshot hands over the pairs of keys and values; false when the file is not whole.
func readSnapshot(file []byte, set func(k, v []byte)) (p point, whole bool) {
	data, err := unpack(file, -1)
	if err != nil {
		return p, false
	}
	n, headed := uint64(0), false
	_, damage, err := scan(data, 0, func(f frame) (err error) {
		d := decoder{b: f.payload}
		switch f.typ {
		case typeHeader:
			headed = true
			p, err = decodePoint(f.payload)
		case typePair:
			n++
			k, v := d.bytes(), d.bytes()
			set(k, v)
			err = d.err()
		case typeEnd:
			whole = d.uvarint() == n && headed
		}
		return err
	})
	return p, whole && err == nil && len(damage) == 0
}
