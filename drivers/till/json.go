package till

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/storelay/storelay/protocol"
)

// maxDepth bounds the nesting of a body; a transaction needs five.
const maxDepth = 64

// maxPath bounds the path of a member, in bytes; longer ones are cut.
const maxPath = 200

// strictJSON gives the body without white space, if it is one JSON object in UTF-8 in which
// no member is named twice: readers do not agree on what such a thing means.
func strictJSON(body []byte) ([]byte, protocol.Faults) {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")) // the byte order mark of some Windows tills
	if !utf8.Valid(body) {
		return nil, protocol.Faults{{Problem: "not UTF-8", Hint: "send the text as UTF-8, not as Latin-1 or Windows-1252"}}
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	first, err := dec.Token()
	if err != nil {
		return nil, syntax(dec, err)
	}
	if first != json.Delim('{') {
		return nil, protocol.Faults{{Problem: "want an object", Hint: "one transaction per request"}}
	}
	var faults protocol.Faults
	if err := members(dec, "", 1, &faults); err != nil {
		return nil, syntax(dec, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, protocol.Faults{{Problem: fmt.Sprintf("more behind the object, at byte %d", dec.InputOffset()), Hint: "one transaction per request"}}
	}
	if faults != nil {
		return nil, faults
	}
	var b bytes.Buffer
	if err := json.Compact(&b, body); err != nil {
		return nil, syntax(dec, err)
	}
	return b.Bytes(), nil
}

func syntax(dec *json.Decoder, err error) protocol.Faults {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return protocol.Faults{{Problem: "the JSON ends too early"}}
	}
	return protocol.Faults{{Problem: fmt.Sprintf("not JSON at byte %d: %s", dec.InputOffset(), err)}}
}

// members walks an object behind its brace.
func members(dec *json.Decoder, path string, depth int, faults *protocol.Faults) error {
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		at := name
		if path != "" {
			at = path + "." + name
		}
		at = at[:min(len(at), maxPath)]
		// Readers of JSON in Go take names in any case, so Total and total are the same.
		folded := strings.ToLower(strings.ToUpper(name))
		if seen[folded] {
			faults.Add(strings.ToValidUTF8(at, ""), "", "named twice")
		}
		seen[folded] = true
		if err := value(dec, at, depth, faults); err != nil {
			return err
		}
	}
	_, err := dec.Token() // the closing brace
	return err
}

func value(dec *json.Decoder, path string, depth int, faults *protocol.Faults) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	if depth >= maxDepth {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	switch token {
	case json.Delim('{'):
		return members(dec, path, depth+1, faults)
	case json.Delim('['):
		for i := 0; dec.More(); i++ {
			if err := value(dec, fmt.Sprintf("%s[%d]", path, i), depth+1, faults); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	}
	return err
}

// printable says whether s is ASCII without control characters; "" is.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7E }) < 0
}

func utf8Charset(charset string) bool {
	return charset == "" || strings.EqualFold(charset, "utf-8") || strings.EqualFold(charset, "utf8")
}
