package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// rebuilt checks I11, that the live tables are what the records give, and the audit, which
// trusts nothing but what agents have signed.
func (c *checker) rebuilt() {
	l := c.w.relay.ledger
	differences, err := l.Recount(c.w.ctx(), chain)
	if err != nil || len(differences) > 0 {
		c.w.fail("I11: rebuilt from the records: %v, %v", differences, err)
		return
	}
	// A disk that went back or lives twice may leave seals for which alarms alone speak.
	disks := slices.ContainsFunc(c.w.stores, func(s *store) bool { return s.copy != nil || len(s.pc.taints) > 0 })
	// A ledger that was put back may have lost a former agent's certificate.
	former := c.w.relay.restores > 0 && slices.ContainsFunc(c.w.stores, func(s *store) bool { return s.pc.former != nil })
	report, err := l.Audit(c.w.ctx(), ledger.AuditOptions{Chain: chain, Roots: c.w.relay.ca.Roots(), TrustAlarms: disks || former})
	if err != nil || len(report.Findings) > 0 {
		c.w.fail("audit: %v, %v", report.Findings, err)
		return
	}
	c.w.say("audit: %d streams, %d records, %d marks, %d certificates, %d holes", report.Streams, report.Records, report.Marks, report.Certificates, report.Holes)
}

// anyOrder checks I1: a fresh ledger that is fed the same records in another order, in other
// groups and with repeats comes to the same.
func (c *checker) anyOrder() {
	w := c.w
	want, err := w.relay.ledger.Digest(w.ctx(), chain)
	if err != nil {
		w.fail("digest: %v", err)
		return
	}
	w.say("ledger: digest %s", want)
	if slices.ContainsFunc(w.stores, func(s *store) bool { return s.shop.Counters > 0 && (s.copy != nil || len(s.pc.taints) > 0) }) {
		return // of two counts of the same people the ledger holds back the second, whichever that is
	}
	l, err := ledger.Open(w.ctx(), "sqlite:"+filepath.Join(w.dir, "again.db"), ledger.Options{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }, Inline: true})
	if err != nil {
		w.fail("harness: second ledger: %v", err)
		return
	}
	f := feeder{w: w, l: l, r: w.random("order", 0)}
	f.feed(w.relay.committed)
	got, err := l.Digest(w.ctx(), chain)
	if err == nil && got != want && w.failed == nil {
		var other []ledger.StoredRecord
		other, err = w.read(l)
		w.fail("I1: the ledger has digest %s, one that was fed the same records in another order %s: %s", want, got, compare(c.records, other))
	}
	if err = errors.Join(err, l.Close()); err != nil {
		w.fail("harness: second ledger: %v", err)
	}
}

// compare says which records one ledger has and the other not.
func compare(a, b []ledger.StoredRecord) string {
	name := func(r *ledger.StoredRecord) string {
		at := protocol.Position{Epoch: r.Epoch, Seq: r.Seq}
		if r.Was != nil {
			at = protocol.Position{Epoch: r.Was.Epoch, Seq: r.Was.Seq}
		}
		return fmt.Sprintf("%s of %s/%s first at %s/%d: %.300s", r.Kind, r.Store, r.Agent, short(at.Epoch), at.Seq, r.Body)
	}
	n := map[string]int{}
	for i := range a {
		n[name(&a[i])]++
	}
	for i := range b {
		n[name(&b[i])]--
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(n)) {
		if n[k] != 0 {
			out = append(out, fmt.Sprintf("%+d %s", n[k], k))
		}
	}
	return strings.Join(out, "\n")
}

// A feeder brings committed batches to a ledger in another order.
type feeder struct {
	w *world
	l *ledger.Ledger
	r *rand.Rand
}

// feed brings what was committed: each stream in its own order, the streams mixed, the batches
// cut anew, and some of them again.
func (f *feeder) feed(all []committed) {
	lines := map[stream][]committed{}
	var order []stream
	for _, c := range all {
		key := stream{c.from, c.batch.Epoch}
		if lines[key] == nil {
			order = append(order, key)
		}
		lines[key] = append(lines[key], f.cut(c)...)
	}
	refused := 0
	for len(order) > 0 && f.w.failed == nil {
		i := f.r.IntN(len(order))
		line := lines[order[i]]
		c := line[0]
		answer, err := f.l.Commit(f.w.ctx(), c.from, c.batch)
		switch {
		case err != nil:
			f.w.fail("harness: second ledger: %v", err)
		case answer.Verdict == protocol.VerdictAck:
			if refused = 0; f.r.IntN(6) > 0 { // else it comes again
				lines[order[i]] = line[1:]
			}
		case answer.Verdict == protocol.VerdictGap: // its turn comes when the epoch before is there
			if refused++; refused > 1000*len(order) {
				f.w.fail("I1: in another order %s of %s cannot be committed: %+v", short(c.batch.Epoch), c.from, answer)
			}
		default:
			f.w.fail("I1: in another order %s of %s is answered %+v", short(c.batch.Epoch), c.from, answer)
		}
		if len(lines[order[i]]) == 0 {
			order = slices.Delete(order, i, i+1)
		}
	}
}

// cut makes two batches of one.
func (f *feeder) cut(c committed) []committed {
	n := len(c.batch.Records)
	if n < 2 || c.batch.Skip != nil || f.r.IntN(2) == 0 {
		return []committed{c}
	}
	at := 1 + f.r.IntN(n-1)
	head, tail := c, c
	head.batch.Records, tail.batch.Records = c.batch.Records[:at], c.batch.Records[at:]
	tail.batch.First = c.batch.First + uint64(at)
	for _, r := range head.batch.Records {
		tail.batch.Prev = r.Hash(tail.batch.Prev)
	}
	return []committed{head, tail}
}

// certificate is the part of a day's certificate that is looked at.
type certificate struct {
	State   string          `json:"state"`
	Reasons []ledger.Reason `json:"reasons"`
}

// certify asks for the certificate of a store's day; false while there is none to be had.
func (w *world) certify(s *store, day protocol.Day) (c certificate, ok bool) {
	if !w.relay.up {
		return c, false
	}
	file, err := w.relay.ledger.DayCertificate(w.ctx(), chain, s.id, day, 0)
	var signed ledger.SignedCertificate
	if err == nil {
		err = json.Unmarshal(file, &signed)
	}
	if err == nil {
		err = json.Unmarshal(signed.Certificate, &c)
	}
	if err != nil {
		w.fail("certificate of store %s for %s: %v", s.id, day, err)
		return c, false
	}
	w.say("certificate of store %s for %s: %s %v", s.id, day, c.State, c.Reasons)
	return c, true
}

// askForCertificate is somebody in head office who wants to know of a day in the middle of
// everything: what is called complete must be.
func (w *world) askForCertificate(s *store, day protocol.Day) {
	c, ok := w.certify(s, day)
	if !ok || c.State != ledger.DayComplete || s.copy != nil || s.newRule || len(s.pc.taints) > 0 {
		return
	}
	if s.pc.former != nil && w.relay.restores > 0 {
		return // a ledger put back to before it knew the former agent expects nothing of it, until the folder is drained again
	}
	ended := s.rule().Start(day.AddDays(1))
	there := map[string]bool{}
	for after := int64(0); ; {
		page, err := w.relay.ledger.RecordsOf(w.ctx(), chain, s.id, "", day, after, 1000)
		if err != nil {
			w.fail("records of %s: %v", day, err)
			return
		}
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			there[key(r.Store, r.Kind, string(r.Body))] = true
		}
		after = page[len(page)-1].Pos
	}
	for _, e := range w.book.entries {
		if e.pc.store == s && e.day == day && !e.doubt && e.at.Before(ended) && !there[key(s.id, e.kind, e.body)] {
			w.fail("certificate of store %s for %s says complete, and %s %s, accepted at %s, is not in the ledger", s.id, day, e.kind, e.id, e.at)
			return
		}
	}
}

// certificates checks at the end that whole days are certified whole, and days with losses
// are not.
func (c *checker) certificates() {
	w := c.w
	for i, s := range w.stores {
		for n := range w.s.Days {
			day := s.rule().Day(w.s.opens(i, n))
			got, ok := w.certify(s, day)
			if !ok {
				return
			}
			lost := slices.ContainsFunc(w.book.entries, func(e *entry) bool { return e.pc.store == s && e.day == day && e.lost && c.missed(e) })
			if lost && got.State == ledger.DayComplete {
				w.fail("certificate of store %s for %s says complete, and something of it is lost", s.id, day)
				return
			}
			if s.undisturbed() && c.traded(s, day) && got.State != ledger.DayComplete {
				w.fail("certificate of store %s for %s says incomplete, and nothing is amiss: %v", s.id, day, got.Reasons)
				return
			}
		}
	}
}

// missed says that somebody can know of a lost entry: by an earlier and a later number of its
// till. The people of a lost count are in the counter's next.
func (c *checker) missed(e *entry) bool {
	earlier, later := false, false
	for _, p := range c.present {
		if e.sale != nil && p.sale != nil && p.pc.store == e.pc.store && p.id.Workstation == e.id.Workstation {
			earlier = earlier || p.id.Sequence < e.id.Sequence
			later = later || p.id.Sequence > e.id.Sequence
		}
	}
	return earlier && later
}

// undisturbed says that nothing has happened to a store which may make a day incomplete.
func (s *store) undisturbed() bool {
	p := s.pc
	badClock := p.lostTime || s.badClock
	return s.copy == nil && len(p.taints) == 0 && !p.revoked && !s.newRule && (!badClock || s.shop.Counters == 0) && !s.w.trimmed()
}

// traded says that each till of a store has sold something on a day.
func (c *checker) traded(s *store, day protocol.Day) bool {
	sold := map[string]bool{}
	for _, e := range c.present {
		if e.pc.store == s && e.sale != nil && e.day == day {
			sold[e.id.Workstation] = true
		}
	}
	return len(sold) == len(s.pc.tills)
}
