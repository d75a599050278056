package sim

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

// A former journal is what an agent has left on a PC that another agent has taken over. It is
// delivered for as long as it is there.
type former struct {
	of      protocol.Origin
	journal *journal.Journal
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
	j, err := journal.Open(journal.Options{
		Dir: filepath.Join(p.dir, "journal"), Origin: old.origin, Now: p.wall, Mono: p.sinceBoot, BootID: "drain", Random: rand.NewChaCha8([32]byte{1}),
		Log: slog.New(slog.DiscardHandler), Disk: rebased{old.disk, p.dir}, Index: old.index, Inline: true, SegmentBytes: 8 << 10, ReserveBytes: -1,
	})
	if err != nil {
		w.fail("%s: the former journal does not open: %v", p.name, err)
		return
	}
	w.book.damaged(p, j.Damage())
	sender := link.NewSender(core.Former(j, old.origin), j, nil, link.Options{Version: agentVersion}, rand.New(rand.NewPCG(w.s.Seed, 99)))
	p.origin = origin
	p.emptyDisk()
	if err := os.Remove(filepath.Join(p.dir, "clock")); err != nil && !os.IsNotExist(err) {
		w.fail("harness: %v", err)
	}
	if err := writeIdentity(filepath.Join(p.dir, "identity"), origin); err != nil {
		w.fail("harness: %v", err)
	}
	p.former = &former{of: old.origin, journal: j}
	p.former.end = w.newEnd(p.name+" (former)", p, sender, 0, func(func(*link.Sender)) {})
	p.former.end.connectSoon()
	p.past.kept = false
	p.after(time.Minute)
}
