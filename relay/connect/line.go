package connect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/protocol/mutant"
	"github.com/storelay/storelay/relay/ledger"
)

const (
	pageSize      = 100             // records read at once
	saveEvery     = 20              // deliveries after which the cursor is made durable
	pollEvery     = 5 * time.Second // behind Ledger.Moved
	pauseFor      = time.Hour       // between the attempts of a paused connector
	refusalsPause = 20              // refusals in a row that pause a connector
)

// errLeaseLost says that another relay may have the connector by now.
var errLeaseLost = errors.New("the lease is lost")

// A line is one connector at work.
type line struct {
	opts   Options
	config Config
	hook   *webhook
	log    *slog.Logger
	resume chan struct{}       // a value wakes a paused connector
	rest   func(time.Duration) // set during a round, which ends where Run would wait

	mu       sync.Mutex // guards what follows
	seen     State
	held     time.Time // the lease is ours until then
	refusals int       // since the last success
	rate     [60]struct{ second, n int64 }
}

// run takes the connector's lease and delivers while it holds it, until ctx ends.
func (l *line) run(ctx context.Context) {
	attempts := 0
	for ctx.Err() == nil {
		asked := l.opts.Now()
		mine, err := l.lease(ctx, l.opts.LeaseTTL)
		if err == nil && mine {
			l.hold(asked.Add(l.opts.LeaseTTL))
			err = l.lead(ctx)
			l.hold(time.Time{})
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil { // another relay has it
			attempts = 0
			l.sleep(ctx, l.opts.LeaseTTL/3)
			continue
		}
		attempts++
		l.failedWith(err.Error())
		l.log.Warn("connector stopped, will go on", "err", err)
		l.sleep(ctx, backoff(attempts, l.opts.RetryMin, min(l.opts.RetryMax, time.Minute), l.opts.Random))
	}
}

// lead delivers and renews the lease beside it; the first of the two that ends stops the
// other. The lease is given back when the relay stops.
func (l *line) lead(ctx context.Context) error {
	g, leading := errgroup.WithContext(ctx)
	g.Go(func() error { return l.renew(leading) })
	g.Go(func() error { return l.deliverAll(leading) })
	err := g.Wait()
	if ctx.Err() != nil {
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := l.lease(back, time.Millisecond); err != nil {
			l.log.Warn("lease not given back, it will run out", "err", err)
		}
	}
	return err
}

func (l *line) lease(ctx context.Context, ttl time.Duration) (bool, error) {
	mine, err := l.opts.Ledger.Lease(ctx, "connector/"+l.opts.Chain+"/"+l.config.Name, l.opts.Holder, ttl)
	if err != nil {
		return false, fmt.Errorf("take lease: %w", err)
	}
	return mine, nil
}

// renew keeps the lease; it ends with errLeaseLost when another has it, or when the ledger
// has not answered until the lease ran out.
func (l *line) renew(ctx context.Context) error {
	for {
		l.sleep(ctx, l.opts.LeaseTTL/3)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		asked := l.opts.Now()
		attempt, cancel := context.WithTimeout(ctx, l.opts.LeaseTTL/3)
		mine, err := l.lease(attempt, l.opts.LeaseTTL)
		cancel()
		switch {
		case err == nil && mine:
			l.hold(asked.Add(l.opts.LeaseTTL))
		case err == nil || !l.holds():
			l.hold(time.Time{})
			return errLeaseLost
		}
	}
}

// deliverAll delivers from the durable cursor on, in order, for ever.
func (l *line) deliverAll(ctx context.Context) error {
	moved, stop := l.opts.Ledger.Moved(l.opts.Chain)
	defer stop()
	cursor, err := l.begin(ctx)
	if err != nil {
		return err
	}
	for {
		var none bool
		if cursor, none, err = l.deliverNext(ctx, cursor); err != nil {
			return err
		}
		if none {
			wait := time.NewTimer(pollEvery)
			select {
			case _, open := <-moved:
				if !open { // the ledger stops: the poll alone is left
					moved = nil
				}
			case <-wait.C:
			case <-ctx.Done():
			}
			wait.Stop()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
}

// deliverNext delivers the next page behind the cursor; none says that there is nothing.
func (l *line) deliverNext(ctx context.Context, cursor ledger.Cursor) (next ledger.Cursor, none bool, err error) {
	head, incarnation, err := l.opts.Ledger.Head(ctx, l.opts.Chain)
	if err != nil {
		return cursor, false, fmt.Errorf("read head: %w", err)
	}
	cursor = carry(cursor, head, incarnation)
	records, err := l.opts.Ledger.Records(ctx, l.opts.Chain, cursor.Pos, pageSize)
	if err != nil {
		return cursor, false, fmt.Errorf("read records after %d: %w", cursor.Pos, err)
	}
	if len(records) == 0 {
		return cursor, true, nil
	}
	cursor, err = l.deliverPage(ctx, cursor, records)
	return cursor, false, err
}

// round takes the lease and delivers until there is nothing more, or until it would have to
// wait, and says when to go on.
func (l *line) round(ctx context.Context) (next time.Time, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.rest = func(d time.Duration) {
		next = l.opts.Now().Add(d)
		cancel()
	}
	defer func() { l.rest = nil }()
	asked := l.opts.Now()
	mine, err := l.lease(ctx, l.opts.LeaseTTL)
	if err != nil || !mine {
		return asked.Add(l.opts.LeaseTTL), err
	}
	l.hold(asked.Add(l.opts.LeaseTTL))
	defer l.hold(time.Time{})
	cursor, err := l.begin(ctx)
	for none := false; err == nil && !none; {
		cursor, none, err = l.deliverNext(ctx, cursor)
	}
	if !next.IsZero() && errors.Is(err, context.Canceled) {
		err = nil
	}
	return next, err
}

// begin reads the durable cursor, or makes one for a connector that is new.
func (l *line) begin(ctx context.Context) (ledger.Cursor, error) {
	cursor, err := l.opts.Ledger.Cursor(ctx, l.opts.Chain, l.config.Name)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return cursor, fmt.Errorf("read cursor: %w", err)
	}
	if err == nil && cursor.Incarnation != 0 {
		return cursor, nil
	}
	head, incarnation, err := l.opts.Ledger.Head(ctx, l.opts.Chain)
	if err != nil {
		return cursor, fmt.Errorf("read head: %w", err)
	}
	cursor = ledger.Cursor{Incarnation: incarnation}
	if l.config.Start == StartNow {
		cursor.Pos = head
	}
	return cursor, l.save(ctx, cursor)
}

// carry takes a cursor of an older incarnation into the present one.
func carry(cursor ledger.Cursor, head, incarnation int64) ledger.Cursor {
	if cursor.Incarnation < incarnation {
		cursor = ledger.Cursor{Incarnation: incarnation, Pos: min(cursor.Pos, head)}
	}
	return cursor
}

// deliverPage delivers records in order and moves the cursor behind each. What was delivered
// is made durable also when ctx ends in the middle.
func (l *line) deliverPage(ctx context.Context, cursor ledger.Cursor, records []ledger.StoredRecord) (ledger.Cursor, error) {
	unsaved := 0
	for i := range records {
		r := &records[i]
		if mutant.On(mutant.CursorFirst) {
			if err := l.save(ctx, ledger.Cursor{Incarnation: cursor.Incarnation, Pos: r.Pos}); err != nil {
				return cursor, err
			}
		}
		if l.config.wants(r) {
			letter, err := l.deliver(ctx, r)
			if err != nil {
				if unsaved > 0 {
					err = errors.Join(err, l.save(ctx, cursor))
				}
				return cursor, err
			}
			if letter != nil {
				cursor.Pos, unsaved = r.Pos, 0
				if err := l.opts.Ledger.AddDeadLetter(ctx, l.opts.Chain, *letter, cursor); err != nil {
					return cursor, fmt.Errorf("keep dead letter %d: %w", r.Pos, err)
				}
				continue
			}
		}
		cursor.Pos = r.Pos
		if unsaved++; unsaved == saveEvery || i == len(records)-1 {
			if err := l.save(ctx, cursor); err != nil {
				return cursor, err
			}
			unsaved = 0
		}
	}
	return cursor, nil
}

// save makes the cursor durable while the lease is ours, also when ctx has ended.
func (l *line) save(ctx context.Context, cursor ledger.Cursor) error {
	if !l.holds() {
		return errLeaseLost
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := l.opts.Ledger.SaveCursor(ctx, l.opts.Chain, l.config.Name, cursor); err != nil {
		return fmt.Errorf("save cursor %d: %w", cursor.Pos, err)
	}
	return nil
}

// deliver tries one record until the receiver takes it (nil, nil), or gives it up (a dead
// letter), or the lease is lost or ctx ends (an error).
func (l *line) deliver(ctx context.Context, r *ledger.StoredRecord) (*ledger.DeadLetter, error) {
	var failing time.Time // since when the receiver fails on this record
	for attempts := 1; ; attempts++ {
		if !l.holds() {
			return nil, errLeaseLost
		}
		out, err := l.hook.deliver(ctx, r)
		if err != nil {
			return nil, err
		}
		now := l.opts.Now()
		if out.verdict == delivered {
			l.succeeded()
			return nil, nil
		}
		refusals := l.failedAt(attempts, out)
		if out.verdict == failed && failing.IsZero() {
			failing = now
		}
		stuck := out.verdict == failed && now.Sub(failing) >= l.config.GiveUp
		if stuck || (out.verdict == refused && refusals < refusalsPause) {
			l.log.Warn("record became a dead letter", "pos", r.Pos, "attempts", attempts, "reason", out.reason)
			return &ledger.DeadLetter{Connector: l.config.Name, Pos: r.Pos, Attempts: attempts, Reason: out.reason, At: now}, nil
		}
		if out.verdict == gone || out.verdict == refused {
			if err := l.pause(ctx, out.reason); err != nil {
				return nil, err
			}
			continue
		}
		l.log.Debug("delivery failed, will be tried again", "pos", r.Pos, "attempts", attempts, "reason", out.reason)
		l.sleep(ctx, max(out.wait, backoff(attempts, l.opts.RetryMin, l.opts.RetryMax, l.opts.Random)))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// pause waits for Resume, or an hour.
func (l *line) pause(ctx context.Context, reason string) error {
	l.log.Warn("connector paused", "reason", reason)
	l.setPaused(true)
	defer l.setPaused(false)
	select {
	case <-l.resume: // one that was sent before the pause
	default:
	}
	if l.rest != nil {
		l.rest(pauseFor)
	}
	wait := time.NewTimer(pauseFor)
	defer wait.Stop()
	select {
	case <-l.resume:
		l.forgive()
	case <-wait.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// sleep waits for d or the end of ctx.
func (l *line) sleep(ctx context.Context, d time.Duration) {
	if l.rest != nil {
		l.rest(d)
	}
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}
