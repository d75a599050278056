package journal

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

// A builder makes a group of what belongs together. Only the committer moves an epoch's last
// and hash, so it counts on from them.
type builder struct {
	j    *Journal
	g    *group
	e    *epoch
	seq  uint64
	prev protocol.Hash
	at   string
	mono int64
}

func (j *Journal) build() *builder {
	e := j.current()
	return &builder{j: j, g: &group{}, e: e, seq: e.last, prev: e.hash, at: j.opt.Now().Format(timeForm), mono: j.opt.Mono().Milliseconds()}
}

// add gives a record its place, and its time unless it has one.
func (b *builder) add(s *stored) {
	b.seq++
	s.ord, s.prev, s.rec.Seq = b.e.ord, b.prev, b.seq
	if s.rec.At == "" {
		s.rec.At, s.rec.Mono = b.at, b.mono
	}
	p := part{typ: typeRecord, payload: s.encode(), rec: s, hash: s.rec.Hash(b.prev)}
	if b.seq == 1 {
		p.begins = b.e
	}
	b.g.parts = append(b.g.parts, p)
	b.prev = p.hash
}

// begin sees to it that the epoch has its seal.
func (b *builder) begin() {
	if b.seq == 0 {
		b.add(&stored{rec: protocol.Record{Kind: protocol.KindSeal, Body: b.j.sealBody(b.e)}})
	}
}

// finish gives the group, with the point that the index has once it has it.
func (b *builder) finish() *group {
	b.g.point = point{ord: b.e.ord, seq: b.seq, hash: b.prev}
	return b.g
}

// head is the mark of the record before the next.
func (b *builder) head() protocol.Mark {
	return protocol.Mark{Epoch: b.e.id, Through: b.seq, Hash: b.prev}
}

// take turns requests into the parts of a group and into the answers that they get once it
// is durable.
func (b *builder) take(reqs []*request, space space) []answer {
	answers := make([]answer, len(reqs))
	keys := b.j.lookup(reqs)
	defer keys.end()
	feeds := map[string]feedState{}
	for i, r := range reqs {
		if r.page != nil {
			if answers[i].err = space.refuses(true); answers[i].err == nil {
				b.page(r.page, feeds)
			}
			continue
		}
		answers[i].receipt, answers[i].err = b.entry(r, keys, space)
	}
	return answers
}

// page adds a feed's page that follows the feed's cursor.
func (b *builder) page(page *protocol.FeedPage, feeds map[string]feedState) {
	st, ok := feeds[page.Feed]
	if !ok {
		st = b.j.feed(page.Feed)
	}
	next, gen, ok := st.step(page)
	if !ok {
		return
	}
	b.begin()
	feeds[page.Feed] = next
	b.g.parts = append(b.g.parts, part{typ: typePage, payload: encodePage(page), page: page, gen: gen, feed: next, swap: next.active != st.active})
}

// entry adds a record, unless its keys are known.
func (b *builder) entry(r *request, keys *lookup, space space) (Receipt, error) {
	j, en := b.j, r.entry
	k, found, err := keys.find(r)
	if err != nil {
		return Receipt{}, err
	}
	if found {
		receipt := Receipt{Position: j.position(k), At: k.at, Known: k.digest == digest(en.Digest[:])}
		if !receipt.Known {
			return receipt, fmt.Errorf("%w: %s", ErrConflict, receipt.Position)
		}
		return receipt, nil
	}
	if err := space.refuses(en.Minor); err != nil {
		return Receipt{}, err
	}
	if mutant.On(mutant.StateApart) && en.StateKey != "" {
		j.mu.Lock()
		j.overlay.states[en.StateKey] = held[[]byte]{en.State, math.MaxUint64}
		j.mu.Unlock()
		en.StateKey = ""
	}
	b.begin()
	if en.Make != nil {
		if en.Body, err = en.Make(b.head()); err != nil {
			return Receipt{}, err
		}
	}
	b.add(&stored{
		rec:  protocol.Record{Kind: en.Kind, Day: en.Day, Body: en.Body, Key: en.Key},
		keys: en.Keys, digest: en.Digest, stateKey: en.StateKey, state: en.State,
	})
	for _, h := range r.hashes {
		keys.newer[h] = known{ord: b.e.ord, seq: b.seq, digest: digest(en.Digest[:]), at: b.at}
	}
	return Receipt{Position: protocol.Position{Epoch: b.e.id, Seq: b.seq}, At: b.at}, nil
}

func (j *Journal) sealBody(e *epoch) []byte {
	body, _ := json.Marshal(j.sealOf(e)) // strings, numbers and hashes always encode
	return body
}

func (j *Journal) sealOf(e *epoch) protocol.Seal {
	seal := protocol.Seal{BootID: j.opt.BootID, Versions: j.opt.Versions}
	switch {
	case e.fork != nil:
		seal.Forked, seal.Before = true, e.fork.acked
	case e.before != nil:
		seal.Before = &e.before.mark
	}
	return seal
}
