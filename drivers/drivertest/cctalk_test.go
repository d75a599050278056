package drivertest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

const coinWait = 2 * time.Millisecond

// enable takes all coins: 231 FF FF, 228 01.
func enable(t *testing.T, c *client) {
	t.Helper()
	same(t, "all coins", c.ask("02 02 01 E7 FF FF 16", coinWait), "01 00 02 00 FD")
	same(t, "master inhibit off", c.ask("02 01 01 E4 01 17", coinWait), "01 00 02 00 FD")
}

func TestCoinAcceptorAnswersTheVectorsOfItsManual(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a := drivertest.NewCoinAcceptor(drivertest.CoinAcceptorOptions{Path: 1})
		c, _ := attach(t, a.Run, 1)
		same(t, "simple poll", c.ask("02 00 01 FE FF", coinWait), "01 00 02 00 FD")
		same(t, "equipment category", c.ask("02 00 01 F5 08", coinWait), "01 0D 02 00 43 6F 69 6E 20 41 63 63 65 70 74 6F 72 16")
		same(t, "credits after power-up", c.ask("02 00 01 E5 18", coinWait), "01 0B 02 00 00 00 00 00 00 00 00 00 00 00 00 F2")
		same(t, "inhibits after power-up", c.ask("02 00 01 E6 17", coinWait), "01 02 02 00 00 00 FB")
		enable(t, c)
		a.Insert(1)
		a.Insert(3)
		same(t, "two coins", c.ask("02 00 01 E5 18", coinWait), "01 0B 02 00 02 03 01 01 01 00 00 00 00 00 00 EA")
		a.Trouble(1)
		same(t, "and an error", c.ask("02 00 01 E5 18", coinWait), "01 0B 02 00 03 00 01 03 01 01 01 00 00 00 00 E8")
		same(t, "coin 5", c.ask("02 01 01 B8 05 3F", coinWait), "01 06 02 00 45 55 31 30 30 41 8B")
		same(t, "a wrong sum", c.ask("02 00 01 E5 19", time.Second), "")
		same(t, "another address", c.ask("03 00 01 FE FE", time.Second), "")
		same(t, "half a frame", c.ask("02 00 01", time.Second), "")
		same(t, "simple poll again", c.ask("02 00 01 FE FF", coinWait), "01 00 02 00 FD")
	})
}

func TestCoinAcceptorGivesBackWhatItMustNotTake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a := drivertest.NewCoinAcceptor(drivertest.CoinAcceptorOptions{Inhibits: true, Patience: time.Second})
		c, _ := attach(t, a.Run, 1)
		c.ask("02 00 01 E5 18", coinWait)
		if a.Insert(1) {
			t.Error("a coin was kept after power-up")
		}
		same(t, "coins 1 and 2", c.ask("02 02 01 E7 03 00 11", coinWait), "01 00 02 00 FD")
		if a.Insert(1) {
			t.Error("a coin was kept while the master inhibit stands")
		}
		c.ask("02 01 01 E4 01 17", coinWait)
		if !a.Insert(1) || !a.Takes(2) || a.Takes(3) || a.Insert(3) || a.Takes(7) {
			t.Error("the inhibits of coins are not obeyed")
		}
		time.Sleep(2 * time.Second)
		if a.Insert(1) {
			t.Error("a coin was kept though nobody asks for credits")
		}
		c.ask("02 00 01 E5 18", coinWait)
		if !a.Insert(2) {
			t.Error("a coin was given back though somebody asks for credits")
		}
		c.ask("02 00 01 01 FC", coinWait)
		if a.Insert(1) || a.Counter() != 0 {
			t.Errorf("after a reset: counter %d, or a coin was kept", a.Counter())
		}
		if got := a.Truth(); !slices.Equal(got, []int{1, 2}) || a.Returned() != 5 {
			t.Errorf("kept %v, returned %d, want 1 and 2, and 5", got, a.Returned())
		}
	})
}

func TestCoinAcceptorsCounterWrapsToOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a := drivertest.NewCoinAcceptor(drivertest.CoinAcceptorOptions{Echo: true})
		c, _ := attach(t, a.Run, 1)
		a.Preset(255)
		a.Trouble(14)
		same(t, "with echo", c.ask("02 00 01 E5 18", coinWait), "02 00 01 E5 18 01 0B 02 00 01 00 0E 00 00 00 00 00 00 00 00 E3")
	})
}
