package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/mutant"
)

// What a caller decides on. ErrFull is 507, ErrTooBig 413 and ErrBusy 503 on the agent's API.
var (
	ErrClosed   = errors.New("journal is closed")
	ErrConflict = errors.New("another content is known under this key")
	ErrTooBig   = errors.New("record is too big")
	ErrFull     = link.ErrFull
	ErrFork     = link.ErrFork
	ErrBusy     = errors.New("too much waits to be written down already; the disk is slow or hangs")
	ErrGone     = errors.New("records are no longer held")
	errLocked   = errors.New("another process has it open")
)

// Options of a journal. Dir and Origin are required; the rest has defaults.
type Options struct {
	Dir      string
	Origin   protocol.Origin
	BootID   string            // of the operating system's run; goes into the seal
	Versions map[string]string // goes into the seal
	Now      func() time.Time
	Mono     func() time.Duration // since the PC booted
	Random   io.Reader            // for epochs; crypto/rand

	// Remark makes the body of a day mark anew that is appended again behind head.
	Remark func(old protocol.DayMark, head protocol.Mark) ([]byte, error)

	SegmentBytes int64                            // 4 MiB
	RetainFor    time.Duration                    // acknowledged records and idempotency keys stay known, while the PC runs; 14 days
	FloorBytes   uint64                           // free space below which minor entries are refused, below half of it all; 96 MiB
	ReserveBytes int64                            // laid by, and given up when the disk is full; 16 MiB, negative: none
	FreeBytes    func(dir string) (uint64, error) // Disk.Free
	IndexTime    time.Duration                    // for one write to the index; beyond it the index is given up and Run ends; 30 s
	Log          *slog.Logger

	Disk  Disk         // the system's own
	Index *MemoryIndex // Badger in Dir
	// Inline does without Run: Append, Apply, Fork and Rewind do all their work before they
	// return, on the caller's goroutine, and Keep does one round of retention. For simulations.
	Inline bool
}

// A Journal is the agent's durable stream, its idempotency keys, its states and its copy of
// the relay's feeds. It is a link.Source and a link.Replica. All methods are safe for
// concurrent use, apart from Run and Close, which are called once each, in that order.
type Journal struct {
	opt      Options
	lock     io.Closer
	db       *index
	datasync func(File) error // File.Datasync; tests let it fail

	refused atomic.Bool // the disk has refused the newest group

	queue   queue
	groups  chan *group     // committer to indexer, in order
	acks    chan struct{}   // a hint to the indexer that acks wait
	flushes chan chan error // keeper to indexer
	wake    chan struct{}
	w       writer     // owned by the committer while Run runs
	indexed point      // what the index has; owned by the indexer while Run runs
	lost    []lost     // found by Open
	snapMu  sync.Mutex // one snapshot is written at a time; taken before mu
	keyMu   sync.Mutex // one at a time writes idempotency keys to the index: indexer or keeper

	// files is held for reading while a segment file is open for reading, and for writing
	// while one is renamed or removed. It is taken before mu, never after.
	files sync.RWMutex

	mu        sync.Mutex // guards all below
	epochs    []*epoch   // in order; the last one is current, or begins with the next record
	forked    uint64     // ordinal of the newest epoch that a fork began; those before it are closed for good
	segs      []*segment // in order
	overlay   overlay    // durable but not yet in the index
	feeds     map[string]feedState
	last      lastAck
	ackIndex  map[uint64]ack // by epoch's ordinal: not yet in the index
	ackFile   map[uint64]ack // not yet in a segment
	damage    []string
	waiting   int64         // durable records without an ack
	snapped   point         // what the newest snapshot of this run has
	snappedAt time.Duration // age when it was taken; a day before birth when that is not known
	ageing    ageing
}

// An epoch of this agent.
type epoch struct {
	ord     uint64
	id      protocol.Epoch
	before  *before
	fork    *fork  // a fork began it
	last    uint64 // newest durable seq; 0 = nothing of it is on disk
	hash    protocol.Hash
	visible uint64 // newest seq in the index: what readers see
	acked   uint64
	gone    uint64 // off the index up to here; written by the indexer only
}

// Open opens the journal in opt.Dir, or begins one, and brings it in order: the tail of the
// newest segment is cut behind its last intact frame and made durable, and the index is
// brought up to it, or built anew from the segments when it is lost or in doubt.
func Open(opt Options) (*Journal, error) {
	start := time.Now()
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Mono == nil {
		opt.Mono = func() time.Duration { return sinceBoot(start) }
	}
	if opt.Random == nil {
		opt.Random = rand.Reader
	}
	if opt.SegmentBytes == 0 {
		opt.SegmentBytes = 4 << 20
	}
	if opt.RetainFor == 0 {
		opt.RetainFor = 14 * 24 * time.Hour
	}
	if opt.FloorBytes == 0 {
		opt.FloorBytes = 96 << 20
	}
	if opt.ReserveBytes == 0 {
		opt.ReserveBytes = 16 << 20
	}
	if opt.IndexTime == 0 {
		opt.IndexTime = 30 * time.Second
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	for _, id := range []string{opt.Origin.Chain, opt.Origin.Store, opt.Origin.Agent} {
		if !protocol.ValidID(id) {
			return nil, fmt.Errorf("open journal: %q cannot name a chain, store or agent; enrol this agent first", id)
		}
	}
	if opt.Disk == nil {
		opt.Disk = osDisk{}
	}
	if opt.FreeBytes == nil {
		opt.FreeBytes = opt.Disk.Free
	}
	if err := opt.Disk.MkdirAll(opt.Dir); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	lock, err := opt.Disk.Lock(filepath.Join(opt.Dir, "lock"))
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("open journal %s: %w; stop the other agent, or give this one its own folder", opt.Dir, err)
	} else if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{
		opt: opt, lock: lock, datasync: File.Datasync,
		groups: make(chan *group, 4), snappedAt: -snapshotEvery,
		acks: make(chan struct{}, 1), flushes: make(chan chan error), wake: make(chan struct{}, 1),
		overlay: newOverlay(), feeds: map[string]feedState{},
		ackIndex: map[uint64]ack{}, ackFile: map[uint64]ack{},
	}
	j.queue.wake = make(chan struct{}, 1)
	if err := j.recover(); err != nil {
		if j.db != nil {
			err = errors.Join(err, j.db.close(false))
		}
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", opt.Dir, err), lock.Close())
	}
	return j, nil
}

// Run commits what Append and Apply hand over, indexes it and drops what retention allows.
// When ctx is done it commits what was handed over until then and returns. An error means
// that the index cannot be written, or hangs; nothing accepted is lost, and the next Open
// builds the index anew. The process should end then: what hangs in Badger stays.
func (j *Journal) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error { return j.commitAll(ctx) })
	g.Go(func() error { return j.indexAll(cancel) })
	g.Go(func() error { j.keepAll(ctx); return nil })
	return g.Wait()
}

// Close writes the last acks to the index and closes everything. Run must have returned.
func (j *Journal) Close() error {
	j.queue.close()
	for _, r := range j.queue.take(math.MaxInt, math.MaxInt) {
		r.answer <- answer{err: ErrClosed}
	}
	err := j.indexAcks()
	if j.opt.Inline {
		err = errors.Join(err, j.endRun())
	}
	err = errors.Join(err, j.db.close(err == nil))
	if err = errors.Join(err, j.lock.Close()); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	return nil
}

// Owner reads from the segments in dir whose journal it is; fs.ErrNotExist when there is none.
func Owner(dir string) (protocol.Origin, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.seg*"))
	if err != nil {
		return protocol.Origin{}, fmt.Errorf("look for segments: %w", err)
	}
	err = fs.ErrNotExist
	for _, name := range names {
		ord, packed, ok := parseSegmentName(filepath.Base(name))
		if !ok {
			continue
		}
		j := Journal{opt: Options{Dir: dir, Disk: osDisk{}}}
		data, readErr := j.readSegment(ord, packed, headerRoom)
		if readErr != nil {
			err = readErr
			continue
		}
		h, headErr := headerOf(data)
		if headErr == nil {
			return h.origin, nil
		}
		err = fmt.Errorf("segment %d: %w", ord, headErr)
	}
	return protocol.Origin{}, fmt.Errorf("owner of journal %s: %w", dir, err)
}

// Stats of a journal.
type Stats struct {
	Waiting  int64          `json:"waiting"`         // durable records without an ack
	Oldest   time.Time      `json:"oldest,omitzero"` // when the oldest of them was accepted; zero when none
	Segments int            `json:"segments"`
	Bytes    int64          `json:"bytes"`   // of all segments, on disk
	Epoch    protocol.Epoch `json:"epoch"`   // the newest with a durable record; empty when none
	LastSeq  uint64         `json:"lastSeq"` // newest durable seq of it
}

// Stats says how the journal stands.
func (j *Journal) Stats() Stats {
	oldest, _ := j.Heads()
	j.mu.Lock()
	s := Stats{Waiting: j.waiting, Segments: len(j.segs)}
	for _, seg := range j.segs {
		s.Bytes += seg.size
	}
	for _, e := range slices.Backward(j.epochs) {
		if e.last > 0 {
			s.Epoch, s.LastSeq = e.id, e.last
			break
		}
	}
	j.mu.Unlock()
	if oldest.Seq > 0 {
		if r, err := j.at(oldest); err == nil {
			s.Oldest = r.rec.Time()
		}
	}
	return s
}

// Damage names what was found broken on the disk since Open and could not be repaired, one
// sentence each; empty when all is well.
func (j *Journal) Damage() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.damage)
}

// damaged notes damage and says it loudly. The caller does not hold mu.
func (j *Journal) damaged(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	j.mu.Lock()
	known := slices.Contains(j.damage, s)
	if !known {
		j.damage = append(j.damage, s)
	}
	j.mu.Unlock()
	if !known {
		j.opt.Log.Error("journal is damaged", "what", s)
	}
}

// drawEpoch appends the epoch that begins with the next record. The caller holds mu, or is
// Open.
func (j *Journal) drawEpoch() error {
	if n := len(j.epochs); n > 0 && mutant.On(mutant.ReuseEpoch) {
		return nil
	}
	var raw [16]byte
	if _, err := io.ReadFull(j.opt.Random, raw[:]); err != nil {
		return fmt.Errorf("draw epoch: %w", err)
	}
	e := &epoch{ord: 1, id: protocol.Epoch(hex.EncodeToString(raw[:]))}
	if n := len(j.epochs); n > 0 {
		p := j.epochs[n-1]
		e.ord = p.ord + 1
		e.before = &before{ord: p.ord, mark: protocol.Mark{Epoch: p.id, Through: p.last, Hash: p.hash}}
	}
	e.hash = protocol.Genesis(j.opt.Origin.Chain, j.opt.Origin.Store, j.opt.Origin.Agent, e.id)
	j.epochs = append(j.epochs, e)
	return nil
}

// epochOf finds an epoch by its id. The caller holds mu.
func (j *Journal) epochOf(id protocol.Epoch) (int, *epoch) {
	for i, e := range slices.Backward(j.epochs) {
		if e.id == id {
			return i, e
		}
	}
	return -1, nil
}

// ordinal finds an epoch by its ordinal. The caller holds mu.
func (j *Journal) ordinal(ord uint64) *epoch {
	i, ok := slices.BinarySearchFunc(j.epochs, ord, func(e *epoch, o uint64) int {
		return int(int64(e.ord) - int64(o))
	})
	if !ok {
		return nil
	}
	return j.epochs[i]
}
