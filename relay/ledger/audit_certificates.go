package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// certificates checks those that were given out, and takes what agents signed in them: it
// speaks for itself, whatever the other tables say.
func (s *storeAudit) certificates(ctx context.Context) error {
	type row struct {
		day     string
		version int64
		state   string
		digest  []byte
		body    []byte
	}
	last := row{}
	for {
		rows, err := ask(ctx, s.q, `SELECT day, version, state, digest, body FROM day_certificates WHERE chain = $1 AND store = $2 AND (day > $3 OR (day = $3 AND version > $4))
			ORDER BY day, version LIMIT 50`, []any{s.id, s.store, last.day, last.version},
			func(found scanner, r *row) error { return found.Scan(&r.day, &r.version, &r.state, &r.digest, &r.body) })
		if err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		for _, r := range rows {
			bad := func(format string, args ...any) {
				s.find("", "", wrong{kind: wrongCertificate, what: fmt.Sprintf("certificate of %s, version %d: %s", r.day, r.version, fmt.Sprintf(format, args...))})
			}
			want := int64(1)
			if r.day == last.day {
				want = last.version + 1
			}
			if r.version != want {
				bad("%s before it is not there", numbered("version", want, r.version-1))
			}
			last = r
			c, err := ReadDayCertificate(r.body, s.opts.Roots)
			if err != nil {
				bad("%v", err)
				continue
			}
			digest, err := c.digest()
			if err != nil {
				return err
			}
			if c.Chain != s.chain || c.Store != s.store || c.Day.String() != r.day || c.Version != r.version || c.State != r.state || !bytes.Equal(digest, r.digest) {
				bad("its row says something else than the certificate")
				continue
			}
			s.report.Certificates++
			s.stated = append(s.stated, &DayCertificate{Day: c.Day, Version: c.Version, Position: c.Position, Records: c.Records, Tills: c.Tills})
			if c.State == DayComplete {
				s.complete = append(s.complete, certifiedDay{c.Day, c.Version, marksIn(c)})
			}
			for i := range c.Agents {
				if a := &c.Agents[i]; a.Signed && a.Complete {
					s.agent(a.Agent).certified(a.Mark, c.Day)
				}
			}
		}
	}
}

// certified notes a mark that a certificate carries, if no row does.
func (a *agentAudit) certified(m *MarkOfDay, day protocol.Day) {
	if !slices.ContainsFunc(a.heads[m.Head.Epoch], func(known *auditMark) bool { return known.day == day && known.Head == m.Head && known.signed == nil }) {
		a.expect(&auditMark{heardMark: &heardMark{MarkOfDay: *m, day: day}, met: true})
	}
}

// asCertified compares the ledger with what certificates counted, and with those that say that
// nothing was lost.
func (s *storeAudit) asCertified(ctx context.Context) error {
	for _, c := range s.stated {
		if err := s.counted(ctx, c); err != nil {
			return err
		}
	}
	return s.wholeDays(ctx)
}

// counted compares what a certificate says that the ledger had of its day, up to the position
// at which it was made, with what it has there: whatever is applied stays.
func (s *storeAudit) counted(ctx context.Context, c *DayCertificate) error {
	kinds, tills := map[string]int64{}, map[string]int64{}
	scan := func(into map[string]int64) func(scanner, *struct{}) error {
		return func(row scanner, _ *struct{}) error {
			var name string
			var n int64
			err := row.Scan(&name, &n)
			into[name] = n
			return err
		}
	}
	args := []any{s.id, s.store, c.Day.String(), c.Position}
	var first, last int64 // a row that is wrong is named elsewhere, and here
	err := s.q.QueryRowContext(ctx, "SELECT coalesce(min(first_pos), 0), coalesce(max(last_pos), 0) FROM day_spans WHERE chain = $1 AND store = $2 AND day = $3", args[:3]...).Scan(&first, &last)
	if err != nil {
		return fmt.Errorf("span of %s: %w", c.Day, err)
	}
	_, err = ask(ctx, s.q, "SELECT kind, count(*) FROM records WHERE chain = $1 AND store = $2 AND coalesce(business_day, day) = $3 AND pos BETWEEN $4 AND $5 GROUP BY kind",
		append(args[:3:3], first, min(last, c.Position)), scan(kinds))
	if err != nil {
		return fmt.Errorf("records of %s: %w", c.Day, err)
	}
	_, err = ask(ctx, s.q, "SELECT workstation, count(*) FROM business_keys WHERE chain = $1 AND store = $2 AND business_day = $3 AND pos <= $4 GROUP BY workstation", args, scan(tills))
	if err != nil {
		return fmt.Errorf("receipts of %s: %w", c.Day, err)
	}
	stated, receipts := map[string]int64{}, map[string]int64{}
	for _, k := range c.Records {
		stated[k.Kind] = k.Count
	}
	for i := range c.Tills {
		receipts[c.Tills[i].Workstation] = c.Tills[i].Count
		if err := s.numbers(ctx, c, &c.Tills[i]); err != nil {
			return err
		}
	}
	differs := func(what string, is, was map[string]int64) {
		for _, name := range unionOf(is, was, strings.Compare) {
			if is[name] != was[name] {
				s.find("", "", wrong{kind: wrongCertificate, what: fmt.Sprintf("certificate of %s, version %d: up to position %d the ledger had %d %s %s of the day, and has %d",
					c.Day, c.Version, c.Position, was[name], what, name, is[name])})
			}
		}
	}
	differs("receipts of till", tills, receipts)
	differs("records of kind", kinds, stated)
	return nil
}

// numbers looks whether a till still has the numbers that a certificate says it had, applied or
// in quarantine.
func (s *storeAudit) numbers(ctx context.Context, c *DayCertificate, t *TillDay) error {
	if t.First == 0 || t.Last < t.First {
		return nil
	}
	args := []any{s.id, s.store, c.Day.String(), t.Workstation, t.First, t.Last}
	there, err := ask(ctx, s.q, "SELECT sequence FROM business_keys WHERE chain = $1 AND store = $2 AND business_day = $3 AND workstation = $4 AND sequence BETWEEN $5 AND $6 ORDER BY sequence", args,
		func(row scanner, n *int64) error { return row.Scan(n) })
	if err != nil {
		return fmt.Errorf("numbers of %s: %w", c.Day, err)
	}
	gone := lacking(there, t)
	if gone == 0 {
		return nil
	}
	_, err = ask(ctx, s.q, "SELECT record FROM quarantined WHERE chain = $1 AND store = $2 AND kind = $3", []any{s.id, s.store, string(protocol.KindTransaction)},
		func(row scanner, _ *struct{}) error {
			var text []byte
			var r protocol.Record
			if err := row.Scan(&text); err != nil {
				return err
			}
			if json.Unmarshal(text, &r) == nil {
				if key := receiptOf(r.Body); key != nil && key.store == s.store && key.day == c.Day.String() && key.workstation == t.Workstation {
					there = append(there, key.sequence)
				}
			}
			return nil
		})
	if err != nil {
		return fmt.Errorf("numbers of %s: %w", c.Day, err)
	}
	slices.Sort(there)
	if gone = lacking(there, t); gone != 0 {
		s.find("", "", wrong{kind: wrongCertificate, what: fmt.Sprintf("certificate of %s, version %d: the ledger had number %d of till %s, and has it no more", c.Day, c.Version, gone, t.Workstation)})
	}
	return nil
}

// lacking is the first number of a certified till that is not there and was not missing then;
// 0 = none is. There is in order.
func lacking(there []int64, t *TillDay) int64 {
	next := t.First // and so on: all before it are there, or were missing
	skip := func() {
		for _, m := range t.Missing {
			if m.From <= next && next <= m.To {
				next = m.To + 1
			}
		}
	}
	for _, n := range there {
		if skip(); n > next && next <= t.Last {
			return next
		}
		next = max(next, n+1)
	}
	if skip(); next <= t.Last {
		return next
	}
	return 0
}

// A certifiedDay was certified as complete.
type certifiedDay struct {
	day     protocol.Day
	version int64
	heads   map[string]protocol.Mark // by agent
}

func marksIn(c *DayCertificate) map[string]protocol.Mark {
	heads := map[string]protocol.Mark{}
	for i := range c.Agents {
		if a := &c.Agents[i]; a.Signed && a.Complete {
			heads[a.Agent] = a.Mark.Head
		}
	}
	return heads
}

// wholeDays looks for holes in days that were certified as complete: between the mark of such a
// day and that of the day before nothing was lost then, and nothing can be lost later.
func (s *storeAudit) wholeDays(ctx context.Context) error {
	for _, d := range s.complete {
		for _, name := range slices.Sorted(maps.Keys(d.heads)) {
			head, a := d.heads[name], s.agent(name)
			from, known := uint64(0), false
			for epoch, marks := range a.heads {
				for _, m := range marks {
					if m.signed == nil && m.day == d.day.AddDays(-1) {
						if known = true; epoch == head.Epoch && m.Head.Through <= head.Through {
							from = max(from, m.Head.Through)
						}
					}
				}
			}
			if !known {
				continue // on which days a hole bears is not known so exactly
			}
			key := streamKey{s.store, name, head.Epoch}
			for _, g := range s.gaps[key] {
				if !g.moved() || g.first <= from || g.last > head.Through {
					continue
				}
				var came int64
				err := s.q.QueryRowContext(ctx, `SELECT count(*) FROM (
						SELECT seq FROM quarantined WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND seq BETWEEN $5 AND $6
						UNION SELECT seq FROM resent WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND seq BETWEEN $5 AND $6) AS came`,
					s.id, s.store, name, string(head.Epoch), int64(g.first), int64(g.last)).Scan(&came)
				if err != nil {
					return fmt.Errorf("holes: %w", err)
				}
				if uint64(came) < g.last-g.first+1 && a.wrong[head.Epoch] == nil {
					s.find(name, head.Epoch, wrong{kind: wrongCertificate, seq: g.first, last: g.last,
						what: fmt.Sprintf("stands as a hole in the ledger, and the certificate of %s, version %d, says that nothing of the day is lost", d.day, d.version)})
				}
			}
		}
	}
	return nil
}
