package drivertest_test

import (
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

func TestStarSaysTheVectorsOfItsManual(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewStar(drivertest.StarOptions{})
		c, _ := attach(t, p.Run, 1)
		same(t, "closed", c.ask("1B 06 01", 0), "0F 06 04 00 00 00 00")
		same(t, "ENQ, closed", c.ask("05", 0), "A0")
		same(t, "EOT", c.ask("04", 0), "10")
		same(t, "before it moves", c.ask("07", 149*time.Millisecond), "")
		time.Sleep(time.Millisecond)
		same(t, "open", c.ask("1B 06 01", 0), "0F 06 00 00 00 00 00")
		same(t, "ENQ, open", c.ask("05", 0), "20")
		same(t, "automatic status at once", c.ask("1B 1E 61 01", 0), "0F 06 00 00 00 00 00")
		p.PushIn()
		same(t, "pushed in", c.took(), "0F 06 04 00 00 00 00")
		p.SetCover(true)
		same(t, "cover open", c.took(), "0F 06 2C 00 00 00 00")
		p.SetCover(false)
		c.took()
		same(t, "forbidden while it is on", c.ask("05 04 1B 06 01", time.Second), "")
		c.ask("1B 1E 61 00", 0)
		p.KeyOpen()
		same(t, "off again", c.took(), "")
	})
}

func TestStarLengthsPolarityAndMissingSwitch(t *testing.T) {
	for _, tt := range []struct {
		name         string
		opts         drivertest.StarOptions
		closed, open string
	}{
		{"8 bytes", drivertest.StarOptions{Size: 8}, "21 06 04 00 00 00 00 00", "21 06 00 00 00 00 00 00"},
		{"9 bytes", drivertest.StarOptions{Size: 9}, "23 06 04 00 00 00 00 00 00", "23 06 00 00 00 00 00 00 00"},
		{"open is high", drivertest.StarOptions{OpenHigh: true}, "0F 06 00 00 00 00 00", "0F 06 04 00 00 00 00"},
		{"no switch", drivertest.StarOptions{NoSwitch: true}, "0F 06 04 00 00 00 00", "0F 06 04 00 00 00 00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := drivertest.NewStar(tt.opts)
				c, _ := attach(t, p.Run, 1)
				same(t, "closed", c.ask("1B 06 01", 0), tt.closed)
				p.KeyOpen()
				same(t, "open", c.ask("1B 06 01", 0), tt.open)
			})
		})
	}
}

func TestStarKicksItsDevices(t *testing.T) {
	for _, tt := range []struct {
		name, send string
		device     int
		opens      bool
	}{
		{"BEL", "07", 1, true},
		{"BEL, device 2", "07", 2, false},
		{"FS", "1C", 1, true},
		{"SUB", "1A", 2, true},
		{"EM", "19", 2, true},
		{"ESC GS BEL 1", "1B 1D 07 01 0A 0A", 1, true},
		{"ESC GS BEL 2", "1B 1D 07 02 0A 0A", 1, false},
		{"pulse and BEL", "1B 07 14 14 07", 1, true},
		{"pulse alone", "1B 07 07 07", 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := drivertest.NewStar(drivertest.StarOptions{Device: tt.device})
				c, _ := attach(t, p.Run, 1)
				c.ask(tt.send, time.Second)
				if p.Opened() != tt.opens || p.Printed() != "" {
					t.Errorf("open %t, printed %q, want open %t", p.Opened(), p.Printed(), tt.opens)
				}
			})
		})
	}
}

func TestStarKickWaitsBehindTextAndPaper(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := drivertest.NewStar(drivertest.StarOptions{PerByte: 100 * time.Millisecond})
		c, _ := attach(t, p.Run, 1)
		c.ask("41 42 07", 340*time.Millisecond)
		if p.Opened() {
			t.Error("the kick did not wait for 2 bytes of text")
		}
		time.Sleep(11 * time.Millisecond)
		if !p.Opened() || p.Printed() != "AB" {
			t.Errorf("after the text: open %t, printed %q", p.Opened(), p.Printed())
		}
		p.PushIn()
		p.SetPaperEnd(true)
		same(t, "ENQ without paper, kick waiting", c.ask("07 05", time.Minute), "88")
		p.SetPaperEnd(false)
		time.Sleep(time.Second)
		if !p.Opened() {
			t.Error("the kick did not come with the paper")
		}
		p.PushIn()
		p.SetJammed(true)
		c.ask("07", time.Second)
		if p.Opened() || len(p.Truth()) != 4 {
			t.Errorf("jammed: open %t, movements %+v", p.Opened(), p.Truth())
		}
	})
}
