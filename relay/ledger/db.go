package ledger

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// A rows value is a set of rows that one statement works on, row by row; types holds one
// letter per column: i int64, t text, b bytes (nil = null).
type rows struct {
	types  string
	values []any
}

func newRows(types string) *rows { return &rows{types: types} }

func (r *rows) add(values ...any) { r.values = append(r.values, values...) }

// drop takes rows out.
func (r *rows) drop(which func(row []any) bool) {
	width, kept := len(r.types), r.values[:0]
	for i := 0; i < len(r.values); i += width {
		if row := r.values[i : i+width]; !which(row) {
			kept = append(kept, row...)
		}
	}
	r.values = kept
}

func (r *rows) len() int { return len(r.values) / len(r.types) }

// A statement is SQL that runs on both databases. Where text says {rows}, rows are put in;
// otherwise args are its $1, $2 ... A scan is called for each row that comes back.
type statement struct {
	text string
	rows *rows
	args []any
	scan func(scanner) error
}

type scanner interface{ Scan(dest ...any) error }

// A tx is a transaction on either database.
type tx interface {
	// run runs the statements in order; last commits in the same round trip. Statements with
	// rows that are empty are left out. Any error ends the transaction.
	run(ctx context.Context, last bool, statements ...statement) error
}

// A database is SQLite or PostgreSQL.
type database interface {
	// within runs fn in a transaction on the connection that commits; fn ends with a run that
	// is the last. Without one, or on an error, everything is rolled back.
	within(ctx context.Context, fn func(tx) error) error
	// read gives the handle for queries outside of transactions.
	read() querier
	// snapshot gives a handle whose queries all see the same state, until done.
	snapshot(ctx context.Context) (q querier, done func() error, err error)
	// backup writes a copy of the database, as of one moment, to a file that is not there yet.
	backup(ctx context.Context, path string) error
	// dataError says whether err blames the rows, and not the database or the way to it.
	dataError(err error) bool
	// retry says whether the same transaction may well succeed when it is tried again.
	retry(err error) bool
	// lock is appended to a query for a row that the transaction changes later.
	lock() string
	// now is the SQL for the database's time in microseconds.
	now() string
	// timeline is the SQL for the number of the database's history; "" when it has none.
	timeline() string
	// committers is how many transactions make sense at once.
	committers() int
	close() error
}

// A querier runs queries outside of transactions; *sql.DB is one.
type querier interface {
	QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, text string, args ...any) *sql.Row
}

// ask runs a query and scans each row.
func ask[T any](ctx context.Context, q querier, text string, args []any, scan func(scanner, *T) error) ([]T, error) {
	found, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var all []T
	for found.Next() {
		var v T
		if err := scan(found, &v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, found.Err()
}

const rowsMark = "{rows}"

func live(statements []statement) []statement {
	kept := statements[:0:0]
	for _, s := range statements {
		if s.rows == nil || s.rows.len() > 0 {
			kept = append(kept, s)
		}
	}
	return kept
}

// keyed makes a query over rows: k has the named columns.
func keyed(columns, query string) string {
	return "WITH k(" + columns + ") AS (" + rowsMark + ") " + query
}

// insert makes an INSERT of rows.
func insert(table, columns, tail string) string {
	return strings.TrimSpace("INSERT INTO " + table + " (" + columns + ") " + rowsMark + " " + tail)
}

// micros reads a stored time.
func micros(v int64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMicro(v).UTC()
}

// storable takes the NUL characters out of text that a JSON body may hold and a column of
// PostgreSQL may not. The body itself is stored as bytes and keeps them.
func storable(s string) string { return strings.ReplaceAll(s, "\x00", "\uFFFD") }
