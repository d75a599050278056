package filedrop

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
)

// POSLog of ARTS/OMG, 2.x and 6.x: POSLog/Transaction with one of RetailTransaction,
// ControlTransaction, TenderControlTransaction ... within. The versions differ in names of
// the same things and in the order of elements; both are read by name, in any order.

// maxRest bounds what a record holds of what nobody understands, in bytes.
const maxRest = 24 << 10

// poslog is the format.
func (d *Drop) poslog(src *source, each func(found) error) error {
	doc, err := newDocument(src)
	if err != nil {
		return err
	}
	root, err := doc.root()
	if err != nil {
		return err
	}
	if root.name.Local != "POSLog" {
		return &fileError{root.line, fmt.Sprintf("want a POSLog, got <%s>", root.name.Local), "is this the folder of another program?"}
	}
	for {
		n, err := doc.next()
		if n == nil || err != nil {
			return err
		}
		if !n.is("Transaction") {
			d.unread(src, "POSLog/"+n.name.Local)
			continue
		}
		f := d.mapTransaction(n)
		if f.unread != "" {
			d.unread(src, f.unread)
		}
		if err := each(f); err != nil {
			return err
		}
	}
}

// A posReader maps one transaction.
type posReader struct {
	drop     *Drop
	zone     *time.Location
	exponent int
	t        protocol.Transaction
	at       map[string]int // lines in the file
	faults   []lineFault
	sums     sums
	leftOut  map[string]bool
	sequence map[string]int // line item's own number -> index of t.Lines
	strikes  []string       // numbers of line items that struck lines name
	unread   string
}

func (d *Drop) mapTransaction(n *node) found {
	digest := n.digest()
	r := &posReader{drop: d, zone: d.zone(), at: map[string]int{}, leftOut: map[string]bool{}, sequence: map[string]int{}}
	r.header(n)
	if len(r.faults) == 0 {
		r.body(n)
	}
	f := found{line: n.line, id: fmt.Sprintf("%s/%s/%d", r.t.Workstation, r.t.BusinessDay, r.t.Sequence), digest: &digest, faults: r.faults, at: r.at, unread: r.unread}
	if len(r.faults) > 0 {
		return f
	}
	f.keep = r.keepRest(n)
	var err error
	if f.body, err = json.Marshal(r.t); err != nil {
		f.faults = append(f.faults, lineFault{n.line, protocol.Fault{Problem: err.Error()}})
	}
	return f
}

func (r *posReader) bad(n *node, field, hint, format string, args ...any) {
	r.faults = append(r.faults, lineFault{n.line, protocol.Fault{Field: field, Problem: fmt.Sprintf(format, args...), Hint: hint}})
}

// header reads what all transactions have.
func (r *posReader) header(n *node) {
	t, cfg := &r.t, &r.drop.cfg
	store := n.take("BusinessUnit", "UnitID")
	if v2 := n.take("RetailStoreID"); store == "" {
		store = v2
	}
	if store != "" && store != r.drop.store() {
		r.bad(n, "store", "set store in the drop's settings if the till calls this store so", "these files are of store %q, this one says %q", r.drop.store(), store)
	}
	said := n.take("WorkstationID")
	if t.Workstation = said; cfg.Workstations[said] != nil {
		t.Workstation = fmt.Sprint(cfg.Workstations[said])
	}
	number := n.take("SequenceNumber")
	var err error
	if t.Sequence, err = strconv.ParseInt(number, 10, 64); err != nil {
		r.bad(n, "SequenceNumber", "the till's own running number", "want a whole number, got %q", number)
	}
	day := n.take("BusinessDayDate")
	if day == "" {
		day = n.take("BusinessDayDate", "Date")
	}
	if day != "" {
		if t.BusinessDay, err = protocol.ParseDay(day[:min(len(day), 10)]); err != nil {
			r.bad(n, "BusinessDayDate", "", "%s", err)
		}
	}
	t.Begin, t.End = r.time(n, "BeginDateTime"), r.time(n, "EndDateTime")
	for _, other := range []string{"ReceiptDateTime", "POSLogDateTime"} {
		if t.Begin.IsZero() && t.End.IsZero() {
			t.End = r.time(n, other)
		}
	}
	if t.End.IsZero() {
		t.End = t.Begin
	}
	if t.Begin.IsZero() {
		t.Begin = t.End
	}
	t.Operator = n.take("OperatorID")
	if t.Currency = n.take("CurrencyCode"); t.Currency == "" {
		t.Currency = r.drop.cfg.Currency
	}
	if t.Currency == "" {
		t.Currency = currencyOf(n)
	}
	var ok bool
	if r.exponent, ok = protocol.CurrencyExponent(t.Currency); !ok {
		r.bad(n, "CurrencyCode", "set currency in the drop's settings if the till does not say it", "unknown currency %q", t.Currency)
	}
	t.Training = n.flag("TrainingModeFlag")
}

// currencyOf is the currency that the first amount names.
func currencyOf(n *node) string {
	for _, a := range n.attrs {
		if a.Name.Local == "Currency" || a.Name.Local == "CurrencyCode" {
			return a.Value
		}
	}
	for _, k := range n.kids {
		if c := currencyOf(k); c != "" {
			return c
		}
	}
	return ""
}

func (r *posReader) time(n *node, name string) time.Time {
	text := n.take(name)
	if text == "" {
		return time.Time{}
	}
	t, err := readTime(text, r.zone, timeForms...)
	if err != nil {
		r.bad(n.kid(name), name, "2026-03-29T10:15:00, with or without an offset", "%s", err)
	}
	return t
}

// statuses are the words of TransactionStatus for what is no sale, and what they mean here.
var statuses = map[string]string{
	"Canceled": "cancelled", "Cancelled": "cancelled", "Voided": "cancelled", "Failed": "failed", "Suspended": "suspended", "PostVoided": string(protocol.TypeVoid),
}

// body reads what the transaction is.
func (r *posReader) body(n *node) {
	var kinds []*node
	for _, k := range n.kids {
		if k.name.Space == "" && strings.HasSuffix(k.name.Local, "Transaction") {
			k.seen = true
			kinds = append(kinds, k)
		}
	}
	if len(kinds) != 1 {
		r.bad(n, "Transaction", "", "want one RetailTransaction, ControlTransaction or the like, got %d", len(kinds))
		return
	}
	b := kinds[0]
	cancelled := n.flag("CancelFlag")
	switch b.name.Local {
	case "RetailTransaction":
		r.retail(b)
		meaning := ""
		if status := attrOf(b, "TransactionStatus"); status != "" {
			meaning = statuses[status]
			if own := r.drop.cfg.Statuses[status]; own != nil {
				meaning = fmt.Sprint(own)
			}
		}
		switch {
		case meaning == string(protocol.TypeVoid):
			r.void(b, n)
		case cancelled:
			r.control("cancelled")
		case meaning != "" && meaning != string(protocol.TypeSale):
			r.control(meaning)
		case len(r.t.Lines) == 0 && len(r.t.Tenders) == 0:
			r.control("empty")
		}
	case "ControlTransaction", "TenderControlTransaction":
		r.controlled(b, n)
	default: // inventory, customer orders ...: kept whole, counted nowhere
		r.control(b.name.Local)
		r.unread = b.name.Local
	}
}

// attrOf reads an attribute and leaves it.
func attrOf(n *node, name string) string {
	for _, a := range n.attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// control makes the transaction one that counts nowhere; what it has read is kept.
func (r *posReader) control(what string) {
	r.t.Type, r.t.Control = protocol.TypeControl, word(what)
}

// remarks are elements that stand beside what a control transaction is about.
var remarks = []string{"ReasonCode", "Reason", "Description", "OperatorID", "OperatorBypassApproval", "TillID", "ManagerApproval"}

// controlled reads a ControlTransaction or a TenderControlTransaction: its first element says
// what the till did.
func (r *posReader) controlled(b, whole *node) {
	i := slices.IndexFunc(b.kids, func(k *node) bool { return k.name.Space == "" && !slices.Contains(remarks, k.name.Local) })
	what := attrOf(b, "TypeCode")
	if i >= 0 {
		what = b.kids[i].name.Local
		if what == "PostVoid" {
			b.kids[i].seen = true
			r.void(b.kids[i], b, whole)
			return
		}
	}
	if word(what) == "" {
		what = b.name.Local
	}
	r.control(what)
}

// void makes the transaction a post-void of the one that a link names.
func (r *posReader) void(where ...*node) {
	for _, n := range where {
		if link := n.kid("TransactionLink"); link != nil {
			id, _, ok := r.link(link)
			if !ok {
				r.bad(link, "TransactionLink", "", "want the SequenceNumber of the transaction that is undone")
				return
			}
			r.t.Type, r.t.Voids = protocol.TypeVoid, &id
			return
		}
	}
	r.bad(where[0], "TransactionLink", "a post-void names the transaction that it undoes", "missing")
}

// link reads a TransactionLink; what it does not say is as in this transaction.
func (r *posReader) link(n *node) (id protocol.TransactionID, line int, ok bool) {
	id = protocol.TransactionID{Store: r.drop.desk.Store, Workstation: r.workstation(), BusinessDay: r.t.BusinessDay}
	sequence, err := strconv.ParseInt(textOf(n, "SequenceNumber"), 10, 64)
	if err != nil || sequence < 1 {
		return id, 0, false
	}
	n.take("SequenceNumber")
	id.Sequence = sequence
	store := n.take("BusinessUnit", "UnitID")
	if store == "" {
		store = n.take("RetailStoreID")
	}
	if store != "" && store != r.drop.store() {
		id.Store = store
	}
	if till := n.take("WorkstationID"); till != "" {
		if id.Workstation = till; r.drop.cfg.Workstations[till] != nil {
			id.Workstation = fmt.Sprint(r.drop.cfg.Workstations[till])
		}
	}
	day := textOf(n, "BusinessDayDate", "Date")
	if day == "" {
		day = textOf(n, "BusinessDayDate")
	}
	if day != "" {
		if id.BusinessDay, err = protocol.ParseDay(day[:min(len(day), 10)]); err == nil {
			n.take("BusinessDayDate")
			n.take("BusinessDayDate", "Date")
		}
	}
	line, _ = strconv.Atoi(n.take("LineItemSequenceNumber"))
	return id, line, !id.BusinessDay.IsZero()
}

func (r *posReader) workstation() string {
	if r.t.Workstation != "" {
		return r.t.Workstation
	}
	return r.drop.cfg.Workstation
}

// textOf reads a text and leaves it.
func textOf(n *node, path ...string) string {
	if n = n.kid(path...); n == nil {
		return ""
	}
	return n.text
}

// keepRest puts what nobody has read into the record. It says true when that is too much, so
// that the file alone holds it.
func (r *posReader) keepRest(n *node) bool {
	rest := n.rest(r.leftOut)
	if len(r.leftOut) > 0 {
		names := make([]string, 0, len(r.leftOut))
		for name := range r.leftOut {
			names = append(names, name)
		}
		slices.Sort(names)
		r.extra("leftOut", names[:min(len(names), 100)])
	}
	if rest == nil {
		return false
	}
	text, err := json.Marshal(rest)
	if err != nil || len(text) > maxRest {
		r.extra("poslogTooLong", len(text))
		return true
	}
	r.extra("poslog", json.RawMessage(text))
	return false
}

func (r *posReader) extra(name string, value any) {
	if r.t.Extra == nil {
		r.t.Extra = protocol.Extra{}
	}
	put(r.t.Extra, name, value)
}

func put(extra protocol.Extra, name string, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		panic("filedrop: extra does not encode: " + err.Error()) // texts and numbers do
	}
	extra[name] = text
}

// amount reads a money element in minor units; one with more decimals than the currency has
// is rounded, and stays in the rest as it came.
func (r *posReader) amount(n *node, path ...string) (int64, bool) {
	return r.scaled(n, r.exponent, path...)
}

func (r *posReader) scaled(n *node, scale int, path ...string) (int64, bool) {
	k := n.kid(path...)
	if k == nil || k.text == "" {
		return 0, false
	}
	if d, err := decimal(k.text); err == nil {
		if value, exact, ok := scaled(d, scale); ok {
			if exact {
				k.text = ""
				k.attr("Currency")
			}
			return value, true
		}
	}
	r.bad(k, k.name.Local, "a number such as 129.50", "%q is not a number that can be", k.text)
	return 0, false
}
