package ledger

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// beside looks at the store's tables beside its streams.
func (s *storeAudit) beside(ctx context.Context) error {
	for _, look := range []func(context.Context) error{s.extra, s.resent, s.voids, s.waiting, s.daysOfReceipts, s.daysOfHoles} {
		if err := look(ctx); err != nil {
			return err
		}
	}
	s.holesTold()
	return nil
}

// voids looks whether each row of the table of voids has the void that it names.
func (s *storeAudit) voids(ctx context.Context) error {
	type row struct {
		key  saleKey
		pos  int64
		body []byte
	}
	var last saleKey
	for {
		rows, err := ask(ctx, s.q, `SELECT v.business_day, v.workstation, v.sequence, v.pos, r.body FROM voids v JOIN records r ON r.chain = v.chain AND r.pos = v.pos
			WHERE v.chain = $1 AND v.store = $2 AND (v.business_day, v.workstation, v.sequence) > ($3, $4, $5) ORDER BY v.business_day, v.workstation, v.sequence LIMIT $6`,
			[]any{s.id, s.store, last.day, last.workstation, last.sequence, window}, func(found scanner, r *row) error {
				r.key.store = s.store
				return found.Scan(&r.key.day, &r.key.workstation, &r.key.sequence, &r.pos, &r.body)
			})
		if err != nil {
			return fmt.Errorf("voids: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		for _, r := range rows {
			t, err := readTransaction(r.body)
			if err != nil || t.Type != protocol.TypeVoid || t.Voids == nil || *newSale(t).voids != r.key {
				s.find("", "", wrong{kind: wrongColumns, pos: r.pos, what: fmt.Sprintf("the table of voids says that this voids transaction %s, and it does not", r.key)})
			}
			last = r.key
		}
	}
}

// waiting looks at what came beside its stream, and waits in quarantine.
func (s *storeAudit) waiting(ctx context.Context) error {
	type row struct {
		id    int64
		agent string
		epoch protocol.Epoch
		cause string
		entry
	}
	for last := int64(0); ; {
		rows, err := ask(ctx, s.q, "SELECT id, agent, epoch, seq, kind, day, cause, hash, record FROM quarantined WHERE chain = $1 AND store = $2 AND stream = 0 AND id > $3 ORDER BY id LIMIT $4",
			[]any{s.id, s.store, last, window}, func(found scanner, r *row) error {
				var seq int64
				var text []byte
				err := found.Scan(&r.id, &r.agent, (*string)(&r.epoch), &seq, &r.said.kind, &r.said.day, &r.cause, &r.hash, &text)
				if r.seq = uint64(seq); r.cause != causeRaw {
					r.decode(text)
				}
				return err
			})
		if err != nil {
			return fmt.Errorf("what waits in quarantine: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		for i := range rows {
			r := &rows[i]
			last = r.id
			w := wrong{seq: r.seq, last: r.seq}
			g := slices.IndexFunc(s.gaps[streamKey{s.store, r.agent, r.epoch}], func(g gap) bool { return g.moved() && g.last == r.seq })
			switch {
			case r.cause == causeRaw:
				continue
			case r.fault != "":
				w.kind, w.what = wrongChanged, "waits in quarantine: "+r.fault
			case r.said.kind != storable(string(r.record.Kind)) || r.said.day != r.record.Day.String():
				w.kind, w.what = wrongColumns, fmt.Sprintf("its row in quarantine says %s of %s", r.said.kind, r.said.day)
			case g >= 0 && !bytes.Equal(r.hash, s.gaps[streamKey{s.store, r.agent, r.epoch}][g].hash) && r.cause == causeHole:
				w.kind, w.what = wrongChanged, "waits in quarantine, and has another hash than the hole into which it belongs"
			default:
				continue
			}
			s.find(r.agent, r.epoch, w)
		}
	}
}

// daysOfReceipts looks whether a receipt that is held back bears on its own business day.
func (s *storeAudit) daysOfReceipts(ctx context.Context) error {
	type row struct {
		id    int64
		agent string
		epoch protocol.Epoch
		day   string
		entry
	}
	for last := int64(0); ; {
		rows, err := ask(ctx, s.q, "SELECT id, agent, epoch, seq, business_day, record FROM quarantined WHERE chain = $1 AND store = $2 AND cause <> $3 AND id > $4 ORDER BY id LIMIT $5",
			[]any{s.id, s.store, causeRaw, last, window}, func(found scanner, r *row) error {
				var seq int64
				var text []byte
				err := found.Scan(&r.id, &r.agent, (*string)(&r.epoch), &seq, &r.day, &text)
				r.seq = uint64(seq)
				r.decode(text)
				return err
			})
		if err != nil {
			return fmt.Errorf("receipts in quarantine: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		for i := range rows {
			r := &rows[i]
			last = r.id
			if r.record == nil { // named with its stream, or with what waits
				continue
			}
			if day := receiptDay(r.record, s.store); day != r.day {
				s.find(r.agent, r.epoch, wrong{kind: wrongColumns, seq: r.seq, last: r.seq, what: fmt.Sprintf("its row in quarantine says business day %q, and the record %q", r.day, day)})
			}
		}
	}
}

// daysOfHoles looks whether a hole is of the day of the record before it: on that day it counts.
func (s *storeAudit) daysOfHoles(ctx context.Context) error {
	for _, st := range s.streams {
		for i, g := range s.gaps[st.key] {
			if !g.moved() || g.first == 1 {
				continue
			}
			var day string
			before, err := s.entries(ctx, st, g.first-1, g.first-1)
			if err != nil {
				return err
			}
			switch {
			case len(before) > 0 && before[0].record != nil:
				day = before[0].record.Day.String()
			case i > 0 && s.gaps[st.key][i-1].moved() && s.gaps[st.key][i-1].last == g.first-1:
				day = s.gaps[st.key][i-1].day
			default:
				continue // its record is missing, and named so
			}
			if day != g.day {
				s.find(st.key.agent, st.key.epoch, wrong{kind: wrongColumns, seq: g.first, last: g.last, what: fmt.Sprintf("the hole is said to be of %q, and the record before it is of %q", g.day, day)})
			}
		}
	}
	return nil
}

// spansOfDays compares between which positions the records of a day are looked for; 0 = nowhere.
func (s *storeAudit) spansOfDays(ctx context.Context) error {
	stored := map[string]*span{}
	_, err := ask(ctx, s.q, "SELECT day, first_pos, last_pos FROM day_spans WHERE chain = $1 AND store = $2", []any{s.id, s.store},
		func(row scanner, _ *struct{}) error {
			var day string
			found := &span{}
			err := row.Scan(&day, &found.first, &found.last)
			stored[day] = found
			return err
		})
	if err != nil {
		return fmt.Errorf("spans of days: %w", err)
	}
	for _, day := range unionOf(stored, s.spans, strings.Compare) {
		is, want := cmp.Or(stored[day], &span{}), cmp.Or(s.spans[day], &span{})
		if *is != *want {
			s.find("", "", wrong{kind: wrongColumns, what: fmt.Sprintf("%s: its records are looked for at positions %d to %d, and they stand at %d to %d", day, is.first, is.last, want.first, want.last)})
		}
	}
	return nil
}

// spanned notes that a record belongs to a day.
func (s *storeAudit) spanned(day string, pos int64) {
	if found := s.spans[day]; found != nil {
		found.first, found.last = min(found.first, pos), max(found.last, pos)
	} else if day != "" {
		s.spans[day] = &span{pos, pos}
	}
}

// holesTold looks whether each hole has the alarm that was raised with it, and each such alarm
// its hole; and whether those have one of which agents wrote a record.
func (s *storeAudit) holesTold() {
	named := map[string]map[string]bool{}
	for key, gaps := range s.gaps {
		for _, g := range gaps {
			if named[key.agent] == nil {
				named[key.agent] = map[string]bool{}
			}
			named[key.agent][holeDetail(key.epoch, g.first, g.last, "")] = false
		}
	}
	for _, name := range sortedKeys(s.alarms) {
		for _, a := range s.alarms[name] {
			of, _, ok := strings.Cut(a.Detail, " are lost: ")
			if a.Kind != AlarmHole || !ok {
				continue
			}
			if _, ok := named[name][of+" are lost: "]; !ok {
				s.find(name, "", wrong{kind: wrongMissing, what: "the hole of which an alarm tells: " + a.Detail})
				continue
			}
			named[name][of+" are lost: "] = true
		}
	}
	for _, name := range sortedKeys(named) {
		for _, what := range sortedKeys(named[name]) {
			if !named[name][what] {
				s.find(name, "", wrong{kind: wrongAlarm, what: "no alarm was raised when the ledger is said to have heard that " + strings.TrimSuffix(what, ": ")})
			}
		}
	}
	for _, l := range s.losses {
		key := streamKey{s.store, l.agent, l.Epoch}
		through := uint64(0)
		if st := s.agent(l.agent).streams[l.Epoch]; st != nil {
			through = st.through
		}
		if l.To > through && !slices.ContainsFunc(s.gaps[key], func(g gap) bool {
			return g.last == l.To && g.first >= l.From && g.first <= through+1 || g.first == l.From && g.last == l.To
		}) {
			s.find(l.agent, l.Epoch, wrong{kind: wrongMissing, seq: max(l.From, through+1), last: l.To, what: "a record of the agent says that they are lost, and the table of holes does not"})
		}
	}
}

// A told loss is one of which an agent wrote a record.
type toldLoss struct {
	agent string
	protocol.Loss
}
