package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// How a till numbers its receipts, as the days around tell.
const (
	numberedOn    = "continued" // goes on from its last number of an earlier day
	numberedDaily = "daily"     // begins at 1 on each day
	numberedHow   = "unknown"
)

// beyond is how many days back and forth a till's other numbers are looked for: one that
// stood still for longer begins anew.
const beyond = 400

// A tillRun is the numbers of one till on one day.
type tillRun struct {
	till, day   string
	first, last int64
}

// tills looks at the running numbers of each till that is expected or has sent something.
func (d *dayCheck) tills(ctx context.Context, expected []Expected) error {
	type number struct {
		till          string
		sequence, pos int64
		voided        int64 // -1 = its record is gone
	}
	rows, err := ask(ctx, d.q, `SELECT b.workstation, b.sequence, b.pos, coalesce(r.voided, -1) FROM business_keys b LEFT JOIN records r ON r.chain = b.chain AND r.pos = b.pos
		WHERE b.chain = $1 AND b.store = $2 AND b.business_day = $3 ORDER BY b.workstation, b.sequence`, []any{d.id, d.store, d.day.String()},
		func(row scanner, n *number) error { return row.Scan(&n.till, &n.sequence, &n.pos, &n.voided) })
	if err != nil {
		return fmt.Errorf("numbers of the day: %w", err)
	}
	tills := map[string]*TillDay{}
	till := func(name string) *TillDay {
		t := tills[name]
		if t == nil {
			t = &TillDay{Workstation: name, Missing: []NumberRange{}, Numbering: numberedHow}
			tills[name] = t
		}
		return t
	}
	for _, e := range expected {
		if e.Kind == RosterTill && e.Expected {
			till(e.ID).Expected = true
		}
	}
	present, places := map[string][]int64{}, map[string]map[int64]int64{}
	for _, n := range rows {
		if n.voided < 0 {
			continue // and so its number is missing
		}
		t := till(n.till)
		t.Count++
		t.Voided += n.voided
		present[n.till] = append(present[n.till], n.sequence)
		if places[n.till] == nil {
			places[n.till] = map[int64]int64{}
		}
		places[n.till][n.sequence] = n.pos
	}
	for _, h := range d.held { // received, if not applied
		if h.sale == nil || h.sale.store != d.store || h.sale.day != d.day.String() || !protocol.ValidID(h.sale.workstation) {
			continue
		}
		if h.cause == causeBusiness {
			till(h.sale.workstation).Conflicts++
		}
		present[h.sale.workstation] = append(present[h.sale.workstation], h.sale.sequence)
		till(h.sale.workstation)
	}
	for name, n := range d.repeated {
		till(name).Repeated = n
	}
	for _, name := range slices.Sorted(maps.Keys(tills)) {
		t := tills[name]
		if err := d.till(ctx, t, present[name], places[name]); err != nil {
			return err
		}
		d.c.Tills = append(d.c.Tills, *t)
	}
	return nil
}

// wrap gives the index in sorted numbers at which a till's numbers ended at their highest one,
// such as 9999, and began again at 1 on the same day; 0 = they did not. To be told from a hole
// both ends must be there, and everything from the index on must have been applied before
// everything in front of it: a till that counts on from 1 to 9999 does so in the other order.
func wrap(numbers []int64, places map[int64]int64) int {
	n := len(numbers)
	if n == 0 || numbers[0] != 1 || !highest(numbers[n-1]) || len(places) < n {
		return 0
	}
	before := make([]int64, n) // the last place of numbers[i:]
	for i, last := n-1, int64(0); i >= 0; i-- {
		place, applied := places[numbers[i]]
		if !applied {
			return 0
		}
		last = max(last, place)
		before[i] = last
	}
	at, first := 0, places[1]
	for i := 1; i < n; i++ {
		first = min(first, places[numbers[i-1]])
		if before[i] < first && numbers[i] > numbers[i-1]+1 {
			if at > 0 {
				return 0 // they went down more than once
			}
			at = i
		}
	}
	return at
}

// highest says whether a till's numbers may end here: all nines, four of them at least.
func highest(n int64) bool {
	top := int64(9999)
	for top < n && top < 1e17 {
		top = top*10 + 9
	}
	return n == top
}

// till finds the numbers that are missing within the day, before it and behind it.
func (d *dayCheck) till(ctx context.Context, t *TillDay, numbers []int64, places map[int64]int64) error {
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	again := wrap(numbers, places)
	t.Wrapped = again > 0
	for i := 1; i < len(numbers); i++ {
		if numbers[i] > numbers[i-1]+1 && (again == 0 || i != again) {
			t.Missing = append(t.Missing, NumberRange{numbers[i-1] + 1, numbers[i] - 1})
			d.missing(t, "")
		}
	}
	runs, err := d.runs(ctx, t.Workstation)
	if err != nil {
		return err
	}
	day := d.day.String()
	i, _ := slices.BinarySearchFunc(runs, day, func(r tillRun, day string) int { return strings.Compare(r.day, day) })
	if n := len(numbers); n > 0 {
		t.First, t.Last = numbers[again], numbers[(again+n-1)%n]
		run := tillRun{t.Workstation, day, t.First, t.Last}
		if i < len(runs) && runs[i].day == day {
			runs[i] = run
		} else {
			runs = slices.Insert(runs, i, run)
		}
	}
	t.Numbering = numbering(runs)
	var before, behind *tillRun
	if i > 0 {
		before = &runs[i-1]
	}
	if j := i + min(len(numbers), 1); j < len(runs) {
		behind = &runs[j]
	}
	if len(numbers) == 0 {
		d.silent(t, before, behind)
		return nil
	}
	switch {
	case before == nil || t.First == 1:
	case t.Numbering == numberedDaily || t.First <= before.last:
		t.Missing = slices.Insert(t.Missing, 0, NumberRange{1, t.First - 1})
		d.missingAt(t, 0, "")
	case t.First > before.last+1:
		t.Missing = slices.Insert(t.Missing, 0, NumberRange{before.last + 1, t.First - 1})
		d.missingAt(t, 0, " between its last number of "+before.day+" and its first of this day")
	}
	if behind != nil && t.Numbering != numberedDaily && behind.first > t.Last+1 {
		t.Missing = append(t.Missing, NumberRange{t.Last + 1, behind.first - 1})
		d.missing(t, " between its last number of this day and its first of "+behind.day)
	}
	return nil
}

// silent judges a till without a number on the day: what it sent before and behind may prove
// that nothing is missing.
func (d *dayCheck) silent(t *TillDay, before, behind *tillRun) {
	switch {
	case before != nil && behind != nil && t.Numbering != numberedDaily && (behind.first == before.last+1 || behind.first == 1 && highest(before.last)):
	case before != nil && behind != nil && t.Numbering != numberedDaily && behind.first > before.last+1:
		t.Missing = append(t.Missing, NumberRange{before.last + 1, behind.first - 1})
		d.missing(t, " between its last number of "+before.day+" and its first of "+behind.day)
	case t.Expected && before != nil:
		d.reason(ReasonTill, t.Workstation, "till %s sent nothing on this day, and nothing shows yet whether it sold; its last number is %d of %s", t.Workstation, before.last, before.day)
	case t.Expected:
		d.reason(ReasonTill, t.Workstation, "till %s is expected and has sent nothing yet", t.Workstation)
	}
}

// missing names the last range that was found.
func (d *dayCheck) missing(t *TillDay, where string) { d.missingAt(t, len(t.Missing)-1, where) }

func (d *dayCheck) missingAt(t *TillDay, i int, where string) {
	r := t.Missing[i]
	verb := "are"
	if r.From == r.To {
		verb = "is"
	}
	d.reason(ReasonTill, t.Workstation, "till %s: %s %s missing%s", t.Workstation, numbered("number", r.From, r.To), verb, where)
}

// runs gives a till's first and last number of each day that it sold on: those of the days
// around, and, should it have stood still, the nearest ones further away.
func (d *dayCheck) runs(ctx context.Context, till string) ([]tillRun, error) {
	read := func(from, to protocol.Day, tail string) ([]tillRun, error) {
		runs, err := ask(ctx, d.q, `SELECT workstation, business_day, min(sequence), max(sequence) FROM business_keys
			WHERE chain = $1 AND store = $2 AND business_day BETWEEN $3 AND $4 AND workstation = $5 GROUP BY workstation, business_day ORDER BY business_day `+tail,
			[]any{d.id, d.store, from.String(), to.String(), till}, func(row scanner, r *tillRun) error { return row.Scan(&r.till, &r.day, &r.first, &r.last) })
		if err != nil {
			return nil, fmt.Errorf("numbers of till %s: %w", till, err)
		}
		return runs, nil
	}
	runs, err := read(d.day.AddDays(-seenFor), d.day.AddDays(seenFor), "")
	if err != nil {
		return nil, err
	}
	day := d.day.String()
	if !slices.ContainsFunc(runs, func(r tillRun) bool { return r.day < day }) {
		further, err := read(d.day.AddDays(-beyond), d.day.AddDays(-seenFor-1), "DESC LIMIT 1")
		if err != nil {
			return nil, err
		}
		runs = append(further, runs...)
	}
	if !slices.ContainsFunc(runs, func(r tillRun) bool { return r.day > day }) {
		further, err := read(d.day.AddDays(seenFor+1), d.day.AddDays(beyond), "LIMIT 1")
		if err != nil {
			return nil, err
		}
		runs = append(runs, further...)
	}
	for i := range runs {
		if r := &runs[i]; r.first == 1 && highest(r.last) {
			if err := d.unwrap(ctx, r); err != nil {
				return nil, err
			}
		}
	}
	return runs, nil
}

// unwrap finds out whether the numbers of a run's day ended and began again.
func (d *dayCheck) unwrap(ctx context.Context, r *tillRun) error {
	var numbers []int64
	places := map[int64]int64{}
	err := each(ctx, d.q, "SELECT sequence, pos FROM business_keys WHERE chain = $1 AND store = $2 AND business_day = $3 AND workstation = $4 ORDER BY sequence",
		[]any{d.id, d.store, r.day, r.till}, func(row scanner) error {
			var sequence, pos int64
			err := row.Scan(&sequence, &pos)
			numbers, places[sequence] = append(numbers, sequence), pos
			return err
		})
	if err != nil {
		return fmt.Errorf("numbers of till %s: %w", r.till, err)
	}
	if at := wrap(numbers, places); at > 0 {
		r.first, r.last = numbers[at], numbers[at-1]
	}
	return nil
}

// numbering tells by the steps from day to day whether a till begins at 1 on each or goes on.
// One that was set back once goes on all the same.
func numbering(runs []tillRun) string {
	again, on := 0, 0
	for i := 1; i < len(runs); i++ {
		switch before := runs[i-1].last; {
		case runs[i].first == 1:
			again++
		case runs[i].first > before:
			on++
		}
	}
	switch {
	case again > on:
		return numberedDaily
	case on > again:
		return numberedOn
	}
	return numberedHow
}

// slack is the longest time between two counts that is no gap: clocks are set by so much.
const slack = time.Minute

// counters says how much of the day each counter that is expected, or has counted, covers.
func (d *dayCheck) counters(ctx context.Context, expected []Expected) error {
	names := map[string]bool{}
	for _, e := range expected {
		if e.Kind == RosterCounter && e.Expected {
			names[e.ID] = true
		}
	}
	today, err := d.countsOf(ctx, d.day)
	if err != nil {
		return err
	}
	for name := range today {
		if _, listed := names[name]; !listed {
			names[name] = false // not expected, and here
		}
	}
	spans, known := map[string][]TimeRange{}, map[string]bool{}
	for day := d.day.AddDays(-seenFor); day.Before(d.day.AddDays(seenFor)); day = day.AddDays(1) {
		counts, err := d.countsOf(ctx, day)
		if err != nil {
			return err
		}
		for name, at := range counts {
			spans[name] = append(spans[name], at.spans...)
			known[name] = known[name] || day.Before(d.day)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c := CounterDay{Counter: name, Expected: names[name], Gaps: []TimeRange{}}
		if at := today[name]; at != nil {
			c.Counts, c.Doubtful = at.counts, at.doubtful
		}
		d.cover(&c, merge(spans[name]), known[name])
		d.c.Counters = append(d.c.Counters, c)
	}
	return nil
}

// cover finds the gaps of a counter's day. A new counter's day begins with its first count.
func (d *dayCheck) cover(c *CounterDay, spans []TimeRange, known bool) {
	start, end := d.start.UTC(), d.end.UTC()
	if !known && len(spans) > 0 && spans[0].From.After(start) && spans[0].From.Before(end) {
		start = spans[0].From
	}
	at := start
	gapTo := func(to time.Time) {
		if to.Sub(at) > slack {
			c.Gaps = append(c.Gaps, TimeRange{at, to})
		}
	}
	for _, s := range spans {
		from, to := later(s.From, start), s.To
		if end.Before(to) {
			to = end
		}
		if !from.Before(to) {
			continue
		}
		gapTo(from)
		c.Covered += int64(to.Sub(from).Seconds())
		at = to
	}
	gapTo(end)
	c.Seconds = int64(end.Sub(start).Seconds())
	if c.Seconds > 0 {
		c.Permille = c.Covered * 1000 / c.Seconds
	}
	if !c.Expected {
		return
	}
	if c.Covered == 0 {
		d.reason(ReasonCounter, c.Counter, "counter %s has counted nothing on this day", c.Counter)
		return
	}
	for _, g := range c.Gaps {
		d.reason(ReasonCounter, c.Counter, "counter %s: no count covers %s to %s", c.Counter, g.From.In(d.rule.Zone).Format(time.RFC3339), g.To.In(d.rule.Zone).Format(time.RFC3339))
	}
}

// doubtful says that a count is right within limits alone.
func doubtful(q protocol.Quality) bool {
	return q != protocol.QualityOK && q != protocol.QualityWrap
}

func readCount(body []byte) (c protocol.FootfallCount, err error) {
	err = json.Unmarshal(body, &c)
	return c, err
}
