package journal

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

const (
	groupCount = 256
	groupBytes = 1 << 20
)

// A writer is the committer's open segment.
type writer struct {
	f       File // nil between segments
	seg     *segment
	off     int64
	nextOrd uint64 // number of the next segment file
	renew   bool   // a sync failed: another epoch must be drawn before anything is written
	n       uint64 // number of the newest group
}

// A group is what was synced together, on its way to the index.
type group struct {
	n     uint64
	parts []part
	point point // what the index has once it has the group
}

// A part is one frame, understood.
type part struct {
	typ     byte
	payload []byte
	rec     *stored
	hash    protocol.Hash // of rec
	begins  *epoch        // rec is the seal of this epoch
	page    *protocol.FeedPage
	gen     uint64    // where the page goes
	feed    feedState // after the page
	swap    bool      // the page ended a snapshot: the generation before is done with
	ack     *ack
	rewind  *rewind
}

// commitAll is the committer. There is no timer: a group is what came while the one before
// was synced, and callers that were just answered get a turn to come along.
func (j *Journal) commitAll(ctx context.Context) error {
	defer close(j.groups)
	j.goOnWithFork()
	for {
		select {
		case <-j.queue.wake:
		case <-ctx.Done():
			j.queue.close()
			for j.queue.len() > 0 {
				j.commit(j.queue.take(groupCount, groupBytes))
			}
			return j.endRun()
		}
		for n := -1; n != j.queue.len() && n < groupCount; {
			n = j.queue.len()
			runtime.Gosched()
		}
		if reqs := j.queue.take(groupCount, groupBytes); len(reqs) > 0 {
			j.commit(reqs)
		}
	}
}

// work commits what waits, when nobody Runs.
func (j *Journal) work() {
	if !j.opt.Inline {
		return
	}
	for j.queue.len() > 0 {
		j.commit(j.queue.take(groupCount, groupBytes))
	}
}

// commit makes requests durable and answers them.
func (j *Journal) commit(reqs []*request) {
	for len(reqs) > 0 {
		n := slices.IndexFunc(reqs, func(r *request) bool { return r.step != nil })
		if n < 0 {
			n = len(reqs)
		}
		if n > 0 {
			j.commitGroup(reqs[:n])
		} else {
			reqs[0].answer <- answer{err: reqs[0].step()}
			n = 1
		}
		reqs = reqs[n:]
	}
}

// commitGroup makes entries and pages durable with one sync.
func (j *Journal) commitGroup(reqs []*request) {
	refuse := func(err error) {
		for _, r := range reqs {
			r.answer <- answer{err: err}
		}
	}
	space, err := j.ready()
	if err != nil {
		refuse(err)
		return
	}
	b := j.build()
	answers := b.take(reqs, space)
	written := len(b.g.parts) > 0
	if written {
		if err := j.settleGroup(b.finish()); err != nil {
			if !mutant.On(mutant.AckBeforeSync) {
				refuse(err)
				return
			}
			written = false
		}
	}
	for i, r := range reqs {
		r.answer <- answers[i]
	}
	if written {
		j.pass(b.g)
	}
}

// settleGroup makes a group durable, and the acks that wait with it.
func (j *Journal) settleGroup(g *group) error {
	acks := j.takeAcks(g)
	if err := j.write(g); err != nil {
		j.mu.Lock()
		defer j.mu.Unlock()
		for ord, a := range acks {
			if j.ackFile[ord].through < a.through {
				j.ackFile[ord] = a
			}
		}
		return err
	}
	j.durable(g)
	return nil
}

// pass hands a durable group to the index.
func (j *Journal) pass(g *group) {
	if !j.opt.Inline {
		j.groups <- g
		return
	}
	if err := j.index(g); err != nil { // durable; the next Open indexes it
		j.opt.Log.Error("index is not written", "err", j.condemn(err))
	}
}

// ready checks that something may be written, and says what the disk has room for.
func (j *Journal) ready() (space, error) {
	space, err := j.space()
	if err != nil {
		return space, err
	}
	if j.w.renew {
		j.mu.Lock()
		defer j.mu.Unlock()
		if err := j.drawEpoch(); err != nil {
			return space, err
		}
		j.w.renew = false
	}
	return space, nil
}

// current is the epoch that is written to.
func (j *Journal) current() *epoch {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.epochs[len(j.epochs)-1]
}

// A lookup finds idempotency keys for a group that is being built.
type lookup struct {
	j     *Journal
	newer map[keyHash]known // in the group, and in those that the index does not have yet
	index view              // nil = not asked yet
}

// lookup looks into the overlay for all keys at once: before the index, so that what is on its
// way from the one to the other is found.
func (j *Journal) lookup(reqs []*request) *lookup {
	l := &lookup{j: j, newer: map[keyHash]known{}}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range reqs {
		for _, h := range r.hashes {
			if held, ok := j.overlay.keys[h]; ok {
				l.newer[h] = held.v
			}
		}
	}
	return l
}

func (l *lookup) end() {
	if l.index != nil {
		l.index.discard()
	}
}

func (l *lookup) key(h keyHash) (known, bool, error) {
	if k, ok := l.newer[h]; ok {
		return k, true, nil
	}
	if l.index == nil {
		l.index = l.j.db.view()
	}
	raw, err := l.index.get(idemKey(h))
	if err != nil {
		return known{}, false, fmt.Errorf("look up key: %w", err)
	}
	if raw == nil {
		return known{}, false, nil
	}
	k, ok := decodeKnown(raw)
	return k, ok && !l.j.expired(k), nil
}

// find gives the first of a request's keys that is known with another digest, or else the
// first that is known.
func (l *lookup) find(r *request) (same known, found bool, err error) {
	for _, h := range r.hashes {
		k, ok, err := l.key(h)
		switch {
		case err != nil:
			return k, false, err
		case ok && k.digest != digest(r.entry.Digest[:]):
			return k, true, nil
		case ok && !found:
			same, found = k, true
		}
	}
	return same, found, nil
}

// expired says that a key is older than RetainFor, and its record retained no more: the PC's
// clock alone is not to be trusted.
func (j *Journal) expired(k known) bool {
	j.mu.Lock()
	held := false
	if len(j.segs) > 0 {
		oldest := j.segs[0]
		held = k.ord > oldest.epoch || k.ord == oldest.epoch && k.seq >= oldest.first
	}
	j.mu.Unlock()
	if held {
		return false
	}
	at, err := time.Parse(time.RFC3339Nano, k.at)
	return err != nil || j.opt.Now().Sub(at) > j.opt.RetainFor
}

func (j *Journal) position(k known) protocol.Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.ordinal(k.ord); e != nil {
		return protocol.Position{Epoch: e.id, Seq: k.seq}
	}
	return protocol.Position{}
}

// takeAcks lets the acks that wait ride along with the group.
func (j *Journal) takeAcks(g *group) map[uint64]ack {
	j.mu.Lock()
	defer j.mu.Unlock()
	taken := j.ackFile
	j.ackFile = map[uint64]ack{}
	for _, a := range taken {
		g.parts = append(g.parts, part{typ: typeAck, payload: a.encode(), ack: &a})
	}
	return taken
}

// write puts the group on the disk. After an error nothing of it counts.
func (j *Journal) write(g *group) error {
	total := int64(0)
	for _, p := range g.parts {
		total += frameHead + int64(len(p.payload))
	}
	fresh := false
	if j.w.f != nil && j.w.off+total+spare > j.w.seg.room {
		if err := j.endSegment(false); err != nil {
			j.opt.Log.Warn("segment was not cut to its length", "segment", j.w.nextOrd-1, "err", err)
		}
	}
	if j.w.f == nil {
		if err := j.beginSegment(total); err != nil {
			j.refused.Store(true)
			return err
		}
		fresh = true
	}
	buf := make([]byte, 0, total)
	for _, p := range g.parts {
		buf = appendFrame(buf, p.typ, j.w.off, p.payload)
	}
	_, err := j.w.f.WriteAt(buf, j.w.off)
	if err == nil {
		err = j.datasync(j.w.f)
	}
	if err == nil && fresh {
		err = j.opt.Disk.SyncDir(j.opt.Dir)
	}
	if err != nil {
		j.fail(fresh)
		return fmt.Errorf("write group: %w", err)
	}
	j.refused.Store(false)
	j.w.off += total
	j.w.n++
	g.n = j.w.n
	g.point.seg, g.point.off = j.w.seg.ord, j.w.off
	return nil
}

// beginSegment creates the next segment file, with room for a group at least.
func (j *Journal) beginSegment(group int64) error {
	e := j.current()
	room := max(j.opt.SegmentBytes, headerRoom+group+spare)
	h := header{
		version: formatVersion, origin: j.opt.Origin, ord: j.w.nextOrd, room: room,
		epoch: e.ord, id: e.id, before: e.before, fork: e.fork, first: e.last + 1, prev: e.hash,
	}
	j.mu.Lock()
	if n := len(j.segs); n > 0 {
		h.pred, h.predEnd = j.segs[n-1].ord, j.segs[n-1].end
	}
	j.mu.Unlock()
	j.w.nextOrd++
	f, err := j.create(&h, room)
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	} else if err != nil {
		return fmt.Errorf("begin segment: %w", err)
	}
	j.w.f, j.w.off = f, headerRoom
	j.w.seg = &segment{header: h, next: h.first, end: headerRoom, size: room}
	return nil
}

// fail ends the segment and the epoch after a failed write or sync. The file is not touched
// again: the next segment's header says where it ends, or that it never was.
func (j *Journal) fail(fresh bool) {
	j.refused.Store(true)
	_ = j.w.f.Close() // it has failed already
	j.w.f = nil
	if fresh {
		// void as it is: no later header will name it
		if err := j.opt.Disk.Remove(j.segmentPath(j.w.seg.ord, false)); err != nil {
			j.opt.Log.Warn("void segment stays", "segment", j.w.seg.ord, "err", err)
		}
	}
	j.w.renew = j.current().last > 0
}

// endSegment cuts the open segment to its length and closes it.
func (j *Journal) endSegment(sync bool) error {
	f, seg := j.w.f, j.w.seg
	j.w.f, j.w.seg = nil, nil
	err := f.Truncate(j.w.off)
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		seg.size = seg.end
	}
	return err
}

func (j *Journal) endRun() error {
	if j.w.f == nil {
		return nil
	}
	if err := j.endSegment(true); err != nil {
		return fmt.Errorf("end segment: %w", err)
	}
	return nil
}

// durable moves the state to what the group made durable.
func (j *Journal) durable(g *group) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.epochs[len(j.epochs)-1]
	j.waiting += int64(g.point.seq - e.last)
	e.last, e.hash = g.point.seq, g.point.hash
	if e.fork != nil {
		j.forked = max(j.forked, e.ord)
	}
	seg := j.w.seg
	if seg.end == headerRoom {
		j.segs = append(j.segs, seg)
	}
	seg.end, seg.next = g.point.off, g.point.seq+1
	j.overlay.add(g)
	for _, p := range g.parts {
		if p.page != nil {
			j.feeds[p.page.Feed] = p.feed
		}
	}
}
