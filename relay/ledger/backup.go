package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// Errors of a restore that a person decides on.
var (
	ErrInUse    = errors.New("the database is open")
	ErrNoLedger = errors.New("not a ledger's backup")
)

// lockSuffix names the file beside an embedded database that whoever opens it locks together
// with others, and a restore alone.
const lockSuffix = ".lock"

var errHeld = errors.New("the lock is held")

// Backup writes the whole ledger, as of one moment, to a file that is not there yet; the
// relay may serve meanwhile. The file is durable when Backup returns. PostgreSQL is backed up
// by its own tools.
func (l *Ledger) Backup(ctx context.Context, path string) error {
	if err := l.db.backup(ctx, path); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// Restored is what a restore did.
type Restored struct {
	Incarnation int64
	Replaced    string // where the database that was there is kept; "" when there was none
}

// Restore puts a backup in the place of the embedded database that dbURL names, whole or not
// at all, and raises the incarnation above both, so that agents send again what the backup
// lacks. Agents that are denied are revoked in it. The database must not be open (ErrInUse).
func Restore(ctx context.Context, dbURL, from string, denied []protocol.Origin, opts Options) (Restored, error) {
	path, ok := strings.CutPrefix(dbURL, "sqlite:")
	if !ok || path == "" {
		return Restored{}, errors.New("restore: only the embedded database is restored from a file; restore PostgreSQL by its own tools, and raise the incarnation then")
	}
	alone, err := holdFile(path+lockSuffix, true)
	if errors.Is(err, errHeld) {
		err = ErrInUse
	}
	if err != nil {
		return Restored{}, fmt.Errorf("restore %s: %w", path, err)
	}
	r := restore{path: path, temp: path + ".restoring", opts: opts}
	done, err := r.run(ctx, from, denied)
	if err != nil {
		return Restored{}, errors.Join(fmt.Errorf("restore %s: %w", path, err), r.clean(), alone.Close())
	}
	return done, errors.Join(r.clean(), alone.Close())
}

// A restore is made beside the database and put in its place in one step.
type restore struct {
	path, temp string
	opts       Options
}

func (r *restore) run(ctx context.Context, from string, denied []protocol.Origin) (done Restored, err error) {
	if err := r.clean(); err != nil { // of a restore that was killed
		return done, err
	}
	if err := copyBackup(from, r.temp); err != nil {
		return done, err
	}
	if err := checkBackup(ctx, r.temp); err != nil {
		return done, fmt.Errorf("%s: %w", from, err)
	}
	seen, here, err := r.settle(ctx)
	if err != nil {
		return done, err
	}
	if done.Incarnation, err = r.raise(ctx, seen, denied); err != nil {
		return done, err
	}
	if _, err := os.Stat(r.temp + "-wal"); err == nil {
		return done, fmt.Errorf("%s-wal is left over: the copy is not whole", r.temp)
	}
	if here && !r.opts.Inline {
		done.Replaced = fmt.Sprintf("%s.replaced-%s", r.path, time.Now().UTC().Format("20060102T150405.000"))
		if err := os.Link(r.path, done.Replaced); err != nil {
			return done, fmt.Errorf("keep the database that is there: %w", err)
		}
	}
	return done, settleAt(r.temp, r.path, r.opts.Inline)
}

// settle folds the log of the database that is there into its file, so that no log is left
// for the file that takes its place, and gives its incarnation.
func (r *restore) settle(ctx context.Context) (incarnation int64, here bool, err error) {
	if _, err := os.Stat(r.path); errors.Is(err, fs.ErrNotExist) {
		return 0, false, r.setAside()
	} else if err != nil {
		return 0, false, err
	}
	// A database that cannot be read may be why a backup is put in its place: it stays as it is,
	// its log with it.
	if incarnation, err = incarnationOf(ctx, r.path); err != nil {
		return 0, true, r.setAside()
	}
	db, err := sql.Open("sqlite", sqliteDSN(r.path))
	if err != nil {
		return 0, true, err
	}
	db.SetMaxOpenConns(1)
	var mode string
	err = errors.Join(db.QueryRowContext(ctx, "PRAGMA journal_mode = delete").Scan(&mode), db.Close())
	if err == nil && mode != "delete" {
		err = fmt.Errorf("journal_mode stays %s", mode)
	}
	return incarnation, true, err
}

// incarnationOf reads a database without changing its files.
func incarnationOf(ctx context.Context, path string) (incarnation int64, err error) {
	db, err := sql.Open("sqlite", sqliteDSN(path)+"&mode=ro")
	if err != nil {
		return 0, err
	}
	err = db.QueryRowContext(ctx, "SELECT incarnation FROM ledger").Scan(&incarnation)
	return incarnation, errors.Join(err, db.Close())
}

// setAside takes the log of a database that cannot be read, or is gone, out of the way.
func (r *restore) setAside() error {
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Rename(r.path+suffix, fmt.Sprintf("%s.damaged%s", r.path, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// raise makes the copy a ledger of the incarnation after those seen.
func (r *restore) raise(ctx context.Context, seen int64, denied []protocol.Origin) (incarnation int64, err error) {
	l, err := Open(ctx, "sqlite:"+r.temp, r.opts)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Revoke(ctx, denied...); err != nil {
		return 0, err
	}
	return l.Raise(ctx, seen)
}

// clean removes the copy and what belongs to it.
func (r *restore) clean() error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal", lockSuffix} {
		if err := os.Remove(r.temp + suffix); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func copyBackup(from, to string) (err error) {
	if log, err := os.Stat(from + "-wal"); err == nil && log.Size() > 0 {
		return fmt.Errorf("%s has a log beside it: %w (`storelay-relay backup` makes one; a copy of the files of a live database is none)", from, ErrNoLedger)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // it was only read
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// checkBackup says with ErrNoLedger what a copy is not.
func checkBackup(ctx context.Context, path string) (err error) {
	db, err := sql.Open("sqlite", sqliteDSN(path))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var tables, version int64
	var integrity string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&integrity); err != nil {
		return fmt.Errorf("%w: %w", ErrNoLedger, err)
	}
	if integrity != "ok" {
		return fmt.Errorf("%w: it is damaged: %s", ErrNoLedger, integrity)
	}
	if err := errors.Join(
		db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('ledger', 'chains', 'records', 'goose_db_version')").Scan(&tables)); err != nil {
		return err
	}
	if tables != 4 {
		return fmt.Errorf("%w: it is another program's database", ErrNoLedger)
	}
	if err := db.QueryRowContext(ctx, "SELECT max(version_id) FROM goose_db_version").Scan(&version); err != nil {
		return err
	}
	newest, err := newestSchema()
	if err == nil && version > newest {
		err = fmt.Errorf("%w: a newer relay made it (its tables have version %d, this one knows %d)", ErrNoLedger, version, newest)
	}
	return err
}

// newestSchema is the number of the last migration.
func newestSchema() (newest int64, err error) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	for _, name := range files {
		number, _, _ := strings.Cut(filepath.Base(name), "_")
		n, bad := strconv.ParseInt(number, 10, 64)
		newest, err = max(newest, n), errors.Join(err, bad)
	}
	return newest, err
}

// settleAt makes a file durable under another name, in place of what is there.
func settleAt(temp, path string, hasty bool) error {
	if !hasty {
		f, err := os.OpenFile(temp, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	if err := os.Rename(temp, path); err != nil || hasty {
		return err
	}
	return syncDir(filepath.Dir(path))
}
