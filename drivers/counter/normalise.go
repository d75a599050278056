// Package counter holds the drivers of footfall counters, and the rules by which a
// counter's running totals become numbers of people.
//
// A driver is the constants of a wire format, a pure codec (bytes in, frames out) and a
// dull Run. What all share is the tally: it turns readings into one FootfallCount per
// interval, zero ones too, so that no visitors and no counter look different.
package counter

import (
	"math"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A Reading is what a counter says: its running totals at one moment.
type Reading struct {
	In, Out uint64 // people since the counter's own zero
	Width   int    // bits of the counter's registers; they wrap at 1<<Width. 0 or 64: never
	At      time.Time
	Reset   bool   // the counter is known to have begun again since the last reading
	Uptime  *int64 // seconds since it began, where it says so: less than before is a reset
}

// A State is what has to be remembered of a counter between two readings. It is stored with
// the counts that it belongs to, both or neither, so that a crash counts nobody twice. The
// zero State knows nothing.
type State struct {
	Known  bool      `json:"known"` // totals have been read once
	In     uint64    `json:"in"`
	Out    uint64    `json:"out"`
	Width  int       `json:"width,omitempty"`
	Uptime *int64    `json:"uptime,omitempty"`
	ReadAt time.Time `json:"readAt,omitzero"` // of In and Out
	To     time.Time `json:"to,omitzero"`     // end of the last emitted interval
}

// A Delta is the number of people between two readings.
type Delta struct {
	In, Out int64
	Quality protocol.Quality
}

// A Rate bounds what is believed: people per second through one line in one direction.
type Rate float64

// DefaultRate is 5 people a second: more than a double door lets through.
const DefaultRate Rate = 5

// grace is the shortest time that a bound is taken for. Readings come in bursts and wall
// clocks are set, so the time between two of them is not to be trusted below it.
const grace = time.Minute

// most is the largest believable number of people in a time.
func (r Rate) most(elapsed time.Duration) uint64 {
	return uint64(math.Min(float64(r)*max(elapsed, grace).Seconds(), math.MaxInt64/4))
}

// Next is the state after a reading and the people since the one before.
//
// The first reading ever is a baseline: nobody. Totals that grew give their difference.
// Totals that fell have wrapped, when the people that this would mean can have passed in
// the time, and have begun again otherwise; then the new total is a lower bound of the
// people (quality reset). A known reset takes the new totals as they are. More people than
// can have passed are kept and marked suspect. Reading the same totals again gives nobody.
func (s State) Next(r Reading, rate Rate) (State, Delta) {
	next := State{Known: true, In: r.In, Out: r.Out, Width: r.Width, Uptime: r.Uptime, ReadAt: r.At, To: s.To}
	if !s.Known {
		return next, Delta{Quality: protocol.QualityOK}
	}
	reset := r.Reset || (r.Uptime != nil && s.Uptime != nil && *r.Uptime < *s.Uptime)
	most := rate.most(r.At.Sub(s.ReadAt))
	width := r.Width
	if s.Width != r.Width {
		width = 0 // another counter, or other settings: no wrap can be told
	}
	d := Delta{Quality: protocol.QualityOK}
	for _, line := range []struct {
		last, now uint64
		people    *int64
	}{{s.In, r.In, &d.In}, {s.Out, r.Out, &d.Out}} {
		people, quality := difference(line.last, line.now, width, most, reset)
		*line.people = int64(people)
		d.Quality = worse(d.Quality, quality)
	}
	return next, d
}

func difference(last, now uint64, width int, most uint64, reset bool) (uint64, protocol.Quality) {
	people, quality := now, protocol.QualityReset
	if !reset {
		if now >= last {
			people, quality = now-last, protocol.QualityOK
		} else if width > 0 && width < 64 && last>>width == 0 {
			if wrapped := now + 1<<width - last; wrapped <= most {
				people, quality = wrapped, protocol.QualityWrap
			}
		}
	}
	if people > most {
		quality = protocol.QualitySuspect
	}
	return min(people, math.MaxInt64/4), quality
}

// follows says whether nothing but people passing need have happened between s and r.
func (s State) follows(r Reading, rate Rate) bool {
	most := rate.most(r.At.Sub(s.ReadAt))
	return r.In >= s.In && r.In-s.In <= most && r.Out >= s.Out && r.Out-s.Out <= most &&
		(r.Uptime == nil || s.Uptime == nil || *r.Uptime >= *s.Uptime)
}

// worse is the quality that says less about the count.
func worse(a, b protocol.Quality) protocol.Quality {
	if badness(b) > badness(a) {
		return b
	}
	return a
}

func badness(q protocol.Quality) int {
	switch q {
	case protocol.QualityWrap:
		return 1
	case protocol.QualityGap:
		return 2
	case protocol.QualityReset:
		return 3
	case protocol.QualitySuspect:
		return 4
	}
	return 0
}
