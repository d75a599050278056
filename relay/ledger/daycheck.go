package ledger

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
)

// A dayCheck looks at everything that bears on one business day of a store, in one snapshot.
type dayCheck struct {
	reader
	l          *Ledger
	chain      string
	store      string
	day        protocol.Day
	now        time.Time
	rule       protocol.DayRule
	start, end time.Time
	roots      *ca.Roots

	streams  map[string][]*stream // by agent, in the order in which they came
	gaps     map[streamKey][]gap
	held     []held // quarantined records that bear on the day
	marks    map[string]*heardMark
	marking  map[string]bool  // the agents that are expected to mark the day
	repeated map[string]int64 // by till
	c        *DayCertificate
}

// lookAt makes the certificate of a day without version, time and signature. Open says that
// the day has not ended, begun that the store had begun by its end.
func (l *Ledger) lookAt(ctx context.Context, id int64, chain, store string, day protocol.Day, now time.Time) (c *DayCertificate, open, begun bool, err error) {
	err = l.inSnapshot(ctx, func(q querier) error {
		d := &dayCheck{reader: reader{q, id}, l: l, chain: chain, store: store, day: day, now: now, roots: l.ca.Roots(),
			streams: map[string][]*stream{}, gaps: map[streamKey][]gap{}, marks: map[string]*heardMark{}, marking: map[string]bool{}, repeated: map[string]int64{}}
		if err := d.look(ctx); err != nil {
			return err
		}
		var err error
		begun, err = d.begun(ctx)
		c, open = d.c, now.Before(d.end)
		return err
	})
	return c, open, begun, err
}

// begun says whether the store has records of the day, or had sent any by its end: anybody may
// ask for any day that ever was, and those before are not kept.
func (d *dayCheck) begun(ctx context.Context) (bool, error) {
	if _, _, ok, err := d.span(ctx, d.day); ok || err != nil {
		return ok, err
	}
	var first int64
	err := d.q.QueryRowContext(ctx, "SELECT received FROM records WHERE chain = $1 AND store = $2 ORDER BY pos LIMIT 1", d.id, d.store).Scan(&first)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return micros(first).Before(d.end), err
}

// inSnapshot runs fn on one state of the database that does not change while it looks.
func (l *Ledger) inSnapshot(ctx context.Context, fn func(querier) error) error {
	q, done, err := l.db.snapshot(ctx)
	if err != nil {
		return err
	}
	return errors.Join(fn(q), done())
}

func (d *dayCheck) look(ctx context.Context) error {
	var s Store
	err := d.q.QueryRowContext(ctx, "SELECT id, name, zone, cut_off, currency FROM stores WHERE chain = $1 AND id = $2", d.id, d.store).
		Scan(&s.ID, &s.Name, &s.Zone, &s.CutOff, &s.Currency)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("store %s: %w (set it first: its zone says when its days end)", d.store, ErrNotFound)
	}
	if err != nil {
		return err
	}
	if d.rule, err = s.Rule(); err != nil {
		return err
	}
	d.start, d.end = d.rule.Start(d.day), d.rule.Start(d.day.AddDays(1))
	d.c = &DayCertificate{Format: certificateFormat, Chain: d.chain, Store: d.store, Day: d.day, State: DayComplete, Proof: Unproven, ProofReason: unprovenReason,
		Reasons: []Reason{}, Records: []KindCount{}, Agents: []AgentDay{}, Tills: []TillDay{}, Counters: []CounterDay{}, Holes: []HoleOfDay{}, Quarantined: []HeldRecord{}, Alarms: []DayAlarm{}}
	err = d.q.QueryRowContext(ctx, "SELECT incarnation, (SELECT head FROM chains WHERE id = $1) FROM ledger", d.id).Scan(&d.c.Incarnation, &d.c.Position)
	if err != nil {
		return err
	}
	if d.now.Before(d.end) {
		d.reason(ReasonOpen, "", "the business day ends at %s", d.end.Format(time.RFC3339))
	}
	if err := d.readStreams(ctx); err != nil {
		return err
	}
	if err := d.readHeld(ctx); err != nil {
		return err
	}
	expected, err := d.expected(ctx)
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, []Expected) error{d.agents, d.tills, d.counters, d.holesOfDay, d.quarantined, d.alarms} {
		if err := part(ctx, expected); err != nil {
			return err
		}
	}
	if err := d.settled(ctx); err != nil {
		return err
	}
	return d.count(ctx)
}

// reason notes why the day is incomplete.
func (d *dayCheck) reason(kind, who, format string, args ...any) {
	d.c.Reasons = append(d.c.Reasons, Reason{Kind: kind, Who: who, What: printable(fmt.Sprintf(format, args...))})
}

// readStreams reads the rows of the store's streams and their named holes.
func (d *dayCheck) readStreams(ctx context.Context) error {
	streams, err := readStreams(ctx, d.q, d.id, d.store)
	if err != nil {
		return err
	}
	for _, s := range streams {
		d.streams[s.key.agent] = append(d.streams[s.key.agent], s)
	}
	d.gaps, err = readGaps(ctx, d.q, d.id, d.store)
	return err
}

// readStreams gives a store's streams in the order in which they came.
func readStreams(ctx context.Context, q querier, id int64, store string) ([]*stream, error) {
	streams, err := ask(ctx, q, "SELECT store, agent, epoch, id, through, hash, sealed FROM streams WHERE chain = $1 AND store = $2 ORDER BY id", []any{id, store},
		func(row scanner, s **stream) error {
			*s = &stream{}
			var through int64
			var hash []byte
			err := row.Scan(&(*s).key.store, &(*s).key.agent, (*string)(&(*s).key.epoch), &(*s).id, &through, &hash, &(*s).sealed)
			(*s).through = uint64(through)
			copy((*s).hash[:], hash)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("streams of store %s: %w", store, err)
	}
	return streams, nil
}

// readGaps gives the named holes of a store by stream, in order.
func readGaps(ctx context.Context, q querier, id int64, store string) (map[streamKey][]gap, error) {
	found, err := ask(ctx, q, "SELECT store, agent, epoch, first_seq, last_seq, hash, reason, day, seal, received FROM holes WHERE chain = $1 AND store = $2 ORDER BY first_seq, last_seq", []any{id, store},
		func(row scanner, g *gap) error {
			var first, last int64
			var seal []byte
			err := row.Scan(&g.store, &g.agent, (*string)(&g.epoch), &first, &last, &g.hash, &g.reason, &g.day, &seal, &g.received)
			g.first, g.last = uint64(first), uint64(last)
			if err == nil && seal != nil {
				err = json.Unmarshal(seal, &g.seal)
			}
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("holes of store %s: %w", store, err)
	}
	gaps := map[streamKey][]gap{}
	for _, g := range found {
		key := streamKey{g.store, g.agent, g.epoch}
		gaps[key] = append(gaps[key], g)
	}
	return gaps, nil
}

// A held record is in quarantine and bears on the day.
type held struct {
	HeldRecord
	cause string
	sale  *saleKey // of a receipt that can be read
}

// readHeld reads the quarantined records of the day: by the agent's word, by the receipt's
// own, or, where neither can be read, by when they came.
func (d *dayCheck) readHeld(ctx context.Context) error {
	day := d.day.String()
	err := each(ctx, d.q, `SELECT id, agent, epoch, seq, kind, cause, reason, CASE WHEN business_day <> '' THEN record END FROM quarantined
		WHERE chain = $1 AND store = $2 AND (day = $3 OR (business_day <> '' AND business_day = $3) OR (day = '' AND received >= $4 AND received < $5)) ORDER BY id`,
		[]any{d.id, d.store, day, d.start.UnixMicro(), d.end.UnixMicro()}, func(row scanner) error {
			var h held
			var seq int64
			var text []byte
			if err := row.Scan(&h.ID, &h.Agent, (*string)(&h.Epoch), &seq, &h.Kind, &h.cause, &h.Reason, &text); err != nil {
				return err
			}
			h.Seq, h.Kind, h.Reason = uint64(seq), printable(h.Kind), printable(h.Reason)
			var record protocol.Record
			if text != nil && json.Unmarshal(text, &record) == nil {
				h.sale = receiptOf(record.Body)
			}
			d.held = append(d.held, h)
			return nil
		})
	if err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	return nil
}

// receiptDay is the business day of a record that is a receipt of the store, "" when it is none
// or cannot be read.
func receiptDay(r *protocol.Record, store string) string {
	if r.Kind != protocol.KindTransaction {
		return ""
	}
	if key := receiptOf(r.Body); key != nil && key.store == store {
		return key.day
	}
	return ""
}

// receiptOf reads the business key of a transaction that may be wrong otherwise; nil when
// there is none.
func receiptOf(body []byte) *saleKey {
	var t struct {
		Store       string       `json:"store"`
		Workstation string       `json:"workstation"`
		BusinessDay protocol.Day `json:"businessDay"`
		Sequence    int64        `json:"sequenceNumber"`
	}
	if json.Unmarshal(body, &t) != nil || t.Workstation == "" || t.BusinessDay.IsZero() || t.Sequence < 1 {
		return nil
	}
	return &saleKey{t.Store, t.BusinessDay.String(), t.Workstation, t.Sequence}
}

// maxHeld is how many quarantined records a certificate names.
const maxHeld = 1000

// quarantined names what was not applied.
func (d *dayCheck) quarantined(context.Context, []Expected) error {
	for i, h := range d.held {
		if i == maxHeld {
			d.reason(ReasonQuarantine, "", "and %d more records were received and not applied", len(d.held)-maxHeld)
			break
		}
		d.c.Quarantined = append(d.c.Quarantined, h.HeldRecord)
		what := "record"
		if h.Kind != "" {
			what = h.Kind
		}
		d.reason(ReasonQuarantine, h.Agent, "%s %d of epoch %s was received and not applied: %s", what, h.Seq, h.Epoch, h.Reason)
	}
	return nil
}

// bearing are the alarms that cast doubt on a day: one disk lives twice, or went back in time.
var bearing = []string{AlarmFork, AlarmSecondFirst, AlarmSealBelow, AlarmSealDiffers, AlarmSealedTwice, AlarmBeyondSeal}

// alarms names the alarms that bear on the day: those raised on it, and those raised later
// about an agent that should have marked it and had not.
func (d *dayCheck) alarms(ctx context.Context, _ []Expected) error {
	found, err := ask(ctx, d.q, "SELECT agent, kind, detail, at FROM alarms WHERE chain = $1 AND store = $2 AND at >= $3 ORDER BY at",
		[]any{d.id, d.store, d.start.UnixMicro()}, func(row scanner, a *DayAlarm) error {
			var at int64
			err := row.Scan(&a.Agent, &a.Kind, &a.Detail, &at)
			a.At, a.Detail = micros(at), printable(a.Detail)
			return err
		})
	if err != nil {
		return fmt.Errorf("alarms: %w", err)
	}
	slices.SortStableFunc(found, func(a, b DayAlarm) int {
		return cmp.Or(a.At.Compare(b.At), strings.Compare(a.Agent, b.Agent), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Detail, b.Detail))
	})
	for _, a := range found {
		mark := d.marks[a.Agent]
		late := d.marking[a.Agent] && (mark == nil || !mark.received.Before(a.At))
		if !slices.Contains(bearing, a.Kind) || !a.At.Before(d.end) && !late {
			continue
		}
		d.c.Alarms = append(d.c.Alarms, a)
		d.reason(ReasonAlarm, a.Agent, "alarm %s: %s", a.Kind, a.Detail)
	}
	return nil
}

// count counts the day's applied records: receipts by their own business day, others by the
// agent's.
func (d *dayCheck) count(ctx context.Context) error {
	first, last, ok, err := d.span(ctx, d.day)
	if err != nil || !ok {
		return err
	}
	d.c.Records, err = ask(ctx, d.q, `SELECT kind, count(*) FROM records WHERE chain = $1 AND store = $2 AND pos BETWEEN $3 AND $4
		AND coalesce(business_day, day) = $5 GROUP BY kind`, []any{d.id, d.store, first, last, d.day.String()},
		func(row scanner, k *KindCount) error { return row.Scan(&k.Kind, &k.Count) })
	if err != nil {
		return fmt.Errorf("records of the day: %w", err)
	}
	slices.SortFunc(d.c.Records, func(a, b KindCount) int { return strings.Compare(a.Kind, b.Kind) })
	d.c.Records = append([]KindCount{}, d.c.Records...) // never null
	return nil
}

// span bounds the positions of a day of the store; false when it has no records.
func (d *dayCheck) span(ctx context.Context, day protocol.Day) (first, last int64, ok bool, err error) {
	err = d.q.QueryRowContext(ctx, "SELECT first_pos, last_pos FROM day_spans WHERE chain = $1 AND store = $2 AND day = $3", d.id, d.store, day.String()).Scan(&first, &last)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, false, nil
	}
	return first, last, err == nil, err
}

// numbered writes "record 7" or "records 7 to 9".
func numbered[T uint64 | int64](what string, from, to T) string {
	if from == to {
		return fmt.Sprintf("%s %d", what, from)
	}
	return fmt.Sprintf("%ss %d to %d", what, from, to)
}

func wereOrWas[T uint64 | int64](from, to T) string {
	if from == to {
		return "was"
	}
	return "were"
}
