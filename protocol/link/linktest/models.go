// Package linktest has models of both ends of the link in memory, and a line between them
// that loses, doubles, delays, reorders and cuts, all on a virtual clock and from one seed.
package linktest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

// Origin is the agent of the models.
func Origin() protocol.Origin { return protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"} }

// An epoch is one stream of the model.
type epoch struct {
	id      protocol.Epoch
	records []protocol.Record
	hashes  []protocol.Hash // hashes[0] is the genesis hash
	acked   uint64
	closed  bool
}

// A Source is an agent's stream in memory. It is safe for concurrent use.
type Source struct {
	mu          sync.Mutex // guards what follows
	epochs      []*epoch
	last        *protocol.Mark
	incarnation int64
	wake        chan struct{}
}

// NewSource makes a source without records.
func NewSource() *Source { return &Source{wake: make(chan struct{}, 1)} }

// Begin closes the epoch under way and begins a new one with its seal; its id is made from n.
func (s *Source) Begin(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var seal protocol.Seal
	if len(s.epochs) > 0 {
		before := s.epochs[len(s.epochs)-1]
		before.closed = true
		last := uint64(len(before.records))
		seal.Before = &protocol.Mark{Epoch: before.id, Through: last, Hash: before.hashes[last]}
	}
	s.begin(n, seal)
}

// begin needs s.mu.
func (s *Source) begin(n int, seal protocol.Seal) {
	body, err := json.Marshal(seal)
	if err != nil {
		panic(err) // it is made of strings and numbers
	}
	id := protocol.Epoch(fmt.Sprintf("%032x", n))
	o := Origin()
	s.epochs = append(s.epochs, &epoch{id: id, hashes: []protocol.Hash{protocol.Genesis(o.Chain, o.Store, o.Agent, id)}})
	s.add(protocol.KindSeal, body)
}

// Append makes a record with a body of so many bytes durable.
func (s *Source) Append(size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(protocol.KindFootfall, fmt.Appendf(nil, `{"pad":"%s"}`, strings.Repeat("x", size)))
}

// add needs s.mu.
func (s *Source) add(kind protocol.Kind, body []byte) {
	e := s.epochs[len(s.epochs)-1]
	r := protocol.Record{Seq: uint64(len(e.records) + 1), Kind: kind, At: "2026-11-21T10:00:00Z", Body: body}
	e.records = append(e.records, r)
	e.hashes = append(e.hashes, r.Hash(e.hashes[len(e.hashes)-1]))
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Source) find(id protocol.Epoch) (int, *epoch) {
	for i, e := range s.epochs {
		if e.id == id {
			return i, e
		}
	}
	return -1, nil
}

// Heads implements link.Source.
func (s *Source) Heads() (oldest, newest protocol.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.epochs {
		n := uint64(len(e.records))
		if n > 0 {
			newest = protocol.Position{Epoch: e.id, Seq: n}
		}
		if oldest.Seq == 0 && e.acked < n {
			oldest = protocol.Position{Epoch: e.id, Seq: e.acked + 1}
		}
	}
	return oldest, newest
}

// Read implements link.Source.
func (s *Source) Read(from protocol.Position, maxRecords, maxBytes int) (protocol.Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, e := s.find(from.Epoch)
	if e == nil || from.Seq < 1 || from.Seq > uint64(len(e.records))+1 {
		return protocol.Batch{}, fmt.Errorf("no record %s", from)
	}
	b := protocol.Batch{Epoch: from.Epoch, First: from.Seq, Prev: e.hashes[from.Seq-1]}
	bytes := 0
	for _, r := range e.records[from.Seq-1:] {
		bytes += len(r.AppendJSON(nil))
		if len(b.Records) > 0 && (len(b.Records) == maxRecords || bytes > maxBytes) {
			break
		}
		b.Records = append(b.Records, r)
	}
	return b, nil
}

// Next implements link.Source.
func (s *Source) Next(p protocol.Position) protocol.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, e := s.find(p.Epoch)
	if e != nil && e.closed && p.Seq == uint64(len(e.records)) && i+1 < len(s.epochs) {
		return protocol.Position{Epoch: s.epochs[i+1].id, Seq: 1}
	}
	return protocol.Position{Epoch: p.Epoch, Seq: p.Seq + 1}
}

// Acked implements link.Source.
func (s *Source) Acked(m protocol.Mark, incarnation int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, e := s.find(m.Epoch)
	if e == nil || m.Through >= uint64(len(e.hashes)) || e.hashes[m.Through] != m.Hash {
		return link.ErrFork
	}
	for _, before := range s.epochs[:i] {
		before.acked = uint64(len(before.records))
	}
	if m.Through > e.acked {
		e.acked = m.Through
		s.last = &m
	}
	s.incarnation = max(s.incarnation, incarnation)
	return nil
}

// LastAck implements link.Source.
func (s *Source) LastAck() (*protocol.Mark, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.incarnation
}

// Fork implements link.Source.
func (s *Source) Fork(string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	type moved struct {
		record protocol.Record
		was    protocol.Was
	}
	var again []moved
	for _, e := range s.epochs {
		e.closed = true
		for _, r := range e.records[e.acked:] {
			was := protocol.Was{Epoch: e.id, Seq: r.Seq, SHA256: r.ContentHash()}
			if r.Was != nil {
				was = *r.Was
			}
			if r.Kind != protocol.KindSeal {
				again = append(again, moved{r, was})
			}
		}
		e.acked = uint64(len(e.records))
	}
	s.begin(len(s.epochs)+1000, protocol.Seal{Before: s.last, Forked: true})
	e := s.epochs[len(s.epochs)-1]
	for _, m := range again {
		s.add(m.record.Kind, m.record.Body)
		r := &e.records[len(e.records)-1]
		r.At, r.Was = m.record.At, &m.was
		e.hashes[r.Seq] = r.Hash(e.hashes[r.Seq-1])
	}
	return nil
}

// Epochs implements link.Source.
func (s *Source) Epochs(after protocol.Epoch, n int) []protocol.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []protocol.Epoch
	i, _ := s.find(after)
	for _, e := range s.epochs[i+1:] {
		if len(out) < n {
			out = append(out, e.id)
		}
	}
	return out
}

// Rewind implements link.Source.
func (s *Source) Rewind(marks []protocol.Mark, incarnation int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range marks {
		if _, e := s.find(m.Epoch); e != nil && m.Through < uint64(len(e.hashes)) && e.hashes[m.Through] == m.Hash {
			e.acked = m.Through
		}
	}
	s.last, s.incarnation = nil, incarnation
	return nil
}

// Wake implements link.Source.
func (s *Source) Wake() <-chan struct{} { return s.wake }

// Total is the number of records.
func (s *Source) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.epochs {
		n += len(e.records)
	}
	return n
}

// A Replica is an agent's copy of the feeds in memory.
type Replica struct {
	mu     sync.Mutex // guards what follows
	cursor map[string]int64
	values map[string]map[string]string // feed, key
}

// NewReplica makes an empty replica.
func NewReplica() *Replica {
	return &Replica{cursor: map[string]int64{}, values: map[string]map[string]string{}}
}

// Cursor implements link.Replica.
func (r *Replica) Cursor(feed string) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cursor[feed], nil
}

// Apply implements link.Replica.
func (r *Replica) Apply(p protocol.FeedPage) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.From != r.cursor[p.Feed] {
		return nil
	}
	if r.values[p.Feed] == nil {
		r.values[p.Feed] = map[string]string{}
	}
	for _, c := range p.Changes {
		r.values[p.Feed][c.Key] = string(c.Body)
	}
	r.cursor[p.Feed] = p.To
	return nil
}

// Values are the feed's keys and bodies.
func (r *Replica) Values(feed string) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for k, v := range r.values[feed] {
		out[k] = v
	}
	return out
}

// A Sink is a ledger in memory: it takes a stream in order, once, and checks its hashes. It
// is safe for concurrent use.
type Sink struct {
	// Incarnation is in every answer; set it before use.
	Incarnation int64
	// Fail, when set, is asked before each commit: its error is a failing store.
	Fail func() error
	// Judge, when set, may answer a batch in the ledger's place with another verdict.
	Judge func(protocol.Batch) protocol.Verdict

	mu     sync.Mutex // guards what follows
	hashes map[protocol.Epoch][]protocol.Hash
	order  []protocol.Position
	raw    []string
	feed   []protocol.Change
}

// NewSink makes an empty sink of incarnation 1.
func NewSink() *Sink {
	return &Sink{Incarnation: 1, hashes: map[protocol.Epoch][]protocol.Hash{}}
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
	hashes := s.hashes[b.Epoch]
	if hashes == nil {
		hashes = []protocol.Hash{protocol.Genesis(from.Chain, from.Store, from.Agent, b.Epoch)}
	}
	through := uint64(len(hashes) - 1)
	answer := protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: s.Incarnation, Epoch: b.Epoch, Through: through, Hash: hashes[through]}
	if s.Judge != nil {
		if v := s.Judge(b); v != "" {
			answer.Verdict, answer.Reason = v, "as the test wants"
			return answer, nil
		}
	}
	if b.Raw != nil {
		var r protocol.Record
		if err := r.UnmarshalJSON(b.Raw); err != nil {
			return answer, nil //nolint:nilerr // unreadable raw is known all the same
		}
		s.raw = append(s.raw, string(b.Raw))
		b.Records = []protocol.Record{r}
	}
	if b.First > through+1 {
		answer.Verdict = protocol.VerdictGap
		return answer, nil
	}
	if b.First == 1 && through == 0 {
		if gap, ok := s.predecessor(b.Records[0].Body); !ok {
			gap.Incarnation = s.Incarnation
			return gap, nil
		}
	}
	if hashes[b.First-1] != b.Prev {
		answer.Verdict = protocol.VerdictFork
		return answer, nil
	}
	for i := range b.Records {
		r := &b.Records[i]
		hash := r.Hash(hashes[r.Seq-1])
		if r.Seq < uint64(len(hashes)) {
			if hashes[r.Seq] != hash {
				answer.Verdict = protocol.VerdictFork
				return answer, nil
			}
			continue
		}
		hashes = append(hashes, hash)
		s.order = append(s.order, protocol.Position{Epoch: b.Epoch, Seq: r.Seq})
	}
	s.hashes[b.Epoch] = hashes
	answer.Through = uint64(len(hashes) - 1)
	answer.Hash = hashes[answer.Through]
	return answer, nil
}

// predecessor checks that the epoch before a seal is complete, and else answers from where it
// is wanted. It needs s.mu.
func (s *Sink) predecessor(body []byte) (protocol.Answer, bool) {
	seal, err := protocol.DecodeSeal(body)
	if err != nil || seal.Before == nil {
		return protocol.Answer{}, err == nil
	}
	known := uint64(max(len(s.hashes[seal.Before.Epoch]), 1) - 1)
	return protocol.Answer{Verdict: protocol.VerdictGap, Epoch: seal.Before.Epoch, Through: known}, known == seal.Before.Through
}

// Welcome implements link.Sink.
func (s *Sink) Welcome(_ context.Context, _ protocol.Origin, h protocol.Hello) (protocol.Welcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := protocol.Welcome{Incarnation: s.Incarnation, Time: "2026-11-21T10:00:00Z"}
	for _, e := range []protocol.Epoch{h.Oldest.Epoch, h.Newest.Epoch} {
		if hashes := s.hashes[e]; len(hashes) > 0 {
			w.Marks = append(w.Marks, protocol.Mark{Epoch: e, Through: uint64(len(hashes) - 1), Hash: hashes[len(hashes)-1]})
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
		mark := protocol.Mark{Epoch: e, Hash: protocol.Genesis(from.Chain, from.Store, from.Agent, e)}
		if hashes := s.hashes[e]; len(hashes) > 0 {
			mark.Through, mark.Hash = uint64(len(hashes)-1), hashes[len(hashes)-1]
		}
		m.Marks = append(m.Marks, mark)
	}
	return m, nil
}

// Put changes a key of every feed.
func (s *Sink) Put(key, body string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	version := int64(len(s.feed) + 1)
	s.feed = append(s.feed, protocol.Change{Key: key, Version: version, Body: []byte(body)})
	return version
}

// FeedPage implements link.Sink: pages of three changes.
func (s *Sink) FeedPage(_ context.Context, _ protocol.Origin, ask protocol.FeedAsk) (protocol.FeedPage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := min(ask.After, int64(len(s.feed)))
	to := min(from+3, int64(len(s.feed)))
	return protocol.FeedPage{Feed: ask.Feed, From: ask.After, To: to, More: to < int64(len(s.feed)), Changes: s.feed[from:to]}, nil
}

// Values are the feed's newest bodies.
func (s *Sink) Values() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for _, c := range s.feed {
		out[c.Key] = string(c.Body)
	}
	return out
}

// Committed are the positions in the order of their commit.
func (s *Sink) Committed() []protocol.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]protocol.Position(nil), s.order...)
}

// Raw are the records that came as raw bytes.
func (s *Sink) Raw() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.raw...)
}

// Check compares the sink with the source: everything committed, once, in order, and all of
// it acknowledged.
func Check(source *Source, sink *Sink) error {
	source.mu.Lock()
	var want []protocol.Position
	for _, e := range source.epochs {
		for i := range e.records {
			want = append(want, protocol.Position{Epoch: e.id, Seq: uint64(i + 1)})
		}
	}
	source.mu.Unlock()
	got := sink.Committed()
	if len(got) != len(want) {
		return fmt.Errorf("%d records committed, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("commit %d is %s, want %s", i, got[i], want[i])
		}
	}
	if oldest, _ := source.Heads(); oldest != (protocol.Position{}) {
		return fmt.Errorf("%s and what follows is not acknowledged", oldest)
	}
	return nil
}

// Sound checks what must hold at every moment: nothing is acknowledged that is not committed.
func Sound(source *Source, sink *Sink) error {
	source.mu.Lock()
	defer source.mu.Unlock()
	sink.mu.Lock()
	defer sink.mu.Unlock()
	for _, e := range source.epochs {
		if committed := max(len(sink.hashes[e.id]), 1) - 1; e.acked > uint64(committed) {
			return fmt.Errorf("epoch %s is acknowledged through %d, committed through %d", e.id, e.acked, committed)
		}
	}
	return nil
}
