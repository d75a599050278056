package ledger

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// An entry is one record of a stream as the database holds it, in whichever table.
type entry struct {
	seq    uint64
	table  string // records, duplicates, quarantined
	pos    int64  // in the chain's order; 0 = it was not applied
	hash   []byte // as stored
	record *protocol.Record
	lost   bool   // an older version kept no content of duplicates: there is only the hash
	fault  string // why the row is no record as we write it; "" = it is one
	said   said
}

// What the tables say beside the record itself.
type said struct {
	store, kind, day   string
	businessDay, types string // of transactions
	number, voided     int64  // of transactions; 0 and -1 = null
	cause, reason      string // of what was not applied
}

// A gap is a named hole of a stream: records that were accepted once and that the agent does
// not hold any more.
type gap struct {
	store, agent string
	epoch        protocol.Epoch
	first, last  uint64
	hash         []byte // of the record last; empty = the stream did not move over it
	reason       string
	day          string         // of the record before it; "" = none is known
	seal         *protocol.Seal // that was lost with record 1; nil = it is not known
	received     int64
}

// moved says that the stream moved over the hole; otherwise it was only told of.
func (g *gap) moved() bool { return len(g.hash) == len(protocol.Hash{}) }

// inside says whether a position is in a hole, where no hash is known.
func inside(gaps []gap, seq uint64) bool {
	return slices.ContainsFunc(gaps, func(g gap) bool { return g.moved() && g.first <= seq && seq < g.last })
}

// A reader reads streams of one chain in one snapshot, a window of records at a time.
type reader struct {
	q  querier
	id int64 // of the chain
}

// window is how many records are held in memory.
const window = 500

// entries gives the records first..last of a stream that are there, in order.
func (r reader) entries(ctx context.Context, s *stream, first, last uint64) ([]entry, error) {
	args := []any{r.id, s.id, int64(first), int64(last)}
	all, err := ask(ctx, r.q, `SELECT seq, pos, store, kind, at, mono, day, hash, body, was,
		coalesce(business_day, ''), coalesce(type, ''), coalesce(number, 0), coalesce(voided, -1)
		FROM records WHERE chain = $1 AND stream = $2 AND seq BETWEEN $3 AND $4`, args, scanEntry)
	if err != nil {
		return nil, fmt.Errorf("records %d..%d of %s: %w", first, last, s, err)
	}
	duplicates, err := ask(ctx, r.q, "SELECT seq, hash, record, reason FROM duplicates WHERE chain = $1 AND stream = $2 AND seq BETWEEN $3 AND $4", args,
		func(row scanner, p *entry) error {
			var seq int64
			var text []byte
			p.table = "duplicates"
			err := row.Scan(&seq, &p.hash, &text, &p.said.reason)
			p.seq, p.lost = uint64(seq), text == nil
			if !p.lost {
				p.decode(text)
			}
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("duplicates %d..%d of %s: %w", first, last, s, err)
	}
	quarantined, err := ask(ctx, r.q, `SELECT seq, kind, day, cause, reason, hash, record FROM quarantined
		WHERE chain = $1 AND stream = $2 AND seq BETWEEN $3 AND $4 AND store = $5 AND agent = $6 AND epoch = $7`,
		append(args, s.key.store, s.key.agent, string(s.key.epoch)),
		func(row scanner, p *entry) error {
			var seq int64
			var text []byte
			p.table = "quarantined"
			err := row.Scan(&seq, &p.said.kind, &p.said.day, &p.said.cause, &p.said.reason, &p.hash, &text)
			p.seq = uint64(seq)
			p.decode(text)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("quarantined records %d..%d of %s: %w", first, last, s, err)
	}
	all = append(append(all, duplicates...), quarantined...)
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.seq, b.seq) })
	return all, nil
}

func scanEntry(row scanner, p *entry) error {
	r := &protocol.Record{}
	var seq int64
	var was []byte
	p.table = "records"
	err := row.Scan(&seq, &p.pos, &p.said.store, (*string)(&r.Kind), &r.At, &r.Mono, &p.said.day, &p.hash, &r.Body, &was,
		&p.said.businessDay, &p.said.types, &p.said.number, &p.said.voided)
	if err != nil {
		return err
	}
	p.seq, r.Seq, p.said.kind = uint64(seq), uint64(seq), string(r.Kind)
	if p.fault = p.readColumns(r, was); p.fault == "" {
		p.record = r
	}
	return nil
}

// readColumns reads the record's day and was, and says what is wrong with them.
func (p *entry) readColumns(r *protocol.Record, was []byte) (fault string) {
	var err error
	if r.Day, err = parseDay(p.said.day); err != nil {
		return "day: " + err.Error()
	}
	if was == nil {
		return ""
	}
	r.Was = &protocol.Was{}
	if err := json.Unmarshal(was, r.Was); err != nil {
		return "was: " + err.Error()
	}
	if again, err := json.Marshal(r.Was); err != nil || !bytes.Equal(again, was) {
		return "was: is not written as we write it"
	}
	return ""
}

// decode reads a record that was kept as JSON. Other bytes of the same meaning are not what
// we wrote.
func (p *entry) decode(text []byte) {
	r := &protocol.Record{}
	switch err := json.Unmarshal(text, r); {
	case err != nil:
		p.fault = "it cannot be read: " + err.Error()
	case r.Seq != p.seq:
		p.fault = fmt.Sprintf("its text says that it is record %d", r.Seq)
	case !bytes.Equal(r.AppendJSON(nil), text):
		p.fault = "it is not written as we write it"
	default:
		p.record = r
	}
}

func (s *stream) String() string {
	return fmt.Sprintf("epoch %s of agent %s", s.key.epoch, s.key.agent)
}

// The kinds of what is wrong with a stream.
const (
	wrongChanged  = "changed"
	wrongMissing  = "missing"
	wrongInserted = "inserted"
	wrongSwapped  = "swapped"
)

// A wrong is the first thing in a stream that is not as its agent sent it.
type wrong struct {
	kind      string
	seq, last uint64 // last > seq: a stretch
	pos       int64  // 0 = it has none
	what      string
}

// A follower recomputes the hashes of a stream, record by record, and compares them with what
// is stored. Behind something wrong it goes on from the stored hash.
type follower struct {
	seq   uint64 // of the last record or hole
	hash  protocol.Hash
	known bool // hash is; behind missing records it is not
	gaps  []gap

	first *wrong
	base  protocol.Hash  // before the first record that is wrong
	bad   *entry         // that record
	other *protocol.Hash // of the record just taken, as computed, where another is stored
}

// follow recomputes the hashes of a stream from behind a record whose hash is given, through
// record to. Visit, if not nil, sees each record with the hash of the stream there.
func (r reader) follow(ctx context.Context, s *stream, from protocol.Mark, to uint64, gaps []gap, visit func(*entry, protocol.Hash) error) (*follower, error) {
	f := &follower{seq: from.Through, hash: from.Hash, known: true, gaps: gaps}
	for f.seq < to {
		if f.skip() {
			continue
		}
		found, err := r.entries(ctx, s, f.seq+1, min(f.seq+window, to))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			next, err := r.next(ctx, s, f.seq+1, to)
			if err != nil {
				return nil, err
			}
			f.reach(next)
			continue
		}
		for i := range found {
			p := &found[i]
			f.take(p)
			if visit == nil {
				continue
			}
			if err := visit(p, f.hash); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// next is the seq of the first record at or behind seq, at most to+1.
func (r reader) next(ctx context.Context, s *stream, seq, to uint64) (uint64, error) {
	next := to + 1
	for _, table := range []string{"records", "duplicates", "quarantined"} {
		var at *int64
		err := r.q.QueryRowContext(ctx, "SELECT min(seq) FROM "+table+" WHERE chain = $1 AND stream = $2 AND seq >= $3", r.id, s.id, int64(seq)).Scan(&at)
		if err != nil {
			return 0, fmt.Errorf("next record of %s: %w", s, err)
		}
		if at != nil {
			next = min(next, uint64(*at))
		}
	}
	return next, nil
}

// skip steps over a hole that begins behind the last record.
func (f *follower) skip() bool {
	for i := range f.gaps {
		if g := &f.gaps[i]; g.first == f.seq+1 && g.moved() {
			f.seq, f.hash, f.known, f.other = g.last, protocol.Hash(g.hash), true, nil
			return true
		}
	}
	return false
}

// reach notes as missing what lies before seq and in no hole.
func (f *follower) reach(seq uint64) {
	for f.seq+1 < seq {
		if f.skip() {
			continue
		}
		end := seq - 1
		for _, g := range f.gaps {
			if g.first > f.seq && g.first <= end && g.moved() {
				end = g.first - 1
			}
		}
		f.wrong(wrong{kind: wrongMissing, seq: f.seq + 1, last: end, what: "stands in no table"})
		f.seq, f.known, f.other = end, false, nil
	}
}

func (f *follower) wrong(w wrong) {
	if f.first == nil {
		f.first = &w
	}
}

// take compares one record.
func (f *follower) take(p *entry) {
	f.reach(p.seq)
	f.skip() // a hole that begins where this record stands
	if p.seq <= f.seq {
		f.wrong(wrong{kind: wrongInserted, seq: p.seq, last: p.seq, pos: p.pos, what: "stands a second time, in " + p.table + ", or in a hole"})
		return
	}
	var stored protocol.Hash
	fits := len(p.hash) == len(stored)
	copy(stored[:], p.hash)
	computed, base := stored, f.hash
	switch {
	case p.record == nil && !p.lost:
		fits = false
	case p.record != nil && f.known:
		if f.other != nil && p.record.Hash(*f.other) == stored && f.bad.seq == f.seq { // it was the hash alone
			f.first.what, base, f.bad = hashAlone, *f.other, nil
		}
		computed = p.record.Hash(base)
		fits = fits && computed == stored && p.fault == ""
	}
	f.seq, f.hash, f.known, f.other = p.seq, stored, true, nil
	if fits {
		return
	}
	if f.first == nil {
		f.bad, f.base = p, base
		f.wrong(wrong{kind: wrongChanged, seq: p.seq, last: p.seq, pos: p.pos, what: cmp.Or(p.fault, "its content is not what the hash stored with it is of")})
		if p.record != nil {
			f.other = &computed
		}
		return
	}
	f.compare(p, stored)
}

// ends compares where the records end with what the stream's own row says.
func (f *follower) ends(s *stream) {
	switch {
	case f.seq != s.through || !f.known || f.hash == s.hash:
	case f.other != nil && *f.other == s.hash:
		f.first.what = hashAlone
	default:
		f.wrong(wrong{kind: wrongChanged, seq: s.through, last: s.through, what: "has another hash than the row of its stream says"})
	}
}

const hashAlone = "has its content, and another hash is stored with it"

// compare looks whether a record that is wrong explains the first one that is.
func (f *follower) compare(p *entry, stored protocol.Hash) {
	if f.bad == nil || f.bad.record == nil || p.record == nil || f.first.kind != wrongChanged {
		return
	}
	there := *p.record
	there.Seq = f.bad.seq
	hash := there.Hash(f.base)
	if bytes.Equal(hash[:], f.bad.hash) {
		f.first.kind, f.first.what = wrongSwapped, fmt.Sprintf("stands where record %d belongs, and that one here", p.seq)
		return
	}
	if hash != stored {
		return
	}
	here := *f.bad.record
	here.Seq = p.seq
	if p.seq == f.bad.seq+1 && here.Hash(stored) != protocol.Hash(f.bad.hash) {
		f.first.kind, f.first.what = wrongInserted, "was never sent: the records behind it belong one place before theirs"
		return
	}
	f.first.kind, f.first.what = wrongSwapped, fmt.Sprintf("stands where record %d belongs, and that one here", p.seq)
}

// committed gives the hash of a stream at a seq as it is stored; false when there is nothing.
func (r reader) committed(ctx context.Context, s *stream, seq uint64, gaps []gap) (protocol.Hash, bool, error) {
	if seq == s.through {
		return s.hash, true, nil
	}
	for _, g := range gaps {
		if g.last == seq && g.moved() {
			return protocol.Hash(g.hash), true, nil
		}
	}
	found, err := r.entries(ctx, s, seq, seq)
	if err != nil || len(found) == 0 || len(found[0].hash) != len(protocol.Hash{}) {
		return protocol.Hash{}, false, err
	}
	return protocol.Hash(found[0].hash), true, nil
}
