package sim

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A book is what the simulation knows to be true: what was accepted, word for word, and where.
type book struct {
	w       *world
	entries []*entry
	damage  map[*pc][]string // what its journal says of its disk
}

// An entry is a record that an agent has accepted, or may have.
type entry struct {
	pc     *pc
	origin protocol.Origin // of its agent then
	kind   protocol.Kind
	body   string // exact
	day    protocol.Day
	at     time.Time         // when it was accepted, by the world's clock
	where  protocol.Position // where it stood then
	doubt  bool              // there was an error: it may be on the disk or not
	lost   bool              // and allowed to be, as the check found
	again  int               // how often it was forgotten and accepted anew

	id    protocol.TransactionID // of a sale
	sale  *protocol.Transaction
	count *protocol.FootfallCount
}

func newBook(w *world) *book { return &book{w: w, damage: map[*pc][]string{}} }

// An accepted is the body of a till's 201.
type accepted struct {
	TransactionID protocol.TransactionID `json:"transactionId"`
	Position      protocol.Position      `json:"position"`
}

// sold enters a sale that a till was told is accepted.
func (b *book) sold(s *sale, r reply) {
	p := s.till.pc
	var a accepted
	if err := json.Unmarshal(r.body, &a); err != nil {
		b.w.fail("till %s of %s: answer %s: %v", s.till.name, p.name, r.body, err)
		return
	}
	t := s.sent
	t.Store, t.Workstation = p.store.id, s.till.name
	if t.BusinessDay.IsZero() {
		t.BusinessDay = a.TransactionID.BusinessDay
	}
	if t.ID() != a.TransactionID {
		b.w.fail("till %s of %s: sale %s is accepted as %s", s.till.name, p.name, t.ID(), a.TransactionID)
		return
	}
	if !r.replayed {
		b.epochIsNew(p, a.Position)
	}
	s.entry = &entry{pc: p, origin: p.origin, kind: protocol.KindTransaction, body: string(mustJSON(t)), day: t.BusinessDay, at: b.w.now, where: a.Position, id: t.ID(), sale: &t}
	b.add(s.entry)
}

func (b *book) add(e *entry) {
	b.entries = append(b.entries, e)
	if !e.doubt {
		b.w.stats.Accepted++
	}
	b.w.say("%s: accepted %s %s at %s/%d, doubt %v", e.pc.name, e.kind, e.id, short(e.where.Epoch), e.where.Seq, e.doubt)
}

// soldAgain compares the answer to a repeated sale with the first.
func (b *book) soldAgain(s *sale, r reply) {
	var a accepted
	if err := json.Unmarshal(r.body, &a); err != nil {
		b.w.fail("answer %s: %v", r.body, err)
		return
	}
	e, p := s.entry, s.till.pc
	if a.TransactionID != e.id {
		b.w.fail("till %s of %s: sale %s, repeated, is accepted as %s", s.till.name, p.name, e.id, a.TransactionID)
		return
	}
	if a.Position == e.where && r.replayed {
		return
	}
	const window = 14 * 24 * time.Hour
	if p.origin == e.origin && !p.forgot(e) && b.w.now.Sub(e.at) < window-time.Hour {
		b.w.fail("till %s of %s: sale %s was accepted at %s, and again at %s", s.till.name, p.name, e.id, e.where, a.Position)
		return
	}
	// It was forgotten, and is accepted anew: from now on it must not be lost.
	e.where, e.at, e.origin = a.Position, b.w.now, p.origin
	e.again++
	b.w.say("%s: accepted %s once more", p.name, e.id)
}

// counted enters a count that the agent has taken, or perhaps.
func (b *book) counted(p *pc, kind protocol.Kind, body any, day protocol.Day, err error) {
	c, ok := body.(protocol.FootfallCount)
	if !ok {
		return
	}
	e := &entry{pc: p, origin: p.origin, kind: kind, body: string(mustJSON(c)), day: day, at: b.w.now, count: &c, doubt: err != nil || p.disk.Dead()}
	if !e.doubt {
		_, e.where = p.agent.Journal().Heads()
		b.epochIsNew(p, e.where)
	}
	b.add(e)
}

// epochIsNew checks that each life of an agent has epochs of its own.
func (b *book) epochIsNew(p *pc, at protocol.Position) {
	life, known := p.epochs[at.Epoch]
	if !known {
		p.epochs[at.Epoch] = p.lives
	} else if life != p.lives && !slices.Contains(p.resumed, at.Epoch) {
		b.w.fail("%s: epoch %s of life %d goes on in life %d", p.name, short(at.Epoch), life, p.lives)
	}
}

// damaged notes what a journal says of its disk.
func (b *book) damaged(p *pc, what []string) {
	for _, s := range what {
		if !slices.Contains(b.damage[p], s) {
			b.w.say("%s: journal: %s", p.name, s)
			b.damage[p] = append(b.damage[p], s)
		}
	}
}
