package protocol

import (
	"fmt"
	"strconv"
	"time"
)

// TransactionType is the kind of a retail transaction; running transactions are numbered
// per store and type.
type TransactionType string

// The types of transactions.
const (
	TypeSale   TransactionType = "sale"   // at least one line sells; an exchange is a sale
	TypeReturn TransactionType = "return" // only takes goods back
	TypeVoid   TransactionType = "void"   // undoes an earlier transaction (ARTS post-void)
	// TypeControl is what a till numbers like a receipt and is none: it was opened, the drawer
	// was opened without a sale, a receipt was cancelled (ARTS ControlTransaction,
	// TenderControlTransaction). It counts nowhere; without it its number would be missing.
	TypeControl TransactionType = "control"
)

// A TransactionID is the natural key of ARTS: business unit, workstation, business day and
// sequence number.
type TransactionID struct {
	Store       string `json:"store"`
	Workstation string `json:"workstation"`
	BusinessDay Day    `json:"businessDay"`
	Sequence    int64  `json:"sequenceNumber"`
}

func (id TransactionID) String() string {
	return id.Store + "/" + id.Workstation + "/" + id.BusinessDay.String() + "/" + strconv.FormatInt(id.Sequence, 10)
}

// A Transaction is one receipt of a till (ARTS RetailTransaction). All amounts are int64
// minor units of Currency, VAT included unless the name says otherwise, and signed from the
// store's side: goods and money that go back to the customer, or goods that come back, are
// negative.
type Transaction struct {
	Store       string          `json:"store"`       // RetailStoreID; the agent fills its own in
	Workstation string          `json:"workstation"` // the till
	BusinessDay Day             `json:"businessDay"` // BusinessDayDate; the agent fills it in when the till does not say
	Sequence    int64           `json:"sequenceNumber"`
	Type        TransactionType `json:"type"`
	Begin       time.Time       `json:"begin"` // RFC 3339 with offset
	End         time.Time       `json:"end"`
	Operator    string          `json:"operator,omitempty"`
	Customer    string          `json:"customer,omitempty"` // a reference, never a name or a number of a person
	Channel     string          `json:"channel,omitempty"`  // "" and "store" = over the counter
	Currency    string          `json:"currency"`           // ISO 4217
	Training    bool            `json:"training,omitempty"` // practice: kept, counted nowhere
	Voids       *TransactionID  `json:"voids,omitempty"`    // void: the transaction that it undoes
	Control     string          `json:"control,omitempty"`  // control: what the till did, such as tillOpen, noSale, cancelled
	Lines       []LineItem      `json:"lines"`
	Tenders     []Tender        `json:"tenders"`
	Tax         []Tax           `json:"tax,omitempty"`
	Rounding    int64           `json:"rounding,omitempty"` // cash rounding, part of Total
	Total       int64           `json:"total"`              // what the till says was to be paid: lines + rounding

	Extra Extra `json:"-"`
}

// The types of line items.
const (
	LineSale   = "sale"
	LineReturn = "return"
)

// The classes of what a line sells; only merchandise and services count as turnover.
const (
	ItemStock    = "stock" // also ""
	ItemService  = "service"
	ItemDeposit  = "deposit"
	ItemGiftCard = "giftCard"
)

// A LineItem is one article on a receipt (ARTS Sale or Return).
type LineItem struct {
	Type           string         `json:"type"`               // sale or return
	Item           string         `json:"item"`               // the retailer's ItemID
	ItemType       string         `json:"itemType,omitempty"` // stock (default), service, deposit, giftCard
	GTIN           string         `json:"gtin,omitempty"`     // 8, 12, 13 or 14 digits with check digit
	Description    string         `json:"description,omitempty"`
	Group          string         `json:"group,omitempty"`           // MerchandiseHierarchy
	Quantity       Quantity       `json:"quantity"`                  // sale > 0, return < 0
	UnitPrice      *Decimal       `json:"unitPrice,omitempty"`       // ActualSalesUnitPrice
	ExtendedAmount int64          `json:"extendedAmount"`            // to pay for the line, after all discounts
	DiscountAmount int64          `json:"discountAmount,omitempty"`  // taken off; the sign of the quantity
	TaxAmount      int64          `json:"taxAmount,omitempty"`       // VAT within ExtendedAmount
	TaxRate        int64          `json:"taxRate,omitempty"`         // basis points: 2500 = 25 %
	UnitCost       *Decimal       `json:"unitCost,omitempty"`        // ex VAT
	Voided         bool           `json:"voided,omitempty"`          // VoidFlag: struck out before payment
	Of             *TransactionID `json:"transactionLink,omitempty"` // return: the sale it comes from
	OfLine         int            `json:"transactionLine,omitempty"` // 1-based line of that sale

	Extra Extra `json:"-"`
}

// The types of tenders.
const (
	TenderCash     = "cash"
	TenderCard     = "card" // CreditDebit
	TenderGiftCard = "giftCard"
	TenderVoucher  = "voucher"
	TenderMobile   = "mobile"
	TenderAccount  = "account" // on invoice
	TenderOther    = "other"
)

// A Tender is one means of payment. Change given back is a negative cash tender.
type Tender struct {
	Type   string `json:"type"`
	Amount int64  `json:"amount"` // received > 0, given < 0
	Ref    string `json:"ref,omitempty"`

	Extra Extra `json:"-"`
}

// Tax is the VAT of one rate on the whole receipt.
type Tax struct {
	Rate    int64 `json:"rate"`    // basis points
	Taxable int64 `json:"taxable"` // ex VAT
	Amount  int64 `json:"amount"`
}

type (
	transactionFields Transaction
	lineFields        LineItem
	tenderFields      Tender
)

// MarshalJSON writes the transaction with the members it did not know.
func (t Transaction) MarshalJSON() ([]byte, error) {
	return encodeKeeping(transactionFields(t), t.Extra)
}

// MarshalJSON writes the line with the members it did not know.
func (l LineItem) MarshalJSON() ([]byte, error) { return encodeKeeping(lineFields(l), l.Extra) }

// MarshalJSON writes the tender with the members it did not know.
func (t Tender) MarshalJSON() ([]byte, error) { return encodeKeeping(tenderFields(t), t.Extra) }

// UnmarshalJSON reads a transaction; errors are Faults that name the fields, such as
// lines[2].extendedAmount.
func (t *Transaction) UnmarshalJSON(data []byte) (err error) {
	var v transactionFields
	v.Extra, err = decodeKeeping(data, &v)
	*t = Transaction(v)
	return err
}

// UnmarshalJSON reads a line; errors are Faults.
func (l *LineItem) UnmarshalJSON(data []byte) (err error) {
	var v lineFields
	v.Extra, err = decodeKeeping(data, &v)
	*l = LineItem(v)
	return err
}

// UnmarshalJSON reads a tender; errors are Faults.
func (t *Tender) UnmarshalJSON(data []byte) (err error) {
	var v tenderFields
	v.Extra, err = decodeKeeping(data, &v)
	*t = Tender(v)
	return err
}

// ID is the transaction's natural key.
func (t *Transaction) ID() TransactionID {
	return TransactionID{t.Store, t.Workstation, t.BusinessDay, t.Sequence}
}

// Validate returns Faults for what makes the transaction unusable, or nil. Sums that
// disagree are no fault: see Check.
func (t *Transaction) Validate() error {
	var f Faults
	const idHint = "letters, digits, _ and -, at most 64"
	if !ValidID(t.Store) {
		f.Add("store", idHint, "not an id: %q", t.Store)
	}
	if !ValidID(t.Workstation) {
		f.Add("workstation", idHint, "not an id: %q", t.Workstation)
	}
	if t.BusinessDay.IsZero() {
		f.Add("businessDay", "", "missing")
	}
	if t.Sequence < 1 {
		f.Add("sequenceNumber", "the till's own running number of the receipt", "want 1 or more, got %d", t.Sequence)
	}
	if t.Begin.IsZero() {
		f.Add("begin", "RFC 3339 with offset, 2026-03-29T10:15:00+02:00", "missing")
	}
	if t.End.IsZero() {
		f.Add("end", "RFC 3339 with offset, 2026-03-29T10:15:00+02:00", "missing")
	}
	if _, ok := CurrencyExponent(t.Currency); !ok {
		f.Add("currency", "an ISO 4217 code such as SEK", "unknown currency %q", t.Currency)
	}
	switch t.Type {
	case TypeSale, TypeReturn:
		if len(t.Lines) == 0 {
			f.Add("lines", "", "want at least one line")
		}
	case TypeVoid:
		if t.Voids == nil {
			f.Add("voids", "name the transaction that is undone", "missing")
		}
	case TypeControl:
		if !ValidID(t.Control) {
			f.Add("control", "what the till did: tillOpen, noSale, cancelled ...; letters, digits, _ and -, at most 64", "not an id: %q", t.Control)
		}
	default:
		f.Add("type", "", "want sale, return, void or control, got %q", t.Type)
	}
	if t.Control != "" && t.Type != TypeControl {
		f.Add("control", "leave it out", "a %s is no control transaction", t.Type)
	}
	if len(t.Lines) > 2000 {
		f.Add("lines", "", "%d lines, at most 2000", len(t.Lines))
	}
	for i := range t.Lines {
		t.Lines[i].validate(fmt.Sprintf("lines[%d]", i), &f)
	}
	for i, tender := range t.Tenders {
		switch tender.Type {
		case TenderCash, TenderCard, TenderGiftCard, TenderVoucher, TenderMobile, TenderAccount, TenderOther:
		default:
			f.Add(fmt.Sprintf("tenders[%d].type", i), "", "want cash, card, giftCard, voucher, mobile, account or other, got %q", tender.Type)
		}
		bounded(fmt.Sprintf("tenders[%d].amount", i), tender.Amount, &f)
	}
	bounded("total", t.Total, &f)
	bounded("rounding", t.Rounding, &f)
	return f.Err()
}

// MaxAmount bounds every amount and quantity of a transaction, so that no sum of them
// overflows: 10^13 minor units.
const MaxAmount = 10_000_000_000_000

func bounded(field string, v int64, f *Faults) {
	if v > MaxAmount || v < -MaxAmount {
		f.Add(field, "", "%d is beyond +-10^13", v)
	}
}

func (l *LineItem) validate(at string, f *Faults) {
	switch l.Type {
	case LineSale:
		if l.Quantity.Milli <= 0 {
			f.Add(at+".quantity.milli", `goods that come back are type "return"`, "want more than 0 on a sale line, got %d", l.Quantity.Milli)
		}
	case LineReturn:
		if l.Quantity.Milli >= 0 {
			f.Add(at+".quantity.milli", "a return is signed: -1000 is one piece back", "want less than 0 on a return line, got %d", l.Quantity.Milli)
		}
	default:
		f.Add(at+".type", "", "want sale or return, got %q", l.Type)
	}
	if l.Item == "" || len(l.Item) > 128 {
		f.Add(at+".item", "", "want 1 to 128 bytes")
	}
	switch l.ItemType {
	case "", ItemStock, ItemService, ItemDeposit, ItemGiftCard:
	default:
		f.Add(at+".itemType", "", "want stock, service, deposit or giftCard, got %q", l.ItemType)
	}
	if l.GTIN != "" && !ValidGTIN(l.GTIN) {
		f.Add(at+".gtin", "8, 12, 13 or 14 digits, the last one the check digit", "not a GTIN: %q", l.GTIN)
	}
	bounded(at+".quantity.milli", l.Quantity.Milli, f)
	bounded(at+".extendedAmount", l.ExtendedAmount, f)
	bounded(at+".discountAmount", l.DiscountAmount, f)
	bounded(at+".taxAmount", l.TaxAmount, f)
	if l.TaxRate < 0 || l.TaxRate > 100_000 {
		f.Add(at+".taxRate", "basis points: 2500 is 25 %", "out of range: %d", l.TaxRate)
	}
}

// ValidGTIN checks the length and the check digit (GS1 General Specifications 7.9).
func ValidGTIN(s string) bool {
	switch len(s) {
	case 8, 12, 13, 14:
	default:
		return false
	}
	sum := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		d := int(s[i] - '0')
		if (len(s)-i)%2 == 0 { // counted from the right, every second digit weighs 3
			d *= 3
		}
		sum += d
	}
	return sum%10 == 0
}

// Merchandise says whether the line counts towards turnover and customers: not voided, and
// neither a deposit nor a gift card sold.
func (l *LineItem) Merchandise() bool {
	return !l.Voided && l.ItemType != ItemDeposit && l.ItemType != ItemGiftCard
}

// The flags of Check.
const (
	FlagTotal   = "totalDiffers"   // lines + rounding are not the total
	FlagTenders = "tendersDiffer"  // tenders are not the total
	FlagTax     = "taxDiffers"     // VAT of the lines is not the VAT of the receipt
	FlagType    = "typeDiffers"    // the type does not fit the lines
	FlagTime    = "endBeforeBegin" // the till's clock went back
)

// Check compares what the till says with what its lines add up to, and names each
// difference. Nothing is ever corrected: both are kept. A control transaction has no sums.
func (t *Transaction) Check() []string {
	var flags []string
	if t.End.Before(t.Begin) {
		flags = append(flags, FlagTime)
	}
	if t.Type == TypeControl {
		return flags
	}
	return append(t.checkSums(), flags...)
}

func (t *Transaction) checkSums() []string {
	var flags []string
	var lines, tax int64
	sells := false
	for i := range t.Lines {
		if l := &t.Lines[i]; !l.Voided {
			lines += l.ExtendedAmount
			tax += l.TaxAmount
			sells = sells || l.Type == LineSale
		}
	}
	if lines+t.Rounding != t.Total {
		flags = append(flags, FlagTotal)
	}
	var paid int64
	for _, tender := range t.Tenders {
		paid += tender.Amount
	}
	if paid != t.Total {
		flags = append(flags, FlagTenders)
	}
	if len(t.Tax) > 0 {
		var said int64
		for _, x := range t.Tax {
			said += x.Amount
		}
		if said != tax {
			flags = append(flags, FlagTax)
		}
	}
	if (t.Type == TypeReturn && sells) || (t.Type == TypeSale && !sells) {
		flags = append(flags, FlagType)
	}
	return flags
}
