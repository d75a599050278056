package connect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// A Ledger is what the runner needs of *ledger.Ledger.
type Ledger interface {
	Head(ctx context.Context, chain string) (pos, incarnation int64, err error)
	Moved(chain string) (<-chan struct{}, func())
	Records(ctx context.Context, chain string, after int64, limit int) ([]ledger.StoredRecord, error)
	CountRecords(ctx context.Context, chain string, after int64, most int) (int64, error)
	Cursor(ctx context.Context, chain, connector string) (ledger.Cursor, error)
	SaveCursor(ctx context.Context, chain, connector string, cursor ledger.Cursor) error
	AddDeadLetter(ctx context.Context, chain string, letter ledger.DeadLetter, next ledger.Cursor) error
	DeadLetters(ctx context.Context, chain, connector string) ([]ledger.DeadLetter, error)
	RemoveDeadLetter(ctx context.Context, chain, connector string, pos int64) error
	Lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error)
}

// Options of a Runner. Ledger, Chain and Holder are needed.
type Options struct {
	Ledger Ledger
	Chain  string
	Holder string           // names this relay among those on one ledger, anew at every start
	Log    *slog.Logger     // nil = nothing is logged
	Now    func() time.Time // nil = time.Now
	Random func() float64   // in [0, 1), for the jitter; nil = math/rand

	Transport http.RoundTripper // to the receivers; nil = HTTP over the network

	LeaseTTL time.Duration // how long a relay that died keeps its connectors; 0 = 15 s
	Timeout  time.Duration // of one attempt; 0 = 15 s
	RetryMin time.Duration // first pause after a failure; 0 = 1 s
	RetryMax time.Duration // longest pause; 0 = 5 min
}

// A Runner runs the connectors of one chain. Several relays may run the same connectors on
// one ledger: a lease per connector lets one of them deliver.
type Runner struct {
	opts  Options
	lines []*line
}

// ErrRefused says that the receiver did not take a replayed record.
var ErrRefused = errors.New("the receiver did not take the record")

// New checks the connectors; an error is protocol.Faults, with fields such as
// connectors[1].url.
func New(opts Options, connectors ...Config) (*Runner, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Random == nil {
		opts.Random = rand.Float64
	}
	for value, standard := range map[*time.Duration]time.Duration{
		&opts.LeaseTTL: 15 * time.Second, &opts.Timeout: 15 * time.Second, &opts.RetryMin: time.Second, &opts.RetryMax: 5 * time.Minute,
	} {
		if *value == 0 {
			*value = standard
		}
	}
	r := &Runner{opts: opts}
	var faults protocol.Faults
	names := map[string]bool{}
	for i, c := range connectors {
		at := fmt.Sprintf("connectors[%d].", i)
		own := c.Validate()
		if names[c.Name] {
			own.Add("name", "", "%s stands twice", c.Name)
		}
		names[c.Name] = true
		for _, f := range own {
			f.Field = at + f.Field
			faults = append(faults, f)
		}
		if len(own) > 0 {
			continue
		}
		if c.GiveUp == 0 {
			c.GiveUp = 24 * time.Hour
		}
		hook, err := newWebhook(opts, c)
		if err != nil {
			return nil, fmt.Errorf("connector %s: %w", c.Name, err)
		}
		r.lines = append(r.lines, &line{opts: opts, config: c, hook: hook, resume: make(chan struct{}, 1),
			log: opts.Log.With("chain", opts.Chain, "connector", c.Name)})
	}
	return r, faults.Err()
}

// Run delivers until ctx ends, and then returns nil. Whatever goes wrong with one connector
// is logged, shown in its State and tried again; it never delays another.
func (r *Runner) Run(ctx context.Context) error {
	var g errgroup.Group
	for _, l := range r.lines {
		g.Go(func() error { l.run(ctx); return nil })
	}
	return g.Wait()
}

// Round delivers what the chain holds now, one connector after the other, on the caller's
// goroutine: for simulations, in place of Run. It never waits: where Run would, the round of
// that connector ends, and next is when to call again at the latest; zero = when the chain
// has moved. An error is the ledger's.
func (r *Runner) Round(ctx context.Context) (next time.Time, err error) {
	for _, l := range r.lines {
		at, failure := l.round(ctx)
		err = errors.Join(err, failure)
		if next.IsZero() || !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next, err
}

// A State is how a connector stands. What the ledger knows (Cursor, Lag, DeadLetters) is the
// same on every relay; the rest is what this relay saw since it started.
type State struct {
	Name        string    `json:"name"`
	Type        string    `json:"type"`
	Host        string    `json:"host"`   // of the receiver
	Cursor      int64     `json:"cursor"` // position through which everything is delivered or a dead letter
	Head        int64     `json:"head"`   // newest position of the chain
	Lag         int64     `json:"lag"`    // records between the two; beyond mostLag the positions
	DeadLetters int       `json:"deadLetters"`
	Active      bool      `json:"active"`    // this relay delivers
	Paused      bool      `json:"paused"`    // the receiver wants nothing more; see Runner.Resume
	Delivered   int64     `json:"delivered"` // records
	LastMinute  int64     `json:"lastMinute"`
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	Attempts    int       `json:"attempts"` // failed, of the record that is next
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
}

// mostLag bounds what is counted. Positions leap where the ledger was restored, so that they say
// little of how many records are behind.
const mostLag = 100_000

// States lists all connectors in the order of the configuration.
func (r *Runner) States(ctx context.Context) ([]State, error) {
	states := make([]State, 0, len(r.lines))
	head, incarnation, err := r.opts.Ledger.Head(ctx, r.opts.Chain)
	if err != nil {
		return nil, fmt.Errorf("read head: %w", err)
	}
	for _, l := range r.lines {
		cursor, err := r.opts.Ledger.Cursor(ctx, r.opts.Chain, l.config.Name)
		if err != nil && !errors.Is(err, ledger.ErrNotFound) {
			return nil, fmt.Errorf("read cursor of %s: %w", l.config.Name, err)
		}
		letters, err := r.opts.Ledger.DeadLetters(ctx, r.opts.Chain, l.config.Name)
		if err != nil {
			return nil, fmt.Errorf("read dead letters of %s: %w", l.config.Name, err)
		}
		s := l.state() // behind the cursor, so that what it says is delivered counts
		s.Head, s.DeadLetters = head, len(letters)
		s.Cursor = carry(cursor, head, incarnation).Pos
		if s.Lag, err = r.opts.Ledger.CountRecords(ctx, r.opts.Chain, s.Cursor, mostLag); err != nil {
			return nil, fmt.Errorf("count what %s lags behind: %w", l.config.Name, err)
		}
		if s.Lag == mostLag {
			s.Lag = head - s.Cursor
		}
		states = append(states, s)
	}
	return states, nil
}

// DeadLetters lists the records that the connector could not deliver. ErrNotFound of ledger
// when there is no such connector.
func (r *Runner) DeadLetters(ctx context.Context, connector string) ([]ledger.DeadLetter, error) {
	if _, err := r.line(connector); err != nil {
		return nil, err
	}
	return r.opts.Ledger.DeadLetters(ctx, r.opts.Chain, connector)
}

// Replay delivers one dead letter again, under the id that it had, and removes it when the
// receiver takes it. Any relay may do it; a repeat delivers again, which the receiver knows
// by the id. Errors: ErrNotFound of ledger, ErrRefused with what the receiver answered.
func (r *Runner) Replay(ctx context.Context, connector string, pos int64) error {
	l, err := r.line(connector)
	if err != nil {
		return err
	}
	letters, err := r.opts.Ledger.DeadLetters(ctx, r.opts.Chain, connector)
	if err != nil {
		return fmt.Errorf("read dead letters of %s: %w", connector, err)
	}
	if !slices.ContainsFunc(letters, func(d ledger.DeadLetter) bool { return d.Pos == pos }) {
		return fmt.Errorf("dead letter %d of %s: %w", pos, connector, ledger.ErrNotFound)
	}
	records, err := r.opts.Ledger.Records(ctx, r.opts.Chain, pos-1, 1)
	if err != nil {
		return fmt.Errorf("read record %d: %w", pos, err)
	}
	if len(records) == 0 || records[0].Pos != pos {
		return fmt.Errorf("record %d: %w", pos, ledger.ErrNotFound)
	}
	out, err := l.hook.deliver(ctx, &records[0])
	if err != nil {
		return err
	}
	if out.verdict != delivered {
		return fmt.Errorf("%w: %s", ErrRefused, out.reason)
	}
	l.succeeded()
	return r.opts.Ledger.RemoveDeadLetter(ctx, r.opts.Chain, connector, pos)
}

// Resume lets a paused connector try at once, on this relay. ErrNotFound of ledger when there
// is no such connector; one that is not paused is left as it is.
func (r *Runner) Resume(connector string) error {
	l, err := r.line(connector)
	if err != nil {
		return err
	}
	select {
	case l.resume <- struct{}{}:
	default:
	}
	return nil
}

func (r *Runner) line(connector string) (*line, error) {
	for _, l := range r.lines {
		if l.config.Name == connector {
			return l, nil
		}
	}
	return nil, fmt.Errorf("connector %s: %w", connector, ledger.ErrNotFound)
}
