package journal

import (
	"errors"
	"fmt"
)

// replay brings the index up to the segments. Of a fresh index, whose snapshot was loaded,
// every segment is looked through: records before the snapshot's point bring their queue
// entries and keys back, those behind it their states and pages too. A fresh index stays
// condemned until that is done, so that a crash in the middle begins again.
func (j *Journal) replay(fresh bool) error {
	if fresh {
		if err := j.db.condemn(); err != nil {
			return err
		}
	}
	start := j.indexed
	for _, s := range j.segs {
		if !fresh && s.ord < start.seg {
			continue
		}
		if err := j.replaySegment(s, start, fresh); err != nil {
			return fmt.Errorf("segment %d: %w", s.ord, err)
		}
	}
	if !fresh {
		return nil
	}
	return j.db.pardon()
}

func (j *Journal) replaySegment(s *segment, start point, fresh bool) error {
	data, err := j.readSegment(s.ord, s.packed, s.end)
	if err != nil {
		return err
	}
	e := j.ordinal(s.epoch)
	if e == nil {
		return fmt.Errorf("epoch %d: %w", s.epoch, errBadFrame)
	}
	r := replaying{j: j, s: s, e: e, at: point{ord: e.ord, seq: max(s.first, 1) - 1, hash: s.prev}}
	end, _, err := scan(data, headerRoom, func(f frame) error {
		known := s.ord < start.seg || s.ord == start.seg && f.end <= start.off
		if known && !fresh {
			if f.typ == typeRecord {
				r.passed(f)
			}
			return nil
		}
		return r.take(f, known)
	})
	if err != nil {
		return err
	}
	if s.packed {
		s.end = end
	}
	if r.at.seq > e.last { // no later header says where the epoch ends
		e.last, e.hash = r.at.seq, r.at.hash
	}
	return r.flush(end)
}

// A replaying takes one segment's frames to the index.
type replaying struct {
	j     *Journal
	s     *segment
	e     *epoch
	at    point // newest record taken
	parts []part
	bytes int
}

// passed notes a record that the index has.
func (r *replaying) passed(f frame) {
	if rec, err := decodeStored(f.payload); err == nil {
		r.at.seq, r.at.hash = rec.rec.Seq, rec.rec.Hash(rec.prev)
	}
}

func (r *replaying) take(f frame, known bool) error {
	switch f.typ {
	case typeRecord:
		rec, err := decodeStored(f.payload)
		if err != nil {
			return nil //nolint:nilerr // its seq is missed, and named
		}
		r.passed(f)
		p := part{typ: typeRecord, payload: f.payload, rec: rec, hash: r.at.hash}
		if rec.rec.Seq == 1 {
			p.begins = r.e
		}
		if known { // the snapshot's states are newer
			old := *rec
			old.stateKey = ""
			p.rec = &old
		}
		r.parts = append(r.parts, p)
	case typePage:
		if known {
			return nil
		}
		page, err := decodePage(f.payload)
		if err != nil {
			return nil //nolint:nilerr // the relay is asked for it again
		}
		before := r.j.feed(page.Feed)
		next, gen, ok := before.step(page)
		if !ok {
			return nil
		}
		r.j.feeds[page.Feed] = next
		r.parts = append(r.parts, part{typ: typePage, payload: f.payload, page: page, gen: gen, feed: next, swap: next.active != before.active})
	case typeAck:
		if a, err := decodeAck(f.payload); err == nil {
			r.acked(a)
		}
	case typeRewind:
		w, err := decodeRewind(f.payload)
		if err != nil || w.incarnation <= r.j.last.incarnation {
			return nil //nolint:nilerr // the relay tells again
		}
		clear(r.j.ackIndex)
		r.j.rewound(w)
		r.parts = append(r.parts, part{typ: typeRewind, payload: f.payload, rewind: w})
	}
	if r.bytes += len(f.payload); r.bytes > groupBytes {
		return r.flush(f.end)
	}
	return nil
}

func (r *replaying) acked(a *ack) {
	if a.last.incarnation < r.j.last.incarnation { // before a rewind
		return
	}
	if a.last.after(r.j.last) {
		r.j.last = a.last
	}
	e := r.j.ordinal(a.ord)
	if e == nil || a.through <= e.acked || a.through > e.last {
		return
	}
	e.acked = a.through
	r.j.ackIndex[a.ord] = ack{ord: a.ord, through: a.through, hash: a.hash, last: r.j.last}
}

// flush writes what was taken; the index has the segment through end then.
func (r *replaying) flush(end int64) error {
	if len(r.parts) == 0 {
		return nil
	}
	p := r.at
	p.seg, p.off = r.s.ord, end
	if was := r.j.indexed; p.seg < was.seg || p.seg == was.seg && p.off < was.off {
		p = was
	}
	err := r.j.apply(r.parts, p)
	r.parts, r.bytes = nil, 0
	if err != nil {
		return errors.Join(errors.New("write index"), err)
	}
	return nil
}
