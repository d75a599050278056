package journal

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// recover brings files, index and memory in order. It runs in Open, alone.
func (j *Journal) recover() error {
	j.keepReserve()
	if s, err := j.space(); err == nil && s.brimful() {
		return fmt.Errorf("%w: %d MiB free, %d needed to start; make room on the disk", ErrFull, s.free>>20, s.floor>>23)
	}
	voids, err := j.listSegments()
	if err != nil {
		return err
	}
	var why string
	if j.db, why, err = openIndex(&j.opt); err != nil {
		return err
	}
	fresh, err := j.fillIndex(why)
	if err != nil {
		return err
	}
	if err := j.loadIndex(); err != nil {
		return err
	}
	if err := j.mendTail(); err != nil {
		return err
	}
	if aside, err := j.setUnreadableAside(); err != nil {
		return err
	} else if aside {
		if err := j.mendTail(); err != nil {
			return err
		}
	}
	for _, path := range voids { // after the tail that their headers cut is cut for good
		if err := j.opt.Disk.Remove(path); err != nil {
			return fmt.Errorf("remove void segment: %w", err)
		}
	}
	if err := j.opt.Disk.SyncDir(j.opt.Dir); err != nil {
		return err
	}
	if err := j.linkEpochs(); err != nil {
		return err
	}
	if err := j.replay(fresh); err != nil {
		return fmt.Errorf("bring index up to the journal: %w", err)
	}
	j.waiting = 0
	for _, e := range j.epochs {
		e.visible = e.last
		j.waiting += int64(e.last - e.acked)
	}
	if fresh {
		if err := j.nameLosses(); err != nil {
			return err
		}
	}
	if err := j.forgetLost(j.lost...); err != nil {
		return err
	}
	if err := j.indexAcks(); err != nil {
		return fmt.Errorf("write acks to index: %w", err)
	}
	for feed := range j.feeds {
		if err := j.sweep(feed); err != nil {
			return fmt.Errorf("sweep feed %s: %w", feed, err)
		}
	}
	j.w.nextOrd = max(j.w.nextOrd, j.indexed.seg) + 1
	if err := j.drawEpoch(); err != nil {
		return err
	}
	if j.opt.Inline {
		j.goOnWithFork()
	}
	return nil
}

// setUnreadableAside takes segments out of which nothing can be read at all off the journal,
// and keeps the files. What they held is in the index, or missed by its numbers.
func (j *Journal) setUnreadableAside() (some bool, err error) {
	var kept []*segment
	for _, s := range j.segs {
		if s.epoch != 0 && j.ordinal(s.epoch) != nil {
			kept = append(kept, s)
			continue
		}
		path := j.segmentPath(s.ord, s.packed)
		if err := j.opt.Disk.Rename(path, path+".damaged"); err != nil {
			return some, fmt.Errorf("set segment %d aside: %w", s.ord, err)
		}
		some = true
		j.damaged("segment %d is not readable and is kept as %s.damaged; what it held is missed by its numbers unless the index has it", s.ord, filepath.Base(path))
	}
	j.segs = kept
	return some, nil
}

// A lost stretch of records is one that the relay has not acknowledged and nobody can read.
type lost struct{ ord, from, to uint64 }

// forgetLost takes the idempotency keys of lost records off the index: a till that posts such
// a record again brings it back, and must not be told that it is held.
func (j *Journal) forgetLost(all ...lost) error {
	if len(all) == 0 {
		return nil
	}
	keys, err := j.keysOf(func(k known) bool {
		return slices.ContainsFunc(all, func(l lost) bool { return k.ord == l.ord && l.from <= k.seq && k.seq <= l.to })
	})
	if err != nil {
		return err
	}
	return j.forget(keys)
}

// nameLosses names the records that wait to be sent and that nobody can read: they are neither
// in the index, which is fresh, nor in a segment.
func (j *Journal) nameLosses() error {
	for _, e := range j.epochs {
		missing := span{int64(e.acked) + 1, int64(e.last) + 1}
		var gaps []span
		taken := func(s *stored) error {
			if seq := int64(s.rec.Seq); seq < missing.to && seq >= missing.from {
				if seq > missing.from {
					gaps = append(gaps, span{missing.from, seq})
				}
				missing.from = seq + 1
			}
			return nil
		}
		if err := j.readIndex(e.ord, e.acked+1, taken); err != nil {
			return fmt.Errorf("look for lost records: %w", err)
		}
		for _, gap := range append(gaps, missing) {
			if missing, gaps = gap, nil; gap.from == gap.to {
				continue
			}
			if err := j.readSegments(e.ord, uint64(gap.from), taken); err != nil {
				return fmt.Errorf("look for lost records: %w", err)
			}
			for _, gap := range append(gaps, missing) {
				if gap.from < gap.to {
					j.damaged("records %d to %d of epoch %s are lost", gap.from, gap.to-1, e.id)
					j.lost = append(j.lost, lost{e.ord, uint64(gap.from), uint64(gap.to - 1)})
				}
			}
		}
	}
	return nil
}

// listSegments reads the headers of all segments. It returns the files that no later header
// names: they died at birth or with a failed sync.
func (j *Journal) listSegments() (voids []string, err error) {
	// A process that was killed may have renamed a file and not synced the folder: names are
	// made durable before anything is removed in their favour.
	if err := j.opt.Disk.SyncDir(j.opt.Dir); err != nil {
		return nil, err
	}
	files, err := j.opt.Disk.List(j.opt.Dir)
	if err != nil {
		return nil, err
	}
	var found []*segment
	for _, f := range files {
		path := filepath.Join(j.opt.Dir, f.Name)
		if strings.HasSuffix(f.Name, ".tmp") {
			if err := j.opt.Disk.Remove(path); err != nil {
				return nil, err
			}
			continue
		}
		ord, packed, ok := parseSegmentName(f.Name)
		if !ok {
			continue
		}
		if packed && len(found) > 0 && found[len(found)-1].ord == ord { // N.seg sorts before N.seg.zst
			if err := j.opt.Disk.Remove(j.segmentPath(ord, false)); err != nil {
				return nil, err
			}
			found = found[:len(found)-1]
		}
		s := &segment{size: f.Size, packed: packed}
		s.ord = ord
		found = append(found, s)
		j.w.nextOrd = max(j.w.nextOrd, ord)
	}
	var after *segment // the one kept behind
	for _, s := range slices.Backward(found) {
		if after != nil && after.pred != 0 && s.ord > after.pred {
			voids = append(voids, j.segmentPath(s.ord, s.packed))
			continue
		}
		if err := j.readHeader(s, after == nil); err != nil {
			return nil, fmt.Errorf("segment %d: %w", s.ord, err)
		}
		s.end = s.size
		if s.packed {
			s.end = 1 << 40
		}
		if after != nil && after.pred == s.ord {
			s.end = after.predEnd
		}
		if after != nil {
			s.next = after.first
		}
		j.segs = append(j.segs, s)
		after = s
	}
	slices.Reverse(j.segs)
	return voids, nil
}

// readHeader reads a segment's header, or what its first record says when that is damaged:
// for the newest mendTail says whether it is, or was torn at its birth.
func (j *Journal) readHeader(s *segment, newest bool) error {
	data, err := j.readSegment(s.ord, s.packed, headerRoom)
	if err != nil {
		return err
	}
	h, err := headerOf(data)
	if err == nil {
		if h.origin != j.opt.Origin {
			return fmt.Errorf("it belongs to %s, not to %s: give the new agent an empty folder, and let the old one deliver first", h.origin, j.opt.Origin)
		}
		s.header = *h
		return nil
	} else if !errors.Is(err, errBadFrame) {
		return err
	}
	if data, err = j.readSegment(s.ord, s.packed, -1); err != nil {
		return err
	}
	_, _, err = scan(data, headerRoom, func(f frame) error {
		if r, err := decodeStored(f.payload); f.typ == typeRecord && err == nil {
			s.epoch, s.first, s.prev = r.ord, r.rec.Seq, r.prev
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) && !newest {
		j.damaged("segment %d: its header is not readable; its records are", s.ord)
	}
	return nil
}

// fillIndex fills a fresh index from the newest snapshot. It says whether the index is
// fresh, so that all segments must be looked through.
func (j *Journal) fillIndex(why string) (bool, error) {
	p, err := j.db.point()
	if err != nil {
		return false, err
	}
	if p.n > 0 && len(j.segs) > 0 && p.seg+1 < j.segs[0].ord {
		return j.refill(fmt.Sprintf("it ends at segment %d, the journal begins at %d", p.seg, j.segs[0].ord))
	}
	if p.n > 0 {
		j.indexed = p
		return false, nil
	}
	p, found, err := j.loadSnapshot()
	if err != nil {
		return false, fmt.Errorf("load snapshot: %w", err)
	}
	j.indexed = p
	j.indexed.n = 0 // the ring is the index's own
	if why == "" && len(j.segs) > 0 {
		j.opt.Log.Error("index is missing and built anew from the journal")
	}
	if !found && len(j.segs) > 0 && j.segs[0].pred != 0 {
		j.damaged("index and snapshots are lost: keys, states and feeds from before segment %d are not known any more", j.segs[0].ord)
	}
	return true, nil
}

// refill makes the index die its known death: set aside and opened fresh.
func (j *Journal) refill(why string) (bool, error) {
	if err := errors.Join(j.db.store.close(), j.db.setAside(why), j.db.open()); err != nil {
		return true, err
	}
	return j.fillIndex(why)
}

// loadIndex reads epochs, acks and feeds into memory.
func (j *Journal) loadIndex() error {
	err := j.db.each([]byte{'e'}, func(_, v []byte) error {
		d := decoder{b: v}
		j.addEpoch(d.epoch())
		return d.err()
	})
	if err != nil {
		return fmt.Errorf("read epochs: %w", err)
	}
	for _, s := range j.segs {
		if s.id != "" {
			j.addEpoch(s.epoch, s.id, s.before, s.fork)
		}
	}
	j.addLostEpochs()
	err = j.db.each([]byte{'f'}, func(k, v []byte) error {
		s, err := decodeFeed(v)
		j.feeds[string(k[1:])] = s
		return err
	})
	if err != nil {
		return fmt.Errorf("read feeds: %w", err)
	}
	raw, err := j.db.get(keyLast)
	if err != nil {
		return fmt.Errorf("read newest ack: %w", err)
	}
	if raw != nil {
		d := decoder{b: raw}
		j.last = d.lastAck()
	}
	if err := j.loadAges(); err != nil {
		return err
	}
	err = j.db.each([]byte{'a'}, func(k, v []byte) error {
		d := decoder{b: v}
		dk := decoder{b: k[1:]}
		ord := dk.ordinal()
		through, gone, hash := d.uvarint(), d.uvarint(), d.hash()
		if e := j.ordinal(ord); e != nil {
			e.acked, e.gone = through, gone
			if gone < through {
				j.ackIndex[ord] = ack{ord: ord, through: through, hash: hash, last: j.last}
			}
		}
		return d.err()
	})
	if err != nil {
		return fmt.Errorf("read acks: %w", err)
	}
	return nil
}

// addLostEpochs adds the epochs of which only the seal behind them is left, and names those of
// which nothing is.
func (j *Journal) addLostEpochs() {
	for _, e := range slices.Clone(j.epochs) {
		if b := e.before; b != nil && j.ordinal(b.ord) == nil {
			j.addEpoch(b.ord, b.mark.Epoch, nil, nil)
		}
	}
	for i, e := range j.epochs {
		if i > 0 && e.ord > j.epochs[i-1].ord+1 {
			j.damaged("epochs number %d to %d of this agent are lost, and nobody here knows what was in them", j.epochs[i-1].ord+1, e.ord-1)
		}
	}
}

func (j *Journal) addEpoch(ord uint64, id protocol.Epoch, bef *before, f *fork) {
	i, ok := slices.BinarySearchFunc(j.epochs, ord, func(e *epoch, o uint64) int { return cmp.Compare(e.ord, o) })
	if !ok {
		e := &epoch{ord: ord, id: id, before: bef, fork: f}
		e.hash = protocol.Genesis(j.opt.Origin.Chain, j.opt.Origin.Store, j.opt.Origin.Agent, id)
		j.epochs = slices.Insert(j.epochs, i, e)
	}
}

// linkEpochs reads from each seal where the epoch before ended; the newest one ends where
// mendTail found its tail, or where the index says. An epoch whose end nobody tells ends with
// what is held of it.
func (j *Journal) linkEpochs() error {
	for i, e := range j.epochs {
		if i+1 == len(j.epochs) {
			continue
		}
		if b := j.epochs[i+1].before; b != nil && b.ord == e.ord {
			e.last, e.hash = b.mark.Through, b.mark.Hash
		} else if err := j.findEnd(e); err != nil {
			return fmt.Errorf("look for the end of epoch %s: %w", e.id, err)
		}
	}
	for i, s := range j.segs {
		if e := j.ordinal(s.epoch); e != nil && (i+1 == len(j.segs) || j.segs[i+1].epoch != s.epoch) {
			s.next = max(s.first, e.last+1)
		}
	}
	if n := len(j.epochs); n > 0 && j.epochs[n-1].ord == j.indexed.ord && j.epochs[n-1].last < j.indexed.seq {
		j.epochs[n-1].last, j.epochs[n-1].hash = j.indexed.seq, j.indexed.hash
	}
	for _, e := range j.epochs {
		e.acked, e.gone = min(e.acked, e.last), min(e.gone, e.last)
		if e.fork != nil {
			j.forked = e.ord
		}
	}
	return nil
}

// findEnd gives an epoch the end of what is held of it.
func (j *Journal) findEnd(e *epoch) error {
	found := func(s *stored) error {
		if s.rec.Seq > e.last {
			e.last, e.hash = s.rec.Seq, s.rec.Hash(s.prev)
		}
		return nil
	}
	if err := j.readIndex(e.ord, 1, found); err != nil {
		return err
	}
	j.mu.Lock()
	for _, s := range j.segs {
		if s.epoch == e.ord {
			s.next = math.MaxUint64 // read on
		}
	}
	j.mu.Unlock()
	if err := j.readSegments(e.ord, 1, found); err != nil {
		return err
	}
	if e.acked < e.last {
		j.damaged("epoch %s: how it ended is lost; what is held of it ends with record %d", e.id, e.last)
	}
	return nil
}
