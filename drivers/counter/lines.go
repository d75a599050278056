package counter

import "time"

// Contacts on the input lines of a serial port: a beam's relay between RTS or DTR, which are
// held on, and CTS, DSR, DCD or RI. There is no wire format; what is read are levels.

// A contact is one line without its bouncing. Times given to it do not go back.
type contact struct {
	known  bool
	active bool      // as debounced
	raw    bool      // as last sampled
	since  time.Time // of raw
	looked time.Time // the sample before
}

// sample takes a level and says whether the contact has become active: the level has been
// the same for the debounce time. The first sample is where it begins. A level that is new
// may have lasted since the sample before, so that a PC which is late to look loses nobody
// whose pulse is still there.
func (c *contact) sample(active bool, at time.Time, debounce time.Duration) bool {
	if !c.known {
		*c = contact{known: true, active: active, raw: active, since: at, looked: at}
		return false
	}
	if active != c.raw {
		c.raw, c.since = active, c.looked
	}
	c.looked = at
	if c.raw == c.active || at.Sub(c.since) < debounce {
		return false
	}
	c.active = c.raw
	return c.active
}

// A LinesCodec turns samples of one or two contacts into people.
type LinesCodec struct {
	Debounce time.Duration
	// Window is the time from the first beam to the second in which one person breaks both; 0:
	// each contact counts for itself.
	Window time.Duration
	// Apart says that the beams are so far apart that a person may have left the first before
	// the second. Otherwise one who has left the first without breaking the second has turned
	// round.
	Apart bool

	in, out   contact
	inAt      time.Time // the beam on the side of in was broken, and who did it is not counted yet; zero: no
	outAt     time.Time
	together  bool // both beams were broken at the same sample: who leaves one first says which way
	Undecided int  // people who broke both beams and left both at the same sample: counted neither in nor out
	Turned    int  // people who broke one beam alone
}

// Sample takes the levels at a moment and gives who has passed since the last one.
func (c *LinesCodec) Sample(inActive, outActive bool, at time.Time) (in, out int) {
	inNow, outNow := c.in.sample(inActive, at, c.Debounce), c.out.sample(outActive, at, c.Debounce)
	if c.Window == 0 {
		return one(inNow), one(outNow)
	}
	if c.together {
		in, out = c.part()
	}
	c.forget(&c.inAt, c.in, at)
	c.forget(&c.outAt, c.out, at)
	switch {
	case inNow && outNow:
		switch {
		case !c.inAt.IsZero(): // the second beam of one person, and the first of another
			in, c.inAt = in+1, at
		case !c.outAt.IsZero():
			out, c.outAt = out+1, at
		default:
			c.together = true
		}
	case inNow && !c.outAt.IsZero():
		out, c.outAt = out+1, time.Time{}
	case inNow:
		c.inAt = at
	case outNow && !c.inAt.IsZero():
		in, c.inAt = in+1, time.Time{}
	case outNow:
		c.outAt = at
	}
	return in, out
}

// part decides about one who broke both beams at the same sample.
func (c *LinesCodec) part() (in, out int) {
	switch {
	case c.in.active && c.out.active:
		return 0, 0
	case c.out.active: // has left the beam of in
		in = 1
	case c.in.active:
		out = 1
	default:
		c.Undecided++
	}
	c.together = false
	return in, out
}

// forget gives up on a person who has not reached the second beam.
func (c *LinesCodec) forget(brokenAt *time.Time, beam contact, now time.Time) {
	if !brokenAt.IsZero() && (now.Sub(*brokenAt) > c.Window || !c.Apart && !beam.active) {
		*brokenAt = time.Time{}
		c.Turned++
	}
}

// Blocked is the time that a contact has been active by now, of the one that is longest.
func (c *LinesCodec) Blocked(now time.Time) time.Duration {
	var longest time.Duration
	for _, c := range []contact{c.in, c.out} {
		if c.active && c.raw {
			longest = max(longest, now.Sub(c.since))
		}
	}
	return longest
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}
