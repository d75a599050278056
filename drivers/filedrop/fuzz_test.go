package filedrop

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
)

// walkTwice reads a text as Run does, and checks what comes of it: a bad file, or
// transactions that are refused with a reason or are valid, the same at each reading.
func walkTwice(t *testing.T, b *bench, text string) {
	type taken struct {
		body   []byte
		digest [32]byte
	}
	var first []taken
	for again := range 2 {
		n := 0
		src := open(t.Context(), strings.NewReader(text))
		err := b.drop.format(src, func(f found) error {
			if len(f.faults) > 0 {
				return nil
			}
			intake, err := b.drop.desk.Take(f.body, b.drop.cfg.Workstation)
			if err != nil {
				var faults protocol.Faults
				if !errors.As(err, &faults) || len(faults) == 0 {
					t.Errorf("refused without a reason: %v", err)
				}
				return nil
			}
			if err := intake.Transaction.Validate(); err != nil {
				t.Errorf("accepted %s: %v", intake.Body, err)
			}
			intake.Transaction.Check()
			if f.digest != nil {
				intake.Digest = *f.digest
			}
			if again == 0 {
				first = append(first, taken{intake.Body, intake.Digest})
			} else if n >= len(first) || !bytes.Equal(first[n].body, intake.Body) || first[n].digest != intake.Digest {
				t.Errorf("the second reading is another: %s", intake.Body)
			}
			n++
			return nil
		})
		var bad *fileError
		if err != nil && (!errors.As(err, &bad) || bad.problem == "") {
			t.Errorf("error %v, want a bad file", err)
		}
	}
}

// FuzzTransactionOfPOSLog puts the text into an envelope that is right, so that it gets to
// where transactions are read.
func FuzzTransactionOfPOSLog(f *testing.F) {
	const head = `<POSLog xmlns="http://www.nrf-arts.org/IXRetail/namespace/"><Transaction><WorkstationID>4</WorkstationID><SequenceNumber>7</SequenceNumber><EndDateTime>2026-10-25T02:30:00</EndDateTime><CurrencyCode>SEK</CurrencyCode>`
	for _, name := range []string{"poslog-6.xml", "poslog-2.xml", "tax-on-top.xml"} {
		text := strings.ReplaceAll(sample(f, name), "p:", "")
		for _, part := range strings.Split(text, "<RetailTransaction")[1:] {
			body, _, _ := strings.Cut(part, "</Transaction>")
			f.Add("<RetailTransaction" + body)
		}
	}
	f.Add(`<ControlTransaction TypeCode="x"><PostVoid><TransactionLink><SequenceNumber>3</SequenceNumber></TransactionLink></PostVoid></ControlTransaction>`)
	f.Add(`<RetailTransaction><LineItem><Sale><ItemID>1</ItemID><ActualSalesUnitPrice>1e9</ActualSalesUnitPrice><Quantity>-0.0005</Quantity></Sale></LineItem><Total TotalType="TransactionGrandAmount">9223372036854775807</Total></RetailTransaction>`)
	b := newBench(f, Config{Format: FormatPOSLog})
	f.Fuzz(func(t *testing.T, body string) { walkTwice(t, b, head+body+`</Transaction></POSLog>`) })
}

func FuzzPOSLog(f *testing.F) {
	for _, name := range []string{"poslog-6.xml", "poslog-2.xml", "tax-on-top.xml"} {
		f.Add(sample(f, name))
	}
	f.Add(utf16Text(sample(f, "tax-on-top.xml"), true))
	f.Add("<!DOCTYPE x><POSLog/>")
	b := newBench(f, Config{Format: FormatPOSLog, Currency: "SEK"})
	f.Fuzz(func(t *testing.T, text string) { walkTwice(t, b, text) })
}

func FuzzCSV(f *testing.F) {
	f.Add(swedishTable[strings.Index(swedishTable, "\n")+1:])
	f.Add("Kassa 1;21.11.2026;8;F;21.11.2026 10:15:00;4711;x;9999999999999;;-9223372036854775808;;;;;;;\n")
	b := newBench(f, swedish)
	head := windows(swedishTable[:strings.Index(swedishTable, "\n")+1])
	f.Fuzz(func(t *testing.T, rows string) { walkTwice(t, b, head+rows) })
}

func FuzzJSON(f *testing.F) {
	f.Add(sale(1) + sale(2))
	f.Add("[" + sale(1) + "," + sale(2) + "]")
	f.Add(`{"a":"\"}"}[`)
	f.Add("[]]")
	b := newBench(f, Config{Format: FormatJSON})
	f.Fuzz(func(t *testing.T, text string) { walkTwice(t, b, text) })
}

// FuzzSpread wants every share on the right side, and their sum to be the amount.
func FuzzSpread(f *testing.F) {
	f.Add(int64(-900), int64(9000), int64(0), int64(-1))
	f.Add(int64(9_999_999_999_999), int64(9_999_999_999_999), int64(9_999_999_999_999), int64(7))
	f.Fuzz(func(t *testing.T, amount, a, b, c int64) {
		for _, n := range []int64{amount, a, b, c} {
			if n > protocol.MaxAmount || n < -protocol.MaxAmount {
				return
			}
		}
		var sum int64
		for _, share := range spread(amount, []int64{a, b, c}) {
			sum += share
			if share > 0 && amount < 0 || share < 0 && amount > 0 || abs(share) > abs(amount) {
				t.Errorf("spread(%d, %d, %d, %d) has a share of %d", amount, a, b, c, share)
			}
		}
		if sum != amount {
			t.Errorf("spread(%d, %d, %d, %d) sums to %d", amount, a, b, c, sum)
		}
	})
}
