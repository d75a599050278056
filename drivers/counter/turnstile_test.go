package counter

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

const (
	rightToLeft = "02 02 00 1A 1A"
	leftToRight = "02 02 00 1B 1B"
	turnstileOK = "02 02 00 06 06"
	alwaysFree  = "02 03 00 4C 48 05" // a command of two bytes, as printed
)

func TestTurnstileFrames(t *testing.T) {
	for _, tt := range []struct {
		name, bytes string
		commands    []byte
		lr, rl      uint64
	}{
		{"right to left", rightToLeft, []byte{0x1A}, 0, 1},
		{"left to right", leftToRight, []byte{0x1B}, 1, 0},
		{"an answer", turnstileOK, []byte{0x06}, 0, 0},
		{"two commands", alwaysFree, []byte{0x4C, 0x48}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c TurnstileCodec
			got := c.Push(unhex(t, tt.bytes))
			if len(got) != 1 || !slices.Equal(got[0].Commands, tt.commands) || c.Noise != 0 {
				t.Fatalf("frames = %+v with %d bytes of noise", got, c.Noise)
			}
			if lr, rl := got[0].Passage(); lr != tt.lr || rl != tt.rl {
				t.Errorf("passage = %d, %d", lr, rl)
			}
		})
	}
}

func TestTurnstileFramesSurviveSplittingAndNoise(t *testing.T) {
	stream := unhex(t, "FF 02 02 00 1B 1A"+leftToRight+"02 00 00"+rightToLeft+"02 02 00 1C 1B"+leftToRight+"02 08 00")
	for size := 1; size <= len(stream); size++ {
		var c TurnstileCodec
		var lr, rl uint64
		for part := range slices.Chunk(stream, size) {
			for _, f := range c.Push(part) {
				l, r := f.Passage()
				lr, rl = lr+l, rl+r
			}
		}
		if lr != 2 || rl != 1 {
			t.Fatalf("in pieces of %d: %d left to right and %d back, want 2 and 1", size, lr, rl)
		}
	}
}

func FuzzTurnstile(f *testing.F) {
	f.Add([]byte{0x1A}, []byte{2, 8, 0}, uint8(3))
	f.Add([]byte{0x4C, 0x48}, []byte{}, uint8(40))
	f.Fuzz(func(t *testing.T, commands, noise []byte, cut uint8) {
		frame := append([]byte{turnstileSTX, byte(len(commands) + 1), byte((len(commands) + 1) >> 8)}, commands...)
		var bcc byte
		for _, b := range frame {
			bcc ^= b
		}
		frame = append(frame, bcc) // behind the checksum
		stream := slices.Concat(noise, frame, noise)
		var whole, parts TurnstileCodec
		want := append(whole.Push(stream), whole.Settle()...)
		at := min(int(cut), len(stream))
		got := append(parts.Push(stream[:at]), parts.Push(stream[at:])...)
		got = append(got, parts.Settle()...)
		if !slices.EqualFunc(got, want, func(a, b TurnstileFrame) bool { return slices.Equal(a.Commands, b.Commands) }) || whole.Noise != parts.Noise {
			t.Errorf("cut at %d: %+v, want %+v", at, got, want)
		}
		if len(whole.buf)+len(parts.buf) > 0 {
			t.Errorf("%d bytes are left after settling", len(whole.buf))
		}
		if n := len(commands); len(noise) == 0 && n > 0 && n < turnstileMostSize && (len(want) != 1 || !slices.Equal(want[0].Commands, commands)) {
			t.Errorf("frames = %+v of % X", want, stream)
		}
	})
}

func turnstile(t testing.TB, settings map[string]any) func(serialport.OpenFunc) drivers.Driver {
	return func(open serialport.OpenFunc) drivers.Driver {
		d, err := NewTurnstile(drivers.Spec{ID: "door", Driver: "turnstile", Port: "COM3", Settings: settings}, open)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func TestTurnstileCountsPassages(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings map[string]any
		in, out  int64
	}{
		{"as it is wired", nil, 3, 1},
		{"the other way round", map[string]any{"in": "right-left"}, 1, 3},
		{"with repetitions", map[string]any{"repeat": "300ms"}, 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &memoryHost{}
				r := start(t, host, turnstile(t, tt.settings))
				r.send(unhex(t, leftToRight+leftToRight+turnstileOK))
				pass(time.Second)
				r.send(unhex(t, "02 08"+rightToLeft)) // behind the beginning of a frame that never ends
				pass(time.Second)
				r.send(unhex(t, leftToRight))
				pass(2 * time.Minute)
				r.stop()
				counts := host.taken()
				if in, out := sum(counts); in != tt.in || out != tt.out || len(counts) != 2 || counts[0].Quality != protocol.QualityOK {
					t.Errorf("%d in and %d out, want %d and %d: %+v", in, out, tt.in, tt.out, counts)
				}
			})
		})
	}
}

func TestTurnstileIsBlindWhileThePortIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, turnstile(t, nil))
		r.send(unhex(t, leftToRight))
		pass(ms)
		r.device.Close()
		<-r.done
		if in, _ := sum(host.taken()); in != 1 {
			t.Errorf("%d in after the port was lost, want 1", in)
		}
		r = start(t, host, turnstile(t, nil))
		pass(2 * time.Minute)
		r.stop()
		counts := host.taken()
		if counts[1].Quality != protocol.QualityGap || counts[2].Quality != protocol.QualityOK {
			t.Errorf("counts = %+v, want one gap", counts)
		}
	})
}

func TestTurnstileAcknowledgesWhenAskedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, turnstile(t, map[string]any{"acknowledge": true, "repeat": "2s"}))
		for range 2 { // the first answer is lost
			r.send(unhex(t, leftToRight))
			answer := make([]byte, 16)
			n, err := r.device.Read(answer)
			if err != nil || !slices.Equal(answer[:n], unhex(t, turnstileOK)) {
				t.Fatalf("answer = % X, %v", answer[:n], err)
			}
			pass(time.Second)
		}
		r.stop()
		if in, out := sum(host.taken()); in != 1 || out != 0 {
			t.Errorf("%d in and %d out, want one in", in, out)
		}
	})
}
