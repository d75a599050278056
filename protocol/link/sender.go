package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// Options of a Sender; zero values are the defaults.
type Options struct {
	Version    string           // of the agent's program, told in the hello
	Now        func() time.Time // the PC's clock, told in the hello; nil = not told
	RelayTime  func(time.Time)  // is told the time of each welcome; nil = nobody wants it
	MaxRecords int              // in a batch; 500
	MaxBytes   int              // JSON of a batch; 1 MiB
	Window     int              // batches under way at most; 8
	Stall      time.Duration    // without an answer for so long, send again; 3 s, doubling
	MaxStall   time.Duration    // 15 s
	FeedEvery  time.Duration    // each feed is asked again after so long, with jitter; 60 s
}

const (
	busyPause    = time.Second     // after busy, doubled by jitter
	refusedPause = 5 * time.Second // after refused, doubling
	maxRefused   = 5 * time.Minute
	growAfter    = 20 // acks in a row after which halved batches grow again
)

// ErrLeave means that this relay must be left for another: its ledger is older than one that
// the agent has seen.
var ErrLeave = errors.New("leave this relay")

// An Out is a payload to publish.
type Out struct {
	Topic   Topic
	Payload []byte
}

// A Sender is the agent's half of the link: a state machine without goroutines or I/O of its
// own but the Source and the Replica. For each connection call Connected, then Step whenever
// time has passed or something has become durable, and Received for what arrives. One
// goroutine may use it at a time, apart from Status.
type Sender struct {
	source  Source
	replica Replica
	opt     Options
	rand    *rand.Rand
	pack    packer

	// of the connection
	id       string
	welcomed bool
	helloAt  time.Time // next hello
	next     protocol.Position
	flying   []flight
	window   int // batches
	stall    time.Duration
	stallAt  time.Time
	paused   time.Time // nothing is sent before
	gapped   protocol.Position
	raw      bool // the next batch is one record, sent raw
	feeds    []feed

	// beyond the connection
	records int // per batch, halved when the relay says so
	grown   int // acks since it was halved
	refused time.Duration

	mu     sync.Mutex // guards status
	status Status
}

// A flight is a batch under way.
type flight struct {
	epoch protocol.Epoch
	last  uint64
}

type feed struct {
	name  string
	due   time.Time
	asked bool // until due
}

// Status is what a page shows of the link.
type Status struct {
	Relay     string    `json:"relay,omitempty"` // set by Keep
	Connected time.Time `json:"connected,omitzero"`
	Welcomed  bool      `json:"welcomed"`
	LastAck   time.Time `json:"lastAck,omitzero"`
	Flying    int       `json:"underWay"` // batches
	Window    int       `json:"window"`   // batches
	Refused   string    `json:"refused,omitempty"`
	Forked    string    `json:"forked,omitempty"` // nothing more is sent; the reason
	LastError string    `json:"lastError,omitempty"`
	Sent      int64     `json:"sent"`     // batches
	Acked     int64     `json:"acked"`    // answers
	Resent    int64     `json:"resent"`   // times the link went back
	Garbage   int64     `json:"garbage"`  // messages that could not be read
	Connects  int64     `json:"connects"` // connections
}

// NewSender makes a sender for the source; feeds are asked for the replica.
func NewSender(source Source, replica Replica, feeds []string, o Options, random *rand.Rand) *Sender {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MaxRecords, 500)
	def(&o.MaxBytes, 1<<20)
	def(&o.Window, 8)
	wait(&o.Stall, 3*time.Second)
	wait(&o.MaxStall, 15*time.Second)
	wait(&o.FeedEvery, time.Minute)
	s := &Sender{source: source, replica: replica, opt: o, rand: random, records: o.MaxRecords}
	for _, name := range feeds {
		s.feeds = append(s.feeds, feed{name: name})
	}
	return s
}

// Status is a copy of the link's state; any goroutine may ask.
func (s *Sender) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Sender) note(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// Connected begins a connection whose client id is id.
func (s *Sender) Connected(now time.Time, id string) {
	s.id, s.welcomed, s.helloAt = id, false, now
	s.next, s.flying, s.window = protocol.Position{}, nil, 1
	s.stall, s.paused, s.gapped, s.raw = s.opt.Stall, time.Time{}, protocol.Position{}, false
	for i := range s.feeds {
		s.feeds[i] = feed{name: s.feeds[i].name}
	}
	s.note(func(st *Status) {
		st.Connected, st.Welcomed, st.Flying, st.LastError = now, false, 0, ""
		st.Connects++
	})
}

// Lost ends the connection.
func (s *Sender) Lost(err error) {
	s.flying = nil
	s.note(func(st *Status) {
		st.Connected, st.Welcomed, st.Flying = time.Time{}, false, 0
		if err != nil {
			st.LastError = err.Error()
		}
	})
}

// Step gives what to publish now, in order, and when Step wants to be called at the latest
// if nothing arrives and nothing becomes durable.
func (s *Sender) Step(now time.Time) ([]Out, time.Time, error) {
	if !s.welcomed {
		return s.hello(now)
	}
	outs, wake, err := s.ask(now)
	if err != nil {
		return nil, time.Time{}, err
	}
	records, again, err := s.send(now)
	if err != nil {
		return nil, time.Time{}, err
	}
	return append(outs, records...), earlier(wake, again), nil
}

func earlier(a, b time.Time) time.Time {
	if b.IsZero() || (!a.IsZero() && a.Before(b)) {
		return a
	}
	return b
}

// jitter spreads d over [d, 2d).
func (s *Sender) jitter(d time.Duration) time.Duration {
	return d + time.Duration(s.rand.Int64N(int64(d)))
}

func (s *Sender) hello(now time.Time) ([]Out, time.Time, error) {
	if now.Before(s.helloAt) {
		return nil, s.helloAt, nil
	}
	s.helloAt = now.Add(s.jitter(s.stall))
	s.stall = min(2*s.stall, s.opt.MaxStall)
	oldest, newest := s.source.Heads()
	last, incarnation := s.source.LastAck()
	hello := protocol.Hello{Oldest: oldest, Newest: newest, Incarnation: incarnation, LastAck: last, Version: s.opt.Version}
	if s.opt.Now != nil {
		hello.Time = s.opt.Now().Format(time.RFC3339)
	}
	payload, err := json.Marshal(protocol.Ask{Hello: &hello})
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("encode hello: %w", err)
	}
	return []Out{{TopicAsk, payload}}, s.helloAt, nil
}

// ask asks for the feeds that are due.
func (s *Sender) ask(now time.Time) (outs []Out, wake time.Time, err error) {
	for i := range s.feeds {
		f := &s.feeds[i]
		if !now.Before(f.due) {
			after, err := s.replica.Cursor(f.name)
			if err != nil {
				return nil, time.Time{}, fmt.Errorf("read cursor of feed %s: %w", f.name, err)
			}
			payload, err := json.Marshal(protocol.Ask{Feed: &protocol.FeedAsk{Feed: f.name, After: after}})
			if err != nil {
				return nil, time.Time{}, fmt.Errorf("encode feed request: %w", err)
			}
			outs = append(outs, Out{TopicAsk, payload})
			f.due = now.Add(s.jitter(s.opt.Stall)) // no page by then: ask again
		}
		wake = earlier(wake, f.due)
	}
	return outs, wake, nil
}

// send gives the batches that the window allows.
func (s *Sender) send(now time.Time) (outs []Out, wake time.Time, err error) {
	if s.Status().Forked != "" {
		return nil, time.Time{}, nil
	}
	if now.Before(s.paused) {
		return nil, s.paused, nil
	}
	if len(s.flying) > 0 && !now.Before(s.stallAt) {
		s.stall = min(2*s.stall, s.opt.MaxStall)
		s.rewind(protocol.Position{})
	}
	for len(s.flying) < s.window {
		out, ok, err := s.batch()
		if err != nil {
			return nil, time.Time{}, err
		}
		if !ok {
			break
		}
		if len(s.flying) == 1 {
			s.stallAt = now.Add(s.jitter(s.stall))
		}
		outs = append(outs, out)
	}
	s.note(func(st *Status) { st.Flying, st.Window = len(s.flying), s.window; st.Sent += int64(len(outs)) })
	if len(s.flying) > 0 {
		wake = s.stallAt
	}
	return outs, wake, nil
}

// batch makes the next batch; false when nothing durable is there.
func (s *Sender) batch() (Out, bool, error) {
	if s.next == (protocol.Position{}) {
		oldest, _ := s.source.Heads()
		if oldest == (protocol.Position{}) {
			return Out{}, false, nil
		}
		s.next = oldest
	}
	limit, bytes := s.records, s.opt.MaxBytes
	if s.raw {
		limit = 1
	}
	for {
		batch, err := s.source.Read(s.next, limit, bytes)
		if err != nil {
			return Out{}, false, fmt.Errorf("read records from %s: %w", s.next, err)
		}
		if len(batch.Records) == 0 {
			// The epoch may have ended behind the last record that was sent.
			if s.next.Seq == 1 {
				return Out{}, false, nil
			}
			after := s.source.Next(protocol.Position{Epoch: s.next.Epoch, Seq: s.next.Seq - 1})
			if after == s.next {
				return Out{}, false, nil
			}
			s.next = after
			continue
		}
		last := batch.Last()
		if s.raw {
			batch.Raw = batch.Records[0].AppendJSON(nil)
			batch.Records = nil
			s.raw = false
		}
		payload, err := s.pack.pack(batch.Encode())
		if err != nil {
			return Out{}, false, err
		}
		if len(payload) > protocol.MaxWire && last > batch.First {
			limit = max(1, int(last-batch.First+1)/2)
			continue
		}
		s.flying = append(s.flying, flight{batch.Epoch, last})
		s.next = s.source.Next(protocol.Position{Epoch: batch.Epoch, Seq: last})
		return Out{TopicRecords, payload}, true, nil
	}
}

// rewind forgets what is under way and goes on from a position; the zero position is the
// oldest record without an ack.
func (s *Sender) rewind(to protocol.Position) {
	s.flying, s.next, s.window = nil, to, 1
	s.note(func(st *Status) { st.Resent++ })
}

// Received takes a payload from the relay. ErrLeave asks for another relay; other errors are
// those of the Replica. What cannot be read or is for another connection is ignored.
func (s *Sender) Received(now time.Time, topic Topic, payload []byte) error {
	payload, err := s.pack.unpack(payload)
	if err != nil {
		return s.garbage()
	}
	if topic == TopicNews {
		var news protocol.News
		if json.Unmarshal(payload, &news) != nil {
			return s.garbage()
		}
		for i := range s.feeds {
			if s.feeds[i].name == news.Feed {
				s.feeds[i].due = now
			}
		}
		return nil
	}
	var down protocol.Down
	if json.Unmarshal(payload, &down) != nil {
		return s.garbage()
	}
	switch {
	case down.To != s.id:
		return nil
	case down.Welcome != nil:
		return s.welcome(now, down.Welcome)
	case !s.welcomed:
		return nil // of an earlier life of this client id, or too early
	case down.Answer != nil:
		return s.answer(now, down.Answer)
	case down.Page != nil:
		return s.page(now, down.Page)
	}
	return s.garbage()
}

func (s *Sender) garbage() error {
	s.note(func(st *Status) { st.Garbage++ })
	return nil
}

// older says whether a ledger's incarnation is below the highest that was seen.
func (s *Sender) older(incarnation int64) error {
	if _, seen := s.source.LastAck(); incarnation < seen {
		return fmt.Errorf("%w: its ledger has incarnation %d, %d was seen", ErrLeave, incarnation, seen)
	}
	return nil
}

func (s *Sender) welcome(now time.Time, w *protocol.Welcome) error {
	if err := s.older(w.Incarnation); err != nil {
		return err
	}
	for _, mark := range w.Marks {
		if mark.Through == 0 {
			continue
		}
		if _, err := s.acked(mark, w.Incarnation); err != nil {
			return err
		}
	}
	if at, err := time.Parse(time.RFC3339, w.Time); err == nil && s.opt.RelayTime != nil {
		s.opt.RelayTime(at)
	}
	s.welcomed, s.next, s.flying, s.stall = true, protocol.Position{}, nil, s.opt.Stall
	for i := range s.feeds {
		s.feeds[i].due = now
	}
	s.note(func(st *Status) { st.Welcomed = true })
	return nil
}

// acked hands a mark to the source. One that is not of the source's own records is a fork;
// another error is the disk's, and ends the connection so that it is tried again.
func (s *Sender) acked(mark protocol.Mark, incarnation int64) (bool, error) {
	err := s.source.Acked(mark, incarnation)
	if errors.Is(err, ErrFork) {
		s.note(func(st *Status) { st.Forked = err.Error() })
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("take ack of %s/%d: %w", mark.Epoch, mark.Through, err)
	}
	return true, nil
}

func (s *Sender) answer(now time.Time, a *protocol.Answer) error {
	if err := s.older(a.Incarnation); err != nil {
		return err
	}
	if a.Verdict != protocol.VerdictRefused {
		s.refused = 0
		s.note(func(st *Status) { st.Refused = "" })
	}
	switch a.Verdict {
	case protocol.VerdictAck:
		return s.ack(now, a)
	case protocol.VerdictGap:
		s.gap(a)
	case protocol.VerdictTooBig:
		s.halve()
		s.rewind(protocol.Position{})
	case protocol.VerdictUnreadable:
		s.raw = s.records == 1
		s.halve()
		s.rewind(protocol.Position{})
	case protocol.VerdictBusy:
		s.paused = now.Add(s.jitter(busyPause))
		s.rewind(protocol.Position{})
	case protocol.VerdictRefused:
		s.refused = min(max(2*s.refused, refusedPause), maxRefused)
		s.paused = now.Add(s.jitter(s.refused))
		s.rewind(protocol.Position{})
		s.note(func(st *Status) { st.Refused = a.Reason })
	case protocol.VerdictFork:
		s.note(func(st *Status) {
			st.Forked = fmt.Sprintf("the relay has other records at %s/%d: %s", a.Epoch, a.Through, a.Reason)
		})
	default:
		return s.garbage()
	}
	return nil
}

func (s *Sender) ack(now time.Time, a *protocol.Answer) error {
	if ours, err := s.acked(protocol.Mark{Epoch: a.Epoch, Through: a.Through, Hash: a.Hash}, a.Incarnation); err != nil || !ours {
		return err
	}
	progress := false
	for len(s.flying) > 0 && s.flying[0].epoch == a.Epoch && s.flying[0].last <= a.Through {
		s.flying = s.flying[1:]
		progress = true
	}
	if progress {
		s.window = min(s.window+1, s.opt.Window)
		s.stall = s.opt.Stall
		s.stallAt = now.Add(s.jitter(s.stall))
		s.gapped = protocol.Position{}
		if s.grown++; s.grown >= growAfter && s.records < s.opt.MaxRecords {
			s.records, s.grown = min(2*s.records, s.opt.MaxRecords), 0
		}
	}
	s.note(func(st *Status) { st.LastAck, st.Flying = now, len(s.flying); st.Acked++ })
	return nil
}

// gap goes back to where the relay stands, once: the batches behind the gap are answered the
// same way.
func (s *Sender) gap(a *protocol.Answer) {
	from := protocol.Position{Epoch: a.Epoch, Seq: a.Through + 1}
	if from == s.gapped {
		return
	}
	s.gapped = from
	s.rewind(from)
}

func (s *Sender) halve() {
	s.records, s.grown = max(1, s.records/2), 0
}

func (s *Sender) page(now time.Time, page *protocol.FeedPage) error {
	for i := range s.feeds {
		f := &s.feeds[i]
		if f.name != page.Feed {
			continue
		}
		if err := s.replica.Apply(*page); err != nil {
			return fmt.Errorf("apply page of feed %s: %w", page.Feed, err)
		}
		f.due = now
		if !page.More {
			f.due = now.Add(s.jitter(s.opt.FeedEvery / 2))
		}
		return nil
	}
	return s.garbage()
}
