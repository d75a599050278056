package sim

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/storelay/storelay/protocol"
)

// strike lets a fault happen.
func (w *world) strike(f Fault) {
	w.say("fault: %s of store %s, n=%d, for %s", f.Kind, storeID(f.Store), f.N, time.Duration(f.For))
	s, d := w.stores[f.Store], time.Duration(f.For)
	p := s.pc
	switch f.Kind {
	case Kill, Power:
		p.dieAt(f.Kind, int(f.N), d)
	case Restart:
		if p.agent != nil {
			p.stop()
			p.after(d)
		}
	case CrashLoop:
		p.crashLoop(int(f.N))
	case LoseIndex:
		if p.agent != nil {
			p.repair = d
			p.crash(Kill)
			p.index.Lose()
		}
	case BadSync:
		p.failSync(int(f.N))
	case Full:
		p.fillDisk(uint64(f.N)<<20, d)
	case Damage:
		p.damage(f.N, d, false)
	case Spoil:
		s.line.down++
		w.fall(&s.line, "the line is cut")
		w.in(d, func() { p.damage(f.N, 5*time.Minute, true) })
		w.in(d+10*time.Minute, func() { s.line.down = max(0, s.line.down-1) })
	case Cut:
		s.line.down++
		w.fall(&s.line, "the line is cut")
		w.in(d, func() { s.line.down = max(0, s.line.down-1) })
	case Silence:
		s.line.silent++
		w.in(d, func() { s.line.silent = max(0, s.line.silent-1) })
		w.in(d/2, func() { w.fall(&s.line, "the line has been silent") })
	case Storm:
		s.line.percent = f.N
		w.in(d, func() { s.line.percent = 0 })
	case KillRelay:
		if step := steps[f.N%int64(len(steps))]; step == "" {
			w.relay.die(d)
		} else {
			w.relay.fails = step
		}
	case Backup:
		w.relay.copyNow()
	case Restore:
		w.relay.restore(f.N == 1, d)
	case Clone:
		w.clone(s, d)
	case Rollback:
		i := p.copyDisk()
		w.in(d, func() {
			if !w.calm && p.origin == i.origin {
				p.rollBack(i)
			}
		})
	case Resume:
		if snap, ok := p.snap(); ok {
			w.in(d, func() {
				if !w.calm && p.origin == snap.base.origin {
					w.resume(p, snap, f.N)
				}
			})
		}
	case Reimage:
		p.reimage(d)
	case Skew:
		s.badClock = true
		p.setClock(time.Duration(f.N)*time.Minute, d)
	case Battery:
		p.loseTime(d)
	case Revoke:
		w.revoke(p, d)
	case Settings:
		for i := range int64(3) {
			w.in(time.Duration(i)*d/2, func() { s.change(f.N + i) })
		}
	case BadReceiver:
		w.receiver.modes = append(w.receiver.modes, f.N)
		w.in(d, func() { w.receiver.modes = w.receiver.modes[min(1, len(w.receiver.modes)):] })
	case KillDelivery:
		w.receiver.dieAt = f.N
	default:
		w.fail("schedule: no such fault: %q", f.Kind)
	}
}

// change lets head office change the business day of a store.
func (s *store) change(to int64) {
	if s.w.relay.up {
		s.newRule = true
		s.settings.CutOff = []string{"", "03:00", "05:30"}[to%3]
		_ = s.w.relay.putStore(s.settings) // it has failed the run
	}
}

// heal ends what still lasts.
func (w *world) heal() {
	for _, s := range w.stores {
		s.line = line{}
	}
	w.receiver.modes, w.receiver.dieAt = nil, 0
	w.relay.fails = ""
	w.relay.start()
	for _, p := range w.pcs {
		p.disk.FreeBytes, p.disk.Fail = nil, nil
		p.disk.DieAt(1 << 30)
		p.skew = 0
		p.switchOn()
	}
}

// dieAt ends the agent, or its PC, at a step of its disk.
func (p *pc) dieAt(how Kind, step int, d time.Duration) {
	p.dying, p.repair = how, d
	p.disk.DieAt(step)
}

// crashLoop is an agent that dies at every start, a little further each time.
func (p *pc) crashLoop(n int) {
	if n == 0 || p.w.calm {
		return
	}
	if p.agent != nil {
		p.repair = time.Minute
		p.crash(Kill)
	}
	p.w.in(30*time.Second, func() {
		if p.agent == nil {
			p.dieAt([]Kind{Kill, Power}[p.r.IntN(2)], 1+p.r.IntN(10), 20*time.Second)
		}
	})
	p.w.in(2*time.Minute, func() { p.crashLoop(n - 1) })
}

// failSync lets the disk's nth sync from now on fail, once.
func (p *pc) failSync(n int) {
	disk := p.disk
	disk.Fail = func(step, _ string) error {
		if step != "datasync" {
			return nil
		}
		if n--; n == 0 {
			return syscall.EIO
		}
		return nil
	}
	p.w.in(20*time.Minute, func() { disk.Fail = nil })
}

// fillDisk leaves so much room, or none at all.
func (p *pc) fillDisk(free uint64, d time.Duration) {
	disk := p.disk
	p.filled = true
	disk.FreeBytes = func() uint64 { return free }
	if free == 0 {
		disk.Fail = func(step, _ string) error {
			if step == "create" {
				return syscall.ENOSPC
			}
			return nil
		}
	}
	p.w.in(d, func() { disk.FreeBytes, disk.Fail = nil, nil })
}

// setClock makes the PC's clock wrong until somebody sets it.
func (p *pc) setClock(skew, d time.Duration) {
	p.skew = skew
	p.w.in(d, func() { p.skew = 0 })
}

// loseTime is a boot with a dead battery: the clock begins at its own beginning.
func (p *pc) loseTime(d time.Duration) {
	if p.agent != nil {
		p.repair = time.Minute
		p.crash(Power)
	}
	p.lostTime = true
	p.setClock(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Sub(p.w.now), d)
}

// repeatSales lets the tills post their newest sales again: the PC may have forgotten them.
func (p *pc) repeatSales() {
	for _, t := range p.tills {
		t.repeatLast(4)
	}
}

// rollBack puts an older image of the disk back.
func (p *pc) rollBack(i image) {
	p.w.say("%s: the disk of %s is put back", p.name, i.at.Format("15:04:05"))
	p.leave(false)
	p.taint(i.at, p.w.now, unknown)
	p.putBack(i)
	p.booted = time.Time{}
	p.after(time.Minute)
	p.w.in(3*time.Minute, p.repeatSales)
}

// reimage gives the PC an empty disk.
func (p *pc) reimage(d time.Duration) {
	p.w.say("%s: begins with an empty disk", p.name)
	p.leave(false)
	p.taint(time.Time{}, p.w.now, unknown)
	p.emptyDisk()
	if p.former != nil { // what was set aside is gone too
		p.endDrain()
		p.former = nil
	}
	if err := errors.Join(removeDir(p.dir), writeIdentity(p.dir+"/identity", p.origin)); err != nil {
		p.w.fail("harness: %v", err)
	}
	p.booted = time.Time{}
	p.after(d)
	p.w.in(d+time.Minute, p.repeatSales)
}

// clone copies the store's disk into another PC, which runs beside it with tills and counters
// of its own; or into the copy that is there already.
func (w *world) clone(s *store, d time.Duration) {
	if s.pc.revoked {
		return // the copy would never deliver what it accepts
	}
	i := s.pc.copyDisk()
	if p := s.copy; p != nil {
		w.say("%s: gets the newer copy", p.name)
		p.leave(false)
		p.taint(time.Time{}, w.now, unknown)
		p.putBack(i)
		p.booted = time.Time{}
		p.after(d)
		return
	}
	p, err := w.newPC(s, s.pc.origin, "copy")
	if err != nil {
		w.fail("harness: %v", err)
		return
	}
	s.copy = p
	p.putBack(i)
	p.copyShop(s.pc)
	w.in(d, p.switchOn)
	for day := range w.s.Days {
		p.trade(day)
	}
}

// copyShop gives a copy of a PC tills of its own, and counters that show what those of the
// first do.
func (p *pc) copyShop(of *pc) {
	for n := range of.tills {
		p.addTill(fmt.Sprint(91 + n))
	}
	for _, g := range of.counters {
		p.addCounter(g.id, g.meter)
	}
}

// revoke ends an agent's membership; later its PC is enrolled under a new name, and what the
// old journal holds is delivered by the new agent.
func (w *world) revoke(p *pc, d time.Duration) {
	if p.revoked || !w.relay.up || p.store.copy != nil {
		return
	}
	p.revoked = true
	old := p.origin
	if err := w.relay.ledger.SetAgentState(w.ctx(), old, "revoked"); err != nil {
		w.fail("revoke: %v", err)
		return
	}
	w.relay.denied = append(w.relay.denied, old)
	w.in(5*time.Second, func() {
		for _, e := range w.ends() {
			if e.origin == old {
				e.cut(errors.New("revoked"))
			}
		}
	})
	w.in(d, func() { w.enrolAnew(p, protocol.Origin{Chain: old.Chain, Store: old.Store, Agent: "pc-b"}) })
}
