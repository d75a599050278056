package filedrop

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// Bounds of one transaction's XML.
const (
	maxDepth    = 40
	maxElements = 60_000 // 2000 lines of 30
)

// A node is an element of a transaction. What is read of it is taken off it: what is left in
// the end is what nobody has understood.
type node struct {
	name  xml.Name // Space "" = the namespace of the file's root
	attrs []xml.Attr
	text  string
	kids  []*node
	line  int
	seen  bool // somebody knows what it is
}

// kid is the first child of a name, nil when there is none; it is taken for known.
func (n *node) kid(path ...string) *node {
	for _, name := range path {
		if n == nil {
			return nil
		}
		i := slices.IndexFunc(n.kids, func(k *node) bool { return k.is(name) })
		if i < 0 {
			return nil
		}
		n = n.kids[i]
		n.seen = true
	}
	return n
}

func (n *node) is(name string) bool { return n.name.Space == "" && n.name.Local == name }

// all gives the children of a name.
func (n *node) all(name string) []*node {
	if n == nil {
		return nil
	}
	var found []*node
	for _, k := range n.kids {
		if k.is(name) {
			k.seen = true
			found = append(found, k)
		}
	}
	return found
}

// take gives the text of a descendant, "" when there is none, and takes it off.
func (n *node) take(path ...string) string {
	k := n.kid(path...)
	if k == nil {
		return ""
	}
	text := k.text
	k.text = ""
	return text
}

// attr gives an attribute and takes it off.
func (n *node) attr(name string) string {
	if n == nil {
		return ""
	}
	i := slices.IndexFunc(n.attrs, func(a xml.Attr) bool { return a.Name.Local == name && a.Name.Space == "" })
	if i < 0 {
		return ""
	}
	value := n.attrs[i].Value
	n.attrs = slices.Delete(n.attrs, i, i+1)
	return strings.TrimSpace(value)
}

func (n *node) flag(name string) bool {
	value := n.attr(name)
	return value == "1" || strings.EqualFold(value, "true")
}

// digest is the same for the same content, whatever its white space and prefixes. When a log
// was written is not part of it: a till that writes the same receipt again says another time.
func (n *node) digest() [sha256.Size]byte {
	h := sha256.New()
	n.hash(h)
	return [sha256.Size]byte(h.Sum(nil))
}

func (n *node) hash(h hash.Hash) {
	put := func(texts ...string) {
		for _, s := range texts {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s))))
			h.Write([]byte(s))
		}
	}
	put(n.name.Space, n.name.Local, n.text)
	attrs := slices.SortedFunc(slices.Values(n.attrs), func(a, b xml.Attr) int {
		return cmp.Or(strings.Compare(a.Name.Space, b.Name.Space), strings.Compare(a.Name.Local, b.Name.Local))
	})
	for _, a := range attrs {
		put("@", a.Name.Space, a.Name.Local, a.Value)
	}
	for _, k := range n.kids {
		if !k.is("POSLogDateTime") {
			k.hash(h)
		}
	}
	put("/")
}

// A document reads the transactions of an XML file one by one. It knows no external entity
// and no document type: both are refused.
type document struct {
	src  *source
	dec  *xml.Decoder
	home string // namespace of the root
	left int    // elements that this transaction may still have
}

func newDocument(src *source) (*document, error) {
	if err := src.declare(); err != nil {
		return nil, err
	}
	d := &document{src: src, dec: xml.NewDecoder(src)}
	d.dec.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil } // src has decoded it
	return d, nil
}

// bad names the line of what is wrong.
func (d *document) bad(err error) error {
	var known *fileError
	if errors.As(err, &known) {
		return known
	}
	line, _ := d.dec.InputPos()
	problem, hint := err.Error(), ""
	var syntax *xml.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line, problem = syntax.Line, syntax.Msg
	case errors.Is(err, errPiece):
		line = d.src.line
	}
	if errors.Is(err, io.EOF) || strings.Contains(problem, "unexpected EOF") {
		problem, hint = "the XML ends too early", "was it written by a program that was still at it? then set ready: marker or a longer settle"
	}
	return &fileError{line, problem, hint}
}

// token is the next one that says something.
func (d *document) token() (xml.Token, error) {
	for {
		t, err := d.dec.Token()
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.Directive:
			line, _ := d.dec.InputPos()
			return nil, &fileError{line, "a document type or an entity is declared", "it is never read; write the file without <!DOCTYPE>"}
		case xml.ProcInst, xml.Comment:
		default:
			return t, nil
		}
	}
}

// root reads the start of the root element.
func (d *document) root() (*node, error) {
	for {
		t, err := d.token()
		if err != nil {
			return nil, d.bad(err)
		}
		if start, ok := t.(xml.StartElement); ok {
			d.home = start.Name.Space
			return d.begin(start), nil
		}
	}
}

// next is the next child of the root, whole; nil at the end of the file.
func (d *document) next() (*node, error) {
	d.src.done()
	d.left = maxElements
	for {
		t, err := d.token()
		if err != nil {
			return nil, d.bad(err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			n := d.begin(t)
			if err := d.fill(n, 2); err != nil {
				return nil, d.bad(err)
			}
			return n, nil
		case xml.EndElement: // the root's
			return nil, d.end()
		}
	}
}

// end reads what stands behind the root: nothing may.
func (d *document) end() error {
	for {
		t, err := d.token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return d.bad(err)
		}
		if text, ok := t.(xml.CharData); !ok || len(bytes.TrimSpace(text)) > 0 {
			line, _ := d.dec.InputPos()
			return &fileError{line, "more stands behind the end of the document", "one file is one document"}
		}
	}
}

func (d *document) begin(start xml.StartElement) *node {
	line, _ := d.dec.InputPos()
	n := &node{name: start.Name, line: line}
	if n.name.Space == d.home {
		n.name.Space = ""
	}
	for _, a := range start.Attr {
		if a.Name.Space == "xmlns" || a.Name.Local == "xmlns" || strings.HasSuffix(a.Name.Space, "XMLSchema-instance") {
			continue
		}
		if a.Name.Space == d.home {
			a.Name.Space = ""
		}
		n.attrs = append(n.attrs, xml.Attr{Name: a.Name, Value: strings.Clone(a.Value)})
	}
	return n
}

// fill reads up to the end of n.
func (d *document) fill(n *node, depth int) error {
	if depth > maxDepth {
		return &fileError{n.line, fmt.Sprintf("elements are nested more than %d deep", maxDepth), ""}
	}
	if d.left--; d.left < 0 {
		return &fileError{n.line, fmt.Sprintf("one transaction has more than %d elements", maxElements), ""}
	}
	var text strings.Builder
	for {
		t, err := d.token()
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.CharData:
			text.Write(t)
		case xml.StartElement:
			k := d.begin(t)
			n.kids = append(n.kids, k)
			if err := d.fill(k, depth+1); err != nil {
				return err
			}
		case xml.EndElement:
			n.text = strings.TrimSpace(text.String())
			return nil
		}
	}
}

// personal are elements and attributes that tell of a person or a card: no record holds them,
// since it can never be erased.
var personal = []string{"FirstName", "LastName", "FullName", "GivenName", "Surname", "OperatorName", "Address", "Telephone", "Phone", "Email", "EMail",
	"Birth", "PrimaryAccountNumber", "AccountNumber", "CardHolder", "Track1", "Track2", "TrackData", "ExpirationDate", "SocialSecurity", "LoyaltyAccount",
	"LoyaltyID", "Customer"}

func isPersonal(name string) bool {
	return name != "CustomerOrderTransaction" &&
		slices.ContainsFunc(personal, func(p string) bool { return strings.HasPrefix(name, p) || strings.HasSuffix(name, p) })
}

// rest is what nobody has taken, in the form of JSON: texts, "@attributes" and children; nil
// when it is nothing. What is personal goes to leftOut, by its name alone.
func (n *node) rest(leftOut map[string]bool) any {
	name := n.name.Local
	if n.name.Space != "" {
		name = "{" + n.name.Space + "}" + name
	}
	if isPersonal(n.name.Local) {
		if !n.empty() {
			leftOut[name] = true
		}
		return nil
	}
	left := map[string]any{}
	for _, a := range n.attrs {
		if isPersonal(a.Name.Local) {
			leftOut[name+"@"+a.Name.Local] = true
			continue
		}
		left["@"+a.Name.Local] = masked(a.Value)
	}
	for _, k := range n.kids {
		value := k.rest(leftOut)
		if value == nil {
			continue
		}
		key := k.name.Local
		if k.name.Space != "" {
			key = "{" + k.name.Space + "}" + key
		}
		switch before := left[key].(type) {
		case nil:
			left[key] = value
		case []any:
			left[key] = append(before, value)
		default:
			left[key] = []any{before, value}
		}
	}
	text := masked(n.text)
	switch {
	case len(left) > 0 && text != "":
		left["#text"] = text
		return left
	case len(left) > 0:
		return left
	case text != "" || !n.seen:
		return text
	}
	return nil
}

func (n *node) empty() bool {
	return n.text == "" && len(n.attrs) == 0 && !slices.ContainsFunc(n.kids, func(k *node) bool { return !k.empty() })
}

// masked hides the middle of a card number: 14 digits or more with Luhn's check digit that
// are no GTIN.
func masked(text string) string {
	digits := strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, text)
	if len(digits) < 14 || len(digits) > 19 || strings.Trim(digits, "0123456789") != "" || !luhn(digits) || protocol.ValidGTIN(digits) {
		return text
	}
	return digits[:6] + strings.Repeat("*", len(digits)-10) + digits[len(digits)-4:]
}

func luhn(digits string) bool {
	sum := 0
	for i := range len(digits) {
		d := int(digits[i] - '0')
		if (len(digits)-i)%2 == 0 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0
}
