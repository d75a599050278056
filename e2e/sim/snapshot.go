package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
	"github.com/storelay/storelay/protocol"
)

// An image is a copy of a PC's disk: its segments, its index, and the files beside them.
type image struct {
	disk   *journaltest.Disk
	index  *journal.MemoryIndex
	dir    string
	at     time.Time
	origin protocol.Origin // whose journal is on it
}

// copyDisk makes an image of the PC as it is.
func (p *pc) copyDisk() image {
	p.images++
	i := image{disk: p.disk.Clone(p.r.Uint64()), index: p.index.Clone(), dir: fmt.Sprintf("%s-image-%d", p.dir, p.images), at: p.w.now, origin: p.origin}
	if err := copyDir(p.dir, i.dir); err != nil {
		p.w.fail("harness: copy %s: %v", p.name, err)
	}
	return i
}

// putBack makes an image the PC's disk. The image stays as it is.
func (p *pc) putBack(i image) {
	p.disk, p.index = i.disk.Clone(p.r.Uint64()), i.index.Clone()
	if err := copyDir(i.dir, p.dir); err != nil {
		p.w.fail("harness: put image into %s: %v", p.name, err)
	}
}

// A history is what an agent was told since its start. The memory of a running PC cannot be
// copied, so a snapshot of it is a life that is done again.
type history struct {
	kept    bool // else nobody will ask for it
	base    image
	skew    time.Duration
	name    string
	life    int
	boots   int
	booted  time.Time
	ops     []op
	unclean bool // the disk failed meanwhile: it cannot be done again
}

type op struct {
	at   time.Time
	skew time.Duration
	do   func(*core.Agent)
}

// remember begins the history of a life, before its start.
func (p *pc) remember() {
	p.past = history{kept: p.main && p.w.s.has(Resume, p.store.i)}
	if p.past.kept {
		p.past = history{kept: true, base: p.copyDisk(), skew: p.skew, name: p.name, life: p.lives, boots: p.boots, booted: p.booted}
	}
}

func (h *history) add(p *pc, do func(*core.Agent)) {
	if h.kept && !p.replaying {
		h.unclean = h.unclean || p.badDisk()
		h.ops = append(h.ops, op{p.w.now, p.skew, do})
	}
}

// A snapshot is a running PC.
type snapshot struct {
	history
	taken  time.Time
	newest protocol.Position
}

// snap takes a snapshot; false when there is nothing that runs.
func (p *pc) snap() (snapshot, bool) {
	if p.agent == nil || !p.past.kept || p.past.unclean {
		return snapshot{}, false
	}
	s := snapshot{history: p.past, taken: p.w.now}
	s.ops = slices.Clip(s.ops)
	_, s.newest = p.agent.Journal().Heads()
	return s, true
}

// resume lets a snapshot go on: in the PC's place, with the line or without; or beside it, as
// another PC with tills of its own.
func (w *world) resume(p *pc, s snapshot, how int64) {
	const alone = 25 * time.Minute
	switch {
	case how == 2 && p.store.copy == nil && !p.revoked:
		twin, err := w.newPC(p.store, p.origin, "twin")
		if err != nil {
			w.fail("harness: %v", err)
			return
		}
		p.store.copy = twin
		twin.knows = p.tills
		twin.copyShop(p)
		twin.taint(s.taken, w.now, unknown)
		twin.resume(s)
		for day := range w.s.Days {
			twin.trade(day)
		}
	case how == 1:
		p.store.line.down++
		w.fall(&p.store.line, "the line is cut")
		w.in(alone, func() { p.store.line.down = max(0, p.store.line.down-1) })
		fallthrough
	default:
		p.taint(s.taken, w.now, unknown)
		p.resume(s)
		p.repeatSales()
	}
}

// resume lets the PC go on where a snapshot was taken: without a start, and in the same epoch.
func (p *pc) resume(s snapshot) {
	p.w.say("%s: goes on from the snapshot of %s", p.name, s.taken.Format("15:04:05"))
	p.leave(false)
	p.putBack(s.base)
	p.on, p.boots, p.booted = true, s.boots, s.booted
	p.replaying, p.replayAt, p.replaySkew = true, s.base.at, s.skew
	agent, err := p.open(s.name, s.life)
	if err != nil {
		p.w.fail("harness: %s does not start again: %v", p.name, err)
		return
	}
	for _, op := range s.ops {
		p.replayAt, p.replaySkew = op.at, op.skew
		op.do(agent)
	}
	if _, newest := agent.Journal().Heads(); newest != s.newest {
		p.w.fail("harness: %s: a life done again came to %s, it was at %s", p.name, newest, s.newest)
	}
	p.replaying = false
	p.booted = p.booted.Add(p.w.now.Sub(s.taken))
	p.resumed = append(p.resumed, s.newest.Epoch)
	agent.Sender().Lost(errGone)
	p.past.kept = false
	p.begin(agent)
}
