//go:build linux

package drivertest_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/catalog"
	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// create makes a driver of the catalogue on a real port.
func create(spec drivers.Spec) (drivers.Driver, error) {
	return catalog.Registry()[spec.Driver].New(spec, serialport.Open)
}

// inMemory makes the same driver on a port in memory: in virtual time, and with modem lines.
func inMemory(driver string) drivertest.NewDriverOn { return catalog.Registry()[driver].New }

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

// modbusTrouble is a Trouble of a Modbus unit.
func modbusTrouble(name string, what drivertest.ModbusTrouble) drivertest.Trouble[drivertest.CounterDevice] {
	return drivertest.Trouble[drivertest.CounterDevice]{Name: name, Set: func(device drivertest.CounterDevice, on bool) {
		now := drivertest.ModbusTrouble{}
		if on {
			now = what
		}
		device.(interface {
			SetTrouble(drivertest.ModbusTrouble)
		}).SetTrouble(now)
	}}
}

func TestEDG02ModbusDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		unit     drivertest.ModbusCounterOptions
		settings map[string]any
	}{
		"WB-MCM8":                        {drivertest.ModbusCounterOptions{}, map[string]any{"profile": "wb-mcm8"}},
		"WB-MCM8, reset before its wrap": {drivertest.ModbusCounterOptions{}, map[string]any{"profile": "wb-mcm8", "reset": "write", "reset_above": 50}},
		"a unit that keeps its totals":   {drivertest.ModbusCounterOptions{Retain: true, Unit: 247}, map[string]any{"profile": "wb-mcm8", "unit": 247, "keeps_totals": "yes"}},
		"DX80, node 3":                   {drivertest.ModbusCounterOptions{Map: drivertest.MapDX80, Node: 3}, map[string]any{"profile": "banner-dx80", "in_channel": 5, "out_channel": 6}},
		"ADAM-4080":                      {drivertest.ModbusCounterOptions{Map: drivertest.MapADAM4080, LowWordFirst: true}, map[string]any{"profile": "adam-4080"}},
		"ADAM-4080, high word first":     {drivertest.ModbusCounterOptions{Map: drivertest.MapADAM4080}, map[string]any{"profile": "adam-4080", "word_order": "high-first"}},
		"ioLogik":                        {drivertest.ModbusCounterOptions{Map: drivertest.MapIOLogik}, map[string]any{"profile": "moxa-iologik"}},
		"free, 16 bits": {drivertest.ModbusCounterOptions{Map: drivertest.MapFree, Free: drivertest.ModbusFree{Holding: true, In: 500, Out: 7, Bits: 16, Uptime: 40}},
			map[string]any{"in_register": 500, "out_register": 7, "width": 16, "uptime_register": 40}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := map[string]any{"out_channel": 2, "interval": "1s", "poll_interval": "100ms", "timeout": "150ms", "pause": "5ms"}
			maps.Copy(settings, tt.settings)
			drivertest.CounterConformance(t, drivertest.CounterSuite{
				New:  create,
				Spec: drivers.Spec{ID: "door", Driver: "modbus", Settings: settings},
				Device: func(uint64) drivertest.CounterDevice {
					other := drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{Unit: 9})
					unit := drivertest.NewModbusCounter(tt.unit)
					return drivertest.NewModbusBus(2*time.Millisecond, other, unit).Counter(unit)
				},
				Troubles: []drivertest.Trouble[drivertest.CounterDevice]{
					modbusTrouble("wrong unit answers", drivertest.ModbusTrouble{As: 9, Every: 2}),
					modbusTrouble("wrong function", drivertest.ModbusTrouble{Function: 1, Every: 2}),
					modbusTrouble("short answers", drivertest.ModbusTrouble{Short: true, Every: 2}),
					modbusTrouble("busy", drivertest.ModbusTrouble{Exception: 6}),
					modbusTrouble("slow answers", drivertest.ModbusTrouble{Slow: 160 * time.Millisecond, Every: 3}),
					modbusTrouble("dead", drivertest.ModbusTrouble{Dead: true}),
				},
			})
		})
	}
}

// Three units on one line, one of them dead: each of the others loses nobody, whatever the
// line does.
func TestEDG02ModbusUnitsOnOneBus(t *testing.T) {
	pty, err := drivertest.OpenPty(filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	units := map[int]*drivertest.ModbusCounter{}
	for unit := 1; unit <= 3; unit++ {
		units[unit] = drivertest.NewModbusCounter(drivertest.ModbusCounterOptions{Unit: byte(unit)})
	}
	units[2].SetTrouble(drivertest.ModbusTrouble{Dead: true})
	bus := drivertest.NewModbusBus(2*time.Millisecond, units[1], units[2], units[3])
	line := drivertest.NewFaultyLine(pty, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { pty.Serve(ctx, func() error { return bus.Run(ctx, line) }) })
	modbus := catalog.Registry()["modbus"]
	hosts := map[int]*drivertest.Host{}
	for unit := range units {
		host := drivertest.NewHost()
		hosts[unit] = host
		spec := drivers.Spec{ID: fmt.Sprintf("door%d", unit), Driver: "modbus", Port: pty.Path(), Settings: map[string]any{
			"profile": "wb-mcm8", "unit": unit, "out_channel": 2, "interval": "1s", "poll_interval": "50ms", "timeout": "100ms", "pause": "5ms"}}
		driver, err := modbus.New(spec, serialport.Open)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			drivers.Supervise(ctx, spec.ID, driver, host, drivers.Options{Driver: "modbus", Class: drivers.ClassCounter})
		})
	}
	defer all.Wait()
	defer cancel()
	heard := func(unit int) bool {
		return hosts[unit].Until(15*time.Second, func() bool { return len(hosts[unit].Counts()) > 0 })
	}
	if !heard(1) || !heard(3) {
		t.Fatalf("no counts; notes %v and %v", hosts[1].Notes(), hosts[3].Notes())
	}
	for i, faults := range []drivertest.Faults{{}, {Noise: 30, Split: true}, {Flip: 30, Duplicate: 30}, {Echo: true}} {
		line.Set(faults)
		for range 10 {
			units[1].Walk(1, 2)
			units[3].Walk(2, 0)
			hosts[1].Until(50*time.Millisecond, func() bool { return false })
		}
		line.Set(drivertest.Faults{})
		for _, unit := range []int{1, 3} {
			if !hosts[unit].Until(15*time.Second, func() bool { return hosts[unit].Sum() == units[unit].Truth() }) {
				t.Errorf("line %d: unit %d: emitted %+v, passed %+v; notes %v", i, unit, hosts[unit].Sum(), units[unit].Truth(), hosts[unit].Notes())
			}
		}
	}
	if hosts[2].Onlines() > 0 || len(hosts[2].Counts()) > 0 {
		t.Errorf("the dead unit was heard %d times: %+v", hosts[2].Onlines(), hosts[2].Counts())
	}
	// A busy machine hands the simulator two requests at once; a driver that does not wait is heard
	// by half.
	if a, b := units[1].Asked(), units[3].Asked(); a < 20 || b < 20 || 10*bus.Unheard() > a+b {
		t.Errorf("units were asked %d and %d times, %d requests came too early", a, b, bus.Unheard())
	}
}

// on makes a driver of the catalogue on a port in memory.
func on(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	return catalog.Registry()[spec.Driver].New(spec, open)
}

func TestEDG02LinesDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		contacts drivertest.ContactsOptions
		settings map[string]any
	}{
		"a contact for each way":    {drivertest.ContactsOptions{Bounce: 3, Glitch: 30}, map[string]any{"in_line": "CTS", "out_line": "DSR"}},
		"two beams side by side":    {drivertest.ContactsOptions{In: "ri", Out: "dcd", Direction: true, Bounce: 3, Glitch: 30}, map[string]any{"in_line": "RI", "out_line": "DCD", "direction": "order"}},
		"one beam, normally closed": {drivertest.ContactsOptions{In: "dsr", Single: true, Inverted: true, Bounce: 2}, map[string]any{"in_line": "DSR", "active": "off"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := map[string]any{"interval": "1s"}
			maps.Copy(settings, tt.settings)
			suite := drivertest.CounterSuite{
				On: on, Forgets: true,
				Spec: drivers.Spec{ID: "door", Driver: "lines", Settings: settings},
				Device: func(seed uint64) drivertest.CounterDevice {
					tt.contacts.Seed = seed
					return drivertest.NewContacts(tt.contacts)
				},
			}
			if tt.contacts.Direction {
				suite.Troubles = append(suite.Troubles, drivertest.Trouble[drivertest.CounterDevice]{Name: "people who turn back",
					Set: func(device drivertest.CounterDevice, on bool) {
						device.(*drivertest.Contacts).TurnBack(on)
					}})
			}
			drivertest.CounterConformance(t, suite)
		})
	}
}

func TestEDG02PointSixDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		sensor   drivertest.PointSixOptions
		settings map[string]any
	}{
		"one sensor":                 {drivertest.PointSixOptions{}, nil},
		"an older one":               {drivertest.PointSixOptions{TextSum: true}, nil},
		"neighbours on the same air": {drivertest.PointSixOptions{Serial: 5, Neighbours: 2}, map[string]any{"sensors": "5=front"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := map[string]any{"interval": "1s"}
			maps.Copy(settings, tt.settings)
			drivertest.CounterConformance(t, drivertest.CounterSuite{
				New:    create,
				Spec:   drivers.Spec{ID: "door", Driver: "pointsix", Settings: settings},
				Device: func(uint64) drivertest.CounterDevice { return drivertest.NewPointSix(tt.sensor) },
				Troubles: []drivertest.Trouble[drivertest.CounterDevice]{
					{Name: "a blocked beam", Set: func(device drivertest.CounterDevice, on bool) { device.(*drivertest.PointSix).SetBlocked(on, 7) }},
					{Name: "a misaligned beam", Set: func(device drivertest.CounterDevice, on bool) {
						device.(*drivertest.PointSix).SetFringe(map[bool]byte{true: 9}[on])
					}},
					{Name: "service mode", Set: func(device drivertest.CounterDevice, on bool) { device.(*drivertest.PointSix).SetService(on) }},
				},
			})
		})
	}
}

func TestEDG02TurnstileDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		turnstile drivertest.TurnstileOptions
		settings  map[string]any
	}{
		"left to right is in":           {drivertest.TurnstileOptions{}, nil},
		"right to left is in":           {drivertest.TurnstileOptions{InRightToLeft: true}, map[string]any{"in": "right-left"}},
		"one that wants to be answered": {drivertest.TurnstileOptions{Resend: 500 * time.Millisecond}, map[string]any{"acknowledge": true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := map[string]any{"interval": "1s"}
			maps.Copy(settings, tt.settings)
			drivertest.CounterConformance(t, drivertest.CounterSuite{
				On: on, Forgets: true,
				Spec:   drivers.Spec{ID: "door", Driver: "turnstile", Settings: settings},
				Device: func(uint64) drivertest.CounterDevice { return drivertest.NewTurnstile(tt.turnstile) },
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

func TestEDG03ESCPOSTap(t *testing.T) {
	for name, settings := range map[string]map[string]any{
		"kick in the print queue": {"open_level": "high", "tap_poll": "100ms"},
		"real-time kick":          {"open_level": "high", "tap_poll": "100ms", "realtime": true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drivertest.DrawerConformance(t, drivertest.DrawerSuite{
				New:  create,
				Spec: drivers.Spec{ID: "drawer", Driver: "escpos", Settings: settings},
				Plug: drivertest.BehindTap("till_port", drivertest.TapTillOptions{Ask: 30, Image: 20, Every: 500 * time.Millisecond}),
				Device: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewPrinter(drivertest.PrinterOptions{})
				},
				NoSwitch: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewPrinter(drivertest.PrinterOptions{NoSwitch: true})
				},
				Noise: []byte{0x84, 0x8F, 0xA5, 0xF7, 0xFF},
			})
		})
	}
}

func TestEDG03StarDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		high     bool
		settings map[string]any
	}{
		"ENQ":                        {false, map[string]any{"poll": "100ms"}},
		"ENQ, open is high, at once": {true, map[string]any{"open_level": "high", "open": `\x1c`, "immediate": true, "poll": "100ms"}},
		"status asked for":           {false, map[string]any{"status": "asb", "poll": "100ms"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite := drivertest.DrawerSuite{
				New:  create,
				Spec: drivers.Spec{ID: "drawer", Driver: "star", Settings: tt.settings},
				Device: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewStar(drivertest.StarOptions{OpenHigh: tt.high, Size: 9})
				},
				NoSwitch: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewStar(drivertest.StarOptions{OpenHigh: tt.high, NoSwitch: true})
				},
				Noise: []byte{0x90, 0x9F, 0xB1, 0xF7, 0xFF}, // bits 4 and 7 are in no answer to our questions
			}
			t.Run("pty", func(t *testing.T) { drivertest.DrawerConformance(t, suite) })
			suite.On = inMemory("star")
			t.Run("memory", func(t *testing.T) { drivertest.DrawerConformance(t, suite) })
		})
	}
}

func TestEDG03SerialDrawerDriver(t *testing.T) {
	for name, tt := range map[string]struct {
		options  drivertest.SerialDrawerOptions
		settings map[string]any
	}{
		"APG 484A":       {drivertest.SerialDrawerOptions{Kind: drivertest.APG484A}, map[string]any{"profile": "apg484", "open_level": "high"}},
		"APG 212A on RI": {drivertest.SerialDrawerOptions{Kind: drivertest.APG212A, Line: "ri", OpenLow: true}, map[string]any{"profile": "apg212", "status": "ri", "open_level": "low"}},
		"M-S KSI":        {drivertest.SerialDrawerOptions{Kind: drivertest.MSKSI}, map[string]any{"profile": "ksi", "status": "cts", "open_level": "high"}},
		"M-S KC":         {drivertest.SerialDrawerOptions{Kind: drivertest.MSKC}, map[string]any{"profile": "kc", "open": "@", "status": "cts", "open_level": "high"}},
		"M-S KSC":        {drivertest.SerialDrawerOptions{Kind: drivertest.MSKSC, Line: "dsr"}, map[string]any{"profile": "ksc", "status": "dsr", "open_level": "high"}},
		"relay on RTS":   {drivertest.SerialDrawerOptions{Kind: drivertest.RelayRTS}, map[string]any{"profile": "relay", "status": "cts", "open_level": "high"}},
		"relay on DTR":   {drivertest.SerialDrawerOptions{Kind: drivertest.RelayDTR, Line: "dcd"}, map[string]any{"profile": "relay", "open_by": "dtr", "status": "dcd", "open_level": "high"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The driver keeps to the manual's times. The drawer is quicker, since nobody tells
			// the driver when it was without power.
			tt.options.Warmup, tt.options.MinInterval = 100*time.Millisecond, 100*time.Millisecond
			drivertest.DrawerConformance(t, drivertest.DrawerSuite{
				On:   inMemory("serialdrawer"),
				Spec: drivers.Spec{ID: "drawer", Driver: "serialdrawer", Settings: tt.settings},
				Mute: true,
				Device: func(uint64) drivertest.DrawerDevice {
					return drivertest.NewSerialDrawer(tt.options)
				},
				NoSwitch: func(uint64) drivertest.DrawerDevice {
					options := tt.options
					options.NoSwitch = true
					return drivertest.NewSerialDrawer(options)
				},
			})
		})
	}
	t.Run("IBM", func(t *testing.T) {
		t.Parallel()
		drivertest.DrawerConformance(t, drivertest.DrawerSuite{
			New:  create,
			Spec: drivers.Spec{ID: "drawer", Driver: "serialdrawer", Settings: map[string]any{"profile": "ibm", "poll": "100ms"}},
			Device: func(uint64) drivertest.DrawerDevice {
				return drivertest.NewSerialDrawer(drivertest.SerialDrawerOptions{Kind: drivertest.IBMDrawer})
			},
			NoSwitch: func(uint64) drivertest.DrawerDevice {
				return drivertest.NewSerialDrawer(drivertest.SerialDrawerOptions{Kind: drivertest.IBMDrawer, NoSwitch: true})
			},
			Noise: []byte{0x80, 0x9F, 0xFF}, // bit 7 is 0
		})
	})
}

func TestEDG10ScaleDriver(t *testing.T) {
	for name, options := range map[string]drivertest.ScaleOptions{
		"kilograms":                           {},
		"pounds, parity seen, zero by status": {Decimals: 2, ParityBit: true, Zero: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite := drivertest.ScaleSuite{
				New:  create,
				Spec: drivers.Spec{ID: "scale", Driver: "scale", Settings: map[string]any{"timeout": "300ms", "poll": "1s"}},
				Device: func(seed uint64) drivertest.ScaleDevice {
					seeded := options // the checks run at once
					seeded.Seed = seed
					return drivertest.NewScale(seeded)
				},
				Weigh: func(ctx context.Context, driver drivers.Driver) (int64, bool, error) {
					w, err := driver.(drivers.Weigher).Weigh(ctx)
					return w.Weight.Milli, w.State == drivers.WeightStable || w.State == drivers.WeightZero, err
				},
			}
			t.Run("pty", func(t *testing.T) { drivertest.ScaleConformance(t, suite) })
			suite.On = inMemory("scale")
			t.Run("memory", func(t *testing.T) { drivertest.ScaleConformance(t, suite) })
		})
	}
}

func TestEDG10ScannerDriver(t *testing.T) {
	suite := drivertest.ScannerSuite{
		New:    create,
		Spec:   drivers.Spec{ID: "scanner", Driver: "scanner"},
		Device: func(uint64) drivertest.ScannerDevice { return drivertest.NewScanner(drivertest.ScannerOptions{}) },
		Listen: func(ctx context.Context, driver drivers.Driver, take func(string)) error {
			for after := ""; ; {
				scans, next, err := driver.(drivers.Scanner).Scans(ctx, after)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil { // it is not there: soon again
					select {
					case <-ctx.Done():
					case <-time.After(5 * time.Millisecond):
					}
				}
				for _, s := range scans {
					take(s.Data)
				}
				after = next
			}
		},
	}
	t.Run("pty", func(t *testing.T) { drivertest.ScannerConformance(t, suite) })
	suite.On = inMemory("scanner")
	t.Run("memory", func(t *testing.T) { drivertest.ScannerConformance(t, suite) })
}

func TestEDG10CoinAcceptorDriver(t *testing.T) {
	for name, options := range map[string]drivertest.CoinAcceptorOptions{
		"adapter without echo":            {},
		"echo, master inhibit, impatient": {Echo: true, Inhibits: true, Patience: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite := drivertest.CoinSuite{
				New:    create,
				Spec:   drivers.Spec{ID: "coins", Driver: "cctalk", Settings: map[string]any{"poll": "50ms"}},
				Device: func(uint64) drivertest.CoinDevice { return drivertest.NewCoinAcceptor(options) },
			}
			t.Run("pty", func(t *testing.T) { drivertest.CoinConformance(t, suite) })
			suite.On = inMemory("cctalk")
			t.Run("memory", func(t *testing.T) { drivertest.CoinConformance(t, suite) })
		})
	}
}

// A till prints, kicks and asks as if it were alone, while the agent polls and opens the
// drawer too: what comes out of the printer is what the till sent, it hears its own answers
// alone, and every opening is an event with its cause.
func TestEDG03ATapDisturbsNoTill(t *testing.T) {
	t.Parallel()
	line := func(name string, run func(context.Context, io.ReadWriter) error) *drivertest.Pty {
		pty, err := drivertest.OpenPty(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			pty.Serve(ctx, func() error { return run(ctx, pty) })
		}()
		t.Cleanup(func() {
			cancel()
			<-done
			pty.Close()
		})
		return pty
	}
	printer := drivertest.NewPrinter(drivertest.PrinterOptions{})
	till := drivertest.NewTapTill(drivertest.TapTillOptions{Kick: 40, Ask: 50, Image: 40, Seed: 1})
	till.SetSilent(true)
	host := drivertest.NewHost()
	driver, err := create(drivers.Spec{ID: "drawer", Driver: "escpos", Port: line("printer", printer.Run).Path(), Settings: map[string]any{
		"till_port": line("till", till.Run).Path(), "tap_poll": "100ms", "open_level": "high"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- driver.Run(ctx, host) }()
	defer func() {
		cancel()
		<-ended
	}()
	drawer := driver.(drivers.Opener)
	is := func(open bool) func() bool {
		return func() bool { now, known := drawer.Opened(); return known && now == open }
	}
	if !host.Until(10*time.Second, is(false)) {
		t.Fatalf("the drawer is never known to be closed; notes %v", host.Notes())
	}
	till.SetSilent(false)
	ours := 0
	for round := range 8 {
		if round%2 == 0 {
			if err := drawer.Open(ctx, drivers.OpenCommand{Reason: "change"}); err != nil {
				t.Fatal(err)
			}
			ours++
		}
		if !host.Until(20*time.Second, is(true)) {
			t.Fatalf("the drawer has not opened; notes %v", host.Notes())
		}
		printer.PushIn()
		if !host.Until(10*time.Second, func() bool { return is(false)() || printer.Opened() }) {
			t.Fatalf("the drawer is closed and said to be open; notes %v", host.Notes())
		}
	}
	till.SetSilent(true)
	if asked := func() bool { a, b := till.Asked(); return a == b }; !host.Until(5*time.Second, func() bool { return asked() && printer.Printed() == till.Printing() }) {
		a, b := till.Asked()
		t.Errorf("asked %d times, %d answers; printed %d bytes of %d", a, b, len(printer.Printed()), len(till.Printing()))
	}
	if s := till.Strange(); len(s) > 0 {
		t.Errorf("the till heard % X, and had not asked", s)
	}
	if till.Kicks() == 0 {
		t.Error("the till never kicked")
	}
	reasons := map[string]int{}
	for _, e := range host.Events() {
		if e.Event == protocol.DrawerOpened {
			reasons[e.Cause+" "+e.Reason]++
		}
	}
	if reasons["commanded till"] == 0 || reasons["commanded change"] == 0 || len(reasons) != 2 {
		t.Errorf("openings %v, want the till's and %d of ours, and no other; events %+v", reasons, ours, host.Events())
	}
}
