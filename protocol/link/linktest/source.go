// Package linktest has models of both ends of the link in memory, and a line between them
// that loses, doubles, delays, reorders and cuts, all on a virtual clock and from one seed.
// The models keep the whole contract of docs/protocol.md, and what can go wrong with a disk:
// an agent's that is cloned, rolled back or damaged, a ledger's that is restored.
package linktest

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

// Origin is the agent of the models.
func Origin() protocol.Origin { return protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"} }

// An epoch is one stream of the model.
type epoch struct {
	id      protocol.Epoch
	records []protocol.Record
	hashes  []protocol.Hash   // hashes[0] is the genesis hash
	lost    map[uint64]string // seqs that are not held any more, and why
	sealed  bool              // its seal is known even when the record is lost
	acked   uint64
	closed  bool
	forked  bool
	end     uint64 // of a forked one: what stands behind it has gone on in another epoch
}

// last is the last seq that is sent.
func (e *epoch) last() uint64 {
	if e.forked {
		return e.end
	}
	return uint64(len(e.records))
}

// An accepted record, and where it stood, first position first.
type accepted struct {
	content protocol.Hash
	at      []protocol.Position
}

// disk is what a source keeps over a crash.
type disk struct {
	epochs   []*epoch
	accepted []accepted
	acks     acks
}

// acks are written a little later than they come: a crash takes back the newest.
type acks struct {
	last        *protocol.Mark
	lastEpoch   int // its place in the agent's order
	incarnation int64
	through     []uint64 // by epoch
}

// history is what all copies of a disk share.
type history struct {
	n      atomic.Int64 // records and forks so far
	mu     sync.Mutex   // guards lost
	damage map[protocol.Position]bool
}

// A Source is an agent's stream in memory. It is safe for concurrent use.
type Source struct {
	mu      sync.Mutex // guards disk and synced
	disk    disk
	synced  acks
	history *history
	wake    chan struct{}
}

// NewSource makes a source without records.
func NewSource() *Source {
	return &Source{wake: make(chan struct{}, 1), history: &history{damage: map[protocol.Position]bool{}}}
}

// Begin closes the epoch under way and begins a new one with its seal; its id is made from n.
func (s *Source) Begin(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var seal protocol.Seal
	if before := s.newest(); before != nil {
		before.closed = true
		last := uint64(len(before.records))
		seal.Before = &protocol.Mark{Epoch: before.id, Through: last, Hash: before.hashes[last]}
	}
	s.begin(protocol.Epoch(fmt.Sprintf("%032x", n)), seal)
}

// Restart is Begin with an id that no copy of this disk has used.
func (s *Source) Restart() { s.Begin(int(s.history.n.Add(1)) + 1_000_000) }

func (s *Source) newest() *epoch {
	if len(s.disk.epochs) == 0 {
		return nil
	}
	return s.disk.epochs[len(s.disk.epochs)-1]
}

// begin needs s.mu.
func (s *Source) begin(id protocol.Epoch, seal protocol.Seal) {
	body, err := json.Marshal(seal)
	if err != nil {
		panic(err) // it is made of strings and numbers
	}
	o := Origin()
	s.disk.epochs = append(s.disk.epochs, &epoch{
		id: id, sealed: true, lost: map[uint64]string{}, hashes: []protocol.Hash{protocol.Genesis(o.Chain, o.Store, o.Agent, id)},
	})
	s.add(protocol.Record{Kind: protocol.KindSeal, At: now, Body: body})
}

const now = "2026-11-21T10:00:00Z"

// Append makes a record with a body of so many bytes durable.
func (s *Source) Append(size int) {
	s.AppendBody(fmt.Appendf(nil, `{"n":%d,"pad":"%s"}`, s.history.n.Add(1), strings.Repeat("x", size)))
}

// AppendBody makes a record durable. Its body is not that of another.
func (s *Source) AppendBody(body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.add(protocol.Record{Kind: protocol.KindFootfall, At: now, Body: body})
	r := s.newest().records[at.Seq-1]
	s.disk.accepted = append(s.disk.accepted, accepted{r.ContentHash(), []protocol.Position{at}})
}

// add writes a record behind the newest, together with the acks. It needs s.mu.
func (s *Source) add(r protocol.Record) protocol.Position {
	e := s.newest()
	r.Seq = uint64(len(e.records) + 1)
	e.records = append(e.records, r)
	e.hashes = append(e.hashes, r.Hash(e.hashes[len(e.hashes)-1]))
	s.sync()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return protocol.Position{Epoch: e.id, Seq: r.Seq}
}

// sync needs s.mu.
func (s *Source) sync() {
	s.synced = s.disk.acks
	s.synced.through = nil
	for _, e := range s.disk.epochs {
		s.synced.through = append(s.synced.through, e.acked)
	}
}

// Crash takes back the acks that came since the last record, as a power cut does.
func (s *Source) Crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range s.disk.epochs {
		e.acked = s.synced.through[i]
	}
	s.disk.acks = s.synced
}

// Copy is the same disk in another PC, or kept for Rollback.
func (s *Source) Copy() *Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Source{wake: make(chan struct{}, 1), history: s.history, disk: s.disk.copy()}
	c.sync()
	return c
}

func (d *disk) copy() disk {
	c := disk{acks: d.acks}
	for _, e := range d.epochs {
		again := *e
		again.records = append([]protocol.Record(nil), e.records...)
		again.hashes = append([]protocol.Hash(nil), e.hashes...)
		again.lost = map[uint64]string{}
		for seq, why := range e.lost {
			again.lost[seq] = why
		}
		c.epochs = append(c.epochs, &again)
	}
	for _, a := range d.accepted {
		c.accepted = append(c.accepted, accepted{a.content, append([]protocol.Position(nil), a.at...)})
	}
	return c
}

// Rollback makes the disk what it was when the copy was made.
func (s *Source) Rollback(to *Source) {
	again := to.Copy()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disk = again.disk
	s.sync()
}

// Lose takes records off the disk; seal says that its list of seals has lost the epoch too.
func (s *Source) Lose(epoch int, from, to uint64, reason string, seal bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.disk.epochs[epoch]
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	for seq := from; seq <= to && seq <= uint64(len(e.records)); seq++ {
		e.lost[seq] = reason
		s.history.damage[protocol.Position{Epoch: e.id, Seq: seq}] = true
	}
	e.sealed = e.sealed && (!seal || from != 1)
}

// Trim drops what is acknowledged, as retention does.
func (s *Source) Trim() {
	for i, n := range s.lengths(func(e *epoch) uint64 { return e.acked }) {
		s.Lose(i, 1, n, protocol.SkipTrimmed, false)
	}
}

// Lengths are the numbers of records of the epochs.
func (s *Source) Lengths() []uint64 {
	return s.lengths(func(e *epoch) uint64 { return uint64(len(e.records)) })
}

func (s *Source) lengths(of func(*epoch) uint64) (all []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.disk.epochs {
		all = append(all, of(e))
	}
	return all
}

// find needs s.mu.
func (s *Source) find(id protocol.Epoch) (int, *epoch) {
	for i, e := range s.disk.epochs {
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
	for _, e := range s.disk.epochs {
		newest = protocol.Position{Epoch: e.id, Seq: uint64(len(e.records))}
		if oldest.Seq == 0 && e.acked < e.last() {
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
	if e == nil || from.Seq < 1 {
		return protocol.Batch{}, fmt.Errorf("no record %s", from)
	}
	b := protocol.Batch{Epoch: from.Epoch, First: from.Seq}
	if from.Seq > e.last() {
		return b, nil
	}
	if _, gone := e.lost[from.Seq-1]; !gone {
		b.Prev = e.hashes[from.Seq-1]
	}
	b.Skip = e.skip(from.Seq)
	bytes := 0
	for seq := b.Begin(); seq <= e.last() && e.lost[seq] == ""; seq++ {
		r := e.records[seq-1]
		bytes += len(r.AppendJSON(nil))
		if len(b.Records) > 0 && (len(b.Records) == maxRecords || bytes > maxBytes) {
			break
		}
		b.Records = append(b.Records, r)
	}
	if b.Skip == nil {
		b.Prev = e.hashes[from.Seq-1] // it stands beside the record
	}
	return b, nil
}

// skip is over the lost records from a seq on; nil when that one is held.
func (e *epoch) skip(from uint64) *protocol.Skip {
	if e.lost[from] == "" {
		return nil
	}
	skip := &protocol.Skip{From: from, To: from, Reason: e.lost[from]}
	for skip.To < e.last() && e.lost[skip.To+1] != "" {
		skip.To++
	}
	skip.Hash = e.hashes[skip.To]
	if from == 1 && e.sealed {
		seal, err := protocol.DecodeSeal(e.records[0].Body)
		if err != nil {
			panic(err) // begin wrote it
		}
		skip.Seal = &seal
	}
	return skip
}

// Next implements link.Source.
func (s *Source) Next(p protocol.Position) protocol.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, e := s.find(p.Epoch)
	if e != nil && e.closed && p.Seq >= e.last() && i+1 < len(s.disk.epochs) {
		return protocol.Position{Epoch: s.disk.epochs[i+1].id, Seq: 1}
	}
	return protocol.Position{Epoch: p.Epoch, Seq: p.Seq + 1}
}

// own says whether a mark is of the source's own records. It needs s.mu.
func (e *epoch) own(m protocol.Mark) bool {
	return m.Through < uint64(len(e.hashes)) && e.hashes[m.Through] == m.Hash
}

// unknown says that neither a record nor the one behind it is held, to compare a mark with.
func (e *epoch) unknown(seq uint64) bool {
	return e.lost[seq] != "" && (e.lost[seq+1] != "" || seq == uint64(len(e.records)))
}

// Acked implements link.Source.
func (s *Source) Acked(m protocol.Mark, incarnation int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, e := s.find(m.Epoch)
	if e == nil || !e.own(m) {
		return fmt.Errorf("ack %s/%d: %w", m.Epoch, m.Through, link.ErrFork)
	}
	e.acked = max(e.acked, m.Through)
	a := &s.disk.acks
	if a.last == nil || i > a.lastEpoch || i == a.lastEpoch && m.Through > a.last.Through {
		a.last, a.lastEpoch = &m, i
	}
	a.incarnation = max(a.incarnation, incarnation)
	return nil
}

// LastAck implements link.Source.
func (s *Source) LastAck() (*protocol.Mark, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disk.acks.last, s.disk.acks.incarnation
}

// Fork implements link.Source.
func (s *Source) Fork(string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var again []protocol.Record
	for _, e := range s.disk.epochs {
		again = append(again, e.moved()...)
		e.closed, e.forked, e.end = true, true, min(e.acked, e.last())
	}
	s.begin(protocol.Epoch(fmt.Sprintf("f%031x", s.history.n.Add(1))), protocol.Seal{Before: s.disk.acks.last, Forked: true})
	for _, r := range again {
		at := s.add(r)
		for i := range s.disk.accepted {
			if a := &s.disk.accepted[i]; r.Was != nil && a.content == r.Was.SHA256 {
				a.at = append(a.at, at)
			}
		}
	}
	return nil
}

// moved are the records of an epoch that a fork writes again: what is not acknowledged, and
// a loss in the place of those that are not held.
func (e *epoch) moved() (again []protocol.Record) {
	for seq := e.acked + 1; seq <= e.last(); seq++ {
		if skip := e.skip(seq); skip != nil {
			body, err := json.Marshal(protocol.Loss{Epoch: e.id, From: seq, To: skip.To, Reason: skip.Reason})
			if err != nil {
				panic(err) // it is made of strings and numbers
			}
			again = append(again, protocol.Record{Kind: protocol.KindLoss, At: now, Body: body})
			seq = skip.To
			continue
		}
		r := e.records[seq-1]
		if r.Kind == protocol.KindSeal {
			continue
		}
		if r.Was == nil {
			r.Was = &protocol.Was{Epoch: e.id, Seq: seq, SHA256: r.ContentHash()}
		}
		again = append(again, r)
	}
	return again
}

// Epochs implements link.Source.
func (s *Source) Epochs(after protocol.Epoch, n int) []protocol.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []protocol.Epoch
	i, _ := s.find(after)
	for _, e := range s.disk.epochs[i+1:] {
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
		_, e := s.find(m.Epoch)
		if e != nil && (m.Through == 0 || e.own(m) || e.unknown(m.Through)) {
			e.acked, e.forked = m.Through, false // what a fork has moved stands here first
		}
	}
	s.disk.acks = acks{incarnation: incarnation}
	s.sync()
	return nil
}

// Wake implements link.Source.
func (s *Source) Wake() <-chan struct{} { return s.wake }

// Total is the number of records.
func (s *Source) Total() int {
	n := 0
	for _, l := range s.Lengths() {
		n += int(l)
	}
	return n
}
