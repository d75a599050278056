package ledger

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// An agent that was replaced or revoked may have marked days behind what its streams brought;
// another agent delivered those records, and with them the marks (aside.go). They stand in
// quarantine under their own position, or were applied from there under another, with was. Together
// they must give the hash that the agent signed.

// A standing is where the ledger has a record whose was names another place.
type standing struct {
	stream *stream
	seq    uint64
}

// await notes the epochs whose marks speak of more than their streams have.
func (a *agentAudit) await() {
	for epoch, marks := range a.heads {
		st := a.streams[epoch]
		if slices.ContainsFunc(marks, func(m *auditMark) bool { return st == nil || m.Head.Through > st.through }) {
			a.awaited[epoch] = true
		}
	}
}

// meet notes a record that came again, if a mark speaks of where it came first. Of one that the
// ledger appended itself and that had come again before, only the order tells where it stood.
func (a *agentAudit) meet(st *stream, p *entry, aside bool) {
	if was := p.record.Was; a.awaited[was.Epoch] {
		a.again[protocol.Position{Epoch: was.Epoch, Seq: was.Seq}] = standing{st, p.seq}
	} else if aside && len(a.awaited) > 0 {
		a.moved = append(a.moved, standing{st, p.seq})
	}
}

// beyond looks at marks whose heads are in no stream, or behind its end.
func (s *storeAudit) beyond(ctx context.Context, name string, a *agentAudit) error {
	for _, epoch := range sortedKeys(a.awaited) {
		st, key := a.streams[epoch], streamKey{s.store, name, epoch}
		d := drained{s: s, a: a, key: key, hash: protocol.Genesis(s.chain, s.store, name, epoch)}
		if st != nil {
			d.seq, d.hash = st.through, st.hash
		}
		from := d.seq
		marks := a.heads[epoch]
		slices.SortStableFunc(marks, func(x, y *auditMark) int { return cmp.Compare(x.Head.Through, y.Head.Through) })
		for _, m := range marks {
			switch {
			case m.Head.Through <= from || a.wrong[epoch] != nil:
				continue
			case m.signed != nil && st == nil: // else it was named with its stream
				a.wrong[epoch] = s.unsigned(name, m)
				continue
			case m.signed != nil:
				continue
			case slices.ContainsFunc(s.gaps[key], func(g gap) bool { return from < g.last && g.first <= m.Head.Through }):
				continue // some of them are lost, and named: nothing tells the hash behind
			}
			whole, err := d.follow(ctx, m.Head.Through)
			if err != nil {
				return err
			}
			w := wrong{kind: wrongMissing, seq: d.seq + 1, last: m.Head.Through}
			switch {
			case whole && d.hash == m.Head.Hash:
				s.report.Marks++
				s.report.Unsigned, d.applied = s.report.Unsigned-d.applied, 0
				continue
			case whole:
				w.kind, w.seq = wrongChanged, from+1
				w.what = fmt.Sprintf("one of them, which came beside their stream, was changed: at record %d the agent signed another hash in its mark of %s", m.Head.Through, m.day)
			case d.seq > from:
				w.what = fmt.Sprintf("the agent signed the mark of %s behind them, and what came beside their stream has a gap or ends before", m.day)
			case st != nil:
				w.what = fmt.Sprintf("the agent signed the mark of %s behind them, and its stream ends before", m.day)
			default:
				w.what = fmt.Sprintf("the agent signed the mark of %s behind them, and the ledger has nothing of the epoch", m.day)
			}
			a.wrong[epoch] = &w
			s.find(name, epoch, w)
		}
	}
	return nil
}

// A drained chain of hashes goes on behind the end of a stream over what came beside it.
type drained struct {
	s       *storeAudit
	a       *agentAudit
	key     streamKey
	seq     uint64
	hash    protocol.Hash
	moved   int   // how many of the agent's moved records are used
	applied int64 // records on the way, since a mark
}

// follow goes on through a record; false when the one behind seq is not there.
func (d *drained) follow(ctx context.Context, to uint64) (whole bool, err error) {
	for d.seq < to {
		found, err := d.next(ctx)
		if err != nil || !found {
			return false, err
		}
	}
	return true, nil
}

// next goes on over one record: in quarantine, or applied.
func (d *drained) next(ctx context.Context) (found bool, err error) {
	waiting, err := ask(ctx, d.s.q, "SELECT hash, record FROM quarantined WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND seq = $5 AND stream = 0 AND cause <> $6 ORDER BY id",
		[]any{d.s.id, d.key.store, d.key.agent, string(d.key.epoch), int64(d.seq + 1), causeRaw}, func(row scanner, p *entry) error {
			var text []byte
			err := row.Scan(&p.hash, &text)
			p.seq = d.seq + 1
			p.decode(text)
			return err
		})
	if err != nil {
		return false, fmt.Errorf("quarantined record %d of epoch %s: %w", d.seq+1, d.key.epoch, err)
	}
	for _, p := range waiting {
		if p.record != nil && bytes.Equal(p.hash, hashOf(p.record, d.hash)) {
			d.seq, d.hash = d.seq+1, protocol.Hash(p.hash)
			return true, nil
		}
	}
	at, ok := d.a.again[protocol.Position{Epoch: d.key.epoch, Seq: d.seq + 1}]
	if !ok && d.moved < len(d.a.moved) {
		at, ok = d.a.moved[d.moved], true
		d.moved++
	}
	if !ok {
		return false, nil
	}
	there, err := d.s.entries(ctx, at.stream, at.seq, at.seq)
	if err != nil || len(there) == 0 || there[0].record == nil {
		return false, err
	}
	r := *there[0].record
	if r.Was.Epoch == d.key.epoch && r.Was.Seq == d.seq+1 {
		r.Was = nil // it had none there
	}
	r.Seq = d.seq + 1
	d.seq, d.hash = r.Seq, r.Hash(d.hash)
	if at.stream.key.epoch == asideEpoch(protocol.Origin{Chain: d.s.chain, Store: d.key.store, Agent: d.key.agent}) {
		d.applied++
	}
	return true, nil
}

func hashOf(r *protocol.Record, prev protocol.Hash) []byte {
	h := r.Hash(prev)
	return h[:]
}
