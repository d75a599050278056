package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// indexAll is the indexer: it writes groups and acks to the index behind the committer.
func (j *Journal) indexAll(cancel context.CancelFunc) error {
	err := j.indexGroups()
	if err == nil {
		return nil
	}
	err = j.condemn(err) // first: nobody knows how long the committer takes
	j.damaged("the index cannot be written, the next start builds it anew from the journal: %v", err)
	cancel()
	for range j.groups { // durable; the next Open indexes them
	}
	return err
}

// condemn has the next Open build the index anew.
func (j *Journal) condemn(err error) error {
	if e := j.db.condemn(); e != nil {
		return fmt.Errorf("%w (and its marker: %w)", err, e)
	}
	return err
}

// indexGroups ends with the committer.
func (j *Journal) indexGroups() error {
	for {
		select {
		case g, ok := <-j.groups:
			if !ok {
				return j.indexAcks()
			}
			if err := j.index(g); err != nil {
				return fmt.Errorf("write index: %w", err)
			}
		case <-j.acks:
			if err := j.indexAcks(); err != nil {
				return fmt.Errorf("write acks to index: %w", err)
			}
		case done := <-j.flushes:
			err := j.flush()
			done <- err
			if err != nil {
				return fmt.Errorf("flush index: %w", err)
			}
		case <-j.db.stalled: // a write of the keeper's hangs
			return fmt.Errorf("write index: %w", errStalled)
		}
	}
}

func (j *Journal) flush() error {
	j.keyMu.Lock()
	defer j.keyMu.Unlock()
	return j.db.flush()
}

func (j *Journal) index(g *group) error {
	if err := j.apply(g.parts, g.point); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.ordinal(g.point.ord); e != nil {
		e.visible = g.point.seq
	}
	j.overlay.drop(g)
	signal(j.wake)
	return nil
}

// apply writes parts to the index and moves its point. Doing so twice changes nothing.
func (j *Journal) apply(parts []part, p point) error {
	j.keyMu.Lock()
	defer j.keyMu.Unlock()
	c := j.db.change()
	var swept []string
	for _, part := range parts {
		switch {
		case part.rec != nil:
			j.applyRecord(c, &part)
		case part.page != nil:
			for i := range part.page.Changes {
				ch := &part.page.Changes[i]
				if k := replicaKey(part.page.Feed, part.gen, ch.Key); ch.Body == nil {
					c.del(k)
				} else {
					c.set(k, encodeChange(ch))
				}
			}
			if part.swap {
				swept = append(swept, part.page.Feed)
			}
		case part.rewind != nil:
			j.applyRewind(c, part.rewind)
		}
	}
	for _, part := range parts { // after all that they stand for
		if part.page != nil {
			c.set(feedKey(part.page.Feed), part.feed.encode())
		}
	}
	p.n = j.indexed.n + 1
	c.set(ringKey(p.n), binary.AppendUvarint(nil, p.n))
	c.set(keyPoint, p.encode())
	if err := c.commit(); err != nil {
		return err
	}
	j.indexed = p
	for _, feed := range swept {
		if err := j.sweep(feed); err != nil {
			return err
		}
	}
	return nil
}

// applyRecord writes a record's queue entry, keys and state.
func (j *Journal) applyRecord(c *change, p *part) {
	s := p.rec
	if e := p.begins; e != nil {
		c.set(epochKey(e.ord), encodeEpoch(e.ord, e.id, e.before, e.fork))
	}
	if s.rec.Seq > j.ackedOf(s.ord) {
		c.set(queueKey(s.ord, s.rec.Seq), queued(p.payload))
	}
	for _, k := range s.keys {
		c.set(idemKey(hashKey(k)), s.known().encode())
	}
	if s.stateKey != "" {
		c.set(stateKey(s.stateKey), s.state)
	}
}

func (j *Journal) ackedOf(ord uint64) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.ordinal(ord); e != nil {
		return e.acked
	}
	return 0
}

// indexAcks writes the acks that wait and takes what they cover off the index. While the disk
// is full to the brim, or has refused the journal's own newest write, they wait in memory,
// since Badger is of no use any more after a write of its own that failed. The keeper comes
// back to them.
func (j *Journal) indexAcks() error {
	type work struct {
		ack
		gone uint64
	}
	if s, err := j.space(); err == nil && s.brimful() || j.refused.Load() {
		return nil
	}
	var todo []work
	j.mu.Lock()
	for ord, a := range j.ackIndex {
		e := j.ordinal(ord)
		todo = append(todo, work{a, e.gone})
		e.gone = max(e.gone, a.through) // from here on readers turn to the segments
	}
	clear(j.ackIndex)
	last := j.last
	j.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	c := j.db.change()
	c.set(keyLast, last.encode())
	for _, w := range todo {
		c.set(ackKey(w.ord), encodeAcked(w.through, w.gone, w.hash))
	}
	if c.err == nil { // the acks first, so that nothing is off the index without one
		c.err = c.txn.commit()
		c.txn = c.db.update()
	}
	for _, w := range todo {
		for seq := w.gone + 1; seq <= w.through; seq++ {
			c.del(queueKey(w.ord, seq))
		}
		c.set(ackKey(w.ord), encodeAcked(w.through, max(w.gone, w.through), w.hash))
	}
	return c.commit()
}

func encodeAcked(through, gone uint64, hash protocol.Hash) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint(nil, through), gone), hash[:]...)
}

// errStop ends an iteration early.
var errStop = errors.New("stop")

// sweep drops the generations of a feed that a reset has left behind.
func (j *Journal) sweep(feed string) error {
	st := j.feed(feed)
	for {
		var old [][]byte
		prefix := genKey(feed, 0)
		prefix = prefix[:len(prefix)-8]
		err := j.db.each(prefix, func(k, _ []byte) error {
			gen := binary.BigEndian.Uint64(k[len(prefix):])
			if gen >= st.active || len(old) == 1000 {
				return errStop
			}
			old = append(old, bytes.Clone(k))
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			return err
		}
		if len(old) == 0 {
			return nil
		}
		c := j.db.change()
		for _, k := range old {
			c.del(k)
		}
		if err := c.commit(); err != nil {
			return err
		}
	}
}
