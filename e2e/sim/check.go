package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// check compares the ledger with the book, when everything has come to rest.
func (w *world) check() error {
	for _, p := range w.pcs {
		if p.agent != nil {
			w.book.damaged(p, p.agent.Journal().Damage())
		}
	}
	c := &checker{w: w}
	for _, step := range []func(){c.load, c.everythingOnce, c.sums, c.people, c.order, c.deliveries, c.settings, c.rebuilt, c.certificates, c.anyOrder, c.released} {
		if step(); w.failed != nil {
			return w.failed
		}
	}
	return nil
}

// released lets a person have everything applied that was delivered beside its stream: then it
// counts like anything else, and once.
func (c *checker) released() {
	l, some := c.w.relay.ledger, false
	for _, q := range c.quarantined {
		if countedBefore(q) {
			continue
		}
		some = true
		if err := l.RetryQuarantined(c.w.ctx(), chain, q.ID); err != nil {
			c.w.say("quarantined record %d is not applied: %v", q.ID, err)
		}
	}
	if !some {
		return
	}
	again := &checker{w: c.w}
	for _, step := range []func(){again.load, again.everythingOnce, again.sums, again.rebuilt} {
		if step(); c.w.failed != nil {
			return
		}
	}
	for _, q := range again.quarantined {
		if q.Kind != protocol.KindFootfall || !c.mayForget(q.Store) { // its people may have been counted before
			c.w.fail("quarantined record %d of %s/%s cannot be applied: %s", q.ID, q.Store, q.Agent, q.Reason)
		}
	}
}

// everythingIsThere checks, before another day brings other records, that what was accepted
// has arrived.
func (w *world) everythingIsThere() error {
	c := &checker{w: w}
	for _, step := range []func(){c.load, c.everythingOnce} {
		if step(); w.failed != nil {
			return w.failed
		}
	}
	return nil
}

// A checker holds what it has read of the ledger.
type checker struct {
	w           *world
	records     []ledger.StoredRecord
	quarantined []ledger.QuarantinedRecord
	holes       []hole
	present     []*entry // entries that are applied
}

// A hole is a stretch of records that the ledger was told are lost.
type hole struct {
	store, agent string
	epoch        protocol.Epoch
	from, to     uint64
	reason       string
}

func (c *checker) load() {
	w, l := c.w, c.w.relay.ledger
	var err error
	if c.records, err = w.read(l); err != nil {
		w.fail("records: %v", err)
		return
	}
	w.stats.Records = len(c.records)
	if c.quarantined, err = l.Quarantined(w.ctx(), chain, 1000); err != nil {
		w.fail("quarantine: %v", err)
	}
	alarms, err := l.Alarms(w.ctx(), chain)
	if err != nil {
		w.fail("alarms: %v", err)
	}
	told := w.relay.incarnation <= 1 // that the ledger was restored
	for _, a := range alarms {
		told = told || a.Kind == ledger.AlarmRestored && strings.Contains(a.Detail, fmt.Sprintf("has incarnation %d,", w.relay.incarnation))
		w.say("alarm: %s %s/%s: %s", a.Kind, a.Store, a.Agent, a.Detail)
		w.stats.Alarms++
		if a.Kind == ledger.AlarmHole {
			h := hole{store: a.Store, agent: a.Agent}
			if _, err := fmt.Sscanf(strings.ReplaceAll(a.Detail, ":", " "), "records %d to %d of epoch %s are lost %s", &h.from, &h.to, &h.epoch, &h.reason); err != nil {
				w.fail("alarm %q: %v", a.Detail, err)
			}
			c.holes = append(c.holes, h)
			w.stats.Skips++
		}
	}
	if !told {
		w.fail("the ledger was restored and has incarnation %d, and no alarm says so: %+v", w.relay.incarnation, alarms)
	}
}

// read reads all records of a ledger.
func (w *world) read(l *ledger.Ledger) (all []ledger.StoredRecord, err error) {
	for after := int64(0); ; {
		page, err := l.Records(w.ctx(), chain, after, 1000)
		if err != nil || len(page) == 0 {
			return all, err
		}
		all, after = append(all, page...), page[len(page)-1].Pos
	}
}

// key is what tells one record from another: a sale's own number, a count's content.
func key(store string, kind protocol.Kind, body string) string {
	return store + " " + string(kind) + " " + body
}

func booked(kind protocol.Kind) bool {
	return kind == protocol.KindTransaction || kind == protocol.KindFootfall
}

// everythingOnce checks that what was accepted is applied once, word for word, or is where it
// may be: in quarantine, or lost and named.
func (c *checker) everythingOnce() {
	w := c.w
	applied, held := map[string]int{}, map[string]int{}
	var order []string
	for i := range c.records {
		if r := &c.records[i]; booked(r.Kind) {
			k := key(r.Store, r.Kind, string(r.Body))
			if applied[k] == 0 {
				order = append(order, k)
			}
			applied[k]++
		}
	}
	for _, q := range c.quarantined {
		var r protocol.Record
		if err := r.UnmarshalJSON(q.Record); err != nil {
			w.fail("quarantined record %d: %v", q.ID, err)
			return
		}
		w.say("quarantine: %s %s/%s/%d: %s", q.Kind, q.Agent, short(q.Epoch), q.Seq, q.Reason)
		if !c.mayBeHeld(q) {
			w.fail("quarantined: %s of %s/%s: %s", q.Kind, q.Store, q.Agent, q.Reason)
			return
		}
		held[key(q.Store, r.Kind, string(r.Body))]++
	}
	wanted, doubted := map[string]int{}, map[string]int{}
	for _, e := range w.book.entries {
		k := key(e.pc.store.id, e.kind, e.body)
		if e.doubt {
			continue
		}
		wanted[k]++
		switch n := wanted[k]; {
		case n <= applied[k]:
			c.present = append(c.present, e)
		case held[k] > 0:
		case c.mayBeLost(e):
			e.lost = true
			w.say("lost, and allowed to be: %s %s of %s", e.kind, e.id, e.pc.name)
		default:
			w.fail("lost: %s %s, accepted by %s on %s at %s/%d: %s", e.kind, e.id, e.pc.name, e.at.Format("02 15:04:05"), short(e.where.Epoch), e.where.Seq, e.body)
			return
		}
	}
	for _, e := range w.book.entries { // whatever is applied beyond what was accepted without a doubt
		if k := key(e.pc.store.id, e.kind, e.body); e.doubt {
			if doubted[k]++; e.count != nil && wanted[k]+doubted[k] <= applied[k] {
				c.present = append(c.present, e)
			}
		}
	}
	for _, k := range order {
		if most := wanted[k] + doubted[k]; applied[k] > most || strings.Contains(k, " transaction ") && applied[k] > 1 {
			w.fail("applied %d times, accepted %d times, in doubt %d: %s", applied[k], wanted[k], doubted[k], k)
			return
		}
	}
	c.nothingNamedForNothing()
}

// nothingNamedForNothing checks that where no disk was touched nobody tells of losses.
func (c *checker) nothingNamedForNothing() {
	w := c.w
	if w.trimmed() {
		return
	}
	if len(c.holes) > 0 && !slices.ContainsFunc(w.pcs, func(p *pc) bool { return len(p.taints) > 0 }) {
		w.fail("nothing was damaged, and the ledger was told of losses: %+v", c.holes)
	}
	for _, p := range w.pcs {
		tainted := func(q *pc) bool { return q.store == p.store && len(q.taints) > 0 } // a copy has the damage too
		if len(w.book.damage[p]) > 0 && !slices.ContainsFunc(w.pcs, tainted) {
			w.fail("nothing of %s was damaged, and its journal says %q", p.name, w.book.damage[p])
		}
	}
}

// trimmed says that a ledger which was restored may lack what agents have dropped meanwhile:
// after a fortnight, or to make room on a full disk.
func (w *world) trimmed() bool {
	return w.relay.restores > 0 && (w.s.Gap > 0 || slices.ContainsFunc(w.pcs, func(p *pc) bool { return p.filled }))
}

// mayBeHeld says whether a record may be in quarantine.
func (c *checker) mayBeHeld(q ledger.QuarantinedRecord) bool {
	switch {
	case strings.HasPrefix(q.Reason, "delivered by"), strings.HasPrefix(q.Reason, "came after it was said"):
		return true
	case countedBefore(q):
		return c.mayForget(q.Store)
	}
	return false
}

// mayForget says that a PC of the store may tell once more what it has told.
func (c *checker) mayForget(store string) bool {
	return slices.ContainsFunc(c.w.pcs, func(p *pc) bool { return p.store.id == store && (len(p.taints) > 0 || !p.main) })
}

func countedBefore(q ledger.QuarantinedRecord) bool {
	return strings.Contains(q.Reason, "were counted before")
}

// mayBeLost says whether an entry may be missing in the ledger.
func (c *checker) mayBeLost(e *entry) bool {
	for _, t := range e.pc.taints {
		switch {
		case !e.at.After(t.from) || e.at.After(t.to):
		case t.how == unknown, t.how == named && c.named(e), c.w.relay.restores > 0 && c.holed(e):
			return true
		}
	}
	return c.w.trimmed() && c.holed(e)
}

// holed says whether the ledger was told that an entry is lost.
func (c *checker) holed(e *entry) bool {
	ours := false
	for _, h := range c.holes {
		if h.store != e.origin.Store || h.agent != e.origin.Agent {
			continue
		}
		if h.epoch == e.where.Epoch && h.from <= e.where.Seq && e.where.Seq <= h.to {
			return true
		}
		ours = true
	}
	// A record that was appended again is lost where it stood last.
	return ours && c.w.stats.Forks > 0
}

// named says whether somebody was told that an entry is lost, or that it is not known what is.
func (c *checker) named(e *entry) bool {
	return c.holed(e) || len(c.w.book.damage[e.pc]) > 0
}

// order checks that no epoch begins in the ledger before the one that it seals is complete.
func (c *checker) order() {
	type stream struct {
		store, agent string
		epoch        protocol.Epoch
	}
	type place struct {
		seq uint64
		pos int64
	}
	at := map[stream][]place{}
	for i := range c.records {
		r := &c.records[i]
		key := stream{r.Store, r.Agent, r.Epoch}
		if before := at[key]; len(before) > 0 && before[len(before)-1].seq >= r.Seq {
			c.w.fail("I2: %s/%s/%d is applied behind seq %d", r.Agent, short(r.Epoch), r.Seq, before[len(before)-1].seq)
			return
		}
		at[key] = append(at[key], place{r.Seq, r.Pos})
	}
	for i := range c.records {
		r := &c.records[i]
		if r.Kind != protocol.KindSeal {
			continue
		}
		seal, err := protocol.DecodeSeal(r.Body)
		if err != nil {
			c.w.fail("seal at %d: %v", r.Pos, err)
			return
		}
		if seal.Before == nil || seal.Forked {
			continue
		}
		for _, p := range at[stream{r.Store, r.Agent, seal.Before.Epoch}] {
			if p.seq <= seal.Before.Through && p.pos > r.Pos {
				c.w.fail("I2: epoch %s of %s begins at %d, before the epoch that it seals is complete: record %d of %s is at %d",
					short(r.Epoch), r.Agent, r.Pos, p.seq, short(seal.Before.Epoch), p.pos)
				return
			}
		}
	}
}

// deliveries checks that the receiver was given every record, and each once.
func (c *checker) deliveries() {
	got := map[string]int{}
	for _, id := range c.w.receiver.order {
		d := c.w.receiver.taken[id]
		got[key(d.store, protocol.Kind(d.kind), string(d.body))]++
	}
	for i := range c.records {
		r := &c.records[i]
		if !booked(r.Kind) {
			continue
		}
		k := key(r.Store, r.Kind, string(r.Body))
		if got[k] == 0 {
			c.w.fail("connector: the receiver was never given %s/%s/%d at %d: %s", r.Agent, short(r.Epoch), r.Seq, r.Pos, k)
			return
		}
	}
	wanted := map[string]int{}
	for _, e := range c.w.book.entries {
		wanted[key(e.pc.store.id, e.kind, e.body)] += 1 + e.again
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if got[k] > wanted[k] {
			c.w.fail("connector: the receiver took %d times, under several ids, what was accepted %d times: %s", got[k], wanted[k], k)
			return
		}
	}
}

// settings checks that every agent has what head office says.
func (c *checker) settings() {
	for _, p := range c.w.pcs {
		change, told, err := p.agent.Journal().Lookup(protocol.FeedConfig, protocol.StoreKey)
		if err != nil || !told || string(change.Body) != string(mustJSON(p.store.settings)) {
			c.w.fail("%s has the settings %s (told %v, %v), head office says %s", p.name, change.Body, told, err, mustJSON(p.store.settings))
			return
		}
	}
}
