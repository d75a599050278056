package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// A store is an ordered set of keys and values with transactions: Badger, or MemoryIndex.
type store interface {
	// view reads as of now, whatever is written meanwhile.
	view() view
	// update collects changes; only one goroutine does at a time.
	update() update
	// size is the bytes of its tables. Flush, which nothing may write beside, and then flatten
	// take out of them what was deleted.
	size() int64
	flush() error
	flatten() error
	close() error
}

type view interface {
	// get copies a value; nil when there is none.
	get(key []byte) ([]byte, error)
	// each visits the keys with a prefix in order, beginning with from, which has the prefix
	// too. The slices are good for the call only.
	each(prefix, from []byte, visit func(k, v []byte) error) error
	discard()
}

// An update's changes become visible, and as durable as the store is, with commit alone.
// errTxnFull: commit, and go on with another.
type update interface {
	set(k, v []byte) error
	del(k []byte) error
	commit() error
	discard()
}

var errTxnFull = errors.New("transaction is full")

// badgerStore is Badger with the settings that were found to hold.
type badgerStore struct{ db *badger.DB }

func openBadger(path string, log *slog.Logger) (store, error) {
	o := badger.DefaultOptions(path).
		WithSyncWrites(false).WithDetectConflicts(false).WithMetricsEnabled(false).
		WithNumMemtables(1).WithMemTableSize(2 << 20).
		WithBaseTableSize(2 << 20).WithBaseLevelSize(8 << 20).
		WithNumLevelZeroTables(2).WithNumLevelZeroTablesStall(6).WithNumCompactors(2).WithNumGoroutines(1).
		WithValueThreshold(200000). // at most 15 % of a memtable; no value here is larger
		WithValueLogFileSize(1 << 20).
		WithCompression(options.None).WithBlockCacheSize(0).WithIndexCacheSize(0).
		WithChecksumVerificationMode(options.OnTableRead).
		WithLogger(badgerLog{log})
	db, err := badger.Open(o)
	if err != nil {
		return nil, err
	}
	return badgerStore{db}, nil
}

func (s badgerStore) view() view     { return badgerTxn{s.db.NewTransaction(false)} }
func (s badgerStore) update() update { return badgerTxn{s.db.NewTransaction(true)} }
func (s badgerStore) flatten() error { return s.db.Flatten(1) }

// flush brings what was written so far into tables. Badger has no call for it, but does so
// before it drops keys.
func (s badgerStore) flush() error {
	scratch := []byte{'z'}
	err := s.db.Update(func(t *badger.Txn) error { return t.Set(scratch, nil) })
	if err != nil {
		return err
	}
	return s.db.DropPrefix(scratch)
}

// closeTime is how long Badger may take to close; on a disk that has turned read-only it would
// try to flush for ever.
const closeTime = 10 * time.Second

func (s badgerStore) close() error {
	done := make(chan error, 1)
	go func() { done <- s.db.Close() }()
	select {
	case err := <-done:
		return err
	case <-time.After(closeTime):
		return fmt.Errorf("it does not close within %s; the next start brings it up to the journal", closeTime)
	}
}

// size adds up the tables; Badger's own Size knows nothing while its metrics are off.
func (s badgerStore) size() (bytes int64) {
	for _, t := range s.db.Tables() {
		bytes += int64(t.OnDiskSize)
	}
	return bytes
}

type badgerTxn struct{ t *badger.Txn }

func (t badgerTxn) get(key []byte) ([]byte, error) {
	item, err := t.t.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return item.ValueCopy([]byte{})
}

func (t badgerTxn) each(prefix, from []byte, visit func(k, v []byte) error) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	it := t.t.NewIterator(o)
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		if err := item.Value(func(v []byte) error { return visit(item.Key(), v) }); err != nil {
			return err
		}
	}
	return nil
}

func (t badgerTxn) set(k, v []byte) error { return txnFull(t.t.Set(k, v)) }
func (t badgerTxn) del(k []byte) error    { return txnFull(t.t.Delete(k)) }
func (t badgerTxn) commit() error         { return t.t.Commit() }
func (t badgerTxn) discard()              { t.t.Discard() }

func txnFull(err error) error {
	if errors.Is(err, badger.ErrTxnTooBig) {
		return errTxnFull
	}
	return err
}
