package drivertest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

const scaleWait = 20 * time.Millisecond

func TestScaleSaysWeightsAndWhyThereIsNone(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts drivertest.ScaleOptions
		do   func(*drivertest.Scale)
		want string
	}{
		{"1.250 kg", drivertest.ScaleOptions{}, func(s *drivertest.Scale) { s.Place(1250) }, "\x0201.250\r"},
		{"2.25 lb", drivertest.ScaleOptions{Decimals: 2}, func(s *drivertest.Scale) { s.Place(2250) }, "\x02002.25\r"},
		{"nothing", drivertest.ScaleOptions{}, func(*drivertest.Scale) {}, "\x0200.000\r"},
		{"center of zero", drivertest.ScaleOptions{Zero: true}, func(*drivertest.Scale) {}, "\x02?\x50\r"},
		{"in motion", drivertest.ScaleOptions{}, func(s *drivertest.Scale) { s.SetMoving(true) }, "\x02?\x41\r"},
		{"over capacity", drivertest.ScaleOptions{}, func(s *drivertest.Scale) { s.Place(15001) }, "\x02?\x42\r"},
		{"under zero", drivertest.ScaleOptions{}, func(s *drivertest.Scale) { s.Place(-5) }, "\x02?\x44\r"},
		{"switched on with a load", drivertest.ScaleOptions{}, func(s *drivertest.Scale) { s.Place(5000); s.PowerCycle() }, "\x02?\x48\r"},
		{"load taken off again", drivertest.ScaleOptions{}, func(s *drivertest.Scale) { s.Place(5000); s.PowerCycle(); s.Place(0) }, "\x0200.000\r"},
		{"parity bits", drivertest.ScaleOptions{ParityBit: true}, func(s *drivertest.Scale) { s.Place(1000) }, "\x82\x30\xB1\x2E\x30\x30\x30\x8D"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := drivertest.NewScale(tt.opts)
				c, _ := attach(t, s.Run, 1)
				tt.do(s)
				c.send("57")
				time.Sleep(scaleWait - time.Nanosecond)
				if got := c.bytes(); len(got) != 0 {
					t.Errorf("an answer before its time: %q", got)
				}
				time.Sleep(time.Nanosecond)
				if got := string(c.bytes()); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		})
	}
}

func TestScaleTaresZeroesAndEchoes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewScale(drivertest.ScaleOptions{})
		c, _ := attach(t, s.Run, 1)
		s.Place(200)
		same(t, "tare, then weight", c.ask("54 57", scaleWait), "02 30 30 2E 30 30 30 4E 0D")
		s.Place(700)
		same(t, "net", c.ask("57", scaleWait), "02 30 30 2E 35 30 30 4E 0D")
		same(t, "tare cleared", c.ask("43 57", scaleWait), "02 30 30 2E 37 30 30 0D")
		s.Place(3)
		same(t, "zeroed", c.ask("5A 57", scaleWait), "02 30 30 2E 30 30 30 0D")
		same(t, "echo", c.ask("45 68 65 6C 6C 6F 0D", 0), "02 45 0D 68 65 6C 6C 6F 0D")
		same(t, "W while it echoes", c.ask("57", time.Second), "57")
		same(t, "echo off", c.ask("46", 0), "02 46 0D")
		begins(t, "W after it", c.ask("57", scaleWait), "02 30 30")
	})
}

func TestScaleSpoilsAnswersByParity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewScale(drivertest.ScaleOptions{})
		c, _ := attach(t, s.Run, 1)
		s.SetBadParity(100)
		for range 50 {
			if got := c.ask("57", scaleWait); strings.Count(got+" ", "00 ") != 1 {
				t.Fatalf("got %q, want one NUL", got)
			}
		}
		if s.Spoiled() != 50 || s.Asked() != 50 {
			t.Errorf("%d of %d answers spoiled, want 50 of 50", s.Spoiled(), s.Asked())
		}
	})
}

func TestScannerSaysCodesAsLines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := drivertest.NewScanner(drivertest.ScannerOptions{Prefix: "]E0", Suffix: "\t"})
		c, _ := attach(t, s.Run, 1)
		s.Scan("7350053850019")
		s.Say("half")
		if got := string(c.bytes()); got != "]E07350053850019\thalf" {
			t.Errorf("got %q", got)
		}
		plain := drivertest.NewScanner(drivertest.ScannerOptions{})
		plain.Scan("lost")
		c, _ = attach(t, plain.Run, 1)
		plain.Scan("x")
		if got := string(c.bytes()); got != "x\r\n" || strings.Join(plain.Truth(), " ") != "lost x" {
			t.Errorf("got %q, truth %q", got, plain.Truth())
		}
	})
}
