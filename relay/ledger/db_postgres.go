package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// postgresDB is a PostgreSQL server that several relays may share.
type postgresDB struct {
	pool    *pgxpool.Pool // reads, LISTEN, NOTIFY
	readers *sql.DB       // over pool
	commits *pgxpool.Pool // transactions
	texts   sync.Map      // statement.text with its rows put in
	follow  atomic.Pointer[func(context.Context, tx) error]
}

const postgresCommitters = 4

func openPostgres(ctx context.Context, url string) (*postgresDB, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "storelay-relay"
	config.MaxConns = max(config.MaxConns, 12)
	db := &postgresDB{}
	if db.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	commits := config.Copy()
	commits.MaxConns = postgresCommitters + 2
	// A commit looks up its own few keys by index. Without this a plan that was made while
	// the tables were small would be kept, and scan them when they are not. The planner
	// expresses "off" as a high cost, which would make it compile each statement (jit).
	for _, way := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"} {
		commits.ConnConfig.RuntimeParams[way] = "off"
	}
	commits.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		if follow := db.follow.Load(); follow != nil {
			return (*follow)(ctx, &postgresTx{db: db, conn: conn})
		}
		return nil
	}
	if db.commits, err = pgxpool.NewWithConfig(ctx, commits); err != nil {
		db.pool.Close()
		return nil, err
	}
	db.readers = stdlib.OpenDBFromPool(db.pool)
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var value string
		if err := db.commits.QueryRow(ctx, "SELECT current_setting($1)", setting).Scan(&value); err != nil {
			return nil, errors.Join(err, db.close())
		}
		if value != "on" && (setting != "synchronous_commit" || value != "remote_apply") {
			return nil, errors.Join(fmt.Errorf("%s is %s, want on: what agents are told is kept would be lost in a power cut (set it in postgresql.conf, or for the role)", setting, value), db.close())
		}
	}
	return db, nil
}

func (db *postgresDB) read() querier   { return db.readers }
func (db *postgresDB) lock() string    { return " FOR UPDATE" }
func (db *postgresDB) committers() int { return postgresCommitters }
func (db *postgresDB) now() string {
	return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS bigint)"
}

// timeline: the first 8 hex digits of a WAL file's name (PostgreSQL, 25.3).
func (db *postgresDB) timeline() string {
	return "CAST(CAST(('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)) AS bit(32)) AS bigint)"
}

func (db *postgresDB) close() error {
	var err error
	if db.readers != nil {
		err = db.readers.Close()
	}
	db.commits.Close()
	db.pool.Close()
	return err
}

func (db *postgresDB) snapshot(ctx context.Context) (querier, func() error, error) {
	t, err := db.readers.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	return t, t.Rollback, nil
}

func (db *postgresDB) backup(context.Context, string) error {
	return errors.New("PostgreSQL is backed up by its own tools: pg_basebackup with archived WAL, or pg_dump; after it was restored, storelay-relay restore -raise")
}

// dataError: class 22 is data exception, 23 integrity constraint violation, 54 program limit
// exceeded (PostgreSQL, appendix A).
func (db *postgresDB) dataError(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && len(e.Code) == 5 && (e.Code[:2] == "22" || e.Code[:2] == "23" || e.Code[:2] == "54")
}

// retry: class 40 is transaction rollback (serialization, deadlock).
func (db *postgresDB) retry(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && strings.HasPrefix(e.Code, "40")
}

func (db *postgresDB) within(ctx context.Context, fn func(tx) error) error {
	conn, err := db.commits.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	t := &postgresTx{db: db, conn: conn.Conn()}
	err = fn(t)
	if t.begun && !t.done {
		// Also when ctx is the reason; a connection that pgx has closed is rolled back by the server.
		if !t.conn.IsClosed() {
			_, undo := t.conn.Exec(context.WithoutCancel(ctx), "rollback")
			err = errors.Join(err, undo)
		}
	}
	return err
}

type postgresTx struct {
	db          *postgresDB
	conn        *pgx.Conn
	begun, done bool
}

func (t *postgresTx) run(ctx context.Context, last bool, statements ...statement) error {
	statements = live(statements)
	var batch pgx.Batch
	queue := func(text string, args ...any) { batch.Queue(text, args...) }
	if !t.begun {
		queue("begin isolation level read committed") // what is read under the chain's lock is what is there, whatever the role's default
	}
	for _, s := range statements {
		if s.rows == nil {
			queue(s.text, s.args...)
		} else {
			queue(t.db.text(s), s.rows.columns()...)
		}
	}
	if last {
		queue("commit")
	}
	first := !t.begun
	t.begun = true
	results := t.conn.SendBatch(ctx, &batch)
	err := t.collect(results, first, last, statements)
	if closed := results.Close(); err == nil {
		err = closed
	}
	if err == nil && last {
		t.done = true
	}
	return err
}

func (t *postgresTx) collect(results pgx.BatchResults, first, last bool, statements []statement) error {
	if first {
		if _, err := results.Exec(); err != nil {
			return err
		}
	}
	for _, s := range statements {
		if s.scan == nil {
			if _, err := results.Exec(); err != nil {
				return err
			}
			continue
		}
		found, err := results.Query()
		if err != nil {
			return err
		}
		for found.Next() {
			if err := s.scan(found); err != nil {
				found.Close()
				return err
			}
		}
		if err := found.Err(); err != nil {
			return err
		}
	}
	if last {
		tag, err := results.Exec()
		if err != nil {
			return err
		}
		if tag.String() != "COMMIT" {
			return fmt.Errorf("commit: the server answered %s", tag)
		}
	}
	return nil
}

// text puts unnest of one array per column where the rows go.
func (db *postgresDB) text(s statement) string {
	if text, ok := db.texts.Load(s.text); ok {
		return text.(string)
	}
	arrays := make([]string, len(s.rows.types))
	for i, letter := range s.rows.types {
		arrays[i] = fmt.Sprintf("$%d::%s[]", i+1, map[rune]string{'i': "bigint", 't': "text", 'b': "bytea"}[letter])
	}
	text := strings.Replace(s.text, rowsMark, "SELECT * FROM unnest("+strings.Join(arrays, ", ")+")", 1)
	db.texts.Store(s.text, text)
	return text
}

// columns turns the rows into one array per column.
func (r *rows) columns() []any {
	width, n := len(r.types), r.len()
	columns := make([]any, width)
	for c, letter := range r.types {
		switch letter {
		case 'i':
			column := make([]int64, n)
			for i := range column {
				column[i] = r.values[i*width+c].(int64)
			}
			columns[c] = column
		case 't':
			column := make([]string, n)
			for i := range column {
				column[i] = r.values[i*width+c].(string)
			}
			columns[c] = column
		case 'b':
			column := make([][]byte, n)
			for i := range column {
				column[i], _ = r.values[i*width+c].([]byte) // null stays nil
			}
			columns[c] = column
		}
	}
	return columns
}

// migrations gives a handle over the pool of readers, whose plans are free.
func (db *postgresDB) migrations() (*sql.DB, func() error, error) {
	return db.readers, func() error { return nil }, nil
}
