package ledger

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// Records come beside their agent's own streams when another agent of the chain delivers them
// (drain), or when they were said to be lost and came after all. They wait in quarantine. When
// a person has them applied, the ledger appends them to a stream of its own, with was: they
// have a position there, and everything that recognises a record that was appended again
// recognises them.

// asideEpoch is the epoch of the stream in which the ledger appends an agent's records that
// came beside its streams.
func asideEpoch(whose protocol.Origin) protocol.Epoch {
	sum := protocol.Genesis(whose.Chain, whose.Store, whose.Agent, "aside")
	return protocol.Epoch(hex.EncodeToString(sum[:16]))
}

// aside takes records that another agent delivers: what the ledger does not hold goes into
// quarantine, once. Their agent's stream does not move.
func (g *group) aside(ctx context.Context, t tx, j *job) error {
	s := g.stream(*j.of, j.epoch)
	if j.skip != nil {
		if err := g.lose(ctx, t, *j.of, protocol.Loss{Epoch: j.epoch, From: j.first, To: j.skip.To, Reason: j.skip.Reason}); err != nil {
			return err
		}
	}
	held, err := g.held(ctx, t, s, j.begin(), j.last())
	if err != nil {
		return err
	}
	j.answer = protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: g.incarnation, Epoch: j.epoch, Through: j.last()}
	if j.skip != nil {
		j.answer.Hash = j.skip.Hash
	}
	for _, it := range j.items {
		r := it.record
		j.answer.Hash = it.hash
		if held[heldKey{r.Seq, it.hash}] || g.resent[resentKey{s.key, r.Seq, r.ContentHash()}] {
			continue
		}
		cause, reason := causeDrained, fmt.Sprintf("delivered by %s/%s in its place", j.from.Store, j.from.Agent)
		if it.cause != "" {
			reason += "; " + it.reason
		}
		if it.cause == causeDatabase {
			cause = causeDatabase
		}
		g.quarantine(*j.of, s.key, 0, it, cause, reason)
	}
	return nil
}

type heldKey struct {
	seq  uint64
	hash protocol.Hash
}

// held gives what the ledger has at positions first..last of a stream: applied, known as a
// duplicate, or in quarantine.
func (g *group) held(ctx context.Context, t tx, s *stream, first, last uint64) (map[heldKey]bool, error) {
	held := map[heldKey]bool{}
	for _, it := range s.items {
		held[heldKey{it.record.Seq, it.hash}] = true
	}
	scan := func(row scanner) error {
		var seq int64
		var hash []byte
		err := row.Scan(&seq, &hash)
		if len(hash) == len(protocol.Hash{}) {
			held[heldKey{uint64(seq), protocol.Hash(hash)}] = true
		}
		return err
	}
	span := []any{g.id, s.id, int64(first), int64(last)}
	err := t.run(ctx, false,
		statement{text: "SELECT seq, hash FROM records WHERE chain = $1 AND stream = $2 AND seq BETWEEN $3 AND $4", args: span, scan: scan},
		statement{text: "SELECT seq, hash FROM duplicates WHERE chain = $1 AND stream = $2 AND seq BETWEEN $3 AND $4", args: span, scan: scan},
		statement{
			text: "SELECT seq, hash FROM quarantined WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND seq BETWEEN $5 AND $6",
			args: []any{g.id, s.key.store, s.key.agent, string(s.key.epoch), int64(first), int64(last)},
			scan: scan,
		})
	return held, err
}

// applyAgain applies a quarantined record and takes it out of quarantine, or neither.
func (g *group) applyAgain(ctx context.Context, t tx, j *job) error {
	waits := false
	if err := t.run(ctx, false, statement{
		text: "DELETE FROM quarantined WHERE chain = $1 AND id = $2 AND stream = $3 RETURNING 1", // its stream may have come to it since
		args: []any{g.id, j.again.ID, j.again.stream},
		scan: func(scanner) error { waits = true; return nil },
	}); err != nil {
		return err
	}
	if !waits {
		return ErrNotFound
	}
	it, s := j.items[0], g.stream(j.from, j.epoch)
	if j.again.stream == 0 {
		g.found(s)
		it.record.Seq = s.through + 1
		it.hash = it.record.Hash(s.hash)
		s.append(it)
	} else if s.id == 0 {
		return errNoRecord
	}
	if err := g.apply(ctx, t, j.from, s, it); err != nil {
		return err
	}
	if values := g.changes.quarantined.values; len(values) > 0 {
		return protocol.Faults{{Problem: values[len(values)-5].(string)}}
	}
	return nil
}

// job makes the job that applies a quarantined record.
func (q *quarantinedRow) job(chain string) (*job, error) {
	from := protocol.Origin{Chain: chain, Store: q.Store, Agent: q.Agent}
	r := new(protocol.Record)
	if err := json.Unmarshal(q.Record, r); err != nil {
		return nil, err
	}
	it := &item{record: r, day: r.Day.String()}
	copy(it.hash[:], q.hash)
	if it.read(from); it.cause != "" {
		return nil, errors.New(it.reason)
	}
	j := &job{from: from, epoch: q.Epoch, first: q.Seq, items: []*item{it}, again: q}
	if q.stream == 0 {
		j.epoch, j.first = asideEpoch(from), 1
		if r.Was == nil {
			r.Was = &protocol.Was{Epoch: q.Epoch, Seq: q.Seq, SHA256: r.ContentHash()}
		}
	}
	return j, nil
}
