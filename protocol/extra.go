package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Extra holds the members of a JSON object that this version does not know, as they came.
type Extra map[string]json.RawMessage

// decodeKeeping decodes a JSON object into known (a pointer to a struct without methods)
// and returns the members that known has no field for. Errors are Faults that name every
// field that could not be read, and every member with a known name in another case: which of
// two such members counts would depend on who reads them.
func decodeKeeping(data []byte, known any) (Extra, error) {
	whole := json.Unmarshal(data, known)
	var all Extra
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, typeFault(err)
	}
	var faults Faults
	var names []string
	for t, i := reflect.TypeOf(known).Elem(), 0; i < t.NumField(); i++ {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		names = append(names, name)
		if raw, ok := all[name]; ok && whole != nil {
			faults = append(faults, under(name, faultsIn(raw, t.Field(i).Type))...)
		}
		delete(all, name)
	}
	for _, extra := range slices.Sorted(maps.Keys(all)) {
		if i := slices.IndexFunc(names, func(name string) bool { return strings.EqualFold(name, extra) }); i >= 0 {
			faults.Add(extra, "names are case-sensitive", "written in another case than %s", names[i])
		}
	}
	if whole != nil && len(faults) == 0 {
		faults = typeFault(whole)
	}
	if len(all) == 0 {
		all = nil
	}
	return all, faults.Err()
}

// faultsIn decodes one member alone to learn what is wrong with it, element by element in
// a list.
func faultsIn(raw json.RawMessage, t reflect.Type) Faults {
	err := json.Unmarshal(raw, reflect.New(t).Interface())
	if err == nil {
		return nil
	}
	var elements []json.RawMessage
	if t.Kind() != reflect.Slice || json.Unmarshal(raw, &elements) != nil {
		return typeFault(err)
	}
	var faults Faults
	for i, element := range elements {
		faults = append(faults, under(fmt.Sprintf("[%d]", i), faultsIn(element, t.Elem()))...)
	}
	return faults
}

// encodeKeeping encodes known (a struct without methods) and appends the extra members,
// sorted by name.
func encodeKeeping(known any, extra Extra) ([]byte, error) {
	out, err := json.Marshal(known)
	if err != nil || len(extra) == 0 {
		return out, err
	}
	var b bytes.Buffer
	b.Write(bytes.TrimSuffix(out, []byte("}")))
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(name)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		if err := json.Compact(&b, extra[name]); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}
