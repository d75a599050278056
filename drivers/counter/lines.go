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
}

// sample takes a level and says whether the contact has become active: the level has been
// the same for the debounce time. The first sample is where it begins.
func (c *contact) sample(active bool, at time.Time, debounce time.Duration) bool {
	if !c.known {
		*c = contact{known: true, active: active, raw: active, since: at}
		return false
	}
	if active != c.raw {
		c.raw, c.since = active, at
	}
	if c.raw == c.active || at.Sub(c.since) < debounce {
		return false
	}
	c.active = c.raw
	return c.active
}

// A LinesCodec turns samples of one or two contacts into people.
type LinesCodec struct {
	Debounce time.Duration
	// Window is the time in which both beams are broken by one person, who goes from the first
	// to the second; 0: each contact counts for itself.
	Window time.Duration

	in, out   contact
	inAt      time.Time // the beam on the side of in was broken, and who did it is not counted yet; zero: no
	outAt     time.Time
	Undecided int // people who broke both beams at the same moment: counted neither in nor out
}

// Sample takes the levels at a moment and gives who has passed since the last one.
func (c *LinesCodec) Sample(inActive, outActive bool, at time.Time) (in, out int) {
	inNow, outNow := c.in.sample(inActive, at, c.Debounce), c.out.sample(outActive, at, c.Debounce)
	if c.Window == 0 {
		return one(inNow), one(outNow)
	}
	if !c.inAt.IsZero() && at.Sub(c.inAt) > c.Window {
		c.inAt = time.Time{}
	}
	if !c.outAt.IsZero() && at.Sub(c.outAt) > c.Window {
		c.outAt = time.Time{}
	}
	switch {
	case inNow && outNow:
		switch {
		case !c.inAt.IsZero(): // the second beam of one person, and the first of another
			in, c.inAt = 1, at
		case !c.outAt.IsZero():
			out, c.outAt = 1, at
		default:
			c.Undecided++
		}
	case inNow && !c.outAt.IsZero():
		out, c.outAt = 1, time.Time{}
	case inNow:
		c.inAt = at
	case outNow && !c.inAt.IsZero():
		in, c.inAt = 1, time.Time{}
	case outNow:
		c.outAt = at
	}
	return in, out
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
