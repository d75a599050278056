package filedrop

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/storelay/storelay/protocol"
)

// CSV says what the columns of a till's table mean.
type CSV struct {
	Separator  string         `yaml:"separator"`  // one character, or tab; default ,
	Decimal    string         `yaml:"decimal"`    // . or ,; default .
	Encoding   string         `yaml:"encoding"`   // default utf-8; a byte order mark goes before it
	NoHeader   bool           `yaml:"noHeader"`   // the first line is data, and columns are numbers from 1
	TimeFormat string         `yaml:"timeFormat"` // such as DD.MM.YYYY hh:mm; default as in XML
	DayFormat  string         `yaml:"dayFormat"`  // such as DD.MM.YYYY; default YYYY-MM-DD
	Columns    map[string]any `yaml:"columns"`    // our field: their column
	Types      map[string]any `yaml:"types"`      // their word: sale, return, void, or what a control transaction did
	Ignore     []string       `yaml:"ignore"`     // columns that no record is to hold, such as names
}

// The fields that a column may be. One row is one line item, one payment or both; rows of the
// same workstation, day and number that follow each other are one transaction.
var (
	csvWhole  = []string{"workstation", "businessDay", "sequenceNumber", "type", "begin", "end", "operator", "customer", "currency", "training", "total", "rounding", "voids"}
	csvLine   = []string{"lineType", "item", "itemType", "gtin", "description", "group", "quantity", "unit", "unitPrice", "unitCost", "extendedAmount", "discountAmount", "taxAmount", "taxRate", "voided"}
	csvTender = []string{"tenderType", "tenderAmount", "tenderRef"}
)

// maxRows bounds the rows of one transaction.
const maxRows = 5000

// goForm makes a form of package time of one such as DD.MM.YYYY hh:mm:ss.
func goForm(form string) string {
	return strings.NewReplacer("YYYY", "2006", "YY", "06", "MM", "01", "DD", "02", "hh", "15", "mm", "04", "ss", "05").Replace(form)
}

// validate names what is wrong with the mapping.
func (c *CSV) validate(at string, f *protocol.Faults) {
	if c.Separator != "tab" && utf8.RuneCountInString(c.separator()) != 1 || strings.ContainsAny(c.separator(), "\"\r\n") {
		f.Add(at+".separator", "one character, such as ;, or tab", "not a separator: %q", c.Separator)
	}
	if c.Decimal != "" && c.Decimal != "." && c.Decimal != "," {
		f.Add(at+".decimal", "", "want . or a comma, got %q", c.Decimal)
	}
	if _, ok := encodings[strings.ToLower(c.Encoding)]; c.Encoding != "" && !ok {
		f.Add(at+".encoding", "known: utf-8, windows-1252, iso-8859-1, iso-8859-15", "unknown encoding %q", c.Encoding)
	}
	for _, form := range []struct{ key, text string }{{"timeFormat", c.TimeFormat}, {"dayFormat", c.DayFormat}} {
		if sample := time.Date(2026, 11, 22, 23, 51, 0, 0, time.UTC); form.text != "" {
			if back, err := time.Parse(goForm(form.text), sample.Format(goForm(form.text))); err != nil || back.Format(time.DateOnly) != sample.Format(time.DateOnly) {
				f.Add(at+"."+form.key, "YYYY, MM, DD, hh, mm and ss, such as DD.MM.YYYY hh:mm", "no form of a date: %q", form.text)
			}
		}
	}
	known := slices.Concat(csvWhole, csvLine, csvTender)
	for _, field := range slices.Sorted(maps.Keys(c.Columns)) {
		kind, isTender := strings.CutPrefix(field, "tender.")
		if !slices.Contains(known, field) && (!isTender || !tenderTypes[kind]) {
			f.Add(at+".columns."+field, "known: "+strings.Join(known, ", ")+", and tender.cash, tender.card ... for a column per means of payment", "unknown field")
		}
		if n, err := strconv.Atoi(fmt.Sprint(c.Columns[field])); c.NoHeader && (err != nil || n < 1) {
			f.Add(at+".columns."+field, "without a header columns are numbers from 1", "not a number: %v", c.Columns[field])
		}
	}
	for _, need := range [][]string{{"sequenceNumber"}, {"begin", "end"}} {
		if !slices.ContainsFunc(need, func(field string) bool { return c.Columns[field] != nil }) {
			f.Add(at+".columns."+need[len(need)-1], "the name of the till's column", "missing")
		}
	}
}

var tenderTypes = map[string]bool{protocol.TenderCash: true, protocol.TenderCard: true, protocol.TenderGiftCard: true, protocol.TenderVoucher: true,
	protocol.TenderMobile: true, protocol.TenderAccount: true, protocol.TenderOther: true}

func (c *CSV) separator() string {
	switch c.Separator {
	case "":
		return ","
	case "tab":
		return "\t"
	}
	return c.Separator
}

// A table is a CSV file being read.
type table struct {
	drop    *Drop
	zone    *time.Location
	columns map[string]int // field -> column
	names   []string       // of columns
	spare   []int          // columns that are kept as they are
}

// A row is one line of the file.
type row struct {
	line   int
	fields []string
}

// csvFile is the format.
func (d *Drop) csvFile(src *source, each func(found) error) error {
	c := &d.cfg.CSV
	if src.encoding == "" {
		src.encoding = encodings[strings.ToLower(c.Encoding)]
	}
	in := csv.NewReader(src)
	in.Comma, _ = utf8.DecodeRuneInString(c.separator())
	t := &table{drop: d, zone: d.zone()}
	read := func() (row, error) {
		fields, err := in.Read()
		if err != nil {
			return row{}, badCSV(src, err)
		}
		line, _ := in.FieldPos(0)
		src.done()
		for i, field := range fields {
			if !utf8.ValidString(field) {
				return row{}, &fileError{line, fmt.Sprintf("column %d is not UTF-8", i+1), "set csv.encoding, for instance to windows-1252"}
			}
		}
		return row{line, fields}, nil
	}
	first, err := read()
	if errors.Is(err, io.EOF) {
		return &fileError{1, "the file is empty", ""}
	}
	if err == nil {
		err = t.head(first)
	}
	var rows []row
	if c.NoHeader {
		rows = append(rows, first)
	}
	for err == nil {
		var next row
		if next, err = read(); err != nil {
			break
		}
		if len(rows) > 0 && (t.key(rows[0]) != t.key(next)) {
			if err = each(t.transaction(rows)); err != nil {
				return err
			}
			rows = rows[:0]
		}
		if rows = append(rows, next); len(rows) > maxRows {
			return &fileError{next.line, fmt.Sprintf("one transaction has more than %d rows", maxRows), "is sequenceNumber the right column?"}
		}
	}
	if errors.Is(err, io.EOF) && len(rows) > 0 {
		return each(t.transaction(rows))
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func badCSV(src *source, err error) error {
	var parse *csv.ParseError
	switch {
	case errors.As(err, &parse):
		hint := ""
		if errors.Is(err, csv.ErrFieldCount) {
			hint = "each line has as many columns as the first; is csv.separator right?"
		}
		return &fileError{parse.Line, parse.Err.Error(), hint}
	case errors.Is(err, errPiece), errors.Is(err, io.ErrUnexpectedEOF):
		return &fileError{src.line, err.Error(), "is a quotation mark missing?"}
	}
	return err
}

// head finds the columns.
func (t *table) head(first row) error {
	c := &t.drop.cfg.CSV
	t.names = make([]string, len(first.fields))
	for i, name := range first.fields {
		if t.names[i] = strings.TrimSpace(name); c.NoHeader {
			t.names[i] = strconv.Itoa(i + 1)
		}
	}
	t.columns = map[string]int{}
	used := map[int]bool{}
	for _, field := range slices.Sorted(maps.Keys(c.Columns)) {
		name := fmt.Sprint(c.Columns[field])
		i := slices.Index(t.names, name)
		if i < 0 {
			return &fileError{first.line, fmt.Sprintf("there is no column %q, which csv.columns.%s names; there are %q", name, field, t.names), "is csv.separator right?"}
		}
		t.columns[field], used[i] = i, true
	}
	for i, name := range t.names {
		if !used[i] && !slices.Contains(c.Ignore, name) {
			t.spare = append(t.spare, i)
		}
	}
	return nil
}

// get is a field of a row, "" when no column is it.
func (t *table) get(r row, field string) string {
	if i, ok := t.columns[field]; ok {
		return strings.TrimSpace(r.fields[i])
	}
	return ""
}

func (t *table) key(r row) [3]string {
	return [3]string{t.get(r, "workstation"), t.get(r, "businessDay"), t.get(r, "sequenceNumber")}
}

// A csvReader makes one transaction of its rows.
type csvReader struct {
	*table
	t        protocol.Transaction
	exponent int
	faults   []lineFault
}

func (r *csvReader) bad(line int, field, hint, format string, args ...any) {
	if i, ok := r.columns[field]; ok {
		field = r.names[i]
	}
	r.faults = append(r.faults, lineFault{line, protocol.Fault{Field: field, Problem: fmt.Sprintf(format, args...), Hint: hint}})
}

func (t *table) transaction(rows []row) found {
	r := &csvReader{table: t}
	f := found{line: rows[0].line, at: map[string]int{}}
	all := r.merge(rows)
	r.whole(all)
	for _, row := range rows {
		r.line(row, all, f.at)
		r.tender(row, f.at)
	}
	f.id = fmt.Sprintf("%s/%s/%d", r.t.Workstation, r.t.BusinessDay, r.t.Sequence)
	r.finish(all)
	h := sha256.New()
	for _, row := range rows {
		for i, field := range row.fields {
			if !slices.Contains(t.drop.cfg.CSV.Ignore, t.names[i]) {
				h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(field))))
				h.Write([]byte(field))
			}
		}
	}
	digest := [sha256.Size]byte(h.Sum(nil))
	f.digest, f.faults = &digest, r.faults
	var err error
	if f.body, err = json.Marshal(r.t); err != nil {
		r.bad(f.line, "", "", "%s", err)
		f.faults = r.faults
	}
	return f
}

// merge is a row with all that any of them says of the transaction as a whole.
func (r *csvReader) merge(rows []row) row {
	all := row{rows[0].line, slices.Clone(rows[0].fields)}
	for _, field := range csvWhole {
		i, ok := r.columns[field]
		said := all.line
		for _, row := range rows[1:] {
			switch {
			case !ok || r.get(row, field) == "" || r.get(row, field) == r.get(all, field):
			case r.get(all, field) == "":
				all.fields[i], said = row.fields[i], row.line
			default:
				r.bad(row.line, field, "all rows of one transaction say the same, or nothing", "%q here, %q in line %d", r.get(row, field), r.get(all, field), said)
			}
		}
	}
	return all
}

// whole reads what is said of the transaction.
func (r *csvReader) whole(first row) {
	said := r.get(first, "workstation")
	if r.t.Workstation = said; r.drop.cfg.Workstations[said] != nil {
		r.t.Workstation = fmt.Sprint(r.drop.cfg.Workstations[said])
	}
	var err error
	number := r.get(first, "sequenceNumber")
	if r.t.Sequence, err = strconv.ParseInt(number, 10, 64); err != nil {
		r.bad(first.line, "sequenceNumber", "the till's own running number", "want a whole number, got %q", number)
	}
	if day := r.get(first, "businessDay"); day != "" {
		form := time.DateOnly
		if own := r.drop.cfg.CSV.DayFormat; own != "" {
			form = goForm(own)
		}
		at, err := time.Parse(form, day)
		if err != nil {
			r.bad(first.line, "businessDay", "csv.dayFormat says how it is written", "%q is not a day", day)
		}
		r.t.BusinessDay = protocol.Day{Year: at.Year(), Month: at.Month(), Date: at.Day()}
	}
	r.t.Begin, r.t.End = r.time(first, "begin"), r.time(first, "end")
	if r.t.End.IsZero() {
		r.t.End = r.t.Begin
	}
	if r.t.Begin.IsZero() {
		r.t.Begin = r.t.End
	}
	r.t.Operator, r.t.Customer = r.get(first, "operator"), r.get(first, "customer")
	if r.t.Currency = r.get(first, "currency"); r.t.Currency == "" {
		r.t.Currency = r.drop.cfg.Currency
	}
	var ok bool
	if r.exponent, ok = protocol.CurrencyExponent(r.t.Currency); !ok {
		r.bad(first.line, "currency", "set currency in the drop's settings if no column has it", "unknown currency %q", r.t.Currency)
	}
	r.t.Training = yes(r.get(first, "training"))
	if number := r.get(first, "voids"); number != "" {
		sequence, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			r.bad(first.line, "voids", "the number of the transaction that is undone, of the same till and day", "want a whole number, got %q", number)
		}
		till := r.t.Workstation
		if till == "" {
			till = r.drop.cfg.Workstation
		}
		r.t.Voids = &protocol.TransactionID{Store: r.drop.desk.Store, Workstation: till, BusinessDay: r.t.BusinessDay, Sequence: sequence}
	}
}

func (r *csvReader) time(row row, field string) time.Time {
	text := r.get(row, field)
	if text == "" {
		return time.Time{}
	}
	forms := timeForms
	if own := r.drop.cfg.CSV.TimeFormat; own != "" {
		forms = []string{goForm(own)}
	}
	t, err := readTime(text, r.zone, forms...)
	if err != nil {
		r.bad(row.line, field, "csv.timeFormat says how it is written", "%s", err)
	}
	return t
}

func yes(text string) bool {
	return slices.Contains([]string{"1", "true", "yes", "y", "x", "j", "ja"}, strings.ToLower(text))
}

// number reads a number of so many decimals; said is false when there is none.
func (r *csvReader) number(row row, field string, scale int) (n int64, said bool) {
	text := r.get(row, field)
	if text == "" {
		return 0, false
	}
	d, err := decimal(r.point(text))
	if err == nil {
		var ok bool
		if n, _, ok = scaled(d, scale); ok {
			return n, true
		}
	}
	r.bad(row.line, field, "csv.decimal says what stands before the decimals", "%q is not a number that can be", text)
	return 0, false
}

// point is a number as everybody writes it.
func (r *csvReader) point(text string) string {
	text = strings.NewReplacer(" ", "", "\u00a0", "", "\u202f", "", "\u2212", "-").Replace(text)
	if r.drop.cfg.CSV.Decimal == "," {
		return strings.Replace(strings.ReplaceAll(text, ".", ""), ",", ".", 1)
	}
	return strings.ReplaceAll(text, ",", "")
}

// extras are the columns that nobody has read.
func (r *csvReader) extras(row row) protocol.Extra {
	left := map[string]string{}
	for _, i := range r.spare {
		if text := strings.TrimSpace(row.fields[i]); text != "" {
			left[r.names[i]] = masked(text)
		}
	}
	if len(left) == 0 {
		return nil
	}
	extra := protocol.Extra{}
	put(extra, "csv", left)
	return extra
}
