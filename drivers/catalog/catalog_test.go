package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

type host struct{}

func (host) Emit(context.Context, protocol.Kind, any, []byte) error { return nil }
func (host) State() ([]byte, error)                                 { return nil, nil }
func (host) Online()                                                {}
func (host) Note(string)                                            {}
func (host) Now() time.Time                                         { return time.Now() }

// Every driver of the catalogue: documented, made by its defaults alone, makes its class,
// opens the port that it is given, and says when it cannot.
func TestEveryDriver(t *testing.T) {
	errGone := errors.New("gone")
	for name, e := range Registry() {
		t.Run(name, func(t *testing.T) {
			classes := []string{drivers.ClassCounter, drivers.ClassDrawer, drivers.ClassScale, drivers.ClassScanner, drivers.ClassCoins}
			if e.Serves == "" || e.Class == drivers.ClassCounter && e.Emits == "" || !slices.Contains(classes, e.Class) {
				t.Errorf("entry = %+v", e)
			}
			var config serialport.Config
			spec := drivers.Spec{ID: "d1", Driver: name, Port: "COM3"}
			d, err := e.New(spec, func(_ context.Context, c serialport.Config) (serialport.Port, error) {
				config = c
				return nil, errGone
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, opener := d.(drivers.Opener); opener != (e.Class == drivers.ClassDrawer) {
				t.Errorf("Opener = %t for class %s", opener, e.Class)
			}
			if _, weigher := d.(drivers.Weigher); weigher != (e.Class == drivers.ClassScale) {
				t.Errorf("Weigher = %t for class %s", weigher, e.Class)
			}
			if _, scanner := d.(drivers.Scanner); scanner != (e.Class == drivers.ClassScanner) {
				t.Errorf("Scanner = %t for class %s", scanner, e.Class)
			}
			if err := d.Run(t.Context(), host{}); !errors.Is(err, errGone) {
				t.Errorf("Run = %v, want the port's error", err)
			}
			if config.Name != "COM3" || config.Baud == 0 || config.DataBits != setting(e, "data_bits") || config.Parity != setting(e, "parity") || config.StopBits != "1" {
				t.Errorf("port = %+v", config)
			}
			seen := map[string]bool{}
			for _, s := range e.Settings {
				if seen[s.Name] || s.Help == "" || s.Default == nil {
					t.Errorf("setting %+v is documented badly", s)
				}
				seen[s.Name] = true
				spec.Settings = map[string]any{s.Name: s.Default}
				if s.Type == drivers.TypeDuration {
					spec.Settings[s.Name] = fmt.Sprint(s.Default)
				}
				if _, err := e.New(spec, nil); err != nil {
					t.Errorf("the default of %s is refused: %v", s.Name, err)
				}
				spec.Settings[s.Name] = []int{1}
				var faults protocol.Faults
				if _, err := e.New(spec, nil); !errors.As(err, &faults) || !slices.ContainsFunc(faults, func(f protocol.Fault) bool { return f.Field == "settings."+s.Name }) {
					t.Errorf("a list for %s: %v, want a fault that names it", s.Name, err)
				}
			}
		})
	}
}

// setting is the default of one of a driver's settings.
func setting(e Entry, name string) any {
	return e.Settings[slices.IndexFunc(e.Settings, func(s drivers.Setting) bool { return s.Name == name })].Default
}

func TestCheckNamesEverything(t *testing.T) {
	faults := Check([]drivers.Spec{
		{ID: "door", Driver: "terabee", Port: "COM3"},
		{ID: "door", Driver: "line", Port: "COM3", Settings: map[string]any{"baud": "x", "speed": 1}},
		{ID: "till", Driver: "hella", Port: "COM4"},
		{ID: "d2", Driver: "escpos", Port: "COM5", Settings: map[string]any{"till_port": "COM4"}},
	})
	var fields []string
	for _, f := range faults {
		fields = append(fields, f.Field)
	}
	want := []string{"devices[1].settings.baud", "devices[1].settings.speed", "devices[1].id", "devices[1].port", "devices[2].driver", "devices[3].settings.till_port"}
	if !slices.Equal(fields, want) {
		t.Errorf("fields = %q, want %q", fields, want)
	}
	if faults := Check([]drivers.Spec{{ID: "door", Driver: "terabee", Port: "COM3"}, {ID: "d1", Driver: "escpos", Port: "COM4"}}); faults != nil {
		t.Errorf("a good configuration: %v", faults)
	}
}

func TestDevicesOnOneBus(t *testing.T) {
	door := func(id, driver string, settings map[string]any) drivers.Spec {
		return drivers.Spec{ID: id, Driver: driver, Port: "COM3", Settings: settings}
	}
	for _, tt := range []struct {
		name  string
		specs []drivers.Spec
		want  string // field
	}{
		{"three on one line", []drivers.Spec{door("a", "modbus", nil), door("b", "modbus", map[string]any{"unit": 2}), door("c", "modbus", map[string]any{"unit": 2, "in_channel": 3})}, ""},
		{"another baud", []drivers.Spec{door("a", "modbus", nil), door("b", "modbus", map[string]any{"baud": 19200})}, "devices[1].port"},
		{"another baud by its profile", []drivers.Spec{door("a", "modbus", nil), door("b", "modbus", map[string]any{"profile": "banner-dx80"})}, "devices[1].port"},
		{"another driver", []drivers.Spec{door("a", "modbus", nil), door("b", "modbus", nil), door("c", "line", nil)}, "devices[2].port"},
		{"another driver first", []drivers.Spec{door("a", "line", nil), door("b", "modbus", nil)}, "devices[1].port"},
	} {
		faults := Check(tt.specs)
		got := ""
		if len(faults) > 0 {
			got = faults[0].Field
		}
		if got != tt.want || len(faults) > 1 {
			t.Errorf("%s: %v, want a fault of %q", tt.name, faults, tt.want)
		}
	}
}

func TestTableNamesEverySetting(t *testing.T) {
	table := Table()
	for name, e := range Registry() {
		if !strings.Contains(table, "### "+name+"\n") {
			t.Errorf("no heading for %s", name)
		}
		for _, s := range e.Settings {
			if !strings.Contains(table, "| "+s.Name+" |") {
				t.Errorf("%s of %s is missing", s.Name, name)
			}
		}
	}
	for row := range strings.Lines(table) {
		if strings.HasPrefix(row, "|") && strings.Count(row, "|")-strings.Count(row, `\|`) != 5 {
			t.Errorf("row has not four columns: %s", row)
		}
	}
}
