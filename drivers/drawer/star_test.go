package drawer

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

func newStar(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	spec.Driver = "star"
	return NewStar(spec, open)
}

func TestStarStatuses(t *testing.T) {
	closed, open := StarStatus{High: true}, StarStatus{}
	for _, tt := range []struct {
		name  string
		bytes []byte
		want  []StarStatus
		noise int
	}{
		{"7 bytes, closed", []byte{0x0F, 0x06, 0x04, 0, 0, 0, 0}, []StarStatus{closed}, 0},
		{"7 bytes, open", []byte{0x0F, 0x06, 0x00, 0, 0, 0, 0}, []StarStatus{open}, 0},
		{"8 bytes, closed, offline", []byte{0x21, 0x06, 0x0C, 0, 0, 0, 0, 0}, []StarStatus{{High: true, Offline: true}}, 0},
		{"9 bytes, cover open", []byte{0x23, 0x06, 0x20, 0, 0, 0, 0, 0, 0}, []StarStatus{{Offline: true}}, 0},
		{"two, with flow control between", []byte{0x0F, 6, 4, 0, 0, 0, 0, xon, 0x0F, 6, 0, 0, xoff, 0, 0, 0}, []StarStatus{closed, open}, 0},
		{"a torn one before a whole one", []byte{0x0F, 6, 4, 0, 0x0F, 6, 0, 0, 0, 0, 0}, []StarStatus{open}, 4},
		{"noise", []byte{0xFF, 0x90, 0x0F, 6, 4, 0, 0, 0, 0}, []StarStatus{closed}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var whole, bytewise StarCodec
			if got := whole.Push(tt.bytes, noon); !slices.Equal(got, tt.want) || whole.Noise != tt.noise {
				t.Errorf("statuses = %+v with noise %d, want %+v with %d", got, whole.Noise, tt.want, tt.noise)
			}
			var got []StarStatus
			for _, b := range tt.bytes {
				got = append(got, bytewise.Push([]byte{b}, noon)...)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("byte by byte = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestATornStarStatusIsDroppedAfterItsTime(t *testing.T) {
	var c StarCodec
	c.Push([]byte{0x0F, 6, 4}, noon)
	if got := c.Push([]byte{0, 0, 0, 0}, noon.Add(asbTimeout+time.Millisecond)); len(got) != 0 {
		t.Errorf("statuses = %+v, want none of a torn one", got)
	}
}

// Whatever arrives, in whatever pieces, the statuses are the same, and no more than fit.
func FuzzStarStatuses(f *testing.F) {
	f.Add([]byte{0x0F, 6, 4, 0, 0, 0, 0, 0x0F, 6, 0, 0, 0, 0, 0}, uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		var whole, parts StarCodec
		want := whole.Push(data, noon)
		at := min(int(cut), len(data))
		got := append(parts.Push(data[:at], noon), parts.Push(data[at:], noon.Add(asbTimeout))...)
		if !slices.Equal(got, want) || whole.Noise != parts.Noise {
			t.Errorf("cut at %d: %+v, want %+v", at, got, want)
		}
		if len(want)*starASBMin > len(data) {
			t.Errorf("%d statuses in %d bytes", len(want), len(data))
		}
	})
}

func TestStarOpensAndSeesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := startDriver(t, host, newStar, nil)
		if r.count([]byte{0x05}) != 1 {
			t.Errorf("the printer was sent % X, want ENQ", r.sent())
		}
		r.send(0xA0) // closed, buffer empty
		if err := r.opener().Open(t.Context(), sale); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if r.count([]byte{0x07}) != 1 {
			t.Errorf("the printer was sent % X, want BEL", r.sent())
		}
		time.Sleep(pollMoving + time.Millisecond)
		r.send(0x20)                 // open: asked for again
		time.Sleep(time.Millisecond) // virtual
		r.send(0x20)
		if open, known := r.opener().Opened(); !open || !known {
			t.Errorf("Opened = %t, %t, want it open", open, known)
		}
		time.Sleep(3 * time.Second)
		r.send(0xA0)
		time.Sleep(time.Millisecond)
		r.send(0xA0)
		r.stop()
		if got := host.said(); len(got) != 2 || got[0] != "opened/commanded/0/sale" || got[1][:7] != "closed/" {
			t.Errorf("events = %q, want opened by command and closed", got)
		}
	})
}

// One wrong byte without a checksum opens no drawer.
func TestOneStrayENQByteIsNoOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := startDriver(t, host, newStar, nil)
		r.send(0xA0)
		r.send(0x20, 0x20) // nobody asked
		time.Sleep(time.Second)
		r.send(0x20)
		time.Sleep(time.Millisecond)
		r.send(0xA0)
		r.stop()
		if got := host.said(); len(got) != 0 {
			t.Errorf("events = %q, want none", got)
		}
	})
}

func TestStarIsNeverAskedWhenItSpeaksByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := startDriver(t, host, newStar, map[string]any{"status": "auto", "setup": `\x1b\a\x14\x14`})
		time.Sleep(time.Hour)
		r.send(0x0F, 6, 4, 0, 0, 0, 0)
		r.send(0x0F, 6, 0, 0, 0, 0, 0)
		if string(r.sent()) != "\x1b\a\x14\x14" || host.online == 0 {
			t.Errorf("sent % X, online %d, want the setup alone, and online", r.sent(), host.online)
		}
		r.stop()
		if want := []string{"opened/manual/0/"}; !slices.Equal(host.said(), want) {
			t.Errorf("events = %q, want %q", host.said(), want)
		}
	})
}

func TestAnOfflineStarKeepsNoPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startDriver(t, &memoryHost{}, newStar, nil)
		r.send(0xA8) // paper end
		if err := r.opener().Open(t.Context(), sale); !errors.Is(err, drivers.ErrOffline) || r.count([]byte{0x07}) != 0 {
			t.Errorf("Open = %v, sent % X, want ErrOffline and no BEL", err, r.sent())
		}
		r.stop()
	})
}

func TestStarSettingsAreChecked(t *testing.T) {
	for field, settings := range map[string]map[string]any{
		"settings.open":  {"open": ""},
		"settings.setup": {"setup": `\x1`},
	} {
		_, err := newStar(drivers.Spec{ID: "d1", Port: "COM1", Settings: settings}, nil)
		expectFault(t, err, field)
	}
}

func TestASilentStarEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startDriver(t, &memoryHost{}, newStar, map[string]any{"status": "asb"})
		if err := <-r.done; !errors.Is(err, ErrSilent) {
			t.Errorf("Run = %v, want ErrSilent", err)
		}
		if r.count(starAskASB) < 2 {
			t.Errorf("sent % X, want ESC ACK SOH again and again", r.sent())
		}
		r.device.Close()
		if err := r.opener().Open(context.Background(), sale); !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Open = %v, want ErrOffline", err)
		}
	})
}
