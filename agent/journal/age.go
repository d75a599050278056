package journal

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The journal's age is the time that retention goes by. A wall clock would not do: a PC whose
// battery is dead starts in the year 2001, and when somebody sets its clock right everything
// is 25 years old at once. The age grows with the time that the PC runs, and by a day at most
// for a time while the agent did not, so that in doubt things are kept longer.

const mostGap = 24 * time.Hour

// An ageing journal is one whose keeper works.
type ageing struct {
	age  time.Duration
	wall time.Time     // when it was that old; zero = never before
	mono time.Duration // the same, since the PC booted; of this run
	runs bool          // mono holds
}

func (a *ageing) grow(now time.Time, mono time.Duration) {
	switch {
	case a.runs:
		a.age += max(0, mono-a.mono)
	case !a.wall.IsZero():
		a.age += min(max(0, now.Sub(a.wall)), mostGap)
	}
	a.wall, a.mono, a.runs = now, mono, true
}

func (a *ageing) encode() []byte {
	return binary.AppendVarint(binary.AppendVarint(nil, a.age.Milliseconds()), a.wall.UnixMilli())
}

func decodeAgeing(b []byte) (ageing, error) {
	d := decoder{b: b}
	a := ageing{age: time.Duration(d.varint()) * time.Millisecond, wall: time.UnixMilli(d.varint())}
	return a, d.err()
}

// grow makes the journal older, on the disk too.
func (j *Journal) grow() error {
	j.mu.Lock()
	j.ageing.grow(j.opt.Now(), j.opt.Mono())
	text := j.ageing.encode()
	j.mu.Unlock()
	return j.note(keyAge, text)
}

// note writes one pair to the index, unless the disk has no room for the index.
func (j *Journal) note(key, value []byte) error {
	if s, err := j.space(); err != nil || s.brimful() || j.refused.Load() {
		return err
	}
	j.keyMu.Lock()
	defer j.keyMu.Unlock()
	c := j.db.change()
	c.set(key, value)
	if err := c.commit(); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// loadAges reads how old the journal is, and its packed segments when they were packed; one
// of which nothing is known counts as packed now.
func (j *Journal) loadAges() error {
	raw, err := j.db.get(keyAge)
	if err == nil && raw != nil {
		j.ageing, err = decodeAgeing(raw)
	}
	if err != nil {
		return fmt.Errorf("read age: %w", err)
	}
	for _, s := range j.segs {
		s.since = j.ageing.age
		if raw, err = j.db.get(packedKey(s.ord)); err != nil {
			return fmt.Errorf("read age: %w", err)
		}
		if at, n := binary.Varint(raw); n > 0 {
			s.since = min(time.Duration(at)*time.Millisecond, j.ageing.age)
		}
	}
	return nil
}
