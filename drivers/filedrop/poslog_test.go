package filedrop

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestEDG04POSLogSix(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog})
	b.write("t4.xml", sample(t, "poslog-6.xml"))
	b.mustRound()
	wantTold(t, b.told(), []string{
		"1201 control signOn",
		"1202 sale 13700 rounded 34; sale 4711 2000 = 11990 off 1000 vat 1285; sale 2001 420kgm = 1676 off 0 vat 180; cash 20000; cash -6300",
		"1203 return -5995; return 4711 -1000 = -5995 off 0 vat -642 of 0001/4/2026-09-30/1202; card -5995",
		"1204 control noSale",
		"1205 void of 0001/4/2026-09-30/1203",
		"1206 control inventoryControlTransaction",
	})
	b.wantFiles(doneDir, "2026-11-22/t4.xml")
	sale := b.inOrder()[1]
	if line := sale.Lines[0]; line.GTIN != "7310865004703" || line.Group != "12" || line.UnitCost.String() != "31.2050" || line.TaxRate != 1200 || line.Quantity.Units() != 2 {
		t.Errorf("line %+v", line)
	}
	if weighed := sale.Lines[1].Quantity; weighed.Units() != 1 {
		t.Errorf("0.42 kg are %d units, want one", weighed.Units())
	}
	if sale.Customer != "c-8f2a" || sale.Operator != "17" || sale.BusinessDay.String() != "2026-09-30" || sale.End.Format("2006-01-02T15:04:05Z07:00") != "2026-10-01T02:02:40+02:00" {
		t.Errorf("sale %+v", sale)
	}
	// What is not understood is kept, what is personal is not, and said to be left out.
	extra := string(sale.Extra["poslog"])
	for _, part := range []string{`"TillID":"4"`, `"{http://example.com/vendor/}ShelfLabel":"B7"`, `"RegularSalesUnitPrice":"64.95"`, `"ItemCount":"2"`} {
		if !strings.Contains(extra, part) {
			t.Errorf("%s is not kept in %s", part, extra)
		}
	}
	all, err := json.Marshal(b.inOrder())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"Andersson", "Berg", "Umeå", "4111111111111111"} {
		if strings.Contains(string(all), secret) {
			t.Errorf("%s is in a record that nobody can erase", secret)
		}
	}
	if left := string(sale.Extra["leftOut"]); !strings.Contains(left, "Customer") || !strings.Contains(left, "OperatorName") {
		t.Errorf("left out: %s", left)
	}
	if kept := string(b.inOrder()[5].Extra["poslog"]); !strings.Contains(kept, `"Quantity":"24"`) {
		t.Errorf("an inventory transaction keeps %s", kept)
	}
	if s := b.drop.Status(); s.Unread["InventoryControlTransaction"] != 1 {
		t.Errorf("unread %v, want one", s.Unread)
	}
}

func TestEDG04POSLogTwo(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog, Currency: "SEK"})
	b.write("T.XML", sample(t, "poslog-2.xml"))
	b.mustRound()
	wantTold(t, b.told(), []string{
		"1 control tillOpen",
		"2 sale 58100; sale 4711 1000 = 8100 off 1900 vat 1620; sale 4712 1000 = 2000 off 0 vat 0 struck; sale GC 1000 = 50000 off 0 vat 0 giftCard; cash 60000; cash -1900",
		"3 return -9000; return 4711 -1000 = -9000 off 0 vat 0 of 0001/4/2026-11-21/2; cash -9000",
		"4 control cancelled; sale 4711 1000 = 9000 off 0 vat 0",
		"5 void of 0001/4/2026-11-21/3",
		"6 sale training 9000; sale 4711 1000 = 9000 off 0 vat 0; mobile 9000",
		"7 control paidOut",
	})
	if name := b.inOrder()[1].Lines[0].Description; name != "Räksmörgås" {
		t.Errorf("description %q is not Latin-1", name)
	}
	if spread := string(b.inOrder()[1].Extra["spread"]); spread != `["discount","tax"]` {
		t.Errorf("spread %s, want what was worked out to be named", spread)
	}
}

func TestVATOnTopBecomesPartOfTheLines(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog})
	b.write("t.xml", sample(t, "tax-on-top.xml"))
	b.mustRound()
	wantTold(t, b.told(), []string{"1 sale 1624; sale 1 1000 = 1083 off 0 vat 83; sale 2 1000 = 541 off 0 vat 41; card 1624"})
}

func TestSumsThatDoNotAddUpAreFlaggedNotRefused(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog})
	b.write("t.xml", strings.Replace(sample(t, "tax-on-top.xml"), `TransactionGrandAmount">16.24`, `TransactionGrandAmount">99.00`, 1))
	b.mustRound()
	wantTold(t, b.told(), []string{"1 sale 9900; sale 1 1000 = 1000 off 0 vat 83; sale 2 1000 = 500 off 0 vat 41; card 1624 [totalDiffers tendersDiffer]"})
	b.wantFiles(doneDir, "2026-11-22/t.xml")
}

func TestEncodingsOfXML(t *testing.T) {
	body := `<POSLog><Transaction><RetailStoreID>0001</RetailStoreID><WorkstationID>4</WorkstationID><SequenceNumber>%d</SequenceNumber>
<EndDateTime>2026-11-21T08:20:00Z</EndDateTime><CurrencyCode>EUR</CurrencyCode><RetailTransaction><LineItem><Sale><ItemID>1</ItemID>
<Description>Smörgås %s</Description><ExtendedAmount>1</ExtendedAmount></Sale></LineItem></RetailTransaction></Transaction></POSLog>`
	latin := func(s string) string {
		return strings.NewReplacer("ö", "\xf6", "å", "\xe5", "€", "\x80").Replace(s)
	}
	latin9 := func(s string) string {
		return strings.NewReplacer("ö", "\xf6", "å", "\xe5", "€", "\xa4").Replace(s)
	}
	b := newBench(t, Config{Format: FormatPOSLog})
	n := 0
	for _, text := range []func(s string) string{
		func(s string) string { return s },
		func(s string) string { return "\xef\xbb\xbf" + `<?xml version="1.0" encoding="UTF-8"?>` + s },
		func(s string) string { return utf16Text(`<?xml version="1.0" encoding="UTF-16"?>`+s, false) },
		func(s string) string { return utf16Text(`<?xml version="1.0" encoding="utf-16"?>`+s, true) },
		func(s string) string { return `<?xml version="1.0" encoding="utf-16"?>` + s }, // .NET's mistake
		func(s string) string { return latin(`<?xml version="1.0" encoding="Windows-1252"?>` + s) },
		func(s string) string { return latin(`<?xml version='1.0' encoding='iso-8859-1' ?>` + s) },
		func(s string) string { return latin9(`<?xml version="1.0" encoding="ISO-8859-15"?>` + s) },
	} {
		n++
		b.write(fmt.Sprintf("%d.xml", n), text(fmt.Sprintf(body, n, "€")))
	}
	b.mustRound()
	for _, sale := range b.inOrder() {
		if got := sale.Lines[0].Description; got != "Smörgås €" {
			t.Errorf("file %d: %q", sale.Sequence, got)
		}
	}
	if len(b.inOrder()) != n {
		t.Errorf("%d accepted, want %d; rejected: %q", len(b.inOrder()), n, b.files(rejectedDir))
	}
}

const noon = `<EndDateTime>2026-11-21T12:00:00</EndDateTime>`

// one is a POSLog of one transaction, with what is put into its RetailTransaction.
func one(retail string) string {
	return `<POSLog><Transaction><RetailStoreID>0001</RetailStoreID><WorkstationID>4</WorkstationID><SequenceNumber>1</SequenceNumber><CurrencyCode>SEK</CurrencyCode>` + noon +
		`<RetailTransaction>` + retail + `</RetailTransaction></Transaction></POSLog>`
}

func lineItem(n int, attrs, body string) string {
	return fmt.Sprintf(`<LineItem %s><SequenceNumber>%d</SequenceNumber>%s</LineItem>`, attrs, n, body)
}

func TestWaysOfTills(t *testing.T) {
	coffee := `<Sale><ItemID>4711</ItemID><ExtendedAmount>50.00</ExtendedAmount><Quantity>1</Quantity></Sale>`
	cash := func(amount string) string {
		return lineItem(9, "", `<Tender TenderType="Cash"><Amount>`+amount+`</Amount></Tender>`)
	}
	grand := func(amount string) string { return `<Total TotalType="TransactionGrandAmount">` + amount + `</Total>` }
	for _, tt := range []struct{ name, text, want string }{
		{"a struck line that names the one it strikes", one(lineItem(1, "", coffee) + lineItem(2, "", coffee) + lineItem(3, `VoidFlag="true"`, strings.Replace(coffee, "<Quantity>", "<ItemLink>1</ItemLink><Quantity>", 1)) + cash("50.00") + grand("50.00")),
			"1 sale 5000; sale 4711 1000 = 5000 off 0 vat 0 struck; sale 4711 1000 = 5000 off 0 vat 0; sale 4711 1000 = 5000 off 0 vat 0 struck; cash 5000"},
		{"an exchange", one(lineItem(1, "", coffee) + lineItem(2, "", strings.NewReplacer("<Sale>", "<Return>", "</Sale>", "</Return>", "50.00", "20.00").Replace(coffee)) + cash("30.00") + grand("30.00")),
			"1 sale 3000; sale 4711 1000 = 5000 off 0 vat 0; return 4711 -1000 = -2000 off 0 vat 0; cash 3000"},
		{"a return with negative amounts", one(lineItem(1, "", `<Return><ItemID>4711</ItemID><ExtendedAmount>-50.00</ExtendedAmount><Quantity>-1</Quantity></Return>`) + cash("-50.00") + grand("-50.00")),
			"1 return -5000; return 4711 -1000 = -5000 off 0 vat 0; cash -5000"},
		{"0.42 of a piece", one(lineItem(1, "", strings.Replace(coffee, "<Quantity>1", `<Quantity UnitOfMeasureCode="EA">0.42`, 1)) + cash("50.00")),
			"1 sale 5000; sale 4711 420 = 5000 off 0 vat 0; cash 5000"},
		{"rounding down, total before it", one(lineItem(1, "", strings.Replace(coffee, "50.00", "49.60", 1)) + lineItem(2, "", `<Tender TenderType="Cash"><Amount>50.00</Amount><Rounding>0.40</Rounding></Tender>`) + grand("49.60")),
			"1 sale 5000 rounded 40; sale 4711 1000 = 4960 off 0 vat 0; cash 5000"},
		{"rounding, total behind it", one(lineItem(1, "", strings.Replace(coffee, "50.00", "50.40", 1)) + lineItem(2, "", `<Tender TenderType="Cash"><Amount>50.00</Amount><Rounding>0.40</Rounding></Tender>`) + grand("50.00")),
			"1 sale 5000 rounded -40; sale 4711 1000 = 5040 off 0 vat 0; cash 5000"},
		{"a price and no amount", one(lineItem(1, "", `<Sale><ItemID>2</ItemID><ActualSalesUnitPrice>39.90</ActualSalesUnitPrice><Quantity UnitOfMeasureCode="KGM">0.425</Quantity></Sale>`) + cash("16.96")),
			"1 sale 1696; sale 2 425kgm = 1696 off 0 vat 0; cash 1696"},
		{"nothing at all", one(""), "1 control empty"},
		{"a suspended sale", strings.Replace(one(lineItem(1, "", coffee)), "<RetailTransaction>", `<RetailTransaction TransactionStatus="Suspended">`, 1), "1 control suspended; sale 4711 1000 = 5000 off 0 vat 0"},
		{"a gift card and a deposit", one(lineItem(1, "", `<GiftCertificate><FaceValueAmount>100.00</FaceValueAmount></GiftCertificate>`) + lineItem(2, "", `<Deposit><Amount>2.00</Amount></Deposit>`) + cash("102.00")),
			"1 sale 10200; sale giftCard 1000 = 10000 off 0 vat 0 giftCard; sale deposit 1000 = 200 off 0 vat 0 deposit; cash 10200"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, Config{Format: FormatPOSLog})
			b.write("t.xml", tt.text)
			b.mustRound()
			wantTold(t, b.told(), []string{tt.want})
		})
	}
}

// TestTimesWithoutAnOffset are those of the store's clock: the first time of the hour that
// comes twice.
func TestTimesWithoutAnOffset(t *testing.T) {
	for said, want := range map[string]string{
		"2026-07-01T12:00:00": "12:00:00+02:00", "2026-12-01T12:00:00.5": "12:00:00+01:00", "2026-10-25T02:30:00": "02:30:00+02:00",
		"2026-03-29T02:30:00": "03:30:00+02:00", "2026-07-01T12:00:00Z": "12:00:00Z", "2026-07-01T12:00:00-0500": "12:00:00-05:00",
	} {
		got, err := readTime(said, stockholm, timeForms...)
		if err != nil || got.Format("15:04:05Z07:00") != want {
			t.Errorf("%s is %s, %v, want %s", said, got.Format("15:04:05Z07:00"), err, want)
		}
	}
}

// What no program writes in good faith, or does not mean: nothing of it is accepted, and the
// report says where it is.
func TestEDG04BadXMLIsRejectedWithItsLine(t *testing.T) {
	good := sample(t, "tax-on-top.xml")
	for _, tt := range []struct {
		name, text string
		line       int
		says       string
	}{
		{"half of it", good[:len(good)/2], 7, "ends too early"},
		{"a document type", "<!DOCTYPE POSLog [\n<!ENTITY x SYSTEM \"file:///etc/passwd\">]>\n" + good, 2, "document type"},
		{"an unknown entity", strings.Replace(good, "<ItemID>1<", "<ItemID>&x;<", 1), 6, "entity"},
		{"a million laughs", "<!DOCTYPE l [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;\">]><POSLog/>", 1, "document type"},
		{"too deep", strings.Replace(good, "<ItemID>1<", strings.Repeat("<x>", 50)+strings.Repeat("</x>", 50)+"<ItemID>1<", 1), 6, "deep"},
		{"a long text", strings.Replace(good, "<ItemID>1<", "<ItemID>"+strings.Repeat("x", 2<<20)+"<", 1), 6, "longer than"},
		{"tags that cross", strings.Replace(good, "</Sale><SequenceNumber>1", "</Sole><SequenceNumber>1", 1), 6, "Sale"},
		{"two documents", good + good, 14, "behind the end"},
		{"another program's", "<Invoice/>", 1, "want a POSLog"},
		{"no XML", "hello", 1, "ends too early"},
		{"a strange encoding", `<?xml version="1.0" encoding="EBCDIC"?><POSLog/>`, 1, "EBCDIC"},
		{"Latin-1 that says UTF-8", strings.Replace(good, "<ItemID>1<", "<ItemID>\xe5<", 1), 6, "UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, Config{Format: FormatPOSLog})
			b.write("t.xml", tt.text)
			b.mustRound()
			r := b.report("t.xml")
			if r.Line != tt.line || !strings.Contains(r.Problem, tt.says) || len(b.agent.accepted) != 0 {
				t.Errorf("report %+v, %d accepted, want line %d and %q", r, len(b.agent.accepted), tt.line, tt.says)
			}
			b.wantFiles(rejectedDir, "t.xml", "t.xml"+reportEnding)
			b.wantFiles(workDir)
		})
	}
}

// One bad receipt does not keep a day's good ones from the ledger.
func TestEDG04AFaultIsNamedByLineAndFieldAndTheRestIsAccepted(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog, Currency: "SEK"})
	text := strings.Replace(sample(t, "poslog-2.xml"), "<p:SequenceNumber>6</p:SequenceNumber>", "<p:SequenceNumber>six</p:SequenceNumber>", 2)
	text = strings.Replace(text, "<p:Amount>90.00</p:Amount></p:Tender></p:LineItem>\n      <p:Total", "<p:Amount>ninety</p:Amount></p:Tender></p:LineItem>\n      <p:Total", 1)
	text = strings.Replace(text, "<p:Quantity>1</p:Quantity></p:Sale>\n      </p:LineItem>\n      <p:LineItem><p:SequenceNumber>4<", "<p:Quantity>0</p:Quantity></p:Sale>\n      </p:LineItem>\n      <p:LineItem><p:SequenceNumber>4<", 1)
	b.write("t.xml", text)
	b.mustRound()
	var got []string
	r := b.report("t.xml")
	for _, refusal := range r.Refusals {
		for _, f := range refusal.Faults {
			got = append(got, fmt.Sprintf("%d %s: line %d %s", refusal.Line, refusal.Transaction, f.Line, f.Field))
		}
	}
	want := []string{"9 4/2026-11-21/2: line 23 lines[2].quantity.milli", "33 4/2026-11-21/3: line 42 Amount", "60 4/2026-11-21/0: line 60 SequenceNumber"}
	if !slices.Equal(got, want) || r.Accepted != 4 || r.Refused != 3 {
		t.Errorf("report %q, %+v\nwant %q", got, r, want)
	}
	if len(b.agent.accepted) != 4 {
		t.Errorf("%d accepted, want 4", len(b.agent.accepted))
	}
	// Mended and dropped again, only what was refused is new.
	b.write("t.xml", sample(t, "poslog-2.xml"))
	b.mustRound()
	if s := b.drop.Status(); len(b.agent.accepted) != 7 || s.Known != 4 {
		t.Errorf("%d accepted, %d known, want 7 and 4", len(b.agent.accepted), s.Known)
	}
}
