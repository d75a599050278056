package checkout

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMessagesAreThoseOfTheManuals(t *testing.T) {
	for _, tt := range []struct {
		name string
		got  []byte
		want string
	}{
		{"credits", ccMessage(2, ccCredits), "02 00 01 E5 18"},
		{"poll", ccMessage(2, ccPoll), "02 00 01 FE FF"},
	} {
		if want := unhex(t, tt.want); !bytes.Equal(tt.got, want) {
			t.Errorf("%s = % X, want % X", tt.name, tt.got, want)
		}
	}
}

func TestAnswersAreFound(t *testing.T) {
	azkoyen := "01 0B 02 00 06 06 04 00 14 00 17 06 04 0D 02 9E" // Modular X6, page 40
	for _, tt := range []struct {
		name, bytes string
		length      int
		want        string // of the data
		refused     bool
		none        bool
	}{
		{"ACK", "01 00 02 00 FD", 0, "", false, false},
		{"two events", "01 0B 02 00 02 03 01 01 01 00 00 00 00 00 00 EA", 11, "02 03 01 01 01 00 00 00 00 00 00", false, false},
		{"Azkoyen's example", azkoyen, 11, "06 06 04 00 14 00 17 06 04 0D 02", false, false},
		{"its name", "01 0D 02 00 43 6F 69 6E 20 41 63 63 65 70 74 6F 72 16", 13, "43 6F 69 6E 20 41 63 63 65 70 74 6F 72", false, false},
		{"behind our echo and noise", "02 00 01 E5 18 FF 01 0B 02" + azkoyen, 11, "06 06 04 00 14 00 17 06 04 0D 02", false, false},
		{"refusal", "01 00 02 05 F8", 11, "", true, false},
		{"another length", "01 00 02 00 FD", 11, "", false, true},
		{"another device", "01 00 03 00 FC", 0, "", false, true},
		{"bad sum", "01 00 02 00 FC", 0, "", false, true},
		{"half", "01 0B 02 00 06 06 04 00 14", 11, "", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := ccFind(unhex(t, tt.bytes), 2, tt.length)
			if ok == tt.none || got.refused != tt.refused || !bytes.Equal(got.data, unhex(t, tt.want)) {
				t.Errorf("answer = % X, refused %t, %t", got.data, got.refused, ok)
			}
		})
	}
}

// A sealed answer is found behind anything that cannot begin one.
func FuzzFind(f *testing.F) {
	f.Add([]byte{2, 0, 1, 0xE5, 0x18}, []byte{6, 6, 4, 0, 20, 0, 23, 6, 4, 13, 2})
	f.Fuzz(func(t *testing.T, before, data []byte) {
		data = data[:min(len(data), 252)]
		answer := append([]byte{ccHost, byte(len(data)), 2, ccReply}, data...)
		answer = append(answer, -ccSum(answer))
		quiet := bytes.ReplaceAll(before, []byte{ccHost}, nil)
		if got, ok := ccFind(append(quiet, answer...), 2, len(data)); !ok || !bytes.Equal(got.data, data) {
			t.Errorf("answer = % X, %t, want % X", got.data, ok, data)
		}
		if got, ok := ccFind(append(slices.Clone(before), answer...), 2, len(data)); ok && !got.refused && len(got.data) != len(data) {
			t.Errorf("answer of %d bytes, want %d", len(got.data), len(data))
		}
	})
}

// reading is the answer with these events, newest first: "counter: A/B A/B".
func reading(counter byte, events ...ccEvent) (r ccReading) {
	r.counter = counter
	copy(r.events[:], events)
	return r
}

func c(coin byte) ccEvent { return ccEvent{coin, 1} }

func newPurse(known ...ccReading) *purse {
	p := &purse{id: "coins", coins: map[byte]coin{}}
	for _, r := range known {
		p.read(r, noon)
		p.read(r, noon)
	}
	p.out = nil
	return p
}

// said are the records as "event channel count", and empties the list.
func (p *purse) said() string {
	var s []string
	for _, o := range p.out {
		if err := o.record.Validate(); err != nil {
			s = append(s, err.Error())
		}
		switch o.record.Event {
		case protocol.CashAccepted:
			s = append(s, fmt.Sprint("coin ", o.record.Channel))
		case protocol.CashRejected, protocol.CashMissed:
			s = append(s, fmt.Sprint(o.record.Event, " ", o.record.Count))
		default:
			s = append(s, o.record.Event)
		}
	}
	p.out = nil
	return strings.Join(s, ", ")
}

func TestCoinsAreToldOnce(t *testing.T) {
	five := reading(9, c(5), c(4), c(3), c(2), c(1))
	for _, tt := range []struct {
		name  string
		known ccReading
		then  ccReading
		want  string
	}{
		{"nothing new", five, five, ""},
		{"one", five, reading(10, c(6), c(5), c(4), c(3), c(2)), "coin 6"},
		{"five", five, reading(14, c(10), c(9), c(8), c(7), c(6)), "coin 6, coin 7, coin 8, coin 9, coin 10"},
		{"seven, of which two are forgotten", five, reading(16, c(12), c(11), c(10), c(9), c(8)), "missed 2, coin 8, coin 9, coin 10, coin 11, coin 12"},
		{"the first", reading(0), reading(1, c(3)), "coin 3"},
		{"over the end of the counter", reading(254, c(5), c(4), c(3), c(2), c(1)), reading(2, c(8), c(7), c(6), c(5), c(4)), "coin 6, coin 7, coin 8"},
		{"from 255 to 1", reading(255, c(5), c(4), c(3), c(2), c(1)), reading(1, c(6), c(5), c(4), c(3), c(2)), "coin 6"},
		{"switched off and on", five, reading(0), "reset"},
		{"and a coin since", five, reading(1, c(7)), "reset, coin 7"},
		{"and five since", five, reading(5, c(5), c(4), c(3), c(2), c(1)), "missed 246, coin 1, coin 2, coin 3, coin 4, coin 5"},
		{"and as many as before", five, reading(9, c(7), c(7), c(7), c(7), c(7)), "reset, missed 4, coin 7, coin 7, coin 7, coin 7, coin 7"},
		{"switched off near the end of the counter", reading(252, c(5), c(4), c(3), c(2), c(1)), reading(2, c(7), c(6)), "reset, coin 6, coin 7"},
		{"rejected, then a coin", five, reading(11, c(6), ccEvent{0, 23}, c(5), c(4), c(3)), "rejected 1, coin 6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPurse(tt.known)
			p.read(tt.then, noon)
			p.read(tt.then, noon)
			if got := p.said(); got != tt.want {
				t.Errorf("records = %q, want %q", got, tt.want)
			}
			p.read(tt.then, noon)
			if got := p.said(); got != "" {
				t.Errorf("told again: %q", got)
			}
			if p.state.Counter != tt.then.counter || p.state.Events != tt.then.events {
				t.Errorf("state = %+v, want the reading", p.state)
			}
		})
	}
}

func TestTheFirstReadingIsTheBaseline(t *testing.T) {
	p := newPurse()
	r := reading(7, c(1), c(2), c(3), c(4), c(5))
	p.read(r, noon)
	p.read(r, noon)
	if got := p.said(); got != "reset" {
		t.Errorf("records = %q, want reset alone: those coins are another's", got)
	}
}

func TestOneStrangeReadingIsNotBelieved(t *testing.T) {
	p := newPurse(reading(9, c(5), c(4), c(3), c(2), c(1)))
	p.read(reading(0), noon)
	p.read(reading(10, c(6), c(5), c(4), c(3), c(2)), noon)
	if got := p.said(); got != "coin 6" {
		t.Errorf("records = %q, want the coin alone", got)
	}
}

func TestRejectedCoinsAreToldTogetherAfterAMinute(t *testing.T) {
	p := newPurse(reading(0))
	p.read(reading(1, ccEvent{0, 20}), noon)
	p.read(reading(2, ccEvent{0, 23}, ccEvent{0, 20}), noon.Add(time.Second))
	p.tick(noon.Add(59 * time.Second))
	if got := p.said(); got != "" {
		t.Errorf("records = %q too early", got)
	}
	p.tick(noon.Add(time.Minute))
	if code := p.out[0].record.Code; code != 23 {
		t.Errorf("code = %d, want the last", code)
	}
	if got := p.said(); got != "rejected 2" {
		t.Errorf("records = %q", got)
	}
}

// Whatever happens between polls, with at most five events and resets that are seen: each
// coin is told once, in order, and over crashes that forget all but the last record.
func TestNoCoinIsLostOrToldTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		device := reading(0)
		var put, told []int
		p := newPurse()
		var numbers []int64
		poll := func() {
			for range 3 {
				p.read(device, noon)
			}
		}
		stored := purseState{}
		keep := func(n int) { // n records reach the disk
			for _, o := range p.out[:n] {
				if o.record.Event == protocol.CashMissed {
					t.Fatalf("missed events: %+v", o)
				}
				if o.record.Event == protocol.CashAccepted {
					told = append(told, o.record.Channel)
				}
				numbers = append(numbers, o.record.Number)
				stored = o.state
			}
			p.out = p.out[n:]
		}
		poll()
		keep(1)
		room := ccBuffer // events that the device can still keep for a crash to read again
		t.Repeat(map[string]func(*rapid.T){
			"events": func(t *rapid.T) {
				for range rapid.IntRange(0, room).Draw(t, "n") {
					e := ccEvent{byte(rapid.IntRange(0, 4).Draw(t, "coin")), byte(rapid.IntRange(1, 30).Draw(t, "b"))}
					copy(device.events[1:], device.events[:ccBuffer-1])
					device.events[0], device.counter = e, ccNext(device.counter, 1)
					if e.A > 0 {
						put = append(put, int(e.A))
					}
					room--
				}
			},
			"poll": func(t *rapid.T) {
				poll()
				if rapid.Bool().Draw(t, "tell") {
					p.tick(noon.Add(time.Hour))
				}
				keep(len(p.out))
				if p.rejects == 0 {
					room = ccBuffer
				}
			},
			"crash": func(t *rapid.T) {
				poll()
				keep(rapid.IntRange(0, len(p.out)).Draw(t, "kept"))
				p = newPurse()
				p.state = stored
			},
			"power": func(*rapid.T) {
				poll()
				keep(len(p.out))
				device = reading(0)
				poll()
				keep(len(p.out))
				room = ccBuffer
			},
		})
		poll()
		keep(len(p.out))
		if !slices.Equal(told, put) {
			t.Fatalf("told %v, put in %v", told, put)
		}
		for i, n := range numbers {
			if n != int64(i+1) {
				t.Fatalf("numbers %v", numbers)
			}
		}
	})
}
