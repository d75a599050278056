package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// holesOfDay names the holes that touch the day. Where the agent has marked the day, and one
// before it, those are the holes between the two marks; otherwise the days of the records
// around a hole tell.
func (d *dayCheck) holesOfDay(ctx context.Context, _ []Expected) error {
	var all []gap
	for _, gaps := range d.gaps {
		all = append(all, gaps...)
	}
	slices.SortFunc(all, func(a, b gap) int {
		return cmp.Or(strings.Compare(a.agent, b.agent), strings.Compare(string(a.epoch), string(b.epoch)), cmp.Compare(a.first, b.first))
	})
	for _, g := range all {
		touches, err := d.touches(ctx, &g)
		if err != nil {
			return err
		}
		if !touches {
			continue
		}
		lacks, err := d.lacks(ctx, &g)
		if err != nil {
			return err
		}
		if !lacks {
			continue
		}
		d.c.Holes = append(d.c.Holes, HoleOfDay{g.agent, g.epoch, g.first, g.last, printable(g.reason)})
		more := ""
		if g.first == 1 && g.moved() && g.seal == nil {
			more = "; the seal is lost with it, so what is missing before the epoch is not known"
		}
		d.reason(ReasonHole, g.agent, "%s of epoch %s %s lost at the agent (%s)%s", numbered("record", g.first, g.last), g.epoch, wereOrWas(g.first, g.last), g.reason, more)
	}
	return nil
}

// lacks says whether the ledger lacks anything of a hole, and cuts off what its stream brought
// after all. What came beside the stream is in quarantine, or was appended to another epoch.
// What is in quarantine and cannot be read may have been of any day.
func (d *dayCheck) lacks(ctx context.Context, g *gap) (bool, error) {
	if !g.moved() {
		for _, s := range d.streams[g.agent] {
			if s.key.epoch == g.epoch {
				g.first = max(g.first, s.through+1)
			}
		}
		if g.first > g.last {
			return false, nil
		}
	}
	came := map[uint64]bool{}
	held, err := ask(ctx, d.q, "SELECT DISTINCT seq FROM quarantined WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND seq BETWEEN $5 AND $6 AND day <> ''",
		[]any{d.id, d.store, g.agent, string(g.epoch), int64(g.first), int64(g.last)}, func(row scanner, seq *int64) error { return row.Scan(seq) })
	if err != nil {
		return false, fmt.Errorf("holes: %w", err)
	}
	for _, seq := range held {
		came[uint64(seq)] = true
	}
	lacks := func() bool { return uint64(len(came)) < g.last-g.first+1 }
	if !lacks() {
		return false, nil
	}
	if err := d.appendedAgain(ctx, g, came); err != nil {
		return false, fmt.Errorf("holes: %w", err)
	}
	return lacks(), nil
}

// appendedAgain notes what of a hole stands elsewhere, with was: the record itself must say so,
// and be what was names. The table of those that were appended again is not trusted.
func (d *dayCheck) appendedAgain(ctx context.Context, g *gap, came map[uint64]bool) error {
	note := func(r *protocol.Record) {
		if was := r.Was; was != nil && was.Epoch == g.epoch && g.first <= was.Seq && was.Seq <= g.last && r.ContentHash() == was.SHA256 {
			came[was.Seq] = true
		}
	}
	applied := func(row scanner) error {
		var r protocol.Record
		var day string
		var was []byte
		if err := row.Scan((*string)(&r.Kind), &r.At, &r.Mono, &day, &r.Body, &was); err != nil {
			return err
		}
		var err error
		if r.Day, err = parseDay(day); err == nil && json.Unmarshal(was, &r.Was) == nil {
			note(&r)
		}
		return err
	}
	kept := func(row scanner) error {
		var text []byte
		if err := row.Scan(&text); err != nil {
			return err
		}
		var r protocol.Record
		if json.Unmarshal(text, &r) == nil {
			note(&r)
		}
		return nil
	}
	for _, s := range d.streams[g.agent] {
		err := errors.Join(
			each(ctx, d.q, "SELECT kind, at, mono, day, body, was FROM records WHERE chain = $1 AND stream = $2 AND was IS NOT NULL", []any{d.id, s.id}, applied),
			each(ctx, d.q, "SELECT record FROM duplicates WHERE chain = $1 AND stream = $2 AND record IS NOT NULL", []any{d.id, s.id}, kept))
		if err != nil {
			return err
		}
	}
	return each(ctx, d.q, "SELECT record FROM quarantined WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch <> $4 AND day <> ''", []any{d.id, d.store, g.agent, string(g.epoch)}, kept)
}

// each scans the rows of a query one by one.
func each(ctx context.Context, q querier, text string, args []any, scan func(scanner) error) error {
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (d *dayCheck) touches(ctx context.Context, g *gap) (bool, error) {
	mark := d.marks[g.agent]
	if mark != nil && g.moved() {
		if covered, known := mark.covers(g); known {
			return covered, nil
		}
	}
	day := d.day.String()
	if g.day > day {
		return false, nil
	}
	// The records behind the hole begin no earlier than what it held ended.
	after := d.rule.Day(micros(g.received)).String()
	for _, s := range d.streams[g.agent] {
		if s.key.epoch != g.epoch || s.through <= g.last {
			continue
		}
		found, err := d.entries(ctx, s, g.last+1, g.last+1)
		if err != nil {
			return false, err
		}
		if len(found) > 0 && found[0].record != nil && !found[0].record.Day.IsZero() {
			after = found[0].record.Day.String()
		}
	}
	before := g.day
	if before == "" { // nothing stands before it in its stream
		before = after
	}
	return before <= day && day <= after, nil
}
