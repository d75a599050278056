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
//	p segment           how old the journal was when it was packed
//	m last, m age       newest ack; how old the journal is
//	m point             what the index has
//	b slot              ring of the newest write numbers, to notice a write-ahead log that lost a middle
const (
	ringSlots = 16384 // more than two memtables can hold
	tooOften  = 5     // unclean ends in a row after which the index is built anew
)

var (
	keyLast  = []byte("mlast")
	keyPoint = []byte("mpoint")
	keyAge   = []byte("mage")
)

func queueKey(ord, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'q'}, ord), seq)
}
func idemKey(h keyHash) []byte    { return append([]byte{'i'}, h[:]...) }
func stateKey(key string) []byte  { return append([]byte{'s'}, key...) }
func feedKey(feed string) []byte  { return append([]byte{'f'}, feed...) }
func epochKey(ord uint64) []byte  { return binary.BigEndian.AppendUint64([]byte{'e'}, ord) }
func ackKey(ord uint64) []byte    { return binary.BigEndian.AppendUint64([]byte{'a'}, ord) }
func packedKey(seg uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'p'}, seg) }
func ringKey(n uint64) []byte     { return binary.BigEndian.AppendUint64([]byte{'b'}, n%ringSlots) }

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

// An index is a store with the files around it that say whether it can be trusted. Only one
// goroutine writes to it at a time.
type index struct {
	store
	path   string
	opt    *Options
	memory *MemoryIndex // nil = Badger under path
	// stalled is closed when Badger is given up because it hangs; nil with memory.
	stalled <-chan struct{}
}

// openIndex opens the index under opt.Dir, or a fresh one if the old one is in doubt; why says
// what was wrong with that. Badger panics in goroutines of its own on some damage, which
// nobody can recover from: the marker that stands while it opens tells the next start.
func openIndex(opt *Options) (x *index, why string, err error) {
	x = &index{path: filepath.Join(opt.Dir, "index"), opt: opt, memory: opt.Index}
	starts := x.countStart()
	switch condemned, err := x.condemned(); {
	case err != nil:
		return nil, "", fmt.Errorf("look at index: %w", err)
	case condemned:
		why = "it died while opening, or could not be written"
	case starts > tooOften:
		why = fmt.Sprintf("it was not closed %d times in a row", starts-1)
	default:
		if why, err = x.suspect(); err != nil {
			return nil, "", fmt.Errorf("look at index: %w", err)
		}
	}
	if why == "" {
		if err = x.open(); err == nil {
			if why = x.holes(); why == "" {
				return x, "", nil
			}
			err = x.store.close()
		}
		if err != nil {
			why = strings.TrimSpace(why + " " + err.Error())
		}
	}
	if err := x.setAside(why); err != nil {
		return nil, "", err
	}
	if err := x.open(); err != nil {
		return nil, "", fmt.Errorf("begin a fresh index: %w", err)
	}
	x.calm()
	return x, why, nil
}

func (x *index) marker() string { return x.path + ".opening" }
func (x *index) starts() string { return x.path + ".starts" }

func (x *index) condemned() (bool, error) {
	if x.memory != nil {
		return x.memory.condemned, nil
	}
	_, err := os.Stat(x.marker())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, err
}

// countStart counts the starts since the index was last closed or made, this one included.
func (x *index) countStart() int {
	if x.memory != nil {
		x.memory.starts++
		return x.memory.starts
	}
	raw, _ := os.ReadFile(x.starts()) // none = closed
	n, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	n++
	x.writeStarts(n)
	return n
}

func (x *index) writeStarts(n int) {
	_ = os.WriteFile(x.starts(), []byte(strconv.Itoa(n)), 0o600) // only a hint
}

// calm forgets earlier unclean ends: the index has worked for a while, or is new.
func (x *index) calm() {
	if x.memory != nil {
		x.memory.starts = 1
		return
	}
	x.writeStarts(1)
}

// suspect looks for what Badger would not survive, or would lose silently.
func (x *index) suspect() (string, error) {
	if x.memory != nil {
		return "", nil
	}
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
func (x *index) setAside(why string) error {
	if x.memory != nil {
		x.opt.Log.Error("index is built anew from the journal", "why", why)
		x.memory.Lose()
		return nil
	}
	old, err := filepath.Glob(x.path + ".aside-*")
	if err != nil {
		return fmt.Errorf("set index aside: %w", err)
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("set index aside: drop an older one: %w", err)
		}
	}
	if free, err := x.opt.FreeBytes(x.opt.Dir); err == nil && free < 2*x.opt.FloorBytes { // no room for two
		x.opt.Log.Error("index is dropped and built anew from the journal", "why", why)
		return errors.Join(os.RemoveAll(x.path), syncDir(filepath.Dir(x.path)))
	}
	to := x.path + ".aside-" + x.opt.Now().UTC().Format("20060102T150405")
	if err := os.Rename(x.path, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set index aside: %w", err)
	}
	x.opt.Log.Error("index is set aside and built anew from the journal", "why", why, "folder", to)
	return syncDir(filepath.Dir(x.path))
}

func (x *index) open() (err error) {
	if x.memory != nil {
		x.store, x.memory.condemned = x.memory, false
		return nil
	}
	if err := x.condemn(); err != nil {
		return err
	}
	badger, err := openBadger(x.path, x.opt.Log)
	if err != nil {
		return err
	}
	within := bound(badger, x.opt.IndexTime)
	x.store, x.stalled = within, within.stalled
	return os.Remove(x.marker())
}

// condemn puts up the marker: found at the next start, the index is built anew.
func (x *index) condemn() error {
	if x.memory != nil {
		x.memory.condemned = true
		return nil
	}
	return errors.Join(os.WriteFile(x.marker(), nil, 0o600), syncDir(filepath.Dir(x.path)))
}

// pardon takes the marker away.
func (x *index) pardon() error {
	if x.memory != nil {
		x.memory.condemned = false
		return nil
	}
	return errors.Join(os.Remove(x.marker()), syncDir(filepath.Dir(x.path)))
}

func (x *index) close(clean bool) error {
	if err := x.store.close(); err != nil {
		return errors.Join(fmt.Errorf("close index: %w", err), x.condemn())
	}
	if !clean {
		return nil
	}
	if x.memory != nil {
		x.memory.starts = 0
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
func (x *index) get(key []byte) ([]byte, error) {
	t := x.view()
	defer t.discard()
	return t.get(key)
}

// each visits the pairs under a prefix in order. The slices are good for the call only.
func (x *index) each(prefix []byte, visit func(k, v []byte) error) error {
	t := x.view()
	defer t.discard()
	return t.each(prefix, prefix, visit)
}

// A change writes to the index, in as many transactions as it takes; what must come last is
// set last.
type change struct {
	db  store
	txn update
	err error
}

func (x *index) change() *change { return &change{db: x.store, txn: x.update()} }

func (c *change) do(f func() error) {
	if c.err != nil {
		return
	}
	if c.err = f(); !errors.Is(c.err, errTxnFull) {
		return
	}
	if c.err = c.txn.commit(); c.err == nil {
		c.txn = c.db.update()
		c.err = f()
	}
}

func (c *change) set(k, v []byte) { c.do(func() error { return c.txn.set(k, v) }) }
func (c *change) del(k []byte)    { c.do(func() error { return c.txn.del(k) }) }

func (c *change) commit() error {
	if c.err != nil {
		c.txn.discard()
		return c.err
	}
	return c.txn.commit()
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
