package journal

import (
	"fmt"
	"io"
	"slices"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

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
				return nil //nolint:nilerr // its seq is missed below
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
		if r == nil || mutant.On(mutant.MendNothing) {
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
		m.j.lost = append(m.j.lost, lost{m.seg.epoch, max(from, acked+1), to})
	}
}

// put appends a frame as its own group: all of it was synced.
func (m *mend) put(typ byte, payload []byte) {
	m.out = appendFrame(m.out, typ, int64(len(m.out)), payload)
	m.frames++
}
