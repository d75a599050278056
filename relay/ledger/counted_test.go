package ledger

import (
	"testing"

	"github.com/storelay/storelay/protocol"
)

func TestPeopleAreNotCountedTwiceAfterARollback(t *testing.T) {
	g := &group{counters: map[counterKey]*counted{}}
	door := counterKey{"0001", "pc-1", "door"}
	for _, tt := range []struct {
		what            string
		in, raw         int64
		quality         protocol.Quality
		countedBefore   bool
		newestTotalThen int64
	}{
		{"the first", 0, 100, protocol.QualityOK, false, 100},
		{"ten more", 10, 110, protocol.QualityOK, false, 110},
		{"nobody", 0, 110, protocol.QualityOK, false, 110},
		{"from the totals of a rolled-back disk", 15, 115, protocol.QualityOK, true, 115},
		{"the next, which goes on from there", 5, 120, protocol.QualityGap, false, 120},
		{"all of it again", 20, 120, protocol.QualityOK, true, 120},
		{"late, from before", 3, 103, protocol.QualityOK, false, 120},
		{"the counter began again", 4, 4, protocol.QualityReset, false, 4},
		{"and goes on", 130, 134, protocol.QualityOK, false, 134},
		{"it was reset and counted on, in one interval", 140, 137, protocol.QualityReset, false, 137},
	} {
		c := &protocol.FootfallCount{Counter: "door", In: tt.in, RawIn: tt.raw, Quality: tt.quality}
		if got := g.countedBefore(door, c); (got != "") != tt.countedBefore {
			t.Errorf("%s: %q, want counted before %v", tt.what, got, tt.countedBefore)
		}
		if got := g.counters[door].in; got != tt.newestTotalThen {
			t.Errorf("%s: newest total %d, want %d", tt.what, got, tt.newestTotalThen)
		}
	}
}
