package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// recover brings files, index and memory in order. It runs in Open, alone.
func (j *Journal) recover() error {
	j.keepReserve()
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
	j.linkEpochs()
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
			for _, lost := range append(gaps, missing) {
				if lost.from < lost.to {
					j.damaged("records %d to %d of epoch %s are lost", lost.from, lost.to-1, e.id)
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
		s := &segment{size: f.Size, packed: packed, since: f.ModTime}
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
			if after.epoch != s.epoch {
				s.next = s.first
				if after.before != nil && after.before.ord == s.epoch {
					s.next = after.before.mark.Through + 1
				}
			}
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

func (j *Journal) addEpoch(ord uint64, id protocol.Epoch, bef *before, f *fork) {
	i, ok := slices.BinarySearchFunc(j.epochs, ord, func(e *epoch, o uint64) int { return cmp.Compare(e.ord, o) })
	if !ok {
		e := &epoch{ord: ord, id: id, before: bef, fork: f}
		e.hash = protocol.Genesis(j.opt.Origin.Chain, j.opt.Origin.Store, j.opt.Origin.Agent, id)
		j.epochs = slices.Insert(j.epochs, i, e)
	}
}

// linkEpochs reads from each seal where the epoch before ended; the newest one ends where
// mendTail found its tail, or where the index says.
func (j *Journal) linkEpochs() {
	for i, e := range j.epochs {
		if i+1 < len(j.epochs) {
			if b := j.epochs[i+1].before; b != nil && b.ord == e.ord {
				e.last, e.hash = b.mark.Through, b.mark.Hash
			}
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
}

// mendTail looks through the newest segment, mends what is damaged in it from the index,
// cuts what is torn, and writes it anew to a file that is synced.
func (j *Journal) mendTail() error {
	for len(j.segs) > 0 {
		s := j.segs[len(j.segs)-1]
		data, err := j.readSegment(s.ord, s.packed, s.end)
		if err != nil {
			return fmt.Errorf("read segment %d: %w", s.ord, err)
		}
		torn := false
		if s.id == "" {
			if torn = j.indexed.seg != s.ord && groups(data) < 2; !torn {
				j.damaged("segment %d: its header is not readable", s.ord)
				if known, err := j.mendHeader(s); err != nil || !known && s.epoch != 0 {
					return err
				}
			}
		}
		m := mend{j: j, seg: s, out: encodeHead(&s.header)}
		if !torn {
			if err := m.run(data); err != nil {
				return fmt.Errorf("mend segment %d: %w", s.ord, err)
			}
		}
		if m.frames == 0 { // it died at birth: what it says of the one before still holds
			if err := j.settle(len(j.segs) - 2); err != nil {
				return err
			}
			if err := j.opt.Disk.Remove(j.segmentPath(s.ord, s.packed)); err != nil {
				return err
			}
			j.segs = j.segs[:len(j.segs)-1]
			j.epochs = slices.DeleteFunc(j.epochs, func(e *epoch) bool {
				return e.ord == s.epoch && s.first == 1 && e.ord > j.indexed.ord
			})
			continue
		}
		s.end, s.next = int64(len(m.out)), m.next
		if e := j.ordinal(s.epoch); e != nil {
			e.last, e.hash = m.next-1, m.hash
		}
		if s.packed || m.same && s.size == s.end {
			return nil
		}
		if j.indexed.seg == s.ord {
			j.indexed.off = m.point
		}
		return j.rewrite(s, m.out)
	}
	return nil
}

// mendHeader gives the newest segment, whose header nobody can read, the header that it must
// have had, as far as the index knows; false when its epoch is not known to anybody.
func (j *Journal) mendHeader(s *segment) (bool, error) {
	if s.epoch == 0 && j.indexed.seg == s.ord {
		s.epoch = j.indexed.ord
	}
	e := j.ordinal(s.epoch)
	if e == nil {
		return false, nil
	}
	first, prev := uint64(1), protocol.Genesis(j.opt.Origin.Chain, j.opt.Origin.Store, j.opt.Origin.Agent, e.id)
	h := header{version: formatVersion, origin: j.opt.Origin, ord: s.ord, room: max(s.size, headerRoom), epoch: e.ord, id: e.id, before: e.before, fork: e.fork}
	if n := len(j.segs); n > 1 {
		p := j.segs[n-2]
		h.pred, h.predEnd = p.ord, p.size
		if p.epoch == e.ord {
			data, err := j.readSegment(p.ord, p.packed, -1)
			if err != nil {
				return false, fmt.Errorf("read segment %d: %w", p.ord, err)
			}
			first, prev = p.first, p.prev
			_, _, err = scan(data, headerRoom, func(f frame) error {
				if r, err := decodeStored(f.payload); f.typ == typeRecord && err == nil {
					first, prev = r.rec.Seq+1, r.rec.Hash(r.prev)
				}
				return nil
			})
			if err != nil {
				return false, err
			}
		}
	}
	h.first, h.prev = first, prev
	s.header = h
	return true, nil
}

// groups counts the groups of which a segment has an intact frame: with a second one the
// first was synced, and the header with it.
func groups(data []byte) int {
	seen := map[int64]bool{}
	_, _, _ = scan(data, headerRoom, func(f frame) error { // visiting has no error
		seen[f.group] = true
		return nil
	})
	return len(seen)
}

// settle cuts a segment that is not the newest to where its successor says that it ends.
func (j *Journal) settle(i int) error {
	if i < 0 || j.segs[i].packed || j.segs[i].size == j.segs[i].end {
		return nil
	}
	data, err := j.readSegment(j.segs[i].ord, false, j.segs[i].end)
	if err != nil {
		return err
	}
	return j.rewrite(j.segs[i], data)
}

func (j *Journal) rewrite(s *segment, data []byte) error {
	err := replaceFile(j.opt.Disk, j.segmentPath(s.ord, false), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return fmt.Errorf("settle segment %d: %w", s.ord, err)
	}
	s.size, s.end = int64(len(data)), int64(len(data))
	return nil
}

// A mend builds the sound form of the newest segment.
type mend struct {
	j      *Journal
	seg    *segment
	out    []byte
	frames int
	next   uint64        // seq expected
	hash   protocol.Hash // before it
	point  int64         // where the index stands in out
	same   bool          // out is what the file begins with
}

func (m *mend) run(data []byte) error {
	j, s := m.j, m.seg
	m.next, m.hash, m.same, m.point = s.first, s.prev, true, headerRoom
	_, broken, err := scan(data, headerRoom, func(f frame) error {
		if f.typ == typeRecord {
			r, err := decodeStored(f.payload)
			if err != nil {
				return nil // its seq is missed below
			}
			m.fill(r.rec.Seq)
			m.next, m.hash = r.rec.Seq+1, r.rec.Hash(r.prev)
		}
		m.put(f.typ, f.payload)
		if j.indexed.seg == s.ord && f.end <= j.indexed.off {
			m.point = int64(len(m.out))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p := j.indexed; p.seg == s.ord && p.ord == s.epoch {
		m.fill(p.seq + 1)
		if p.seq+1 == m.next {
			m.hash = p.hash
		}
	}
	whole := int64(len(data)) == s.room
	for len(data) > 0 && whole && data[len(data)-1] == 0 {
		data = data[:len(data)-1]
	}
	cut := len(data) - len(m.out)
	switch {
	case len(broken) == 0 && m.same && cut <= 0:
		return nil
	case len(broken) == 0 && m.same && whole:
		j.opt.Log.Warn("cut the torn end of the newest segment", "segment", s.ord, "bytes", cut)
		return nil
	case len(broken) == 0 && m.same:
		j.damaged("segment %d was closed, and its last %d bytes are not readable", s.ord, cut)
	case len(broken) > 0:
		j.opt.Log.Error("segment is damaged", "segment", s.ord, "bytes", fmt.Sprint(broken))
	}
	return replaceFile(j.opt.Disk, j.segmentPath(s.ord, s.packed)+".damaged", func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// fill takes the records that are missed before seq from the index, and names those that are
// not there either.
func (m *mend) fill(seq uint64) {
	from := m.next
	for ; m.next < seq; m.next++ {
		r, payload := m.j.db.queuedAt(m.seg.epoch, m.next)
		if r == nil {
			continue
		}
		if lost := m.next - from; lost > 0 {
			m.lost(from, m.next-1)
		}
		from, m.same = m.next+1, false
		m.hash = r.rec.Hash(r.prev)
		m.put(typeRecord, payload)
		m.point = int64(len(m.out))
		m.j.opt.Log.Warn("record is mended from the index", "segment", m.seg.ord, "seq", m.next)
	}
	if from < seq {
		m.lost(from, seq-1)
	}
}

func (m *mend) lost(from, to uint64) {
	m.same = false
	acked := uint64(0)
	if e := m.j.ordinal(m.seg.epoch); e != nil {
		acked = e.acked
	}
	if to > acked {
		m.j.damaged("segment %d: records %d to %d of epoch %s are lost", m.seg.ord, max(from, acked+1), to, m.seg.id)
	}
}

// put appends a frame as its own group: all of it was synced.
func (m *mend) put(typ byte, payload []byte) {
	m.out = appendFrame(m.out, typ, int64(len(m.out)), payload)
	m.frames++
}
