package filedrop

import (
	"slices"

	"github.com/storelay/storelay/protocol"
)

// Tills do not agree on what the amount of a line holds: some take a discount on the receipt
// off the lines, others do not, and in some countries VAT comes on top. No flag in the file
// can be trusted to tell. The receipt's own total can: the first reading of the lines that
// adds up to it is taken. When none does, the lines stay as they came, and the transaction
// is flagged by Transaction.Check.

// sums are what a receipt says of itself as a whole.
type sums struct {
	said     bool
	grand    int64 // to be paid; only when said
	discount int64 // on the receipt as a whole, > 0
	rounding int64 // of cash, either sign
}

// settle fills in total and rounding, and the lines' shares of what stands on the receipt
// alone. What it has worked out is named in the record's member "spread".
func (s *sums) settle(t *protocol.Transaction, r interface{ extra(string, any) }) {
	only := t.Type == protocol.TypeReturn && len(t.Lines) > 0
	paid := int64(0)
	for i := range t.Tenders {
		paid += t.Tenders[i].Amount
	}
	total := paid
	if s.said {
		total = s.grand
		if only {
			total = -abs(s.grand)
		}
	} else if len(t.Tenders) == 0 {
		total = lineSum(t)
	}
	if only {
		for i := range t.Tax {
			t.Tax[i].Amount, t.Tax[i].Taxable = -abs(t.Tax[i].Amount), -abs(t.Tax[i].Taxable)
		}
		if paid > 0 && (paid == -total || paid == total) { // money back without a sign
			for i := range t.Tenders {
				t.Tenders[i].Amount = -t.Tenders[i].Amount
			}
			paid = -paid
			if !s.said {
				total = paid
			}
		}
	}
	t.Total = total
	var tax int64
	for i := range t.Lines {
		if !t.Lines[i].Voided {
			tax += t.Lines[i].TaxAmount
		}
	}
	ofLines := tax != 0
	if !ofLines {
		for _, x := range t.Tax {
			tax += x.Amount
		}
	}
	discount := s.discount
	if only {
		discount = -abs(discount)
	}
	sum := lineSum(t)
	var done []string
	for _, reading := range []struct{ off, on int64 }{{0, 0}, {discount, 0}, {0, tax}, {discount, tax}} {
		rounding, whole, ok := s.round(sum-reading.off+reading.on, total, paid)
		if !ok || (reading.off != 0 || reading.on != 0) && !slices.ContainsFunc(weights(t), func(w int64) bool { return w != 0 }) {
			continue
		}
		t.Rounding, t.Total = rounding, whole
		if reading.off != 0 {
			for i, share := range spread(reading.off, weights(t)) {
				t.Lines[i].ExtendedAmount -= share
				t.Lines[i].DiscountAmount += share
			}
			done = append(done, "discount")
		}
		if reading.on != 0 {
			if !ofLines {
				spreadTax(t, tax)
				ofLines, done = true, append(done, "tax")
			}
			for i := range t.Lines {
				if !t.Lines[i].Voided {
					t.Lines[i].ExtendedAmount += t.Lines[i].TaxAmount
				}
			}
			done = append(done, "taxOnTop")
		}
		break
	}
	if !ofLines && len(t.Tax) == 1 && tax != 0 { // one rate: it is that of all lines
		spreadTax(t, tax)
		done = append(done, "tax")
	}
	if done != nil {
		r.extra("spread", done)
	}
}

// round finds the rounding that makes lines the total, or what was paid: whether a till's
// total is before or after it differs.
func (s *sums) round(lines, total, paid int64) (rounding, whole int64, ok bool) {
	for _, want := range []int64{paid, total} {
		for _, rounding := range []int64{0, s.rounding, -s.rounding} {
			if lines+rounding != want || want == paid && paid != total && rounding == 0 {
				continue
			}
			return rounding, want, true
		}
	}
	return 0, 0, false
}

func lineSum(t *protocol.Transaction) (sum int64) {
	for i := range t.Lines {
		if l := &t.Lines[i]; !l.Voided {
			sum += l.ExtendedAmount
		}
	}
	return sum
}

// weights are the amounts of the lines that a discount or a tax is for.
func weights(t *protocol.Transaction) []int64 {
	list := make([]int64, len(t.Lines))
	for i := range t.Lines {
		if l := &t.Lines[i]; l.Merchandise() {
			list[i] = l.ExtendedAmount
		}
	}
	return list
}

func spreadTax(t *protocol.Transaction, tax int64) {
	for i, share := range spread(tax, weights(t)) {
		t.Lines[i].TaxAmount = share
		if share != 0 && len(t.Tax) == 1 {
			t.Lines[i].TaxRate = t.Tax[0].Rate
		}
	}
}
