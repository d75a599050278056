package linktest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/storelay/storelay/protocol"
)

// A Sink is a ledger in memory: it takes each stream in order, checks its hashes, and applies
// each record once. It is safe for concurrent use.
type Sink struct {
	// Incarnation is in every answer; set it before use.
	Incarnation int64
	// Fail, when set, is asked before each commit: its error is a failing store.
	Fail func() error
	// Judge, when set, may answer a batch in the ledger's place with another verdict.
	Judge func(protocol.Batch) protocol.Verdict

	mu      sync.Mutex // guards what follows
	books   books
	highest int64 // incarnation ever
	raw     []string
	silent  bool // it was restored, and nobody has noticed yet
}

// books are what a backup holds.
type books struct {
	incarnation int64
	streams     map[protocol.Epoch]*stream
	was         map[protocol.Was]bool
	order       []protocol.Position   // as committed
	applied     map[protocol.Hash]int // content: its place in the order of applying
	holes       []protocol.Loss       // skips, and losses that records told of
	feed        []protocol.Change
	floor       int64 // cursors below it are of an older incarnation
	faults      []string
}

// A stream is one epoch as committed.
type stream struct {
	through uint64
	hash    map[uint64]protocol.Hash // not inside holes
	content map[uint64]protocol.Hash // as hash
}

// NewSink makes an empty sink of incarnation 1.
func NewSink() *Sink {
	return &Sink{Incarnation: 1, books: books{streams: map[protocol.Epoch]*stream{}, was: map[protocol.Was]bool{}, applied: map[protocol.Hash]int{}}}
}

// A Backup is a sink as it stood.
type Backup struct{ books books }

// Backup copies the sink.
func (s *Sink) Backup() Backup {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.books.incarnation = s.Incarnation
	return Backup{s.books.copy()}
}

func (b *books) copy() books {
	c := *b
	c.streams = map[protocol.Epoch]*stream{}
	for e, st := range b.streams {
		c.streams[e] = &stream{st.through, maps.Clone(st.hash), maps.Clone(st.content)}
	}
	c.was, c.applied = maps.Clone(b.was), maps.Clone(b.applied)
	c.order, c.holes, c.feed = slices.Clone(b.order), slices.Clone(b.holes), slices.Clone(b.feed)
	c.faults = slices.Clone(b.faults)
	return c
}

// Restore makes the sink what it was. A restore command raises the incarnation above all that
// there were; a silent one leaves that to the first hello that shows a lost ack, and must be of
// the present incarnation. Its connections must be cut.
func (s *Sink) Restore(b Backup, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.books = b.books.copy()
	s.highest = max(s.highest, s.Incarnation)
	if s.silent = silent; !silent {
		s.raise()
	}
}

// raise needs s.mu.
func (s *Sink) raise() {
	s.highest = max(s.highest, s.Incarnation) + 1
	s.Incarnation, s.silent = s.highest, false
	s.books.floor = s.highest * 1_000_000 // above every version that there was
	for i := range s.books.feed {
		s.books.feed[i].Version = s.books.floor + int64(i) + 1
	}
}

// Silent says whether the sink was restored and nobody has noticed.
func (s *Sink) Silent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent
}

// stream needs s.mu.
func (s *Sink) stream(from protocol.Origin, e protocol.Epoch) *stream {
	if st := s.books.streams[e]; st != nil {
		return st
	}
	return &stream{
		hash:    map[uint64]protocol.Hash{0: protocol.Genesis(from.Chain, from.Store, from.Agent, e)},
		content: map[uint64]protocol.Hash{},
	}
}

func (st *stream) mark(e protocol.Epoch) protocol.Mark {
	return protocol.Mark{Epoch: e, Through: st.through, Hash: st.hash[st.through]}
}

// Commit implements link.Sink.
func (s *Sink) Commit(_ context.Context, from protocol.Origin, b protocol.Batch) (protocol.Answer, error) {
	if s.Fail != nil {
		if err := s.Fail(); err != nil {
			return protocol.Answer{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stream(from, b.Epoch)
	answer := func(v protocol.Verdict, m protocol.Mark, reason string) (protocol.Answer, error) {
		return protocol.Answer{Verdict: v, Incarnation: s.Incarnation, Epoch: m.Epoch, Through: m.Through, Hash: m.Hash, Reason: reason}, nil
	}
	if s.Judge != nil {
		if v := s.Judge(b); v != "" {
			return answer(v, st.mark(b.Epoch), "as the test wants")
		}
	}
	if b.Raw != nil {
		var r protocol.Record
		err := r.UnmarshalJSON(b.Raw)
		if err != nil && b.Skip == nil {
			return answer(protocol.VerdictRefused, st.mark(b.Epoch), err.Error())
		}
		s.raw = append(s.raw, string(b.Raw))
		if err == nil {
			b.Skip, b.Records = nil, []protocol.Record{r}
		}
	}
	if b.First > st.through+1 {
		return answer(protocol.VerdictGap, st.mark(b.Epoch), "")
	}
	if st.through == 0 {
		if want, ok := s.predecessor(from, &b); !ok {
			return answer(protocol.VerdictGap, want, "")
		}
	}
	if !st.take(&b) {
		return answer(protocol.VerdictFork, st.mark(b.Epoch), "its hash is another")
	}
	s.commit(st, &b)
	return answer(protocol.VerdictAck, st.mark(b.Epoch), "")
}

// predecessor checks that the epoch before a seal is complete, and else says where it
// stands. It needs s.mu.
func (s *Sink) predecessor(from protocol.Origin, b *protocol.Batch) (protocol.Mark, bool) {
	var seal protocol.Seal
	if b.Skip == nil {
		var err error
		if seal, err = protocol.DecodeSeal(b.Records[0].Body); err != nil {
			return protocol.Mark{}, false
		}
	} else if b.Skip.Seal != nil {
		seal = *b.Skip.Seal
	}
	if seal.Before == nil || seal.Forked {
		return protocol.Mark{}, true
	}
	before := s.stream(from, seal.Before.Epoch)
	return before.mark(seal.Before.Epoch), before.through >= seal.Before.Through
}

// take checks a batch against what is known; false when it is another's.
func (st *stream) take(b *protocol.Batch) bool {
	fits := func(seq uint64, hash protocol.Hash) bool {
		known, is := st.hash[seq]
		return !is || known == hash
	}
	hash := b.Prev
	if (b.Skip == nil || hash != protocol.Hash{}) && !fits(b.First-1, hash) {
		return false
	}
	if b.Skip != nil {
		if hash = b.Skip.Hash; !fits(b.Skip.To, hash) {
			return false
		}
	}
	for i := range b.Records {
		if hash = b.Records[i].Hash(hash); !fits(b.Records[i].Seq, hash) {
			return false
		}
	}
	return true
}

// commit applies what is new in a batch. It needs s.mu.
func (s *Sink) commit(st *stream, b *protocol.Batch) {
	s.books.streams[b.Epoch] = st
	hash := b.Prev
	if b.Skip != nil {
		if hash = b.Skip.Hash; b.Skip.To > st.through {
			// What stands at its beginning may be another copy's, so the whole skip is named.
			s.books.holes = append(s.books.holes, protocol.Loss{Epoch: b.Epoch, From: b.Skip.From, To: b.Skip.To, Reason: b.Skip.Reason})
			st.through, st.hash[b.Skip.To] = b.Skip.To, hash
		}
	}
	for i := range b.Records {
		r := &b.Records[i]
		if hash = r.Hash(hash); r.Seq <= st.through {
			continue
		}
		at := protocol.Position{Epoch: b.Epoch, Seq: r.Seq}
		st.through, st.hash[r.Seq], st.content[r.Seq] = r.Seq, hash, r.ContentHash()
		s.books.order = append(s.books.order, at)
		s.apply(at, r)
	}
}

// apply applies a record unless it is known under its first position. It needs s.mu.
func (s *Sink) apply(at protocol.Position, r *protocol.Record) {
	first := protocol.Was{Epoch: at.Epoch, Seq: at.Seq, SHA256: r.ContentHash()}
	known := s.books.was[first]
	if r.Was != nil {
		if r.Was.SHA256 != first.SHA256 {
			s.books.faults = append(s.books.faults, fmt.Sprintf("%s was %+v, which is another content", at, *r.Was))
			return
		}
		st := s.books.streams[r.Was.Epoch]
		known = s.books.was[*r.Was] || st != nil && st.content[r.Was.Seq] == first.SHA256
		s.books.was[*r.Was] = true
	}
	switch {
	case known || r.Kind == protocol.KindSeal:
	case r.Kind == protocol.KindLoss:
		loss, err := protocol.DecodeLoss(r.Body)
		if err != nil {
			s.books.faults = append(s.books.faults, fmt.Sprintf("%s: %v", at, err))
		}
		s.books.holes = append(s.books.holes, loss)
	default:
		if _, twice := s.books.applied[first.SHA256]; twice {
			s.books.faults = append(s.books.faults, fmt.Sprintf("%s was applied before", at))
		}
		s.books.applied[first.SHA256] = len(s.books.applied)
	}
}

// Welcome implements link.Sink: an ack of this incarnation that is not in the books proves
// that they went back in time.
func (s *Sink) Welcome(_ context.Context, from protocol.Origin, h protocol.Hello) (protocol.Welcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := []protocol.Epoch{h.Oldest.Epoch, h.Newest.Epoch}
	if h.LastAck != nil {
		named = append(named, h.LastAck.Epoch)
		hash, is := s.stream(from, h.LastAck.Epoch).hash[h.LastAck.Through]
		if h.Incarnation == s.Incarnation && (s.stream(from, h.LastAck.Epoch).through < h.LastAck.Through || is && hash != h.LastAck.Hash) {
			s.raise()
		}
	}
	w := protocol.Welcome{Incarnation: s.Incarnation, Time: now}
	for i, e := range named {
		if e != "" && !slices.Contains(named[:i], e) {
			w.Marks = append(w.Marks, s.stream(from, e).mark(e))
		}
	}
	return w, nil
}

// Marks implements link.Sink.
func (s *Sink) Marks(_ context.Context, from protocol.Origin, ask protocol.MarksAsk) (protocol.Marks, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := protocol.Marks{Incarnation: s.Incarnation}
	for _, e := range ask.Epochs {
		m.Marks = append(m.Marks, s.stream(from, e).mark(e))
	}
	return m, nil
}

// version needs s.mu.
func (s *Sink) version() int64 {
	if n := len(s.books.feed); n > 0 {
		return s.books.feed[n-1].Version
	}
	return s.books.floor
}

// Put changes a key of every feed.
func (s *Sink) Put(key, body string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	version := s.version() + 1
	s.books.feed = append(s.books.feed, protocol.Change{Key: key, Version: version, Body: []byte(body)})
	return version
}

// FeedPage implements link.Sink: pages of three changes, and the whole feed at once for a
// cursor that it cannot go on from.
func (s *Sink) FeedPage(_ context.Context, _ protocol.Origin, ask protocol.FeedAsk) (protocol.FeedPage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	page := protocol.FeedPage{Feed: ask.Feed, From: ask.After, To: ask.After}
	if ask.After != 0 && (ask.After < s.books.floor || ask.After > s.version()) {
		page.Reset, page.To, page.Changes = true, s.version(), slices.Clone(s.books.feed)
		return page, nil
	}
	for _, c := range s.books.feed {
		if c.Version <= ask.After {
			continue
		}
		if page.More = len(page.Changes) == 3; page.More {
			break
		}
		page.Changes, page.To = append(page.Changes, c), c.Version
	}
	return page, nil
}

// Values are the feed's newest bodies.
func (s *Sink) Values() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for _, c := range s.books.feed {
		out[c.Key] = string(c.Body)
	}
	return out
}

// Committed are the positions in the order of their commit.
func (s *Sink) Committed() []protocol.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.books.order)
}

// Raw are the records that came as raw bytes.
func (s *Sink) Raw() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.raw)
}
