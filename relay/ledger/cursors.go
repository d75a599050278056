package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Cursor is how far a connector has delivered; the zero Cursor when it never has.
func (l *Ledger) Cursor(ctx context.Context, chain, connector string) (Cursor, error) {
	var c Cursor
	err := l.db.read().QueryRowContext(ctx, `SELECT u.incarnation, u.pos FROM cursors u JOIN chains c ON c.id = u.chain
		WHERE c.name = $1 AND u.connector = $2`, chain, connector).Scan(&c.Incarnation, &c.Pos)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Cursor{}, fmt.Errorf("cursor of %s/%s: %w", chain, connector, err)
	}
	return c, nil
}

// SaveCursor moves a connector's cursor, in either direction.
func (l *Ledger) SaveCursor(ctx context.Context, chain, connector string, c Cursor) error {
	id, err := l.chainID(ctx, chain, true)
	if err == nil {
		err = l.exec(ctx, saveCursor(id, connector, c))
	}
	if err != nil {
		return fmt.Errorf("save cursor of %s/%s: %w", chain, connector, err)
	}
	return nil
}

func saveCursor(chain int64, connector string, c Cursor) statement {
	return statement{
		text: `INSERT INTO cursors (chain, connector, incarnation, pos) VALUES ($1, $2, $3, $4)
			ON CONFLICT (chain, connector) DO UPDATE SET incarnation = excluded.incarnation, pos = excluded.pos`,
		args: []any{chain, connector, c.Incarnation, c.Pos},
	}
}

// AddDeadLetter keeps a record that could not be delivered, and moves the connector's cursor
// over it to next, in one commit. A letter for the same position is replaced. At is filled
// in when it is zero.
func (l *Ledger) AddDeadLetter(ctx context.Context, chain string, d DeadLetter, next Cursor) error {
	if d.At.IsZero() {
		d.At = l.now()
	}
	id, err := l.chainID(ctx, chain, true)
	if err == nil {
		err = l.exec(ctx, statement{
			text: `INSERT INTO dead_letters (chain, connector, pos, attempts, reason, at) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (chain, connector, pos) DO UPDATE SET attempts = excluded.attempts, reason = excluded.reason, at = excluded.at`,
			args: []any{id, d.Connector, d.Pos, int64(d.Attempts), storable(d.Reason), d.At.UnixMicro()},
		}, saveCursor(id, d.Connector, next))
	}
	if err != nil {
		return fmt.Errorf("dead letter %d of %s/%s: %w", d.Pos, chain, d.Connector, err)
	}
	return nil
}

// DeadLetters lists the letters of a connector, or of all ("" ), by position.
func (l *Ledger) DeadLetters(ctx context.Context, chain, connector string) ([]DeadLetter, error) {
	query, args := "SELECT connector, pos, attempts, reason, at FROM dead_letters WHERE chain = $1", []any(nil)
	if connector != "" {
		query, args = query+" AND connector = $2", append(args, connector)
	}
	return list(ctx, l, chain, "dead letters", query+" ORDER BY pos, connector", args, func(row scanner, d *DeadLetter) error {
		var at int64
		err := row.Scan(&d.Connector, &d.Pos, &d.Attempts, &d.Reason, &at)
		d.At = micros(at)
		return err
	})
}

// RemoveDeadLetter forgets a letter, after it was delivered or given up; ErrNotFound when
// there is none.
func (l *Ledger) RemoveDeadLetter(ctx context.Context, chain, connector string, pos int64) error {
	id, err := l.chainID(ctx, chain, false)
	found := false
	if err == nil {
		err = l.exec(ctx, statement{
			text: "DELETE FROM dead_letters WHERE chain = $1 AND connector = $2 AND pos = $3 RETURNING 1",
			args: []any{id, connector, pos},
			scan: func(scanner) error { found = true; return nil },
		})
	}
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("dead letter %d of %s/%s: %w", pos, chain, connector, err)
	}
	return nil
}

// Lease says whether holder has the named lease: it was free, expired by the database's
// clock, or holder's already, and is holder's for ttl from now.
func (l *Ledger) Lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	held := false
	now, args := l.db.now(), []any{name, holder, ttl.Microseconds()}
	if l.inline { // a simulation's clock
		now, args = "CAST($4 AS bigint)", append(args, l.now().UnixMicro())
	}
	err := l.exec(ctx, statement{
		text: `INSERT INTO leases (name, holder, until) VALUES ($1, $2, ` + now + ` + CAST($3 AS bigint))
			ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
			WHERE leases.holder = excluded.holder OR leases.until <= ` + now + ` RETURNING 1`,
		args: args,
		scan: func(scanner) error { held = true; return nil },
	})
	if err != nil {
		return false, fmt.Errorf("lease %s for %s: %w", name, holder, err)
	}
	return held, nil
}
