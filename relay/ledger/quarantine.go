package ledger

import (
	"context"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

const quarantineColumns = "id, store, agent, epoch, seq, kind, reason, received, record"

func scanQuarantined(row scanner, q *QuarantinedRecord) error {
	var seq, received int64
	err := row.Scan(&q.ID, &q.Store, &q.Agent, (*string)(&q.Epoch), &seq, (*string)(&q.Kind), &q.Reason, &received, &q.Record)
	q.Seq, q.Received = uint64(seq), micros(received)
	return err
}

// Quarantined lists what was received and not applied, oldest first; limit 0 means 100, at
// most 1000.
func (l *Ledger) Quarantined(ctx context.Context, chain string, limit int) ([]QuarantinedRecord, error) {
	return list(ctx, l, chain, "quarantine", "SELECT "+quarantineColumns+" FROM quarantined WHERE chain = $1 ORDER BY id LIMIT $2", []any{limited(limit)}, scanQuarantined)
}

// An IncompleteDay is a business day of a store with records in quarantine.
type IncompleteDay struct {
	Store   string       `json:"store"`
	Day     protocol.Day `json:"day"`
	Records int64        `json:"records"` // in quarantine
}

// IncompleteDays lists the business days from..to whose sums lack quarantined records, of a
// store or of all ("").
func (l *Ledger) IncompleteDays(ctx context.Context, chain, store string, from, to protocol.Day) ([]IncompleteDay, error) {
	query, args := "SELECT store, day, count(*) FROM quarantined WHERE chain = $1 AND day BETWEEN $2 AND $3 AND day <> ''", []any{from.String(), to.String()}
	if store != "" {
		query, args = query+" AND store = $4", append(args, store)
	}
	return list(ctx, l, chain, "incomplete days", query+" GROUP BY store, day ORDER BY store, day", args, func(row scanner, d *IncompleteDay) error {
		var day string
		err := row.Scan(&d.Store, &day, &d.Records)
		if err == nil {
			d.Day, err = parseDay(day)
		}
		return err
	})
}

// RetryQuarantined applies a quarantined record once, at a new position, and takes it out of
// quarantine; or says why it cannot be applied, and nothing changes. A record whose content
// has been applied from elsewhere is taken out as a duplicate.
func (l *Ledger) RetryQuarantined(ctx context.Context, chain string, id int64) error {
	found, err := list(ctx, l, chain, "quarantine", "SELECT "+quarantineColumns+", stream, hash FROM quarantined WHERE chain = $1 AND id = $2", []any{id},
		func(row scanner, q *quarantinedRow) error {
			return scanQuarantined(appended{row, []any{&q.stream, &q.hash}}, &q.QuarantinedRecord)
		})
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err == nil {
		err = l.applyAgain(ctx, chain, &found[0])
	}
	if err != nil {
		return fmt.Errorf("retry quarantined record %d of chain %s: %w", id, chain, err)
	}
	return nil
}

type quarantinedRow struct {
	QuarantinedRecord
	stream int64 // 0 = no stream moved over it
	hash   []byte
}

// appended scans more columns.
type appended struct {
	scanner
	last []any
}

func (a appended) Scan(dest ...any) error { return a.scanner.Scan(append(dest, a.last...)...) }

func (l *Ledger) applyAgain(ctx context.Context, chain string, q *quarantinedRow) error {
	j, err := q.job(chain)
	if err != nil {
		return err
	}
	id, err := l.chainID(ctx, chain, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	return l.commitOrSplit(ctx, chain, id, []*job{j})
}

// retryKnown applies the quarantined records whose kind an older version did not know.
func (l *Ledger) retryKnown(ctx context.Context) error {
	type entry struct {
		chain string
		id    int64
	}
	after := entry{}
	// page looks at the next thousand, and moves after behind them. It has let go of the
	// database before anything is applied.
	page := func() (known []entry, n int, err error) {
		found, err := l.db.read().QueryContext(ctx, `SELECT c.name, q.id, q.kind FROM quarantined q JOIN chains c ON c.id = q.chain
			WHERE q.cause = 'kind' AND (c.name > $1 OR (c.name = $1 AND q.id > $2)) ORDER BY c.name, q.id LIMIT 1000`, after.chain, after.id)
		if err != nil {
			return nil, 0, err
		}
		defer found.Close()
		for found.Next() {
			var kind protocol.Kind
			if err := found.Scan(&after.chain, &after.id, (*string)(&kind)); err != nil {
				return nil, 0, err
			}
			if n++; knows(kind) {
				known = append(known, after)
			}
		}
		return known, n, found.Err()
	}
	for {
		known, n, err := page()
		if err != nil {
			return fmt.Errorf("quarantine: %w", err)
		}
		for _, e := range known {
			switch err := l.RetryQuarantined(ctx, e.chain, e.id); {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				l.log.Warn("a quarantined record of a kind that is known now was not applied", "error", err)
			}
		}
		if n < 1000 {
			return nil
		}
	}
}
