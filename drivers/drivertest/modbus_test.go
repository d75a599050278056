package drivertest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

func TestModbusCounterAnswersTheVectorsOfItsManual(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{})
		c, _ := attach(t, u.Run, 1)
		u.Walk(70000, 69950)
		same(t, "two counters", c.ask("01 04 00 3C 00 04 31 C5", 0), "01 04 08 00 01 11 70 00 01 11 3E AA 07")
		same(t, "inputs", c.ask("01 02 00 00 00 08 79 CC", 0), "01 02 01 00 A1 88")
		begins(t, "uptime of a day", c.ask("01 04 00 68 00 02 F0 17", 0), "01 04 04 00 01 51 80")
		begins(t, "signature", c.ask("01 04 00 C8 00 07 30 36", 0), "01 04 0E 00 57 00 42 00 4D 00 43 00 4D 00 38 00 00")
		same(t, "reset of all counters", c.ask("01 06 00 64 00 01 09 D5", 0), "01 06 00 64 00 01 09 D5")
		begins(t, "counters after it", c.ask("01 04 00 3C 00 04 31 C5", 0), "01 04 08 00 00 00 00 00 00 00 00")
		if got, want := u.Truth(), (drivertest.Passages{In: 70000, Out: 69950}); got != want {
			t.Errorf("truth after a reset is %+v, want %+v", got, want)
		}
	})
}

func TestModbusMapsHaveTheirRegisters(t *testing.T) {
	for _, tt := range []struct {
		name         string
		opts         drivertest.ModbusCounterOptions
		request, say string
	}{
		{"DX80, node 1", drivertest.ModbusCounterOptions{Map: drivertest.MapDX80},
			"01 03 00 12 00 04 E4 0C", "01 03 08 00 01 00 02 00 00 00 03"},
		{"ADAM-4080", drivertest.ModbusCounterOptions{Map: drivertest.MapADAM4080},
			"01 03 00 00 00 04 44 09", "01 03 08 00 01 00 02 00 00 00 03"},
		{"ADAM-4080, low word first", drivertest.ModbusCounterOptions{Map: drivertest.MapADAM4080, LowWordFirst: true},
			"01 03 00 00 00 04 44 09", "01 03 08 00 02 00 01 00 03 00 00"},
		{"ioLogik", drivertest.ModbusCounterOptions{Map: drivertest.MapIOLogik},
			"01 04 00 10 00 04 F0 0C", "01 04 08 00 01 00 02 00 00 00 03"},
		{"16 bits", drivertest.ModbusCounterOptions{Map: drivertest.MapFree, Free: drivertest.ModbusFree{Holding: true, In: 0, Out: 1, Bits: 16}},
			"01 03 00 00 00 02 C4 0B", "01 03 04 00 02 00 03"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				u := drivertest.NewModbusCounter(tt.opts)
				c, _ := attach(t, u.Run, 1)
				u.Walk(0x10002, 3)
				if got := c.ask(tt.request, 0); !strings.HasPrefix(got, tt.say) {
					t.Errorf("got %q, want %q", got, tt.say)
				}
			})
		})
	}
}

func TestModbusCounterStopsAndClears(t *testing.T) {
	bubble(t, func(t *testing.T) {
		adam := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{Map: drivertest.MapADAM4080})
		c, _ := attach(t, adam.Run, 1)
		adam.Walk(5, 5)
		same(t, "stop counter 0", c.ask("01 05 00 20 00 00 CC 00", 0), "01 05 00 20 00 00 CC 00")
		adam.Walk(2, 2)
		if got, want := adam.Totals(), (drivertest.Passages{In: 5, Out: 7}); got != want {
			t.Errorf("totals with counter 0 stopped are %+v, want %+v", got, want)
		}
		c.ask("01 05 00 20 FF 00 8D F0", 0)
		adam.Walk(1, 0)
		if got := adam.Totals().In; got != 6 {
			t.Errorf("started again: %d, want 6", got)
		}
		node := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{Map: drivertest.MapDX80})
		c, _ = attach(t, node.Run, 1)
		node.Walk(5, 4)
		c.ask("01 06 00 1A 00 01 69 CD", 0) // register 27 = 11+16
		if got, want := node.Totals(), (drivertest.Passages{Out: 4}); got != want {
			t.Errorf("totals after clearing count 1 are %+v, want %+v", got, want)
		}
	})
}

func TestModbusCounterRefusesByException(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{})
		c, _ := attach(t, u.Run, 1)
		begins(t, "function 7", c.ask("01 07 00 00 00 00 B4 0A", 0), "01 87 01")
		begins(t, "a hole", c.ask("01 04 00 4C 00 01 F0 1D", 0), "01 84 02")
		begins(t, "no registers", c.ask("01 04 00 3C 00 00 30 06", 0), "01 84 03")
		begins(t, "debounce of 2001 ms", c.ask("01 06 00 14 07 D1 0B A2", 0), "01 86 03")
		same(t, "a bad CRC", c.ask("01 04 00 3C 00 04 31 C6", 0), "")
		same(t, "another unit", c.ask("02 04 00 3C 00 04 31 F6", 0), "")
		same(t, "everybody", c.ask("00 06 00 64 00 01 08 04", 0), "")
		same(t, "write two debounces", c.ask("01 10 00 14 00 02 04 00 64 00 C8 B3 19", 0), "01 10 00 14 00 02 01 CC")
		begins(t, "read them", c.ask("01 03 00 14 00 02 84 0F", 0), "01 03 04 00 64 00 C8")
	})
}

func TestModbusRequestMayComeInPieces(t *testing.T) {
	bubble(t, func(t *testing.T) {
		u := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{})
		c, _ := attach(t, u.Run, 1)
		same(t, "half a request", c.ask("01 04 00 3C", 20*time.Millisecond), "")
		begins(t, "its end", c.ask("00 04 31 C5", 0), "01 04 08")
		same(t, "half a request", c.ask("01 04 00 3C", time.Second), "")
		same(t, "its end after a second", c.ask("00 04 31 C5", time.Second), "")
		begins(t, "another after a silence", c.ask("01 04 00 3C 00 04 31 C5", 0), "01 04 08")
	})
}

func TestModbusUnitsOfABusAnswerEachForItself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		one := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{})
		two := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{Unit: 2})
		c, _ := attach(t, drivertest.NewModbusBus(20*time.Millisecond, one, two).Run, 1)
		one.Walk(1, 0)
		two.Walk(2, 0)
		askOne, askTwo := "01 04 00 3C 00 02 B1 C7", "02 04 00 3C 00 02 B1 F4"
		begins(t, "unit 1", c.ask(askOne, time.Second), "01 04 04 00 00 00 01")
		begins(t, "unit 2", c.ask(askTwo, 0), "02 04 04 00 00 00 02")
		same(t, "at once after an answer", c.ask(askOne, time.Second), "")
		one.SetTrouble(drivertest.ModbusTrouble{Dead: true})
		same(t, "unit 1, dead", c.ask(askOne, time.Second), "")
		begins(t, "unit 2 beside it", c.ask(askTwo, time.Second), "02 04 04 00 00 00 02")
		one.SetTrouble(drivertest.ModbusTrouble{Slow: 300 * time.Millisecond})
		same(t, "unit 1, slow", c.ask(askOne, 299*time.Millisecond), "")
		if got := c.ask(askTwo, time.Second); !strings.HasPrefix(got, "02 04 04 00 00 00 02") || !strings.Contains(got, "01 04 04 00 00 00 01") {
			t.Errorf("unit 2 and the late answer of unit 1: got %q", got)
		}
		if one.Asked() != 3 || two.Asked() != 3 {
			t.Errorf("asked %d and %d times, want 3 and 3", one.Asked(), two.Asked())
		}
	})
}

func TestModbusTroublesHaveGoodChecksumsAndWrongAnswers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		trouble drivertest.ModbusTrouble
		answer  string
	}{
		{"another unit", drivertest.ModbusTrouble{As: 7}, "07 04 04 5A 5A 5A 5B"},
		{"another function", drivertest.ModbusTrouble{Function: 3}, "01 03 04 5A 5A 5A 5B"},
		{"short", drivertest.ModbusTrouble{Short: true}, "01 04 02 00 00"},
		{"busy", drivertest.ModbusTrouble{Exception: 6}, "01 84 06"},
		{"every second", drivertest.ModbusTrouble{Dead: true, Every: 2}, "01 04 04 00 00 00 01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				u := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{})
				c, _ := attach(t, u.Run, 1)
				u.Walk(1, 0)
				u.SetTrouble(tt.trouble)
				if got := c.ask("01 04 00 3C 00 02 B1 C7", 0); !strings.HasPrefix(got, tt.answer) || len(got) != len(tt.answer)+6 {
					t.Errorf("got %q, want %q and a CRC", got, tt.answer)
				}
			})
		})
	}
}

func TestModbusRegistersWrapResetAndRetain(t *testing.T) {
	u := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{})
	u.NearWrap(2, 1)
	if got, want := u.Totals(), (drivertest.Passages{In: 1<<32 - 2, Out: 1<<32 - 1}); got != want {
		t.Errorf("near the wrap: %+v, want %+v", got, want)
	}
	u.Walk(5, 1)
	if got, want := u.Totals(), (drivertest.Passages{In: 3, Out: 0}); got != want {
		t.Errorf("after it: %+v, want %+v", got, want)
	}
	u.PowerCycle()
	if got := u.Totals(); got != (drivertest.Passages{}) {
		t.Errorf("after a power cycle: %+v, want none", got)
	}
	small := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{Retain: true, Map: drivertest.MapFree, Free: drivertest.ModbusFree{Out: 1, Bits: 16}})
	small.NearWrap(1, 1)
	small.Walk(4, 3)
	small.PowerCycle()
	if got, want := small.Totals(), (drivertest.Passages{In: 3, Out: 2}); got != want {
		t.Errorf("16 bits, retained: %+v, want %+v", got, want)
	}
}
