package drivertest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
)

// A Receipt is one sale of a simulated till, with the sums that head office must come to.
// Amounts are minor units of the till's currency, VAT included.
type Receipt struct {
	Store, Workstation string
	Day                string // business day, ISO date
	Sequence           int64
	Type               string // sale or return
	Key                string // Idempotency-Key
	Body               []byte // the JSON that was posted
	Total, Rounding    int64
	Turnover           int64 // lines that are neither gift cards nor deposits, net of returns
	GiftCards          int64 // gift cards sold
	Tax                int64
	TaxByRate          map[int64]int64 // by basis points
	Discounts          int64           // taken off lines sold
	Returns            int64           // paid back for lines returned, > 0
	UnitsSold          int64           // a weighed line is one unit
	UnitsReturned      int64
	Customer           bool             // something other than a gift card was sold
	Tenders            map[string]int64 // by type; change given is taken off cash
	Wrong              bool             // its sums were made to disagree, see Misbehaviour
}

// Reference names the receipt as store/workstation/day/sequence.
func (r *Receipt) Reference() string {
	return r.Store + "/" + r.Workstation + "/" + r.Day + "/" + strconv.FormatInt(r.Sequence, 10)
}

// The JSON of a receipt, as a till's maker would write it from the documentation.
type (
	tillReceipt struct {
		Store       string       `json:"store"`
		Workstation string       `json:"workstation"`
		Day         string       `json:"businessDay"`
		Sequence    int64        `json:"sequenceNumber"`
		Type        string       `json:"type"`
		Begin       string       `json:"begin"`
		End         string       `json:"end"`
		Operator    string       `json:"operator"`
		Currency    string       `json:"currency"`
		Lines       []tillLine   `json:"lines"`
		Tenders     []tillTender `json:"tenders"`
		Tax         []tillTax    `json:"tax"`
		Rounding    int64        `json:"rounding"`
		Total       int64        `json:"total"`
	}
	tillLine struct {
		Type           string       `json:"type"`
		Item           string       `json:"item"`
		ItemType       string       `json:"itemType,omitempty"`
		GTIN           string       `json:"gtin,omitempty"`
		Description    string       `json:"description"`
		Group          string       `json:"group"`
		Quantity       tillQuantity `json:"quantity"`
		UnitPrice      string       `json:"unitPrice"`
		ExtendedAmount int64        `json:"extendedAmount"`
		DiscountAmount int64        `json:"discountAmount,omitempty"`
		TaxAmount      int64        `json:"taxAmount"`
		TaxRate        int64        `json:"taxRate"`
	}
	tillQuantity struct {
		Milli int64  `json:"milli"`
		Unit  string `json:"unit,omitempty"`
	}
	tillTender struct {
		Type   string `json:"type"`
		Amount int64  `json:"amount"`
	}
	tillTax struct {
		Rate    int64 `json:"rate"`
		Taxable int64 `json:"taxable"`
		Amount  int64 `json:"amount"`
	}
)

// An article of the simulated shop.
type article struct {
	item, name, group string
	price             int64 // minor units per piece, or per kg
	rate              int64
	weighed           bool
}

// The shop's range, at Swedish rates of VAT: 25 % goods, 12 % food, 6 % books.
var articles = [...]article{
	{"10001", "T-shirt", "clothes", 19900, 2500, false},
	{"10002", "Jeans", "clothes", 59900, 2500, false},
	{"10003", "Socks", "clothes", 4990, 2500, false},
	{"10004", "Umbrella", "accessories", 14950, 2500, false},
	{"20001", "Coffee 450 g", "food", 6495, 1200, false},
	{"20002", "Apples", "food", 2990, 1200, true},
	{"20003", "Cheese", "food", 12990, 1200, true},
	{"20004", "Chocolate", "food", 1795, 1200, false},
	{"30001", "Paperback", "books", 8900, 600, false},
	{"30002", "Magazine", "books", 5950, 600, false},
}

// gtin13 makes a GTIN of an article number: 735 (Sweden), the number, the check digit.
func gtin13(item string) string {
	digits := "7350000" + item
	sum := 0
	for i, c := range digits {
		sum += int(c-'0') * (1 + 2*(i%2))
	}
	return digits + strconv.Itoa((10-sum%10)%10)
}

// nearest divides and rounds halves away from zero.
func nearest(a, b int64) int64 {
	if a < 0 {
		return -nearest(-a, b)
	}
	return (a + b/2) / b
}

// draw makes the lines, taxes and tenders of a random receipt.
func draw(rng *rand.Rand, cashUnit int64) tillReceipt {
	r := tillReceipt{Type: "return", Operator: strconv.Itoa(1 + rng.IntN(5))}
	var lines int64
	taxes := map[int64]*tillTax{}
	for range 1 + rng.IntN(6) {
		line := drawLine(rng)
		r.Lines = append(r.Lines, line)
		lines += line.ExtendedAmount
		if line.Type == "sale" {
			r.Type = "sale"
		}
		if line.TaxRate > 0 {
			if taxes[line.TaxRate] == nil {
				taxes[line.TaxRate] = &tillTax{Rate: line.TaxRate}
			}
			taxes[line.TaxRate].Amount += line.TaxAmount
			taxes[line.TaxRate].Taxable += line.ExtendedAmount - line.TaxAmount
		}
	}
	for _, rate := range []int64{2500, 1200, 600} {
		if taxes[rate] != nil {
			r.Tax = append(r.Tax, *taxes[rate])
		}
	}
	r.Total = lines
	r.Tenders = []tillTender{{"card", r.Total}}
	if rng.IntN(5) < 2 {
		r.Total = nearest(lines, cashUnit) * cashUnit
		r.Tenders = drawCash(rng, r.Total, cashUnit)
	}
	r.Rounding = r.Total - lines
	return r
}

// sum adds up what a receipt says.
func sum(r *tillReceipt) Receipt {
	s := Receipt{Store: r.Store, Workstation: r.Workstation, Day: r.Day, Sequence: r.Sequence, Type: r.Type,
		Total: r.Total, Rounding: r.Rounding, TaxByRate: map[int64]int64{}, Tenders: map[string]int64{}}
	for _, tender := range r.Tenders {
		s.Tenders[tender.Type] += tender.Amount
	}
	for _, line := range r.Lines {
		s.Tax += line.TaxAmount
		if line.TaxRate > 0 {
			s.TaxByRate[line.TaxRate] += line.TaxAmount
		}
		if line.ItemType == "giftCard" {
			s.GiftCards += line.ExtendedAmount
			continue
		}
		units := max(line.Quantity.Milli, -line.Quantity.Milli) / 1000
		if line.Quantity.Unit != "" { // weighed
			units = 1
		}
		s.Turnover += line.ExtendedAmount
		if line.Type == "sale" {
			s.Customer = true
			s.UnitsSold += units
			s.Discounts += line.DiscountAmount
		} else {
			s.UnitsReturned += units
			s.Returns -= line.ExtendedAmount
		}
	}
	return s
}

func drawLine(rng *rand.Rand) tillLine {
	if rng.IntN(40) == 0 {
		amount := int64(1+rng.IntN(5)) * 10000
		return tillLine{Type: "sale", Item: "90001", ItemType: "giftCard", Description: "Gift card", Group: "gift cards",
			Quantity: tillQuantity{Milli: 1000}, UnitPrice: decimal(amount), ExtendedAmount: amount}
	}
	a := articles[rng.IntN(len(articles))]
	line := tillLine{Type: "sale", Item: a.item, GTIN: gtin13(a.item), Description: a.name, Group: a.group,
		Quantity: tillQuantity{Milli: int64(1+rng.IntN(3)) * 1000}, UnitPrice: decimal(a.price), TaxRate: a.rate}
	if a.weighed {
		line.Quantity = tillQuantity{Milli: int64(100 + rng.IntN(2400)), Unit: "KGM"}
	}
	full := nearest(line.Quantity.Milli*a.price, 1000)
	if rng.IntN(6) == 0 {
		line.DiscountAmount = nearest(full*int64(5*(1+rng.IntN(10))), 100)
	}
	line.ExtendedAmount = full - line.DiscountAmount
	if rng.IntN(15) == 0 {
		line.Type = "return"
		line.Quantity.Milli, line.ExtendedAmount, line.DiscountAmount = -line.Quantity.Milli, -line.ExtendedAmount, -line.DiscountAmount
	}
	line.TaxAmount = nearest(line.ExtendedAmount*a.rate, 10000+a.rate)
	return line
}

// drawCash pays in notes and gives change as a negative tender.
func drawCash(rng *rand.Rand, total, cashUnit int64) []tillTender {
	note := []int64{20, 50, 100, 500}[rng.IntN(4)] * 100
	if total <= 0 || cashUnit*2 > note {
		return []tillTender{{"cash", total}}
	}
	received := (total + note - 1) / note * note
	if received == total {
		return []tillTender{{"cash", total}}
	}
	return []tillTender{{"cash", received}, {"cash", total - received}}
}

// decimal writes hundredths with a point.
func decimal(minor int64) string { return fmt.Sprintf("%d.%02d", minor/100, minor%100) }

// spoil makes a receipt's sums disagree by up to 9.99, in one of three places.
func spoil(rng *rand.Rand, r *tillReceipt) {
	by := int64(1 + rng.IntN(999))
	switch rng.IntN(3) {
	case 0:
		r.Total += by
	case 1:
		r.Tenders[0].Amount -= by
	default:
		r.Lines[0].ExtendedAmount += by
	}
}

func (r *tillReceipt) json() []byte {
	body, err := json.Marshal(r)
	if err != nil {
		panic("a struct of strings and integers has no JSON: " + err.Error())
	}
	return body
}

// garbage is what no agent may accept.
func garbage(rng *rand.Rand, good []byte) []byte {
	switch rng.IntN(6) {
	case 0:
		return nil
	case 1:
		return good[:1+rng.IntN(len(good)-1)] // torn
	case 2:
		return []byte(`{"store":7,"lines":"none","total":"12,50"}`)
	case 3:
		return []byte("\xff\xfe<receipt/>")
	case 4:
		return []byte(`[]`)
	default:
		return []byte(`{"sequenceNumber":-1,"type":"gift","currency":"XXQ","lines":[{"type":"sale","item":"","quantity":{"milli":0}}]}`)
	}
}
