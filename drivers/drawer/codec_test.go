package drawer

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

func TestStatuses(t *testing.T) {
	low, high := Status{}, Status{High: true}
	auto := func(high, offline bool) Status { return Status{High: high, Offline: offline, Auto: true} }
	for _, tt := range []struct {
		name  string
		bytes []byte
		want  []Status
		noise int
	}{
		{"ASB low", []byte{0x10, 0, 0, 0}, []Status{auto(false, false)}, 0},
		{"ASB high", []byte{0x14, 0, 0, 0}, []Status{auto(true, false)}, 0},
		{"ASB high, offline, cover open", []byte{0x3C, 0, 0, 0}, []Status{auto(true, true)}, 0},
		{"DLE EOT low", []byte{0x12}, []Status{low}, 0},
		{"DLE EOT high", []byte{0x16}, []Status{high}, 0},
		{"DLE EOT offline", []byte{0x1A}, []Status{{Offline: true}}, 0},
		{"flow control between and within", []byte{xon, 0x14, xoff, 0, 0, xon, 0, xoff, 0x12}, []Status{auto(true, false), low}, 0},
		{"one behind the other", []byte{0x10, 0, 0, 0, 0x14, 0x0F, 0x60, 0x0F, 0x16}, []Status{auto(false, false), auto(true, false), high}, 0},
		{"an answer within a torn ASB", []byte{0x10, 0, 0x16}, []Status{high}, 2},
		{"an ASB within a torn ASB", []byte{0x10, 0, 0, 0x14, 0, 0, 0}, []Status{auto(true, false)}, 3},
		{"noise", []byte{0xFF, 0x00, 0x55, 0x12}, []Status{low}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var whole, bytewise Codec
			got := whole.Push(tt.bytes, noon)
			if !slices.Equal(got, tt.want) || whole.Noise != tt.noise {
				t.Errorf("statuses = %+v with noise %d, want %+v with %d", got, whole.Noise, tt.want, tt.noise)
			}
			got = nil
			for _, b := range tt.bytes {
				got = append(got, bytewise.Push([]byte{b}, noon)...)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("byte by byte = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestATornASBIsDroppedAfterItsTime(t *testing.T) {
	for _, tt := range []struct {
		late time.Duration
		want int
	}{{asbTimeout, 1}, {asbTimeout + time.Millisecond, 0}} {
		var c Codec
		c.Push([]byte{0x14, 0}, noon)
		if got := c.Push([]byte{0, 0}, noon.Add(tt.late)); len(got) != tt.want {
			t.Errorf("rest after %s gives %d statuses, want %d", tt.late, len(got), tt.want)
		}
	}
}

// No byte is two things, so that the answers can be told apart.
func TestFirstBytesAreDisjoint(t *testing.T) {
	for i := range 256 {
		b, n := byte(i), 0
		for _, is := range []bool{b&statusMask == asbFirst, b&statusMask == eotFirst, b&asbRestMask == 0, b == xon, b == xoff} {
			if is {
				n++
			}
		}
		if n > 1 {
			t.Errorf("%02X is %d things", b, n)
		}
	}
}

func FuzzStatuses(f *testing.F) {
	f.Add([]byte{0x14, 0, 0, 0, 0x12, xon}, uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		var whole, parts Codec
		want := whole.Push(data, noon)
		at := min(int(cut), len(data))
		got := append(parts.Push(data[:at], noon), parts.Push(data[at:], noon.Add(asbTimeout))...)
		if !slices.Equal(got, want) || whole.Noise != parts.Noise || whole.part != parts.part {
			t.Errorf("cut at %d: %+v, want %+v", at, got, want)
		}
		if len(want) > len(data) {
			t.Errorf("%d statuses in %d bytes", len(want), len(data))
		}
	})
}

func TestPulseBytes(t *testing.T) {
	for _, tt := range []struct {
		pulse Pulse
		want  []byte
	}{
		{Pulse{Pin: 2, On: 100 * time.Millisecond, Off: 100 * time.Millisecond}, []byte{0x1B, 0x70, 0, 0x32, 0x32}},
		{Pulse{Pin: 5, On: 50 * time.Millisecond, Off: 500 * time.Millisecond}, []byte{0x1B, 0x70, 1, 0x19, 0xFA}},
		{Pulse{Pin: 2, On: time.Second, Off: 0}, []byte{0x1B, 0x70, 0, 0xFF, 0x01}},
		{Pulse{Pin: 5, On: 150 * time.Millisecond, RealTime: true}, []byte{0x10, 0x14, 1, 1, 2}},
		{Pulse{Pin: 2, On: 2 * time.Millisecond, RealTime: true}, []byte{0x10, 0x14, 1, 0, 1}},
	} {
		if got := tt.pulse.Bytes(); !bytes.Equal(got, tt.want) {
			t.Errorf("%+v.Bytes() = % X, want % X", tt.pulse, got, tt.want)
		}
	}
}
