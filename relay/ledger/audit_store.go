package ledger

import (
	"context"
	"fmt"

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

	streams  []*stream
	gaps     map[streamKey][]gap
	alarms   map[string][]Alarm // by agent
	raised   bool               // the incarnation was
	agents   map[string]*agentAudit
	sums     sums
	spans    map[string]*span // by day
	losses   []toldLoss
	complete []certifiedDay
	stated   []*DayCertificate // what was counted in those given out
	read     int64             // records, since Progress was told
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
	seals   map[protocol.Epoch]*protocol.Seal  // by the epoch that they begin; nil = none is known
	signed  map[protocol.Epoch]cover           // what hangs on good marks
	awaited map[protocol.Epoch]bool            // a mark speaks of more than its stream has
	again   map[protocol.Position]standing     // what of that came again
	moved   []standing                         // and what the ledger appended, of which another place is told
	sealed  map[protocol.Epoch]bool            // by one of the seals looked at
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
	return &storeAudit{reader: r, l: l, chain: chain, store: store, opts: opts, report: report, alarms: map[string][]Alarm{}, agents: map[string]*agentAudit{}, sums: newSums(), spans: map[string]*span{}}
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
			at: map[protocol.Position][]*auditMark{}, stands: map[protocol.Position]*auditMark{}, goods: map[protocol.Epoch]uint64{},
			seals: map[protocol.Epoch]*protocol.Seal{}, signed: map[protocol.Epoch]cover{},
			awaited: map[protocol.Epoch]bool{}, sealed: map[protocol.Epoch]bool{}, again: map[protocol.Position]standing{}}
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
	for _, name := range sortedKeys(s.agents) {
		if err := s.agents[name].judge(ctx, s, name); err != nil {
			return err
		}
	}
	if err := s.beside(ctx); err != nil {
		return err
	}
	if err := s.projections(ctx); err != nil {
		return err
	}
	if err := s.spansOfDays(ctx); err != nil {
		return err
	}
	if err := s.asCertified(ctx); err != nil {
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
	if err := s.q.QueryRowContext(ctx, "SELECT count(*) > 0 FROM jumps WHERE chain = $1", s.id).Scan(&s.raised); err != nil {
		return fmt.Errorf("jumps: %w", err)
	}
	for _, a := range alarms {
		s.alarms[a.Agent] = append(s.alarms[a.Agent], a)
	}
	if err := s.readMarks(ctx); err != nil {
		return err
	}
	if err := s.certificates(ctx); err != nil {
		return err
	}
	for _, a := range s.agents {
		a.await()
	}
	return nil
}

// stream follows one stream from its first record to its last.
func (s *storeAudit) stream(ctx context.Context, st *stream) error {
	name, epoch := st.key.agent, st.key.epoch
	a := s.agent(name)
	aside := epoch == asideEpoch(protocol.Origin{Chain: s.chain, Store: s.store, Agent: name})
	rows := &rowCheck{s: s, st: st, a: a, aside: aside}
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
	if aside {
		return nil // the ledger's own: a seal that stands there sealed another
	}
	a.seals[epoch] = rows.seal
	for _, g := range s.gaps[st.key] {
		if g.first == 1 && g.moved() {
			a.seals[epoch] = g.seal
		}
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
