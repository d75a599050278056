package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// exec runs statements in one transaction.
func (l *Ledger) exec(ctx context.Context, statements ...statement) error {
	return l.db.within(ctx, func(t tx) error { return t.run(ctx, true, statements...) })
}

// list runs a query whose $1 is the chain and scans each row. A chain without a row has
// nothing.
func list[T any](ctx context.Context, l *Ledger, chain, what, query string, args []any, scan func(scanner, *T) error) ([]T, error) {
	id, err := l.chainID(ctx, chain, false)
	if err != nil || id == 0 {
		return nil, err
	}
	found, err := l.db.read().QueryContext(ctx, query, append([]any{id}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("%s of chain %s: %w", what, chain, err)
	}
	defer found.Close()
	var all []T
	for found.Next() {
		var v T
		if err := scan(found, &v); err != nil {
			return nil, fmt.Errorf("%s of chain %s: %w", what, chain, err)
		}
		all = append(all, v)
	}
	if err := found.Err(); err != nil {
		return nil, fmt.Errorf("%s of chain %s: %w", what, chain, err)
	}
	return all, nil
}

// Head is the chain's last position and the ledger's incarnation. A chain that is not known
// yet stands at 0.
func (l *Ledger) Head(ctx context.Context, chain string) (pos, incarnation int64, err error) {
	err = l.db.read().QueryRowContext(ctx, "SELECT incarnation, coalesce((SELECT head FROM chains WHERE name = $1), 0) FROM ledger", chain).Scan(&incarnation, &pos)
	if err != nil {
		return 0, 0, fmt.Errorf("head of chain %s: %w", chain, err)
	}
	return pos, incarnation, nil
}

// CountRecords counts the records behind a position, up to a number.
func (l *Ledger) CountRecords(ctx context.Context, chain string, after int64, most int) (n int64, err error) {
	err = l.db.read().QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM records JOIN chains c ON c.id = records.chain WHERE c.name = $1 AND pos > $2 LIMIT $3) behind",
		chain, after, most).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count records of chain %s: %w", chain, err)
	}
	return n, nil
}

const storedColumns = "r.pos, r.store, s.agent, s.epoch, r.seq, r.kind, r.at, r.day, coalesce(r.number, 0), r.received, r.was, r.body"

func scanStored(row scanner, r *StoredRecord) error {
	var seq, received int64
	var day string
	var was []byte
	err := row.Scan(&r.Pos, &r.Store, &r.Agent, (*string)(&r.Epoch), &seq, (*string)(&r.Kind), &r.At, &day, &r.Number, &received, &was, (*[]byte)(&r.Body))
	if err != nil {
		return err
	}
	if was != nil {
		if err := json.Unmarshal(was, &r.Was); err != nil {
			return fmt.Errorf("record %d: was: %w", r.Pos, err)
		}
	}
	r.Seq, r.Received = uint64(seq), micros(received)
	r.Day, err = parseDay(day)
	return err
}

// Records gives the records after a position, in order; limit 0 means 100, at most 1000.
func (l *Ledger) Records(ctx context.Context, chain string, after int64, limit int) ([]StoredRecord, error) {
	return list(ctx, l, chain, "records", "SELECT "+storedColumns+` FROM records r JOIN streams s ON s.chain = r.chain AND s.id = r.stream
		WHERE r.chain = $1 AND r.pos > $2 ORDER BY r.pos LIMIT $3`, []any{after, limited(limit)}, scanStored)
}

// RecordsOf gives the records after a position that have the store, kind and business day;
// "" and the zero Day select all.
func (l *Ledger) RecordsOf(ctx context.Context, chain, store string, kind protocol.Kind, day protocol.Day, after int64, limit int) ([]StoredRecord, error) {
	first, last, err := l.span(ctx, chain, store, day)
	if err != nil {
		return nil, err
	}
	query := "SELECT " + storedColumns + ` FROM records r JOIN streams s ON s.chain = r.chain AND s.id = r.stream
		WHERE r.chain = $1 AND r.pos > $2 AND r.pos BETWEEN $3 AND $4`
	args := []any{after, first, last}
	where := func(column string, value any) {
		args = append(args, value)
		query += fmt.Sprintf(" AND r.%s = $%d", column, len(args)+1)
	}
	if store != "" {
		where("store", store)
	}
	if kind != "" {
		where("kind", string(kind))
	}
	if !day.IsZero() {
		where("day", day.String())
	}
	args = append(args, limited(limit))
	return list(ctx, l, chain, "records", query+fmt.Sprintf(" ORDER BY r.pos LIMIT $%d", len(args)+1), args, scanStored)
}

// span bounds the positions of a day, so that a query for it does not read the whole chain.
func (l *Ledger) span(ctx context.Context, chain, store string, day protocol.Day) (first, last int64, err error) {
	if day.IsZero() {
		return 0, math.MaxInt64, nil
	}
	id, err := l.chainID(ctx, chain, false)
	if err != nil {
		return 0, 0, err
	}
	var from, to sql.NullInt64
	query, args := "SELECT min(first_pos), max(last_pos) FROM day_spans WHERE chain = $1 AND day = $2", []any{id, day.String()}
	if store != "" {
		query, args = query+" AND store = $3", append(args, store)
	}
	if err := l.db.read().QueryRowContext(ctx, query, args...).Scan(&from, &to); err != nil {
		return 0, 0, fmt.Errorf("day %s of chain %s: %w", day, chain, err)
	}
	if !from.Valid {
		return 1, 0, nil // no such day
	}
	return from.Int64, to.Int64, nil
}

func limited(limit int) int {
	if limit <= 0 {
		return 100
	}
	return min(limit, 1000)
}

// Transactions gives the transactions that q selects, and whether there are more of them.
func (l *Ledger) Transactions(ctx context.Context, q TransactionQuery) (rows []TransactionRow, more bool, err error) {
	running := q.Store != "" && q.Type != ""
	query := `SELECT pos, number, store, business_day, type, voided, received, body FROM records
		WHERE chain = $1 AND number IS NOT NULL`
	var args []any
	where := func(term string, value any) {
		args = append(args, value)
		query += fmt.Sprintf(" AND "+term, len(args)+1)
	}
	if q.Store != "" {
		where("store = $%d", q.Store)
	}
	if q.Type != "" {
		where("type = $%d", string(q.Type))
	}
	order := "pos"
	if running {
		order = "number"
	}
	where(order+" >= $%d", q.From)
	if !q.Day.IsZero() {
		where("business_day = $%d", q.Day.String())
		first, last, err := l.span(ctx, q.Chain, q.Store, q.Day)
		if err != nil {
			return nil, false, fmt.Errorf("transactions: %w", err)
		}
		where("pos >= $%d", first)
		where("pos <= $%d", last)
		if running { // within one store and type numbers and positions have the same order
			order = "pos"
		}
	}
	limit := limited(q.Limit)
	args = append(args, limit+1)
	query += fmt.Sprintf(" ORDER BY %s LIMIT $%d", order, len(args)+1)
	rows, err = list(ctx, l, q.Chain, "transactions", query, args, scanTransaction)
	if len(rows) > limit {
		return rows[:limit], true, err
	}
	return rows, false, err
}

func scanTransaction(row scanner, r *TransactionRow) error {
	var day string
	var received, voided int64
	err := row.Scan(&r.Pos, &r.Number, &r.Store, &day, (*string)(&r.Type), &voided, &received, (*[]byte)(&r.Body))
	if err != nil {
		return err
	}
	if r.Day, err = parseDay(day); err != nil {
		return err
	}
	t, err := readTransaction(r.Body)
	if err != nil {
		return fmt.Errorf("transaction at %d: %w", r.Pos, err)
	}
	r.Received = micros(received)
	r.Workstation, r.Sequence = t.Workstation, t.Sequence
	r.Begin, r.End, r.Currency, r.Total, r.Customer, r.Channel = t.Begin, t.End, t.Currency, t.Total, t.Customer, t.Channel
	r.Flags = slices.Clip(t.Check())
	if r.Voided = voided != 0; r.Voided {
		r.Flags = append(r.Flags, FlagVoided)
	}
	return nil
}

// FlagVoided is the flag of a transaction that a void has undone.
const FlagVoided = "voided"

// KPIs gives the sums of a store, or of all ("" ), on the business days from..to.
func (l *Ledger) KPIs(ctx context.Context, chain, store string, from, to protocol.Day) ([]KPIRow, error) {
	query, args := "SELECT store, day, currency, version, "+kpiColumns+" FROM kpis WHERE chain = $1 AND day BETWEEN $2 AND $3", []any{from.String(), to.String()}
	if store != "" {
		query, args = query+" AND store = $4", append(args, store)
	}
	return list(ctx, l, chain, "kpis", query+" ORDER BY store, day, currency", args, func(row scanner, k *KPIRow) error {
		var day string
		dest := []any{&k.Store, &day, &k.Currency, &k.Version}
		for _, sum := range k.sums() {
			dest = append(dest, sum)
		}
		err := row.Scan(dest...)
		if err == nil {
			k.Day, err = parseDay(day)
		}
		return err
	})
}

// Tenders gives what each kind of tender took on a business day, in a store or in all ("").
// Count is the number of transactions in which it occurs; change given is part of Amount.
func (l *Ledger) Tenders(ctx context.Context, chain, store string, day protocol.Day) ([]TenderSum, error) {
	query, args := "SELECT store, currency, type, count, amount FROM tender_days WHERE chain = $1 AND day = $2 AND count <> 0", []any{day.String()}
	if store != "" {
		query, args = query+" AND store = $3", append(args, store)
	}
	return list(ctx, l, chain, "tenders", query+" ORDER BY store, currency, type", args, func(row scanner, s *TenderSum) error {
		s.Day = day
		return row.Scan(&s.Store, &s.Currency, &s.Type, &s.Count, &s.Amount)
	})
}

// Devices gives the newest state of each device of a store, or of all stores ("").
func (l *Ledger) Devices(ctx context.Context, chain, store string) ([]DeviceRow, error) {
	query, args := "SELECT store, device, driver, class, state, drawer, since, reason, hint FROM devices WHERE chain = $1", []any(nil)
	if store != "" {
		query, args = query+" AND store = $2", append(args, store)
	}
	return list(ctx, l, chain, "devices", query+" ORDER BY store, device", args, func(row scanner, d *DeviceRow) error {
		var since int64
		err := row.Scan(&d.Store, &d.Device, &d.Driver, &d.Class, &d.State, &d.Drawer, &since, &d.Reason, &d.Hint)
		d.Since = micros(since)
		return err
	})
}
