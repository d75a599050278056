package core

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
)

const (
	// dayKey is where the journal keeps which days are marked.
	dayKey = "day"
	// maxMissed is the longest stretch of days that get a mark each; of a longer one, such as
	// after a year in a drawer, the last day's mark speaks for all.
	maxMissed = 400
	dayRetry  = time.Minute // after a mark that the journal did not take
	// maxEarly is how many days are marked anew when the clock was ahead for nobody knows how long.
	maxEarly     = 31
	restateEvery = time.Hour
)

// A signer makes the agent's day marks with the key of its certificate.
type signer struct {
	origin protocol.Origin
	cert   []byte // DER
	key    crypto.Signer
}

func newSigner(origin protocol.Origin, settings *tls.Config) (*signer, error) {
	pair := settings.Certificates[0]
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the identity's key cannot sign")
	}
	return &signer{origin, pair.Certificate[0], key}, nil
}

// mark is the body of a day's mark behind head.
func (s *signer) mark(day protocol.Day, head protocol.Mark) ([]byte, error) {
	m, err := protocol.SignDayMark(s.origin, day, head, s.cert, s.key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// remark signs a mark anew that was appended again after a fork.
func (s *signer) remark(old protocol.DayMark, head protocol.Mark) ([]byte, error) {
	return s.mark(old.Day, head)
}

// daysMarked is which days have a mark, as the journal keeps it under dayKey.
type daysMarked struct {
	Newest protocol.Day `json:"newest"`
	// Sure is the newest day that was marked when it had ended by the relay's clock too. What is
	// marked behind it is marked anew when that is known: the PC's clock may have been ahead.
	Sure protocol.Day   `json:"sure"`
	Late []protocol.Day `json:"late,omitempty"` // marked, and something of it was accepted since
}

func readDays(state []byte) (daysMarked, error) {
	var m daysMarked
	if len(state) == 0 {
		return m, nil
	}
	err := json.Unmarshal(state, &m)
	if state[0] != '{' { // of an older version
		m.Newest, err = protocol.ParseDay(string(state))
	}
	return m, err
}

// with is m's state with one more late day.
func (m daysMarked) with(late protocol.Day) daysMarked {
	if !slices.Contains(m.Late, late) {
		m.Late = append(slices.Clone(m.Late), late)
		m.Late = m.Late[max(0, len(m.Late)-maxMissed):]
	}
	return m
}

// without is m's state when a day is marked that was late.
func (m daysMarked) without(late protocol.Day) daysMarked {
	m.Late = slices.DeleteFunc(slices.Clone(m.Late), func(d protocol.Day) bool { return d == late })
	return m
}

func (m daysMarked) state() []byte {
	text, _ := json.Marshal(m) // days always encode
	return text
}

// A dayBook knows which days are marked, for those who append to them.
type dayBook struct {
	mu       sync.Mutex // guards what follows
	read     bool
	marked   daysMarked
	upTo     protocol.Day   // a mark of a day up to this one may be on its way
	restated *time.Duration // since boot, when late days were marked last; nil = not in this run
}

func (b *dayBook) isMarked(day protocol.Day) bool {
	return !day.IsZero() && (!b.marked.Newest.Before(day) || !b.upTo.Before(day))
}

// change changes what is marked, and gives it.
func (b *dayBook) change(how func(daysMarked) daysMarked) daysMarked {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.marked = how(b.marked)
	return b.marked
}

// append appends to the journal. A record of a day that is marked already calls for another
// mark of it, behind the record: it is noted with the record, where that has no state of its
// own, and in memory. A mark that is on its way may come to stand before the record or behind
// it, so the note is made when the record has its place.
func (a *Agent) append(ctx context.Context, e journal.Entry) (journal.Receipt, error) {
	a.days.mu.Lock()
	if e.StateKey == "" && a.days.isMarked(e.Day) {
		e.StateKey, e.State = dayKey, a.days.marked.with(e.Day).state()
	}
	a.days.mu.Unlock()
	receipt, err := a.journal.Append(ctx, e)
	if receipt.Known || errors.Is(err, journal.ErrConflict) || errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrTooBig) {
		return receipt, err // nothing was appended
	}
	a.days.mu.Lock()
	defer a.days.mu.Unlock()
	if a.days.isMarked(e.Day) {
		a.days.marked = a.days.marked.with(e.Day)
	}
	return receipt, err
}

// RollOver marks the business days that have ended since the last mark, and says when the
// day under way ends. The first mark of an agent's life is that of the day before its first.
// While the PC's clock is in doubt no day is taken to have ended. A day is marked once more
// when its mark turns out to have been early, and when something of it was accepted since.
func (a *Agent) RollOver(ctx context.Context) (next time.Time, err error) {
	now, rule := a.now(), a.settings.Load().rule
	retry := now.Add(dayRetry)
	if err := a.readMarked(); err != nil {
		return retry, err
	}
	if a.clock.Skew() != 0 {
		return retry, nil
	}
	passed, proven := a.clock.passed()
	today := rule.Day(passed)
	yesterday := today.AddDays(-1)
	m := a.days.change(func(m daysMarked) daysMarked { return m.setBack(today) })
	first := yesterday
	if !m.Newest.IsZero() {
		first = m.Newest.AddDays(1)
		if proven && m.Sure.Before(m.Newest) {
			first = m.Newest
			if !m.Sure.IsZero() {
				first = m.Sure.AddDays(1)
			}
		}
		if !yesterday.AddDays(-maxMissed).Before(first) {
			first = yesterday
		}
	}
	for day := first; day.Before(today); day = day.AddDays(1) {
		if err := a.markDay(ctx, day, proven); err != nil {
			return retry, err
		}
	}
	if err := a.restate(ctx, today); err != nil {
		return retry, err
	}
	return rule.Start(today.AddDays(1)), nil
}

// readMarked reads once what the journal knows of the marks.
func (a *Agent) readMarked() error {
	a.days.mu.Lock()
	defer a.days.mu.Unlock()
	if a.days.read {
		return nil
	}
	state, err := a.journal.State(dayKey)
	if err != nil {
		return err
	}
	if a.days.marked, err = readDays(state); err != nil {
		return fmt.Errorf("state of the day marks: %w", err)
	}
	a.days.read = true
	return nil
}

// setBack takes back the marks of days that have not ended: the PC's clock was ahead, and has
// been set. Since when nobody knows: all marks that are not sure are made anew, or, where
// none is known to be, those of the last days.
func (m daysMarked) setBack(today protocol.Day) daysMarked {
	if m.Newest.Before(today) {
		return m
	}
	if m.Sure.IsZero() {
		m.Sure = today.AddDays(-1 - maxEarly)
	}
	m.Newest = m.Sure // or else the clock is behind
	return m
}

// markDay appends a day's mark behind everything that was accepted. Proven says that the day
// has ended by the relay's clock too.
func (a *Agent) markDay(ctx context.Context, day protocol.Day, proven bool) error {
	marked := func(m daysMarked) daysMarked {
		if m.Newest.Before(day) {
			m.Newest = day
		}
		if proven && m.Sure.Before(day) {
			m.Sure = day
		}
		return m
	}
	a.days.mu.Lock()
	late := slices.Contains(a.days.marked.Late, day)
	a.days.marked = a.days.marked.without(day) // what is noted from now on may stand behind the mark
	a.days.upTo = day
	state := marked(a.days.marked).state()
	a.days.mu.Unlock()
	_, err := a.journal.Append(ctx, journal.Entry{
		Kind: protocol.KindDayMark, Day: day, StateKey: dayKey, State: state,
		Make: func(head protocol.Mark) ([]byte, error) { return a.signer.mark(day, head) },
	})
	if err == nil {
		a.days.change(marked)
		a.log.Info("business day has ended", "day", day.String())
		return nil
	}
	if late {
		a.days.change(func(m daysMarked) daysMarked { return m.with(day) })
	}
	return fmt.Errorf("mark day %s: %w", day, err)
}

// restate marks once more the days of which something was accepted since they were marked, at
// most once an hour.
func (a *Agent) restate(ctx context.Context, today protocol.Day) error {
	now := a.clock.mono()
	a.days.mu.Lock()
	var late []protocol.Day
	if last := a.days.restated; last == nil || now < *last || now-*last >= restateEvery {
		late = slices.DeleteFunc(slices.Clone(a.days.marked.Late), func(d protocol.Day) bool {
			return !d.Before(today) || d.Before(today.AddDays(-maxMissed))
		})
	}
	if len(late) > 0 {
		a.days.restated = &now
	}
	a.days.mu.Unlock()
	for _, day := range late {
		if err := a.markDay(ctx, day, false); err != nil {
			return err
		}
	}
	return nil
}

// keepDays marks each day when it ends, until ctx does. It looks at the clock every minute,
// since that may be set and the store's cut-off may be changed.
func (a *Agent) keepDays(ctx context.Context) error {
	tick := time.NewTicker(dayRetry)
	defer tick.Stop()
	for {
		if _, err := a.RollOver(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("day is not marked, will be tried again", "err", err)
		}
		for _, d := range a.devices {
			d.tellFlaps(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
