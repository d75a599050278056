package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
	"github.com/storelay/storelay/relay/ca"
)

// A heardMark is a day mark that the ledger has.
type heardMark struct {
	MarkOfDay
	day         protocol.Day
	certificate []byte    // SHA-256
	received    time.Time // zero = its record is gone
	pos         int64

	before  *heardMark // the newest mark of an earlier day
	passed  []stretch  // what lies between the two, as far as it was followed
	reached bool       // it was followed to the mark before
}

// A stretch is the records (from, to] of a stream.
type stretch struct {
	key      streamKey
	from, to uint64
}

// covers says whether a hole lies between the mark and that of the day before; known is false
// when the marks do not tell.
func (m *heardMark) covers(g *gap) (covered, known bool) {
	in := slices.ContainsFunc(m.passed, func(s stretch) bool { return s.key.epoch == g.epoch && s.from < g.first && g.last <= s.to })
	if in {
		return true, m.before != nil && m.before.day == m.day.AddDays(-1)
	}
	return false, m.reached
}

// maxAhead is how far a PC's clock may be ahead of the relay's for its marks to count: an agent
// that knows so much does not mark.
const maxAhead = 24 * time.Hour

// early says that the agent marked a day before it had ended: the mark came before that, or its
// agent's clock was ahead when it was made. When a mark came whose record is gone nobody knows.
func (d *dayCheck) early(ctx context.Context, m *heardMark, agent string) (bool, error) {
	if m.received.Before(d.rule.Start(m.day.AddDays(1))) {
		return true, nil
	}
	if m.day != d.day {
		return false, nil // it speaks for no other day
	}
	for _, s := range d.streams[agent] {
		if s.key.epoch != m.Epoch {
			continue
		}
		found, err := d.entries(ctx, s, m.Seq, m.Seq)
		if err != nil {
			return false, err
		}
		return len(found) > 0 && found[0].record != nil && found[0].record.Time().After(m.received.Add(maxAhead)), nil
	}
	return false, nil
}

// marksOf gives an agent's newest mark of the day and, behind before, the newest of the days
// before that came before it. Without one it says why there is none.
func (d *dayCheck) marksOf(ctx context.Context, agent string) (mark *heardMark, none string, err error) {
	// The 400 days are as far back as an agent that was off marks its days (agent/core).
	found, err := ask(ctx, d.q, `SELECT m.day, m.epoch, m.seq, m.head_epoch, m.head_seq, m.head_hash, m.certificate, m.signature,
			coalesce(r.pos, 0), coalesce(r.received, 0), coalesce(c.der, $6)
		FROM day_marks m
		LEFT JOIN streams s ON s.chain = m.chain AND s.store = m.store AND s.agent = m.agent AND s.epoch = m.epoch
		LEFT JOIN records r ON r.chain = s.chain AND r.stream = s.id AND r.seq = m.seq
		LEFT JOIN agent_certificates c ON c.chain = m.chain AND c.sha256 = m.certificate
		WHERE m.chain = $1 AND m.store = $2 AND m.agent = $3 AND m.day BETWEEN $4 AND $5`,
		[]any{d.id, d.store, agent, d.day.AddDays(-400).String(), d.day.String(), []byte{}}, scanMark)
	if err != nil {
		return nil, "", fmt.Errorf("day marks of agent %s: %w", agent, err)
	}
	none = "no mark of this day, so what it accepted may not be all here"
	if slices.ContainsFunc(found, func(m *heardMark) bool { return m.day == d.day }) {
		none = "marked before the day ended, so what it accepted since may not be all here"
	}
	var errs []error
	found = slices.DeleteFunc(found, func(m *heardMark) bool {
		early, err := d.early(ctx, m, agent)
		errs = append(errs, err)
		return early
	})
	if err := errors.Join(errs...); err != nil {
		return nil, "", fmt.Errorf("day marks of agent %s: %w", agent, err)
	}
	// One that was brought by hand, beside its agent's streams, is older than it stands.
	origin := protocol.Origin{Chain: d.chain, Store: d.store, Agent: agent}
	aside := asideEpoch(origin)
	age := func(m *heardMark) int64 {
		if m.Epoch == aside {
			return 0
		}
		return m.pos
	}
	slices.SortFunc(found, func(a, b *heardMark) int {
		return cmp.Or(strings.Compare(b.day.String(), a.day.String()), cmp.Compare(age(b), age(a)))
	})
	if len(found) == 0 || found[0].day != d.day {
		return nil, none, nil
	}
	mark = found[0]
	// A mark that its agent did not sign bounds nothing.
	if i := slices.IndexFunc(found, func(m *heardMark) bool {
		return m.day != d.day && m.Epoch != aside && m.pos < mark.pos && m.check(origin, m.day, d.roots) == nil
	}); i > 0 {
		mark.before = found[i]
	}
	return mark, "", nil
}

func scanMark(row scanner, m **heardMark) error {
	*m = &heardMark{}
	v := *m
	var day string
	var seq, through, received int64
	var hash []byte
	err := row.Scan(&day, (*string)(&v.Epoch), &seq, (*string)(&v.Head.Epoch), &through, &hash, &v.certificate, &v.Signature, &v.pos, &received, &v.Certificate)
	if err != nil {
		return err
	}
	v.Seq, v.Head.Through, v.received = uint64(seq), uint64(through), micros(received)
	copy(v.Head.Hash[:], hash)
	v.day, err = parseDay(day)
	return err
}

// agents looks at each expected agent's mark and at everything up to it.
func (d *dayCheck) agents(ctx context.Context, expected []Expected) error {
	some := false
	for _, e := range expected {
		if e.Kind != RosterAgent || !e.Expected {
			continue
		}
		some, d.marking[e.ID] = true, true
		if err := d.agent(ctx, e.ID); err != nil {
			return err
		}
	}
	if !some {
		d.reason(ReasonNobody, "", "no agent of the store is expected on this day: nobody could have marked it")
	}
	return nil
}

func (d *dayCheck) agent(ctx context.Context, name string) error {
	a := AgentDay{Agent: name}
	mark, none, err := d.marksOf(ctx, name)
	if err != nil {
		return err
	}
	problem := func(kind, format string, args ...any) {
		what := fmt.Sprintf(format, args...)
		d.reason(kind, name, "agent %s: %s", name, what)
		if a.Problem != "" {
			a.Problem += "; "
		}
		a.Problem += printable(what)
	}
	if mark == nil {
		if mutant.On(mutant.CertifyAnyhow) {
			a.Complete = true
		} else {
			problem(ReasonDayMark, "%s", none)
		}
		d.c.Agents = append(d.c.Agents, a)
		return nil
	}
	d.marks[name] = mark
	a.Mark = &mark.MarkOfDay
	origin := protocol.Origin{Chain: d.chain, Store: d.store, Agent: name}
	switch err := mark.check(origin, d.day, d.roots); {
	case len(mark.Certificate) == 0:
		problem(ReasonSignature, "the certificate with which it signed the mark is not kept")
	case err != nil:
		problem(ReasonSignature, "the signature of its mark does not hold: %v", err)
	default:
		a.Signed = true
	}
	what, err := d.followBack(ctx, mark, name)
	if err != nil {
		return fmt.Errorf("streams of agent %s: %w", name, err)
	}
	if what != "" {
		problem(ReasonStream, "%s", what)
	}
	a.Complete = what == "" && a.Signed
	d.c.Agents = append(d.c.Agents, a)
	return nil
}

// followBack goes from a mark's head back to the agent's first record, from seal to seal. Down
// to the mark of an earlier day it recomputes every hash; that mark spoke for what lies before,
// of which the ends of the epochs are compared. It says what is not there as it was sent.
func (d *dayCheck) followBack(ctx context.Context, mark *heardMark, agent string) (string, error) {
	seals, err := d.seals(ctx, agent)
	if err != nil {
		return "", err
	}
	streams := map[protocol.Epoch]*stream{}
	for _, s := range d.streams[agent] {
		streams[s.key.epoch] = s
	}
	base, err := d.base(ctx, mark.before, streams)
	if err != nil {
		return "", err
	}
	seen := map[protocol.Epoch]bool{}
	said := "the mark"
	for at := mark.Head; ; {
		s := streams[at.Epoch]
		if seen[at.Epoch] {
			return fmt.Sprintf("the seals of its epochs go round in a ring at epoch %s", at.Epoch), nil
		}
		seen[at.Epoch] = true
		if s == nil {
			return fmt.Sprintf("%s speaks of epoch %s, of which nothing has come", said, at.Epoch), nil
		}
		if s.through < at.Through {
			return fmt.Sprintf("%s speaks of %d records of epoch %s, of which %d have come", said, at.Through, at.Epoch, s.through), nil
		}
		gaps := d.gaps[s.key]
		if mark.reached {
			hash, ok, err := d.committed(ctx, s, at.Through, gaps)
			if err != nil {
				return "", err
			}
			if (!ok || hash != at.Hash) && !inside(gaps, at.Through) {
				return fmt.Sprintf("record %d of epoch %s has another hash than %s says", at.Through, at.Epoch, said), nil
			}
		} else {
			from := protocol.Mark{Hash: protocol.Genesis(d.chain, d.store, agent, at.Epoch)}
			if base != nil && base.Epoch == at.Epoch && base.Through <= at.Through {
				from, mark.reached = *base, true
			}
			f, err := d.follow(ctx, s, from, at.Through, gaps, d.tally)
			if err != nil {
				return "", err
			}
			mark.passed = append(mark.passed, stretch{s.key, from.Through, at.Through})
			if w := f.first; w != nil {
				mark.reached = false
				return fmt.Sprintf("%s of epoch %s %s", numbered("record", w.seq, w.last), at.Epoch, w.what), nil
			}
			if f.hash != at.Hash && !inside(gaps, at.Through) {
				mark.reached = false
				return fmt.Sprintf("record %d of epoch %s has another hash than %s says", at.Through, at.Epoch, said), nil
			}
		}
		seal, ok := seals[s.id]
		if i := slices.IndexFunc(gaps, func(g gap) bool { return g.first == 1 && g.moved() }); !ok && i >= 0 {
			if gaps[i].seal == nil {
				return "", nil // it is lost, and named so
			}
			seal, ok = *gaps[i].seal, true
		}
		switch {
		case !ok:
			return fmt.Sprintf("epoch %s does not begin with a seal", at.Epoch), nil
		case seal.Before == nil:
			mark.reached = true
			return "", nil
		}
		at, said = *seal.Before, fmt.Sprintf("the seal of epoch %s", at.Epoch)
	}
}

// base is the head of an earlier mark, if the ledger stands by it.
func (d *dayCheck) base(ctx context.Context, before *heardMark, streams map[protocol.Epoch]*stream) (*protocol.Mark, error) {
	if before == nil {
		return nil, nil
	}
	s := streams[before.Head.Epoch]
	if s == nil || s.through < before.Head.Through {
		return nil, nil
	}
	hash, ok, err := d.committed(ctx, s, before.Head.Through, d.gaps[s.key])
	if err != nil || !ok || hash != before.Head.Hash {
		return nil, err
	}
	return &before.Head, nil
}

// seals reads the first records of an agent's epochs, by stream.
func (d *dayCheck) seals(ctx context.Context, agent string) (map[int64]protocol.Seal, error) {
	type row struct {
		stream int64
		body   []byte
	}
	rows, err := ask(ctx, d.q, `SELECT s.id, r.body FROM streams s JOIN records r ON r.chain = s.chain AND r.stream = s.id AND r.seq = 1
		WHERE s.chain = $1 AND s.store = $2 AND s.agent = $3 AND r.kind = $4`, []any{d.id, d.store, agent, string(protocol.KindSeal)},
		func(s scanner, r *row) error { return s.Scan(&r.stream, &r.body) })
	if err != nil {
		return nil, err
	}
	seals := map[int64]protocol.Seal{}
	for _, r := range rows {
		if seals[r.stream], err = protocol.DecodeSeal(r.body); err != nil {
			delete(seals, r.stream)
		}
	}
	for _, s := range d.streams[agent] { // one that stands in another table
		if _, ok := seals[s.id]; ok {
			continue
		}
		first, err := d.entries(ctx, s, 1, 1)
		if err != nil {
			return nil, err
		}
		if len(first) > 0 && first[0].record != nil && first[0].record.Kind == protocol.KindSeal {
			if seal, err := protocol.DecodeSeal(first[0].record.Body); err == nil {
				seals[s.id] = seal
			}
		}
	}
	return seals, nil
}

// tally counts the receipts of the day that came again with the same content.
func (d *dayCheck) tally(p *entry, _ protocol.Hash) error {
	if p.table != "duplicates" || p.record == nil || p.record.Was != nil || p.record.Kind != protocol.KindTransaction {
		return nil
	}
	if key := receiptOf(p.record.Body); key != nil && key.day == d.day.String() {
		d.repeated[key.workstation]++
	}
	return nil
}

// AlarmCertificateExpired is the alarm of an agent whose certificate has expired: it delivers,
// and must be issued another one.
const AlarmCertificateExpired = "certificateExpired"

// KeepCertificate keeps an agent's certificate, for verifying what the agent signed with it.
// One that has expired raises an alarm.
func (l *Ledger) KeepCertificate(ctx context.Context, o protocol.Origin, cert *x509.Certificate) error {
	if err := checkOrigin(o); err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	id, err := l.chainID(ctx, o.Chain, true)
	if err != nil {
		return fmt.Errorf("keep certificate of %s: %w", o, err)
	}
	now, digest := l.now(), sha256.Sum256(cert.Raw)
	alarms := newRows("itttti")
	if ca.Expired(cert, now) {
		alarms.add(id, o.Store, o.Agent, AlarmCertificateExpired,
			fmt.Sprintf("certificate %x expired on %s: issue the agent another one", digest[:8], cert.NotAfter.UTC().Format(time.DateOnly)), now.UnixMicro())
	}
	err = l.exec(ctx,
		statement{
			text: "INSERT INTO agent_certificates (chain, sha256, store, agent, der, seen) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
			args: []any{id, digest[:], o.Store, o.Agent, cert.Raw, now.UnixMicro()},
		},
		statement{rows: alarms, text: alarmInsert})
	if err != nil {
		return fmt.Errorf("keep certificate of %s: %w", o, err)
	}
	return nil
}
