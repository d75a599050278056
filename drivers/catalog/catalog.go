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
	Settings []drivers.Setting
	// New makes the driver of one device; it opens nothing. The error is protocol.Faults
	// with all that is wrong with spec. A drawer's driver is a drivers.Opener, a scale's a
	// drivers.Weigher, a scanner's a drivers.Scanner.
	New func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error)
}

// Registry gives all drivers by name.
func Registry() map[string]Entry {
	return map[string]Entry{
		"terabee": {
			Class: drivers.ClassCounter, Serves: "Terabee TeraRanger Evo People Counter, USB or UART",
			Settings: counter.TerabeeSettings(), New: counter.NewTerabee,
		},
		"line": {
			Class: drivers.ClassCounter, Serves: "counters that send lines of text: our own kit, Arduino, light barriers",
			Settings: counter.LineSettings(), New: counter.NewLine,
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

// Check gives all that is wrong with an agent's devices: each Spec, an id twice, a port
// twice, also as the till_port of a tap. Fields begin with devices[i]. It opens nothing.
func Check(specs []drivers.Spec) protocol.Faults {
	var faults protocol.Faults
	registry := Registry()
	ids, ports := map[string]int{}, map[string]int{}
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
			if first, ok := ports[p.port]; ok && p.port != "" && first != i {
				faults.Add(at+p.field, "a port has one owner", "also a port of devices[%d]", first)
			} else {
				ports[p.port] = i
			}
		}
	}
	return faults
}

// Table documents all drivers and their settings in Markdown.
func Table() string {
	var b strings.Builder
	registry := Registry()
	for _, name := range slices.Sorted(maps.Keys(registry)) {
		e := registry[name]
		fmt.Fprintf(&b, "### %s\n\n%s. Class: %s.\n\n| setting | type | default | meaning |\n|---|---|---|---|\n", name, e.Serves, e.Class)
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
