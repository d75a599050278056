package protocol

import (
	"encoding/json"
	"fmt"
	"time"
)

// A Day is a business day (ARTS BusinessDayDate): a date without a zone. The zero Day is
// "not said".
type Day struct {
	Year  int
	Month time.Month
	Date  int
}

// ParseDay reads an ISO date, 2026-03-29.
func ParseDay(s string) (Day, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return Day{}, fmt.Errorf("%q is not a date such as 2026-03-29", s)
	}
	return Day{t.Year(), t.Month(), t.Day()}, nil
}

// IsZero says that no day was given.
func (d Day) IsZero() bool { return d == Day{} }

// String is the ISO date, or "" for the zero Day.
func (d Day) String() string {
	if d.IsZero() {
		return ""
	}
	return fmt.Sprintf("%04d-%02d-%02d", d.Year, d.Month, d.Date)
}

// AddDays moves by whole days of the calendar.
func (d Day) AddDays(n int) Day {
	t := time.Date(d.Year, d.Month, d.Date+n, 0, 0, 0, 0, time.UTC)
	return Day{t.Year(), t.Month(), t.Day()}
}

// Before says whether d is an earlier day than o.
func (d Day) Before(o Day) bool {
	if d.Year != o.Year {
		return d.Year < o.Year
	}
	if d.Month != o.Month {
		return d.Month < o.Month
	}
	return d.Date < o.Date
}

// MarshalJSON writes the ISO date; the zero Day is "".
func (d Day) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads an ISO date or "".
func (d *Day) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return typeFault(err)
	}
	if s == "" {
		*d = Day{}
		return nil
	}
	v, err := ParseDay(s)
	if err != nil {
		return Faults{{Problem: err.Error()}}
	}
	*d = v
	return nil
}

// A DayRule says when a store's business day begins: at the first instant whose local time
// is at or after the cut-off. No hour is forbidden as a cut-off, also not the one that a
// change to summer time skips or doubles.
type DayRule struct {
	Zone   *time.Location
	CutOff time.Duration // after local midnight, 0 <= CutOff < 24h
}

// Start is the first instant of the day.
func (r DayRule) Start(d Day) time.Time {
	cut := time.Date(d.Year, d.Month, d.Date, 0, 0, 0, 0, time.UTC).Add(r.CutOff) // the wall clock to reach, read as UTC
	// Zones lie within [-14h, +14h] of UTC: from 15 h before, walk the offset changes until
	// the local wall clock is at or past the cut-off.
	at := cut.Add(-15 * time.Hour).In(r.Zone)
	for {
		_, offset := at.Zone()
		reach := cut.Add(-time.Duration(offset) * time.Second) // when this offset would show the cut-off
		_, end := at.ZoneBounds()
		if end.IsZero() || reach.Before(end) {
			if reach.Before(at) {
				reach = at // the change jumped over the cut-off
			}
			return reach.In(r.Zone)
		}
		at = end
	}
}

// Day is the business day that t falls in.
func (r DayRule) Day(t time.Time) Day {
	local := t.In(r.Zone)
	d := Day{local.Year(), local.Month(), local.Day()}.AddDays(1)
	for t.Before(r.Start(d)) {
		d = d.AddDays(-1)
	}
	return d
}
