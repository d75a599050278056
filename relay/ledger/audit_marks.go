package ledger

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/storelay/storelay/protocol"
)

// readMarks reads the rows of the store's day marks and checks who signed them.
func (s *storeAudit) readMarks(ctx context.Context) error {
	type row struct {
		agent string
		mark  *heardMark
		fault error // in its day
	}
	rows, err := ask(ctx, s.q, `SELECT m.agent, m.day, m.epoch, m.seq, m.head_epoch, m.head_seq, m.head_hash, m.certificate, m.signature, 0, 0, coalesce(c.der, $3)
		FROM day_marks m LEFT JOIN agent_certificates c ON c.chain = m.chain AND c.sha256 = m.certificate WHERE m.chain = $1 AND m.store = $2`, []any{s.id, s.store, []byte{}},
		func(found scanner, r *row) error {
			r.fault = scanMark(before{&r.agent, found}, &r.mark)
			if r.mark.Seq == 0 { // it was not scanned
				return r.fault
			}
			return nil
		})
	if err != nil {
		return fmt.Errorf("day marks: %w", err)
	}
	for _, r := range rows {
		if r.fault != nil {
			s.find(r.agent, r.mark.Epoch, wrong{kind: wrongMark, seq: r.mark.Seq, what: "the table of day marks says: " + r.fault.Error()})
			continue
		}
		m := &auditMark{heardMark: r.mark, signed: s.signedBy(r.agent, r.mark)}
		a := s.agent(r.agent)
		a.expect(m)
		a.stands[protocol.Position{Epoch: m.Epoch, Seq: m.Seq}] = m
	}
	return nil
}

// before scans one more column in front.
type before struct {
	first any
	scanner
}

func (b before) Scan(dest ...any) error { return b.scanner.Scan(append([]any{b.first}, dest...)...) }

func (s *storeAudit) signedBy(agent string, m *heardMark) error {
	if len(m.Certificate) == 0 {
		return errNoCertificate
	}
	return m.check(protocol.Origin{Chain: s.chain, Store: s.store, Agent: agent}, m.day, s.opts.Roots)
}

// certificateOf is the certificate with a hash; nil when it is not kept.
func (r reader) certificateOf(ctx context.Context, sha256 []byte) ([]byte, error) {
	var der []byte
	err := r.q.QueryRowContext(ctx, "SELECT der FROM agent_certificates WHERE chain = $1 AND sha256 = $2", r.id, sha256).Scan(&der)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return der, err
}

// mark meets a mark's own record: its row must say the same. Without a row the record speaks
// for itself.
func (c *rowCheck) mark(ctx context.Context, p *entry) error {
	said, err := protocol.DecodeDayMark(p.record.Body)
	if fault := faultOf(err); fault != "" {
		c.wrong(p, wrongMark, "cannot be read: "+fault)
		return nil
	}
	at := protocol.Position{Epoch: c.st.key.epoch, Seq: p.seq}
	m := c.a.stands[at]
	if m == nil {
		c.wrong(p, wrongMark, "is a day mark, and the table of day marks does not have it")
		der, err := c.s.certificateOf(ctx, said.Certificate[:])
		if err != nil {
			return err
		}
		m = &auditMark{heardMark: &heardMark{MarkOfDay: MarkOfDay{Epoch: at.Epoch, Seq: at.Seq, Head: said.Head, Signature: said.Signature, Certificate: der}, day: said.Day}}
		m.signed = c.s.signedBy(c.st.key.agent, m.heardMark)
		if stream := c.a.streams[said.Head.Epoch]; stream != nil && said.Head.Through <= stream.through {
			m.hash, m.head, err = c.s.committed(ctx, stream, said.Head.Through, c.s.gaps[stream.key])
			if err != nil {
				return err
			}
		}
		c.a.expect(m)
	} else if m.day != said.Day || m.Head != said.Head || !bytes.Equal(m.certificate, said.Certificate[:]) || !bytes.Equal(m.Signature, said.Signature) {
		c.wrong(p, wrongMark, "is a day mark, and the table of day marks says something else")
	}
	m.met = true
	return nil
}

// judge looks at the marks whose heads are in a stream that has just been followed. A mark
// whose hash is another, though every hash in the stream is that of its record, shows that a
// record behind the last good mark was changed and everything behind it made anew.
func (s *storeAudit) judge(ctx context.Context, st *stream, a *agentAudit, f *follower) error {
	epoch, told, confirmed := st.key.epoch, false, ""
	if f.first != nil {
		a.wrong[epoch] = f.first
	}
	marks := a.heads[epoch]
	slices.SortStableFunc(marks, func(x, y *auditMark) int { return cmp.Compare(x.Head.Through, y.Head.Through) })
	for _, m := range marks {
		if gaps := s.gaps[st.key]; !m.head && slices.ContainsFunc(gaps, func(g gap) bool { return g.first <= m.Head.Through && m.Head.Through <= g.last }) {
			m.hash, m.head = m.Head.Hash, true // the record is in a hole: nothing tells its hash
		}
		w := a.wrong[epoch]
		switch {
		case m.signed != nil && told:
		case m.signed != nil:
			told = true
			s.unsigned(st.key.agent, m)
		case !m.head:
			// Its record is missing, and named so; or it lies behind the end of the stream.
		case m.hash != m.Head.Hash:
			if w != nil && w.seq <= m.Head.Through {
				continue
			}
			first := a.goods[epoch] + 1
			pos, err := s.posOf(ctx, st, first)
			if err != nil {
				return err
			}
			a.wrong[epoch] = &wrong{kind: wrongChanged, seq: first, last: m.Head.Through, pos: pos, what: fmt.Sprintf(
				"one of them was changed, removed or inserted, and every hash behind it made anew: at record %d the agent signed another hash in its mark of %s%s", m.Head.Through, m.day, a.goodMark())}
		default:
			s.report.Marks++
			a.sign(s, protocol.Position{Epoch: epoch, Seq: m.Head.Through})
			if w == nil || m.Head.Through < w.seq {
				a.goods[epoch], a.good = m.Head.Through, protocol.Position{Epoch: epoch, Seq: m.Head.Through}
			} else if w.kind == wrongChanged && confirmed == "" {
				confirmed = fmt.Sprintf("; the hashes stored behind it are those that the agent signed in its mark of %s", m.day)
			}
		}
	}
	if w := f.first; w != nil && w.kind == wrongChanged {
		if first := a.goods[epoch] + 1; f.bad != nil && first < w.seq {
			w.what += fmt.Sprintf("; or that of %s before it is not, and its hash was made anew", numbered("record", first, w.seq-1))
		}
		w.what += confirmed
	}
	return nil
}

var errNoCertificate = errors.New("the certificate with which it was signed is not kept")

// unsigned notes a mark that its agent did not sign. One that another agent brought may lack its
// certificate because the ledger was put back to before that agent connected for the last time.
func (s *storeAudit) unsigned(agent string, m *auditMark) *wrong {
	w := &wrong{kind: wrongMark, seq: m.Seq, last: m.Seq, what: fmt.Sprintf("the mark of %s was not signed by its agent: %v", m.day, m.signed)}
	if errors.Is(m.signed, errNoCertificate) && s.raised && m.Epoch == asideEpoch(protocol.Origin{Chain: s.chain, Store: s.store, Agent: agent}) {
		s.alone(agent, m.Epoch, *w)
	} else {
		s.find(agent, m.Epoch, *w)
	}
	return w
}

func (a *agentAudit) goodMark() string {
	if a.good.Seq == 0 {
		return "; no mark before it holds"
	}
	return fmt.Sprintf("; the last mark before it that holds is at record %d of epoch %s", a.good.Seq, a.good.Epoch)
}

// unmet looks for rows of marks without their records.
func (s *storeAudit) unmet(name string, a *agentAudit) {
	var lost []*auditMark
	for _, m := range a.stands {
		if !m.met && a.wrong[m.Epoch] == nil {
			lost = append(lost, m)
		}
	}
	slices.SortFunc(lost, func(x, y *auditMark) int { return cmp.Or(cmp.Compare(x.Epoch, y.Epoch), cmp.Compare(x.Seq, y.Seq)) })
	for _, m := range lost {
		s.find(name, m.Epoch, wrong{kind: wrongMissing, seq: m.Seq, last: m.Seq, what: fmt.Sprintf("is the agent's mark of %s, of which the table of day marks knows, and its record is not there", m.day)})
	}
}
