//go:build linux

package drivertest_test

import (
	"testing"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/catalog"
	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/drivers/serialport"
)

// create makes a driver of the catalogue on a real port.
func create(spec drivers.Spec) (drivers.Driver, error) {
	return catalog.Registry()[spec.Driver].New(spec, serialport.Open)
}

func TestEDG02TerabeeDriver(t *testing.T) {
	for name, short := range map[string]bool{"15-byte frames": false, "11-byte frames": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drivertest.CounterConformance(t, drivertest.CounterSuite{
				New:  create,
				Spec: drivers.Spec{ID: "door", Driver: "terabee", Settings: map[string]any{"interval": "1s"}},
				Device: func(seed uint64) drivertest.CounterDevice {
					return drivertest.NewTerabee(drivertest.TerabeeOptions{Short: short, Seed: seed})
				},
			})
		})
	}
}

func TestEDG02LineDriver(t *testing.T) {
	for name, settings := range map[string]map[string]any{
		"unasked": {"interval": "1s"},
		"polled":  {"interval": "1s", "poll": "R\r\n", "poll_interval": "200ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drivertest.CounterConformance(t, drivertest.CounterSuite{
				New:  create,
				Spec: drivers.Spec{ID: "door", Driver: "line", Settings: settings},
				Device: func(uint64) drivertest.CounterDevice {
					return drivertest.NewLineCounter(drivertest.LineCounterOptions{})
				},
			})
		})
	}
}

func TestEDG03ESCPOSDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		low      bool
		settings map[string]any
	}{
		"open is high, kick in the print queue": {false, map[string]any{"open_level": "high"}},
		"open is low, real-time kick":           {true, map[string]any{"open_level": "low", "realtime": true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drivertest.DrawerConformance(t, drivertest.DrawerSuite{
				New:  create,
				Spec: drivers.Spec{ID: "drawer", Driver: "escpos", Settings: tt.settings},
				Device: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewPrinter(drivertest.PrinterOptions{OpenLow: tt.low})
				},
				NoSwitch: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewPrinter(drivertest.PrinterOptions{NoSwitch: true, OpenLow: tt.low})
				},
				Noise: []byte{0x84, 0x8F, 0xA5, 0xF7, 0xFF}, // bit 7 is in no answer of a printer
			})
		})
	}
}
