package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// step is what positions, numbers and feed versions jump to a multiple of when the
// incarnation is raised (docs/protocol.md, incarnation).
const step = 1_000_000_000

// floorOf is where everything that is handed out in an incarnation begins at the earliest, so
// that no two incarnations hand out the same.
func floorOf(incarnation int64) int64 { return (incarnation - 1) * step }

// Raise raises the incarnation above the present and the given one, and gives the new one: for
// a database that was restored by its own tools. Other relays may commit meanwhile; each of
// their commits is before or after it.
func (l *Ledger) Raise(ctx context.Context, seen int64) (incarnation int64, err error) {
	for {
		if err := l.db.read().QueryRowContext(ctx, "SELECT incarnation FROM ledger").Scan(&incarnation); err != nil {
			return 0, fmt.Errorf("raise incarnation: %w", err)
		}
		to := max(incarnation, seen) + 1
		if raised, err := l.raise(ctx, incarnation, to, "by `storelay-relay restore`"); err != nil || raised {
			return to, err
		}
	}
}

// raise raises the incarnation from one to another; when it is not the first any more, it was
// raised already and nothing changes. Why goes into the alarm.
func (l *Ledger) raise(ctx context.Context, from, to int64, why string) (raised bool, err error) {
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
		return l.jump(ctx, t, to, why)
	})
	if errors.Is(err, errRaised) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("raise incarnation %d: %w", from, err)
	}
	return raised, nil
}

var errRaised = errors.New("raised already")

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
