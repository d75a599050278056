package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// The kinds of a roster.
const (
	RosterAgent   = "agent"
	RosterTill    = "workstation"
	RosterCounter = "counter"
)

// seenFor is how many business days back a till or counter must have been heard of to be
// expected by itself: a month and some days, so that one that is used at the turn of the month
// is missed when it stays away, and one that was taken away is forgotten in time.
const seenFor = 35

// A RosterEntry is what head office says of who is expected in a store.
type RosterEntry struct {
	Kind     string       `json:"kind" enum:"agent,workstation,counter"`
	ID       string       `json:"id"`
	FirstDay protocol.Day `json:"firstDay" doc:"Expected from this business day on"`
	LastDay  protocol.Day `json:"lastDay" doc:"And up to this one; empty = until further notice"`
}

// Validate returns Faults or nil.
func (e *RosterEntry) Validate() error {
	var f protocol.Faults
	switch e.Kind {
	case RosterAgent, RosterTill, RosterCounter:
	default:
		f.Add("kind", "", "want agent, workstation or counter, got %q", e.Kind)
	}
	if !protocol.ValidID(e.ID) {
		f.Add("id", "letters, digits, _ and -, at most 64", "not an id: %q", e.ID)
	}
	if e.FirstDay.IsZero() {
		f.Add("firstDay", "a business day such as 2026-03-29", "missing")
	}
	if !e.LastDay.IsZero() && e.LastDay.Before(e.FirstDay) {
		f.Add("lastDay", "one before all days takes it off the roster: give both the same day", "before firstDay")
	}
	return f.Err()
}

// PutRoster adds or changes an entry. Errors are protocol.Faults when a field is wrong.
func (l *Ledger) PutRoster(ctx context.Context, chain, store string, e RosterEntry) error {
	err := e.Validate()
	var id int64
	if err == nil {
		id, err = l.chainID(ctx, chain, true)
	}
	if err == nil {
		err = l.exec(ctx, statement{
			text: `INSERT INTO roster (chain, store, kind, id, first_day, last_day) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (chain, store, kind, id) DO UPDATE SET first_day = excluded.first_day, last_day = excluded.last_day`,
			args: []any{id, store, e.Kind, e.ID, e.FirstDay.String(), e.LastDay.String()},
		})
	}
	if err != nil {
		return fmt.Errorf("roster of store %s: %s %s: %w", store, e.Kind, e.ID, err)
	}
	return nil
}

// DeleteRoster takes an entry away: what is seen decides again. ErrNotFound when there is none.
func (l *Ledger) DeleteRoster(ctx context.Context, chain, store, kind, id string) error {
	chainID, err := l.chainID(ctx, chain, false)
	found := false
	if err == nil {
		err = l.exec(ctx, statement{
			text: "DELETE FROM roster WHERE chain = $1 AND store = $2 AND kind = $3 AND id = $4 RETURNING 1",
			args: []any{chainID, store, kind, id},
			scan: func(scanner) error { found = true; return nil },
		})
	}
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("roster of store %s: %s %s: %w", store, kind, id, err)
	}
	return nil
}

// Expected is an agent, till or counter of a store, and whether it is expected on a day.
type Expected struct {
	Kind     string       `json:"kind" enum:"agent,workstation,counter"`
	ID       string       `json:"id"`
	Expected bool         `json:"expected"`
	Why      string       `json:"why" enum:"seen,registered,headOffice,gone" doc:"Seen by the relay, registered and not heard of yet, said by head office, or retired or revoked since"`
	FirstDay protocol.Day `json:"firstDay" doc:"Of head office's entry, when an agent was registered or its first record's, or when it was first seen within the 35 days before"`
	LastDay  protocol.Day `json:"lastDay" doc:"Of head office's entry, or when it was last seen up to the day"`
}

// Roster says who is expected in a store on a business day, by kind and id.
func (l *Ledger) Roster(ctx context.Context, chain, store string, day protocol.Day) ([]Expected, error) {
	id, err := l.chainID(ctx, chain, false)
	if err != nil || id == 0 {
		return nil, err
	}
	var all []Expected
	err = l.inSnapshot(ctx, func(q querier) error {
		d := &dayCheck{reader: reader{q, id}, l: l, chain: chain, store: store, day: day, streams: map[string][]*stream{}}
		s := Store{Zone: "UTC"} // of one that is not set yet
		err := d.q.QueryRowContext(ctx, "SELECT zone, cut_off FROM stores WHERE chain = $1 AND id = $2", d.id, d.store).Scan(&s.Zone, &s.CutOff)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if d.rule, err = s.Rule(); err != nil {
			return err
		}
		if err := d.readStreams(ctx); err != nil {
			return err
		}
		all, err = d.expected(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("roster of store %s for %s: %w", store, day, err)
	}
	return all, nil
}

// expected is who has been seen, and what head office says of it.
func (d *dayCheck) expected(ctx context.Context) ([]Expected, error) {
	seen, err := d.seenAgents(ctx)
	if err != nil {
		return nil, err
	}
	tills, err := ask(ctx, d.q, `SELECT workstation, min(business_day), max(business_day) FROM business_keys
		WHERE chain = $1 AND store = $2 AND business_day BETWEEN $3 AND $4 GROUP BY workstation`,
		[]any{d.id, d.store, d.day.AddDays(1 - seenFor).String(), d.day.String()}, func(row scanner, e *Expected) error {
			var first, last string
			err := row.Scan(&e.ID, &first, &last)
			e.Kind, e.Expected, e.Why = RosterTill, true, "seen"
			if err == nil {
				e.FirstDay, err = parseDay(first)
			}
			if err == nil {
				e.LastDay, err = parseDay(last)
			}
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("tills: %w", err)
	}
	counters := map[string]Expected{}
	for day := d.day.AddDays(1 - seenFor); !d.day.Before(day); day = day.AddDays(1) {
		counts, err := d.countsOf(ctx, day)
		if err != nil {
			return nil, err
		}
		for name := range counts {
			e, known := counters[name]
			if !known {
				e = Expected{Kind: RosterCounter, ID: name, Expected: true, Why: "seen", FirstDay: day}
			}
			e.LastDay = day
			counters[name] = e
		}
	}
	seen = slices.Concat(seen, tills, slices.Collect(maps.Values(counters)))
	said, err := ask(ctx, d.q, "SELECT kind, id, first_day, last_day FROM roster WHERE chain = $1 AND store = $2", []any{d.id, d.store}, scanRoster)
	if err != nil {
		return nil, fmt.Errorf("roster: %w", err)
	}
	for _, e := range said {
		seen = slices.DeleteFunc(seen, func(s Expected) bool { return s.Kind == e.Kind && s.ID == e.ID })
		seen = append(seen, Expected{Kind: e.Kind, ID: e.ID, Why: "headOffice", FirstDay: e.FirstDay, LastDay: e.LastDay,
			Expected: !d.day.Before(e.FirstDay) && (e.LastDay.IsZero() || !e.LastDay.Before(d.day))})
	}
	slices.SortFunc(seen, func(a, b Expected) int { return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID)) })
	return seen, nil
}

func scanRoster(row scanner, e *RosterEntry) error {
	var first, last string
	err := row.Scan(&e.Kind, &e.ID, &first, &last)
	if err == nil {
		e.FirstDay, err = parseDay(first)
	}
	if err == nil {
		e.LastDay, err = parseDay(last)
	}
	return err
}

// seenAgents are the agents of which something has come, from the day of their first record
// on, and those that are registered and have not been heard of, from the day on which they
// were; those that are retiring or revoked up to the day of their last record.
func (d *dayCheck) seenAgents(ctx context.Context) ([]Expected, error) {
	type row struct {
		agent, state string
		registered   time.Time
	}
	rows, err := ask(ctx, d.q, "SELECT agent, state, registered FROM agents WHERE chain = $1 AND store = $2", []any{d.id, d.store},
		func(s scanner, r *row) error {
			var registered int64
			err := s.Scan(&r.agent, &r.state, &registered)
			r.registered = micros(registered)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("agents: %w", err)
	}
	var all []Expected
	for _, r := range rows {
		aside := asideEpoch(protocol.Origin{Chain: d.chain, Store: d.store, Agent: r.agent})
		streams := slices.DeleteFunc(slices.Clone(d.streams[r.agent]), func(s *stream) bool { return s.key.epoch == aside })
		e := Expected{Kind: RosterAgent, ID: r.agent, Expected: true, Why: "seen"}
		switch {
		case len(streams) > 0:
			if e.FirstDay, err = d.firstDay(ctx, streams[0], r.registered); err != nil {
				return nil, err
			}
			newest := streams[len(streams)-1]
			if e.LastDay, err = d.dayAt(ctx, newest, newest.through); err != nil {
				return nil, err
			}
			if r.state != AgentActive && e.LastDay.Before(d.day) {
				e.Expected, e.Why = false, "gone"
			}
		case r.state == AgentActive && !r.registered.IsZero():
			e.FirstDay, e.Why = d.rule.Day(r.registered), "registered"
		default:
			continue
		}
		if !d.day.Before(e.FirstDay) {
			all = append(all, e)
		}
	}
	return all, nil
}

// firstDay is the first day of which an agent may have accepted something: that of the first
// record that has one. Where its clock was ahead then, or its first epoch is not here, that is
// the day of its registration; the zero Day when nobody knows.
func (d *dayCheck) firstDay(ctx context.Context, first *stream, registered time.Time) (protocol.Day, error) {
	var text string
	var received int64
	err := d.q.QueryRowContext(ctx, "SELECT day, received FROM records WHERE chain = $1 AND stream = $2 AND day <> '' ORDER BY seq LIMIT 1", d.id, first.id).Scan(&text, &received)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return protocol.Day{}, err
	}
	day, err := parseDay(text)
	if err != nil {
		return protocol.Day{}, err
	}
	found, err := d.entries(ctx, first, 1, 1)
	if err != nil {
		return protocol.Day{}, err
	}
	if len(found) > 0 && found[0].record != nil && !d.rule.Day(micros(received)).Before(day) {
		if seal, err := protocol.DecodeSeal(found[0].record.Body); err == nil && seal.Before == nil && !seal.Forked {
			return day, nil
		}
	}
	if registered.IsZero() {
		return protocol.Day{}, nil
	}
	if r := d.rule.Day(registered); day.IsZero() || r.Before(day) {
		day = r
	}
	return day, nil
}

// dayAt is the business day of a record; the zero Day when it is not there.
func (r reader) dayAt(ctx context.Context, s *stream, seq uint64) (protocol.Day, error) {
	found, err := r.entries(ctx, s, seq, seq)
	if err != nil || len(found) == 0 || found[0].record == nil {
		return protocol.Day{}, err
	}
	return found[0].record.Day, nil
}

// countsOfDay is what the counters of a store covered by the counts of one business day, whose
// intervals may reach into other days.
type countsOfDay map[string]*covered

type covered struct {
	counts, doubtful int64
	spans            []TimeRange // merged, in order
}

// seenDays remembers the counts of days: they are read for each certificate of the 35 days
// behind them, and change only when the day gets another record.
type seenDays struct {
	mu   sync.Mutex // guards days
	days map[seenKey]seenDay
}

type seenKey struct {
	chain      int64
	store, day string
}

type seenDay struct {
	first, last int64 // positions between which the day's records lie
	counts      countsOfDay
}

const maxSeenDays = 20_000

func (s *seenDays) get(key seenKey, first, last int64) (countsOfDay, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	day, ok := s.days[key]
	return day.counts, ok && day.first == first && day.last == last
}

func (s *seenDays) put(key seenKey, day seenDay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.days == nil || len(s.days) >= maxSeenDays {
		s.days = map[seenKey]seenDay{}
	}
	s.days[key] = day
}

// countsOf reads the counts of one business day. Nobody changes what it gives.
func (d *dayCheck) countsOf(ctx context.Context, day protocol.Day) (countsOfDay, error) {
	first, last, ok, err := d.span(ctx, day)
	if err != nil || !ok {
		return nil, err
	}
	key := seenKey{d.id, d.store, day.String()}
	if counts, ok := d.l.seen.get(key, first, last); ok {
		return counts, nil
	}
	bodies, err := ask(ctx, d.q, `SELECT body FROM records WHERE chain = $1 AND store = $2 AND pos BETWEEN $3 AND $4 AND kind = $5 AND day = $6`,
		[]any{d.id, d.store, first, last, string(protocol.KindFootfall), day.String()}, func(row scanner, body *[]byte) error { return row.Scan(body) })
	if err != nil {
		return nil, fmt.Errorf("footfall of %s: %w", day, err)
	}
	counts := countsOfDay{}
	for _, body := range bodies {
		c, err := readCount(body)
		if err != nil {
			continue // it was read when it came: the audit names it
		}
		at := counts[c.Counter]
		if at == nil {
			at = &covered{}
			counts[c.Counter] = at
		}
		at.counts++
		if doubtful(c.Quality) {
			at.doubtful++
		}
		at.spans = append(at.spans, TimeRange{c.From.UTC(), c.To.UTC()})
	}
	for _, at := range counts {
		at.spans = merge(at.spans)
	}
	d.l.seen.put(key, seenDay{first, last, counts})
	return counts, nil
}

// merge joins ranges that touch or overlap.
func merge(ranges []TimeRange) []TimeRange {
	slices.SortFunc(ranges, func(a, b TimeRange) int { return a.From.Compare(b.From) })
	var all []TimeRange
	for _, r := range ranges {
		if n := len(all); n > 0 && !r.From.After(all[n-1].To) {
			all[n-1].To = later(all[n-1].To, r.To)
		} else {
			all = append(all, r)
		}
	}
	return all
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
