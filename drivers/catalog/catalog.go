// Package catalog is the registry of drivers. It stands apart from package drivers because
// it imports every driver, and every driver imports that.
package catalog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/checkout"
	"github.com/storelay/storelay/drivers/counter"
	"github.com/storelay/storelay/drivers/drawer"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// An Entry is one driver.
type Entry struct {
	Class    string // drivers.ClassCounter, drivers.ClassDrawer ...
	Serves   string // what it is for, one line
	Wiring   string // what goes where, and what to set on the device; may be empty
	Emits    string // what it reports, beside the device's state
	Settings []drivers.Setting
	// New makes the driver of one device; it opens nothing. The error is protocol.Faults
	// with all that is wrong with spec. A drawer's driver is a drivers.Opener, a scale's a
	// drivers.Weigher, a scanner's a drivers.Scanner.
	New func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error)
	// Bus is nil for a driver that wants a port for itself. Devices of one driver with a Bus
	// may share a port, when Bus gives the same for all of them.
	Bus func(spec drivers.Spec) serialport.Config
}

// Registry gives all drivers by name. Devices that share a port are to be made from one
// Registry.
func Registry() map[string]Entry {
	buses := &serialport.Buses{}
	return map[string]Entry{
		"terabee": {
			Class: drivers.ClassCounter, Serves: "Terabee TeraRanger Evo People Counter, USB or UART", Emits: emitsCounts,
			Wiring:   "USB, or the UART board at 3.3 V. It loses its totals with its power, so leave it powered.",
			Settings: counter.TerabeeSettings(), New: counter.NewTerabee,
		},
		"line": {
			Class: drivers.ClassCounter, Serves: "counters that send lines of text: our own kit, Arduino, light barriers", Emits: emitsCounts,
			Settings: counter.LineSettings(), New: counter.NewLine,
		},
		"modbus": {
			Class: drivers.ClassCounter, Serves: "pulse counters on Modbus RTU: Wiren Board WB-MCM8, Banner SureCross DX80, Advantech ADAM-4080, Moxa ioLogik R1200, any other by its registers", Emits: emitsCounts,
			Wiring:   "Beam relay to an input of the unit; RS-485 A and B to the PC's adapter, 120 ohm at both ends of a long line. Each unit has its own address. Several devices may share the port, also several doors on one unit.",
			Settings: counter.ModbusSettings(), Bus: counter.ModbusPort,
			New: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
				return counter.NewModbus(spec, open, buses)
			},
		},
		"lines": {
			Class: drivers.ClassCounter, Serves: "contacts on the lines CTS, DSR, DCD and RI of a serial port: the relay of a beam, a mat, a turnstile", Emits: emitsCounts,
			Wiring:   "Contact between RTS or DTR, which the port holds on, and the input line; never a foreign voltage. Two beams side by side give the direction. Nothing is counted while the agent is off.",
			Settings: counter.LinesSettings(), New: counter.NewLines,
		},
		"pointsix": {
			Class: drivers.ClassCounter, Serves: "Point Six IR Point Sensors behind a Point Host receiver", Emits: emitsCounts + "; one beam, both ways",
			Wiring:   "The receiver's RS-232 or RS-485 to the PC. The notes on the status page name the serial numbers that are heard.",
			Settings: counter.PointSixSettings(), New: counter.NewPointSix,
		},
		"turnstile": {
			Class: drivers.ClassCounter, Serves: "Digicon turnstiles Tx1500 and CATRAX Master", Emits: emitsCounts,
			Wiring:   "RS-232 of the control board. Passages alone are read, no command is sent; nothing is counted while the agent is off.",
			Settings: counter.TurnstileSettings(), New: counter.NewTurnstile,
		},
		"escpos": {
			Class: drivers.ClassDrawer, Serves: "cash drawer at an ESC/POS receipt printer whose port the agent owns, or, with till_port, between the till and the printer",
			Settings: drawer.ESCPOSSettings(), New: drawer.NewESCPOS,
		},
		"star": {
			Class: drivers.ClassDrawer, Serves: "cash drawer at a Star receipt printer (line mode) whose port the agent owns",
			Settings: drawer.StarSettings(), New: drawer.NewStar,
		},
		"serialdrawer": {
			Class: drivers.ClassDrawer, Serves: "cash drawer on a serial port of its own: APG, M-S/MMF, IBM/Toshiba SurePOS, or a relay on RTS or DTR",
			Settings: drawer.SerialSettings(), New: drawer.NewSerial,
		},
		"scale": {
			Class: drivers.ClassScale, Serves: "checkout scale with the Toledo 8217 protocol; weighs when a till asks",
			Settings: checkout.ScaleSettings(), New: checkout.NewScale,
		},
		"scanner": {
			Class: drivers.ClassScanner, Serves: "bar code scanner on a serial port that sends lines",
			Settings: checkout.ScannerSettings(), New: checkout.NewScanner,
		},
		"cctalk": {
			Class: drivers.ClassCoins, Serves: "coin acceptor on a ccTalk line, for self-checkouts and lockers",
			Settings: checkout.CoinSettings(), New: checkout.NewCoinAcceptor,
		},
	}
}

const emitsCounts = "footfall counts: people in and out per interval, and how good the numbers are"

// Check gives all that is wrong with an agent's devices: each Spec, an id twice, a port
// twice, also as the till_port of a tap. Fields begin with devices[i]. It opens nothing.
func Check(specs []drivers.Spec) protocol.Faults {
	var faults protocol.Faults
	registry := Registry()
	ids, ports := map[string]int{}, map[string][]int{}
	for i, spec := range specs {
		at := fmt.Sprintf("devices[%d]", i)
		entry, ok := registry[spec.Driver]
		if !ok {
			faults.Add(at+".driver", "known: "+strings.Join(slices.Sorted(maps.Keys(registry)), ", "), "unknown driver %q", spec.Driver)
		} else if _, err := entry.New(spec, nil); err != nil {
			var found protocol.Faults
			if !errors.As(err, &found) {
				found = protocol.Faults{{Problem: err.Error()}}
			}
			for _, f := range found {
				f.Field = at + "." + f.Field
				faults = append(faults, f)
			}
		}
		if first, ok := ids[spec.ID]; ok && spec.ID != "" {
			faults.Add(at+".id", "", "also the id of devices[%d]", first)
		} else {
			ids[spec.ID] = i
		}
		second, _ := spec.Settings["till_port"].(string)
		for _, p := range []struct{ field, port string }{{".port", spec.Port}, {".settings.till_port", second}} {
			if p.port == "" {
				continue
			}
			for _, other := range ports[p.port] {
				if problem, hint := sharing(registry, specs[other], spec); problem != "" && other != i {
					faults.Add(at+p.field, hint, "%s devices[%d]", problem, other)
					break
				}
			}
			ports[p.port] = append(ports[p.port], i)
		}
	}
	return faults
}

// sharing says why two devices cannot have one port; "" when they can.
func sharing(registry map[string]Entry, a, b drivers.Spec) (problem, hint string) {
	bus := registry[a.Driver].Bus
	switch {
	case bus == nil || a.Driver != b.Driver:
		return "also the port of", "a port has one owner"
	case bus(a) != bus(b):
		return "other line settings on the port of", "devices on one bus have the same baud, data_bits, parity, stop_bits, dtr and rts; a profile may say them too"
	}
	return "", ""
}

// Table documents all drivers and their settings in Markdown.
func Table() string {
	var b strings.Builder
	registry := Registry()
	for _, name := range slices.Sorted(maps.Keys(registry)) {
		e := registry[name]
		fmt.Fprintf(&b, "### %s\n\n%s. Class: %s.\n\n", name, e.Serves, e.Class)
		if e.Emits != "" {
			fmt.Fprintf(&b, "Emits %s.\n\n", e.Emits)
		}
		if e.Wiring != "" {
			fmt.Fprintf(&b, "%s\n\n", e.Wiring)
		}
		fmt.Fprintf(&b, "| setting | type | default | meaning |\n|---|---|---|---|\n")
		for _, s := range e.Settings {
			kind := string(s.Type)
			if s.Type == drivers.TypeChoice {
				choices := slices.Clone(s.Choices)
				for i, c := range choices {
					if c == "" {
						choices[i] = "unset"
					}
				}
				kind = strings.Join(choices, ", ")
			}
			value := fmt.Sprint(s.Default)
			if value == "" {
				value = "unset"
			}
			fmt.Fprintf(&b, "| %s | %s | `%s` | %s |\n", s.Name, kind, escape(value), escape(s.Help))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
