package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// ErrDiskFull is what a Host answers while it is told to refuse.
var ErrDiskFull = errors.New("no space left on device")

// A Host records what a driver emits. It keeps bodies as the JSON that the agent would write
// and the state that came with the last one. It is safe for concurrent use.
type Host struct {
	mu      sync.Mutex // guards the fields below
	counts  []protocol.FootfallCount
	events  []protocol.DrawerEvent
	coins   []CoinEvent
	state   []byte
	faults  []error // of the driver's behaviour
	refuse  bool
	refused int
	online  int
	notes   map[string]int
	ahead   time.Duration
	changed chan struct{} // closed at each accepted record
}

// A CoinEvent is what the suite for coin acceptors reads of a record of kindCoins.
type CoinEvent struct {
	Acceptor string // device id
	Event    string // accepted, rejected, missed, reset
	Number   int64  // of the record, without holes
	Channel  int    // of an accepted coin
	Count    int64  // of rejected and missed ones
}

// kindCoins is the kind of a coin acceptor's records.
const kindCoins protocol.Kind = "cashIn"

// NewHost makes the host of a device that was never started.
func NewHost() *Host { return &Host{notes: map[string]int{}, changed: make(chan struct{})} }

// Emit accepts a valid footfall count, drawer event or coin event, unless the host refuses.
func (h *Host) Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error {
	data, err := json.Marshal(body)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil:
		return h.blame(fmt.Errorf("body of %s: %w", kind, err))
	case ctx.Err() != nil:
		return ctx.Err()
	case h.refuse:
		h.refused++
		return ErrDiskFull
	}
	switch kind {
	case protocol.KindFootfall:
		var c protocol.FootfallCount
		if err := errors.Join(json.Unmarshal(data, &c), c.Validate()); err != nil {
			return h.blame(fmt.Errorf("footfall count %s: %w", data, err))
		}
		if n := len(h.counts); n > 0 && c.From.Before(h.counts[n-1].To) {
			_ = h.blame(fmt.Errorf("footfall count from %s overlaps the one before it, to %s", c.From, h.counts[n-1].To))
		}
		h.counts = append(h.counts, c)
	case protocol.KindDrawer:
		var e protocol.DrawerEvent
		if err := errors.Join(json.Unmarshal(data, &e), e.Validate()); err != nil {
			return h.blame(fmt.Errorf("drawer event %s: %w", data, err))
		}
		h.events = append(h.events, e)
	case kindCoins:
		var e CoinEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return h.blame(fmt.Errorf("coin event %s: %w", data, err))
		}
		if e.Number != int64(len(h.coins)+1) {
			_ = h.blame(fmt.Errorf("coin event %s is number %d, want %d", data, e.Number, len(h.coins)+1))
		}
		h.coins = append(h.coins, e)
	case protocol.KindDevice:
	default:
		return h.blame(fmt.Errorf("kind %q is not a driver's", kind))
	}
	if state != nil {
		h.state = append([]byte{}, state...)
	}
	close(h.changed)
	h.changed = make(chan struct{})
	return nil
}

func (h *Host) blame(err error) error {
	h.faults = append(h.faults, err)
	return err
}

// State is the state of the last accepted Emit.
func (h *Host) State() ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == nil {
		return nil, nil
	}
	return append([]byte{}, h.state...), nil
}

// Online counts.
func (h *Host) Online() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.online++
}

// Note counts.
func (h *Host) Note(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notes[what]++
}

// Now is the time, ahead by what Advance was told.
func (h *Host) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.ahead)
}

// Advance moves the driver's clock.
func (h *Host) Advance(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ahead += d
}

// Refuse makes Emit answer ErrDiskFull, or accept again.
func (h *Host) Refuse(refuse bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = refuse
}

// Refused is the number of records that were refused.
func (h *Host) Refused() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refused
}

// Onlines is the number of calls of Online.
func (h *Host) Onlines() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.online
}

// Notes are the notes so far and how often each came.
func (h *Host) Notes() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]int{}
	for what, n := range h.notes {
		all[what] = n
	}
	return all
}

// Counts are the footfall counts accepted so far.
func (h *Host) Counts() []protocol.FootfallCount {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]protocol.FootfallCount(nil), h.counts...)
}

// Sum adds up the counts accepted so far.
func (h *Host) Sum() (sum Passages) {
	for _, c := range h.Counts() {
		sum.In += c.In
		sum.Out += c.Out
	}
	return sum
}

// Events are the drawer events accepted so far.
func (h *Host) Events() []protocol.DrawerEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]protocol.DrawerEvent(nil), h.events...)
}

// Coins are the coin events accepted so far.
func (h *Host) Coins() []CoinEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]CoinEvent(nil), h.coins...)
}

// Err joins what was wrong with the records that the driver gave.
func (h *Host) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return errors.Join(h.faults...)
}

// Until waits until good holds, looking at each accepted record and every 5 ms, and gives up
// after limit; it says whether good held.
func (h *Host) Until(limit time.Duration, good func() bool) bool {
	give, poll := time.NewTimer(limit), time.NewTicker(5*time.Millisecond)
	defer give.Stop()
	defer poll.Stop()
	for {
		h.mu.Lock()
		changed := h.changed
		h.mu.Unlock()
		if good() {
			return true
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-give.C:
			return good()
		}
	}
}
