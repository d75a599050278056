package drivertest_test

import (
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

func TestPointSixSaysTheVectorOfItsManual(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewPointSix(drivertest.PointSixOptions{Every: time.Second})
		c, _ := attach(t, s.Run, 1)
		s.Walk(12000, 345)
		s.SetBlocked(false, 16)
		packet := func(what, want string) {
			t.Helper()
			c.bytes()
			time.Sleep(time.Second)
			if got := string(c.bytes()); got != want {
				t.Errorf("%s: got %q, want %q", what, got, want)
			}
		}
		packet("12345 objects", "110001E241393000001000CB940D\r")
		packet("again the same", "110001E241393000001000CB940D\r")
		if got, want := s.Truth(), (drivertest.Passages{In: 12345}); got != want {
			t.Errorf("truth is %+v, want %+v", got, want)
		}
	})
}

func TestPointSixWarnsWrapsAndSumsUpText(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewPointSix(drivertest.PointSixOptions{Every: time.Second, TextSum: true, Neighbours: 1})
		c, _ := attach(t, s.Run, 1)
		s.NearWrap(2, 0)
		s.Walk(2, 3)
		s.SetBlocked(true, 0x0102)
		s.SetFringe(9)
		s.SetService(true)
		time.Sleep(time.Second)
		got := string(c.bytes())
		if len(got) != 58 || got[:8] != "110001E2" {
			t.Fatalf("got %q, want two packets, the neighbour's first", got)
		}
		same(t, "service, blocked, 3 objects, fringe 9, 258 s", got[29:51], "100001E240030000090201")
		var sum byte
		for _, b := range []byte(got[29:55]) {
			sum += b
		}
		if want := "0123456789ABCDEF"; got[55] != want[sum>>4] || got[56] != want[sum&15] {
			t.Errorf("sum of the characters is %02X, packet says %s", sum, got[55:57])
		}
		s.PowerCycle()
		if got := s.Totals(); got != (drivertest.Passages{}) {
			t.Errorf("after the button: %+v, want none", got)
		}
	})
}

func TestTurnstileSaysTheVectorsOfItsManual(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewTurnstile(drivertest.TurnstileOptions{})
		c, _ := attach(t, s.Run, 1)
		s.Walk(1, 0)
		same(t, "in", c.took(), "02 02 00 1B 1B")
		s.Walk(0, 1)
		same(t, "out", c.took(), "02 02 00 1A 1A")
		same(t, "ACK", c.ask("02 02 00 06 06", time.Minute), "")
		same(t, "release", c.ask("02 02 00 48 48", 0), "02 02 00 06 06")
		same(t, "a wrong check", c.ask("02 02 00 48 49", 0), "02 02 00 15 15")
		same(t, "noise before a release", c.ask("FF 02 FF FF 02 02 00 48 48", 0), "02 02 00 06 06")
		if s.Released() != 2 || s.Acked() != 1 || s.Refused() != 1 {
			t.Errorf("released %d, acknowledged %d, refused %d, want 2, 1, 1", s.Released(), s.Acked(), s.Refused())
		}
		mirrored := drivertest.NewTurnstile(drivertest.TurnstileOptions{InRightToLeft: true})
		c, _ = attach(t, mirrored.Run, 1)
		mirrored.Walk(1, 0)
		same(t, "in from right to left", c.took(), "02 02 00 1A 1A")
	})
}

func TestTurnstileMaySayAnEventAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewTurnstile(drivertest.TurnstileOptions{Resend: time.Second})
		c, _ := attach(t, s.Run, 1)
		s.Walk(1, 1)
		time.Sleep(1500 * time.Millisecond)
		same(t, "not acknowledged", c.took(), "02 02 00 1B 1B 02 02 00 1B 1B")
		same(t, "refused", c.ask("02 02 00 15 15", 0), "02 02 00 1B 1B")
		same(t, "acknowledged", c.ask("02 02 00 06 06", 0), "02 02 00 1A 1A")
		c.ask("02 02 00 06 06", 0)
		time.Sleep(time.Minute)
		same(t, "after that", c.took(), "")
	})
}
