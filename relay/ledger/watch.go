package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// ChainNews is the hint that a feed of a chain has moved.
type ChainNews struct {
	Chain string
	protocol.News
}

// A watch knows who wants to hear of commits, and how far each chain was heard of.
type watch struct {
	mu      sync.Mutex // guards the maps
	waiting map[string]map[chan struct{}]bool
	seen    map[string]state
	dirty   map[string]bool // chains that other relays have not been told of

	wake chan struct{} // holds a value when dirty is not empty
	news chan ChainNews
}

type state struct{ head, feed int64 }

func newWatch() *watch {
	return &watch{
		waiting: map[string]map[chan struct{}]bool{}, seen: map[string]state{}, dirty: map[string]bool{},
		wake: make(chan struct{}, 1), news: make(chan ChainNews, 256),
	}
}

// Moved gives a channel that holds a value after the chain was committed to, by this process
// or by another over the same database; several commits may leave one value. Cancel ends it.
func (l *Ledger) Moved(chain string) (moved <-chan struct{}, cancel func()) {
	return l.watch.subscribe(chain)
}

func (w *watch) subscribe(chain string) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting[chain] == nil {
		w.waiting[chain] = map[chan struct{}]bool{}
	}
	w.waiting[chain][ch] = true
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.waiting[chain], ch)
		if len(w.waiting[chain]) == 0 {
			delete(w.waiting, chain)
		}
	}
}

// News gives the feeds that moved, by this process or another. It is one channel for one
// reader; what nobody reads is dropped, since agents also ask by themselves.
func (l *Ledger) News() <-chan ChainNews { return l.watch.news }

// committed notes a commit of this process.
func (w *watch) committed(chain string, head, feed int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(chain, state{head, feed})
	w.dirty[chain] = true
	knock(w.wake)
}

// heard notes the state of a chain as the database has it, and says from which feed version
// on there is news; -1 when there is none.
func (w *watch) heard(chain string, now state) (newsAfter int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, known := w.seen[chain]
	if known && before.head >= now.head && before.feed >= now.feed {
		return -1
	}
	w.note(chain, now)
	if known && before.feed < now.feed {
		return before.feed
	}
	return -1
}

// note wakes who waits; mu is held.
func (w *watch) note(chain string, now state) {
	before := w.seen[chain]
	w.seen[chain] = state{max(before.head, now.head), max(before.feed, now.feed)}
	for ch := range w.waiting[chain] {
		knock(ch)
	}
}

func (w *watch) tell(news ChainNews) {
	select {
	case w.news <- news:
	default:
	}
}

func (w *watch) untold() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var chains []string
	for chain := range w.dirty {
		chains = append(chains, chain)
	}
	clear(w.dirty)
	return chains
}

func knock(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// pollEvery is how often the database is asked what moved, should a notification be lost.
const pollEvery = 5 * time.Second

// poll asks the database how far its chains are; names empty = all.
func (l *Ledger) poll(ctx context.Context, name string) error {
	query, args := "SELECT name, head, feed_version FROM chains", []any(nil)
	if name != "" {
		query, args = query+" WHERE name = $1", []any{name}
	}
	found, err := l.db.read().QueryContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("poll chains: %w", err)
	}
	defer found.Close()
	news := map[string]int64{}
	for found.Next() {
		var chain string
		var now state
		if err := found.Scan(&chain, &now.head, &now.feed); err != nil {
			return fmt.Errorf("poll chains: %w", err)
		}
		if after := l.watch.heard(chain, now); after >= 0 {
			news[chain] = after
		}
	}
	if err := found.Err(); err != nil {
		return fmt.Errorf("poll chains: %w", err)
	}
	for chain, after := range news {
		feeds, err := list(ctx, l, chain, "feeds", "SELECT feed, max(version) FROM feeds WHERE chain = $1 AND version > $2 GROUP BY feed", []any{after},
			func(row scanner, n *protocol.News) error { return row.Scan(&n.Feed, &n.Version) })
		if err != nil {
			return err
		}
		for _, n := range feeds {
			l.watch.tell(ChainNews{chain, n})
		}
	}
	return nil
}

const notifyChannel = "storelay"

// hear learns of the commits of other relays until ctx is done: by LISTEN, with a poll
// behind it that needs no notification to arrive.
func (l *Ledger) hear(ctx context.Context, db *postgresDB) {
	for ctx.Err() == nil {
		if err := l.listen(ctx, db); err != nil && ctx.Err() == nil {
			l.log.Warn("other relays are not heard; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func (l *Ledger) listen(ctx context.Context, db *postgresDB) error {
	pooled, err := db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack() // a connection that listens must not go back to others
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return err
	}
	for next := ""; ; {
		if err := l.poll(ctx, next); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, pollEvery)
		told, err := conn.WaitForNotification(wait)
		late := wait.Err()
		cancel()
		switch {
		case err == nil:
			next = told.Payload
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(late, context.DeadlineExceeded) && !conn.IsClosed():
			next = ""
		default:
			return err
		}
	}
}

// notify tells other relays which chains moved, outside of the commits: NOTIFY within them
// would line all commits of the database up behind one lock.
func (l *Ledger) notify(ctx context.Context, db *postgresDB) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.watch.wake:
		}
		if chains := l.watch.untold(); len(chains) > 0 {
			if _, err := db.pool.Exec(ctx, "SELECT pg_notify($1, chain) FROM unnest($2::text[]) AS chain", notifyChannel, chains); err != nil && ctx.Err() == nil {
				l.log.Warn("other relays were not told of commits; they poll", "error", err)
			}
		}
		// A pause, so that a busy relay tells of many commits at once.
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Run commits what Commit brings, and hears of the commits of other relays. It first
// applies the quarantined records whose kind this version knows. When ctx is done it
// answers what was brought, and returns.
func (l *Ledger) Run(ctx context.Context) error {
	if err := l.retryKnown(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("run ledger: %w", err)
	}
	defer context.AfterFunc(ctx, l.queue.close)()
	var tasks sync.WaitGroup
	for range l.db.committers() {
		tasks.Go(func() { l.work(context.WithoutCancel(ctx)) })
	}
	if db, ok := l.db.(*postgresDB); ok {
		tasks.Go(func() { l.hear(ctx, db) })
		tasks.Go(func() { l.notify(ctx, db) })
	}
	tasks.Wait()
	return nil
}
