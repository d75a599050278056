package sim

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

// A former journal is what an agent has left on a PC that another agent has taken over: a
// folder that was set aside. Its files are on a disk of their own; the folder itself, whose name
// says whether it is drained, is beside the present agent's, which looks there.
type former struct {
	of      protocol.Origin
	disk    *journaltest.Disk
	index   *journal.MemoryIndex
	drains  int
	journal *journal.Journal // nil = no drain runs
	end     *end
}

func removeDir(dir string) error { return os.RemoveAll(dir) }

// enrolAnew gives the PC another identity and an empty journal, and drains the old one.
func (w *world) enrolAnew(p *pc, origin protocol.Origin) {
	if !w.relay.up {
		w.in(5*time.Minute, func() { w.enrolAnew(p, origin) })
		return
	}
	w.say("%s: is enrolled as %s", p.name, origin)
	if p.agent != nil {
		p.stop()
	}
	if p.agent != nil || p.disk.Dead() || w.failed != nil {
		p.leave(false)
	}
	p.disk.Kill()
	p.disk.FreeBytes, p.disk.Fail = nil, nil
	p.disk.DieAt(1 << 30)
	old := *p
	if err := w.relay.register(origin); err != nil {
		return
	}
	if err := os.Mkdir(core.AsideFolder(p.dir, old.origin, p.wall()), 0o700); err != nil {
		w.fail("harness: %v", err)
		return
	}
	p.former = &former{of: old.origin, disk: old.disk, index: old.index}
	p.origin = origin
	p.emptyDisk()
	if err := os.Remove(filepath.Join(p.dir, "clock")); err != nil && !os.IsNotExist(err) {
		w.fail("harness: %v", err)
	}
	if err := writeIdentity(filepath.Join(p.dir, "identity"), origin); err != nil {
		w.fail("harness: %v", err)
	}
	p.beginDrain()
	w.in(lookEvery, p.lookAtAside)
	p.past.kept = false
	p.after(time.Minute)
}

// lookEvery is how often a technician looks at a PC's status page.
const lookEvery = 20 * time.Minute

// lookAtAside is a technician who does what the agent's status asks for.
func (p *pc) lookAtAside() {
	p.w.in(lookEvery, p.lookAtAside)
	if aside := p.aside(); len(aside) > 0 && p.former != nil && p.former.journal == nil {
		p.w.say("%s: is drained: %s", p.name, aside[0].Why)
		p.beginDrain()
	}
}

// aside is what the agent says of folders that wait to be drained.
func (p *pc) aside() []core.Aside {
	if p.agent == nil {
		return nil
	}
	return p.agent.Status().(core.Status).SetAside
}

// beginDrain is `storelay-agent drain`.
func (p *pc) beginDrain() {
	w, f := p.w, p.former
	f.drains++
	j, err := journal.Open(journal.Options{
		Dir: filepath.Join(p.dir, "journal"), Origin: f.of, Now: p.wall, Mono: p.sinceBoot, BootID: "drain", Random: rand.NewChaCha8([32]byte{1, byte(f.drains)}),
		Log: slog.New(slog.DiscardHandler), Disk: rebased{f.disk, p.dir}, Index: f.index, Inline: true, SegmentBytes: 8 << 10, ReserveBytes: -1,
	})
	if err != nil {
		w.fail("%s: the former journal does not open: %v", p.name, err)
		return
	}
	w.book.damaged(p, j.Damage())
	sender := link.NewSender(core.Former(j, f.of), j, nil, link.Options{Version: agentVersion}, rand.New(rand.NewPCG(w.s.Seed, 98+uint64(f.drains))))
	f.journal = j
	f.end = w.newEnd(p.name+" (former)", p, sender, f.drains-1, func(func(*link.Sender)) {})
	f.end.connectSoon()
	p.lookAtDrain(f)
}

// lookAtDrain ends a drain when it is done, as the command does.
func (p *pc) lookAtDrain(f *former) {
	if p.former != f {
		return
	}
	status := f.end.sender.Status()
	if !core.Delivered(f.journal, status) {
		p.w.in(time.Second, func() { p.lookAtDrain(f) })
		return
	}
	p.w.say("%s: drained, incarnation %d", p.name, status.Incarnation)
	p.endDrain()
	found, err := filepath.Glob(filepath.Join(p.dir, "journal-of-*")) // an image that was put back has changed its name
	if err == nil && len(found) != 1 {
		err = errors.New("want one folder set aside")
	}
	if err == nil {
		err = core.Drained(found[0], status.Incarnation)
	}
	if err != nil {
		p.w.fail("%s: drained: %q: %v", p.name, found, err)
	}
}

// endDrain ends the command, done or not.
func (p *pc) endDrain() {
	f := p.former
	if f.journal == nil {
		return
	}
	f.end.gone()
	if err := f.journal.Close(); err != nil {
		p.w.fail("%s: the former journal does not close: %v", p.name, err)
	}
	f.disk.Kill()
	f.journal, f.end = nil, nil
}
