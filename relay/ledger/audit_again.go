package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// A record may come again: under another number with was, or as the same receipt. It is applied
// once; the others are duplicates. Whoever moves a record to the duplicates takes it out of the
// books, so each must have its twin: one that was applied, or that waits in quarantine.

// A claim is a record that came again, by where it came first.
type claim struct {
	entry   entry // without its record, unless it is a duplicate
	first   protocol.Was
	receipt *saleKey // of a duplicate that is a transaction
	there   bool     // the table of what came again names its first place
	body    []byte   // of the transaction with its business key; nil = there is none
	stream  int64    // in which that stands
	seq     int64
}

// claim notes what the other tables must say of a record that came again.
func (c *rowCheck) claim(p *entry) {
	r := p.record
	it := claim{entry: *p}
	switch {
	case p.table == "quarantined":
		held := item{record: r, day: p.said.day}
		if held.read(protocol.Origin{Chain: c.s.chain, Store: c.s.store, Agent: c.st.key.agent}); held.cause != "" || held.footfall != nil && p.said.cause == causeCounted {
			return // its own content says why it was not applied
		}
		it.first.Epoch, it.first.Seq = c.st.key.epoch, p.seq
		if held.sale != nil {
			it.receipt = &held.sale.key
		}
	case r.Was != nil:
		it.first = *r.Was
	case p.table == "duplicates":
		it.first = protocol.Was{Epoch: c.st.key.epoch, Seq: p.seq, SHA256: r.ContentHash()}
	default:
		return
	}
	switch p.table {
	case "duplicates":
		if r.Kind == protocol.KindTransaction {
			it.receipt = receiptOf(r.Body)
		}
	case "records":
		it.entry.record, it.entry.hash = nil, nil // it may be much
	}
	c.claims = append(c.claims, it)
}

// settle compares the claims noted with the other tables.
func (c *rowCheck) settle(ctx context.Context) error {
	if len(c.claims) == 0 {
		return nil
	}
	if err := c.lookUp(ctx); err != nil {
		return err
	}
	for i := range c.claims {
		it := &c.claims[i]
		p := &it.entry
		name := fmt.Sprintf("record %d of epoch %s", it.first.Seq, it.first.Epoch)
		if p.table == "quarantined" {
			if it.body == nil || it.stream == c.st.id && it.seq > int64(p.seq) && !bytes.Equal(it.body, p.record.Body) {
				c.s.alone(c.st.key.agent, c.st.key.epoch, wrong{kind: wrongColumns, seq: p.seq, last: p.seq, what: "is in quarantine, and nothing but its row says why: try it again (`quarantine retry`)"})
			}
			continue
		}
		if p.table == "records" {
			if !it.there {
				c.wrong(p, wrongColumns, fmt.Sprintf("came first as %s, and the table of what came again does not say so", name))
			}
			continue
		}
		if it.receipt != nil && bytes.Equal(it.body, p.record.Body) || it.receipt == nil && it.there {
			continue
		}
		if p.record.Was == nil {
			what := "is a duplicate, and no other record has its content"
			if it.receipt != nil {
				what = fmt.Sprintf("is a duplicate of transaction %s, and that has not its content, or is not there", it.receipt)
			}
			c.wrong(p, wrongMissing, what)
			continue
		}
		stands, err := c.stands(ctx, it.first)
		if err != nil {
			return err
		}
		if !stands {
			c.wrong(p, wrongMissing, fmt.Sprintf("is a duplicate of %s, and that does not stand there", name))
		}
	}
	c.claims = c.claims[:0]
	return nil
}

// lookUp asks whether the places named are in the table of what came again, and for the
// transactions with the business keys of duplicates.
func (c *rowCheck) lookUp(ctx context.Context) error {
	args := []any{c.s.id, c.s.store, c.st.key.agent}
	var values, keys []string
	for i := range c.claims {
		it := &c.claims[i]
		n := len(args)
		values = append(values, fmt.Sprintf("(CAST($%d AS bigint), CAST($%d AS text), CAST($%d AS bigint))", n+1, n+2, n+3))
		args = append(args, int64(i), string(it.first.Epoch), int64(it.first.Seq))
	}
	_, err := ask(ctx, c.s.q, "WITH k(i, epoch, seq) AS (VALUES "+strings.Join(values, ", ")+`)
		SELECT k.i, r.sha256 FROM k JOIN resent r ON r.chain = $1 AND r.store = $2 AND r.agent = $3 AND r.epoch = k.epoch AND r.seq = k.seq`, args,
		func(row scanner, _ *struct{}) error {
			var i int64
			var sha []byte
			err := row.Scan(&i, &sha)
			if it := &c.claims[i]; bytes.Equal(sha, it.first.SHA256[:]) {
				it.there = true
			}
			return err
		})
	if err != nil {
		return fmt.Errorf("what of %s came again: %w", c.st, err)
	}
	args = []any{c.s.id}
	for i := range c.claims {
		if k := c.claims[i].receipt; k != nil {
			n := len(args)
			keys = append(keys, fmt.Sprintf("(CAST($%d AS bigint), CAST($%d AS text), CAST($%d AS text), CAST($%d AS text), CAST($%d AS bigint))", n+1, n+2, n+3, n+4, n+5))
			args = append(args, int64(i), k.store, k.day, k.workstation, k.sequence)
		}
	}
	if keys == nil {
		return nil
	}
	_, err = ask(ctx, c.s.q, "WITH k(i, store, day, workstation, sequence) AS (VALUES "+strings.Join(keys, ", ")+`)
		SELECT k.i, r.body, r.stream, r.seq FROM k JOIN business_keys b ON b.chain = $1 AND b.store = k.store AND b.business_day = k.day AND b.workstation = k.workstation AND b.sequence = k.sequence
		JOIN records r ON r.chain = b.chain AND r.pos = b.pos`, args,
		func(row scanner, _ *struct{}) error {
			var i int64
			it := claim{}
			err := row.Scan(&i, &it.body, &it.stream, &it.seq)
			c.claims[i].body, c.claims[i].stream, c.claims[i].seq = it.body, it.stream, it.seq
			return err
		})
	if err != nil {
		return fmt.Errorf("business keys of duplicates of %s: %w", c.st, err)
	}
	return nil
}

// stands says whether a content stands where it came first, applied or in quarantine.
func (c *rowCheck) stands(ctx context.Context, first protocol.Was) (bool, error) {
	st := c.a.streams[first.Epoch]
	if st == nil || st == c.st {
		return false, nil
	}
	there, err := c.s.entries(ctx, st, first.Seq, first.Seq)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(there, func(p entry) bool {
		return p.lost || p.table != "duplicates" && p.record != nil && p.record.ContentHash() == first.SHA256
	}), nil
}

// A cameAgain is a row of the table of what came again.
type cameAgain struct {
	agent string
	first protocol.Was
}

// resentPage is how many rows of that table are held in memory.
const resentPage = 20_000

// resent looks whether each row of that table has its record, and one only.
func (s *storeAudit) resent(ctx context.Context) error {
	last := cameAgain{}
	for {
		rows, err := ask(ctx, s.q, `SELECT agent, epoch, seq, sha256 FROM resent WHERE chain = $1 AND store = $2
			AND (agent, epoch, seq, sha256) > ($3, $4, $5, $6) ORDER BY agent, epoch, seq, sha256 LIMIT $7`,
			[]any{s.id, s.store, last.agent, string(last.first.Epoch), int64(last.first.Seq), last.first.SHA256[:], resentPage},
			func(row scanner, r *cameAgain) error {
				var seq int64
				var sha []byte
				err := row.Scan(&r.agent, (*string)(&r.first.Epoch), &seq, &sha)
				r.first.Seq = uint64(seq)
				if len(sha) != len(r.first.SHA256) {
					s.find(r.agent, r.first.Epoch, wrong{kind: wrongColumns, seq: r.first.Seq, what: "the table of what came again has no hash of it"})
				}
				copy(r.first.SHA256[:], sha)
				return err
			})
		if err != nil {
			return fmt.Errorf("what came again: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		last = rows[len(rows)-1]
		if err := s.witness(ctx, rows); err != nil {
			return err
		}
	}
}

// witness looks for the records of which rows of that table speak.
func (s *storeAudit) witness(ctx context.Context, rows []cameAgain) error {
	seen := make(map[cameAgain]int, len(rows))
	for _, r := range rows {
		seen[r] = 0
	}
	count := func(agent string, was *protocol.Was) {
		if was != nil {
			if n, ok := seen[cameAgain{agent, *was}]; ok {
				seen[cameAgain{agent, *was}] = n + 1
			}
		}
	}
	_, err := ask(ctx, s.q, "SELECT s.agent, r.was FROM streams s JOIN records r ON r.chain = s.chain AND r.stream = s.id WHERE s.chain = $1 AND s.store = $2 AND r.was IS NOT NULL", []any{s.id, s.store},
		func(row scanner, _ *struct{}) error {
			var agent string
			var text []byte
			var was protocol.Was
			err := row.Scan(&agent, &text)
			if err == nil && json.Unmarshal(text, &was) == nil {
				count(agent, &was)
			}
			return err
		})
	if err != nil {
		return fmt.Errorf("what came again: %w", err)
	}
	for _, r := range rows {
		if seen[r] > 1 {
			s.find(r.agent, r.first.Epoch, wrong{kind: wrongInserted, seq: r.first.Seq, what: "came again, and was applied more than once"})
		}
	}
	// An older version noted receipts that came again also when it held them back.
	held := `SELECT s.agent, t.record FROM streams s JOIN %s t ON t.chain = s.chain AND t.stream = s.id WHERE s.chain = $1 AND s.store = $2 AND t.record IS NOT NULL`
	for _, table := range []string{"quarantined", "duplicates"} {
		if !slices.ContainsFunc(rows, func(r cameAgain) bool { return seen[r] == 0 }) {
			return nil
		}
		_, err := ask(ctx, s.q, fmt.Sprintf(held, table), []any{s.id, s.store}, func(row scanner, _ *struct{}) error {
			var agent string
			var text []byte
			var r protocol.Record
			err := row.Scan(&agent, &text)
			if err == nil && json.Unmarshal(text, &r) == nil && (table == "quarantined" || r.Kind == protocol.KindTransaction) {
				count(agent, r.Was)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("what came again: %w", err)
		}
	}
	slices.SortFunc(rows, func(x, y cameAgain) int {
		return cmp.Or(strings.Compare(x.agent, y.agent), cmp.Compare(x.first.Epoch, y.first.Epoch), cmp.Compare(x.first.Seq, y.first.Seq))
	})
	for _, r := range rows {
		if seen[r] == 0 && len(s.agent(r.agent).wrong) == 0 { // else it may be what is wrong there
			s.find(r.agent, r.first.Epoch, wrong{kind: wrongInserted, seq: r.first.Seq, what: "the table of what came again speaks of it, and no record does"})
		}
	}
	return nil
}
