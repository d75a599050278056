package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
)

// commitTime bounds one transaction, waiting for another relay's lock included.
const commitTime = 60 * time.Second

// Commit stores a batch and answers it; an ack comes only after the commit is durable. It
// may be called from any number of connections at once: batches of a chain that wait
// together are committed together. An error means that nothing is known to be stored.
func (l *Ledger) Commit(ctx context.Context, from protocol.Origin, batch protocol.Batch) (protocol.Answer, error) {
	if err := checkOrigin(from); err != nil {
		return protocol.Answer{}, fmt.Errorf("commit: %w", err)
	}
	j := newJob(from, &batch)
	if err := l.queue.put(j); err != nil {
		return protocol.Answer{}, fmt.Errorf("commit: %w", err)
	}
	select {
	case <-j.done:
		return j.answer, j.err
	case <-ctx.Done():
		return protocol.Answer{}, fmt.Errorf("commit: %w", ctx.Err())
	}
}

func checkOrigin(o protocol.Origin) error {
	if !protocol.ValidID(o.Chain) || !protocol.ValidID(o.Store) || !protocol.ValidID(o.Agent) {
		return fmt.Errorf("origin %q is not three ids", o)
	}
	return nil
}

// commit answers all jobs of one chain, or none with an error.
func (l *Ledger) commit(ctx context.Context, chain string, jobs []*job) error {
	id, err := l.chainID(ctx, chain, true)
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	if err := l.commitOrSplit(ctx, chain, id, jobs); err != nil {
		return fmt.Errorf("commit of chain %s: %w", chain, err)
	}
	return nil
}

// commitOrSplit commits jobs. When the database refuses the data, and not the work, it
// halves the group down to the record that is to blame, and puts that into quarantine.
func (l *Ledger) commitOrSplit(ctx context.Context, chain string, id int64, jobs []*job) error {
	err := l.transact(ctx, chain, id, jobs)
	for tries := 0; err != nil && l.db.retry(err) && tries < 5; tries++ {
		err = l.transact(ctx, chain, id, jobs)
	}
	if err == nil || !l.db.dataError(err) {
		return err
	}
	if n := len(jobs); n > 1 {
		if err := l.commitOrSplit(ctx, chain, id, jobs[:n/2]); err != nil {
			return err
		}
		return l.commitOrSplit(ctx, chain, id, jobs[n/2:])
	}
	j := jobs[0]
	if n := len(j.items); n > 1 {
		head, tail := *j, *j
		head.items, tail.items = j.items[:n/2], j.items[n/2:]
		tail.first, tail.prev = j.first+uint64(n/2), j.items[n/2-1].hash
		if err := l.commitOrSplit(ctx, chain, id, []*job{&head}); err != nil {
			return err
		}
		j.answer = head.answer
		if head.answer.Verdict != protocol.VerdictAck {
			return nil
		}
		if err := l.commitOrSplit(ctx, chain, id, []*job{&tail}); err != nil {
			return err
		}
		j.answer = tail.answer
		return nil
	}
	if len(j.items) == 0 || j.items[0].cause == causeDatabase || j.again != nil {
		return err
	}
	l.log.Warn("the database refuses a record; it goes into quarantine", "origin", j.from.String(), "epoch", j.epoch, "seq", j.first, "error", err)
	j.items[0].cause, j.items[0].reason = causeDatabase, "the database refuses the record: "+storable(err.Error())
	return l.commitOrSplit(ctx, chain, id, jobs)
}

// transact is one try at a transaction.
func (l *Ledger) transact(ctx context.Context, chain string, id int64, jobs []*job) error {
	g := newGroup(chain, id, jobs, l.now())
	err := l.db.within(ctx, func(t tx) error {
		if err := g.lock(ctx, t, l.db.lock()); err != nil {
			return err
		}
		for _, j := range jobs {
			if err := g.decide(ctx, t, j); err != nil {
				return err
			}
		}
		return g.write(ctx, t)
	})
	if err != nil {
		return err
	}
	l.watch.committed(chain, g.head, g.feedVersion)
	return nil
}

// decide answers one batch, and applies what is new in it.
func (g *group) decide(ctx context.Context, t tx, j *job) error {
	agent := g.agents[agentKey{j.from.Store, j.from.Agent}]
	if j.again != nil {
		return g.applyAgain(ctx, t, j)
	}
	if agent.state == AgentRevoked {
		j.answer = g.refused(j, "agent "+j.from.String()+" is revoked")
		return nil
	}
	if j.refuse != "" {
		if j.raw != nil {
			g.quarantineRaw(j)
		}
		j.answer = g.refused(j, j.refuse)
		return nil
	}
	s := g.stream(j.from, j.epoch)
	known := 0 // how many records at the head of the batch are there already
	switch last := j.last(); {
	case j.first > s.through+1:
		j.answer = g.answer(protocol.VerdictGap, s)
		return nil
	case j.first == s.through+1:
		if j.prev != s.hash {
			g.fork(j, s)
			return nil
		}
	case last < s.through:
		hash, _, err := g.at(ctx, t, s, last)
		if err != nil {
			return err
		}
		if hash != j.items[len(j.items)-1].hash {
			g.fork(j, s)
			return nil
		}
		known = len(j.items)
	default:
		known = int(s.through - j.first + 1)
		if j.items[known-1].hash != s.hash {
			g.fork(j, s)
			return nil
		}
	}
	fresh := j.items[known:]
	if len(fresh) > 0 {
		if s.through == 0 {
			if waits, err := g.unseal(ctx, t, j); err != nil || waits {
				return err
			}
		}
		if s.sealed >= 0 && int64(j.last()) > s.sealed {
			g.alarm(j.from, AlarmBeyondSeal, fmt.Sprintf("epoch %s goes on behind its seal at %d", s.key.epoch, s.sealed))
		}
		if s.id == 0 {
			g.lastStream++
			s.id = g.lastStream
		}
		agent.streams = true
		for _, it := range fresh {
			s.items = append(s.items, it)
			s.through++
			s.hash = it.hash
			if err := g.apply(ctx, t, j.from, s, it); err != nil {
				return err
			}
		}
		s.moved = true
	}
	j.answer = g.answer(protocol.VerdictAck, s)
	return nil
}

// unseal looks at the seal that begins a new epoch. It answers the batch with a gap, and
// says so, when the epoch before is not complete yet.
func (g *group) unseal(ctx context.Context, t tx, j *job) (waits bool, err error) {
	before := j.seal.Before
	if before == nil {
		if g.agents[agentKey{j.from.Store, j.from.Agent}].streams && !j.seal.Forked {
			g.alarm(j.from, AlarmSecondFirst, fmt.Sprintf("epoch %s says that it is the agent's first", j.epoch))
		}
		return false, nil
	}
	p := g.stream(j.from, before.Epoch)
	if p.through < before.Through {
		if j.seal.Forked {
			g.alarm(j.from, AlarmFork, fmt.Sprintf("epoch %s forked behind %d, of which %d have come", before.Epoch, before.Through, p.through))
			return false, nil
		}
		j.answer = g.answer(protocol.VerdictGap, p)
		return true, nil
	}
	hash := p.hash
	if before.Through < p.through {
		if hash, _, err = g.at(ctx, t, p, before.Through); err != nil {
			return false, err
		}
	}
	switch {
	case hash != before.Hash:
		g.alarm(j.from, AlarmSealDiffers, fmt.Sprintf("epoch %s seals %s at %d with another hash", j.epoch, before.Epoch, before.Through))
	case j.seal.Forked:
		g.alarm(j.from, AlarmFork, fmt.Sprintf("epoch %s forked behind %d", before.Epoch, before.Through))
	case before.Through < p.through:
		g.alarm(j.from, AlarmSealBelow, fmt.Sprintf("epoch %s seals %s at %d, and %d have come", j.epoch, before.Epoch, before.Through, p.through))
	case p.sealed >= 0:
		g.alarm(j.from, AlarmSealedTwice, fmt.Sprintf("epoch %s is sealed a second time", before.Epoch))
	}
	if p.sealed < 0 && p.id != 0 {
		p.sealed, p.moved = int64(before.Through), true
	}
	return false, nil
}

func (g *group) fork(j *job, s *stream) {
	g.alarm(j.from, AlarmFork, fmt.Sprintf("epoch %s came with two contents", s.key.epoch))
	j.answer = g.answer(protocol.VerdictFork, s)
}

func (g *group) answer(v protocol.Verdict, s *stream) protocol.Answer {
	return protocol.Answer{Verdict: v, Incarnation: g.incarnation, Epoch: s.key.epoch, Through: s.through, Hash: s.hash}
}

func (g *group) refused(j *job, reason string) protocol.Answer {
	return protocol.Answer{Verdict: protocol.VerdictRefused, Incarnation: g.incarnation, Epoch: j.epoch, Reason: reason}
}

var errNoRecord = errors.New("the ledger has no record at a position that it acknowledged")
