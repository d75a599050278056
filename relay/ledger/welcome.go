package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
)

// Welcome answers a hello: the incarnation, the relay's time, and a mark for each epoch that
// the hello names; an epoch that is not known stands at 0 with its genesis hash. A hello
// that shows an ack of this incarnation above the mark proves that the ledger went back in
// time: its incarnation is raised first. A revoked agent gets ErrRevoked.
func (l *Ledger) Welcome(ctx context.Context, from protocol.Origin, hello protocol.Hello) (protocol.Welcome, error) {
	if err := checkOrigin(from); err != nil {
		return protocol.Welcome{}, fmt.Errorf("welcome: %w", err)
	}
	id, err := l.chainID(ctx, from.Chain, true)
	if err != nil {
		return protocol.Welcome{}, fmt.Errorf("welcome %s: %w", from, err)
	}
	for {
		w, lost, err := l.welcome(ctx, id, from, hello)
		if err != nil {
			return protocol.Welcome{}, fmt.Errorf("welcome %s: %w", from, err)
		}
		if !lost {
			return w, nil
		}
		l.log.Warn("an agent holds an ack that the ledger does not know: the database went back in time, the incarnation is raised",
			"origin", from.String(), "epoch", hello.LastAck.Epoch, "acked", hello.LastAck.Through, "incarnation", w.Incarnation)
		if err := l.raise(ctx, w.Incarnation); err != nil {
			return protocol.Welcome{}, fmt.Errorf("welcome %s: %w", from, err)
		}
	}
}

func (l *Ledger) welcome(ctx context.Context, id int64, from protocol.Origin, hello protocol.Hello) (w protocol.Welcome, lost bool, err error) {
	now := l.now()
	w.Time = now.UTC().Format(time.RFC3339)
	asked := newRows("ittt")
	marks := map[protocol.Epoch]protocol.Mark{}
	var order []protocol.Epoch
	name := func(epoch protocol.Epoch) {
		if _, ok := marks[epoch]; !ok && epoch.Valid() {
			marks[epoch] = protocol.Mark{Epoch: epoch, Hash: protocol.Genesis(from.Chain, from.Store, from.Agent, epoch)}
			order = append(order, epoch)
			asked.add(id, from.Store, from.Agent, string(epoch))
		}
	}
	name(hello.Oldest.Epoch)
	name(hello.Newest.Epoch)
	if hello.LastAck != nil {
		name(hello.LastAck.Epoch)
	}
	state, known := AgentActive, false
	agent := []any{id, from.Store, from.Agent}
	err = l.db.within(ctx, func(t tx) error {
		if err := t.run(ctx, false,
			statement{
				text: "UPDATE agents SET last_seen = $4, version = $5 WHERE chain = $1 AND store = $2 AND agent = $3 RETURNING state",
				args: append(agent, now.UnixMicro(), storable(hello.Version)),
				scan: func(row scanner) error { known = true; return row.Scan(&state) },
			},
			statement{text: "SELECT incarnation FROM ledger", scan: func(row scanner) error { return row.Scan(&w.Incarnation) }},
			markStatement(asked, func(m protocol.Mark) { marks[m.Epoch] = m })); err != nil {
			return err
		}
		if known {
			return t.run(ctx, true)
		}
		alarms := newRows("itttti")
		alarms.add(id, from.Store, from.Agent, AlarmUnknownAgent, unknownAgentDetail, now.UnixMicro())
		return t.run(ctx, true,
			statement{
				text: "INSERT INTO agents (chain, store, agent, state, last_seen, version) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
				args: append(agent, AgentActive, now.UnixMicro(), storable(hello.Version)),
			},
			statement{rows: alarms, text: alarmInsert})
	})
	if err != nil {
		return w, false, err
	}
	if state == AgentRevoked {
		return w, false, ErrRevoked
	}
	for _, epoch := range order {
		w.Marks = append(w.Marks, marks[epoch])
	}
	if ack := hello.LastAck; ack != nil && hello.Incarnation == w.Incarnation {
		lost = ack.Through > marks[ack.Epoch].Through && ack.Epoch.Valid()
	}
	return w, lost, nil
}

// Marks tells how far the ledger knows epochs of an agent, one mark for each, in order; one
// that is not known stands at 0 with its genesis hash.
func (l *Ledger) Marks(ctx context.Context, from protocol.Origin, ask protocol.MarksAsk) (protocol.Marks, error) {
	var m protocol.Marks
	if err := checkOrigin(from); err != nil {
		return m, fmt.Errorf("marks: %w", err)
	}
	if len(ask.Epochs) > protocol.MaxEpochs {
		return m, fmt.Errorf("marks %s: %d epochs asked for, at most %d", from, len(ask.Epochs), protocol.MaxEpochs)
	}
	id, err := l.chainID(ctx, from.Chain, true)
	if err != nil {
		return m, fmt.Errorf("marks %s: %w", from, err)
	}
	asked := newRows("ittt")
	place := map[protocol.Epoch]int{}
	for i, epoch := range ask.Epochs {
		place[epoch] = i
		m.Marks = append(m.Marks, protocol.Mark{Epoch: epoch, Hash: protocol.Genesis(from.Chain, from.Store, from.Agent, epoch)})
		if epoch.Valid() {
			asked.add(id, from.Store, from.Agent, string(epoch))
		}
	}
	err = l.db.within(ctx, func(t tx) error {
		return t.run(ctx, true,
			statement{text: "SELECT incarnation FROM ledger", scan: func(row scanner) error { return row.Scan(&m.Incarnation) }},
			markStatement(asked, func(mark protocol.Mark) { m.Marks[place[mark.Epoch]] = mark }))
	})
	if err != nil {
		return protocol.Marks{}, fmt.Errorf("marks %s: %w", from, err)
	}
	return m, nil
}

// markStatement reads the marks of streams; rows are chain, store, agent, epoch.
func markStatement(asked *rows, found func(protocol.Mark)) statement {
	return statement{
		text: keyed("chain, store, agent, epoch", `SELECT s.epoch, s.through, s.hash
			FROM k JOIN streams s ON s.chain = k.chain AND s.store = k.store AND s.agent = k.agent AND s.epoch = k.epoch`),
		rows: asked,
		scan: func(row scanner) error {
			var m protocol.Mark
			var through int64
			var hash []byte
			err := row.Scan((*string)(&m.Epoch), &through, &hash)
			m.Through = uint64(through)
			copy(m.Hash[:], hash)
			found(m)
			return err
		},
	}
}

// step is what positions, numbers and feed versions jump to a multiple of when the
// incarnation is raised (docs/protocol.md, incarnation).
const step = 1_000_000_000

// raise raises the incarnation from the one given; when it is another by now, it was raised
// already and nothing changes.
func (l *Ledger) raise(ctx context.Context, from int64) error {
	err := l.db.within(ctx, func(t tx) error {
		moved := false
		if err := t.run(ctx, false, statement{
			text: "UPDATE ledger SET incarnation = incarnation + 1 WHERE incarnation = $1 RETURNING incarnation",
			args: []any{from},
			scan: func(scanner) error { moved = true; return nil },
		}); err != nil || !moved {
			return errors.Join(err, ifNot(moved, errRaised))
		}
		return t.run(ctx, true, l.jump(from+1)...)
	})
	if errors.Is(err, errRaised) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("raise incarnation %d: %w", from, err)
	}
	return nil
}

var errRaised = errors.New("raised already")

func ifNot(ok bool, err error) error {
	if ok {
		return nil
	}
	return err
}

// jump moves everything that is handed out to the next multiple of step. The rows of the
// feeds move too, so that a cursor of the older incarnation, and only such a one, is below
// the floor.
func (l *Ledger) jump(incarnation int64) []statement {
	return []statement{
		{text: fmt.Sprintf(`INSERT INTO jumps (chain, incarnation, head_before, head_after, at)
			SELECT id, CAST($1 AS bigint), head, (head / %[1]d + 1) * %[1]d, CAST($2 AS bigint) FROM chains`, step), args: []any{incarnation, l.now().UnixMicro()}},
		{text: fmt.Sprintf(`UPDATE feeds SET version = version + (SELECT (c.feed_version / %[1]d + 1) * %[1]d FROM chains c WHERE c.id = feeds.chain)`, step)},
		{text: fmt.Sprintf(`UPDATE chains SET head = (head / %[1]d + 1) * %[1]d, feed_floor = (feed_version / %[1]d + 1) * %[1]d,
			feed_version = feed_version + (feed_version / %[1]d + 1) * %[1]d`, step)},
		{text: fmt.Sprintf("UPDATE numbers SET last = (last / %[1]d + 1) * %[1]d", step)},
	}
}

// followTimeline raises the incarnation when PostgreSQL is on another timeline than it was:
// a standby took over, or a backup was restored to a point in time.
func (l *Ledger) followTimeline(ctx context.Context) error {
	if l.db.timeline() == "" {
		return nil
	}
	var now, stored, incarnation int64
	err := l.db.read().QueryRowContext(ctx, "SELECT "+l.db.timeline()+", timeline, incarnation FROM ledger").Scan(&now, &stored, &incarnation)
	if err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	if now == stored {
		return nil
	}
	if stored != 0 {
		l.log.Warn("PostgreSQL is on another timeline than before: the incarnation is raised", "timeline", now, "before", stored)
		if err := l.raise(ctx, incarnation); err != nil {
			return err
		}
	}
	if err := l.exec(ctx, statement{text: "UPDATE ledger SET timeline = $1", args: []any{now}}); err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	return nil
}
