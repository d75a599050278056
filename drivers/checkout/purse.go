package checkout

import (
	"time"

	"github.com/storelay/storelay/protocol"
)

// tellRejects is how long rejected coins wait to be told together.
const tellRejects = time.Minute

// A purseState is what has to be remembered of an acceptor; it is stored with its last
// record.
type purseState struct {
	Known   bool     `json:"known"`
	Counter byte     `json:"counter"`
	Events  ccEvents `json:"events"`
	Number  int64    `json:"number"` // of the last record
}

// push notes one event.
func (s *purseState) push(e ccEvent) {
	copy(s.Events[1:], s.Events[:ccBuffer-1])
	s.Events[0] = e
	s.Counter = ccNext(s.Counter, 1)
}

// ccNext is a counter so many events later: after 255 comes 1.
func ccNext(counter byte, events int) byte {
	for range events {
		if counter++; counter == 0 {
			counter = 1
		}
	}
	return counter
}

// ccSince is how many events lie between two counters, 0 to 255, if the acceptor was not
// reset.
func ccSince(last, now byte) int {
	switch {
	case last == 0 || now >= last:
		return int(now) - int(last)
	default:
		return int(now) - int(last) + 255
	}
}

// A cash record with the state after it.
type cashOut struct {
	record protocol.CashIn
	state  purseState
}

// A purse turns the readings of one acceptor into records: each coin once. It is pure: it
// leaves the records in out.
type purse struct {
	id    string
	coins map[byte]coin

	state   purseState
	doubt   *ccReading // a reading that is not what follows from the last: the next must be it too, or follow
	rejects int64      // that are not told yet
	code    byte
	since   time.Time // of the first of them
	resets  int
	out     []cashOut
}

// A coin is what is known of one of the acceptor's coins.
type coin struct {
	name   string
	amount *protocol.Money // nil: not known
	asked  bool            // nothing more can be learned
}

// read takes a reading. It has a checksum of 8 bits only, so one that tells of a reset or of
// lost events counts when the next says the same.
func (p *purse) read(r ccReading, at time.Time) {
	fresh, plain := p.follows(r)
	if !plain {
		if p.doubt == nil || *p.doubt != r {
			p.doubt = &r
			return
		}
	}
	p.doubt = nil
	switch {
	case !p.state.Known:
		p.reset(r.counter, r.events, at)
	case plain:
		p.take(r, fresh, at)
	case r.counter == 0 || p.wasReset(r):
		p.reset(0, ccEvents{}, at)
		p.miss(int(r.counter)-ccBuffer, at)
		p.take(r, min(int(r.counter), ccBuffer), at)
	default:
		p.miss(fresh-ccBuffer, at)
		p.take(r, min(fresh, ccBuffer), at)
	}
}

// follows gives the number of new events, and whether the reading is simply what comes after
// the last: the events that were there have moved on, and all new ones are there.
func (p *purse) follows(r ccReading) (fresh int, plain bool) {
	if !p.state.Known {
		return 0, false
	}
	if r.counter == 0 {
		return 0, p.state.Counter == 0 && r.events == p.state.Events
	}
	fresh = ccSince(p.state.Counter, r.counter)
	if fresh > ccBuffer {
		return fresh, false
	}
	for i := fresh; i < ccBuffer; i++ {
		if r.events[i] != p.state.Events[i-fresh] {
			return fresh, false
		}
	}
	return fresh, fresh < ccBuffer || r.events[ccBuffer-1] != ccEvent{}
}

// wasReset says whether the acceptor began anew since the last reading: the events that were
// there are gone, or there are fewer than the counter would have after 255.
func (p *purse) wasReset(r ccReading) bool {
	if int(r.counter) < ccBuffer && r.events[r.counter] == (ccEvent{}) {
		return true
	}
	return ccSince(p.state.Counter, r.counter) < ccBuffer // they do not overlap: else the reading followed
}

func (p *purse) reset(counter byte, events ccEvents, at time.Time) {
	p.tell(at)
	p.state.Known, p.state.Counter, p.state.Events = true, counter, events
	p.resets++
	p.emit(protocol.CashIn{Event: protocol.CashReset}, at)
}

// miss tells of events that fell out of the acceptor's memory.
func (p *purse) miss(events int, at time.Time) {
	if events <= 0 {
		return
	}
	p.tell(at)
	p.state.Counter, p.state.Events = ccNext(p.state.Counter, events), ccEvents{}
	p.emit(protocol.CashIn{Event: protocol.CashMissed, Count: int64(events)}, at)
}

// take takes the newest events of a reading, oldest first.
func (p *purse) take(r ccReading, fresh int, at time.Time) {
	for i := fresh - 1; i >= 0; i-- {
		e := r.events[i]
		if e.A == 0 {
			if p.rejects++; p.rejects == 1 {
				p.since = at
			}
			p.code = e.B
			p.state.push(e)
			continue
		}
		p.tell(at)
		p.state.push(e)
		c := p.coins[e.A]
		p.emit(protocol.CashIn{Event: protocol.CashAccepted, Amount: c.amount, Coin: c.name, Channel: int(e.A), Path: int(e.B)}, at)
	}
}

// tick tells of rejected coins when it is time.
func (p *purse) tick(at time.Time) {
	if p.rejects > 0 && at.Sub(p.since).Abs() >= tellRejects {
		p.tell(at)
	}
}

// tell writes the rejected coins down.
func (p *purse) tell(at time.Time) {
	if p.rejects == 0 {
		return
	}
	n := p.rejects
	p.rejects = 0
	p.emit(protocol.CashIn{Event: protocol.CashRejected, Count: n, Code: int(p.code)}, at)
}

func (p *purse) emit(c protocol.CashIn, at time.Time) {
	p.state.Number++
	c.Acceptor, c.At, c.Number = p.id, at.UTC(), p.state.Number
	p.out = append(p.out, cashOut{c, p.state})
}
