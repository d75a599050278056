package protocol

import "time"

// Quality says how a delta was read from a counter's totals.
type Quality string

// The qualities of a delta.
const (
	QualityOK      Quality = "ok"
	QualityWrap    Quality = "wrap"    // the counter's register rolled over
	QualityReset   Quality = "reset"   // the counter began again: the delta is a lower bound
	QualityGap     Quality = "gap"     // the interval is longer than two polls: counts are right, their time is not
	QualitySuspect Quality = "suspect" // faster than people can pass
)

// A FootfallCount is the number of people who crossed one counting line during [From, To):
// the delta, beside the counter's raw totals and the quality of the delta.
type FootfallCount struct {
	Counter  string    `json:"counter"` // device id, unique in the store
	From     time.Time `json:"from"`    // UTC
	To       time.Time `json:"to"`      // UTC
	In       int64     `json:"in"`      // people, >= 0
	Out      int64     `json:"out"`     // people, >= 0
	RawIn    int64     `json:"rawIn"`   // the counter's own total at To
	RawOut   int64     `json:"rawOut"`
	Quality  Quality   `json:"quality"`
	Undirect bool      `json:"undirected,omitempty"` // one beam: In is passages both ways

	Extra Extra `json:"-"`
}

type footfallFields FootfallCount

// MarshalJSON writes the count with the members it did not know.
func (c FootfallCount) MarshalJSON() ([]byte, error) {
	return encodeKeeping(footfallFields(c), c.Extra)
}

// UnmarshalJSON reads a count; errors are Faults.
func (c *FootfallCount) UnmarshalJSON(data []byte) (err error) {
	var v footfallFields
	v.Extra, err = decodeKeeping(data, &v)
	*c = FootfallCount(v)
	return err
}

// Validate returns Faults or nil.
func (c *FootfallCount) Validate() error {
	var f Faults
	if !ValidID(c.Counter) {
		f.Add("counter", "letters, digits, _ and -, at most 64", "not an id: %q", c.Counter)
	}
	if c.In < 0 {
		f.Add("in", "", "want 0 or more, got %d", c.In)
	}
	if c.Out < 0 {
		f.Add("out", "", "want 0 or more, got %d", c.Out)
	}
	if c.To.Before(c.From) {
		f.Add("to", "", "before from")
	}
	switch c.Quality {
	case QualityOK, QualityWrap, QualityReset, QualityGap, QualitySuspect:
	default:
		f.Add("quality", "", "want ok, wrap, reset, gap or suspect, got %q", c.Quality)
	}
	return f.Err()
}
