package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A store is a shop as head office and its people know it.
type store struct {
	w        *world
	i        int
	id       string
	shop     Shop
	settings protocol.Store // as head office has said
	pc       *pc            // the store's own
	copy     *pc            // a PC with a copy of its disk; nil = there is none
	line     line
	badClock bool // its clock has been changed meanwhile
	newRule  bool // the rule of its days has
}

func (w *world) openStore(i int) error {
	shop := w.s.Stores[i]
	s := &store{w: w, i: i, id: storeID(i), shop: shop}
	s.settings = protocol.Store{ID: s.id, Name: "Store " + s.id, Zone: shop.Zone, CutOff: shop.CutOff, Currency: "SEK"}
	w.stores = append(w.stores, s)
	if err := w.relay.putStore(s.settings); err != nil {
		return err
	}
	origin := protocol.Origin{Chain: chain, Store: s.id, Agent: "pc"}
	if err := w.relay.register(origin); err != nil {
		return err
	}
	p, err := w.newPC(s, origin, "pc")
	if err != nil {
		return err
	}
	s.pc, p.main = p, true
	for n := range shop.Tills {
		p.addTill(fmt.Sprint(n + 1))
	}
	for n := range shop.Counters {
		p.addCounter(fmt.Sprintf("door%d", n+1), meter{})
	}
	for day := range w.s.Days {
		p.trade(day)
	}
	return nil
}

// rule is when the store's business day begins, as head office has it.
func (s *store) rule() protocol.DayRule {
	rule, err := s.settings.Rule()
	if err != nil {
		panic(err) // of a schedule that was written by hand
	}
	return rule
}

// opened says whether the shop is open, or nearly.
func (s *store) opened() bool {
	for day := range s.w.s.Days {
		opens := s.w.s.opens(s.i, day)
		if s.w.now.After(opens.Add(-before-readAtNight)) && s.w.now.Before(opens.Add(openFor+after)) {
			return true
		}
	}
	return false
}

// wakes is how long before opening head office begins to ask for the day before: mostly
// in vain.
const wakes = 8 * time.Hour

// trade plans a day of the people and tills around a PC.
func (p *pc) trade(day int) {
	w, opens := p.w, p.w.s.opens(p.store.i, day)
	if opens.Add(openFor).Before(w.now) {
		return
	}
	r := w.random("day of "+p.name, day)
	w.at(opens.Add(-before), func() { p.switchOn() })
	w.at(opens.Add(openFor+after), func() {
		if !p.store.shop.Always && !w.calm {
			p.switchOff(r.IntN(4) == 0)
		}
	})
	later := func(do func()) {
		at := opens.Add(time.Duration(r.Int64N(int64(openFor - 8*time.Minute))))
		if !at.Before(w.now) {
			w.at(at, do)
		}
	}
	if before := p.w.s.opens(p.store.i, max(0, day-1)); p.main && day > 0 { // head office asks for yesterday
		for range 2 {
			at := opens.Add(time.Duration(r.Int64N(int64(openFor+wakes))) - wakes)
			w.at(at, func() { w.askForCertificate(p.store, p.store.rule().Day(before)) })
		}
	}
	for _, t := range p.tills {
		for range p.store.shop.Sales/2 + r.IntN(p.store.shop.Sales) {
			later(t.sell)
		}
	}
	for _, c := range p.counters {
		for range 5 + r.IntN(2*p.store.shop.Sales) {
			stay := time.Duration(r.Int64N(int64(7 * time.Minute)))
			later(func() {
				c.meter.in++
				w.in(stay, func() { c.meter.out++ })
			})
		}
	}
}

// A till rings up sales and posts them to its PC until it is told that they are accepted.
type till struct {
	pc    *pc
	name  string // its workstation
	token string
	r     *rand.Rand
	seq   int64
	queue []*sale // to be posted, in order
	busy  bool
	done  []*sale // accepted, in order
}

// A sale is one transaction as its till knows it.
type sale struct {
	till  *till
	seq   int64
	key   string
	sent  protocol.Transaction // as it was posted
	body  []byte
	entry *entry // in the book, once it is accepted
}

func (p *pc) addTill(name string) {
	p.tills = append(p.tills, &till{pc: p, name: name, token: "the-secret-of-till-" + name, r: p.w.random("till "+p.name+"/"+name, 0)})
}

// sell rings up the next transaction.
func (t *till) sell() {
	t.seq++
	now := t.pc.w.now.In(t.pc.store.rule().Zone)
	tx := protocol.Transaction{Sequence: t.seq, Type: protocol.TypeSale, Begin: now.Add(-time.Duration(20+t.r.IntN(90)) * time.Second).Truncate(time.Millisecond),
		End: now.Truncate(time.Millisecond), Currency: "SEK", Operator: fmt.Sprint(1 + t.r.IntN(5))}
	if t.r.IntN(2) == 0 { // else the agent dates it
		tx.BusinessDay = t.pc.store.rule().Day(now)
	}
	victim := t.victim()
	switch n := t.r.IntN(12); {
	case n == 0 && victim != nil:
		id := victim.entry.id
		tx.Type, tx.Voids = protocol.TypeVoid, &id
	case n == 1:
		tx.Type = protocol.TypeReturn
		tx.Lines = []protocol.LineItem{t.goods(protocol.LineReturn, -1)}
	default:
		for range 1 + t.r.IntN(3) {
			tx.Lines = append(tx.Lines, t.goods(protocol.LineSale, 1))
		}
		if n == 2 { // an exchange
			tx.Lines = append(tx.Lines, t.goods(protocol.LineReturn, -1))
		}
		if n == 3 {
			tx.Training = true
		}
	}
	for _, l := range tx.Lines {
		tx.Total += l.ExtendedAmount
	}
	if tx.Type != protocol.TypeVoid {
		tx.Tenders = []protocol.Tender{{Type: protocol.TenderCard, Amount: tx.Total}}
		if t.r.IntN(3) == 0 && tx.Total > 0 { // cash, with change
			paid := (tx.Total/10000 + 1) * 10000
			tx.Tenders = []protocol.Tender{{Type: protocol.TenderCash, Amount: paid}, {Type: protocol.TenderCash, Amount: tx.Total - paid}}
		}
	}
	s := &sale{till: t, seq: t.seq, key: fmt.Sprintf("%s-%s-%d", t.pc.name, t.name, t.seq), sent: tx, body: mustJSON(tx)}
	t.queue = append(t.queue, s)
	t.pump()
}

func (t *till) goods(kind string, sign int64) protocol.LineItem {
	amount := sign * (100 + t.r.Int64N(90000))
	l := protocol.LineItem{Type: kind, Item: fmt.Sprint(4000 + t.r.IntN(30)), Description: `Kött & "bröd" <1>`, Quantity: protocol.Quantity{Milli: sign * 1000},
		ExtendedAmount: amount, TaxAmount: amount / 5, TaxRate: 2500}
	if t.r.IntN(4) == 0 {
		l.DiscountAmount = sign * 500
	}
	if t.r.IntN(10) == 0 && sign > 0 {
		l.ItemType = protocol.ItemGiftCard
	}
	return l
}

// victim is a sale that can be voided: the newest, unless it was.
func (t *till) victim() *sale {
	if len(t.done) == 0 {
		return nil
	}
	if s := t.done[len(t.done)-1]; s.sent.Type != protocol.TypeVoid && s.entry != nil {
		return s
	}
	return nil
}

// pump posts what waits, one after the other.
func (t *till) pump() {
	if t.busy || len(t.queue) == 0 {
		return
	}
	w, s := t.pc.w, t.queue[0]
	again := func(d time.Duration) {
		t.busy = true
		w.in(d, func() { t.busy = false; t.pump() })
	}
	answer := t.pc.post(t, s)
	switch status := answer.status; {
	case status == 0 || status == 201 && t.r.IntN(15) == 0: // no answer, or it was lost on its way
		again(time.Duration(3+t.r.IntN(20)) * time.Second)
	case status == 201:
		w.book.sold(s, answer)
		t.queue, t.done = t.queue[1:], append(t.done, s)
		if t.r.IntN(15) == 0 {
			t.repeat(t.done[t.r.IntN(len(t.done))])
		}
		again(time.Second)
	case status == 503 || status == 507:
		again(time.Duration(30+t.r.IntN(60)) * time.Second)
	default:
		w.fail("till %s of %s: sale %d is answered %d", t.name, t.pc.name, s.seq, status)
	}
}

// repeat posts an accepted sale once more, as a till does that does not remember.
func (t *till) repeat(s *sale) {
	if s.sent.BusinessDay.IsZero() && t.pc.forgot(s.entry) {
		return // the agent may date it otherwise by now, and then it is another transaction
	}
	switch answer := t.pc.post(t, s); answer.status {
	case 0, 503, 507:
	case 201:
		t.pc.w.book.soldAgain(s, answer)
	default:
		t.pc.w.fail("till %s of %s: repeated sale %d is answered %d", t.name, t.pc.name, s.seq, answer.status)
	}
}

// repeatLast posts the newest sales once more: somebody has told the till to.
func (t *till) repeatLast(n int) {
	for _, s := range t.done[max(0, len(t.done)-n):] {
		t.repeat(s)
	}
}
