// Package checkout holds the drivers of what stands at a checkout beside till and drawer:
// scales, bar code scanners, coin acceptors.
package checkout

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
)

const writeTimeout = 2 * time.Second

// ErrSilent is the end of a Run in which the device answered nothing.
var ErrSilent = errors.New("the device does not answer")

func portConfig(spec drivers.Spec, v drivers.Values) serialport.Config {
	return serialport.Config{
		Name: spec.Port, Baud: v.Int("baud"), DataBits: v.Int("data_bits"), Parity: v.Text("parity"), StopBits: v.Text("stop_bits"),
		DTR: serialport.Signal(v.Text("dtr")), RTS: serialport.Signal(v.Text("rts")),
	}
}

// serialSettings are drivers.SerialSettings with other defaults.
func serialSettings(baud, bits int, parity string) []drivers.Setting {
	all := drivers.SerialSettings(baud)
	for i := range all {
		switch all[i].Name {
		case "data_bits":
			all[i].Default = bits
		case "parity":
			all[i].Default = parity
		}
	}
	return all
}

// readFor reads for at most so long; nothing came is (0, nil).
func readFor(ctx context.Context, port serialport.Port, buf []byte, wait time.Duration) (int, error) {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return readUntil(ctx, limited, port, buf)
}

// readUntil reads until limited, which is of ctx, ends; nothing came is (0, nil).
func readUntil(ctx, limited context.Context, port serialport.Port, buf []byte) (int, error) {
	n, err := port.Read(limited, buf)
	if err != nil && ctx.Err() != nil {
		return n, ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return n, nil
	}
	if err != nil {
		return n, fmt.Errorf("read: %w", err)
	}
	return n, nil
}

func write(ctx context.Context, port serialport.Port, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := port.Write(ctx, b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// A presence says whether a Run has an open port.
type presence struct {
	mu   sync.Mutex    // guards what follows
	gone chan struct{} // closed when the Run ends; nil = none runs
}

// begin notes that a Run has its port, until the returned func is called.
func (p *presence) begin() func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	gone := make(chan struct{})
	p.gone = gone
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		close(gone)
		p.gone = nil
	}
}

// here gives a channel that is closed when the Run ends; nil = the device is offline.
func (p *presence) here() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

func offline(id, hint string) error {
	return &drivers.Fault{Device: id, Err: drivers.ErrOffline, Hint: hint}
}
