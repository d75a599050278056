package core

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/catalog"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// RecordOptions say which port Record records, and who speaks to the device meanwhile: a
// driver, a till on another port, somebody who sends the same again and again, or nobody.
type RecordOptions struct {
	Port     string
	Out      io.Writer
	Settings []string            // key=value: of the driver, else of the line: baud, data_bits, parity ...
	Driver   string              // this driver speaks; what it emits is noted
	Between  string              // what comes on this port goes to the device, and back
	Send     string              // hex: sent when the port opens, and again every Every
	Every    time.Duration       // 0 = once
	Open     serialport.OpenFunc // nil: serialport.Open
	Log      *slog.Logger        // nil: no log
}

// Looks at the modem lines, the pause before a lost port is opened again, and the watch over
// the file.
const (
	lookEvery   = 20 * time.Millisecond
	reopenAfter = time.Second
	checkEvery  = time.Second
)

// Record writes what passes through a port to o.Out until ctx ends, which is no error. Nothing
// is kept elsewhere, and no relay is spoken to. The port must be free: stop an agent that has
// it. A port that is lost is opened again.
func Record(ctx context.Context, o RecordOptions) error {
	if o.Open == nil {
		o.Open = serialport.Open
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	speakers := 0
	for _, one := range []string{o.Driver, o.Between, o.Send} {
		if one != "" {
			speakers++
		}
	}
	if speakers > 1 {
		return errors.New("record: only one may speak to the device: a driver, another port, or what is sent")
	}
	recorder := serialport.NewRecorder(o.Out, time.Now)
	speak, err := o.speaker(recorder)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return speak(gctx) })
	g.Go(func() error {
		for range ticks(gctx, checkEvery) {
			if err := recorder.Err(); err != nil {
				return fmt.Errorf("write the recording: %w", err)
			}
		}
		return gctx.Err()
	})
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("record %s: %w", o.Port, err)
	}
	return recorder.Err()
}

// speaker gives what runs while the port is recorded.
func (o RecordOptions) speaker(recorder *serialport.Recorder) (func(context.Context) error, error) {
	open := recorder.Open(o.Open)
	spec := drivers.Spec{ID: "recorded", Driver: o.Driver, Port: o.Port}
	known := drivers.SerialSettings(9600)
	entry, ok := catalog.Registry()[o.Driver]
	if ok {
		known = entry.Settings
	} else if o.Driver != "" {
		return nil, fmt.Errorf("unknown driver %q (known: %s)", o.Driver, strings.Join(slices.Sorted(maps.Keys(catalog.Registry())), ", "))
	}
	var err error
	if spec.Settings, err = typed(o.Settings, known); err != nil {
		return nil, err
	}
	if ok {
		driver, err := entry.New(spec, open)
		if err != nil {
			return nil, err
		}
		host := &recordHost{recorder: recorder}
		return func(ctx context.Context) error {
			return drivers.Supervise(ctx, spec.ID, driver, host, drivers.Options{Driver: o.Driver, Class: entry.Class, Log: o.Log})
		}, nil
	}
	values, faults := drivers.ReadSettings(spec, known)
	if err := faults.Err(); err != nil {
		return nil, err
	}
	config := serialport.Config{Name: o.Port, Baud: values.Int("baud"), DataBits: values.Int("data_bits"),
		Parity: values.Text("parity"), StopBits: values.Text("stop_bits"),
		DTR: serialport.Signal(values.Text("dtr")), RTS: serialport.Signal(values.Text("rts"))}
	send, err := hex.DecodeString(strings.Join(strings.Fields(o.Send), ""))
	if err != nil {
		return nil, fmt.Errorf("bytes to send: %w (write them in hex: 01 04 00 3C)", err)
	}
	return func(ctx context.Context) error { return o.listen(ctx, open, config, send) }, nil
}

// typed gives settings the types that they have in a configuration file.
func typed(given []string, known []drivers.Setting) (map[string]any, error) {
	settings := map[string]any{}
	for _, pair := range given {
		name, text, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("setting %q: want name=value", pair)
		}
		settings[name] = text
		i := slices.IndexFunc(known, func(s drivers.Setting) bool { return s.Name == name })
		if i < 0 {
			continue // ReadSettings says so
		}
		switch known[i].Type {
		case drivers.TypeInt:
			if n, err := strconv.Atoi(text); err == nil {
				settings[name] = n
			}
		case drivers.TypeBool:
			if b, err := strconv.ParseBool(text); err == nil {
				settings[name] = b
			}
		case drivers.TypeText, drivers.TypeChoice, drivers.TypeDuration: // as they are
		}
	}
	return settings, nil
}

// listen reads the port, again after it was lost. Only the very first open may fail.
func (o RecordOptions) listen(ctx context.Context, open serialport.OpenFunc, config serialport.Config, send []byte) error {
	for first := true; ; first = false {
		port, err := open(ctx, config)
		if err != nil && first {
			return err
		}
		if err == nil {
			err = errors.Join(o.attend(ctx, port, config, send), port.Close())
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		o.Log.Warn("the port is lost", "port", config.Name, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reopenAfter):
		}
	}
}

// attend reads one open port, looks at its lines, and sends what is to be sent.
func (o RecordOptions) attend(ctx context.Context, port serialport.Port, config serialport.Config, send []byte) error {
	g, ctx := errgroup.WithContext(ctx)
	if o.Between != "" {
		config.Name = o.Between
		other, err := o.Open(ctx, config)
		if err != nil {
			return err
		}
		defer other.Close()
		g.Go(func() error { return pass(ctx, other, port) })
		g.Go(func() error { return pass(ctx, port, other) })
	} else {
		g.Go(func() error { return pass(ctx, port, nil) })
	}
	g.Go(func() error {
		for range ticks(ctx, lookEvery) {
			if _, err := port.ModemLines(); errors.Is(err, serialport.ErrNoLines) {
				return nil
			} else if err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if len(send) > 0 {
		g.Go(func() error {
			if err := port.Write(ctx, send); err != nil || o.Every == 0 {
				return err
			}
			for range ticks(ctx, o.Every) {
				if err := port.Write(ctx, send); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// pass reads a port and writes what comes to another; nil = nowhere.
func pass(ctx context.Context, from, to serialport.Port) error {
	for buf := make([]byte, 4096); ; {
		n, err := from.Read(ctx, buf)
		if err == nil && to != nil {
			err = to.Write(ctx, buf[:n])
		}
		if err != nil {
			return err
		}
	}
}

// ticks yields at each interval until ctx ends.
func ticks(ctx context.Context, every time.Duration) func(yield func(time.Time) bool) {
	return func(yield func(time.Time) bool) {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-ticker.C:
				if !yield(now) {
					return
				}
			}
		}
	}
}

// A recordHost notes in the recording what the driver makes of it. State lives as long as the
// recording.
type recordHost struct {
	recorder *serialport.Recorder

	mu    sync.Mutex // guards state
	state []byte
}

// Emit implements drivers.Host.
func (h *recordHost) Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error {
	data, err := json.Marshal(body)
	if err = errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	h.recorder.Note(string(kind) + " " + string(data))
	h.mu.Lock()
	defer h.mu.Unlock()
	if state != nil {
		h.state = slices.Clone(state)
	}
	return nil
}

// State implements drivers.Host.
func (h *recordHost) State() ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.state), nil
}

// Online implements drivers.Host.
func (h *recordHost) Online() {}

// Note implements drivers.Host.
func (h *recordHost) Note(what string) { h.recorder.Note("driver: " + what) }

// Now implements drivers.Host.
func (h *recordHost) Now() time.Time { return time.Now() }
