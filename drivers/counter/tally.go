package counter

import (
	"context"
	"encoding/json"
	"math"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

const unreadable = "stored state is unreadable, counting from a new baseline"

// DefaultInterval is the time that one FootfallCount covers.
const DefaultInterval = time.Minute

const closeTimeout = 5 * time.Second // for the last count of a Run

// tallySettings are the keys of every counter.
func tallySettings() []drivers.Setting {
	return []drivers.Setting{
		{Name: "interval", Type: drivers.TypeDuration, Default: DefaultInterval, Min: int64(time.Second), Max: int64(time.Hour), Help: "time that one count covers; counts of zero are sent too"},
		{Name: "max_rate", Type: drivers.TypeInt, Default: int(DefaultRate), Min: 1, Max: 1000, Help: "people per second in one direction that are believed"},
		{Name: "invert_direction", Type: drivers.TypeBool, Default: false, Help: "swap in and out"},
	}
}

// portConfig is the serial configuration of a device.
func portConfig(spec drivers.Spec, v drivers.Values) serialport.Config {
	return serialport.Config{
		Name: spec.Port, Baud: v.Int("baud"), DataBits: v.Int("data_bits"), Parity: v.Text("parity"), StopBits: v.Text("stop_bits"),
		DTR: serialport.Signal(v.Text("dtr")), RTS: serialport.Signal(v.Text("rts")),
	}
}

// A tally collects the readings of one counter between two FootfallCounts. Only what the
// host has accepted becomes the stored state; until then everything since is in pending, and
// a count that was refused is part of the next.
type tally struct {
	id         string
	interval   time.Duration
	rate       Rate
	invert     bool
	undirected bool

	state   State     // newest reading
	pending Delta     // people since the last accepted count
	from    time.Time // start of the interval that is under way
	due     time.Time // its end
	loaded  bool      // state was read from the host once; from then on this is ahead of it
	alive   bool      // a good frame since the port was opened

	surprise *Reading // not believed yet
}

func newTally(id string, v drivers.Values) tally {
	return tally{id: id, interval: v.Duration("interval"), rate: Rate(v.Int("max_rate")), invert: v.Bool("invert_direction")}
}

// open begins a Run. At the first one, what was accepted before is the baseline, and the
// first count covers the time since then.
func (t *tally) open(host drivers.Host) error {
	t.alive, t.surprise = false, nil
	now := host.Now()
	t.schedule(now)
	if t.loaded {
		return nil
	}
	if err := drivers.LoadState(host, &t.state, unreadable); err != nil {
		return err
	}
	t.pending = Delta{Quality: protocol.QualityOK}
	t.from = t.state.To
	if t.from.IsZero() || t.from.After(now) {
		t.from = now
	}
	t.loaded = true
	return nil
}

// close ends a Run: people who are not in any count yet are emitted, since some counters
// forget them with their power.
func (t *tally) close(ctx context.Context, host drivers.Host) {
	if t.alive && t.pending.In+t.pending.Out > 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		t.put(ctx, host, host.Now())
	}
}

// schedule ends the interval at the next multiple of it on the clock, so that counts end
// with the hour and the day.
func (t *tally) schedule(now time.Time) { t.due = now.Truncate(t.interval).Add(t.interval) }

// heard notes a sign of life.
func (t *tally) heard(host drivers.Host) {
	t.alive = true
	host.Online()
}

// believe says whether a reading is to be taken now. One that surprises (totals that fell or
// jumped, a lower uptime, the very first) is taken when the next one bears it out.
func (t *tally) believe(r Reading) bool {
	last := t.last()
	if last.Known && last.follows(r, t.rate) {
		t.surprise = nil
		return true
	}
	if t.surprise != nil {
		if odd, _ := (State{}).Next(*t.surprise, t.rate); odd.follows(r, t.rate) {
			t.surprise = nil
			return true
		}
	}
	t.surprise = &r
	return false
}

// last is the newest reading as the counter said it.
func (t *tally) last() State {
	s := t.state
	if t.invert {
		s.In, s.Out = s.Out, s.In
	}
	return s
}

// total takes a reading of running totals.
func (t *tally) total(r Reading) Delta {
	if t.invert {
		r.In, r.Out = r.Out, r.In
	}
	var d Delta
	t.state, d = t.state.Next(r, t.rate)
	t.add(d)
	return d
}

// blind begins a Run of a counter that forgets who passes while nobody listens: what it did
// not see is a gap.
func (t *tally) blind() {
	if t.state.Known {
		t.doubt(protocol.QualityGap)
	}
	t.state.Known = true
}

// passed takes people that a counter of deltas reports. Its totals are our own sums.
func (t *tally) passed(in, out uint64, at time.Time) {
	if t.invert {
		in, out = out, in
	}
	d := Delta{In: int64(min(in, math.MaxInt64/4)), Out: int64(min(out, math.MaxInt64/4)), Quality: protocol.QualityOK}
	last := t.state.ReadAt
	if last.IsZero() {
		last = at
	}
	if most := t.rate.most(at.Sub(last)); in > most || out > most {
		d.Quality = protocol.QualitySuspect
	}
	t.state.Known, t.state.ReadAt = true, at
	t.state.In += uint64(d.In)
	t.state.Out += uint64(d.Out)
	t.add(d)
}

func (t *tally) add(d Delta) {
	t.pending.In += d.In
	t.pending.Out += d.Out
	t.pending.Quality = worse(t.pending.Quality, d.Quality)
}

// doubt marks the interval under way.
func (t *tally) doubt(q protocol.Quality) { t.pending.Quality = worse(t.pending.Quality, q) }

// wait is the time until the interval ends. A clock that was set back starts it anew.
func (t *tally) wait(now time.Time) time.Duration {
	if t.due.Sub(now) > t.interval {
		t.schedule(now)
	}
	return max(t.due.Sub(now), 0)
}

// emit emits the count of the interval when its end has come. A counter that has not been
// heard since the port was opened has no count. A count that the host refuses is noted and
// stays in the next one.
func (t *tally) emit(ctx context.Context, host drivers.Host) {
	now := host.Now()
	if now.Before(t.due) {
		return
	}
	to := t.due
	if now.Sub(t.due) > time.Second {
		to = now
	}
	t.schedule(now)
	if !t.alive {
		return
	}
	t.put(ctx, host, to)
}

// put emits the people since the last accepted count, and says whether they were accepted.
func (t *tally) put(ctx context.Context, host drivers.Host, to time.Time) bool {
	count, state := t.count(to)
	if err := host.Emit(ctx, protocol.KindFootfall, count, state); err != nil {
		host.Note("count not accepted, kept for the next interval")
		return false
	}
	t.from, t.state.To = to, to
	t.pending = Delta{Quality: protocol.QualityOK}
	return true
}

// count is the record of the interval that ends at to, and the state that goes with it.
func (t *tally) count(to time.Time) (protocol.FootfallCount, []byte) {
	from := t.from
	if from.After(to) {
		from = to // the clock was set back
	}
	c := protocol.FootfallCount{
		Counter: t.id, From: from.UTC(), To: to.UTC(), In: t.pending.In, Out: t.pending.Out,
		RawIn: int64(min(t.state.In, math.MaxInt64)), RawOut: int64(min(t.state.Out, math.MaxInt64)),
		Quality: t.pending.Quality, Undirect: t.undirected,
	}
	if to.Sub(from) > 2*t.interval {
		c.Quality = worse(c.Quality, protocol.QualityGap)
	}
	kept := t.state
	kept.To = to
	state, err := json.Marshal(kept)
	if err != nil {
		panic("counter: state does not encode: " + err.Error()) // numbers and times only
	}
	return c, state
}
