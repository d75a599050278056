package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
)

// step is what positions, numbers and feed versions jump to a multiple of when the
// incarnation is raised (docs/protocol.md, incarnation).
const step = 1_000_000_000

// mostIncarnation bounds the incarnation, so that positions are exact in every reader of JSON.
const mostIncarnation = 9_000_000

// floorOf is where everything that is handed out in an incarnation begins at the earliest, so
// that no two incarnations hand out the same.
func floorOf(incarnation int64) int64 { return (incarnation - 1) * step }

// Raise raises the incarnation above the present and the given one, and gives the new one: for
// a database that was restored by its own tools. Other relays may commit meanwhile; each of
// their commits is before or after it.
func (l *Ledger) Raise(ctx context.Context, seen int64) (incarnation int64, err error) {
	if seen >= mostIncarnation {
		return 0, fmt.Errorf("raise incarnation above %d: no ledger has ever stood there, so whoever says so is not to be trusted; at most %d", seen, mostIncarnation-1)
	}
	for {
		if err := l.db.read().QueryRowContext(ctx, "SELECT incarnation FROM ledger").Scan(&incarnation); err != nil {
			return 0, fmt.Errorf("raise incarnation: %w", err)
		}
		to := max(incarnation, seen) + 1
		if raised, err := l.raise(ctx, incarnation, to, "by `storelay-relay restore`", nil); err != nil || raised {
			return to, err
		}
	}
}

// raise raises the incarnation from one to another; when it is not the first any more, it was
// raised already and nothing changes. Why goes into the alarm. What else belongs into the commit
// is done by with, which may refuse it; nil = nothing.
func (l *Ledger) raise(ctx context.Context, from, to int64, why string, with func(tx) error) (raised bool, err error) {
	err = l.db.within(ctx, func(t tx) error {
		if err := t.run(ctx, false, statement{
			text: "UPDATE ledger SET incarnation = $2 WHERE incarnation = $1 RETURNING 1",
			args: []any{from, to},
			scan: func(scanner) error { raised = true; return nil },
		}); err != nil {
			return err
		}
		if !raised {
			return errRaised
		}
		if with != nil {
			if err := with(t); err != nil {
				return err
			}
		}
		return l.jump(ctx, t, to, why)
	})
	if errors.Is(err, errRaised) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("raise incarnation %d: %w", from, err)
	}
	return true, nil
}

var (
	errRaised  = errors.New("raised already")
	errTooSoon = errors.New("the agent has had it raised within the hour")
)

// raiseEvery is how often one agent's hello may raise the incarnation, by the relay's clock.
//
// A raise locks every chain, moves all that is handed out by step, and lets every agent ask for
// marks, so it must not be a lever: whoever holds one certificate can invent an ack, and the
// ledger cannot tell, since what it lost may be just that. It costs a raise an hour then, each
// with an alarm that names the agent. A ledger that was restored unnoticed is found all the
// same: by the first agent that holds an ack of what is lost; when that happens twice within
// the hour, by any other; and else by the same one, when the hour has passed.
//
// An agent that is not believed is not shut out: it is welcomed with the mark that stands below
// its ack, and sends again from there at once, in order, through the epochs before too, for the
// relay answers gap until each is complete. So the ledger gets all that the agent holds, without
// a raise. What a raise would give beyond that is positions that no reader has seen before; and
// where another branch has filled up what was lost, what stood there. Hence the alarm, which
// asks a person to look and to raise it by the command (docs/decisions/0007).
const raiseEvery = time.Hour

// raiseFor raises the incarnation since an agent shows an ack that the ledger does not know;
// errTooSoon when it has done so within the hour. Nothing changes when another was first.
func (l *Ledger) raiseFor(ctx context.Context, id int64, from protocol.Origin, incarnation int64) error {
	now := l.now()
	span := []any{id, from.Store, from.Agent, now.Add(-raiseEvery).UnixMicro(), now.UnixMicro()} // a time ahead is of a clock that was wrong
	var recent int64
	const within = "chain = $1 AND store = $2 AND agent = $3 AND raised > $4 AND raised <= $5"
	// First without a lock: a refusal costs no more than any hello.
	if err := l.db.read().QueryRowContext(ctx, "SELECT count(*) FROM agents WHERE "+within, span...).Scan(&recent); err != nil {
		return fmt.Errorf("raise incarnation %d: %w", incarnation, err)
	}
	if recent > 0 {
		return errTooSoon
	}
	alarms := newRows("itttti")
	alarms.add(id, from.Store, from.Agent, AlarmUnknownAck, fmt.Sprintf(
		"showed an ack that the ledger did not know: the database went back in time, and its incarnation was raised to %d; if it was not restored, the agent is not to be trusted", incarnation+1), now.UnixMicro())
	raised, err := l.raise(ctx, incarnation, incarnation+1, "by the hello of an agent (alarm "+AlarmUnknownAck+")", func(t tx) error {
		first := false // another relay may have raised it for the agent meanwhile
		err := t.run(ctx, false,
			statement{
				text: "UPDATE agents SET raised = $5 WHERE chain = $1 AND store = $2 AND agent = $3 AND NOT (raised > $4 AND raised <= $5) RETURNING 1",
				args: span,
				scan: func(scanner) error { first = true; return nil },
			},
			statement{rows: alarms, text: alarmInsert})
		if err == nil && !first {
			err = errTooSoon
		}
		return err
	})
	if raised && err == nil {
		l.log.Warn("an agent holds an ack that the ledger does not know: the database went back in time, the incarnation is raised", "origin", from.String(), "incarnation", incarnation+1)
	}
	return err
}

// doubt names an agent whose ack is not believed. The detail holds nothing that the agent can
// choose, so that it cannot fill the table.
func (l *Ledger) doubt(ctx context.Context, id int64, from protocol.Origin, incarnation int64, why string) error {
	alarms := newRows("itttti")
	alarms.add(id, from.Store, from.Agent, AlarmUnknownAck, fmt.Sprintf(
		"shows an ack that the ledger does not know, and is not believed: %s; if the database was restored since it had incarnation %d, run `storelay-relay restore -raise`", why, incarnation), l.now().UnixMicro())
	return l.exec(ctx, statement{rows: alarms, text: alarmInsert})
}

// jump moves everything that is handed out to the next multiple of step, under the lock of
// every chain's row: a commit is finished before, or reads the new incarnation. (A chain that
// is new takes the lock of the ledger's row, which the caller has.) The rows of the feeds move
// too, so that a cursor of an older incarnation, and only such a one, is below the floor. Each
// chain gets an alarm: what nobody looks at after a restore stays lost.
func (l *Ledger) jump(ctx context.Context, t tx, to int64, why string) error {
	now, alarms := l.now().UnixMicro(), newRows("itttti")
	if err := t.run(ctx, false,
		statement{text: "SELECT id FROM chains ORDER BY id" + l.db.lock(), scan: func(scanner) error { return nil }},
		statement{text: "SELECT c.id, coalesce((SELECT max(s.at) FROM streams s WHERE s.chain = c.id), 0) FROM chains c", scan: func(row scanner) error {
			var id, newest int64
			err := row.Scan(&id, &newest)
			alarms.add(id, "", "", AlarmRestored, restoredDetail(to, why, micros(newest)), now)
			return err
		}}); err != nil {
		return err
	}
	next := func(column string) string {
		return fmt.Sprintf("CASE WHEN (%[1]s / %[2]d + 1) * %[2]d > %[3]d THEN (%[1]s / %[2]d + 1) * %[2]d ELSE %[3]d END", column, int64(step), floorOf(to))
	}
	return t.run(ctx, true,
		statement{text: "INSERT INTO jumps (chain, incarnation, head_before, head_after, at) SELECT id, CAST($1 AS bigint), head, " + next("head") + ", CAST($2 AS bigint) FROM chains",
			args: []any{to, now}},
		statement{text: "UPDATE feeds SET version = version + (SELECT " + next("c.feed_version") + " - c.feed_floor FROM chains c WHERE c.id = feeds.chain)"},
		statement{text: "UPDATE chains SET head = " + next("head") + ", feed_version = feed_version - feed_floor + " + next("feed_version") + ", feed_floor = " + next("feed_version")},
		statement{text: "UPDATE numbers SET last = " + next("last")},
		statement{rows: alarms, text: alarmInsert})
}

// restoredDetail says from when the ledger is, and what is asked of agents and people.
func restoredDetail(incarnation int64, why string, newest time.Time) string {
	from := "it had no record then"
	if !newest.IsZero() {
		from = "its newest record then had come at " + newest.Format(time.RFC3339)
	}
	return fmt.Sprintf("the ledger was restored and has incarnation %d, raised %s; %s. Agents send again what it lacks, once each has connected; "+
		"on PCs that have a new identity run `storelay-agent drain` again; apply again what was in quarantine", incarnation, why, from)
}

// followTimeline raises the incarnation when PostgreSQL is on another timeline than it was: a
// standby took over, or a backup was restored to a point in time.
func (l *Ledger) followTimeline(ctx context.Context) error {
	if l.db.timeline() == "" {
		return nil
	}
	return l.db.within(ctx, func(t tx) error { return l.follow(ctx, t) })
}

// follow is followTimeline on a connection that is new: a server that took over is met on none
// other. Nothing is committed there before.
func (l *Ledger) follow(ctx context.Context, t tx) error {
	var now, before, incarnation int64
	if err := t.run(ctx, false, statement{
		text: "SELECT " + l.db.timeline() + ", timeline, incarnation FROM ledger",
		scan: func(row scanner) error { return row.Scan(&now, &before, &incarnation) },
	}); err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	if now == before {
		return t.run(ctx, true)
	}
	to, moved := incarnation+1, false
	if before == 0 { // a ledger that was never opened
		to = incarnation
	}
	if err := t.run(ctx, false, statement{
		text: "UPDATE ledger SET timeline = $1, incarnation = $2 WHERE timeline = $3 AND incarnation = $4 RETURNING 1",
		args: []any{now, to, before, incarnation},
		scan: func(scanner) error { moved = true; return nil },
	}); err != nil {
		return fmt.Errorf("timeline: %w", err)
	}
	if !moved || before == 0 { // another relay was first
		return t.run(ctx, true)
	}
	l.log.Warn("PostgreSQL is on another timeline than before: the incarnation is raised", "timeline", now, "before", before, "incarnation", to)
	return l.jump(ctx, t, to, fmt.Sprintf("since PostgreSQL is on timeline %d after %d", now, before))
}
