package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/storelay/storelay/protocol"
)

const (
	maxState = 32 << 10 // bytes of a state
	maxKeys  = 4 << 10  // bytes of all keys of an entry
	timeForm = "2006-01-02T15:04:05.000Z07:00"
)

// An Entry is what Append is given: the record's content, and what is remembered with it in
// the same durable step.
type Entry struct {
	Kind     protocol.Kind
	Day      protocol.Day
	Body     []byte   // JSON; compacted once, and those bytes are hashed and kept
	Key      []byte   // protocol.Record.Key: opens the sealed personal fields
	Keys     []string // idempotency keys, known for RetainFor; 4 KiB in all
	Digest   [32]byte // of the request behind Keys: the same keys with another digest conflict
	StateKey string   // "" = none; 256 bytes
	State    []byte   // kept under StateKey until the next; 32 KiB
	Minor    bool     // is refused first when the disk gets full: what a shop can do without

	// Make, when set, makes the body from the mark of the record before, while the record's
	// place is being given out: Body is ignored.
	Make func(head protocol.Mark) ([]byte, error)
}

// A Receipt says where a record stands.
type Receipt struct {
	Position protocol.Position
	At       string // the record's time, RFC 3339
	Known    bool   // the keys were known: this is the first record's receipt
}

// Append returns nil once the record is on disk. An entry with a known key and the same
// digest is not appended again: the receipt is the first one's, with Known set. With another
// digest the error is ErrConflict and the receipt names the first position. ErrTooBig: the
// record's JSON is over protocol.MaxRecord (room for its position and for being appended
// again after a fork is counted in). ErrFull: the disk is too full for it, nothing was
// written. ErrBusy: too much waits to be written already, this was not taken. After any other error, that of a done ctx too, the record may be on disk or not:
// ask again with the same key.
func (j *Journal) Append(ctx context.Context, e Entry) (Receipt, error) {
	if e.Make != nil {
		e.Body = []byte("{}")
	}
	var body bytes.Buffer
	if err := json.Compact(&body, e.Body); err != nil {
		return Receipt{}, fmt.Errorf("append %s: body: %w", e.Kind, err)
	}
	e.Body = body.Bytes()
	longest := protocol.Record{
		Seq: math.MaxUint64, Kind: e.Kind, At: j.opt.Now().Format(timeForm), Mono: math.MaxInt64, Day: e.Day, Body: e.Body, Key: e.Key,
		Was: &protocol.Was{Epoch: protocol.Epoch(strings.Repeat("0", 32)), Seq: math.MaxUint64},
	}
	if n := len(longest.AppendJSON(nil)); n > protocol.MaxRecord {
		return Receipt{}, fmt.Errorf("append %s: %w: %d bytes, at most %d", e.Kind, ErrTooBig, n, protocol.MaxRecord)
	}
	keys := 0
	for _, k := range e.Keys {
		keys += len(k)
	}
	if len(e.State) > maxState || len(e.StateKey) > 256 || keys > maxKeys {
		return Receipt{}, fmt.Errorf("append %s: %w: state %d bytes of %d, its key %d of 256, idempotency keys %d of %d",
			e.Kind, ErrTooBig, len(e.State), maxState, len(e.StateKey), keys, maxKeys)
	}
	r := &request{entry: &e, size: len(e.Body) + len(e.State), answer: make(chan answer, 1)}
	for _, k := range e.Keys {
		r.hashes = append(r.hashes, hashKey(k))
	}
	if err := j.queue.offer(r); err != nil {
		return Receipt{}, fmt.Errorf("append %s: %w", e.Kind, err)
	}
	j.work()
	select {
	case a := <-r.answer:
		if a.err != nil {
			return a.receipt, fmt.Errorf("append %s: %w", e.Kind, a.err)
		}
		return a.receipt, nil
	case <-ctx.Done():
		return Receipt{}, fmt.Errorf("append %s: %w", e.Kind, ctx.Err())
	}
}

// State is the last durable State that was appended under the key; nil when none was.
func (j *Journal) State(key string) ([]byte, error) {
	j.mu.Lock()
	s, ok := j.overlay.states[key]
	j.mu.Unlock()
	if ok {
		return bytes.Clone(s.v), nil
	}
	v, err := j.db.get(stateKey(key))
	if err != nil {
		return nil, fmt.Errorf("state %s: %w", key, err)
	}
	return v, nil
}

// A keyHash stands for an idempotency key.
type keyHash [16]byte

func hashKey(key string) keyHash {
	sum := sha256.Sum256([]byte(key))
	return keyHash(sum[:16])
}

// A request waits for its group to be committed: an entry or a feed page. Or it is a step
// that the committer does by itself.
type request struct {
	entry  *Entry
	step   func() error
	hashes []keyHash // of entry.Keys
	page   *protocol.FeedPage
	size   int // bytes, roughly
	answer chan answer
}

type answer struct {
	receipt Receipt
	err     error
}

// What waits for the committer at most. A caller whose ctx ends leaves its request there, so
// that tills that ask again while the disk hangs would fill the memory.
const (
	maxWaiting      = 8 << 10 // entries
	maxWaitingBytes = 8 << 20
)

// A queue hands requests to the committer.
type queue struct {
	wake chan struct{} // a value = there is something

	mu     sync.Mutex // guards the rest
	wait   []*request
	bytes  int // of wait, roughly
	closed bool
}

// offer puts an entry into the queue, unless that is closed or full.
func (q *queue) offer(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed && (len(q.wait) >= maxWaiting || q.bytes+r.size > maxWaitingBytes) {
		return ErrBusy
	}
	if !q.add(r) {
		return ErrClosed
	}
	return nil
}

// put is false when the queue is closed. It is for steps and pages, of which there is one at a
// time.
func (q *queue) put(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.add(r)
}

// add needs mu.
func (q *queue) add(r *request) bool {
	if q.closed {
		return false
	}
	q.wait = append(q.wait, r)
	q.bytes += r.size
	signal(q.wake)
	return true
}

// take removes at most n requests of at most size bytes together, at least one.
func (q *queue) take(n, size int) []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := 0
	for i < len(q.wait) && i < n && (i == 0 || size >= q.wait[i].size) {
		size -= q.wait[i].size
		q.bytes -= q.wait[i].size
		i++
	}
	taken := q.wait[:i:i]
	if q.wait = q.wait[i:]; len(q.wait) > 0 {
		signal(q.wake)
	} else {
		q.wait = nil
	}
	return taken
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.wait)
}

// close refuses what comes later.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
