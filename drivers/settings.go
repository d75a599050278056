package drivers

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// ErrOffline is the answer to a command for a device that is not there.
var ErrOffline = errors.New("device is offline")

// The classes of devices, as in protocol.DeviceState.
const (
	ClassCounter = "counter"
	ClassDrawer  = "drawer"
	ClassScale   = "scale"
	ClassScanner = "scanner"
	ClassCoins   = "acceptor" // takes coins
)

// A SettingType says what a setting's value looks like in the configuration.
type SettingType string

// The types of settings and the Go type that Values holds.
const (
	TypeInt      SettingType = "int"      // int
	TypeBool     SettingType = "bool"     // bool
	TypeText     SettingType = "text"     // string
	TypeChoice   SettingType = "choice"   // string, one of Choices
	TypeDuration SettingType = "duration" // time.Duration, written 500ms, 60s, 2m
)

// A Setting documents one key of a driver's settings. The table in the documentation and
// the check of a Spec are both made from it.
type Setting struct {
	Name     string
	Type     SettingType
	Default  any      // of the Go type of Type
	Choices  []string // TypeChoice
	Min, Max int64    // TypeInt; TypeDuration in ns; both 0 = unbounded
	Help     string
}

// SerialSettings are the keys that every driver with a serial port has; baud is the
// driver's default.
func SerialSettings(baud int) []Setting {
	signals := []string{"", "on", "off"}
	return []Setting{
		{Name: "baud", Type: TypeInt, Default: baud, Min: 50, Max: 4_000_000, Help: "bits per second"},
		{Name: "data_bits", Type: TypeInt, Default: 8, Min: 5, Max: 8, Help: "bits per character"},
		{Name: "parity", Type: TypeChoice, Default: "none", Choices: []string{"none", "odd", "even", "mark", "space"}, Help: "parity bit"},
		{Name: "stop_bits", Type: TypeChoice, Default: "1", Choices: []string{"1", "1.5", "2"}, Help: "stop bits; 1.5 only on Windows"},
		{Name: "dtr", Type: TypeChoice, Default: "", Choices: signals, Help: "level of DTR after opening; unset leaves it to the system, which raises it"},
		{Name: "rts", Type: TypeChoice, Default: "", Choices: signals, Help: "level of RTS after opening; unset leaves it to the system, which raises it"},
	}
}

// Values are the settings of one device, defaults filled in. Asking for a name or type that
// the driver did not declare panics: it is a mistake in the driver.
type Values map[string]any

// Int is the value of a TypeInt setting.
func (v Values) Int(name string) int { return v[name].(int) }

// Bool is the value of a TypeBool setting.
func (v Values) Bool(name string) bool { return v[name].(bool) }

// Text is the value of a TypeText or TypeChoice setting.
func (v Values) Text(name string) string { return v[name].(string) }

// Duration is the value of a TypeDuration setting.
func (v Values) Duration(name string) time.Duration { return v[name].(time.Duration) }

// Unescape reads a text in which bytes are written as \a, \r, \x1b and the like.
func Unescape(s string) ([]byte, error) {
	var out []byte
	for s != "" {
		r, multi, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil || multi {
			return nil, fmt.Errorf("not readable: %q", s)
		}
		out, s = append(out, byte(r)), rest
	}
	return out, nil
}

// ReadSettings reads a Spec against the settings that its driver knows. The faults are all
// that is wrong: id, port, unknown keys, types, ranges. The fields are id, port and
// settings.<key>. With faults Values still holds every known key.
func ReadSettings(spec Spec, known []Setting) (Values, protocol.Faults) {
	var faults protocol.Faults
	if !protocol.ValidID(spec.ID) {
		faults.Add("id", "letters, digits, _ and -, at most 64", "not an id: %q", spec.ID)
	}
	if spec.Port == "" {
		faults.Add("port", "a path, COM3, by-id:NAME or usb:VID:PID[:SERIAL]", "missing")
	}
	values := Values{}
	for _, s := range known {
		values[s.Name] = s.Default
		given, ok := spec.Settings[s.Name]
		if !ok {
			continue
		}
		value, err := s.read(given)
		if err != nil {
			faults.Add("settings."+s.Name, s.Help, "%s", err)
			continue
		}
		values[s.Name] = value
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Settings)) {
		if _, ok := values[name]; !ok {
			faults.Add("settings."+name, "known: "+names(known), "unknown setting of driver %s", spec.Driver)
		}
	}
	return values, faults
}

func names(settings []Setting) string {
	list := make([]string, len(settings))
	for i, s := range settings {
		list[i] = s.Name
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// read turns what a YAML or JSON decoder made of the value into the setting's type.
func (s Setting) read(given any) (any, error) {
	switch s.Type {
	case TypeInt:
		n, ok := wholeNumber(given)
		if !ok {
			return nil, fmt.Errorf("want a whole number, got %v", given)
		}
		if (s.Min != 0 || s.Max != 0) && (n < s.Min || n > s.Max) {
			return nil, fmt.Errorf("want %d to %d, got %d", s.Min, s.Max, n)
		}
		return int(n), nil
	case TypeBool:
		if b, ok := given.(bool); ok {
			return b, nil
		}
		return nil, fmt.Errorf("want true or false, got %v", given)
	case TypeDuration:
		text, _ := given.(string)
		d, err := time.ParseDuration(text)
		if err != nil {
			return nil, fmt.Errorf("want a time such as 500ms, 60s or 2m, got %v", given)
		}
		if (s.Min != 0 || s.Max != 0) && (d < time.Duration(s.Min) || d > time.Duration(s.Max)) {
			return nil, fmt.Errorf("want %s to %s, got %s", time.Duration(s.Min), time.Duration(s.Max), d)
		}
		return d, nil
	case TypeChoice:
		text := fmt.Sprint(given) // pin: 2 is as good as pin: "2"
		if slices.Contains(s.Choices, text) {
			return text, nil
		}
		return nil, fmt.Errorf("want one of %q, got %q", s.Choices, text)
	default:
		if text, ok := given.(string); ok {
			return text, nil
		}
		return nil, fmt.Errorf("want a text, got %v", given)
	}
}

func wholeNumber(given any) (int64, bool) {
	switch n := given.(type) {
	case int:
		return int64(n), true
	case int64:
		return n, true
	case uint64:
		return int64(n), n <= math.MaxInt64
	case float64:
		return int64(n), n == math.Trunc(n) && math.Abs(n) < 1<<53
	case json.Number:
		v, err := n.Int64()
		return v, err == nil
	}
	return 0, false
}
