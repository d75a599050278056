package counter

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
)

func TestNext(t *testing.T) {
	at := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	up := func(s int64) *int64 { return &s }
	known := func(in, out uint64, width int) State {
		return State{Known: true, In: in, Out: out, Width: width, ReadAt: at}
	}
	for _, tt := range []struct {
		name  string
		state State
		read  Reading
		want  Delta
	}{
		{"the first reading is a baseline", State{}, Reading{In: 70000, Out: 69950, At: at}, Delta{0, 0, protocol.QualityOK}},
		{"growth", known(10, 7, 16), Reading{In: 12, Out: 7, Width: 16, At: at.Add(time.Minute)}, Delta{2, 0, protocol.QualityOK}},
		{"the same again", known(12, 7, 16), Reading{In: 12, Out: 7, Width: 16, At: at.Add(time.Second)}, Delta{0, 0, protocol.QualityOK}},
		{"a wrap of one register", known(65530, 100, 16), Reading{In: 3, Out: 101, Width: 16, At: at.Add(time.Minute)}, Delta{9, 1, protocol.QualityWrap}},
		{"a wrap of 32 bits", known(1<<32-1, 0, 32), Reading{In: 1, Width: 32, At: at.Add(time.Minute)}, Delta{2, 0, protocol.QualityWrap}},
		{"a fall too deep for a wrap", known(5000, 4000, 16), Reading{In: 3, Out: 1, Width: 16, At: at.Add(time.Minute)}, Delta{3, 1, protocol.QualityReset}},
		{"a fall without a width", known(5000, 0, 0), Reading{In: 3, At: at.Add(time.Minute)}, Delta{3, 0, protocol.QualityReset}},
		{"a known reset takes both totals as they are", known(65535, 2, 16), Reading{In: 4, Out: 3, Width: 16, At: at.Add(time.Minute), Reset: true}, Delta{4, 3, protocol.QualityReset}},
		{"an uptime that fell is a reset", State{Known: true, In: 65535, Width: 16, Uptime: up(900), ReadAt: at}, Reading{In: 4, Width: 16, At: at.Add(time.Minute), Uptime: up(20)}, Delta{4, 0, protocol.QualityReset}},
		{"an uptime that grew is none", State{Known: true, In: 65535, Width: 16, Uptime: up(900), ReadAt: at}, Reading{In: 4, Width: 16, At: at.Add(time.Minute), Uptime: up(960)}, Delta{5, 0, protocol.QualityWrap}},
		{"more people than can pass", known(10, 0, 32), Reading{In: 311, Width: 32, At: at.Add(time.Minute)}, Delta{301, 0, protocol.QualitySuspect}},
		{"as many as can pass", known(10, 0, 32), Reading{In: 310, Width: 32, At: at.Add(time.Minute)}, Delta{300, 0, protocol.QualityOK}},
		{"a wrap while the clock went back", known(65535, 0, 16), Reading{In: 1, Width: 16, At: at.Add(-time.Hour)}, Delta{2, 0, protocol.QualityWrap}},
		{"another width tells no wrap", known(65535, 0, 16), Reading{In: 1, Width: 32, At: at.Add(time.Minute)}, Delta{1, 0, protocol.QualityReset}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next, got := tt.state.Next(tt.read, DefaultRate)
			if got != tt.want {
				t.Errorf("delta = %+v, want %+v", got, tt.want)
			}
			if !next.Known || next.In != tt.read.In || next.Out != tt.read.Out || !next.ReadAt.Equal(tt.read.At) {
				t.Errorf("state = %+v, want the reading's totals", next)
			}
		})
	}
}

func TestNextNeverCountsLessThanNobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := State{Known: true, In: rapid.Uint64().Draw(t, "in"), Out: rapid.Uint64().Draw(t, "out"), Width: rapid.IntRange(0, 64).Draw(t, "width was")}
		r := Reading{In: rapid.Uint64().Draw(t, "in now"), Out: rapid.Uint64().Draw(t, "out now"), Width: rapid.IntRange(0, 64).Draw(t, "width"),
			Reset: rapid.Bool().Draw(t, "reset"), At: time.Unix(rapid.Int64Range(-1<<33, 1<<33).Draw(t, "at"), 0)}
		if _, d := s.Next(r, DefaultRate); d.In < 0 || d.Out < 0 {
			t.Fatalf("%+v.Next(%+v) = %+v", s, r, d)
		}
	})
}

// A counter's registers wrap and are reset (which its uptime shows), lines are read again,
// records are refused, the agent crashes between a reading and the next record: the emitted
// counts add up to the people who passed. Only who passed after the last reading before a
// reset is lost, since no reading saw him; the model makes no such people.
func TestCountsAddUpToThePeopleWhoPassed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.SampledFrom([]int{10, 16, 32}).Draw(t, "width")
		mask := uint64(1)<<width - 1
		now := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
		in, out := rapid.Uint64().Draw(t, "in")&mask, rapid.Uint64().Draw(t, "out")&mask
		uptime := int64(1000)
		var truthIn, truthOut, gotIn, gotOut int64
		var stored []byte
		ta := tally{id: "door", interval: time.Minute, rate: DefaultRate, from: now, pending: Delta{Quality: protocol.QualityOK}}
		read := func() {
			up := uptime
			ta.total(Reading{In: in, Out: out, Width: width, At: now, Uptime: &up})
		}
		accept := func() {
			count, state := ta.count(now)
			gotIn, gotOut, stored = gotIn+count.In, gotOut+count.Out, state
			ta.from, ta.state.To, ta.pending = now, now, Delta{Quality: protocol.QualityOK}
		}
		read()
		accept()
		t.Repeat(map[string]func(*rapid.T){
			"people pass": func(t *rapid.T) {
				now, uptime = now.Add(time.Minute), uptime+60
				i, o := rapid.Uint64Range(0, 250).Draw(t, "i"), rapid.Uint64Range(0, 250).Draw(t, "o")
				in, out = (in+i)&mask, (out+o)&mask
				truthIn, truthOut = truthIn+int64(i), truthOut+int64(o)
				if rapid.Bool().Draw(t, "read at once") || width == 10 { // ten bits wrap fully within four minutes
					read()
				}
			},
			"read again": func(*rapid.T) { read() },
			"accepted":   func(*rapid.T) { read(); accept() },
			"crash": func(t *rapid.T) {
				if width == 10 {
					accept() // what such a small register held before cannot be told afterwards
				}
				ta.state, ta.pending = State{}, Delta{Quality: protocol.QualityOK}
				if err := json.Unmarshal(stored, &ta.state); err != nil {
					t.Fatal(err)
				}
				read()
			},
			"counter loses power": func(*rapid.T) {
				read()
				accept()
				in, out, uptime = 0, 0, 1
				read()   // the reading that shows the uptime fallen
				accept() // lost before this, the uptime may have caught up unseen
			},
		})
		read()
		accept()
		if gotIn != truthIn || gotOut != truthOut {
			t.Fatalf("counted %d in and %d out, want %d and %d", gotIn, gotOut, truthIn, truthOut)
		}
	})
}
