package filedrop

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A found is one transaction of a file.
type found struct {
	line   int                // where it begins
	id     string             // as far as it can be told, for a report
	body   []byte             // a protocol.Transaction as JSON, to be stamped and checked
	digest *[sha256.Size]byte // of its source; nil: of body
	faults []lineFault        // why it is none
	at     map[string]int     // lines of fields of body, such as lines[2]; else line
	unread string             // an element that is kept whole, and not understood
	keep   bool               // the record does not hold all of it: the file must stay
}

// A lineFault is a fault and the line of the file where it was found.
type lineFault struct {
	Line int `json:"line"`
	protocol.Fault
}

// A fileError says why a file as a whole cannot be read. Nothing of it is accepted.
type fileError struct {
	line    int // 0 = none
	problem string
	hint    string
}

func (b *fileError) Error() string {
	if b.line == 0 {
		return b.problem
	}
	return fmt.Sprintf("line %d: %s", b.line, b.problem)
}

// A format walks through the transactions of a file. Its errors are those of each, *fileError,
// and those of the source.
type format func(src *source, each func(found) error) error

// decimal reads a number as files write it: with spaces around, a plus, or no digit before
// the point.
func decimal(text string) (protocol.Decimal, error) {
	text = strings.TrimPrefix(strings.TrimSpace(text), "+")
	if rest, negative := strings.CutPrefix(text, "-."); negative {
		text = "-0." + rest
	} else if strings.HasPrefix(text, ".") {
		text = "0" + text
	}
	return protocol.ParseDecimal(text)
}

// scaled is d in units of 10^-scale, and whether that is exact; otherwise it is rounded half
// away from zero. ok is false when it is beyond protocol.MaxAmount.
func scaled(d protocol.Decimal, scale int) (n int64, exact, ok bool) {
	n, exact = d.Units, true
	for ; d.Scale < scale; d.Scale++ {
		if n > protocol.MaxAmount || n < -protocol.MaxAmount {
			return 0, false, false
		}
		n *= 10
	}
	for ; d.Scale > scale+1; d.Scale-- {
		exact = exact && n%10 == 0
		n /= 10
	}
	if d.Scale > scale {
		last := n % 10
		exact = exact && last == 0
		n /= 10
		switch {
		case last >= 5:
			n++
		case last <= -5:
			n--
		}
	}
	return n, exact, n <= protocol.MaxAmount && n >= -protocol.MaxAmount
}

// spread divides an amount among weights, to the last unit: each share is rounded down, and
// what is left goes to the first ones. Without any weight it all goes to the first.
func spread(amount int64, weights []int64) []int64 {
	shares := make([]int64, len(weights))
	if len(weights) == 0 {
		return shares
	}
	var sum int64
	for _, w := range weights {
		sum += abs(w)
	}
	if sum == 0 {
		shares[0] = amount
		return shares
	}
	left := amount
	for i, w := range weights {
		shares[i] = muldiv(amount, abs(w), sum)
		left -= shares[i]
	}
	step := int64(1)
	if left < 0 {
		step = -1
	}
	for i := 0; left != 0; i = (i + 1) % len(shares) {
		if weights[i] != 0 {
			shares[i] += step
			left -= step
		}
	}
	return shares
}

// muldiv is a*b/c towards zero for 0 <= b <= c, whatever the size of a*b.
func muldiv(a, b, c int64) int64 {
	high, low := bits.Mul64(uint64(abs(a%c)), uint64(b))
	part, _ := bits.Div64(high, low, uint64(c))
	if a < 0 {
		return a/c*b - int64(part)
	}
	return a/c*b + int64(part)
}

func abs(n int64) int64 {
	if n < 0 {
		return -n
	}
	return n
}

// The forms of times in files, the ones with an offset first.
var timeForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04:05.999999999", "2006-01-02 15:04"}

// readTime reads a time; one without an offset is that of the zone's clock.
func readTime(text string, zone *time.Location, forms ...string) (time.Time, error) {
	for _, form := range forms {
		t, err := time.Parse(form, text)
		if err != nil {
			continue
		}
		if strings.Contains(form, "Z07") {
			return t, nil
		}
		return onClock(t, zone), nil
	}
	return time.Time{}, fmt.Errorf("%q is not a time", text)
}

// onClock is when the zone's clock shows what t shows: the first time of the hour that comes
// twice in autumn.
func onClock(t time.Time, zone *time.Location) time.Time {
	guess := time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone)
	before := guess.Add(-3 * time.Hour)
	_, offset := before.Zone()
	if first := t.Add(-time.Duration(offset) * time.Second).In(zone); first.Format(time.DateTime) == t.Format(time.DateTime) {
		return first
	}
	return guess
}

// word makes an id such as tillOpen of a name such as TillOpen.
func word(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && protocol.ValidID(string(r)) {
			return r
		}
		return -1
	}, name)
	if name == "" {
		return ""
	}
	return strings.ToLower(name[:1]) + name[1:min(len(name), 64)]
}

// line finds the line of a field: of lines[2].quantity, or else of lines[2], or else of the
// transaction.
func lineOf(at map[string]int, field string, whole int) int {
	for field != "" {
		if line, ok := at[field]; ok {
			return line
		}
		i := strings.LastIndexAny(field, ".")
		if i < 0 {
			break
		}
		field = field[:i]
	}
	return whole
}

func index(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }
