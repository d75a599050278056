package counter

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// The dialect of our own counter kit, and the default of the driver "line": NMEA style,
//
//	C,<seq>,<in>,<out>,<uptime_s>*<XOR of all before the *, two hex digits>CR LF
//
// seq counts the lines, in and out are totals, uptime counts seconds since power-up. R CR LF
// asks for a line, Z CR LF sets the totals to zero.
const (
	DefaultPattern = `^C,(?P<seq>\d+),(?P<in>\d+),(?P<out>\d+),(?P<uptime>\d+)$`
	defaultMark    = "*"
)

// The groups of a pattern, by name. At least one of the first five.
const (
	groupIn       = "in"        // total, people in
	groupOut      = "out"       // total, people out
	groupTotal    = "total"     // total of one beam, both ways
	groupDeltaIn  = "delta_in"  // people in since the last line
	groupDeltaOut = "delta_out" // people out since the last line
	groupFault    = "fault"     // not empty: the counter says that something is wrong
	groupUptime   = "uptime"    // seconds since the counter began: less than before is a reset
	groupSeq      = "seq"       // of the line: the same again is a repetition (deltas only)
)

var (
	errNoMatch  = errors.New("line does not fit the pattern")
	errTooLong  = errors.New("line is too long")
	errNoNumber = errors.New("not a number")
)

// A LineFrame is what one line says.
type LineFrame struct {
	Counts  bool   // In and Out were said; a line may carry a fault alone
	In, Out uint64 // totals, or people since the last line; the total of one beam is in In
	Uptime  *int64 // s
	Seq     string
	Fault   string
}

// A LineCodec reads lines of text.
type LineCodec struct {
	Pattern  *regexp.Regexp
	Checksum string // none, xor, sum8, crc16
	Mark     string // between text and checksum
	Ends     string // every byte of it ends a line
	Max      int    // bytes of a line
	TrimCR   bool   // a CR before the end belongs to it

	buf  []byte
	over bool // the line under way is too long: skipped to its end
}

// Push takes bytes and calls line for each that they complete: a frame or what is wrong with
// it. Empty lines are skipped.
func (c *LineCodec) Push(data []byte, line func(LineFrame, error)) {
	for len(data) > 0 {
		end := bytes.IndexAny(data, c.Ends)
		part := data
		if end >= 0 {
			part = data[:end]
		}
		if room := c.Max - len(c.buf); len(part) > room {
			part, c.over = part[:max(room, 0)], true
		}
		c.buf = append(c.buf, part...)
		if end < 0 {
			return
		}
		if c.over {
			line(LineFrame{}, errTooLong)
		} else if text := c.text(); text != "" {
			line(c.parse(text))
		}
		c.buf, c.over = c.buf[:0], false
		data = data[end+1:]
	}
}

// text is the line under way.
func (c *LineCodec) text() string {
	if c.TrimCR {
		return string(bytes.TrimSuffix(c.buf, []byte("\r")))
	}
	return string(c.buf)
}

// parse reads one line without its end.
func (c *LineCodec) parse(text string) (LineFrame, error) {
	var f LineFrame
	text, err := unseal(c.Checksum, c.Mark, text)
	if err != nil {
		return f, err
	}
	match := c.Pattern.FindStringSubmatch(text)
	if match == nil {
		return f, errNoMatch
	}
	said, unsaid := 0, 0
	for i, name := range c.Pattern.SubexpNames() {
		switch name {
		case groupIn, groupOut, groupTotal, groupDeltaIn, groupDeltaOut:
			if match[i] == "" {
				unsaid++
			} else {
				said++
			}
		}
		if match[i] == "" {
			continue
		}
		switch name {
		case groupIn, groupTotal, groupDeltaIn:
			err = number(match[i], &f.In)
		case groupOut, groupDeltaOut:
			err = number(match[i], &f.Out)
		case groupUptime:
			var seconds uint64
			err = number(match[i], &seconds)
			uptime := int64(seconds)
			f.Uptime = &uptime
		case groupSeq:
			f.Seq = match[i]
		case groupFault:
			f.Fault = match[i]
		}
		if err != nil {
			return LineFrame{}, err
		}
	}
	if said > 0 && unsaid > 0 {
		return LineFrame{}, errNoMatch // half a count is none
	}
	f.Counts = said > 0
	return f, nil
}

// number reads 0 to 2^62, with blanks around it, as printf pads.
func number(s string, n *uint64) error {
	v, err := strconv.ParseUint(strings.TrimSpace(s), 10, 62)
	if err != nil {
		return fmt.Errorf("%w: %q", errNoNumber, s)
	}
	*n = v
	return nil
}

// compile compiles a pattern and checks its groups.
func compile(pattern string) (re *regexp.Regexp, kind string, undirected bool, err error) {
	re, err = regexp.Compile(pattern)
	if err != nil {
		return nil, "", false, err
	}
	has := map[string]int{}
	for _, name := range re.SubexpNames() {
		has[name]++
	}
	for name, n := range has {
		switch name {
		case groupIn, groupOut, groupTotal, groupDeltaIn, groupDeltaOut, groupFault, groupUptime, groupSeq:
			if n > 1 {
				return nil, "", false, fmt.Errorf("group %q appears twice", name)
			}
		case "":
		default:
			return nil, "", false, fmt.Errorf("unknown group %q", name)
		}
	}
	totals, deltas := has[groupIn]+has[groupOut], has[groupDeltaIn]+has[groupDeltaOut]
	switch {
	case totals+deltas+has[groupTotal] == 0:
		return nil, "", false, errors.New("no group in, out, total, delta_in or delta_out")
	case totals > 0 && deltas > 0, has[groupTotal] > 0 && totals+deltas > 0:
		return nil, "", false, errors.New("totals, one total and deltas do not go together")
	}
	kind = kindAbsolute
	if deltas > 0 {
		kind = kindDelta
	}
	return re, kind, has[groupTotal] > 0, nil
}
