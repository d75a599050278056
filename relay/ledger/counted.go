package ledger

import (
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// Receipts have a business key, footfall has none. When an agent's disk is rolled back, its
// counter goes on from totals that it had already told, and the people in between would be
// counted twice. What tells is the counter's own totals.
type counterKey struct{ store, agent, counter string }

// A counted is the newest totals of a counter that the ledger has had.
type counted struct {
	in, out int64
	moved   bool
}

// countedBefore says why a count must not be applied: people in it are in the totals of an
// earlier one. It takes the count's totals as the newest.
func (g *group) countedBefore(key counterKey, c *protocol.FootfallCount) (reason string) {
	last := g.counters[key]
	if last == nil {
		g.counters[key] = &counted{c.RawIn, c.RawOut, true}
		return ""
	}
	last.moved = true
	if c.Quality != protocol.QualityOK && c.Quality != protocol.QualityGap { // the counter began again, or may have
		last.in, last.out = c.RawIn, c.RawOut
		return ""
	}
	if again := overlap(c.RawIn, c.In, last.in) + overlap(c.RawOut, c.Out, last.out); again > 0 {
		reason = fmt.Sprintf("rawIn: %d people of this count were counted before: it goes from totals %d/%d to %d/%d, and %d/%d were told already; was the disk rolled back?",
			again, c.RawIn-c.In, c.RawOut-c.Out, c.RawIn, c.RawOut, last.in, last.out)
	}
	last.in, last.out = max(last.in, c.RawIn), max(last.out, c.RawOut)
	return reason
}

// overlap is how many of the people up to a raw total were in an earlier one. A total below
// that is another life of the counter, or has come late.
func overlap(raw, people, last int64) int64 {
	if before := raw - people; before >= 0 && before < last && raw >= last {
		return last - before
	}
	return 0
}
