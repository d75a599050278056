package ledger

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
)

// Options are the parts of a ledger that a caller may choose.
type Options struct {
	Log *slog.Logger     // nil = slog.Default()
	Now func() time.Time // nil = time.Now; when records were received
	CA  *ca.CA           // signs certificates of completeness and knows the agents; nil = none are given

	// Inline is for simulations: Commit does its work before it returns, on the caller's own
	// goroutine, and Run is not needed. SQLite does not wait for the disk: what was committed
	// outlives this process, not a power cut.
	Inline bool
	// Fail is asked at each step of a commit; an error ends it there as a crash would.
	Fail func(step string) error
}

// A Ledger is safe for concurrent use, by this process and, on PostgreSQL, by others over the
// same database.
type Ledger struct {
	db     database
	log    *slog.Logger
	now    func() time.Time
	inline bool
	fail   func(step string) error // nil = never
	queue  *queue
	watch  *watch
	ids    sync.Map // chain name -> int64, for chains that have a row
	ca     *ca.CA   // nil = none
	seen   seenDays
}

//go:embed migrations/*.sql
var migrations embed.FS

// Open opens the database that url names, sqlite:/path/relay.db or postgres://..., brings
// its tables up to date, and checks that a commit there survives a power cut. Commits are
// answered once Run runs.
func Open(ctx context.Context, url string, opts Options) (*Ledger, error) {
	l := &Ledger{log: opts.Log, now: opts.Now, inline: opts.Inline, fail: opts.Fail, ca: opts.CA, queue: newQueue(), watch: newWatch()}
	if l.log == nil {
		l.log = slog.Default()
	}
	if l.now == nil {
		l.now = time.Now
	}
	scheme, rest, _ := strings.Cut(url, ":")
	var err error
	switch scheme {
	case "sqlite":
		var db *sqliteDB
		if db, err = openSQLite(ctx, rest, opts.Inline); err == nil {
			l.db = db
			err = migrate(ctx, goose.DialectSQLite3, db.migrations)
		}
	case "postgres", "postgresql":
		var db *postgresDB
		if db, err = openPostgres(ctx, url); err == nil {
			l.db = db
			err = migrate(ctx, goose.DialectPostgres, db.migrations)
			follow := l.follow
			db.follow.Store(&follow)
		}
	default:
		err = errors.New("want sqlite:/path/relay.db or postgres://user@host/database")
	}
	if err != nil {
		if l.db != nil {
			err = errors.Join(err, l.db.close())
		}
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	if err := l.followTimeline(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger: %w", err), l.db.close())
	}
	if l.inline {
		if err := l.retryKnown(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("open ledger: %w", err), l.db.close())
		}
	}
	return l, nil
}

// Close closes the database. Run must have returned.
func (l *Ledger) Close() error {
	if err := l.db.close(); err != nil {
		return fmt.Errorf("close ledger: %w", err)
	}
	return nil
}

// migrate brings the tables up to date on the handle that open gives and closes.
func migrate(ctx context.Context, dialect goose.Dialect, open func() (*sql.DB, func() error, error)) (err error) {
	db, done, err := open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{
		goose.WithDisableGlobalRegistry(true),
		goose.WithGoMigrations(goose.NewGoMigration(2, &goose.GoFunc{RunTx: func(ctx context.Context, t *sql.Tx) error {
			if dialect != goose.DialectPostgres {
				return nil
			}
			return roomForUpdates(ctx, t)
		}}, nil), goose.NewGoMigration(6, &goose.GoFunc{RunTx: receiptDays}, nil)),
	}
	if dialect == goose.DialectPostgres { // relays that start at once take turns
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return err
		}
		options = append(options, goose.WithSessionLocker(locker))
	}
	provider, err := goose.NewProvider(dialect, db, files, options...)
	if err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrations: %w", err)
	}
	return nil
}

// roomForUpdates leaves space in the pages of rows that change with each commit, so that
// PostgreSQL can change them without touching their index (heap-only tuples).
func roomForUpdates(ctx context.Context, t *sql.Tx) error {
	for _, table := range []string{"chains", "streams", "numbers", "kpis", "tender_days", "item_days", "day_spans"} {
		if _, err := t.ExecContext(ctx, "ALTER TABLE "+table+" SET (fillfactor = 50)"); err != nil {
			return err
		}
	}
	return nil
}

// receiptDays fills in the business days of the receipts in quarantine.
func receiptDays(ctx context.Context, t *sql.Tx) error {
	type row struct {
		chain, id int64
		store     string
		text      []byte
	}
	for after := (row{}); ; {
		found, err := ask(ctx, t, `SELECT chain, id, store, record FROM quarantined WHERE kind = $1 AND (chain > $2 OR (chain = $2 AND id > $3)) ORDER BY chain, id LIMIT 50`,
			[]any{string(protocol.KindTransaction), after.chain, after.id}, func(s scanner, r *row) error { return s.Scan(&r.chain, &r.id, &r.store, &r.text) })
		if err != nil || len(found) == 0 {
			return err
		}
		for _, r := range found {
			var record protocol.Record
			if json.Unmarshal(r.text, &record) != nil {
				continue
			}
			if day := receiptDay(&record, r.store); day != "" {
				if _, err := t.ExecContext(ctx, "UPDATE quarantined SET business_day = $1 WHERE chain = $2 AND id = $3", day, r.chain, r.id); err != nil {
					return err
				}
			}
		}
		after = found[len(found)-1]
	}
}

// chainID gives the number of a chain; 0 when it has no row and make is false.
func (l *Ledger) chainID(ctx context.Context, name string, make bool) (int64, error) {
	if id, ok := l.ids.Load(name); ok {
		return id.(int64), nil
	}
	for {
		var id int64
		err := l.db.read().QueryRowContext(ctx, "SELECT id FROM chains WHERE name = $1", name).Scan(&id)
		if err == nil {
			l.ids.Store(name, id)
			return id, nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return 0, fmt.Errorf("chain %s: %w", name, err)
		}
		if !make {
			return 0, nil
		}
		// Another relay may take the same number first: then there is no row yet, and it is
		// tried again. The lock keeps the incarnation as it is until the row is there: whoever
		// raises it moves all chains on.
		err = l.db.within(ctx, func(t tx) error {
			var incarnation int64
			if err := t.run(ctx, false, statement{
				text: "SELECT incarnation FROM ledger" + l.db.lock(),
				scan: func(row scanner) error { return row.Scan(&incarnation) },
			}); err != nil {
				return err
			}
			return t.run(ctx, true, statement{
				text: `INSERT INTO chains (id, name, head, streams, quarantined, feed_version, feed_floor)
					SELECT coalesce(max(id), 0) + 1, CAST($1 AS text), CAST($2 AS bigint), 0, 0, CAST($2 AS bigint), CAST($2 AS bigint)
					FROM chains WHERE true ON CONFLICT DO NOTHING`,
				args: []any{name, floorOf(incarnation)},
			})
		})
		if err != nil {
			return 0, fmt.Errorf("chain %s: %w", name, err)
		}
	}
}
