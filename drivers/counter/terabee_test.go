package counter

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
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

const (
	longFrame     = "50 43 00 00 00 01 00 00 00 05 00 0C 00 07 AE"
	shortFrame    = "50 43 00 00 00 05 00 0C 00 07 47"
	resetFrame    = "50 43 00 00 00 01 00 00 00 00 00 00 00 00 AC"
	distanceFrame = "44 44 04 4C 03 E8 18"
)

func TestTerabeeFrames(t *testing.T) {
	for _, tt := range []struct {
		name, bytes string
		want        TerabeeFrame
	}{
		{"2021, with sensor id", longFrame, TerabeeFrame{Passage: true, Sensor: 1, Net: 5, In: 12, Out: 7}},
		{"2020, without sensor id", shortFrame, TerabeeFrame{Passage: true, Net: 5, In: 12, Out: 7}},
		{"after a reset", resetFrame, TerabeeFrame{Passage: true, Sensor: 1}},
		{"distances", distanceFrame, TerabeeFrame{D1: 1100, D2: 1000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c TerabeeCodec
			got := append(c.Push(unhex(t, tt.bytes)), c.Settle()...)
			if len(got) != 1 || got[0] != tt.want || c.Noise != 0 {
				t.Errorf("frames = %+v with %d bytes of noise, want %+v", got, c.Noise, tt.want)
			}
		})
	}
}

func TestTerabeeFramesSurviveSplittingAndNoise(t *testing.T) {
	bad := unhex(t, longFrame)
	bad[len(bad)-1] ^= 1
	stream := slices.Concat([]byte("noise DDPC"), unhex(t, distanceFrame), bad, unhex(t, longFrame), unhex(t, distanceFrame))
	want := []TerabeeFrame{{D1: 1100, D2: 1000}, {Passage: true, Sensor: 1, Net: 5, In: 12, Out: 7}, {D1: 1100, D2: 1000}}
	for size := 1; size <= len(stream); size++ {
		var c TerabeeCodec
		var got []TerabeeFrame
		for part := range slices.Chunk(stream, size) {
			got = append(got, c.Push(part)...)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("in pieces of %d: frames = %+v, want %+v", size, got, want)
		}
		if noise := len("noise DDPC") + len(bad); c.Noise != noise {
			t.Fatalf("in pieces of %d: noise = %d, want %d", size, c.Noise, noise)
		}
	}
}

func TestTerabeeLengthIsLockedAfterThreePassages(t *testing.T) {
	var c TerabeeCodec
	for range terabeeLock {
		c.Push(unhex(t, shortFrame))
		c.Settle()
	}
	if got := c.Push(unhex(t, shortFrame)); len(got) != 1 {
		t.Errorf("a locked length waits for more bytes: %+v", got)
	}
	if got := append(c.Push(unhex(t, longFrame)), c.Settle()...); len(got) != 0 {
		t.Errorf("the other length is still taken: %+v", got)
	}
}

func TestTerabeeLittleEndian(t *testing.T) {
	body := unhex(t, "50 43 01 00 00 00 05 00 00 00 0C 00 07 00")
	c := TerabeeCodec{Little: true}
	got := c.Push(append(body, crc8(body)))
	if want := (TerabeeFrame{Passage: true, Sensor: 1, Net: 5, In: 12, Out: 7}); len(got) != 1 || got[0] != want {
		t.Errorf("frames = %+v, want %+v", got, want)
	}
}

// The commands printed in the manuals end with the CRC of the frames.
func TestCRC8(t *testing.T) {
	for _, command := range []string{"00 55 08 00 00 00 00 7C", "00 55 09 00 00 00 00 1E", "00 61 01 E7", "00 61 02 EE", "00 21 0A 8D"} {
		b := unhex(t, command)
		if got := crc8(b[:len(b)-1]); got != b[len(b)-1] {
			t.Errorf("crc8 of %s = %02X", command, got)
		}
	}
}

func FuzzTerabee(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 5, 0, 12, 0, 7}, uint8(3), []byte("PCDD"))
	f.Add([]byte{0, 0, 0, 5, 0, 12, 0, 7}, uint8(40), []byte{})
	f.Fuzz(func(t *testing.T, body []byte, cut uint8, noise []byte) {
		frame := append([]byte("PC"), body...)
		if len(body) == 4 {
			frame = append([]byte("DD"), body...)
		}
		frame = append(frame, crc8(frame)) // behind the checksum
		stream := slices.Concat(noise, frame, noise)
		var whole, parts TerabeeCodec
		want := append(whole.Push(stream), whole.Settle()...)
		at := min(int(cut), len(stream))
		got := append(parts.Push(stream[:at]), parts.Push(stream[at:])...)
		got = append(got, parts.Settle()...)
		if !slices.Equal(got, want) || whole.Noise != parts.Noise {
			t.Errorf("cut at %d: %+v, want %+v", at, got, want)
		}
		var used int
		var again TerabeeCodec
		for _, b := range stream {
			again.Push([]byte{b})
			if len(again.buf) > terabeeLongLen {
				t.Fatalf("buffer grew to %d", len(again.buf))
			}
		}
		used = again.Noise + len(again.buf)
		if used > len(stream) {
			t.Errorf("%d bytes used of %d", used, len(stream))
		}
		if len(noise) == 0 && (len(body) == 4 || len(body) == 8 || len(body) == 12) && len(want) == 0 {
			t.Errorf("no frame in %x", stream)
		}
	})
}

func terabee(t testing.TB, settings map[string]any) func(serialport.OpenFunc) drivers.Driver {
	return func(open serialport.OpenFunc) drivers.Driver {
		d, err := NewTerabee(drivers.Spec{ID: "door", Driver: "terabee", Port: "COM3", Settings: settings}, open)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// passage is a PC frame of 15 bytes.
func passage(in, out uint16) []byte {
	b := []byte{'P', 'C', 0, 0, 0, 1, 0, 0, byte(int(in-out) >> 8), byte(in - out), byte(in >> 8), byte(in), byte(out >> 8), byte(out)}
	return append(b, crc8(b))
}

// beat sends distances every second for a time.
func (r *rig) beat(d time.Duration) {
	r.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		r.send(unhex(r.t, distanceFrame))
		time.Sleep(time.Second) // virtual: the counter's own pace
	}
	synctest.Wait()
}

func TestTerabeeCountsEveryIntervalAlsoZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, nil))
		r.send(passage(12, 7)) // the baseline
		r.beat(30 * time.Second)
		r.send(passage(13, 7))
		r.send(passage(13, 8))
		r.beat(3 * time.Minute)
		if err := r.stop(); err == nil {
			t.Error("Run ended without an error")
		}
		counts := host.taken()
		if len(counts) != 3 {
			t.Fatalf("%d counts, want 3: %+v", len(counts), counts)
		}
		if c := counts[0]; c.In != 1 || c.Out != 1 || c.RawIn != 13 || c.RawOut != 8 || c.Quality != protocol.QualityOK || c.Counter != "door" {
			t.Errorf("first count = %+v", c)
		}
		for i, c := range counts[1:] {
			if c.In != 0 || c.Out != 0 || !c.From.Equal(counts[i].To) || c.To.Sub(c.From) != time.Minute || c.Quality != protocol.QualityOK {
				t.Errorf("count %d = %+v, want zero for the minute after %+v", i+1, c, counts[i])
			}
		}
		if host.online == 0 {
			t.Error("never online")
		}
	})
}

func TestTerabeeKeepsCountingWhileTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, nil))
		r.send(passage(10, 0))
		host.setRefuse(true)
		r.send(passage(12, 0))
		r.beat(2 * time.Minute)
		host.setRefuse(false)
		r.send(passage(13, 0))
		r.beat(time.Minute)
		r.stop()
		counts := host.taken()
		if in, _ := sum(counts); in != 3 || len(counts) != 1 {
			t.Errorf("counts = %+v, want one with 3 in", counts)
		}
		if host.notes["count not accepted, kept for the next interval"] != 2 {
			t.Errorf("notes = %v, want two counts not accepted", host.notes)
		}
	})
}

func TestTerabeeResetsWithItsPower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, nil))
		r.send(passage(100, 90))
		r.send(passage(105, 90))
		r.beat(time.Minute)
		r.device.Close() // unplugged
		if err := <-r.done; err == nil {
			t.Error("Run goes on without a port")
		}
		r = start(t, host, terabee(t, nil)) // plugged in again: it begins at zero
		r.send(passage(99, 1))              // below in one total alone
		r.send(passage(0, 0))               // someone resets it by command
		r.send(passage(2, 0))
		r.beat(time.Minute)
		r.stop()
		counts := host.taken()
		in, out := sum(counts)
		if want := int64(5 + 99 + 2); in != want || out != 1 {
			t.Errorf("%d in and %d out, want %d and 1: %+v", in, out, want, counts)
		}
		if q := counts[len(counts)-1].Quality; q != protocol.QualityReset {
			t.Errorf("quality = %s, want reset", q)
		}
	})
}

// The agent was away while the counter kept its power: all people are counted once, in an
// interval that says that their time is not known.
func TestTerabeeCountsWhoPassedWhileTheAgentWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, nil))
		r.send(passage(100, 90))
		r.beat(time.Minute)
		r.stop()
		time.Sleep(time.Hour) // virtual
		r = start(t, host, terabee(t, nil))
		r.send(passage(130, 110))
		r.beat(time.Minute)
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 30 || out != 20 {
			t.Errorf("%d in and %d out, want 30 and 20: %+v", in, out, counts)
		}
		last := counts[len(counts)-1]
		if last.Quality != protocol.QualityGap || !last.From.Equal(counts[0].To) {
			t.Errorf("last count = %+v, want a gap since %s", last, counts[0].To)
		}
	})
}

func TestTerabeeEmitsWhatItHasWhenThePortIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, nil))
		r.send(passage(1, 0))
		r.send(passage(4, 0))
		synctest.Wait()
		r.device.Close()
		<-r.done
		if in, _ := sum(host.taken()); in != 3 {
			t.Errorf("%d in after the port was lost, want 3", in)
		}
	})
}

func TestTerabeeSilenceEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, nil))
		began := time.Now()
		r.send(unhex(t, distanceFrame))
		err := <-r.done
		var fault *drivers.Fault
		if !errors.Is(err, ErrSilent) || !errors.As(err, &fault) || fault.Hint == "" {
			t.Errorf("err = %v, want ErrSilent with a hint", err)
		}
		if took := time.Since(began); took != terabeeSilence {
			t.Errorf("silence noticed after %s, want %s", took, terabeeSilence)
		}
		if len(host.taken()) != 0 {
			t.Error("a silent counter has counts")
		}
	})
}

func TestTerabeeInverted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, terabee(t, map[string]any{"invert_direction": true, "interval": "1s"}))
		r.send(passage(10, 5))
		r.send(passage(12, 5))
		r.beat(2 * time.Second)
		r.stop()
		if in, out := sum(host.taken()); in != 0 || out != 2 {
			t.Errorf("%d in and %d out, want 0 and 2", in, out)
		}
	})
}

func BenchmarkTerabee(b *testing.B) {
	chunk := bytes.Repeat(append(bytes.Repeat(unhex(b, distanceFrame), 9), unhex(b, longFrame)...), 50)
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	var c TerabeeCodec
	frames := 0
	for b.Loop() {
		frames += len(c.Push(chunk))
	}
	b.ReportMetric(float64(frames)/b.Elapsed().Seconds(), "frames/s")
}
