package checkout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
)

func TestScaleAnswers(t *testing.T) {
	stable := func(milli int64) ScaleFrame { return ScaleFrame{State: drivers.WeightStable, Milli: milli} }
	state := func(s string) ScaleFrame { return ScaleFrame{State: s} }
	for _, tt := range []struct {
		name, bytes string
		want        []ScaleFrame
		noise       int
	}{
		{"a weight", "\x0201.234\r", []ScaleFrame{stable(1234)}, 0},
		{"spaces", "\x02  0.420\r", []ScaleFrame{stable(420)}, 0},
		{"two decimals", "\x0212.34\r", []ScaleFrame{stable(12340)}, 0},
		{"no point", "\x0201234\r", []ScaleFrame{stable(1234)}, 0},
		{"net", "\x0200.500N\r", []ScaleFrame{{State: drivers.WeightStable, Milli: 500, Net: true}}, 0},
		{"zero", "\x0200.000\r", []ScaleFrame{stable(0)}, 0},
		{"motion", "\x02?a\r", []ScaleFrame{state(drivers.WeightMotion)}, 0},
		{"over capacity, in motion", "\x02?c\r", []ScaleFrame{state(drivers.WeightOver)}, 0},
		{"under zero", "\x02?d\r", []ScaleFrame{state(drivers.WeightUnder)}, 0},
		{"outside the zero range", "\x02?h\r", []ScaleFrame{state(drivers.WeightZeroRange)}, 0},
		{"centre of zero", "\x02?p\r", []ScaleFrame{state(drivers.WeightZero)}, 0},
		{"no reason, with parity", "\x02?\xE0\r", []ScaleFrame{state(drivers.WeightNone)}, 0},
		{"no status byte", "\x02?\r", []ScaleFrame{state(drivers.WeightNone)}, 0},
		{"noise around", "xx\x0201.000\ryy", []ScaleFrame{stable(1000)}, 4},
		{"an answer within a torn one", "\x0201.\x0202.000\r", []ScaleFrame{stable(2000)}, 3},
		{"no weight", "\x02-1.000\r", nil, 8},
		{"a point at the end", "\x021.\r", nil, 4},
		{"too long", "\x0200000000000000001\r", nil, 18},
		{"finer than a gram", "\x020.12345\r", nil, 9},
	} {
		t.Run(tt.name, func(t *testing.T) {
			whole, bytewise := ScaleCodec{Decimals: 3}, ScaleCodec{Decimals: 3}
			if got := whole.Push([]byte(tt.bytes)); !slices.Equal(got, tt.want) || whole.Noise != tt.noise {
				t.Errorf("answers = %+v with noise %d, want %+v with %d", got, whole.Noise, tt.want, tt.noise)
			}
			var got []ScaleFrame
			for i := range len(tt.bytes) {
				got = append(got, bytewise.Push([]byte(tt.bytes[i:i+1]))...)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("byte by byte = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// A sealed weight is read as it was written, whatever came before it and in whatever pieces.
func FuzzScale(f *testing.F) {
	f.Add([]byte("\x02?a\r"), uint32(1234), uint8(3))
	f.Fuzz(func(t *testing.T, before []byte, milli uint32, cut uint8) {
		want := int64(milli % 1_000_000)
		data := fmt.Appendf(slices.Clone(before), "\x02%02d.%03d\r", want/1000, want%1000)
		at := min(int(cut), len(data))
		var whole, parts ScaleCodec
		got := whole.Push(data)
		if again := append(parts.Push(data[:at]), parts.Push(data[at:])...); !slices.Equal(got, again) || whole.Noise != parts.Noise {
			t.Errorf("cut at %d: %+v, want %+v", at, again, got)
		}
		if len(got) == 0 || got[len(got)-1] != (ScaleFrame{State: drivers.WeightStable, Milli: want}) {
			t.Errorf("answers = %+v, want the last to be %d", got, want)
		}
	})
}

// saying gives one answer after another to each W.
func saying(answers ...string) func([]byte) []byte {
	return func(asked []byte) []byte {
		if string(asked) != "W" || len(answers) == 0 {
			return nil
		}
		next := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		return []byte(next)
	}
}

func TestATillAsksForAWeight(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers []string
		state   string
		milli   int64
	}{
		{"at rest", []string{"\x0200.420\r"}, drivers.WeightStable, 420},
		{"one that is hit by noise counts not", []string{"\x0210.420\r", "\x0200.420\r"}, drivers.WeightStable, 420},
		{"in motion", []string{"\x02?A\r"}, drivers.WeightMotion, 0},
		{"never twice the same", []string{"\x0200.001\r", "\x0200.002\r", "\x0200.003\r", "\x0200.004\r", "\x0200.005\r"}, drivers.WeightMotion, 0},
		{"too heavy", []string{"\x02?B\r"}, drivers.WeightOver, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				host := &memoryHost{}
				r := start(t, host, NewScale, map[string]any{"poll": "0s"}, saying(tt.answers...))
				w, err := r.driver.(drivers.Weigher).Weigh(t.Context())
				if err != nil || w.State != tt.state || w.Weight.Milli != tt.milli || w.At.IsZero() {
					t.Errorf("weighing = %+v, %v, want %s, %d", w, err, tt.state, tt.milli)
				}
				if tt.state == drivers.WeightStable && w.Weight.Unit != "KGM" {
					t.Errorf("unit = %q", w.Weight.Unit)
				}
				r.stop()
			})
		})
	}
}

func TestALateWeightAnswersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, NewScale, map[string]any{"poll": "0s", "timeout": "100ms"}, nil)
		w := r.driver.(drivers.Weigher)
		if _, err := w.Weigh(t.Context()); !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Weigh = %v, want ErrOffline", err)
		}
		go r.device.Write([]byte("\x0209.999\r")) // of the article before
		synctest.Wait()
		done := make(chan error)
		go func() {
			_, err := w.Weigh(t.Context())
			done <- err
		}()
		if err := <-done; !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Weigh = %v, want ErrOffline", err)
		}
		r.stop()
	})
}

func TestASilentScaleEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, NewScale, nil, nil)
		err := <-r.done
		var fault *drivers.Fault
		if !errors.Is(err, ErrSilent) || !errors.As(err, &fault) || fault.Hint == "" || host.online != 0 {
			t.Errorf("Run = %v with %d signs of life, want ErrSilent with a hint", err, host.online)
		}
		if _, err := r.driver.(drivers.Weigher).Weigh(context.Background()); !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Weigh = %v, want ErrOffline", err)
		}
		r.device.Close()
		<-r.read
	})
}

func TestAScaleGivesSignsOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, NewScale, nil, saying("\x0200.000\r"))
		time.Sleep(time.Minute)
		r.hangUp()
		if host.online < 6 {
			t.Errorf("%d signs of life in a minute", host.online)
		}
	})
}

func TestScaleSettingsAreChecked(t *testing.T) {
	_, err := NewScale(drivers.Spec{ID: "s", Port: "COM1", Settings: map[string]any{"command": ""}}, nil)
	expectFault(t, err, "settings.command")
	d, err := NewScale(drivers.Spec{ID: "s", Port: "COM1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := d.(*Scale).config; c.Baud != 9600 || c.DataBits != 7 || c.Parity != "even" || c.StopBits != "1" {
		t.Errorf("port = %+v, want 9600 7E1", c)
	}
}
