package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/storelay/storelay/protocol"
)

// Keys of the index. Numbers are 8 bytes, big endian.
//
//	q epoch seq         CRC-32C and payload of a record that is not acknowledged
//	i hash              idempotency key: where its record stands
//	s key               state
//	r feed 0 gen key    replica of a feed; the generation is swapped whole after a reset
//	f feed              feedState
//	e epoch             id and seal of an epoch; for ever
//	a epoch             how far it is acknowledged
//	m last, m point     newest ack; what the index has
//	b slot              ring of the newest write numbers, to notice a write-ahead log that lost a middle
const (
	ringSlots = 16384 // more than two memtables can hold
	tooOften  = 5     // unclean ends in a row after which the index is built anew
)

var (
	keyLast  = []byte("mlast")
	keyPoint = []byte("mpoint")
)

func queueKey(ord, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'q'}, ord), seq)
}
func idemKey(h keyHash) []byte   { return append([]byte{'i'}, h[:]...) }
func stateKey(key string) []byte { return append([]byte{'s'}, key...) }
func feedKey(feed string) []byte { return append([]byte{'f'}, feed...) }
func epochKey(ord uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'e'}, ord) }
func ackKey(ord uint64) []byte   { return binary.BigEndian.AppendUint64([]byte{'a'}, ord) }
func ringKey(n uint64) []byte    { return binary.BigEndian.AppendUint64([]byte{'b'}, n%ringSlots) }

func genKey(feed string, gen uint64) []byte {
	return binary.BigEndian.AppendUint64(append(append([]byte{'r'}, feed...), 0), gen)
}
func replicaKey(feed string, gen uint64, key string) []byte {
	return append(genKey(feed, gen), key...)
}

// A point says what the index has: everything before an offset of a segment, and the newest
// record in that.
type point struct {
	n        uint64 // number of the write that brought it there
	seg      uint64
	off      int64
	ord, seq uint64
	hash     protocol.Hash
}

func (p *point) encode() []byte {
	b := binary.AppendUvarint(nil, p.n)
	b = binary.AppendUvarint(b, p.seg)
	b = binary.AppendVarint(b, p.off)
	b = binary.AppendUvarint(b, p.ord)
	b = binary.AppendUvarint(b, p.seq)
	return append(b, p.hash[:]...)
}

func decodePoint(b []byte) (point, error) {
	d := decoder{b: b}
	p := point{n: d.uvarint(), seg: d.uvarint(), off: d.varint(), ord: d.uvarint(), seq: d.uvarint(), hash: d.hash()}
	return p, d.err()
}

// An index is Badger. Only one goroutine writes to it at a time.
type index struct {
	db   *badger.DB
	path string
}

// openIndex opens the index under dir, or a fresh one if the old one is in doubt; why says
// what was wrong with that. Badger panics in goroutines of its own on some damage, which
// nobody can recover from: the marker that stands while it opens tells the next start.
func openIndex(dir string, log *slog.Logger, now time.Time) (x *index, why string, err error) {
	x = &index{path: filepath.Join(dir, "index")}
	starts := x.countStart()
	switch _, err := os.Stat(x.marker()); {
	case err == nil:
		why = "it died while opening, or could not be written"
	case starts > tooOften:
		why = fmt.Sprintf("it was not closed %d times in a row", starts-1)
	default:
		if why, err = x.suspect(); err != nil {
			return nil, "", fmt.Errorf("look at index: %w", err)
		}
	}
	if why == "" {
		if err = x.open(log); err == nil {
			if why = x.holes(); why == "" {
				return x, "", nil
			}
			err = x.db.Close()
		}
		if err != nil {
			why = strings.TrimSpace(why + " " + err.Error())
		}
	}
	if err := x.setAside(log, why, now); err != nil {
		return nil, "", err
	}
	if err := x.open(log); err != nil {
		return nil, "", fmt.Errorf("begin a fresh index: %w", err)
	}
	return x, why, nil
}

func (x *index) marker() string { return x.path + ".opening" }
func (x *index) starts() string { return x.path + ".starts" }

// countStart counts the starts since the index was last closed, this one included.
func (x *index) countStart() int {
	raw, _ := os.ReadFile(x.starts()) // none = closed
	n, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	n++
	_ = os.WriteFile(x.starts(), []byte(strconv.Itoa(n)), 0o600) // only a hint
	return n
}

// calm forgets earlier unclean ends: the index has worked for a while.
func (x *index) calm() { _ = os.WriteFile(x.starts(), []byte("1"), 0o600) }

// suspect looks for what Badger would not survive, or would lose silently.
func (x *index) suspect() (string, error) {
	entries, err := os.ReadDir(x.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	tables, manifest := false, false
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return "", err
		}
		ext := filepath.Ext(e.Name())
		tables = tables || ext == ".sst"
		manifest = manifest || e.Name() == "MANIFEST"
		if (ext == ".mem" || ext == ".vlog" || ext == ".sst") && info.Size() == 0 {
			return e.Name() + " is empty", nil
		}
	}
	if tables && !manifest {
		return "its MANIFEST is missing", nil
	}
	return "", nil
}

// setAside renames the folder and drops those set aside before.
func (x *index) setAside(log *slog.Logger, why string, now time.Time) error {
	old, err := filepath.Glob(x.path + ".aside-*")
	if err != nil {
		return fmt.Errorf("set index aside: %w", err)
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("set index aside: drop an older one: %w", err)
		}
	}
	to := x.path + ".aside-" + now.UTC().Format("20060102T150405")
	if err := os.Rename(x.path, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set index aside: %w", err)
	}
	log.Error("index is set aside and built anew from the journal", "why", why, "folder", to)
	return syncDir(filepath.Dir(x.path))
}

func (x *index) open(log *slog.Logger) error {
	if err := x.condemn(); err != nil {
		return err
	}
	o := badger.DefaultOptions(x.path).
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
		return err
	}
	x.db = db
	return os.Remove(x.marker())
}

// condemn puts up the marker: found at the next start, the index is built anew.
func (x *index) condemn() error {
	return errors.Join(os.WriteFile(x.marker(), nil, 0o600), syncDir(filepath.Dir(x.path)))
}

func (x *index) close(clean bool) error {
	if err := x.db.Close(); err != nil {
		return errors.Join(fmt.Errorf("close index: %w", err), x.condemn())
	}
	if !clean {
		return nil
	}
	return os.Remove(x.starts())
}

// holes looks through the ring: the newest write numbers must all be there.
func (x *index) holes() string {
	p, err := x.point()
	if err != nil {
		return "its point is not readable"
	}
	have := uint64(0)
	err = x.each([]byte{'b'}, func(_, v []byte) error {
		d := decoder{b: v}
		if n := d.uvarint(); n <= p.n && n+ringSlots > p.n {
			have++
		}
		return d.err()
	})
	if want := min(p.n, ringSlots); err != nil || have != want {
		return fmt.Sprintf("it lost %d of its newest %d writes", want-have, want)
	}
	return ""
}

func (x *index) point() (point, error) {
	raw, err := x.get(keyPoint)
	if err != nil || raw == nil {
		return point{}, err
	}
	return decodePoint(raw)
}

// get reads a value; nil when there is none.
func (x *index) get(key []byte) (v []byte, err error) {
	err = x.db.View(func(t *badger.Txn) error {
		item, err := t.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		v, err = item.ValueCopy([]byte{})
		return err
	})
	return v, err
}

// each visits the pairs under a prefix in order. The slices are good for the call only.
func (x *index) each(prefix []byte, visit func(k, v []byte) error) error {
	return x.db.View(func(t *badger.Txn) error { return eachIn(t, prefix, visit) })
}

func eachIn(t *badger.Txn, prefix []byte, visit func(k, v []byte) error) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	it := t.NewIterator(o)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		if err := item.Value(func(v []byte) error { return visit(item.Key(), v) }); err != nil {
			return err
		}
	}
	return nil
}

// A change writes to the index, in as many transactions as it takes; what must come last is
// set last.
type change struct {
	db  *badger.DB
	txn *badger.Txn
	err error
}

func (x *index) change() *change { return &change{db: x.db, txn: x.db.NewTransaction(true)} }

func (c *change) do(f func() error) {
	if c.err != nil {
		return
	}
	if c.err = f(); !errors.Is(c.err, badger.ErrTxnTooBig) {
		return
	}
	if c.err = c.txn.Commit(); c.err == nil {
		c.txn = c.db.NewTransaction(true)
		c.err = f()
	}
}

func (c *change) set(k, v []byte) { c.do(func() error { return c.txn.Set(k, v) }) }
func (c *change) del(k []byte)    { c.do(func() error { return c.txn.Delete(k) }) }

func (c *change) commit() error {
	if c.err != nil {
		c.txn.Discard()
		return c.err
	}
	return c.txn.Commit()
}

// queued puts a checksum before a record's payload; queuedPayload takes it off.
func queued(payload []byte) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(payload)), crc32.Checksum(payload, castagnoli))
	return append(b, payload...)
}

func queuedPayload(v []byte) ([]byte, bool) {
	if len(v) < 4 || crc32.Checksum(v[4:], castagnoli) != binary.LittleEndian.Uint32(v) {
		return nil, false
	}
	return v[4:], true
}

// queuedAt reads a record out of the index; nil when it is not there or damaged.
func (x *index) queuedAt(ord, seq uint64) (*stored, []byte) {
	v, err := x.get(queueKey(ord, seq))
	if err != nil || v == nil {
		return nil, nil
	}
	payload, ok := queuedPayload(v)
	if !ok {
		return nil, nil
	}
	s, err := decodeStored(payload)
	if err != nil || s.ord != ord || s.rec.Seq != seq {
		return nil, nil
	}
	return s, slices.Clip(payload)
}

// badgerLog hands Badger's warnings and errors on.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any)   { l.log.Error("index: " + line(f, a)) }
func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("index: " + line(f, a)) }
func (badgerLog) Infof(string, ...any)          {}
func (badgerLog) Debugf(string, ...any)         {}

func line(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }
