package ledger_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// A disk is one epoch of an agent as the agent holds it.
type disk struct {
	from    protocol.Origin
	epoch   protocol.Epoch
	before  *disk // nil = the first
	sealed  int   // of before, how many records
	forked  bool
	records []protocol.Record
	hashes  []protocol.Hash // of each record; first the genesis

	through int // what the ledger must have of it
}

// A clone is another disk with the same epoch, equal up to some record.
type clone struct {
	*disk
	of    *disk
	equal int
}

func newDisk(from protocol.Origin, epoch protocol.Epoch) *disk {
	return &disk{from: from, epoch: epoch, hashes: []protocol.Hash{protocol.Genesis(from.Chain, from.Store, from.Agent, epoch)}}
}

func (d *disk) append(r protocol.Record) {
	r.Seq = uint64(len(d.records) + 1)
	d.records = append(d.records, r)
	d.hashes = append(d.hashes, r.Hash(d.hashes[len(d.hashes)-1]))
}

func (d *disk) batch(first, last int) protocol.Batch {
	return protocol.Batch{Epoch: d.epoch, First: uint64(first), Prev: d.hashes[first-1], Records: append([]protocol.Record{}, d.records[first-1:last]...)}
}

func (d *disk) mark() protocol.Mark {
	return protocol.Mark{Epoch: d.epoch, Through: uint64(d.through), Hash: d.hashes[d.through]}
}

// waits says whether the epoch cannot begin yet.
func (d *disk) waits() bool {
	return d.through == 0 && d.before != nil && !d.forked && d.before.through < d.sealed
}

// A draw makes what some agents hold, and then what happens to it.
type draw struct {
	*rapid.T
	t      *testing.T
	chain  string
	calm   bool // no devices: what another agent delivers comes in no order
	epochs int
	sales  int64
	all    []protocol.Transaction
	mono   int64
	clones []clone
}

func (w *draw) chance(percent int, what string) bool {
	return rapid.IntRange(0, 99).Draw(w.T, what) < percent
}

func (w *draw) disks() (disks []*disk) {
	for n := range rapid.IntRange(1, 3).Draw(w.T, "agents") {
		from := protocol.Origin{Chain: w.chain, Store: fmt.Sprint("s", n%2), Agent: fmt.Sprint("pc", n)}
		var before *disk
		for range rapid.IntRange(1, 3).Draw(w.T, "epochs") {
			w.epochs++
			d := newDisk(from, epochOf(w.epochs))
			d.before = before
			var tail []protocol.Record
			var end *protocol.Mark
			if before != nil {
				d.sealed = len(before.records)
				if d.forked = w.chance(40, "fork"); d.forked {
					d.sealed = rapid.IntRange(1, len(before.records)).Draw(w.T, "acknowledged")
					tail = before.records[d.sealed:]
				}
				end = &protocol.Mark{Epoch: before.epoch, Through: uint64(d.sealed), Hash: before.hashes[d.sealed]}
			}
			d.append(seal(w.t, end, d.forked))
			for _, r := range tail {
				if r.Was == nil {
					r.Was = &protocol.Was{Epoch: before.epoch, Seq: r.Seq, SHA256: r.ContentHash()}
				}
				d.append(r)
			}
			for range rapid.IntRange(0, 6).Draw(w.T, "records") {
				d.append(w.record(from.Store))
			}
			disks, before = append(disks, d), d
		}
		if w.chance(30, "clone") {
			disks = append(disks, w.clone(before))
		}
	}
	return disks
}

// clone makes a second disk out of one, which has accepted other records behind some point,
// and gives the epoch to which it appends them when it learns of the first.
func (w *draw) clone(d *disk) *disk {
	c := clone{newDisk(d.from, d.epoch), d, rapid.IntRange(1, len(d.records)).Draw(w.T, "equal")}
	for _, r := range d.records[:c.equal] {
		c.append(r)
	}
	w.epochs++
	forked := newDisk(d.from, epochOf(w.epochs))
	forked.before, forked.sealed, forked.forked = d, c.equal, true
	forked.append(seal(w.t, &protocol.Mark{Epoch: d.epoch, Through: uint64(c.equal), Hash: d.hashes[c.equal]}, true))
	for range rapid.IntRange(1, 3).Draw(w.T, "other records") {
		c.append(w.record(d.from.Store))
		r := c.records[len(c.records)-1]
		forked.append(was(r, d.epoch, r.Seq))
	}
	w.clones = append(w.clones, c)
	return forked
}

// A set holds what the ledger must have applied, each once.
type set map[string]bool

func (s set) add(d *disk, r *protocol.Record) {
	switch {
	case r.Kind == "unknown" || string(r.Body) == string(wrongCount):
	case r.Kind == protocol.KindTransaction:
		s[string(r.Body)] = true
	case r.Was != nil:
		s[fmt.Sprint(d.from, r.Was.Epoch, r.Was.Seq, r.Was.SHA256)] = true
	default:
		s[fmt.Sprint(d.from, d.epoch, r.Seq, r.ContentHash())] = true
	}
}

func (w *draw) record(store string) protocol.Record {
	at := timeOf(w.t, noon)
	var r protocol.Record
	switch what := rapid.IntRange(0, 11).Draw(w.T, "kind"); {
	case what == 0:
		r = record(w.t, protocol.KindFootfall, wrongCount)
	case what == 1:
		r = record(w.t, "unknown", []byte(`{}`))
	case what == 2:
		r = record(w.t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: rapid.Int64Range(0, 9).Draw(w.T, "in"), Quality: protocol.QualityOK})
	case what == 3 && !w.calm:
		r = record(w.t, protocol.KindDevice, protocol.DeviceState{Device: "door", Driver: "x", State: rapid.SampledFrom([]string{protocol.DeviceOnline, protocol.DeviceOffline}).Draw(w.T, "state"), At: at})
	case what == 4 && !w.calm:
		r = record(w.t, protocol.KindDrawer, protocol.DrawerEvent{Drawer: "drawer", Event: rapid.SampledFrom([]string{protocol.DrawerOpened, protocol.DrawerClosed}).Draw(w.T, "event"), Cause: "manual", At: at})
	case what == 5 && len(w.all) > 0:
		if same := w.all[rapid.IntRange(0, len(w.all)-1).Draw(w.T, "same")]; same.Store == store { // two agents read the same till
			r = transaction(w.t, same)
			break
		}
		fallthrough
	default:
		w.sales++
		tr := drawTransaction(w.T, store, w.sales)
		w.all = append(w.all, tr)
		r = transaction(w.t, tr)
	}
	w.mono++
	r.Mono = w.mono
	return r
}

var wrongCount = []byte(`{"counter":""}`) // goes into quarantine

// A subject is the ledger under test, which may crash and be opened again.
type subject struct {
	*ledger.Ledger
	t    testing.TB
	url  string
	fail string // the step that fails next; "" = none

	authority *ca.CA
}

var errCrash = errors.New("crash")

func newSubject(t testing.TB, url string) *subject {
	s := &subject{t: t, url: url}
	var err error
	if s.authority, err = ca.Create(filepath.Join(t.TempDir(), "ca")); err != nil {
		t.Fatal(err)
	}
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *subject) options() ledger.Options {
	return ledger.Options{Inline: true, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Fail: func(step string) error {
		if step == s.fail {
			s.fail = ""
			return errCrash
		}
		return nil
	}}
}

func (s *subject) open() {
	s.t.Helper()
	l, err := ledger.Open(s.t.Context(), s.url, s.options())
	if err != nil {
		s.t.Fatal(err)
	}
	s.Ledger = l
}

func (s *subject) close() {
	if err := s.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *subject) through(w *draw, d *disk) int {
	m, err := s.Marks(w.t.Context(), d.from, protocol.MarksAsk{Epochs: []protocol.Epoch{d.epoch}})
	if err != nil {
		w.Fatal(err)
	}
	if n := m.Marks[0].Through; n > uint64(len(d.records)) || m.Marks[0].Hash != d.hashes[n] {
		w.Fatalf("%s/%s: mark %+v is not of the agent's records", d.from, d.epoch, m.Marks[0])
	}
	return int(m.Marks[0].Through)
}

// send commits a batch and compares the answer with what it must be.
func (s *subject) send(w *draw, d *disk, first, last int) {
	w.Helper()
	got, err := s.Commit(w.t.Context(), d.from, d.batch(first, last))
	if errors.Is(err, errCrash) {
		s.close()
		s.open()
		// An ack before is kept; of this batch all is stored, or nothing.
		switch n := s.through(w, d); {
		case n == max(d.through, last) && first <= d.through+1:
			d.through = n
		case n != d.through:
			w.Fatalf("%s/%s: %d records after a crash, want %d or %d", d.from, d.epoch, n, d.through, last)
		}
		return
	}
	if err != nil {
		w.Fatal(err)
	}
	want := protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: got.Incarnation}
	of := d
	switch {
	case first > d.through+1:
		want.Verdict = protocol.VerdictGap
	case d.waits():
		want.Verdict, of = protocol.VerdictGap, d.before
	default:
		d.through = max(d.through, last)
	}
	mark := of.mark()
	want.Epoch, want.Through, want.Hash = mark.Epoch, mark.Through, mark.Hash
	if got != want {
		w.Fatalf("%d..%d of %s/%s: %+v, want %+v", first, last, d.from, d.epoch, got, want)
	}
}

// clash sends a stretch of a clone, where the ledger has the other disk's records.
func (s *subject) clash(w *draw) {
	w.Helper()
	if len(w.clones) == 0 {
		return
	}
	c := w.clones[rapid.IntRange(0, len(w.clones)-1).Draw(w.T, "which clone")]
	if c.of.through <= c.equal {
		return
	}
	first := rapid.IntRange(1, len(c.records)).Draw(w.T, "first")
	last := rapid.IntRange(first, len(c.records)).Draw(w.T, "last")
	want := protocol.VerdictFork
	switch {
	case first > c.of.through+1:
		want = protocol.VerdictGap
	case last <= c.equal:
		want = protocol.VerdictAck
	}
	got, err := s.Commit(w.t.Context(), c.from, c.batch(first, last))
	if err != nil || got.Verdict != want || got.Through != uint64(c.of.through) {
		w.Fatalf("%d..%d of a clone of %s/%s that is equal up to %d: %+v, %v, want %s", first, last, c.from, c.epoch, c.equal, got, err, want)
	}
}

// rest sends what the ledger lacks, in order.
func (s *subject) rest(w *draw, disks []*disk) {
	w.Helper()
	for _, d := range disks {
		if n := len(d.records); d.through < n {
			if s.send(w, d, d.through+1, n); d.through < n {
				w.Fatalf("%s/%s stands at %d, want %d", d.from, d.epoch, d.through, n)
			}
		}
	}
}

// aside lets another agent deliver records, and a person have all that waits applied.
func (s *subject) aside(w *draw, disks []*disk, d *disk, first, last int) {
	w.Helper()
	by := disks[0].from
	if by == d.from {
		by = protocol.Origin{Chain: by.Chain, Store: by.Store, Agent: "drain"}
	}
	b := d.batch(first, last)
	b.Of = &d.from
	got, err := s.Commit(w.t.Context(), by, b)
	if err != nil || got.Verdict != protocol.VerdictAck || got.Through != uint64(last) || got.Hash != d.hashes[last] {
		w.Fatalf("%d..%d of %s/%s by %s: %+v, %v", first, last, d.from, d.epoch, by, got, err)
	}
	waiting, err := s.Quarantined(w.t.Context(), w.chain, 1000)
	if err != nil {
		w.Fatal(err)
	}
	for _, q := range waiting {
		if strings.HasPrefix(q.Reason, "delivered by ") {
			if err := s.RetryQuarantined(w.t.Context(), w.chain, q.ID); err != nil && !strings.Contains(err.Error(), ": kind: ") && !strings.Contains(err.Error(), ": counter: ") {
				w.Fatal(err)
			}
		}
	}
}

// counts wants every record of the disks applied once.
func (s *subject) counts(w *draw, disks []*disk) {
	w.Helper()
	all := set{}
	for _, d := range disks {
		for i := range d.records {
			all.add(d, &d.records[i])
		}
	}
	s.count(w, len(all))
}

func (s *subject) count(w *draw, want int) {
	w.Helper()
	got, after := 0, int64(0)
	for {
		page, err := s.Records(w.t.Context(), w.chain, after, 1000)
		if err != nil {
			w.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		got, after = got+len(page), page[len(page)-1].Pos
	}
	if got != want {
		w.Fatalf("%d records are applied, want %d", got, want)
	}
}

func (s *subject) digest(w *draw) protocol.Hash {
	w.Helper()
	found, err := s.Recount(w.t.Context(), w.chain)
	if err != nil || len(found) > 0 {
		w.Fatalf("the live tables are not what the records give: %v, %v", found, err)
	}
	if found, err := findings(s.Ledger, ledger.AuditOptions{TrustAlarms: true, Chain: w.chain, Roots: s.authority.Roots()}); err != nil || len(found) > 0 {
		w.Fatalf("an audit finds %v, %v", found, err)
	}
	digest, err := s.Digest(w.t.Context(), w.chain)
	if err != nil {
		w.Fatal(err)
	}
	return digest
}

// property checks runs of random worlds. Each run has a chain of its own in both ledgers.
func property(t *testing.T, run func(w *draw, s *subject, disks []*disk), calm bool) {
	both(t, func(t *testing.T, url string) {
		s, orderly := newSubject(t, url), newSubject(t, sqliteURL(t))
		runs := 0
		share(t, url)
		rapid.Check(t, func(rt *rapid.T) {
			runs++
			w := &draw{T: rt, t: t, chain: fmt.Sprint("c", runs), calm: calm}
			disks := w.disks()
			run(w, s, disks)
			got := s.digest(w)
			s.counts(w, disks)
			for _, d := range disks {
				d.through = 0
			}
			orderly.rest(w, disks)
			if want := orderly.digest(w); got != want {
				rt.Fatalf("digest %s, want %s as when all came in order", got, want)
			}
		})
		checkHashes(t, url)
		auditUntouched(t, s.Ledger, url)
	})
}

// share makes a part of rapid's number of runs, which are big and, on a server, wait for the
// disk.
func share(t *testing.T, url string) {
	checks := flag.Lookup("rapid.checks")
	all := checks.Value.String()
	n, err := strconv.Atoi(all)
	if err != nil {
		t.Fatal(err)
	}
	percent := 40
	if strings.HasPrefix(url, "postgres") {
		percent = 15
	}
	if err := checks.Value.Set(strconv.Itoa(max(n*percent/100, 1))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := checks.Value.Set(all); err != nil {
			t.Error(err)
		}
	})
}

func (w *draw) stretch(disks []*disk) (d *disk, first, last int) {
	d = disks[rapid.IntRange(0, len(disks)-1).Draw(w.T, "disk")]
	first = rapid.IntRange(1, len(d.records)).Draw(w.T, "first")
	return d, first, rapid.IntRange(first, len(d.records)).Draw(w.T, "last")
}

// Any order of any stretches, with repeats, gives the same state as one after the other; and
// no answer and no mark tells of anything above a gap.
func TestI1AndI2AnyOrderWithRepeatsGivesTheSameState(t *testing.T) {
	property(t, func(w *draw, s *subject, disks []*disk) {
		for range rapid.IntRange(0, 30).Draw(w.T, "sends") {
			d, first, last := w.stretch(disks)
			s.send(w, d, first, last)
			if w.chance(20, "clash") {
				s.clash(w)
			}
		}
		s.rest(w, disks)
	}, false)
}

// Nor does it matter who delivers a record, when each is delivered in the end.
func TestI1WhoeverDeliversGivesTheSameState(t *testing.T) {
	property(t, func(w *draw, s *subject, disks []*disk) {
		for range rapid.IntRange(0, 20).Draw(w.T, "sends") {
			d, first, last := w.stretch(disks)
			if w.chance(20, "clash") {
				s.clash(w)
			}
			if w.chance(50, "aside") {
				s.aside(w, disks, d, first, last)
			} else {
				s.send(w, d, first, last)
			}
		}
		s.rest(w, disks)
	}, true)
}

// What was acknowledged is there after a crash at any step; of what was not, all or nothing.
func TestI12ACrashNeverTakesBackAnAck(t *testing.T) {
	property(t, func(w *draw, s *subject, disks []*disk) {
		for range rapid.IntRange(0, 20).Draw(w.T, "sends") {
			d, first, last := w.stretch(disks)
			s.fail = rapid.SampledFrom([]string{"", "", "", "", ledger.StepBegin, ledger.StepWritten, ledger.StepCommitted}).Draw(w.T, "crash")
			s.send(w, d, first, last)
			s.fail = ""
			for _, d := range disks {
				if n := s.through(w, d); n != d.through {
					w.Fatalf("%s/%s stands at %d, want %d", d.from, d.epoch, n, d.through)
				}
			}
		}
		s.rest(w, disks)
	}, false)
}

// An older backup is restored, again and again: what agents resend beyond its marks makes it
// what it would have been.
func TestARestoredLedgerComesToTheSameState(t *testing.T) {
	s, orderly := newSubject(t, sqliteURL(t)), newSubject(t, sqliteURL(t))
	runs := 0
	share(t, s.url)
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		w := &draw{T: rt, t: t, chain: fmt.Sprint("c", runs)}
		disks := w.disks()
		var backups []string
		var incarnation int64
		for range rapid.IntRange(0, 15).Draw(rt, "sends") {
			d, first, last := w.stretch(disks)
			s.send(w, d, first, last)
			switch rapid.IntRange(0, 5).Draw(rt, "then") {
			case 0:
				path := filepath.Join(t.TempDir(), "backup.db")
				if err := s.Backup(t.Context(), path); err != nil {
					rt.Fatal(err)
				}
				backups = append(backups, path)
			case 1:
				if len(backups) == 0 {
					break
				}
				s.close()
				done, err := ledger.Restore(t.Context(), s.url, rapid.SampledFrom(backups).Draw(rt, "backup"), nil, s.options())
				if err != nil {
					rt.Fatal(err)
				}
				if done.Incarnation <= incarnation {
					rt.Fatalf("incarnation %d after %d", done.Incarnation, incarnation)
				}
				incarnation = done.Incarnation
				s.open()
				for _, d := range disks {
					if d.through = s.through(w, d); d.waits() && d.through > 0 {
						rt.Fatalf("%s/%s is there before its predecessor", d.from, d.epoch)
					}
				}
			}
		}
		s.rest(w, disks)
		got := s.digest(w)
		s.counts(w, disks)
		for _, d := range disks {
			d.through = 0
		}
		orderly.rest(w, disks)
		if want := orderly.digest(w); got != want {
			rt.Fatalf("digest %s, want %s as when all came in order", got, want)
		}
	})
	checkHashes(t, s.url)
	auditUntouched(t, s.Ledger, s.url)
}
