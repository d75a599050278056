package drawer

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOrdersOfATill(t *testing.T) {
	kick2, kick5 := order{orderKick, 2}, order{orderKick, 5}
	for _, tt := range []struct {
		name, bytes string
		want        []order
		open        bool // the stream ends within a command
	}{
		{"python-escpos", "1B 70 00 32 32", []order{kick2}, false},
		{"APG's example", "1B 70 30 28 28", []order{kick2}, false},
		{"pin 5", "1B 70 01 19 FA 1B 70 31 19 FA", []order{kick5, kick5}, false},
		{"real time", "10 14 01 00 01 10 14 01 01 08", []order{kick2, kick5}, false},
		{"real time out of range", "10 14 01 00 09 10 14 01 00 00 10 14 01 02 01", nil, false},
		{"no such pin", "1B 70 02 32 32", nil, false},
		{"after text", "41 42 0A 1B 70 00 32 32 43", []order{kick2}, false},
		{"half", "1B 70 00 32", nil, true},
		{"questions", "10 04 01 10 04 04 10 04 07 01 1D 49 43", []order{{orderAsk, 1}, {orderAsk, 4}, {orderAsk, 7}, {kind: orderText}}, false},
		{"a bar code that reads 1B 70 00", "1D 6B 49 05 1B 70 00 32 32 41", nil, false},
		{"a bar code up to its zero", "1D 6B 04 1B 70 31 00 1B 70 00 32 32", []order{kick2}, false},
		{"a raster of 5 bytes that is a kick", "1D 76 30 00 05 00 01 00 1B 70 00 32 32", nil, false},
		{"a raster, then a kick", "1D 76 30 00 02 00 01 00 FF FF 1B 70 00 32 32", []order{kick2}, false},
		{"a raster that is not all there", "1D 76 30 00 05 00 01 00 1B 70 00 32", nil, true},
		{"a bit image of 24 dots", "1B 2A 21 02 00 1B 70 00 32 32 00 1B 70 00 32 32", []order{kick2}, false},
		{"graphics", "1D 28 4C 05 00 1B 70 00 32 32 1B 70 01 32 32", []order{kick5}, false},
		{"large graphics", "1D 38 4C 05 00 00 00 10 14 01 00 01 10 14 01 00 01", []order{kick2}, false},
		{"a downloaded image", "1D 2A 01 01 1B 70 00 32 32 00 00 00 1B 70 00 32 32", []order{kick2}, false},
		{"characters of the till's own", "1B 26 03 41 42 01 1B 70 00 02 1B 70 00 32 32 00 1B 70 00 32 32", []order{kick2}, false},
		{"images in flash", "1C 71 01 01 00 01 00 1B 70 00 32 32 00 00 00 1B 70 00 32 32", []order{kick2}, false},
		{"tabs", "1B 44 08 1B 00 1B 70 00 32 32", []order{kick2}, false},
		{"cut and feed", "1D 56 41 1B 1D 56 00 1B 70 00 32 32", []order{kick2}, false},
		{"init and automatic status", "1B 40 1D 61 0F 1D 61 00", []order{{kind: orderMute}, {kind: orderMute}}, false},
		{"the numbers of a counter", "1D 43 31 1B 70 00 32 32 00 1D 43 30 1B 70 1D 43 3B 31 1B 70 00 32 32", []order{kick2}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var whole, bytewise tillStream
			data := unhex(t, tt.bytes)
			if got := whole.push(data); !slices.Equal(got, tt.want) || whole.boundary() == tt.open {
				t.Errorf("orders = %v, boundary %t, want %v", got, whole.boundary(), tt.want)
			}
			var got []order
			for _, b := range data {
				got = append(got, bytewise.push([]byte{b})...)
			}
			if !slices.Equal(got, tt.want) || bytewise.boundary() == tt.open {
				t.Errorf("byte by byte = %v, want %v", got, tt.want)
			}
		})
	}
}

// In whatever pieces a stream comes, its orders are the same; and a kick that follows a
// whole stream of text and rasters is seen.
func FuzzTillStream(f *testing.F) {
	f.Add([]byte("A\x1Bp\x002\x32"), []byte("\x1B\x70\x00"), uint16(3))
	f.Add([]byte{0x1D, '(', 'L', 5, 0, 1, 2, 3, 4, 5}, []byte{}, uint16(1))
	f.Add([]byte{0x1C, 'q', 1, 1, 0, 1, 0}, []byte{0x10, 0x14}, uint16(9))
	f.Fuzz(func(t *testing.T, data, raster []byte, cut uint16) {
		var whole, parts tillStream
		want := whole.push(data)
		at := min(int(cut), len(data))
		got := append(parts.push(data[:at]), parts.push(data[at:])...)
		if !slices.Equal(got, want) || whole.boundary() != parts.boundary() {
			t.Errorf("cut at %d: %v, want %v", at, got, want)
		}
		// Sealed: text without the four bytes that begin commands, and a raster with its length.
		raster = raster[:min(len(raster), 255)]
		var sealed tillStream
		text := bytes.Map(func(r rune) rune {
			if r == dle || r == esc || r == fs || r == gs {
				return -1
			}
			return r
		}, data)
		job := slices.Concat(text, []byte{gs, 'v', '0', 0, byte(len(raster)), 0, 1, 0}, raster, []byte{esc, 'p', 0, 50, 50})
		if got := sealed.push(job); len(got) != 1 || got[0] != (order{orderKick, 2}) || !sealed.boundary() {
			t.Errorf("orders of a sealed job = %v, want one kick", got)
		}
	})
}
