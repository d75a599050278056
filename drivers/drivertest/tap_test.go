package drivertest_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

// between runs a till and a printer on two lines for a minute of virtual time, and carry
// between them. It returns when the till rests.
func between(t *testing.T, till *drivertest.TapTill, printer *drivertest.Printer, carry func(ctx context.Context, till, printer io.ReadWriter)) {
	t.Helper()
	tillEnd, tapLeft := drivertest.Pipe()
	tapRight, printerEnd := drivertest.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- till.Run(ctx, tillEnd) }()
	go func() { done <- printer.Run(ctx, printerEnd) }()
	go carry(ctx, tapLeft, tapRight)
	time.Sleep(time.Minute)
	till.SetSilent(true)
	time.Sleep(10 * time.Second)
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("a Run ended with %v, want context.Canceled", err)
		}
	}
	tillEnd.Close()
	printerEnd.Close()
	time.Sleep(time.Second) // for what carry has begun
}

// copyBoth is a tap that does nothing.
func copyBoth(_ context.Context, till, printer io.ReadWriter) {
	go io.Copy(till, printer)
	io.Copy(printer, till)
}

func newTapTill() *drivertest.TapTill {
	return drivertest.NewTapTill(drivertest.TapTillOptions{Kick: 30, Ask: 30, Image: 30, Seed: 8})
}

func TestTillPrintsKicksAndAsksThroughAGoodTap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		till, printer := newTapTill(), drivertest.NewPrinter(drivertest.PrinterOptions{})
		between(t, till, printer, func(ctx context.Context, a, b io.ReadWriter) {
			go func() {
				for ctx.Err() == nil {
					time.Sleep(time.Millisecond)
					printer.PushIn()
				}
			}()
			copyBoth(ctx, a, b)
		})
		if got, want := printer.Printed(), till.Printing(); got != want || got == "" {
			t.Errorf("printed %d bytes, want the %d that the till meant", len(got), len(want))
		}
		asked, answered := till.Asked()
		if asked == 0 || answered != asked || len(till.Strange()) != 0 {
			t.Errorf("asked %d, answered %d, strange % X", asked, answered, till.Strange())
		}
		if n := len(printer.Truth()); till.Kicks() == 0 || n != 2*till.Kicks() {
			t.Errorf("%d movements after %d kicks, want two for each", n, till.Kicks())
		}
	})
}

func TestTillSeesATapThatSpeaksIntoItsCommands(t *testing.T) {
	bubble(t, func(t *testing.T) {
		till, printer := newTapTill(), drivertest.NewPrinter(drivertest.PrinterOptions{})
		between(t, till, printer, func(ctx context.Context, a, b io.ReadWriter) {
			go func() {
				for ctx.Err() == nil {
					b.Write([]byte{0x10, 0x04, 0x01})
					time.Sleep(7 * time.Millisecond)
				}
			}()
			copyBoth(ctx, a, b)
		})
		if printer.Printed() == till.Printing() {
			t.Error("a rude tap did not spoil what is printed")
		}
		if len(till.Strange()) == 0 {
			t.Error("a tap that passes its own answers on was not heard")
		}
	})
}
