package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

var errGone = errors.New("the agent has ended")

// A pc is a store PC: its disk, what else it is, and the agent that runs on it.
type pc struct {
	w        *world
	store    *store
	name     string // in the trace
	origin   protocol.Origin
	dir      string // identity, and what the agent keeps beside its journal
	disk     *journaltest.Disk
	index    *journal.MemoryIndex
	r        *rand.Rand
	tills    []*till
	counters []*gauge
	knows    []*till // of the PC that it was, whose tokens it knows too

	on      bool // it is meant to run
	down    bool // something has ended the agent, and an event will start it again
	agent   *core.Agent
	lives   int // starts of the agent
	boots   int
	booted  time.Time
	skew    time.Duration          // how far the PC's clock is ahead
	end     *end                   // of the link
	dying   Kind                   // what it means when the disk dies: Kill or Power
	repair  time.Duration          // and how long the agent is down then
	epochs  map[protocol.Epoch]int // by the life that began it
	resumed []protocol.Epoch       // that went on in another life

	lostTime bool // its clock has begun anew
	filled   bool // its disk was full: what the relay has may be dropped at once
	main     bool // the store's own, not a copy
	revoked  bool
	former   *former // a journal of this PC that another agent has left
	taints   []taint // what may be lost of it

	keeps      int
	images     int
	past       history
	replaying  bool
	replayAt   time.Time
	replaySkew time.Duration
}

const agentVersion = "1.0.0"

// newPC makes a PC with an empty disk.
func (w *world) newPC(s *store, origin protocol.Origin, name string) (*pc, error) {
	p := &pc{w: w, store: s, name: s.id + "/" + name, origin: origin, epochs: map[protocol.Epoch]int{}}
	p.r = w.random("pc "+p.name, 0)
	p.dir = filepath.Join(w.dir, s.id+"-"+name)
	p.emptyDisk()
	w.pcs = append(w.pcs, p)
	return p, writeIdentity(filepath.Join(p.dir, "identity"), origin)
}

func (p *pc) emptyDisk() {
	p.disk = journaltest.NewDisk(p.r.Uint64(), p.wall)
	p.index = journal.NewMemoryIndex()
}

// wall is the PC's clock.
func (p *pc) wall() time.Time {
	if p.replaying {
		return p.replayAt.Add(p.replaySkew)
	}
	return p.w.now.Add(p.skew)
}

// sinceBoot is the PC's other clock.
func (p *pc) sinceBoot() time.Duration {
	if p.replaying {
		return p.replayAt.Sub(p.booted)
	}
	return p.w.now.Sub(p.booted)
}

// switchOn starts the PC, in the morning or after an end.
func (p *pc) switchOn() {
	p.on = true
	p.start()
}

// switchOff ends the PC for the night, in good order or by its switch.
func (p *pc) switchOff(hard bool) {
	p.on = false
	if p.agent == nil {
		return
	}
	if hard {
		p.w.say("%s: switched off hard", p.name)
		p.crash(Power)
		return
	}
	p.stop()
	p.booted = time.Time{}
}

// start starts the agent, if the PC is on and nothing else holds it down.
func (p *pc) start() {
	if !p.on || p.down || p.agent != nil {
		return
	}
	if p.booted.IsZero() {
		p.boots++
		p.booted = p.w.now
	}
	p.lives++
	p.w.stats.Starts++
	p.remember()
	agent, err := p.open(p.name, p.lives)
	if p.disk.Dead() {
		p.agent = agent // as far as it came
		p.crash(p.dying)
		return
	}
	if err != nil && p.badDisk() {
		p.w.say("%s: does not start on this disk, will be tried again", p.name)
		p.after(time.Minute)
		return
	}
	if err != nil {
		p.w.fail("%s does not start: %v", p.name, err)
		return
	}
	p.w.say("%s: agent starts, life %d, clock %s ahead, %d wait", p.name, p.lives, p.skew, agent.Journal().Stats().Waiting)
	p.begin(agent)
}

// begin lets an agent that is open work.
func (p *pc) begin(agent *core.Agent) {
	p.agent = agent
	p.end = p.w.newEnd(p.name, p, p.agent.Sender(), p.lives, p.heard)
	p.rollOver()
	for _, g := range p.counters {
		if p.agent != nil {
			g.start()
		}
	}
	if p.agent == nil {
		return
	}
	p.end.connectSoon()
	p.everyTenMinutes(p.lives)
	for _, t := range p.tills {
		t.pump()
	}
}

// open opens the agent on its disk. Name and life decide what it draws at random.
func (p *pc) open(name string, life int) (*core.Agent, error) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], p.w.s.Seed)
	binary.LittleEndian.PutUint64(seed[8:], uint64(life))
	copy(seed[16:], name+p.origin.Agent)
	return core.New(p.config(), core.Options{
		Version: agentVersion, Log: slog.New(slog.DiscardHandler), Now: p.wall,
		Inline: true, Disk: rebased{p.disk, p.dir}, Index: p.index, Mono: p.sinceBoot, BootID: fmt.Sprintf("%s-%d", name, p.boots),
		Random: rand.NewChaCha8(seed), Jitter: rand.NewPCG(p.w.s.Seed, uint64(life)),
		SegmentBytes: 16 << 10, ReserveBytes: -1, RetainFor: 14 * 24 * time.Hour, FeedEvery: 10 * time.Minute,
	})
}

func (p *pc) config() core.Config {
	cfg := core.Config{Data: p.dir, Identity: filepath.Join(p.dir, "identity"), Relays: []string{"tls://relay:8883"},
		Zone: p.store.shop.Zone, CutOff: p.store.shop.CutOff}
	for _, t := range append(slices.Clip(p.tills), p.knows...) {
		cfg.Tills = append(cfg.Tills, core.Till{Workstation: t.name, Token: t.token})
	}
	for _, g := range p.counters {
		cfg.Devices = append(cfg.Devices, core.Device{ID: g.id, Driver: "line", Port: "sim", Settings: counterSettings()})
	}
	return cfg
}

// did remembers what the agent was told, and looks at what came of it.
func (p *pc) did(op func(*core.Agent)) {
	p.past.add(p, op)
	p.look()
}

// heard is did for what the link's sender was told.
func (p *pc) heard(op func(*link.Sender)) {
	p.did(func(a *core.Agent) { op(a.Sender()) })
}

// look sees whether the disk has died under the agent.
func (p *pc) look() {
	if p.agent != nil && p.disk.Dead() {
		p.crash(p.dying)
	}
}

// crash ends the agent as it is: the process, or the whole PC.
func (p *pc) crash(how Kind) {
	p.w.say("%s: %s", p.name, how)
	p.leave(false)
	if how == Power {
		p.index.Crash(func(commits int) int {
			if p.r.IntN(2) == 0 {
				return 0
			}
			return p.r.IntN(commits + 1)
		})
		p.disk.Crash()
		p.booted = time.Time{}
	} else {
		p.disk.Kill()
	}
	p.after(p.repair)
}

// after starts the agent again some time later.
func (p *pc) after(d time.Duration) {
	if d == 0 {
		d = time.Minute
	}
	p.down = true
	p.w.in(d, func() { p.down = false; p.start() })
}

// leave takes the agent out of the world.
func (p *pc) leave(order bool) {
	if !order {
		p.lives++ // nothing of it is taken any more
	}
	for _, g := range p.counters {
		g.end(order)
	}
	if p.end != nil {
		p.w.stats.Forks += int(p.end.sender.Status().Forks)
		p.w.stats.Rewinds += int(p.end.sender.Status().Rewinds)
		p.end.gone()
	}
	p.end = nil
	p.lives++
	if p.agent != nil {
		p.w.book.damaged(p, p.agent.Journal().Damage())
	}
	p.agent = nil
}

// stop ends the agent in good order.
func (p *pc) stop() {
	agent := p.agent
	for _, g := range p.counters {
		g.end(true)
		if p.agent == nil { // the disk died while the last counts were written
			return
		}
	}
	p.w.say("%s: agent stops", p.name)
	p.leave(true)
	err := agent.Close()
	switch {
	case p.disk.Dead():
		p.crash(p.dying)
	case err != nil && !p.badDisk():
		p.w.fail("%s does not stop: %v", p.name, err)
	default:
		p.disk.Kill()
	}
}

// everyTenMinutes is what the agent's own goroutines do.
func (p *pc) everyTenMinutes(life int) {
	p.w.in(10*time.Minute, func() {
		if p.lives != life || p.agent == nil {
			return
		}
		p.rollOver()
		if p.keeps++; p.agent != nil && p.keeps%3 == 0 {
			p.keep()
		}
		if p.agent != nil {
			p.everyTenMinutes(life)
		}
	})
}

func (p *pc) rollOver() {
	op := func(a *core.Agent) error { _, err := a.RollOver(p.w.ctx()); return err }
	err := op(p.agent)
	if err != nil && !p.disk.Dead() && !p.badDisk() {
		p.w.fail("%s: roll over: %v", p.name, err)
	}
	p.did(func(a *core.Agent) { _ = op(a) })
	p.end.poke()
}

func (p *pc) keep() {
	if err := p.agent.Journal().Keep(); err != nil && !p.disk.Dead() && !p.badDisk() {
		p.w.fail("%s: keep: %v", p.name, err)
	}
	p.did(func(a *core.Agent) { _ = a.Journal().Keep() })
}

// badDisk says that an error of the disk is no wonder.
func (p *pc) badDisk() bool { return p.disk.FreeBytes != nil || p.disk.Fail != nil }

// host is what the driver of a counter runs on.
func (p *pc) host(id string) drivers.Host {
	host, ok := p.agent.Host(id)
	if !ok {
		panic("no device " + id)
	}
	return bookedHost{host, p, id, p.lives}
}

// dayOf is the business day that the agent gives to a count.
func (p *pc) dayOf(body any) protocol.Day {
	c, ok := body.(protocol.FootfallCount)
	if !ok {
		return protocol.Day{}
	}
	store := p.agent.Status().(core.Status).Store
	rule, err := store.Rule()
	if err != nil {
		p.w.fail("%s: settings: %v", p.name, err)
		return protocol.Day{}
	}
	return rule.Day(c.To.Add(-time.Nanosecond))
}

// A reply is the agent's answer to a till.
type reply struct {
	status   int // 0 = there was none
	replayed bool
	body     []byte
}

// post brings a sale to the agent.
func (p *pc) post(t *till, s *sale) reply {
	if p.agent == nil || p.disk.Dead() {
		return reply{}
	}
	send := func(a *core.Agent) *httptest.ResponseRecorder {
		req := httptest.NewRequest(http.MethodPost, "/v1/transactions", bytes.NewReader(s.body))
		req.Host = "127.0.0.1"
		req.Header.Set("Authorization", "Bearer "+t.token)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", s.key)
		res := httptest.NewRecorder()
		a.Handler().ServeHTTP(res, req)
		return res
	}
	res := send(p.agent)
	dead := p.disk.Dead()
	p.did(func(a *core.Agent) { send(a) })
	if dead {
		return reply{}
	}
	p.end.poke()
	return reply{res.Code, res.Header().Get("Idempotency-Replayed") != "", res.Body.Bytes()}
}

// undelivered says what of the PC is still on its way.
func (p *pc) undelivered() string {
	for _, t := range p.tills {
		if n := len(t.queue); n > 0 {
			return fmt.Sprintf("%d sales wait at till %s of %s", n, t.name, p.name)
		}
	}
	if p.agent == nil {
		return p.name + " does not run"
	}
	if n := p.agent.Journal().Stats().Waiting; n > 0 {
		status := p.agent.Sender().Status()
		return fmt.Sprintf("%d records wait at %s; link: %+v", n, p.name, status)
	}
	if p.former != nil && p.former.journal.Stats().Waiting > 0 {
		return fmt.Sprintf("the former journal of %s is not drained", p.name)
	}
	return ""
}

// copyDir copies what an agent keeps beside its journal.
func copyDir(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.CopyFS(to, os.DirFS(from))
}
