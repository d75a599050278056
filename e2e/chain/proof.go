package chain

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/protocol"
)

// A Proof compares what the simulators say was accepted (receipts with a 201, people who
// walked past a counter, openings of a drawer) with what the open API says is committed.
type Proof struct {
	Accepted    int64
	Committed   int64
	Waiting     int64 // accepted, not committed yet
	Quarantined int64
	Lost        int64 // accepted, and neither committed nor held by an agent any more
	Twice       int64 // committed more often than accepted
}

// String is the proof line.
func (p Proof) String() string {
	return fmt.Sprintf("accepted %d · committed %d · waiting %d · quarantined %d · lost %d · applied twice %d",
		p.Accepted, p.Committed, p.Waiting, p.Quarantined, p.Lost, p.Twice)
}

// Holds says that nothing is lost, doubled or set aside.
func (p Proof) Holds() bool { return p.Lost == 0 && p.Twice == 0 && p.Quarantined == 0 }

// Drained says that everything accepted is committed.
func (p Proof) Drained() bool { return p.Committed == p.Accepted }

// A Prover reads the ledger's stream through the open API from its beginning, once, and
// keeps what it has seen. For one goroutine.
type Prover struct {
	chain   *Chain
	after   int64
	sales   map[string]int   // by transaction id: how often committed
	totals  map[string]int64 // by store: sum of the receipts' totals
	passed  map[string]int64 // by store: people counted
	opened  map[string]int64 // by store: drawer openings
	history []acceptedAt     // oldest first
	slack   time.Duration    // from acceptance in a simulator to the agent's disk
}

type acceptedAt struct {
	at time.Time
	n  int64
}

// NewProver begins a proof.
func (c *Chain) NewProver() *Prover {
	return &Prover{chain: c, sales: map[string]int{}, totals: map[string]int64{}, passed: map[string]int64{}, opened: map[string]int64{},
		slack: 2*c.opts.Interval + 5*time.Second}
}

// Times is how often a sale is committed, as far as the proof has read.
func (p *Prover) Times(sale drivertest.Receipt) int { return p.sales[sale.Reference()] }

// Observe reads on and proves anew.
func (p *Prover) Observe(ctx context.Context) (Proof, error) {
	if err := p.read(ctx); err != nil {
		return Proof{}, err
	}
	var proof Proof
	var quarantine struct{ Items []json.RawMessage }
	if err := p.chain.Get(ctx, "/v1/quarantine", &quarantine); err != nil {
		return Proof{}, err
	}
	proof.Quarantined = int64(len(quarantine.Items))
	horizon := time.Now() // everything accepted before it must be committed
	// What is committed was read before what is accepted, so that nothing seems doubled that
	// happened in between.
	for _, s := range p.chain.Stores {
		committed, accepted := p.count(s)
		proof.Accepted += accepted.sales + accepted.passed + accepted.opened
		proof.Committed += min(committed.sales, accepted.sales) + min(committed.passed, accepted.passed) + min(committed.opened, accepted.opened)
		proof.Twice += committed.doubled + max(0, committed.passed-accepted.passed) + max(0, committed.opened-accepted.opened)
		if before, known := s.heldSince(ctx); known && before.Before(horizon) {
			horizon = before
		} else if !known {
			horizon = time.Time{}
		}
	}
	p.history = append(p.history, acceptedAt{time.Now(), proof.Accepted})
	for len(p.history) > 1 && !p.history[1].at.After(horizon.Add(-p.slack)) {
		p.history = p.history[1:]
	}
	if first := p.history[0]; !first.at.After(horizon.Add(-p.slack)) {
		proof.Lost = max(0, first.n-proof.Committed)
	}
	proof.Waiting = proof.Accepted - proof.Committed - proof.Lost
	return proof, nil
}

// heldSince is the time of the oldest record that the store's agent has not delivered yet,
// now when it has none; unknown when the agent does not answer.
func (s *Store) heldSince(ctx context.Context) (time.Time, bool) {
	now := time.Now()
	status, err := s.Status(ctx)
	if err != nil {
		return time.Time{}, false
	}
	if status.Queue.Waiting > 0 {
		return status.Queue.Oldest, true
	}
	return now, true
}

type counts struct{ sales, doubled, passed, opened int64 }

// count gives what is committed and what was accepted of a store.
func (p *Prover) count(s *Store) (committed, accepted counts) {
	if s.Counter != nil {
		committed.passed, committed.opened = p.passed[s.ID], p.opened[s.ID]
		truth := s.Counter.Truth()
		accepted.passed = truth.In + truth.Out - s.base.In - s.base.Out
		for _, m := range s.Printer.Truth() {
			if m.Open {
				accepted.opened++
			}
		}
	}
	for _, sale := range s.Accepted() {
		accepted.sales++
		n := p.sales[sale.Reference()]
		committed.sales += int64(min(n, 1))
		committed.doubled += int64(max(n-1, 0))
	}
	return committed, accepted
}

// read takes the records that are new in the ledger.
func (p *Prover) read(ctx context.Context) error {
	for {
		var page struct {
			Items []struct {
				Pos   int64           `json:"pos"`
				Store string          `json:"store"`
				Kind  protocol.Kind   `json:"kind"`
				Body  json.RawMessage `json:"body"`
			} `json:"items"`
			More bool `json:"more"`
		}
		query := url.Values{"after": {strconv.FormatInt(p.after, 10)}, "limit": {"500"}}
		if err := p.chain.Get(ctx, "/v1/records?"+query.Encode(), &page); err != nil {
			return err
		}
		for _, r := range page.Items {
			if jump := (p.after/1e9+1)*1e9 + 1; r.Pos != p.after+1 && r.Pos != jump { // jump: the incarnation has risen
				return fmt.Errorf("position %d follows %d: the ledger has a gap", r.Pos, p.after)
			}
			p.after = r.Pos
			var body struct {
				Workstation    string `json:"workstation"`
				BusinessDay    string `json:"businessDay"`
				SequenceNumber int64  `json:"sequenceNumber"`
				Total          int64  `json:"total"`
				In, Out        int64
				Event          string
			}
			if err := json.Unmarshal(r.Body, &body); err != nil {
				return fmt.Errorf("record %d: %w", r.Pos, err)
			}
			switch {
			case r.Kind == protocol.KindTransaction:
				p.sales[fmt.Sprintf("%s/%s/%s/%d", r.Store, body.Workstation, body.BusinessDay, body.SequenceNumber)]++
				p.totals[r.Store] += body.Total
			case r.Kind == protocol.KindFootfall:
				p.passed[r.Store] += body.In + body.Out
			case r.Kind == protocol.KindDrawer && body.Event == protocol.DrawerOpened:
				p.opened[r.Store]++
			}
		}
		if !page.More {
			return nil
		}
	}
}

// Drain observes until everything accepted is committed and no agent holds anything, and
// then compares the money to the öre. It ends with an error at the limit, or as soon as the
// proof does not hold.
func (p *Prover) Drain(ctx context.Context, limit time.Duration) (Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last Proof
	var lastErr error
	for {
		proof, err := p.Observe(ctx)
		if lastErr = err; err == nil {
			last = proof
			if !proof.Holds() {
				return proof, fmt.Errorf("the proof does not hold: %s%s", proof, p.detail())
			}
			if proof.Drained() {
				return proof, p.compareMoney(ctx)
			}
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("not drained after %s: %s (%v)%s", limit, last, lastErr, p.detail()) //nolint:errorlint // it may be nil
		case <-tick.C:
		}
	}
}

// detail names what differs, store by store.
func (p *Prover) detail() string {
	text := ""
	for _, s := range p.chain.Stores {
		committed, accepted := p.count(s)
		text += fmt.Sprintf("; store %s: sales %d of %d, passages %d of %d, openings %d of %d", s.ID,
			committed.sales, accepted.sales, committed.passed, accepted.passed, committed.opened, accepted.opened)
	}
	return text
}

// compareMoney compares the tills' own sums with the ledger's records, store by store.
func (p *Prover) compareMoney(context.Context) error {
	said := map[string]int64{}
	for _, s := range p.chain.Stores {
		for _, sale := range s.Accepted() {
			said[s.ID] += sale.Total
		}
	}
	for id, took := range said {
		if took != p.totals[id] {
			return fmt.Errorf("store %s: the tills took %s, the ledger has %s", id, protocol.FormatMinor(took, 2), protocol.FormatMinor(p.totals[id], 2))
		}
	}
	return nil
}
