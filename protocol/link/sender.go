package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/mutant"
)

// Options of a Sender; zero values are the defaults.
type Options struct {
	Version    string           // of the agent's program, told in the hello
	Now        func() time.Time // the PC's clock, told in the hello; nil = not told
	RelayTime  func(time.Time)  // is told the time of each welcome; nil = nobody wants it
	MaxRecords int              // in a batch; 500
	MaxBytes   int              // JSON of a batch; 1 MiB
	Window     int              // bytes on the wire from which on nothing more is sent before an ack; 1 MiB
	Stall      time.Duration    // without an answer for so long, send again; 3 s, doubling
	MaxStall   time.Duration    // 15 s
	FeedEvery  time.Duration    // each feed is asked again after so long, with jitter; 60 s
}

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
//
// Its parts: this file is the connection, window.go what is under way, verdict.go the relay's
// answers, fork.go and resync.go the two ways in which relay and agent can have parted, feed.go
// what comes down.
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
	window             // what is under way
	resync   *resync   // nil = the ledger is the one whose acks the agent has
	forkDue  *fork     // the source must fork before anything more is sent; nil = it need not
	feeds    []feed

	// beyond the connection
	highest int64         // incarnation heard of; the source knows the highest that it has taken over
	records int           // per batch, halved when the relay says so
	grown   int           // acks since it was halved
	refused time.Duration // the pause after the newest refusal; 0 = none since there was progress
	forks   forks

	mu     sync.Mutex // guards status
	status Status
}

// Status is what a page shows of the link.
type Status struct {
	Relay         string    `json:"relay,omitempty"` // set by Keep
	Connected     time.Time `json:"connected,omitzero"`
	Welcomed      bool      `json:"welcomed"`
	Incarnation   int64     `json:"incarnation,omitempty"` // the highest heard of since the agent started
	Rewinding     bool      `json:"rewinding,omitempty"`   // the ledger was restored and is asked what it has; nothing is sent before
	LastAck       time.Time `json:"lastAck,omitzero"`
	FlyingBatches int       `json:"batchesUnderWay"`
	FlyingBytes   int       `json:"bytesUnderWay"`     // on the wire
	WindowBytes   int       `json:"windowBytes"`       // from which on nothing more is sent before an ack
	Refused       string    `json:"refused,omitempty"` // the relay's reason, until something is acknowledged
	Forked        string    `json:"forked,omitempty"`  // the newest fork's reason; what was not acknowledged goes on in a new epoch
	LastError     string    `json:"lastError,omitempty"`
	Forks         int64     `json:"forks"`    // since the agent started
	Rewinds       int64     `json:"rewinds"`  // times that a restored ledger was told everything again
	Sent          int64     `json:"sent"`     // batches
	Acked         int64     `json:"acked"`    // answers
	Resent        int64     `json:"resent"`   // times the link went back
	Garbage       int64     `json:"garbage"`  // messages that could not be read
	Connects      int64     `json:"connects"` // connections
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
	def(&o.Window, 1<<20)
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
	s.window = window{stall: s.opt.Stall}
	s.resync, s.forkDue = nil, nil
	for i := range s.feeds {
		s.feeds[i] = feed{name: s.feeds[i].name}
	}
	s.note(func(st *Status) {
		st.Connected, st.Welcomed, st.Rewinding, st.LastError = now, false, false, ""
		st.Connects++
	})
	s.noteWindow()
}

// Lost ends the connection.
func (s *Sender) Lost(err error) {
	s.window = window{stall: s.opt.Stall}
	s.note(func(st *Status) {
		st.Connected, st.Welcomed = time.Time{}, false
		if err != nil {
			st.LastError = err.Error()
		}
	})
	s.noteWindow()
}

// Step gives what to publish now, in order, and when Step wants to be called at the latest
// if nothing arrives and nothing becomes durable. Its errors are those of the Source and the
// Replica: the connection must be ended, and what failed is tried again on the next.
func (s *Sender) Step(now time.Time) ([]Out, time.Time, error) {
	if !s.welcomed {
		return s.hello(now)
	}
	outs, wake, err := s.ask(now)
	if err != nil {
		return nil, time.Time{}, err
	}
	records, again, err := s.up(now)
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

// Received takes a payload from the relay. ErrLeave asks for another relay; other errors are
// those of the Source and the Replica. What cannot be read or is for another connection is
// ignored.
func (s *Sender) Received(now time.Time, topic Topic, payload []byte) error {
	payload, err := s.pack.unpack(payload)
	if err != nil {
		return s.garbage()
	}
	if topic == TopicNews {
		return s.news(now, payload)
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
	case down.Marks != nil:
		return s.marks(down.Marks)
	case down.Page != nil:
		return s.page(now, down.Page)
	}
	return s.garbage()
}

func (s *Sender) garbage() error {
	s.note(func(st *Status) { st.Garbage++ })
	return nil
}

// welcome opens the connection. One that comes again, since the hello was sent again, tells
// no more than its marks. A mark of this incarnation below the newest ack is that of a ledger
// which went back in time and was not raised: the agent sends again what it once gave an ack
// for, and need not have anything new to say.
func (s *Sender) welcome(now time.Time, w *protocol.Welcome) error {
	present, err := s.heed(w.Incarnation)
	if err != nil {
		return err
	}
	if present {
		last, _ := s.source.LastAck()
		for _, mark := range w.Marks {
			ours := true
			if mark.Through > 0 {
				if ours, err = s.acked(mark, w.Incarnation); err != nil {
					return err
				}
			}
			if ours && !s.welcomed && last != nil && mark.Epoch == last.Epoch && mark.Through < last.Through {
				s.rewind(protocol.Position{Epoch: mark.Epoch, Seq: mark.Through + 1})
			}
		}
	}
	if s.welcomed {
		return nil
	}
	if at, err := time.Parse(time.RFC3339, w.Time); err == nil && s.opt.RelayTime != nil {
		s.opt.RelayTime(at)
	}
	s.welcomed, s.stall = true, s.opt.Stall
	for i := range s.feeds {
		s.feeds[i].due = now
	}
	s.note(func(st *Status) { st.Welcomed = true })
	return nil
}

// acked hands a mark to the source, and says whether it is of the source's own records. One
// that is not is a fork, if it is of an epoch that anything is still to come of. Another error
// is the disk's, and ends the connection so that it is tried again.
func (s *Sender) acked(mark protocol.Mark, incarnation int64) (bool, error) {
	if mutant.On(mutant.TrustAnyAck) {
		mark.Hash = s.hashAt(mark)
	}
	err := s.source.Acked(mark, incarnation)
	if errors.Is(err, ErrFork) {
		if s.live(mark.Epoch) {
			s.forkDue = &fork{mark.Epoch, err.Error()}
		}
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("take ack of %s/%d: %w", mark.Epoch, mark.Through, err)
	}
	return true, nil
}

// hashAt is the source's own hash where a mark stands, by the record there or by the one
// behind it; that of the mark when neither is held.
func (s *Sender) hashAt(mark protocol.Mark) protocol.Hash {
	at := protocol.Position{Epoch: mark.Epoch, Seq: mark.Through}
	if b, err := s.source.Read(at, 1, 1); err == nil && b.Skip == nil && len(b.Records) > 0 {
		return b.Records[0].Hash(b.Prev)
	}
	at.Seq++
	if b, err := s.source.Read(at, 1, 1); err == nil && b.Skip == nil && len(b.Records) > 0 {
		return b.Prev
	}
	return mark.Hash
}
