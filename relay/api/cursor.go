package api

import (
	"encoding/base64"
	"fmt"

	"github.com/danielgtaylor/huma/v2"
)

// A cursor is a place in the chain's order, opaque to callers: everything through pos of the
// incarnation has been seen.
type cursor struct{ incarnation, pos int64 }

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "1.%d.%d", c.incarnation, c.pos))
}

// readCursor reads what String wrote; "" is the beginning.
func readCursor(name, s string) (cursor, error) {
	var c cursor
	if s == "" {
		return c, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		_, err = fmt.Sscanf(string(text), "1.%d.%d", &c.incarnation, &c.pos)
	}
	if err != nil || c.String() != s || c.pos < 0 {
		return c, huma.Error400BadRequest(name + ": not a cursor; pass a next as it was given")
	}
	return c, nil
}

// carry takes a cursor of an older incarnation into the present one: positions behind the
// head were never committed here, or were lost with a database.
func (c cursor) carry(head, incarnation int64) cursor {
	if c.incarnation < incarnation {
		c = cursor{incarnation, min(c.pos, head)}
	}
	return c
}
