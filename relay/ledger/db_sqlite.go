package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteDB is one file: one connection writes, some read beside it (WAL).
type sqliteDB struct {
	path             string
	hasty            bool     // the disk is not waited for
	inUse            *os.File // says that the database is open
	writers, readers *sql.DB
	turn             chan struct{}        // whoever puts a value in owns conn and prepared until it takes it out
	conn             *sql.Conn            // the one that writes
	prepared         map[string]*sql.Stmt // on conn
}

// openSQLite opens the file; hasty does without waiting for the disk.
func openSQLite(ctx context.Context, path string, hasty bool) (*sqliteDB, error) {
	if path == "" {
		return nil, errors.New("no path: want sqlite:/var/lib/storelay/relay.db")
	}
	synchronous := "synchronous(full)"
	if hasty {
		synchronous = "synchronous(off)"
	}
	inUse, err := holdFile(path+lockSuffix, false)
	if errors.Is(err, errHeld) {
		return nil, fmt.Errorf("%s is being restored", path)
	} else if err != nil {
		return nil, err
	}
	db := &sqliteDB{path: path, hasty: hasty, inUse: inUse, turn: make(chan struct{}, 1), prepared: map[string]*sql.Stmt{}}
	if db.writers, err = sql.Open("sqlite", sqliteDSN(path, synchronous, "journal_mode(wal)", "cache_size(-65536)")); err != nil {
		return nil, errors.Join(err, db.close())
	}
	db.writers.SetMaxOpenConns(1)
	if db.conn, err = db.writers.Conn(ctx); err != nil {
		return nil, errors.Join(err, db.close())
	}
	var mode string
	var level int
	if err := errors.Join(
		db.conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode),
		db.conn.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&level),
	); err != nil {
		return nil, errors.Join(err, db.close())
	}
	if mode != "wal" || (level != 2 && !hasty) {
		return nil, errors.Join(fmt.Errorf("journal_mode is %s and synchronous %d, want wal and 2 (is the file on a network drive?)", mode, level), db.close())
	}
	if db.readers, err = sql.Open("sqlite", sqliteDSN(path, synchronous, "query_only(1)")); err != nil {
		return nil, errors.Join(err, db.close())
	}
	db.readers.SetMaxOpenConns(8)
	db.readers.SetMaxIdleConns(8)
	return db, nil
}

func sqliteDSN(path string, pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{"busy_timeout(10000)"}, pragmas...)}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

func (db *sqliteDB) read() querier    { return db.readers }
func (db *sqliteDB) lock() string     { return "" } // BEGIN IMMEDIATE has locked the file
func (db *sqliteDB) committers() int  { return 1 }
func (db *sqliteDB) now() string      { return "CAST(unixepoch('subsec') * 1000000 AS INTEGER)" }
func (db *sqliteDB) timeline() string { return "" }
func (db *sqliteDB) retry(error) bool {
	return false // one writer: busy_timeout has waited already
}

// close closes the connection that may write last: it folds the log into the file.
func (db *sqliteDB) close() error {
	var errs []error
	for _, stmt := range db.prepared {
		errs = append(errs, stmt.Close())
	}
	if db.readers != nil {
		errs = append(errs, db.readers.Close())
	}
	if db.conn != nil {
		errs = append(errs, db.conn.Close())
	}
	if db.writers != nil {
		errs = append(errs, db.writers.Close())
	}
	return errors.Join(append(errs, db.inUse.Close())...)
}

func (db *sqliteDB) snapshot(ctx context.Context) (querier, func() error, error) {
	t, err := db.readers.BeginTx(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	return t, t.Rollback, nil
}

// backup also runs beside a relay that commits: it copies what one reader sees.
func (db *sqliteDB) backup(ctx context.Context, path string) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	temp := path + ".part"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	copier, err := sql.Open("sqlite", sqliteDSN(db.path))
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, copier.Close()); err != nil {
			os.Remove(temp) // what is left of it is of no use
		}
	}()
	if _, err := copier.ExecContext(ctx, "VACUUM INTO $1", temp); err != nil { // it does not sync
		return err
	}
	if err := os.Chmod(temp, 0o600); err != nil {
		return err
	}
	return settleAt(temp, path, db.hasty)
}

func (db *sqliteDB) dataError(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE:
		return true
	}
	return false
}

func (db *sqliteDB) within(ctx context.Context, fn func(tx) error) error {
	select {
	case db.turn <- struct{}{}:
		defer func() { <-db.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	t := &sqliteTx{db: db}
	if err := t.one(ctx, "BEGIN IMMEDIATE", nil, nil); err != nil {
		return err
	}
	err := fn(t)
	if t.done {
		return err
	}
	// What undoes must also run when ctx is the reason.
	return errors.Join(err, t.one(context.WithoutCancel(ctx), "ROLLBACK", nil, nil))
}

type sqliteTx struct {
	db   *sqliteDB
	done bool
}

// How many rows one statement takes: few sizes, so that they stay prepared.
var chunks = [...]int{50, 5, 1}

func (t *sqliteTx) run(ctx context.Context, last bool, statements ...statement) error {
	for _, s := range live(statements) {
		if s.rows == nil {
			if err := t.one(ctx, s.text, s.args, s.scan); err != nil {
				return err
			}
			continue
		}
		width, values := len(s.rows.types), s.rows.values
		for _, size := range chunks {
			for len(values) >= size*width {
				row := "(?" + strings.Repeat(",?", width-1) + ")"
				text := strings.Replace(s.text, rowsMark, "VALUES "+row+strings.Repeat(","+row, size-1), 1)
				if err := t.one(ctx, text, values[:size*width], s.scan); err != nil {
					return err
				}
				values = values[size*width:]
			}
		}
	}
	if last {
		if err := t.one(ctx, "COMMIT", nil, nil); err != nil {
			return err
		}
		t.done = true
	}
	return nil
}

func (t *sqliteTx) one(ctx context.Context, text string, args []any, scan func(scanner) error) error {
	stmt := t.db.prepared[text]
	if stmt == nil {
		var err error
		if stmt, err = t.db.conn.PrepareContext(ctx, text); err != nil {
			return err
		}
		t.db.prepared[text] = stmt
	}
	if scan == nil {
		_, err := stmt.ExecContext(ctx, args...)
		return err
	}
	found, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer found.Close()
	for found.Next() {
		if err := scan(found); err != nil {
			return err
		}
	}
	return found.Err()
}

// migrations lends the handle of the connection that writes.
func (db *sqliteDB) migrations() (*sql.DB, func() error, error) {
	// The writing connection is not in use yet: it is given back to its pool, and taken again.
	if err := db.conn.Close(); err != nil {
		return nil, nil, err
	}
	return db.writers, func() (err error) {
		db.conn, err = db.writers.Conn(context.Background())
		return err
	}, nil
}
