package drivers

import (
	"encoding/json"
	"testing"
	"time"
)

func TestReadSettings(t *testing.T) {
	known := append(SerialSettings(9600),
		Setting{Name: "interval", Type: TypeDuration, Default: time.Minute, Min: int64(time.Second), Max: int64(time.Hour)},
		Setting{Name: "pin", Type: TypeChoice, Default: "2", Choices: []string{"2", "5"}},
		Setting{Name: "invert", Type: TypeBool, Default: false},
		Setting{Name: "poll", Type: TypeText, Default: ""})
	v, faults := ReadSettings(Spec{ID: "door", Port: "COM3", Settings: map[string]any{
		"baud": json.Number("19200"), "data_bits": 7.0, "interval": "2m", "pin": 5, "invert": true, "poll": "R"}}, known)
	if faults != nil {
		t.Fatal(faults)
	}
	if v.Int("baud") != 19200 || v.Int("data_bits") != 7 || v.Duration("interval") != 2*time.Minute || v.Text("pin") != "5" || !v.Bool("invert") || v.Text("poll") != "R" {
		t.Errorf("values = %v", v)
	}
	if v.Text("parity") != "none" || v.Text("stop_bits") != "1" {
		t.Errorf("defaults = %v", v)
	}
}

func TestReadSettingsNamesEveryFault(t *testing.T) {
	known := append(SerialSettings(9600), Setting{Name: "interval", Type: TypeDuration, Default: time.Minute, Min: int64(time.Second), Max: int64(time.Hour)})
	for _, tt := range []struct {
		name string
		spec Spec
		want string
	}{
		{"id and port", Spec{ID: "a door"}, "id port"},
		{"a word for a number", Spec{ID: "d", Port: "p", Settings: map[string]any{"baud": "fast"}}, "settings.baud"},
		{"a fraction", Spec{ID: "d", Port: "p", Settings: map[string]any{"baud": 9600.5}}, "settings.baud"},
		{"out of range", Spec{ID: "d", Port: "p", Settings: map[string]any{"data_bits": 9, "interval": "0s"}}, "settings.data_bits settings.interval"},
		{"a time without unit", Spec{ID: "d", Port: "p", Settings: map[string]any{"interval": 60}}, "settings.interval"},
		{"another choice", Spec{ID: "d", Port: "p", Settings: map[string]any{"parity": "both"}}, "settings.parity"},
		{"unknown keys", Spec{ID: "d", Port: "p", Settings: map[string]any{"boud": 9600, "colour": "red"}}, "settings.boud settings.colour"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, faults := ReadSettings(tt.spec, known)
			got := ""
			for i, f := range faults {
				if i > 0 {
					got += " "
				}
				got += f.Field
			}
			if got != tt.want {
				t.Errorf("fields = %q, want %q: %v", got, tt.want, faults)
			}
			if v.Int("baud") == 0 {
				t.Error("no value beside the faults")
			}
		})
	}
}

func TestUnescape(t *testing.T) {
	for text, want := range map[string]string{"": "", "W": "W", `\a`: "\a", `\x1b\a\x14`: "\x1b\a\x14", `[[\r\n`: "[[\r\n", `\xff`: "\xff"} {
		if got, err := Unescape(text); err != nil || string(got) != want {
			t.Errorf("Unescape(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{`\x1`, `\q`, `\`, "å"} {
		if got, err := Unescape(text); err == nil {
			t.Errorf("Unescape(%q) = %q, want an error", text, got)
		}
	}
}
