// Package drawer holds the drivers of cash drawers: a pure codec of the wire, a pure machine
// that turns levels and commands into drawer events, and a dull Run.
package drawer

import "time"

// The wire of an ESC/POS printer with a drawer at its kick-out connector. Epson TM-T88III
// specification (ESC p, DLE DC4, DLE EOT, GS a), TM-U220 page 82, TM-L90 page 319. The
// patterns that tell the answers apart stand alike in the appendices of Epson, Citizen and
// Bematech: no byte fits two of them, except that bytes 2 to 4 of an automatic status look
// like the answer to GS r, which is therefore never asked.
const (
	xon  = 0x11
	xoff = 0x13

	statusMask  = 0x93 // of the two below
	asbFirst    = 0x10 // first of four bytes of automatic status back (ASB)
	eotFirst    = 0x12 // the one byte that answers DLE EOT n
	asbRestMask = 0x90 // bytes 2 to 4 of ASB have none of these
	asbLen      = 4

	bitPin3    = 0x04 // of ASB byte 1 and of DLE EOT 1: pin 3 of the drawer connector is high
	bitOffline = 0x08 // of both: the printer is offline (cover, paper, error)

	asbTimeout = 200 * time.Millisecond // within the four bytes
)

var (
	asbEnable = []byte{0x1D, 'a', 0x01}  // GS a: send the status when the drawer changes
	askStatus = []byte{0x10, 0x04, 0x01} // DLE EOT 1
)

// A Status is one answer of the printer.
type Status struct {
	High    bool // level of pin 3; whether that is open or closed is the drawer's property
	Offline bool // the printer does not print now
	Auto    bool // sent by itself (ASB)
}

// A Codec finds statuses in what the printer sends.
type Codec struct {
	Noise int // bytes that belonged to none

	part  int    // bytes of an ASB that are there
	first Status // of that ASB
	began time.Time
}

// Push takes bytes that arrived at a time. An ASB of which nothing more comes for 200 ms is
// dropped; XON and XOFF are skipped wherever they stand.
func (c *Codec) Push(data []byte, at time.Time) []Status {
	var out []Status
	for _, b := range data {
		if s, ok := c.push(b, at); ok {
			out = append(out, s)
		}
	}
	return out
}

// push takes one byte and says whether it ends a status.
func (c *Codec) push(b byte, at time.Time) (s Status, ok bool) {
	if c.part > 0 && at.Sub(c.began) > asbTimeout {
		c.Noise += c.part
		c.part = 0
	}
	if b == xon || b == xoff {
		return s, false
	}
	if c.part > 0 && b&asbRestMask == 0 {
		if c.part++; c.part == asbLen {
			c.part = 0
			return c.first, true
		}
		return s, false
	}
	c.Noise += c.part
	c.part = 0
	switch b & statusMask {
	case asbFirst:
		c.part, c.began = 1, at
		c.first = Status{High: b&bitPin3 != 0, Offline: b&bitOffline != 0, Auto: true}
	case eotFirst:
		return Status{High: b&bitPin3 != 0, Offline: b&bitOffline != 0}, true
	default:
		c.Noise++
	}
	return s, false
}

// A Pulse is how a drawer is opened.
type Pulse struct {
	Pin      int           // 2 or 5
	On, Off  time.Duration // up to 510 ms
	RealTime bool          // past the print buffer; in steps of 100 ms
}

// Bytes is the command: DLE DC4 1 m t in real time, otherwise ESC p m t1 t2, which waits
// behind what is printed.
func (p Pulse) Bytes() []byte {
	var m byte
	if p.Pin == 5 {
		m = 1
	}
	if p.RealTime {
		t := (p.On + 99*time.Millisecond) / (100 * time.Millisecond)
		return []byte{0x10, 0x14, 0x01, m, byte(min(max(t, 1), 8))}
	}
	unit := func(d time.Duration) byte { return byte(min(max(d/(2*time.Millisecond), 1), 255)) }
	return []byte{0x1B, 'p', m, unit(p.On), unit(p.Off)}
}
