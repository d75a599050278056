package filedrop

import (
	"maps"
	"slices"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// line reads the line item of a row, if it has one.
func (r *csvReader) line(row, all row, at map[string]int) {
	item := r.get(row, "item")
	if item == "" && r.get(row, "extendedAmount") == "" {
		if extra := r.extras(row); extra != nil && r.t.Extra == nil {
			r.t.Extra = extra
		}
		return
	}
	at[index("lines", len(r.t.Lines))] = row.line
	l := protocol.LineItem{Type: protocol.LineSale, Item: item, ItemType: r.get(row, "itemType"), GTIN: r.get(row, "gtin"), Description: r.get(row, "description"),
		Group: r.get(row, "group"), Voided: yes(r.get(row, "voided")), Extra: r.extras(row)}
	if l.GTIN != "" && !protocol.ValidGTIN(l.GTIN) {
		if l.Extra == nil {
			l.Extra = protocol.Extra{}
		}
		put(l.Extra, "notGTIN", l.GTIN)
		l.GTIN = ""
	}
	quantity, said := r.number(row, "quantity", 3)
	amount, _ := r.number(row, "extendedAmount", r.exponent)
	if !said {
		if quantity = 1000; amount < 0 {
			quantity = -1000
		}
	}
	kind := r.get(row, "lineType")
	if own, ok := r.drop.cfg.CSV.Types[kind].(string); ok {
		kind = own
	}
	sign := int64(1)
	if back := kind == protocol.LineReturn || quantity < 0 || r.meaning(all) == string(protocol.TypeReturn); back {
		l.Type, sign = protocol.LineReturn, -1
		amount = -abs(amount)
	}
	l.Quantity = protocol.Quantity{Milli: sign * abs(quantity), Unit: strings.ToUpper(r.get(row, "unit"))}
	l.ExtendedAmount = amount
	off, _ := r.number(row, "discountAmount", r.exponent)
	l.DiscountAmount = sign * abs(off)
	tax, _ := r.number(row, "taxAmount", r.exponent)
	if l.TaxAmount = tax; sign < 0 {
		l.TaxAmount = -abs(tax)
	}
	l.TaxRate, _ = r.number(row, "taxRate", 2)
	l.UnitPrice, l.UnitCost = r.price(row, "unitPrice"), r.price(row, "unitCost")
	r.t.Lines = append(r.t.Lines, l)
}

func (r *csvReader) price(row row, field string) *protocol.Decimal {
	text := r.get(row, field)
	if text == "" {
		return nil
	}
	d, err := decimal(r.point(text))
	if err != nil {
		r.bad(row.line, field, "csv.decimal says what stands before the decimals", "%s", err)
		return nil
	}
	return &d
}

// meaning is our word for the transaction's type.
func (r *csvReader) meaning(row row) string {
	said := r.get(row, "type")
	if own, ok := r.drop.cfg.CSV.Types[said].(string); ok {
		return own
	}
	return said
}

// tender reads the payments of a row: its own, and those of columns per means of payment.
func (r *csvReader) tender(row row, at map[string]int) {
	add := func(field, kind string, extra protocol.Extra) {
		if amount, said := r.number(row, field, r.exponent); said && amount != 0 {
			at[index("tenders", len(r.t.Tenders))] = row.line
			r.t.Tenders = append(r.t.Tenders, protocol.Tender{Type: kind, Amount: amount, Ref: masked(r.get(row, "tenderRef")), Extra: extra})
		}
	}
	said := r.get(row, "tenderType")
	kind, known := r.drop.tenderType(said)
	var extra protocol.Extra
	if !known && said != "" {
		extra = protocol.Extra{}
		put(extra, "tenderType", said)
	}
	add("tenderAmount", kind, extra)
	for _, kind := range slices.Sorted(maps.Keys(tenderTypes)) { // said once, in the first row that does
		field := "tender." + kind
		if _, ok := r.columns[field]; ok && !slices.ContainsFunc(r.t.Tenders, func(t protocol.Tender) bool { return t.Type == kind }) {
			add(field, kind, nil)
		}
	}
}

// finish says what the transaction is, and its total where no column has it.
func (r *csvReader) finish(first row) {
	t := &r.t
	rounding, _ := r.number(first, "rounding", r.exponent)
	t.Rounding = rounding
	total, said := r.number(first, "total", r.exponent)
	switch kind := r.meaning(first); kind {
	case "":
		if t.Type = protocol.TypeReturn; len(t.Lines) == 0 || slices.ContainsFunc(t.Lines, func(l protocol.LineItem) bool { return l.Type == protocol.LineSale && !l.Voided }) {
			t.Type = protocol.TypeSale
		}
		if t.Voids != nil {
			t.Type = protocol.TypeVoid
		}
	case string(protocol.TypeSale), string(protocol.TypeReturn), string(protocol.TypeVoid):
		t.Type = protocol.TransactionType(kind)
	default:
		// A word that nobody has mapped may be their word for a sale: it must not count nowhere.
		if _, mapped := r.drop.cfg.CSV.Types[r.get(first, "type")]; !mapped {
			r.bad(first.line, "type", "csv.types says what the till's words mean", "unknown type %q", kind)
		}
		t.Type, t.Control = protocol.TypeControl, word(kind)
	}
	if !said {
		total = lineSum(t) + rounding
	}
	if said && t.Type == protocol.TypeReturn && total > 0 {
		total = -total
	}
	t.Total = total
}
