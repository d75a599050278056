package ledger

import (
	"context"
	"errors"
	"sync"

	"github.com/storelay/storelay/protocol"
)

// A group that one transaction commits is at most this big.
const (
	maxGroupBatches = 500
	maxGroupRecords = 5000
)

var errClosing = errors.New("the ledger is closing")

// A job is a batch on its way into the ledger.
type job struct {
	from   protocol.Origin
	of     *protocol.Origin // another agent, whose records these are; nil = from's own
	epoch  protocol.Epoch
	first  uint64
	prev   protocol.Hash
	skip   *protocol.Skip // from first on, before the items
	items  []*item
	seal   *protocol.Seal // of a batch that begins an epoch; nil = it was lost and is not known
	refuse string         // why the batch cannot be taken; "" = it can
	raw    []byte         // a record that could not be read, beside refuse or skip
	unread string         // why
	again  *quarantinedRow

	answer protocol.Answer
	err    error
	done   chan struct{} // closed when answer or err is set
}

// whose records these are.
func (j *job) whose() protocol.Origin {
	if j.of != nil {
		return *j.of
	}
	return j.from
}

// begin is the seq of the first item.
func (j *job) begin() uint64 {
	if j.skip != nil {
		return j.skip.To + 1
	}
	return j.first
}

func (j *job) last() uint64 { return j.begin() + uint64(len(j.items)) - 1 }

// halves splits a job in two: after its skip, or else in the middle of its items. A job that
// cannot be split is false.
func (j *job) halves() (head, tail *job, ok bool) {
	n := len(j.items)
	switch {
	case j.skip != nil && n > 0:
		h, t := *j, *j
		h.items, t.skip = nil, nil
		t.first, t.prev = j.begin(), j.skip.Hash
		return &h, &t, true
	case n > 1:
		h, t := *j, *j
		h.items, t.items = j.items[:n/2], j.items[n/2:]
		t.first, t.prev = j.first+uint64(n/2), j.items[n/2-1].hash
		return &h, &t, true
	}
	return nil, nil, false
}

// A queue holds jobs per chain. A chain is worked on by one committer at a time, which takes
// what has gathered.
type queue struct {
	mu     sync.Mutex
	wake   *sync.Cond
	lines  map[string]*line
	ready  []*line
	closed bool
}

type line struct {
	chain  string
	jobs   []*job
	active bool // in ready, or with a committer
}

func newQueue() *queue {
	q := &queue{lines: map[string]*line{}}
	q.wake = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(j *job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errClosing
	}
	l := q.lines[j.from.Chain]
	if l == nil {
		l = &line{chain: j.from.Chain}
		q.lines[j.from.Chain] = l
	}
	l.jobs = append(l.jobs, j)
	if !l.active {
		l.active = true
		q.ready = append(q.ready, l)
		q.wake.Signal()
	}
	return nil
}

// take waits for a chain with jobs and takes a group of them; false when the queue is closed
// and empty. The caller gives the line back.
func (q *queue) take() (*line, []*job, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) == 0 {
		if q.closed {
			return nil, nil, false
		}
		q.wake.Wait()
	}
	l := q.ready[0]
	q.ready = q.ready[1:]
	n, records := 0, 0
	for n < len(l.jobs) && n < maxGroupBatches && (n == 0 || records+len(l.jobs[n].items) <= maxGroupRecords) {
		records += len(l.jobs[n].items)
		n++
	}
	jobs := l.jobs[:n:n]
	l.jobs = l.jobs[n:]
	if len(l.jobs) == 0 {
		l.jobs = nil
	}
	return l, jobs, true
}

func (q *queue) giveBack(l *line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(l.jobs) > 0 {
		q.ready = append(q.ready, l)
		q.wake.Signal()
		return
	}
	l.active = false
	delete(q.lines, l.chain)
}

// close lets take hand out what is there, and then no more.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
}

// work commits until the queue is closed and empty.
func (l *Ledger) work(ctx context.Context) {
	for {
		line, jobs, ok := l.queue.take()
		if !ok {
			return
		}
		if err := l.commit(ctx, line.chain, jobs); err != nil {
			for _, j := range jobs {
				j.err = err
			}
		}
		for _, j := range jobs {
			close(j.done)
		}
		l.queue.giveBack(line)
	}
}
