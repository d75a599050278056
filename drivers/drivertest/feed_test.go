package drivertest

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// Whatever a driver sends, in whatever pieces, no simulator falls over or keeps it for ever.
// (Not a fuzz target: timers make a simulator's coverage differ from run to run.)
func TestSimulatorsTakeAnyBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 8))
	good := [][]byte{
		[]byte("\x01\x04\x00\x3C\x00\x04\x31\xC5"), []byte("\x01\x10\x00\x14\x00\x02\x04\x00\x64\x00\xC8\xB3\x19"),
		[]byte("\x02\x02\x00\x48\x48"), []byte("\x02\x00\x01\xE5\x18"), []byte("\x02\x01\x01\xB8\x05\x3F"),
		[]byte("\x1Dv0\x00\x02\x00\x02\x00abcd"), []byte("\x1Bp\x00\x32\x32"), []byte("\x10\x04\x01"), []byte("\x1B\x1Ea\x01"), []byte("EW F"),
	}
	for range 3000 {
		unit := NewModbusCounter(ModbusCounterOptions{})
		turnstile, coins := NewTurnstile(TurnstileOptions{}), NewCoinAcceptor(CoinAcceptorOptions{Echo: true})
		star, scale := NewStar(StarOptions{}), NewScale(ScaleOptions{})
		ibm, printer := NewSerialDrawer(SerialDrawerOptions{Kind: IBMDrawer}), NewPrinter(PrinterOptions{})
		feeds := []func([]byte){unit.bus.feed, turnstile.feed, coins.feed, star.feed, scale.feed, ibm.feed, printer.feed}
		for range 20 {
			data := bytes.Clone(good[rng.IntN(len(good))])
			for range rng.IntN(4) {
				switch at := rng.IntN(len(data)); rng.IntN(3) {
				case 0:
					data[at] = byte(rng.Uint32())
				case 1:
					data = append(data[:at:at], append([]byte{byte(rng.Uint32())}, data[at:]...)...)
				case 2:
					data = append(data, data[at:]...)
				}
			}
			cut := rng.IntN(len(data))
			for _, feed := range feeds {
				feed(data[:cut])
				feed(data[cut:])
			}
		}
		for name, n := range map[string]int{"modbus": len(unit.bus.pending), "turnstile": len(turnstile.pending),
			"coins": len(coins.pending), "star": len(star.unread), "serial drawer": len(ibm.tail)} {
			if n > 300 {
				t.Errorf("%s keeps %d bytes of a command", name, n)
			}
		}
	}
}
