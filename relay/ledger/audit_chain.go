package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// A chainAudit looks at what belongs to a chain as a whole: its positions and numbers, and rows
// that no stream owns.
type chainAudit struct {
	reader
	chain  string
	report *AuditReport
}

func (c *chainAudit) audit(ctx context.Context) error {
	var incarnation int64
	if err := c.q.QueryRowContext(ctx, "SELECT incarnation FROM ledger").Scan(&incarnation); err != nil {
		return fmt.Errorf("incarnation: %w", err)
	}
	jumps, err := ask(ctx, c.q, "SELECT incarnation, head_before, head_after FROM jumps WHERE chain = $1 ORDER BY incarnation", []any{c.id},
		func(row scanner, j *jump) error { return row.Scan(&j.incarnation, &j.before, &j.after) })
	if err != nil {
		return fmt.Errorf("jumps: %w", err)
	}
	return errors.Join(c.positions(ctx, jumps, incarnation), c.numbers(ctx, int64(len(jumps)), incarnation), c.strays(ctx))
}

func (c *chainAudit) find(store string, pos int64, kind, format string, args ...any) {
	c.report.Findings = append(c.report.Findings, Finding{Chain: c.chain, Store: store, Pos: pos, Kind: kind, What: fmt.Sprintf(format, args...)})
}

// A jump is where positions went on after a raise of the incarnation.
type jump struct{ incarnation, before, after int64 }

// positions looks for gaps that no raise of the incarnation explains.
func (c *chainAudit) positions(ctx context.Context, jumps []jump, incarnation int64) error {
	var head, last int64
	err := c.q.QueryRowContext(ctx, "SELECT head, coalesce((SELECT max(pos) FROM records WHERE chain = $1), 0) FROM chains WHERE id = $1", c.id).Scan(&head, &last)
	if err != nil {
		return fmt.Errorf("positions: %w", err)
	}
	for _, j := range jumps {
		if j.after != max((j.before/step+1)*step, floorOf(j.incarnation)) {
			c.find("", j.after, wrongPosition, "a jump from %d to %d is none that a raise to incarnation %d makes", j.before, j.after, j.incarnation)
			continue
		}
		var between int64
		err := c.q.QueryRowContext(ctx, "SELECT coalesce(min(pos), 0) FROM records WHERE chain = $1 AND pos > $2 AND pos <= $3", c.id, j.before, j.after).Scan(&between)
		if err != nil {
			return fmt.Errorf("positions: %w", err)
		}
		said := fmt.Sprintf("a raise to incarnation %d is said to have moved positions on from %d", j.incarnation, j.before)
		switch {
		case between != 0:
			c.find("", j.after, wrongPosition, "%s, and a record stands at %d", said, between)
		case head < j.after:
			c.find("", j.after, wrongPosition, "%s, and the last is %d", said, head)
		case j.incarnation > incarnation:
			c.find("", j.after, wrongPosition, "%s, and the ledger is in incarnation %d", said, incarnation)
		}
	}
	// landing says whether positions go on behind to after one or more jumps from a place; those
	// of a chain begin behind the floor of the incarnation in which it came.
	landing := func(from, to int64) bool {
		if from == 0 && to%step == 0 && to <= floorOf(incarnation) {
			return true
		}
		for from < to {
			i := slices.IndexFunc(jumps, func(j jump) bool { return j.before == from })
			if i < 0 {
				return false
			}
			from = jumps[i].after
		}
		return from == to
	}
	starts, err := ask(ctx, c.q, `SELECT r.pos, coalesce((SELECT max(b.pos) FROM records b WHERE b.chain = r.chain AND b.pos < r.pos), 0) FROM records r
		WHERE r.chain = $1 AND NOT EXISTS (SELECT 1 FROM records p WHERE p.chain = r.chain AND p.pos = r.pos - 1) ORDER BY r.pos LIMIT 1000`, []any{c.id},
		func(row scanner, s *[2]int64) error { return row.Scan(&s[0], &s[1]) })
	if err != nil {
		return fmt.Errorf("positions: %w", err)
	}
	for _, s := range starts {
		if !landing(s[1], s[0]-1) {
			c.find("", s[1]+1, wrongPosition, "the chain has no record at %s", numbered("position", s[1]+1, s[0]-1))
			break
		}
	}
	if !landing(last, head) {
		c.find("", min(last, head)+1, wrongPosition, "the chain's last position is %d, and its last record stands at %d", head, last)
	}
	return nil
}

// numbers looks for gaps in the running numbers of each store and type, and for numbers that
// do not have the order of the positions.
func (c *chainAudit) numbers(ctx context.Context, raises, incarnation int64) error {
	type gap struct {
		store, kind         string
		number, before, pos int64
	}
	scan := func(row scanner, g *gap) error { return row.Scan(&g.store, &g.kind, &g.number, &g.before, &g.pos) }
	starts, err := ask(ctx, c.q, `SELECT r.store, r.type, r.number,
			coalesce((SELECT max(b.number) FROM records b WHERE b.chain = r.chain AND b.store = r.store AND b.type = r.type AND b.number < r.number), 0), r.pos FROM records r
		WHERE r.chain = $1 AND r.number IS NOT NULL AND NOT EXISTS (SELECT 1 FROM records p
			WHERE p.chain = r.chain AND p.store = r.store AND p.type = r.type AND p.number = r.number - 1 AND p.number IS NOT NULL)
		ORDER BY r.store, r.type, r.number LIMIT 10000`, []any{c.id}, scan)
	if err != nil {
		return fmt.Errorf("numbers: %w", err)
	}
	jumped := func(from, to int64) bool { // by as many raises as there were, at most
		return from == to || to%step == 0 && to > from && to <= max(floorOf(incarnation), (from/step+raises)*step)
	}
	told := map[numberKey]bool{}
	for _, g := range starts {
		key := numberKey{g.store, protocol.TransactionType(g.kind)}
		if told[key] || jumped(g.before, g.number-1) {
			continue
		}
		told[key] = true
		c.find(g.store, g.pos, wrongPosition, "no record has the %s, and the one behind stands here", numbered(g.kind+" number", g.before+1, g.number-1))
	}
	crossed, err := ask(ctx, c.q, `SELECT r.store, r.type, r.number, p.pos, r.pos FROM records r JOIN records p
			ON p.chain = r.chain AND p.store = r.store AND p.type = r.type AND p.number = r.number - 1 AND p.number IS NOT NULL
		WHERE r.chain = $1 AND r.number IS NOT NULL AND p.pos > r.pos ORDER BY r.pos LIMIT 100`, []any{c.id}, scan)
	if err != nil {
		return fmt.Errorf("numbers: %w", err)
	}
	for _, g := range crossed {
		c.find(g.store, g.pos, wrongPosition, "%s number %d stands here, and number %d behind it at position %d", g.kind, g.number, g.number-1, g.before)
	}
	ends, err := ask(ctx, c.q, `SELECT n.store, n.type, n.last, coalesce((SELECT max(r.number) FROM records r
			WHERE r.chain = n.chain AND r.store = n.store AND r.type = n.type AND r.number IS NOT NULL), 0), 0 FROM numbers n WHERE n.chain = $1`, []any{c.id}, scan)
	if err != nil {
		return fmt.Errorf("numbers: %w", err)
	}
	for _, g := range ends {
		if !jumped(g.before, g.number) {
			c.find(g.store, 0, wrongPosition, "the last %s number handed out is %d, and the last one that stands there is %d", g.kind, g.number, g.before)
		}
	}
	return nil
}

// strays looks for rows that belong to nothing.
func (c *chainAudit) strays(ctx context.Context) error {
	for _, look := range []struct{ kind, what, text string }{
		{wrongInserted, "a record of a stream that is not there", `SELECT r.store, r.pos FROM records r WHERE r.chain = $1 AND NOT EXISTS
			(SELECT 1 FROM streams s WHERE s.chain = r.chain AND s.id = r.stream) ORDER BY r.pos LIMIT 20`},
		{wrongInserted, "a duplicate of a stream that is not there", `SELECT '', 0 FROM duplicates d WHERE d.chain = $1 AND NOT EXISTS
			(SELECT 1 FROM streams s WHERE s.chain = d.chain AND s.id = d.stream) LIMIT 20`},
		{wrongInserted, "a quarantined record of a stream that is not there", `SELECT d.store, 0 FROM quarantined d WHERE d.chain = $1 AND d.stream <> 0 AND NOT EXISTS
			(SELECT 1 FROM streams s WHERE s.chain = d.chain AND s.id = d.stream AND s.store = d.store AND s.agent = d.agent AND s.epoch = d.epoch) LIMIT 20`},
		{wrongColumns, "a receipt's business key without its record", `SELECT b.store, b.pos FROM business_keys b WHERE b.chain = $1 AND NOT EXISTS
			(SELECT 1 FROM records r WHERE r.chain = b.chain AND r.pos = b.pos AND r.store = b.store AND r.business_day = b.business_day) ORDER BY b.pos LIMIT 20`},
		{wrongColumns, "a void without its record", `SELECT v.store, v.pos FROM voids v WHERE v.chain = $1 AND NOT EXISTS
			(SELECT 1 FROM records r WHERE r.chain = v.chain AND r.pos = v.pos AND r.store = v.store AND r.type = 'void') ORDER BY v.pos LIMIT 20`},
	} {
		type row struct {
			store string
			pos   int64
		}
		rows, err := ask(ctx, c.q, look.text, []any{c.id}, func(s scanner, r *row) error { return s.Scan(&r.store, &r.pos) })
		if err != nil {
			return fmt.Errorf("look for %s: %w", look.what, err)
		}
		for _, r := range rows {
			c.find(r.store, r.pos, look.kind, "%s", look.what)
		}
	}
	var keys, receipts int64
	err := c.q.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM business_keys WHERE chain = $1), (SELECT count(*) FROM records WHERE chain = $1 AND number IS NOT NULL)", c.id).Scan(&keys, &receipts)
	if err != nil {
		return fmt.Errorf("business keys: %w", err)
	}
	if keys != receipts {
		c.find("", 0, wrongColumns, "there are %d business keys of %d receipts", keys, receipts)
	}
	return nil
}
