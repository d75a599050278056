package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// Fork implements link.Source. It waits for Run. A fork that an error or a restart broke off
// is gone on with by the next Fork, or by Run.
func (j *Journal) Fork(reason string) error {
	if err := j.do(func() error { return j.fork(reason) }); err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	return nil
}

// Rewind implements link.Source. It waits for Run.
func (j *Journal) Rewind(marks []protocol.Mark, incarnation int64) error {
	if err := j.do(func() error { return j.goBack(marks, incarnation) }); err != nil {
		return fmt.Errorf("rewind: %w", err)
	}
	return nil
}

// do lets the committer do a step between two groups.
func (j *Journal) do(step func() error) error {
	r := &request{step: step, answer: make(chan answer, 1)}
	if !j.queue.put(r) {
		return ErrClosed
	}
	j.work()
	return (<-r.answer).err
}

// fork begins an epoch that says so and moves to it what is not acknowledged.
func (j *Journal) fork(reason string) error {
	if _, err := j.ready(); err != nil {
		return err
	}
	j.mu.Lock()
	moving := j.moving()
	j.mu.Unlock()
	if moving { // what the newest fork, or a rewind behind it, has left
		return j.move()
	}
	j.opt.Log.Error("the relay knows other records under our numbers: this disk was cloned or rolled back; what is not acknowledged is sent again under new numbers", "reason", reason)
	if err := j.beginFork(); err != nil {
		return err
	}
	return j.move()
}

// beginFork makes the seal durable that says so.
func (j *Journal) beginFork() error {
	if j.w.f != nil { // a segment holds records of one epoch
		if err := j.endSegment(false); err != nil {
			j.opt.Log.Warn("segment was not cut to its length", "segment", j.w.nextOrd-1, "err", err)
		}
	}
	f := &fork{}
	j.mu.Lock()
	if mark := j.last.mark; j.last.ord != 0 && mark.Through > 0 {
		f.acked = &mark
	}
	var err error
	if j.epochs[len(j.epochs)-1].last > 0 {
		err = j.drawEpoch()
	}
	j.epochs[len(j.epochs)-1].fork = f
	j.mu.Unlock()
	if err != nil {
		return err
	}
	b := j.build()
	b.begin()
	if err := j.settleGroup(b.finish()); err != nil {
		return err
	}
	j.pass(b.g)
	return nil
}

// moving says that epochs closed by a fork still have records to be moved. It needs mu.
func (j *Journal) moving() bool {
	return slices.ContainsFunc(j.epochs, func(e *epoch) bool { return e.ord < j.forked && e.acked < e.last })
}

// goOnWithFork moves what a fork has left that an end or a full disk has broken off. An error
// is only logged: the keeper brings it here again, and the relay's next word.
func (j *Journal) goOnWithFork() {
	j.mu.Lock()
	moving := j.moving()
	j.mu.Unlock()
	if !moving {
		return
	}
	_, err := j.ready()
	if err == nil {
		err = j.move()
	}
	if err != nil {
		j.opt.Log.Error("what a fork left is not moved yet, will be tried again", "err", err)
	}
}

// move appends once more what the epochs before the newest fork hold and is not acknowledged.
// With each group goes how far its epoch has been moved: as an ack, since it leaves the send
// queue. After a crash in between a record may be moved twice, and is applied once.
func (j *Journal) move() error {
	j.mu.Lock()
	forked := j.forked
	var from []*epoch
	for _, e := range j.epochs {
		if e.ord < forked && e.acked < e.last {
			from = append(from, e)
		}
	}
	j.mu.Unlock()
	for _, e := range from {
		if err := j.moveEpoch(e); err != nil {
			return fmt.Errorf("move records of epoch %s: %w", e.id, err)
		}
	}
	return nil
}

func (j *Journal) moveEpoch(e *epoch) error {
	j.mu.Lock()
	next, last := e.acked+1, e.last
	j.mu.Unlock()
	m := moved{j: j, e: e, b: j.build()}
	take := func(s *stored) error {
		if s.rec.Seq < next || s.rec.Seq > last {
			return nil
		}
		for next < s.rec.Seq { // not in the segments: in the index, or nowhere
			found, _ := j.db.queuedAt(e.ord, next)
			if err := m.take(found, next); err != nil {
				return err
			}
			next++
		}
		next++
		return m.take(s, s.rec.Seq)
	}
	if err := j.readSegments(e.ord, next, take); err != nil {
		return err
	}
	for ; next <= last; next++ {
		found, _ := j.db.queuedAt(e.ord, next)
		if err := m.take(found, next); err != nil {
			return err
		}
	}
	return m.flush(last)
}

// moved moves one epoch's records, a group at a time.
type moved struct {
	j     *Journal
	e     *epoch
	b     *builder
	bytes int
	lost  *protocol.Loss // that ends at the newest record taken
	gone  []lost         // that the group names
}

// take moves one record; nil is one that nobody can read any more.
func (m *moved) take(s *stored, seq uint64) error {
	if s == nil {
		if m.lost == nil {
			m.lost = &protocol.Loss{Epoch: m.e.id, From: seq, Reason: protocol.SkipDamaged}
		}
		m.lost.To = seq
		return nil
	}
	m.tellLost()
	rec := s.rec
	switch rec.Kind {
	case protocol.KindSeal:
		return nil // its epoch is closed by the fork
	case protocol.KindDayMark:
		if err := m.remark(rec); err != nil {
			return err
		}
	default:
		if rec.Was == nil {
			rec.Was = &protocol.Was{Epoch: m.e.id, Seq: rec.Seq, SHA256: rec.ContentHash()}
		}
		m.b.begin()
		m.b.add(&stored{rec: rec})
	}
	if m.bytes += len(rec.Body) + 256; m.bytes < groupBytes && len(m.b.g.parts) < groupCount {
		return nil
	}
	return m.flush(seq)
}

// remark signs a day mark anew behind the record that it now follows: the one before stands
// in an epoch that ends where nobody knows.
func (m *moved) remark(rec protocol.Record) error {
	var old protocol.DayMark
	if m.j.opt.Remark == nil || json.Unmarshal(rec.Body, &old) != nil {
		return nil //nolint:nilerr // a mark that cannot be read says nothing
	}
	m.b.begin()
	body, err := m.j.opt.Remark(old, m.b.head())
	if err != nil {
		return err
	}
	m.b.add(&stored{rec: protocol.Record{Kind: rec.Kind, Day: rec.Day, Body: body}})
	return nil
}

// tellLost names in the new epoch what could not be moved.
func (m *moved) tellLost() {
	if m.lost == nil {
		return
	}
	m.j.damaged("records %d to %d of epoch %s are lost, found at a fork", m.lost.From, m.lost.To, m.e.id)
	m.gone = append(m.gone, lost{m.e.ord, m.lost.From, m.lost.To})
	body, _ := json.Marshal(m.lost) // strings and numbers always encode
	m.b.begin()
	m.b.add(&stored{rec: protocol.Record{Kind: protocol.KindLoss, Body: body}})
	m.lost = nil
}

// flush makes what was taken durable; everything up to seq is moved.
func (m *moved) flush(seq uint64) error {
	j := m.j
	if s, err := j.space(); err != nil {
		return err
	} else if s.cramped() {
		return fmt.Errorf("%w: %d MiB free, %d needed to send under new numbers; make room on the disk", ErrFull, s.free>>20, s.floor>>22)
	}
	m.tellLost()
	j.mu.Lock()
	a := ack{ord: m.e.ord, through: seq, last: j.last}
	j.mu.Unlock()
	m.b.g.parts = append(m.b.g.parts, part{typ: typeAck, payload: a.encode(), ack: &a})
	if err := j.forgetLost(m.gone...); err != nil {
		return err
	}
	if err := j.settleGroup(m.b.finish()); err != nil {
		return err
	}
	j.mu.Lock()
	if seq > m.e.acked {
		j.waiting -= int64(seq - m.e.acked)
		m.e.acked = seq
		j.ackIndex[a.ord] = a
		signal(j.acks)
	}
	j.mu.Unlock()
	j.pass(m.b.g)
	m.b, m.bytes, m.gone = j.build(), 0, nil
	if j.opt.Inline {
		return j.indexAcks()
	}
	return nil
}

// A rewind puts records on the send queue again: the ledger has gone back in time.
type rewind struct {
	incarnation int64
	to          []ack // ord and through; hash of the mark
}

func (r *rewind) encode() []byte {
	b := binary.AppendVarint(nil, r.incarnation)
	b = binary.AppendUvarint(b, uint64(len(r.to)))
	for _, a := range r.to {
		b = binary.AppendUvarint(binary.AppendUvarint(b, a.ord), a.through)
		b = append(b, a.hash[:]...)
	}
	return b
}

func decodeRewind(b []byte) (*rewind, error) {
	d := decoder{b: b}
	r := &rewind{incarnation: d.varint()}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		r.to = append(r.to, ack{ord: d.uvarint(), through: d.uvarint(), hash: d.hash()})
	}
	return r, d.err()
}

// goBack is Rewind in the committer.
func (j *Journal) goBack(marks []protocol.Mark, incarnation int64) error {
	if _, seen := j.LastAck(); incarnation <= seen {
		return nil
	}
	if _, err := j.ready(); err != nil {
		return err
	}
	r := &rewind{incarnation: incarnation}
	for _, mark := range marks {
		j.mu.Lock()
		_, e := j.epochOf(mark.Epoch)
		known, acked, last := e != nil, uint64(0), uint64(0)
		if known {
			acked, last = e.acked, e.last
		}
		j.mu.Unlock()
		if !known {
			continue
		}
		ours := mark.Through <= last
		if ours {
			var err error
			if ours, err = j.ours(mark); err != nil {
				return err
			}
		}
		if !ours { // another branch: all of ours is sent again, and the relay says where they part
			mark.Through, mark.Hash = 0, protocol.Genesis(j.opt.Origin.Chain, j.opt.Origin.Store, j.opt.Origin.Agent, mark.Epoch)
		}
		if mark.Through < acked {
			r.to = append(r.to, ack{ord: e.ord, through: mark.Through, hash: mark.Hash})
		}
	}
	b := j.build()
	b.begin()
	b.g.parts = append(b.g.parts, part{typ: typeRewind, payload: r.encode(), rewind: r})
	j.mu.Lock()
	clear(j.ackFile) // what waits there is of the incarnation before
	clear(j.ackIndex)
	j.mu.Unlock()
	if err := j.settleGroup(b.finish()); err != nil {
		return err
	}
	j.mu.Lock()
	j.rewound(r)
	j.mu.Unlock()
	j.pass(b.g)
	return nil
}

// ours says whether a mark is of our own record, as far as that is still held.
func (j *Journal) ours(mark protocol.Mark) (bool, error) {
	if mark.Through == 0 {
		return true, nil
	}
	hash, err := j.hashAt(protocol.Position{Epoch: mark.Epoch, Seq: mark.Through})
	if errors.Is(err, ErrGone) {
		return true, nil
	}
	return hash == mark.Hash, err
}

// rewound moves memory to a rewind. It needs mu.
func (j *Journal) rewound(r *rewind) {
	j.last = lastAck{incarnation: r.incarnation}
	for _, a := range r.to {
		if e := j.ordinal(a.ord); e != nil && a.through <= e.last {
			j.waiting += int64(e.acked) - int64(a.through)
			e.acked = a.through
			if e.gone < a.through {
				a.last = j.last
				j.ackIndex[a.ord] = a
			}
		}
	}
}

// applyRewind writes a rewind to the index. What was taken off it stays off: readers turn to
// the segments for that.
func (j *Journal) applyRewind(c *change, r *rewind) {
	c.set(keyLast, (&lastAck{incarnation: r.incarnation}).encode())
	for _, a := range r.to {
		j.mu.Lock()
		e := j.ordinal(a.ord)
		gone := uint64(0)
		if e != nil {
			gone = e.gone
		}
		j.mu.Unlock()
		c.set(ackKey(a.ord), encodeAcked(a.through, gone, a.hash))
	}
}
