package filedrop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/storelay/storelay/protocol"
)

// jsonFile is the format of our own transactions: one object, objects one after the other
// (JSON Lines), or one list of objects. What stands within an object is for the desk to read.
func (d *Drop) jsonFile(src *source, each func(found) error) error {
	if src.encoding == "" {
		src.encoding = utf8Text
	}
	c := cutter{src: src}
	for n := 0; ; n++ {
		object, line, err := c.next(n)
		if errors.Is(err, io.EOF) {
			if n == 0 && !c.list {
				return &fileError{line, "no transaction in it", ""}
			}
			return nil
		}
		if err != nil {
			return err
		}
		f := found{line: line, body: object}
		var said protocol.TransactionID // as far as it can be read: for a report alone
		if json.Unmarshal(object, &said) == nil {
			f.id = fmt.Sprintf("%s/%s/%d", said.Workstation, said.BusinessDay, said.Sequence)
		}
		if err := each(f); err != nil {
			return err
		}
		src.done()
	}
}

// A cutter cuts objects out of a file by their braces.
type cutter struct {
	src    *source
	list   bool // the file is a list
	closed bool // its end was read
}

// next is the n-th object and its line; io.EOF behind the last.
func (c *cutter) next(n int) ([]byte, int, error) {
	first, err := c.between()
	if err == nil && n == 0 && first == '[' && !c.list {
		c.list = true
		first, err = c.between()
		if err == nil && first == ']' {
			c.closed = true
			return c.next(n)
		}
	} else if err == nil && c.list && !c.closed {
		switch first {
		case ',':
			first, err = c.between()
		case ']':
			c.closed = true
			return c.next(n)
		default:
			return nil, 0, &fileError{c.src.line, fmt.Sprintf("want a comma or ] in the list, got %q", first), ""}
		}
	}
	line := c.src.line
	switch {
	case errors.Is(err, io.EOF) && c.list && !c.closed:
		return nil, 0, &fileError{line, "the list ends too early", ""}
	case errors.Is(err, io.EOF):
		return nil, line, io.EOF
	case err != nil:
		return nil, 0, c.bad(err)
	case c.closed:
		return nil, 0, &fileError{line, "more stands behind the end of the list", ""}
	case first != '{':
		return nil, 0, &fileError{line, fmt.Sprintf("want an object or a list of objects, got %q", first), ""}
	}
	object, err := c.object()
	return object, line, err
}

func (c *cutter) bad(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return &fileError{c.src.line, "the JSON ends too early", ""}
	case errors.Is(err, errPiece), errors.Is(err, io.ErrUnexpectedEOF):
		return &fileError{c.src.line, err.Error(), ""}
	}
	return err
}

// between is the next byte that is no white space.
func (c *cutter) between() (byte, error) {
	for {
		b, err := c.src.ReadByte()
		if err != nil || b != ' ' && b != '\t' && b != '\r' && b != '\n' {
			return b, err
		}
	}
}

// object reads up to the brace that closes the one just read.
func (c *cutter) object() ([]byte, error) {
	object := bytes.NewBuffer([]byte{'{'})
	for depth, text := 1, false; depth > 0; {
		b, err := c.src.ReadByte()
		if err != nil {
			return nil, c.bad(err)
		}
		object.WriteByte(b)
		switch {
		case text && b == '\\':
			if b, err = c.src.ReadByte(); err != nil {
				return nil, c.bad(err)
			}
			object.WriteByte(b)
		case b == '"':
			text = !text
		case !text && (b == '{' || b == '['):
			depth++
		case !text && (b == '}' || b == ']'):
			depth--
		}
	}
	return object.Bytes(), nil
}
