package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/storelay/storelay/protocol/mutant"
)

const (
	keepEvery     = time.Minute
	snapshotEvery = 24 * time.Hour
	flattenEvery  = time.Hour
	flattenFrom   = 8 << 20 // bytes of the index that are worth it when nothing waits
)

// keepAll is the keeper: it compresses what is acknowledged, takes snapshots, and drops what
// the retention rule allows.
func (j *Journal) keepAll(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	var flat struct {
		at   time.Time
		size int64
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := j.keep(); err != nil {
			j.opt.Log.Error("retention failed, nothing is dropped", "err", err)
		}
		_ = j.do(func() error { j.goOnWithFork(); return nil }) // it has logged, or the journal ends
		j.mu.Lock()
		idle := j.waiting == 0
		j.mu.Unlock()
		if idle && !j.Tight() && j.db.size() > max(flattenFrom, flat.size*3/2) && time.Since(flat.at) > flattenEvery {
			if err := j.flatten(ctx); err != nil {
				j.opt.Log.Warn("index was not made smaller", "err", err)
			}
			flat.at, flat.size = time.Now(), j.db.size()
		}
	}
}

// flatten takes out of the index what is acknowledged; the indexer lends a hand, since nobody
// else may write meanwhile.
func (j *Journal) flatten(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case j.flushes <- done:
	case <-ctx.Done():
		return nil
	}
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		return j.db.flatten()
	case <-ctx.Done():
		return nil
	}
}

// Keep does one round of retention, for a journal that nobody Runs.
func (j *Journal) Keep() error { return j.keep() }

// keep does one round of retention. Segments with a record that is not acknowledged are
// never touched; acknowledged ones are compressed, and dropped RetainFor later, or first when
// the disk is low, but only if a snapshot holds what they would bring back.
func (j *Journal) keep() error {
	j.db.calm()
	j.keepReserve()
	signal(j.acks) // some may have waited for room
	if err := j.grow(); err != nil {
		return err
	}
	if err := j.compress(); err != nil {
		return err
	}
	free, err := j.opt.FreeBytes(j.opt.Dir)
	if err != nil {
		return fmt.Errorf("read free space: %w", err)
	}
	low := free < 2*j.opt.FloorBytes
	if err := j.findSnapshot(); err != nil {
		return err
	}
	var due []*segment
	j.mu.Lock()
	for _, s := range j.segs {
		if !mutant.On(mutant.TrimTooEarly) && (!s.packed || !j.delivered(s) || !low && j.ageing.age-s.since < j.opt.RetainFor) {
			break // oldest first, without holes
		}
		due = append(due, s)
	}
	last, young := j.snapped, j.ageing.age-j.snappedAt < snapshotEvery
	j.mu.Unlock()
	if len(due) > 0 && (last.seg <= due[len(due)-1].ord) || last.seg == 0 || !young {
		if low { // first what the snapshot before covers: it makes room for the next
			if err := j.drop(due); err != nil {
				return err
			}
		}
		if err := j.purge(); err != nil {
			return err
		}
		if err := j.Snapshot(); err != nil {
			return err
		}
	}
	return j.drop(due)
}

// delivered says that every record of a segment is acknowledged. It needs mu.
func (j *Journal) delivered(s *segment) bool {
	e := j.ordinal(s.epoch)
	return e != nil && s.next-1 <= e.acked
}

// findSnapshot looks up, once after a start, what the newest whole snapshot covers, so that
// a disk that is full already need not hold another one before something can be dropped.
func (j *Journal) findSnapshot() error {
	j.mu.Lock()
	known := j.snapped.seg > 0
	j.mu.Unlock()
	if known {
		return nil
	}
	j.snapMu.Lock()
	defer j.snapMu.Unlock()
	paths, err := j.snapshots()
	if err != nil || len(paths) == 0 {
		return err
	}
	data, err := readFile(j.opt.Disk, paths[0])
	if err != nil {
		return fmt.Errorf("read newest snapshot: %w", err)
	}
	p, whole := readSnapshot(data, func(_, _ []byte) {})
	if !whole {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.snapped = p // snappedAt stays unknown: a new one is due
	return nil
}

// compress packs the closed segments whose records are all acknowledged.
func (j *Journal) compress() error {
	j.mu.Lock()
	var ready []*segment
	for i, s := range j.segs {
		if i+1 < len(j.segs) && !s.packed && j.delivered(s) {
			ready = append(ready, s)
		}
	}
	j.mu.Unlock()
	for _, s := range ready {
		if err := j.pack(s); err != nil {
			return fmt.Errorf("compress segment %d: %w", s.ord, err)
		}
	}
	return nil
}

func (j *Journal) pack(s *segment) error {
	data, err := j.readSegment(s.ord, false, s.end)
	if err != nil {
		return err
	}
	end, broken, err := scan(data, headerRoom, func(frame) error { return nil })
	if err != nil {
		return err
	}
	if len(broken) > 0 || end < s.end {
		j.damaged("segment %d: not all of it is readable; its records are acknowledged", s.ord)
	}
	size := int64(0)
	err = replaceFile(j.opt.Disk, j.segmentPath(s.ord, true), func(w io.Writer) error {
		z, err := packer(w, int64(len(data)))
		if err != nil {
			return err
		}
		_, err = z.Write(data)
		err = errors.Join(err, z.Close())
		size = w.(*fileWriter).off
		return err
	})
	if err != nil {
		return err
	}
	j.mu.Lock()
	age := j.ageing.age
	j.mu.Unlock()
	if err := j.note(packedKey(s.ord), binary.AppendVarint(nil, age.Milliseconds())); err != nil {
		return err
	}
	j.files.Lock()
	defer j.files.Unlock()
	if err := j.opt.Disk.Remove(j.segmentPath(s.ord, false)); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s.packed, s.size, s.since = true, size, j.ageing.age
	return nil
}

// purge takes keys off the index that have expired and whose records are acknowledged, and what
// it says of segments that were dropped.
func (j *Journal) purge() error {
	keys, err := j.keysOf(func(k known) bool { return j.expired(k) && k.seq <= j.ackedOf(k.ord) })
	if err != nil {
		return err
	}
	j.mu.Lock()
	oldest := []byte{'q'} // beyond all of them
	if len(j.segs) > 0 {
		oldest = packedKey(j.segs[0].ord)
	}
	j.mu.Unlock()
	err = j.db.each([]byte{'p'}, func(k, v []byte) error {
		if bytes.Compare(k, oldest) < 0 {
			keys = append(keys, pair{bytes.Clone(k), bytes.Clone(v)})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("purge ages: %w", err)
	}
	return j.forget(keys)
}

// keysOf are the idempotency keys in the index whose records are such.
func (j *Journal) keysOf(such func(known) bool) (keys []pair, err error) {
	err = j.db.each([]byte{'i'}, func(k, v []byte) error {
		if known, ok := decodeKnown(v); ok && such(known) {
			keys = append(keys, pair{bytes.Clone(k), bytes.Clone(v)})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look through keys: %w", err)
	}
	return keys, nil
}

// forget takes pairs off the index that have not changed meanwhile: a key may have been
// accepted anew. It does not when the disk has no room for the index.
func (j *Journal) forget(pairs []pair) error {
	if s, err := j.space(); err != nil || s.brimful() || j.refused.Load() {
		return err
	}
	j.keyMu.Lock()
	defer j.keyMu.Unlock()
	c := j.db.change()
	for _, p := range pairs {
		v, err := j.db.get(p.k)
		if err != nil {
			c.txn.discard()
			return fmt.Errorf("forget keys: %w", err)
		}
		if bytes.Equal(v, p.v) {
			c.del(p.k)
		}
	}
	if err := c.commit(); err != nil {
		return fmt.Errorf("forget keys: %w", err)
	}
	return nil
}

// drop removes segments that a snapshot covers.
func (j *Journal) drop(due []*segment) error {
	j.files.Lock()
	defer j.files.Unlock()
	for _, s := range due {
		j.mu.Lock()
		covered := j.snapped.seg > s.ord
		j.mu.Unlock()
		if !covered {
			return nil
		}
		j.mu.Lock()
		gone := len(j.segs) == 0 || j.segs[0] != s // dropped before
		j.mu.Unlock()
		if gone {
			continue
		}
		if err := j.opt.Disk.Remove(j.segmentPath(s.ord, s.packed)); err != nil {
			return fmt.Errorf("drop segment %d: %w", s.ord, err)
		}
		j.mu.Lock()
		j.segs = j.segs[1:]
		j.mu.Unlock()
	}
	return nil
}
