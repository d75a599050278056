// Package config reads a YAML file into a struct and names everything that is wrong with it
// at once: keys that nobody knows (with the nearest one that is known), values of the wrong
// form, and what the struct's own Validate finds. It is the only importer of goccy/go-yaml.
package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/storelay/storelay/protocol"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// An Error is all that is wrong with one file.
type Error struct {
	Path   string
	Faults protocol.Faults // Field is the path of keys; the problem begins with the line
}

func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Faults)+1)
	lines = append(lines, fmt.Sprintf("%s: %d fault(s)", e.Path, len(e.Faults)))
	for _, f := range e.Faults {
		lines = append(lines, "  "+f.String())
	}
	return strings.Join(lines, "\n")
}

// Load reads the file at path into a struct whose fields carry yaml tags; what the file does
// not say keeps the value that it has. Validate, where the struct has it, sees the result
// and returns protocol.Faults. Errors: those of reading the file, or *Error.
//
// Struct fields may be structs, slices, map[string]any (free settings of a driver), strings,
// booleans, integers and time.Duration ("30s").
func Load(path string, into any) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if info.Size() > maxFile {
		return fmt.Errorf("read configuration: %s has %d bytes, at most %d", path, info.Size(), maxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if faults := Parse(text, into); len(faults) > 0 {
		return &Error{Path: path, Faults: faults}
	}
	return nil
}

// Parse is Load for the text of a file.
func Parse(text []byte, into any) protocol.Faults {
	var faults protocol.Faults
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		faults.Add("", "", "not YAML: %s", strings.TrimSpace(yaml.FormatError(err, false, false)))
		return faults
	}
	if len(file.Docs) > 1 {
		faults.Add("", "remove the --- lines", "want one YAML document, got %d", len(file.Docs))
		return faults
	}
	if len(file.Docs) == 1 && file.Docs[0].Body != nil {
		read(file.Docs[0].Body, reflect.ValueOf(into).Elem(), "", &faults)
	}
	if v, ok := into.(interface{ Validate() protocol.Faults }); ok {
		faults = append(faults, v.Validate()...)
	}
	return faults
}

// read puts one node into dst, noting faults under the path of keys.
func read(node ast.Node, dst reflect.Value, path string, faults *protocol.Faults) {
	if _, null := node.(*ast.NullNode); null {
		return
	}
	switch {
	case dst.Kind() == reflect.Struct:
		pairs, ok := mapping(node)
		if !ok {
			add(faults, node, path, "", "want keys and values")
			return
		}
		readStruct(pairs, dst, path, faults)
	case dst.Kind() == reflect.Slice && dst.Type().Elem().Kind() != reflect.Uint8:
		list, ok := node.(*ast.SequenceNode)
		if !ok {
			add(faults, node, path, "write it as - item lines", "want a list")
			return
		}
		dst.SetZero()
		for i, element := range list.Values {
			value := reflect.New(dst.Type().Elem()).Elem()
			read(element, value, fmt.Sprintf("%s[%d]", path, i), faults)
			dst.Set(reflect.Append(dst, value))
		}
	default:
		readScalar(node, dst, path, faults)
	}
}

func readScalar(node ast.Node, dst reflect.Value, path string, faults *protocol.Faults) {
	value := reflect.New(dst.Type())
	if text, ok := node.(*ast.IntegerNode); ok && dst.Kind() == reflect.String {
		// A store or workstation number is text: 0042 must not become 34.
		dst.SetString(text.GetToken().Value)
		return
	}
	if err := yaml.NodeToValue(node, value.Interface()); err != nil {
		add(faults, node, path, "", "want %s, got %s", kindName(dst.Type()), node.String())
		return
	}
	dst.Set(value.Elem())
}

func readStruct(pairs []*ast.MappingValueNode, dst reflect.Value, path string, faults *protocol.Faults) {
	seen := map[string]bool{}
	for _, pair := range pairs {
		key := pair.Key.GetToken().Value
		at := strings.TrimPrefix(path+"."+key, ".")
		field, known := fieldOf(dst, key)
		switch {
		case !known:
			add(faults, pair.Key, at, nearest(key, dst.Type()), "unknown key")
		case seen[key]:
			add(faults, pair.Key, at, "", "written twice")
		default:
			read(pair.Value, field, at, faults)
		}
		seen[key] = true
	}
}

func mapping(node ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

func fieldOf(dst reflect.Value, key string) (reflect.Value, bool) {
	for i := range dst.NumField() {
		if name(dst.Type().Field(i)) == key {
			return dst.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// name is a field's key in the file; "" when it is none.
func name(f reflect.StructField) string {
	n, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if n == "-" {
		return ""
	}
	return n
}

func add(faults *protocol.Faults, node ast.Node, path, hint, format string, args ...any) {
	line := 0
	if t := node.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	faults.Add(path, hint, "line %d: "+format, append([]any{line}, args...)...)
}

func kindName(t reflect.Type) string {
	switch {
	case t.String() == "time.Duration":
		return "a duration such as 30s"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.String:
		return "text"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return "a whole number"
	default:
		return "keys and values"
	}
}

// nearest hints at the known key that differs from key by the fewest letters.
func nearest(key string, t reflect.Type) string {
	var best, all = "", []string{}
	least := 3
	for i := range t.NumField() {
		n := name(t.Field(i))
		if n == "" {
			continue
		}
		all = append(all, n)
		if d := distance(key, n); d < least {
			best, least = n, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	return "known keys: " + strings.Join(all, ", ")
}

// distance is the Levenshtein distance of two short words, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
