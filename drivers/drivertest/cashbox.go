package drivertest

import (
	"sync"
	"time"
)

// A cashbox is the drawer of a simulator: it moves, jams, and keeps the truth. Its owner sets
// changed, which is called without a lock after each movement.
type cashbox struct {
	moveAfter time.Duration
	now       func() time.Time
	changed   func()

	mu     sync.Mutex // guards the fields below
	open   bool
	jammed bool
	truth  []Movement
}

func (c *cashbox) move(open bool, cause string) {
	c.mu.Lock()
	moves := c.open != open && (!c.jammed || cause != MovedCommanded)
	if moves {
		c.open = open
		c.truth = append(c.truth, Movement{Open: open, Cause: cause, At: c.now()})
	}
	c.mu.Unlock()
	if moves {
		c.changed()
	}
}

// kick opens the drawer a little later.
func (c *cashbox) kick() { time.AfterFunc(c.moveAfter, func() { c.move(true, MovedCommanded) }) }

// PushIn closes the drawer by hand.
func (c *cashbox) PushIn() { c.move(false, "") }

// KeyOpen opens the drawer with the key; a jam does not stop it.
func (c *cashbox) KeyOpen() { c.move(true, MovedKey) }

// SetJammed makes kicks do nothing, or work again.
func (c *cashbox) SetJammed(jammed bool) { c.mu.Lock(); defer c.mu.Unlock(); c.jammed = jammed }

// Opened says whether the drawer is open.
func (c *cashbox) Opened() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.open }

// Truth lists all movements of the drawer so far.
func (c *cashbox) Truth() []Movement {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Movement(nil), c.truth...)
}
