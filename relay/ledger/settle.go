package ledger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A Settlement is head office's word on one reason why a day is incomplete: it knows of it, and
// nothing more will come. It proves nothing, and holds for that reason word by word: another one
// is open again.
type Settlement struct {
	Reason
	By      string `json:"by"` // the person
	Why     string `json:"why"`
	Through string `json:"through"` // how it came: a token's name, or the command line
}

// Settled is a settlement as a certificate shows it.
type Settled struct {
	By      string    `json:"by" doc:"Who has settled it"`
	Why     string    `json:"why"`
	At      time.Time `json:"at"`
	Through string    `json:"through" doc:"The API's token, or the command line"`
}

// ID is short for a reason's words, for command lines.
func (r *Reason) ID() string {
	sum := sha256.Sum256([]byte(r.Kind + "\x00" + r.Who + "\x00" + r.What))
	return fmt.Sprintf("%x", sum[:5])
}

// settleable says why a reason cannot be settled; "" = it can. What contradicts an agent's
// signature names the first find alone, behind which there may be more.
func (r *Reason) settleable() string {
	switch {
	case r.Kind == ReasonOpen:
		return "the business day has not ended"
	case r.Kind == ReasonSignature, r.Kind == ReasonStream:
		return "what the agent has signed is not what is here: nobody can say that in its place"
	case r.Kind == ReasonQuarantine && r.Who == "":
		return "it names no record: settle or apply the first ones, then more of them are named"
	}
	return ""
}

// OpenReasons are the reasons against a day as it stands now, those that are settled too.
// ErrNotFound: no such store.
func (l *Ledger) OpenReasons(ctx context.Context, chain, store string, day protocol.Day) ([]Reason, error) {
	id, err := l.chainID(ctx, chain, false)
	if err == nil && l.ca == nil {
		err = errNoAuthority
	}
	var c *DayCertificate
	if err == nil {
		c, _, _, err = l.lookAt(ctx, id, chain, store, day, l.now().UTC())
	}
	if err != nil {
		return nil, fmt.Errorf("reasons against %s of store %s: %w", day, store, err)
	}
	return c.Reasons, nil
}

// Settle settles a reason that stands against a day now. Errors are protocol.Faults when a
// field is wrong, ErrNotFound when the day has no such reason, ErrExists when it is settled.
func (l *Ledger) Settle(ctx context.Context, chain, store string, day protocol.Day, s Settlement) error {
	s.By, s.Why, s.Through = printable(strings.TrimSpace(s.By)), printable(strings.TrimSpace(s.Why)), printable(s.Through)
	var faults protocol.Faults
	if s.By == "" {
		faults.Add("by", "the name of the person who answers for it", "missing")
	}
	if s.Why == "" {
		faults.Add("why", "what head office knows of it", "missing")
	}
	if not := s.settleable(); not != "" {
		faults.Add("kind", "", "a reason of kind %s cannot be settled: %s", s.Kind, not)
	}
	if err := faults.Err(); err != nil {
		return fmt.Errorf("settle %s of store %s: %w", day, store, err)
	}
	reasons, err := l.OpenReasons(ctx, chain, store, day)
	if err != nil {
		return err
	}
	for _, r := range reasons {
		if r.Kind != s.Kind || r.Who != s.Who || r.What != s.What {
			continue
		}
		id, err := l.chainID(ctx, chain, false)
		made := false
		if err == nil {
			err = l.exec(ctx, statement{
				text: `INSERT INTO settlements (chain, store, day, kind, who, what, said_by, why, through, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
					ON CONFLICT DO NOTHING RETURNING 1`,
				args: []any{id, store, day.String(), s.Kind, s.Who, s.What, s.By, s.Why, s.Through, l.now().UnixMicro()},
				scan: func(scanner) error { made = true; return nil },
			})
		}
		if err == nil && !made {
			err = ErrExists
		}
		if err != nil {
			return fmt.Errorf("settle %s of store %s: %w", day, store, err)
		}
		return nil
	}
	return fmt.Errorf("settle %s of store %s: a reason %q about %q that says %q: %w", day, store, s.Kind, s.Who, s.What, ErrNotFound)
}

// Unsettle takes a settlement back; ErrNotFound when there is none.
func (l *Ledger) Unsettle(ctx context.Context, chain, store string, day protocol.Day, r Reason) error {
	id, err := l.chainID(ctx, chain, false)
	found := false
	if err == nil {
		err = l.exec(ctx, statement{
			text: "DELETE FROM settlements WHERE chain = $1 AND store = $2 AND day = $3 AND kind = $4 AND who = $5 AND what = $6 RETURNING 1",
			args: []any{id, store, day.String(), r.Kind, r.Who, r.What},
			scan: func(scanner) error { found = true; return nil },
		})
	}
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("unsettle %s of store %s: %w", day, store, err)
	}
	return nil
}

var errNoAuthority = errors.New("there is no certificate authority to sign with")

// settled marks the reasons that are settled. A day all of whose reasons are is settled, and
// never complete.
func (d *dayCheck) settled(ctx context.Context) error {
	type row struct {
		Reason
		by Settled
	}
	said, err := ask(ctx, d.q, "SELECT kind, who, what, said_by, why, through, at FROM settlements WHERE chain = $1 AND store = $2 AND day = $3", []any{d.id, d.store, d.day.String()},
		func(s scanner, r *row) error {
			var at int64
			err := s.Scan(&r.Kind, &r.Who, &r.What, &r.by.By, &r.by.Why, &r.by.Through, &at)
			r.by.At = micros(at).Truncate(time.Second)
			return err
		})
	if err != nil {
		return fmt.Errorf("settlements: %w", err)
	}
	for i := range d.c.Reasons {
		r := &d.c.Reasons[i]
		for j := range said {
			if said[j].Reason == *r && r.settleable() == "" {
				r.Settled = &said[j].by
				break
			}
		}
	}
	d.c.State = stateOf(d.c.Reasons)
	return nil
}

// stateOf is the state that goes with reasons.
func stateOf(reasons []Reason) string {
	state := DayComplete
	for _, r := range reasons {
		if r.Settled == nil {
			return DayIncomplete
		}
		state = DaySettled
	}
	return state
}
