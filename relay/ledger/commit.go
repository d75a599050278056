package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
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
	if l.inline {
		if err := l.commit(ctx, from.Chain, []*job{j}); err != nil {
			return protocol.Answer{}, err
		}
		return j.answer, nil
	}
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
	if head, tail, ok := j.halves(); ok {
		if err := l.commitOrSplit(ctx, chain, id, []*job{head}); err != nil {
			return err
		}
		j.answer = head.answer
		if head.answer.Verdict != protocol.VerdictAck {
			return nil
		}
		if err := l.commitOrSplit(ctx, chain, id, []*job{tail}); err != nil {
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
	if err := l.step(StepBegin); err != nil {
		return err
	}
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
		return g.write(ctx, t, l.fail)
	})
	if err == nil {
		err = l.step(StepCommitted)
	}
	if err != nil && mutant.On(mutant.AckBeforeCommit) && !l.db.dataError(err) && jobs[0].answer.Verdict != "" {
		err = nil
	}
	if err != nil {
		return err
	}
	l.watch.committed(chain, g.head, g.feedVersion)
	return nil
}

// decide answers one batch, and applies what is new in it.
func (g *group) decide(ctx context.Context, t tx, j *job) error {
	if j.again != nil {
		return g.applyAgain(ctx, t, j)
	}
	if g.agents[agentKey{j.from.Store, j.from.Agent}].state == AgentRevoked {
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
	if j.of != nil {
		return g.aside(ctx, t, j)
	}
	s := g.stream(j.from, j.epoch)
	if j.first > s.through+1 {
		j.answer = g.answer(protocol.VerdictGap, s)
		return nil
	}
	known, equal, err := g.compare(ctx, t, j, s)
	if err != nil {
		return err
	}
	if !equal {
		g.fork(j, s)
		return nil
	}
	if j.last() > s.through {
		if waits, err := g.advance(ctx, t, j, s, j.items[known:]); err != nil || waits {
			return err
		}
	}
	j.answer = g.answer(protocol.VerdictAck, s)
	if n := len(j.items); n > 0 && j.last() <= s.through && mutant.On(mutant.DedupeOnSeq) {
		j.answer.Through, j.answer.Hash = j.last(), j.items[n-1].hash
	}
	return nil
}

// advance moves a stream over what is new in a batch: the rest of its skip, and records. When
// the epoch may not begin yet, the batch is answered and nothing moves.
func (g *group) advance(ctx context.Context, t tx, j *job, s *stream, fresh []*item) (waits bool, err error) {
	if s.through == 0 && j.seal != nil {
		if waits, err := g.unseal(ctx, t, j); err != nil || waits {
			return waits, err
		}
	}
	if s.sealed >= 0 && int64(j.last()) > s.sealed {
		g.alarm(j.from, AlarmBeyondSeal, fmt.Sprintf("epoch %s goes on behind its seal at %d", s.key.epoch, s.sealed))
	}
	g.agents[agentKey{j.from.Store, j.from.Agent}].streams = true
	g.found(s)
	if j.skip != nil && j.skip.To > s.through {
		if err := g.skip(ctx, t, j, s); err != nil {
			return false, err
		}
		if j.raw != nil {
			g.quarantineRaw(j)
		}
	}
	for _, it := range fresh {
		s.append(it)
		if err := g.apply(ctx, t, j.from, s, it); err != nil {
			return false, err
		}
	}
	return false, nil
}

// compare says how many records at the head of a batch, which begins at or before the end of
// its stream, the ledger has already; and whether what both have is equal.
func (g *group) compare(ctx context.Context, t tx, j *job, s *stream) (known int, equal bool, err error) {
	before, hash := j.begin()-1, j.prev // of the record before the first item
	if j.skip != nil {
		if j.skip.To > s.through { // nothing behind the skip is known; the hash before it may not be known to the agent
			there, err := g.hashAt(ctx, t, s, j.first-1)
			return 0, hash == there || hash == (protocol.Hash{}) || there == (protocol.Hash{}), err
		}
		hash = j.skip.Hash
	}
	last := min(j.last(), s.through)
	known = int(last - before)
	if mutant.On(mutant.DedupeOnSeq) {
		return known, true, nil
	}
	var holes []hole
	if before < s.through {
		if holes, err = g.holesIn(ctx, t, s, before, last); err != nil {
			return 0, false, err
		}
	}
	// Where the two are compared: at the last record that both have. Inside of a hole the ledger
	// knows no hash, and what is before the hole says whether it is the same stream.
	at, comparable := last, true
	for _, h := range holes {
		if h.first <= at && at < h.last {
			at, comparable = h.first-1, h.first > before
		}
	}
	if comparable {
		if at > before {
			hash = j.items[at-before-1].hash
		}
		there, err := g.hashAt(ctx, t, s, at)
		if err != nil || hash != there {
			return 0, false, err
		}
	}
	// A hole is never filled: an ack was given for it, and what was read since has seen it. Whoever
	// finds the records again appends them to a new epoch, with was: the ledger holds nothing at
	// that position, so it applies them. Those that come late under their old numbers, from a line
	// that was slow, are kept in quarantine, whence a person may let them be applied.
	for _, h := range holes {
		for seq := max(h.first, before+1); seq <= min(h.last, last); seq++ {
			it := j.items[seq-before-1]
			if !g.resent[resentKey{s.key, seq, it.record.ContentHash()}] { // it was applied so before
				g.quarantine(j.from, s.key, 0, it, causeHole, "came after it was said to be lost")
			}
		}
	}
	return known, true, nil
}

// unseal looks at the seal that begins a new epoch. It answers the batch with a gap, and
// says so, when the epoch before is not complete yet.
func (g *group) unseal(ctx context.Context, t tx, j *job) (waits bool, err error) {
	before := j.seal.Before
	if before == nil {
		if j.seal.Forked {
			g.alarm(j.from, AlarmFork, fmt.Sprintf("epoch %s follows one that forked before anything of it was acknowledged", j.epoch))
		} else if g.agents[agentKey{j.from.Store, j.from.Agent}].streams {
			g.alarm(j.from, AlarmSecondFirst, fmt.Sprintf("epoch %s says that it is the agent's first", j.epoch))
		}
		return false, nil
	}
	p := g.stream(j.from, before.Epoch)
	if p.through < before.Through && !mutant.On(mutant.IgnoreSeal) {
		if j.seal.Forked {
			g.alarm(j.from, AlarmFork, fmt.Sprintf("epoch %s forked behind %d, of which %d have come", before.Epoch, before.Through, p.through))
			return false, nil
		}
		j.answer = g.answer(protocol.VerdictGap, p)
		return true, nil
	}
	hash := before.Hash
	if before.Through <= p.through {
		if hash, err = g.hashAt(ctx, t, p, before.Through); err != nil {
			return false, err
		}
	}
	switch {
	case hash != before.Hash && hash != (protocol.Hash{}): // no hash is known inside of a hole
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

// steps at which Options.Fail is asked.
const (
	StepBegin     = "begin"         // before the transaction
	StepWritten   = "before commit" // all is written, and lost with an error
	StepCommitted = "after commit"  // all is stored; the caller of Commit gets the error
)

func (l *Ledger) step(name string) error {
	if l.fail == nil {
		return nil
	}
	return l.fail(name)
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
