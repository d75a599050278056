package drivertest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/drivers/serialport"
)

// A drawerPort is the driver's side of a port with a serial drawer.
type drawerPort interface {
	serialport.Port
	SetDTR(on bool) error
	SetRTS(on bool) error
	Break(d time.Duration) error
}

// drawerOn runs a serial drawer on a port in virtual time and opens the port.
func drawerOn(t *testing.T, opts drivertest.SerialDrawerOptions, config serialport.Config) (*drivertest.SerialDrawer, drawerPort) {
	t.Helper()
	p := drivertest.NewFakePort("memory")
	d := drivertest.NewSerialDrawer(opts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, drivertest.NewFaultyLine(p, 1)) }()
	synctest.Wait()
	port := openFake(t, p, config).(drawerPort)
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v, want context.Canceled", err)
		}
	})
	return d, port
}

func cts(t *testing.T, port serialport.Port) bool {
	t.Helper()
	synctest.Wait()
	lines, err := port.ModemLines()
	if err != nil {
		t.Fatal(err)
	}
	return lines.CTS
}

func TestSerialDrawersOpenByTheirOwnCommand(t *testing.T) {
	write := func(s string) func(drawerPort) error {
		return func(p drawerPort) error { return p.Write(context.Background(), []byte(s)) }
	}
	breaks := func(d time.Duration) func(drawerPort) error {
		return func(p drawerPort) error { return p.Break(d) }
	}
	pulse := func(d time.Duration) func(drawerPort) error {
		return func(p drawerPort) error {
			err := p.SetRTS(true)
			time.Sleep(d)
			return errors.Join(err, p.SetRTS(false))
		}
	}
	for _, tt := range []struct {
		name  string
		opts  drivertest.SerialDrawerOptions
		baud  int
		do    func(drawerPort) error
		opens bool
	}{
		{"212A", drivertest.SerialDrawerOptions{Kind: drivertest.APG212A}, 9600, write("a price[["), true},
		{"212A, one character", drivertest.SerialDrawerOptions{Kind: drivertest.APG212A}, 9600, write("[a["), false},
		{"KSI", drivertest.SerialDrawerOptions{Kind: drivertest.MSKSI, Open: []byte("~~"), Baud: 2400}, 2400, write("~~"), true},
		{"KSI at a wrong baud", drivertest.SerialDrawerOptions{Kind: drivertest.MSKSI, Open: []byte("~~"), Baud: 2400}, 9600, write("~~"), false},
		{"KLIC", drivertest.SerialDrawerOptions{Kind: drivertest.MSKSI, Baud: 1200}, 1200, write("\a"), true},
		{"KC, break", drivertest.SerialDrawerOptions{Kind: drivertest.MSKC}, 9600, breaks(150 * time.Millisecond), true},
		{"KC, short break", drivertest.SerialDrawerOptions{Kind: drivertest.MSKC}, 9600, breaks(50 * time.Millisecond), false},
		{"KC, data at 300 baud", drivertest.SerialDrawerOptions{Kind: drivertest.MSKC}, 300, write("x"), true},
		{"KC, 20 times 40", drivertest.SerialDrawerOptions{Kind: drivertest.MSKC}, 9600, write("@@@@@@@@@@@@@@@@@@@@"), true},
		{"KC, 19 times 40", drivertest.SerialDrawerOptions{Kind: drivertest.MSKC}, 9600, write("@@@@@@@@@@@@@@@@@@@"), false},
		{"KSC, anything", drivertest.SerialDrawerOptions{Kind: drivertest.MSKSC}, 9600, write("\x00"), true},
		{"IBM", drivertest.SerialDrawerOptions{Kind: drivertest.IBMDrawer}, 9600, write("\a"), true},
		{"IBM, drawer 2", drivertest.SerialDrawerOptions{Kind: drivertest.IBMDrawer}, 9600, write("\x1b\a"), false},
		{"relay", drivertest.SerialDrawerOptions{Kind: drivertest.RelayRTS}, 9600, pulse(100 * time.Millisecond), true},
		{"relay, short pulse", drivertest.SerialDrawerOptions{Kind: drivertest.RelayRTS}, 9600, pulse(20 * time.Millisecond), false},
		{"relay, other line", drivertest.SerialDrawerOptions{Kind: drivertest.RelayDTR}, 9600, pulse(100 * time.Millisecond), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d, port := drawerOn(t, tt.opts, serialport.Config{Baud: tt.baud, DTR: serialport.SignalOff, RTS: serialport.SignalOff})
				time.Sleep(time.Minute)
				if d.Opened() {
					t.Fatal("it has opened with the port")
				}
				if err := tt.do(port); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if d.Opened() != tt.opens {
					t.Errorf("open %t, want %t", d.Opened(), tt.opens)
				}
				if got := cts(t, port); got != (tt.opens && tt.opts.Kind != drivertest.IBMDrawer) {
					t.Errorf("CTS is %t", got)
				}
				d.PushIn()
				if cts(t, port) {
					t.Error("CTS stays high when it is pushed in")
				}
			})
		})
	}
}

func TestAPGDrawerWarmsUpAndRests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, port := drawerOn(t, drivertest.SerialDrawerOptions{Kind: drivertest.APG484A, OpenLow: true}, serialport.Config{})
		kick := func() bool {
			t.Helper()
			d.PushIn()
			if err := port.Write(t.Context(), []byte{0x07}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			return d.Opened()
		}
		if !cts(t, port) {
			t.Error("closed, open is low: CTS is low")
		}
		time.Sleep(10 * time.Second)
		if kick() {
			t.Error("it opened before it was warm")
		}
		time.Sleep(time.Second)
		if !kick() || cts(t, port) {
			t.Errorf("warm: open %t, CTS %t", d.Opened(), cts(t, port))
		}
		if kick() {
			t.Error("it opened again at once")
		}
		time.Sleep(5 * time.Second)
		if !kick() {
			t.Error("it did not open after a rest")
		}
		port.SetRTS(false)
		time.Sleep(20 * time.Second)
		if kick() || d.Ignored() != 3 {
			t.Errorf("without power: open %t, %d ignored, want 3", d.Opened(), d.Ignored())
		}
	})
}

func TestRelayOpensWithThePortThatLeavesItsLineUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, _ := drawerOn(t, drivertest.SerialDrawerOptions{Kind: drivertest.RelayDTR}, serialport.Config{})
		time.Sleep(time.Second)
		if !d.Opened() {
			t.Error("DTR is up and the drawer is closed")
		}
	})
}

func TestIBMDrawerSaysItsStatus(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d := drivertest.NewSerialDrawer(drivertest.SerialDrawerOptions{Kind: drivertest.IBMDrawer})
		c, _ := attach(t, d.Run, 1)
		same(t, "closed", c.ask("06", 0), "00")
		d.KeyOpen()
		same(t, "open, unasked", c.ask("", time.Second), "")
		same(t, "open", c.ask("06", 0), "40")
		same(t, "told to say so", c.ask("1B 06", 600*time.Millisecond), "40")
		d.PushIn()
		time.Sleep(600 * time.Millisecond)
		same(t, "closed", c.took(), "00")
		c.ask("1B 06", 0)
		d.KeyOpen()
		time.Sleep(time.Second)
		same(t, "told not to", c.took(), "")
		none := drivertest.NewSerialDrawer(drivertest.SerialDrawerOptions{Kind: drivertest.IBMDrawer, NoSwitch: true})
		c, _ = attach(t, none.Run, 1)
		none.KeyOpen()
		same(t, "no switch", c.ask("06", 0), "00")
	})
}
