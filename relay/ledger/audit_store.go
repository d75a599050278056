package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// A storeAudit looks at one store in one snapshot.
type storeAudit struct {
	reader
	l      *Ledger
	chain  string
	store  string
	opts   AuditOptions
	report *AuditReport
	found  int

	streams []*stream
	gaps    map[streamKey][]gap
	alarms  map[string][]Alarm // by agent
	agents  map[string]*agentAudit
	sums    sums
	read    int64 // records, since Progress was told
}

// An agentAudit is what is known of an agent as its streams are followed one after the other.
type agentAudit struct {
	streams map[protocol.Epoch]*stream
	order   []*stream
	wrong   map[protocol.Epoch]*wrong          // first thing wrong with a stream
	heads   map[protocol.Epoch][]*auditMark    // marks by the epoch of their head
	at      map[protocol.Position][]*auditMark // and by their head
	stands  map[protocol.Position]*auditMark   // marks by where they stand themselves
	goods   map[protocol.Epoch]uint64          // head of the last mark of an epoch before which nothing is wrong
	good    protocol.Position                  // of them the newest
	firsts  int                                // epochs that say that they are the first
}

// An auditMark is a day mark on its way through an audit.
type auditMark struct {
	*heardMark
	signed error         // why its agent did not sign it; nil = it did
	met    bool          // its record has been seen
	head   bool          // the record at its head has been seen
	hash   protocol.Hash // of that
}

func newStoreAudit(r reader, l *Ledger, chain, store string, opts AuditOptions, report *AuditReport) *storeAudit {
	return &storeAudit{reader: r, l: l, chain: chain, store: store, opts: opts, report: report, alarms: map[string][]Alarm{}, agents: map[string]*agentAudit{}, sums: newSums()}
}

func (s *storeAudit) find(agent string, epoch protocol.Epoch, w wrong) {
	if s.found++; s.found > maxFindings {
		return
	}
	s.report.Findings = append(s.report.Findings, Finding{Chain: s.chain, Store: s.store, Agent: agent, Epoch: epoch, Seq: w.seq, Last: w.last, Pos: w.pos, Kind: w.kind, What: w.what})
}

func (s *storeAudit) agent(name string) *agentAudit {
	a := s.agents[name]
	if a == nil {
		a = &agentAudit{streams: map[protocol.Epoch]*stream{}, wrong: map[protocol.Epoch]*wrong{}, heads: map[protocol.Epoch][]*auditMark{},
			at: map[protocol.Position][]*auditMark{}, stands: map[protocol.Position]*auditMark{}, goods: map[protocol.Epoch]uint64{}}
		s.agents[name] = a
	}
	return a
}

// expect notes a mark, whose head will be looked at when its stream is followed.
func (a *agentAudit) expect(m *auditMark) {
	head := protocol.Position{Epoch: m.Head.Epoch, Seq: m.Head.Through}
	a.heads[head.Epoch], a.at[head] = append(a.heads[head.Epoch], m), append(a.at[head], m)
}

func (s *storeAudit) audit(ctx context.Context) error {
	if err := s.prepare(ctx); err != nil {
		return err
	}
	for _, st := range s.streams {
		if err := s.stream(ctx, st); err != nil {
			return err
		}
	}
	s.beyond()
	if err := s.extra(ctx); err != nil {
		return err
	}
	if err := s.projections(ctx); err != nil {
		return err
	}
	if s.found > maxFindings {
		s.report.Findings = append(s.report.Findings, Finding{Chain: s.chain, Store: s.store, Kind: wrongChanged, What: fmt.Sprintf("and %d more findings", s.found-maxFindings)})
	}
	s.progress(0)
	return nil
}

func (s *storeAudit) prepare(ctx context.Context) (err error) {
	if s.streams, err = readStreams(ctx, s.q, s.id, s.store); err != nil {
		return err
	}
	if s.gaps, err = readGaps(ctx, s.q, s.id, s.store); err != nil {
		return err
	}
	for _, st := range s.streams {
		a := s.agent(st.key.agent)
		a.streams[st.key.epoch], a.order = st, append(a.order, st)
	}
	for _, gaps := range s.gaps {
		s.report.Holes += int64(len(gaps))
	}
	alarms, err := ask(ctx, s.q, "SELECT agent, kind, detail FROM alarms WHERE chain = $1 AND store = $2", []any{s.id, s.store},
		func(row scanner, a *Alarm) error { return row.Scan(&a.Agent, &a.Kind, &a.Detail) })
	if err != nil {
		return fmt.Errorf("alarms: %w", err)
	}
	for _, a := range alarms {
		s.alarms[a.Agent] = append(s.alarms[a.Agent], a)
	}
	if err := s.readMarks(ctx); err != nil {
		return err
	}
	return s.certificates(ctx)
}

// told says whether an alarm speaks of an epoch: what it names was seen when it came, and is
// nobody's later doing.
func (s *storeAudit) told(agent string, epochs ...protocol.Epoch) bool {
	return slices.ContainsFunc(s.alarms[agent], func(a Alarm) bool {
		return slices.Contains(bearing, a.Kind) && slices.ContainsFunc(epochs, func(e protocol.Epoch) bool { return strings.Contains(a.Detail, string(e)) })
	})
}

// stream follows one stream from its first record to its last.
func (s *storeAudit) stream(ctx context.Context, st *stream) error {
	name, epoch := st.key.agent, st.key.epoch
	a := s.agent(name)
	rows := &rowCheck{s: s, st: st, a: a}
	genesis := protocol.Genesis(s.chain, s.store, name, epoch)
	f, err := s.follow(ctx, st, protocol.Mark{Epoch: epoch, Hash: genesis}, st.through, s.gaps[st.key], func(p *entry, hash protocol.Hash) error {
		s.progress(1)
		return rows.visit(ctx, p, hash)
	})
	if err != nil {
		return err
	}
	if err := rows.flush(ctx); err != nil {
		return err
	}
	f.ends(st)
	s.report.Streams++
	if err := s.judge(ctx, st, a, f); err != nil {
		return err
	}
	if w := a.wrong[epoch]; w != nil {
		s.find(name, epoch, *w)
	}
	if w := rows.first; w != nil {
		s.find(name, epoch, *w)
	}
	if epoch == asideEpoch(protocol.Origin{Chain: s.chain, Store: s.store, Agent: name}) {
		return nil // the ledger's own: a seal that stands there sealed another
	}
	for _, g := range s.gaps[st.key] {
		if g.first == 1 && g.moved() {
			rows.seal = g.seal
		}
	}
	return s.seal(ctx, st, a, rows.seal)
}

// seal looks whether an epoch's first record names the end of the one before, as that one
// stands.
func (s *storeAudit) seal(ctx context.Context, st *stream, a *agentAudit, seal *protocol.Seal) error {
	if seal == nil {
		return nil // the records say what is wrong with that; or a hole took it
	}
	name := st.key.agent
	wrongSealed := func(epoch protocol.Epoch, w wrong) {
		if a.wrong[epoch] == nil && !s.told(name, epoch, st.key.epoch) {
			a.wrong[epoch] = &w
			s.find(name, epoch, w)
		}
	}
	before := seal.Before
	if before == nil {
		if a.firsts++; a.firsts > 1 && !seal.Forked && !s.told(name, st.key.epoch) {
			s.find(name, st.key.epoch, wrong{kind: wrongSeal, seq: 1, what: "says that it is the agent's first, and it is not; no alarm was raised when it came"})
		}
		return nil
	}
	p := a.streams[before.Epoch]
	switch {
	case p == nil:
		wrongSealed(before.Epoch, wrong{kind: wrongMissing, seq: 1, last: before.Through, what: fmt.Sprintf("epoch %s goes on from there, and the ledger has nothing of it", st.key.epoch)})
		return nil
	case p.through < before.Through:
		wrongSealed(before.Epoch, wrong{kind: wrongMissing, seq: p.through + 1, last: before.Through, what: fmt.Sprintf("epoch %s goes on behind them, and its stream ends before", st.key.epoch)})
		return nil
	case p.through > before.Through:
		wrongSealed(before.Epoch, wrong{kind: wrongInserted, seq: before.Through + 1, last: p.through, what: fmt.Sprintf("stands behind the end that epoch %s names, and no alarm was raised when it came", st.key.epoch)})
	}
	hash, ok, err := s.committed(ctx, p, before.Through, s.gaps[p.key])
	if err != nil {
		return err
	}
	if ok && hash != before.Hash {
		w := wrong{kind: wrongChanged, seq: a.goods[before.Epoch] + 1, last: before.Through, what: fmt.Sprintf("one of them was changed, and the hashes behind it made anew: epoch %s names another hash at the end", st.key.epoch)}
		if w.pos, err = s.posOf(ctx, p, w.seq); err != nil {
			return err
		}
		wrongSealed(before.Epoch, w)
	}
	if p.sealed < 0 && !seal.Forked && !s.told(name, before.Epoch, st.key.epoch) {
		s.find(name, before.Epoch, wrong{kind: wrongColumns, seq: p.through, what: fmt.Sprintf("its stream's row says that it is open, and epoch %s seals it", st.key.epoch)})
	}
	return nil
}

func (r reader) posOf(ctx context.Context, s *stream, seq uint64) (int64, error) {
	found, err := r.entries(ctx, s, seq, seq)
	if err != nil || len(found) == 0 {
		return 0, err
	}
	return found[0].pos, nil
}

// extra looks for records behind the end of their streams.
func (s *storeAudit) extra(ctx context.Context) error {
	type row struct {
		agent string
		epoch protocol.Epoch
		seq   int64
		pos   int64
	}
	for table, pos := range map[string]string{"records": "min(r.pos)", "duplicates": "0", "quarantined": "0"} {
		rows, err := ask(ctx, s.q, `SELECT s.agent, s.epoch, min(r.seq), `+pos+` FROM streams s JOIN `+table+` r ON r.chain = s.chain AND r.stream = s.id AND r.seq > s.through
			WHERE s.chain = $1 AND s.store = $2 GROUP BY s.agent, s.epoch`, []any{s.id, s.store},
			func(row scanner, r *row) error { return row.Scan(&r.agent, (*string)(&r.epoch), &r.seq, &r.pos) })
		if err != nil {
			return fmt.Errorf("records behind their streams: %w", err)
		}
		for _, r := range rows {
			s.find(r.agent, r.epoch, wrong{kind: wrongInserted, seq: uint64(r.seq), last: uint64(r.seq), pos: r.pos, what: "stands in " + table + " behind the last record of its stream"})
		}
	}
	return nil
}

// progress tells now and then how far the audit is.
func (s *storeAudit) progress(records int64) {
	s.report.Records += records
	if s.read += records; s.opts.Progress != nil && (s.read >= 50_000 || records == 0) {
		s.opts.Progress(s.chain, s.store, s.report.Records)
		s.read = 0
	}
}
