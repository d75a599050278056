package ledger

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// judge looks at what binds an agent's streams together, when all of them have been followed.
func (a *agentAudit) judge(ctx context.Context, s *storeAudit, name string) error {
	if err := s.beyond(ctx, name, a); err != nil {
		return err
	}
	done := map[protocol.Epoch]bool{}
	for _, st := range a.order {
		if err := s.inherit(ctx, a, st.key.epoch, done); err != nil {
			return err
		}
	}
	for _, st := range a.order {
		if err := s.seal(ctx, st, a, a.seals[st.key.epoch]); err != nil {
			return err
		}
	}
	s.unmet(name, a)
	for _, st := range a.order {
		s.report.Unsigned += int64(st.through) - a.signed[st.key.epoch].records() - lost(s.gaps[st.key])
	}
	return nil
}

// A cover is which records of an epoch hang on something signed: by the last of a stretch, the
// hash of which an agent has signed, the record before its first. A stretch goes no further
// back than to a hole: the hash of a hole is not computed from the records before it.
type cover map[uint64]uint64

func (c cover) has(seq uint64) bool {
	for last, before := range c {
		if before < seq && seq <= last {
			return true
		}
	}
	return false
}

// records counts them.
func (c cover) records() (n int64) {
	furthest := map[uint64]uint64{}
	for last, before := range c {
		furthest[before] = max(furthest[before], last)
	}
	for before, last := range furthest {
		n += int64(last - before)
	}
	return n
}

// lost counts the records in the holes over which a stream moved.
func lost(gaps []gap) (n int64) {
	for _, g := range gaps {
		if g.moved() {
			n += int64(g.last - g.first + 1)
		}
	}
	return n
}

// sign notes that an agent signed the hash that the ledger has at a position.
func (a *agentAudit) sign(s *storeAudit, at protocol.Position) {
	st := a.streams[at.Epoch]
	if st == nil || at.Seq > st.through {
		return
	}
	var before uint64
	for _, g := range s.gaps[st.key] {
		switch {
		case !g.moved():
		case g.first <= at.Seq && at.Seq <= g.last:
			return // no record stands there
		case g.last < at.Seq:
			before = max(before, g.last)
		}
	}
	if a.signed[at.Epoch] == nil {
		a.signed[at.Epoch] = cover{}
	}
	a.signed[at.Epoch][at.Seq] = before
}

// inherit hands on what was signed in an epoch to the one that its seal names, and so on: a
// seal in a signed stretch is signed with it.
func (s *storeAudit) inherit(ctx context.Context, a *agentAudit, epoch protocol.Epoch, done map[protocol.Epoch]bool) error {
	for !done[epoch] && a.signed[epoch].has(1) {
		done[epoch] = true
		seal := a.seals[epoch]
		if seal == nil || seal.Before == nil {
			return nil
		}
		before := seal.Before
		p := a.streams[before.Epoch]
		if p == nil || before.Through > p.through {
			return nil
		}
		hash, ok, err := s.committed(ctx, p, before.Through, s.gaps[p.key])
		if err != nil {
			return err
		}
		if !ok || hash != before.Hash {
			return nil
		}
		a.sign(s, protocol.Position{Epoch: before.Epoch, Seq: before.Through})
		epoch = before.Epoch
	}
	return nil
}

// closed says that what stands last in a stream is signed, or is a mark of what is.
func (a *agentAudit) closed(p *stream) bool {
	c, m := a.signed[p.key.epoch], a.stands[protocol.Position{Epoch: p.key.epoch, Seq: p.through}]
	return c.has(p.through) || m != nil && m.met && m.signed == nil && m.Head.Epoch == p.key.epoch && m.Head.Through+1 == p.through && c.has(m.Head.Through)
}

// The alarms that are raised when a seal comes that disagrees, by how.
var (
	forkAlarms   = []string{AlarmFork, AlarmSealDiffers}
	firstAlarms  = []string{AlarmFork, AlarmSecondFirst}
	belowAlarms  = []string{AlarmFork, AlarmSealDiffers, AlarmSealBelow, AlarmBeyondSeal}
	secondAlarms = []string{AlarmFork, AlarmSealDiffers, AlarmSealBelow, AlarmSealedTwice}
)

// told says whether an alarm of some kinds speaks of an epoch: somebody says that what it names
// was seen when it came, and is nobody's later doing.
func (s *storeAudit) told(agent string, kinds []string, epochs ...protocol.Epoch) bool {
	return slices.ContainsFunc(s.alarms[agent], func(a Alarm) bool {
		return slices.Contains(kinds, a.Kind) && slices.ContainsFunc(epochs, func(e protocol.Epoch) bool { return strings.Contains(a.Detail, string(e)) })
	})
}

// disagree notes that a seal of an epoch disagrees with what the ledger has. Two words of the
// agent that do not agree, both of them signed, are a disk that lives twice or went back in
// time: then nothing is noted. An alarm says so too, but nobody signs it. Found says that
// nothing speaks for it.
func (s *storeAudit) disagree(agent string, epoch protocol.Epoch, w wrong, signed bool, kinds []string, epochs ...protocol.Epoch) (found bool) {
	switch {
	case signed && s.told(agent, kinds, epochs...):
		return false
	case signed:
		w.kind, w.what = wrongAlarm, w.what+"; the agent signed both, and the alarm that was raised when it came is gone"
	case s.told(agent, kinds, epochs...):
		w.what += "; an alarm says that it came so, and nothing signed does"
		s.alone(agent, epoch, w)
		return false
	}
	s.find(agent, epoch, w)
	return true
}

// alone notes what nobody signed, and the ledger alone says.
func (s *storeAudit) alone(agent string, epoch protocol.Epoch, w wrong) {
	w.kind = wrongAlarm
	s.report.Alarms = append(s.report.Alarms, Finding{Chain: s.chain, Store: s.store, Agent: agent, Epoch: epoch, Seq: w.seq, Last: w.last, Pos: w.pos, Kind: w.kind, What: w.what})
	if !s.opts.TrustAlarms {
		s.find(agent, epoch, w)
	}
}

// seal looks whether an epoch's first record names the end of the one before, as that one
// stands.
func (s *storeAudit) seal(ctx context.Context, st *stream, a *agentAudit, seal *protocol.Seal) error {
	if seal == nil {
		return nil // the records say what is wrong with that; or a hole took it
	}
	name, signed := st.key.agent, a.signed[st.key.epoch].has(1)
	before := seal.Before
	if seal.Forked && !s.told(name, forkAlarms, st.key.epoch) && (before == nil || !s.told(name, forkAlarms, before.Epoch)) {
		s.find(name, st.key.epoch, wrong{kind: wrongAlarm, seq: 1, last: 1, what: "says that the epoch before it forked, and the alarm that was raised when it came is gone"})
	}
	if before == nil {
		if a.firsts++; a.firsts > 1 && !seal.Forked {
			s.disagree(name, st.key.epoch, wrong{kind: wrongSeal, seq: 1, what: "says that it is the agent's first, and it is not"}, signed, firstAlarms, st.key.epoch)
		}
		return nil
	}
	if a.sealed[before.Epoch] && !s.told(name, secondAlarms, before.Epoch, st.key.epoch) {
		s.find(name, st.key.epoch, wrong{kind: wrongAlarm, seq: 1, last: 1, what: fmt.Sprintf("seals epoch %s a second time, and the alarm that was raised when it came is gone", before.Epoch)})
	}
	p := a.streams[before.Epoch]
	a.sealed[before.Epoch] = p != nil
	disagree := func(w wrong, signed bool, kinds []string) {
		if a.wrong[before.Epoch] == nil && s.disagree(name, before.Epoch, w, signed, kinds, before.Epoch, st.key.epoch) {
			a.wrong[before.Epoch] = &w
		}
	}
	// An epoch that forked names the end of what was acknowledged to its agent; that may be gone
	// when the ledger was put back to a backup.
	gone := signed && seal.Forked && s.raised
	switch {
	case p == nil:
		disagree(wrong{kind: wrongMissing, seq: 1, last: before.Through, what: fmt.Sprintf("epoch %s goes on from there, and the ledger has nothing of it", st.key.epoch)}, gone, forkAlarms)
		return nil
	case p.through < before.Through:
		disagree(wrong{kind: wrongMissing, seq: p.through + 1, last: before.Through, what: fmt.Sprintf("epoch %s goes on behind them, and its stream ends before", st.key.epoch)}, gone, forkAlarms)
		return nil
	case p.through > before.Through:
		disagree(wrong{kind: wrongInserted, seq: before.Through + 1, last: p.through, what: fmt.Sprintf("stands behind the end that epoch %s names", st.key.epoch)},
			signed && a.closed(p), belowAlarms)
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
		disagree(w, signed && a.signed[before.Epoch].has(before.Through), forkAlarms)
	}
	if p.sealed < 0 && !seal.Forked {
		s.find(name, before.Epoch, wrong{kind: wrongColumns, seq: p.through, what: fmt.Sprintf("its stream's row says that it is open, and epoch %s seals it", st.key.epoch)})
	}
	return nil
}
