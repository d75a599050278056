package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/mutant"
)

var (
	_ link.Source  = (*Journal)(nil)
	_ link.Replica = (*Journal)(nil)
)

// Heads gives the oldest record without an ack and the newest that can be read; see
// link.Source. A record can be read a moment after Append has returned: Wake tells when.
func (j *Journal) Heads() (oldest, newest protocol.Position) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range slices.Backward(j.epochs) {
		if e.visible > 0 {
			newest = protocol.Position{Epoch: e.id, Seq: e.visible}
			break
		}
	}
	if j.waiting == 0 {
		return oldest, newest
	}
	for _, e := range j.epochs {
		if e.visible > e.acked {
			return protocol.Position{Epoch: e.id, Seq: e.acked + 1}, newest
		}
	}
	return oldest, newest
}

// Wake receives a value when records have become readable since the last receive.
func (j *Journal) Wake() <-chan struct{} { return j.wake }

// Next is the position that follows p; see link.Source. The epoch that begins with the next
// record is known before anything of it is durable. After an epoch that is not known, and
// after the zero Position, comes the oldest record held.
func (j *Journal) Next(p protocol.Position) protocol.Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, e := j.epochOf(p.Epoch)
	if e == nil {
		return protocol.Position{Epoch: j.epochs[0].id, Seq: 1}
	}
	if p.Seq >= e.last && i+1 < len(j.epochs) {
		return protocol.Position{Epoch: j.epochs[i+1].id, Seq: 1}
	}
	return protocol.Position{Epoch: e.id, Seq: p.Seq + 1}
}

// Read returns durable records of from's epoch; see link.Source. Records stay readable after
// their ack for as long as they are retained. Where retention has dropped them, or the disk
// has lost them (Damage), the batch is a Skip.
func (j *Journal) Read(from protocol.Position, maxRecords, maxBytes int) (protocol.Batch, error) {
	b := protocol.Batch{Epoch: from.Epoch, First: from.Seq}
	j.mu.Lock()
	_, e := j.epochOf(from.Epoch)
	if e == nil || from.Seq == 0 {
		j.mu.Unlock()
		return b, fmt.Errorf("read %s: %w: no such position", from, ErrGone)
	}
	ord, visible, gone := e.ord, e.visible, e.gone
	j.mu.Unlock()
	if from.Seq > visible {
		return b, nil
	}
	maxRecords = min(maxRecords, protocol.MaxRecords)
	var scratch []byte
	take := func(s *stored) error {
		if s.rec.Seq != b.First+uint64(len(b.Records)) || s.rec.Seq > visible {
			return errStop
		}
		scratch = s.rec.AppendJSON(scratch[:0])
		if maxBytes -= len(scratch) + 1; len(b.Records) > 0 && (maxBytes < 0 || len(b.Records) >= maxRecords) {
			return errStop
		}
		if len(b.Records) == 0 {
			b.Prev = s.prev
		}
		b.Records = append(b.Records, s.rec)
		return nil
	}
	if from.Seq > gone {
		if err := j.readIndex(ord, from.Seq, take); err != nil && !errors.Is(err, errStop) {
			return protocol.Batch{}, fmt.Errorf("read %s: %w", from, err)
		}
	}
	if len(b.Records) == 0 { // off the index, or the index has lost it
		if err := j.readSegments(ord, from.Seq, take); err != nil && !errors.Is(err, errStop) {
			return protocol.Batch{}, fmt.Errorf("read %s: %w", from, err)
		}
	}
	if len(b.Records) == 0 {
		if b, err := j.skip(e, from, visible); err != nil {
			return b, fmt.Errorf("read %s: %w", from, err)
		} else if b.Skip != nil {
			if b.Skip.Reason == protocol.SkipDamaged {
				if err := j.forgetLost(lost{ord, b.Skip.From, b.Skip.To}); err != nil {
					return b, fmt.Errorf("read %s: %w", from, err)
				}
				j.damaged("records %d to %d of epoch %s are lost", b.Skip.From, b.Skip.To, from.Epoch)
			}
			if mutant.On(mutant.LoseUnreadable) {
				return j.Read(protocol.Position{Epoch: from.Epoch, Seq: b.Last() + 1}, maxRecords, maxBytes)
			}
			return b, nil
		}
	}
	return b, nil
}

// skip names the records of an epoch from a position on that are not held any more, up to the
// next that is. There is none when the end of the stretch is not known yet.
func (j *Journal) skip(e *epoch, from protocol.Position, visible uint64) (protocol.Batch, error) {
	b := protocol.Batch{Epoch: from.Epoch, First: from.Seq}
	skip := protocol.Skip{From: from.Seq, Reason: protocol.SkipDamaged}
	nearer := func(s *stored) error {
		if s.rec.Seq >= from.Seq && (skip.To == 0 || s.rec.Seq <= skip.To) {
			skip.To, skip.Hash = s.rec.Seq-1, s.prev
		}
		if s.rec.Seq >= from.Seq {
			return errStop
		}
		return nil
	}
	if err := j.readIndex(e.ord, from.Seq, nearer); err != nil && !errors.Is(err, errStop) {
		return b, err
	}
	if err := j.readSegments(e.ord, from.Seq, nearer); err != nil && !errors.Is(err, errStop) {
		return b, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if skip.To == 0 || skip.To > visible { // nothing is held behind it
		if visible < e.last {
			return b, nil
		}
		skip.To, skip.Hash = e.last, e.hash
	}
	if skip.To < skip.From {
		return b, fmt.Errorf("record %d stands in the journal and is not readable", from.Seq)
	}
	if len(j.segs) == 0 || e.ord < j.segs[0].epoch || e.ord == j.segs[0].epoch && from.Seq < j.segs[0].first {
		skip.Reason = protocol.SkipTrimmed
	}
	if skip.From == 1 && (e.before != nil || e.fork != nil || e.ord == 1) {
		seal := j.sealOf(e)
		seal.BootID, seal.Versions = "", nil // of that time, and not known any more
		skip.Seal = &seal
	}
	b.Skip = &skip
	return b, nil
}

// readIndex visits the intact records of an epoch in the index, from a seq on.
func (j *Journal) readIndex(ord, seq uint64, visit func(*stored) error) error {
	t := j.db.view()
	defer t.discard()
	return t.each(queueKey(ord, 0)[:9], queueKey(ord, seq), func(_, v []byte) error {
		payload, ok := queuedPayload(bytes.Clone(v))
		if !ok {
			return nil // a damaged one is missed by its seq
		}
		s, err := decodeStored(payload)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		return visit(s)
	})
}

// readSegments visits the intact records of an epoch in the segments, from a seq on.
func (j *Journal) readSegments(ord, seq uint64, visit func(*stored) error) error {
	j.files.RLock()
	defer j.files.RUnlock()
	j.mu.Lock()
	var segs []segment
	for _, s := range j.segs {
		if s.epoch == ord && s.next > seq {
			segs = append(segs, *s)
		}
	}
	j.mu.Unlock()
	for _, s := range segs {
		data, err := j.readSegment(s.ord, s.packed, s.end)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		_, _, err = scan(data, headerRoom, func(f frame) error {
			if f.typ != typeRecord {
				return nil
			}
			r, err := decodeStored(f.payload)
			if err != nil || r.rec.Seq < seq {
				return nil //nolint:nilerr // a damaged one is missed by its seq
			}
			return visit(r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hashAt is the hash of a record, from itself or from what follows it; ErrGone when neither
// is held.
func (j *Journal) hashAt(p protocol.Position) (protocol.Hash, error) {
	j.mu.Lock()
	_, e := j.epochOf(p.Epoch)
	if e != nil && e.last == p.Seq {
		defer j.mu.Unlock()
		return e.hash, nil
	}
	j.mu.Unlock()
	s, err := j.at(p)
	if err == nil {
		return s.rec.Hash(s.prev), nil
	}
	if errors.Is(err, ErrGone) {
		p.Seq++
		if s, err = j.at(p); err == nil {
			return s.prev, nil
		}
	}
	return protocol.Hash{}, err
}

// at reads one record; ErrGone when it is not held.
func (j *Journal) at(p protocol.Position) (*stored, error) {
	j.mu.Lock()
	_, e := j.epochOf(p.Epoch)
	j.mu.Unlock()
	if e == nil {
		return nil, ErrGone
	}
	if s, _ := j.db.queuedAt(e.ord, p.Seq); s != nil {
		return s, nil
	}
	var found *stored
	err := j.readSegments(e.ord, p.Seq, func(s *stored) error {
		if s.rec.Seq == p.Seq {
			found = s
		}
		return errStop
	})
	if err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	if found == nil {
		return nil, ErrGone
	}
	return found, nil
}

// Acked takes records off the send queue; see link.Source. A mark of an incarnation below
// the highest seen changes nothing: that relay is not the present one.
func (j *Journal) Acked(mark protocol.Mark, incarnation int64) error {
	if mark.Through == 0 {
		return nil
	}
	j.mu.Lock()
	_, e := j.epochOf(mark.Epoch)
	if e != nil && e.ord < j.forked && e.acked >= e.last { // closed by a fork: the relay may have the other branch
		j.mu.Unlock()
		return nil
	}
	if e == nil || mark.Through > e.last {
		j.mu.Unlock()
		return fmt.Errorf("ack %s/%d: %w: it is beyond the newest record", mark.Epoch, mark.Through, ErrFork)
	}
	known := mark.Through == e.last && mark.Hash == e.hash
	acked := e.acked
	j.mu.Unlock()
	if !known {
		hash, err := j.hashAt(protocol.Position{Epoch: mark.Epoch, Seq: mark.Through})
		switch {
		case err == nil && hash != mark.Hash:
			return fmt.Errorf("ack %s/%d: %w", mark.Epoch, mark.Through, ErrFork)
		case errors.Is(err, ErrGone) && mark.Through <= acked: // old, and dropped since
			return nil
		case errors.Is(err, ErrGone):
			// The relay has what this disk has lost, and nothing here can be compared with it. If
			// it is of another branch, the next record says so by its predecessor's hash.
		case err != nil:
			return fmt.Errorf("ack %s/%d: %w", mark.Epoch, mark.Through, err)
		}
	}
	if j.noteAcked(e, mark, incarnation) && j.opt.Inline {
		return j.indexAcks()
	}
	return nil
}

// noteAcked moves what is acknowledged; false when it was known.
func (j *Journal) noteAcked(e *epoch, mark protocol.Mark, incarnation int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if incarnation < j.last.incarnation {
		return false
	}
	l := lastAck{ord: e.ord, mark: mark, incarnation: incarnation}
	moved := l.after(j.last)
	if moved {
		j.last = l
	}
	if mark.Through > e.acked {
		j.waiting -= int64(mark.Through - e.acked)
		e.acked, moved = mark.Through, true
	}
	if moved {
		j.noteAck(e, mark)
		signal(j.acks)
	}
	return moved
}

// noteAck lets an epoch's ack be written, to the index and with the next group. The caller
// holds mu.
func (j *Journal) noteAck(e *epoch, mark protocol.Mark) {
	a := ack{ord: e.ord, through: e.acked, hash: mark.Hash, last: j.last}
	j.ackIndex[e.ord], j.ackFile[e.ord] = a, a
}

// after says whether l is newer than m: of a higher incarnation, or further.
func (l lastAck) after(m lastAck) bool {
	if l.incarnation != m.incarnation {
		return l.incarnation > m.incarnation
	}
	return l.ord > m.ord || l.ord == m.ord && l.mark.Through > m.mark.Through
}

// LastAck is the newest mark of the highest incarnation seen, and that incarnation.
func (j *Journal) LastAck() (*protocol.Mark, int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.last.ord == 0 {
		return nil, j.last.incarnation
	}
	mark := j.last.mark
	return &mark, j.last.incarnation
}

// Epochs implements link.Source.
func (j *Journal) Epochs(after protocol.Epoch, n int) []protocol.Epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, _ := j.epochOf(after)
	var ids []protocol.Epoch
	for _, e := range j.epochs[i+1:] {
		if len(ids) == n {
			break
		}
		if e.last > 0 {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// Body is the body of a record that is held; ErrGone when it is not any more.
func (j *Journal) Body(p protocol.Position) ([]byte, error) {
	s, err := j.at(p)
	if err != nil {
		return nil, fmt.Errorf("read body of %s: %w", p, err)
	}
	return s.rec.Body, nil
}
