//go:build linux

package drivertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

// A toySwitch is a small driver of a KSI drawer whose switch is on CTS: a toyDrawer on modem
// lines, right unless a flaw is named.
type toySwitch struct {
	*toyDrawer
	open serialport.OpenFunc
	port serialport.Port // nil while lost; toyDrawer.mu guards it
}

func (d *toySwitch) Open(ctx context.Context, command drivers.OpenCommand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.port == nil {
		return drivers.ErrOffline
	}
	if err := d.port.Write(ctx, []byte{0x07}); err != nil {
		return fmt.Errorf("%w: %w", drivers.ErrOffline, err)
	}
	d.command, d.due = &command, time.Now().Add(time.Second)
	return nil
}

func (d *toySwitch) Run(ctx context.Context, host drivers.Host) error {
	port, err := d.open(ctx, serialport.Config{Name: d.spec.Port})
	if err != nil {
		return err
	}
	state, err := host.State()
	d.mu.Lock()
	d.toyDrawer.open, d.known, d.port = string(state) == "open", false, port
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.port, d.known = nil, false
	}()
	for err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(20 * time.Millisecond):
			var lines serialport.ModemLines
			if lines, err = port.ModemLines(); err == nil {
				host.Online()
				d.see(ctx, host, lines.CTS != (d.flaw == "upside down"))
			}
		}
	}
	return errors.Join(err, port.Close())
}

func toySwitchSuite(flaw string) DrawerSuite {
	drawer := func(none bool) func(uint64) DrawerDevice {
		return func(uint64) DrawerDevice {
			return NewSerialDrawer(SerialDrawerOptions{Kind: MSKSI, NoSwitch: none})
		}
	}
	return DrawerSuite{
		On: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
			return &toySwitch{toyDrawer: &toyDrawer{spec: spec, flaw: flaw}, open: open}, nil
		},
		Device: drawer(false), NoSwitch: drawer(true),
		Mute: true,
		Wait: 4 * time.Second,
	}
}

func TestDrawerSuiteOnModemLinesPassesARightDriver(t *testing.T) {
	DrawerConformance(t, toySwitchSuite(""))
}

func TestDrawerSuiteOnModemLinesCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"upside down", "clean line", "the drawer is open: false; Opened says true"},
		{"silent", "jammed drawer", "no openFailed event"},
		{"lossy", "disk full", "Event:closed"},
	} {
		t.Run(tt.flaw, func(t *testing.T) {
			if said := virtualComplaints(t, toySwitchSuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}
