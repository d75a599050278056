package sim

import (
	"slices"
	"strings"
	"time"
)

// A taint says that what a PC accepted in (from, to] may be lost.
type taint struct {
	from, to time.Time
	how      loss
}

// A loss is how something may be lost.
type loss int

const (
	unknown loss = iota // without a word, since nobody can know of it
	named               // somebody says what is lost
	once                // named, and only where it stood once: the index was whole, and what is not delivered stands in it too
)

func (p *pc) taint(from, to time.Time, how loss) {
	p.taints = append(p.taints, taint{from, to, how})
}

// forgot says that the PC may not remember an entry.
func (p *pc) forgot(e *entry) bool {
	return slices.ContainsFunc(p.taints, func(t taint) bool {
		return e.at.After(t.from) && !e.at.After(t.to) && (t.how != once || p.w.relay.restores > 0)
	})
}

// damage kills the agent and spoils one of its files, and sometimes the index too; the newest
// file of records mostly, if so wished.
func (p *pc) damage(n int64, d time.Duration, tail bool) {
	if p.agent == nil {
		return
	}
	p.repair = d
	p.crash(Kill)
	var files []string
	for _, name := range p.disk.Files("") {
		if strings.Contains(name, ".seg") || strings.HasSuffix(name, ".snap") {
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		return
	}
	draw := func(of int64) int64 {
		v := n % of
		n /= of
		return v
	}
	index, what := draw(4) == 0, draw(5)
	name := files[draw(int64(len(files)))]
	at := draw(1 << 12)
	newest := newestSegment(files)
	if tail && newest != "" && draw(4) > 0 {
		name, at = newest, draw(1<<14)
	}
	p.w.say("%s: damage %d to %s at %d, index lost: %v", p.name, what, name, at, index)
	how := once
	switch {
	case index && name == newest:
		how = unknown
	case index:
		how = named
	}
	p.taint(time.Time{}, p.w.now, how)
	if index {
		p.index.Lose()
	}
	if what == 4 {
		p.disk.Delete(name)
		return
	}
	p.disk.Damage(name, func(b []byte) []byte {
		if len(b) == 0 {
			return b
		}
		from := int(at) % len(b)
		switch what {
		case 0:
			b[from] ^= 1 << (at % 8)
		case 1: // a page of zeros
			from &^= 4095
			clear(b[from:min(from+4096, len(b))])
		case 2:
			b = b[:from]
		case 3:
			b = nil
		}
		return b
	})
}

func newestSegment(files []string) string {
	newest := ""
	for _, name := range files { // in order
		if strings.Contains(name, ".seg") {
			newest = name
		}
	}
	return newest
}
