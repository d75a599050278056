package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// A Fault names one field that is wrong, what is wrong with it, and, where there is one,
// what a person can do about it.
type Fault struct {
	Field   string `json:"field"`          // path, such as lines[2].extendedAmount; "" for the whole
	Problem string `json:"problem"`        // what was found and what was wanted
	Hint    string `json:"hint,omitempty"` // what to do
}

func (f Fault) String() string {
	s := f.Problem
	if f.Field != "" {
		s = f.Field + ": " + s
	}
	if f.Hint != "" {
		s += " (" + f.Hint + ")"
	}
	return s
}

// Faults are all that is wrong with a body, in the order of its fields. It is an error.
type Faults []Fault

func (f Faults) Error() string {
	s := make([]string, len(f))
	for i := range f {
		s[i] = f[i].String()
	}
	return strings.Join(s, "; ")
}

// Add notes one fault.
func (f *Faults) Add(field, hint, format string, args ...any) {
	*f = append(*f, Fault{Field: field, Problem: fmt.Sprintf(format, args...), Hint: hint})
}

// AddAll notes the faults that err is, or err itself as one without a field.
func (f *Faults) AddAll(err error) {
	var faults Faults
	if errors.As(err, &faults) {
		*f = append(*f, faults...)
	} else if err != nil {
		f.Add("", "", "%s", err)
	}
}

// Err is nil when nothing was noted.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// under prefixes the fields of faults with a path.
func under(path string, faults Faults) Faults {
	for i, f := range faults {
		if f.Field == "" || f.Field[0] == '[' {
			faults[i].Field = path + f.Field
		} else {
			faults[i].Field = path + "." + f.Field
		}
	}
	return faults
}

// typeFault turns an error of encoding/json into a Fault that names the field.
func typeFault(err error) Faults {
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		return Faults{{Field: te.Field, Problem: fmt.Sprintf("want %s, got %s", jsonName(te.Type.Kind().String()), te.Value)}}
	}
	var se *json.SyntaxError
	if errors.As(err, &se) {
		return Faults{{Problem: fmt.Sprintf("not JSON at byte %d: %s", se.Offset, se.Error())}}
	}
	var faults Faults
	if errors.As(err, &faults) {
		return faults
	}
	return Faults{{Problem: err.Error()}}
}

func jsonName(kind string) string {
	switch {
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return "a whole number"
	case kind == "bool":
		return "true or false"
	case kind == "slice", kind == "array":
		return "a list"
	case kind == "struct", kind == "map":
		return "an object"
	default:
		return "a " + kind
	}
}
