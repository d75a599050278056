package api

import (
	"encoding/json"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// dayText documents protocol.Day as the text that it is in JSON.
type dayText string

// Schema is huma.SchemaProvider.
func (dayText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date", Description: "Business day"}
}

// A body is the transaction as the till said it, byte by byte.
type body json.RawMessage

// MarshalJSON gives the bytes.
func (b body) MarshalJSON() ([]byte, error) { return b, nil }

// Schema is that of saidTransaction: huma.SchemaProvider.
func (body) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[saidTransaction](), true, "")
}

// The types below only document what tills say; protocol.Transaction is what is read.
// Members that are not named here are passed on as they came.

type saidTransaction struct {
	_              struct{}     `additionalProperties:"true"`
	Store          string       `json:"store"`
	Workstation    string       `json:"workstation" doc:"The till"`
	BusinessDay    dayText      `json:"businessDay"`
	SequenceNumber int64        `json:"sequenceNumber" doc:"The till's own running number of the receipt"`
	Type           string       `json:"type" enum:"sale,return,void,control"`
	Begin          time.Time    `json:"begin"`
	End            time.Time    `json:"end"`
	Operator       string       `json:"operator,omitempty"`
	Customer       string       `json:"customer,omitempty" doc:"A reference, never a name"`
	Channel        string       `json:"channel,omitempty" doc:"Absent or store: over the counter"`
	Currency       string       `json:"currency" doc:"ISO 4217"`
	Training       bool         `json:"training,omitempty" doc:"Practice: counted nowhere"`
	Voids          *saidID      `json:"voids,omitempty" doc:"Of a void: the transaction that it undoes"`
	Control        string       `json:"control,omitempty" doc:"Of a control: what the till did, such as tillOpen or noSale; it counts nowhere"`
	Lines          []saidLine   `json:"lines"`
	Tenders        []saidTender `json:"tenders"`
	Tax            []saidTax    `json:"tax,omitempty"`
	Rounding       int64        `json:"rounding,omitempty" doc:"Of cash, part of total"`
	Total          int64        `json:"total" doc:"What was to be paid, VAT included"`
}

type saidID struct {
	Store          string  `json:"store"`
	Workstation    string  `json:"workstation"`
	BusinessDay    dayText `json:"businessDay"`
	SequenceNumber int64   `json:"sequenceNumber"`
}

type saidLine struct {
	_               struct{}     `additionalProperties:"true"`
	Type            string       `json:"type" enum:"sale,return"`
	Item            string       `json:"item" doc:"The retailer's article number"`
	ItemType        string       `json:"itemType,omitempty" doc:"stock (when absent), service, deposit or giftCard; the last two are no turnover"`
	GTIN            string       `json:"gtin,omitempty"`
	Description     string       `json:"description,omitempty"`
	Group           string       `json:"group,omitempty"`
	Quantity        saidQuantity `json:"quantity"`
	UnitPrice       any          `json:"unitPrice,omitempty" doc:"Decimal text, such as 129.50; a till may send a number"`
	ExtendedAmount  int64        `json:"extendedAmount" doc:"To pay for the line after all discounts, VAT included; negative on a return"`
	DiscountAmount  int64        `json:"discountAmount,omitempty"`
	TaxAmount       int64        `json:"taxAmount,omitempty" doc:"VAT within extendedAmount"`
	TaxRate         int64        `json:"taxRate,omitempty" doc:"Basis points: 2500 is 25 %"`
	UnitCost        any          `json:"unitCost,omitempty" doc:"Decimal text, without VAT"`
	Voided          bool         `json:"voided,omitempty" doc:"Struck out before payment"`
	TransactionLink *saidID      `json:"transactionLink,omitempty" doc:"Of a return: the sale"`
	TransactionLine int          `json:"transactionLine,omitempty"`
}

type saidQuantity struct {
	_     struct{} `additionalProperties:"true"`
	Milli int64    `json:"milli" doc:"Thousandths of the unit: 1000 of EA is one piece"`
	Unit  string   `json:"unit,omitempty" doc:"UN/ECE Recommendation 20, or EA; absent means EA"`
}

type saidTender struct {
	_      struct{} `additionalProperties:"true"`
	Type   string   `json:"type" enum:"cash,card,giftCard,voucher,mobile,account,other"`
	Amount int64    `json:"amount" doc:"Received > 0; change < 0"`
	Ref    string   `json:"ref,omitempty"`
}

type saidTax struct {
	_       struct{} `additionalProperties:"true"`
	Rate    int64    `json:"rate" doc:"Basis points"`
	Taxable int64    `json:"taxable" doc:"Without VAT"`
	Amount  int64    `json:"amount"`
}

// A rawBody is a record's body as the agent said it.
type rawBody json.RawMessage

// MarshalJSON gives the bytes.
func (b rawBody) MarshalJSON() ([]byte, error) { return b, nil }

// Schema is huma.SchemaProvider: an object, documented with the kinds of records.
func (rawBody) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}
