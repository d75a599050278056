package filedrop

import (
	"strings"

	"github.com/storelay/storelay/protocol"
)

// retail reads the line items of a RetailTransaction.
func (r *posReader) retail(b *node) {
	t := &r.t
	items := b.all("LineItem")
	for _, item := range items {
		r.item(item)
	}
	for _, tax := range b.all("Tax") {
		r.tax(tax)
	}
	for _, struck := range r.strikes {
		if i, ok := r.sequence[struck]; ok {
			t.Lines[i].Voided = true
		}
	}
	if customer := b.take("Customer", "CustomerID"); customer != "" {
		t.Customer = customer
	}
	if t.Operator == "" {
		t.Operator = b.take("OperatorID")
	}
	for _, total := range b.all("Total") {
		switch attrOf(total, "TotalType") {
		case "TransactionGrandAmount":
			if said, ok := r.amountOf(total); ok {
				r.sums.grand, r.sums.said = said, true
				total.attr("TotalType")
			}
		}
	}
	t.Type = protocol.TypeReturn
	for i := range t.Lines {
		if l := &t.Lines[i]; !l.Voided && l.Type == protocol.LineSale {
			t.Type = protocol.TypeSale
		}
	}
	if len(t.Lines) == 0 {
		t.Type = protocol.TypeSale
	}
	r.sums.settle(t, r)
}

// amountOf is the amount that the element itself holds.
func (r *posReader) amountOf(n *node) (int64, bool) {
	parent := &node{kids: []*node{n}}
	return r.amount(parent, n.name.Local)
}

// item reads a LineItem. Which of its elements says what it is, and whether its number stands
// before or behind that, differs by version.
func (r *posReader) item(item *node) {
	number := item.take("SequenceNumber")
	void := item.flag("VoidFlag")
	for _, kind := range item.kids {
		if kind.name.Space != "" {
			continue
		}
		switch kind.name.Local {
		case "Sale", "Return", "Deposit", "GiftCertificate":
			kind.seen = true
			r.sequence[number] = len(r.t.Lines)
			r.line(kind, void)
			for _, where := range []*node{item, kind} {
				if struck := textOf(where, "ItemLink"); void && struck != "" {
					r.strikes = append(r.strikes, struck)
				}
			}
		case "Tender":
			if !void { // a struck one stays in the rest
				kind.seen = true
				r.tender(kind)
			}
		case "TenderChange":
			if !void {
				kind.seen = true
				r.change(kind)
			}
		case "Tax":
			if !void {
				kind.seen = true
				r.tax(kind)
			}
		case "Discount":
			if !void {
				kind.seen = true
				off, _ := r.amount(kind, "Amount")
				r.sums.discount += off
			}
		}
	}
}

// line reads what was sold or given back. Goods come back when the element says Return or the
// quantity is negative, whatever the sign of the amount.
func (r *posReader) line(n *node, void bool) {
	at := index("lines", len(r.t.Lines))
	r.at[at] = n.line
	l := protocol.LineItem{Type: protocol.LineSale, Voided: void, Item: n.take("ItemID"), Description: n.take("Description"), Group: n.take("MerchandiseHierarchy")}
	l.ItemType = itemType(n)
	r.identify(n, &l)
	quantity, said := r.scaled(n, 3, "Quantity")
	if q := n.kid("Quantity"); q != nil {
		r.at[at+".quantity"] = q.line
		if l.Quantity.Unit = strings.ToUpper(q.attr("UnitOfMeasureCode")); l.Quantity.Unit == "EA" {
			l.Quantity.Unit = ""
		}
	}
	if !said {
		quantity = 1000
	}
	back := n.name.Local == "Return" || quantity < 0
	sign := int64(1)
	if back {
		l.Type, sign = protocol.LineReturn, -1
	}
	l.Quantity.Milli = sign * abs(quantity)
	l.UnitPrice = r.price(n, "ActualSalesUnitPrice")
	l.UnitCost = r.price(n, "UnitCostPrice")
	r.extended(n, &l, back)
	off, said := r.amount(n, "ExtendedDiscountAmount")
	if !said {
		off, said = r.amount(n, "DiscountAmount")
	}
	if !said {
		off = r.modifiers(n)
	}
	l.DiscountAmount = sign * abs(off)
	for _, tax := range n.all("Tax") {
		if amount, ok := r.amount(tax, "Amount"); ok {
			if back {
				amount = -abs(amount)
			}
			l.TaxAmount += amount
		}
		if rate, ok := r.scaled(tax, 2, "Percent"); ok {
			l.TaxRate += rate
		}
	}
	if link := n.kid("TransactionLink"); link != nil && back {
		if id, line, ok := r.link(link); ok {
			l.Of, l.OfLine = &id, line
		}
	}
	r.t.Lines = append(r.t.Lines, l)
}

func itemType(n *node) string {
	switch n.name.Local {
	case "Deposit":
		return protocol.ItemDeposit
	case "GiftCertificate":
		return protocol.ItemGiftCard
	}
	kinds := map[string]string{"Stock": "", "Service": protocol.ItemService, "Deposit": protocol.ItemDeposit, "GiftCertificate": protocol.ItemGiftCard, "GiftCard": protocol.ItemGiftCard}
	kind, known := kinds[attrOf(n, "ItemType")]
	if known {
		n.attr("ItemType")
	}
	return kind
}

// identify finds the item's numbers: the retailer's own, and the GTIN where it is one.
func (r *posReader) identify(n *node, l *protocol.LineItem) {
	pos := textOf(n, "POSIdentity", "POSItemID")
	gtin := ""
	if id := n.kid("ItemID"); id != nil && strings.EqualFold(attrOf(id, "Type"), "GTIN") {
		id.attr("Type")
		gtin, l.Item = l.Item, ""
	}
	if gtin == "" && protocol.ValidGTIN(pos) {
		gtin = pos
	}
	if protocol.ValidGTIN(gtin) {
		l.GTIN = gtin
	}
	if pos != "" && (l.Item == "" || l.Item == pos || gtin == pos) {
		n.take("POSIdentity", "POSItemID")
	}
	for _, other := range []string{pos, gtin, l.Group, l.Description} {
		if l.Item == "" {
			l.Item = strings.ToValidUTF8(other[:min(len(other), 128)], "")
		}
	}
	if l.Item == "" && l.ItemType != "" {
		l.Item = l.ItemType // a gift card or a deposit has no number of its own
	}
}

// extended is what is to be paid for the line.
func (r *posReader) extended(n *node, l *protocol.LineItem, back bool) {
	faults := len(r.faults)
	amount, ok := r.amount(n, "ExtendedAmount")
	for _, other := range []string{"Amount", "FaceValueAmount"} {
		if !ok {
			amount, ok = r.amount(n, other)
		}
	}
	if !ok && l.UnitPrice != nil {
		// price * quantity, in minor units.
		p, q := *l.UnitPrice, l.Quantity.Milli
		if abs(p.Units) < 1<<30 && abs(q) < 1<<30 && p.Scale <= 6 {
			amount, _, ok = scaled(protocol.Decimal{Units: p.Units * q, Scale: p.Scale + 3}, r.exponent)
		}
	}
	if !ok && len(r.faults) == faults {
		r.bad(n, "ExtendedAmount", "", "missing")
	}
	if back {
		amount = -abs(amount)
	}
	l.ExtendedAmount = amount
}

func (r *posReader) price(n *node, name string) *protocol.Decimal {
	k := n.kid(name)
	if k == nil || k.text == "" {
		return nil
	}
	d, err := decimal(k.text)
	if err != nil {
		r.bad(k, name, "a number such as 129.50", "%s", err)
		return nil
	}
	k.text = ""
	k.attr("Currency")
	return &d
}

// modifiers sums what RetailPriceModifiers take off the line; they stay in the rest.
func (r *posReader) modifiers(n *node) (off int64) {
	for _, m := range n.all("RetailPriceModifier") {
		k := m.kid("Amount")
		if k == nil {
			continue
		}
		d, err := decimal(k.text)
		if err != nil {
			continue
		}
		amount, _, _ := scaled(d, r.exponent)
		if strings.EqualFold(attrOf(k, "Action"), "Add") {
			amount = -amount
		}
		off += amount
	}
	return off
}

// tenders are the types as POSLog has them; the settings add to them.
var tenders = map[string]string{
	"cash": protocol.TenderCash, "creditdebit": protocol.TenderCard, "credit": protocol.TenderCard, "debit": protocol.TenderCard, "creditcard": protocol.TenderCard,
	"debitcard": protocol.TenderCard, "card": protocol.TenderCard, "giftcertificate": protocol.TenderGiftCard, "giftcard": protocol.TenderGiftCard,
	"storedvalue": protocol.TenderGiftCard, "voucher": protocol.TenderVoucher, "coupon": protocol.TenderVoucher, "manufacturercoupon": protocol.TenderVoucher,
	"storecredit": protocol.TenderVoucher, "mobile": protocol.TenderMobile, "mobilepayment": protocol.TenderMobile, "swish": protocol.TenderMobile,
	"vipps": protocol.TenderMobile, "mobilepay": protocol.TenderMobile, "account": protocol.TenderAccount, "accountsreceivable": protocol.TenderAccount,
	"customeraccount": protocol.TenderAccount, "houseaccount": protocol.TenderAccount,
}

// tenderType is our word for a till's; known is false when it is other for want of one.
func (d *Drop) tenderType(said string) (kind string, known bool) {
	if own, ok := d.cfg.Tenders[said].(string); ok {
		return own, true
	}
	if kind, ok := tenders[strings.ToLower(said)]; ok {
		return kind, true
	}
	return protocol.TenderOther, false
}

func (r *posReader) tender(n *node) {
	r.at[index("tenders", len(r.t.Tenders))] = n.line
	faults := len(r.faults)
	amount, ok := r.amount(n, "Amount")
	if !ok {
		if amount, ok = r.amount(n, "AmountAppliedToBill"); !ok && len(r.faults) == faults {
			r.bad(n, "Tender/Amount", "", "missing")
		}
	}
	if attrOf(n, "TypeCode") == "Refund" {
		amount = -abs(amount)
	}
	t := protocol.Tender{Amount: amount, Ref: n.take("TenderID")}
	said := attrOf(n, "TenderType")
	var known bool
	if t.Type, known = r.drop.tenderType(said); known {
		n.attr("TenderType")
	} else if said != "" {
		t.Extra = protocol.Extra{}
		put(t.Extra, "tenderType", said)
	}
	if protocol.TenderCard == t.Type {
		t.Ref = masked(t.Ref)
	}
	r.t.Tenders = append(r.t.Tenders, t)
	if rounding, ok := r.amount(n, "Rounding"); ok {
		r.sums.rounding += rounding
	}
	for _, change := range n.all("TenderChange") { // 2.x puts it within
		r.change(change)
	}
}

// change is money handed back.
func (r *posReader) change(n *node) {
	if amount, ok := r.amount(n, "Amount"); ok {
		r.at[index("tenders", len(r.t.Tenders))] = n.line
		kind, _ := r.drop.tenderType(n.attr("TenderType"))
		if kind == protocol.TenderOther {
			kind = protocol.TenderCash
		}
		r.t.Tenders = append(r.t.Tenders, protocol.Tender{Type: kind, Amount: -abs(amount)})
	}
}

// tax is the VAT of one rate on the receipt.
func (r *posReader) tax(n *node) {
	amount, ok := r.amount(n, "Amount")
	if !ok {
		return
	}
	x := protocol.Tax{Amount: amount}
	x.Rate, _ = r.scaled(n, 2, "Percent")
	included := false
	if k := n.kid("TaxableAmount"); k != nil {
		included = strings.EqualFold(attrOf(k, "TaxIncludedInTaxableAmountFlag"), "true")
	}
	if x.Taxable, ok = r.amount(n, "TaxableAmount"); ok && included {
		x.Taxable -= amount
	}
	r.t.Tax = append(r.t.Tax, x)
}
