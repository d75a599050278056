package ledger

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// A hole is a stretch of a stream that the agent does not hold any more: it was skipped, and
// the stream goes on behind it.
type hole struct {
	first, last uint64
	hash        protocol.Hash // of record last
	day         string        // of the record before it
}

func (h hole) at(seq uint64) place {
	p := place{hole: true, day: h.day}
	if seq == h.last {
		p.hash = h.hash
	}
	return p
}

// A holeKey is a stretch of records of which the ledger was told that they are lost.
type holeKey struct {
	streamKey
	first, last uint64
}

// A loss is what was told of it.
type loss struct {
	hash        []byte // empty when the stream did not move over it
	reason, day string
	seal        []byte // JSON of the seal that was lost with it; nil when it held none
}

func scanHole(row scanner) (h hole, err error) {
	var first, last int64
	var hash []byte
	err = row.Scan(&first, &last, &hash, &h.day)
	h.first, h.last = uint64(first), uint64(last)
	copy(h.hash[:], hash)
	return h, err
}

// holesIn gives the holes of a stream that touch first..last, in order.
func (g *group) holesIn(ctx context.Context, t tx, s *stream, first, last uint64) (found []hole, err error) {
	if s.holed {
		err = t.run(ctx, false, statement{
			text: `SELECT first_seq, last_seq, hash, day FROM holes WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4
				AND last_seq >= $5 AND first_seq <= $6 AND length(hash) > 0 ORDER BY first_seq`,
			args: []any{g.id, s.key.store, s.key.agent, string(s.key.epoch), int64(first), int64(last)},
			scan: func(row scanner) error {
				h, err := scanHole(row)
				found = append(found, h)
				return err
			},
		})
	}
	for _, h := range s.holes {
		if h.last >= first && h.first <= last {
			found = append(found, h)
		}
	}
	return found, err
}

// skip moves a stream over what its agent does not hold any more, from where it stands to the
// skip's end: the records before that are here, and stay.
func (g *group) skip(ctx context.Context, t tx, j *job, s *stream) error {
	h := hole{first: s.through + 1, last: j.skip.To, hash: j.skip.Hash}
	l := loss{hash: h.hash[:], reason: brief(j.skip.Reason)}
	unknown := ""
	before, through := s, s.through
	if s.through == 0 {
		var err error
		if l.seal, err = json.Marshal(j.seal); err != nil {
			return fmt.Errorf("lost seal of epoch %s: %w", j.epoch, err)
		}
		switch {
		case j.seal == nil:
			unknown = "; the seal is lost too: how much is missing before the epoch is unknown"
		case j.seal.Before != nil:
			before, through = g.stream(j.from, j.seal.Before.Epoch), j.seal.Before.Through
		}
	}
	if through > 0 && through <= before.through {
		p, err := g.at(ctx, t, before, through)
		if err != nil {
			return err
		}
		h.day = p.day
	}
	l.day = h.day
	g.lost[holeKey{s.key, h.first, h.last}] = l
	g.alarm(j.from, AlarmHole, holeDetail(s.key.epoch, h.first, h.last, j.skip.Reason)+unknown)
	s.holes = append(s.holes, h)
	s.through, s.hash, s.moved = h.last, h.hash, true
	return nil
}

// lose notes records that a stream will never bring: it forked, or another agent delivers it.
// What the ledger has of them is not lost.
func (g *group) lose(ctx context.Context, t tx, whose protocol.Origin, told protocol.Loss) error {
	s := g.stream(whose, told.Epoch)
	first := max(told.From, s.through+1)
	if first > told.To {
		return nil
	}
	l := loss{hash: []byte{}, reason: brief(told.Reason)}
	if s.through > 0 {
		p, err := g.at(ctx, t, s, s.through)
		if err != nil {
			return err
		}
		l.day = p.day
	}
	key := holeKey{s.key, first, told.To}
	if len(g.lost[key].hash) == 0 { // a skip says more
		g.lost[key] = l
	}
	g.alarm(whose, AlarmHole, holeDetail(told.Epoch, first, told.To, told.Reason))
	return nil
}

func holeDetail(epoch protocol.Epoch, first, last uint64, reason string) string {
	return fmt.Sprintf("records %d to %d of epoch %s are lost: %s", first, last, epoch, brief(reason))
}

// brief makes an agent's text fit for an index.
func brief(s string) string {
	if short := []rune(s); len(short) > 100 {
		s = string(short[:99]) + "…"
	}
	return storable(s)
}

func (g *group) holeRows() *rows {
	holes := newRows("itttiibttbi")
	for key, l := range g.lost {
		holes.add(g.id, key.store, key.agent, string(key.epoch), int64(key.first), int64(key.last), l.hash, l.reason, l.day, nullable(l.seal), g.at0)
	}
	return holes
}

// A hole over which the stream moved says more than one that was only told of.
var holeInsert = insert("holes", "chain, store, agent, epoch, first_seq, last_seq, hash, reason, day, seal, received",
	`ON CONFLICT (chain, store, agent, epoch, first_seq, last_seq) DO UPDATE SET hash = excluded.hash, reason = excluded.reason,
	day = excluded.day, seal = excluded.seal, received = excluded.received WHERE length(holes.hash) = 0 AND length(excluded.hash) > 0`)
