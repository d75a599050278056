package filedrop

import (
	"strings"
	"testing"
)

// swedish is a table as a till with a Swedish Windows writes it.
var swedish = Config{Format: FormatCSV, Currency: "SEK", Workstations: map[string]any{"Kassa 1": "1"}, Tenders: map[string]any{"Kontant": "cash", "Kort": "card"}, CSV: CSV{
	Separator: ";", Decimal: ",", Encoding: "windows-1252", TimeFormat: "DD.MM.YYYY hh:mm:ss", DayFormat: "DD.MM.YYYY",
	Columns: map[string]any{"workstation": "Kassa", "businessDay": "Dag", "sequenceNumber": "Kvitto", "type": "Typ", "end": "Tid", "item": "Artikel", "description": "Benämning",
		"quantity": "Antal", "unit": "Enhet", "extendedAmount": "Belopp", "taxAmount": "Moms", "taxRate": "Momssats", "tenderType": "Betalsätt", "tenderAmount": "Betalt", "total": "Summa"},
	Types:  map[string]any{"F": "sale", "R": "return", "Öppning": "tillOpen", "Låda": "noSale"},
	Ignore: []string{"Kundnamn"},
}}

const swedishTable = `Kassa;Dag;Kvitto;Typ;Tid;Artikel;Benämning;Antal;Enhet;Belopp;Moms;Momssats;Betalsätt;Betalt;Summa;Kundnamn;Kampanj
Kassa 1;21.11.2026;7;Öppning;21.11.2026 08:00:00;;;;;;;;;;;;
Kassa 1;21.11.2026;8;F;21.11.2026 10:15:00;4711;"Kaffe ""Mörk""; 450 g";2;;1.119,90;119,99;12;;;;Berg, Britt;Höst
Kassa 1;21.11.2026;8;F;21.11.2026 10:15:00;2001;Tomater;0,42;kgm;16,76;1,80;12;;;;;
Kassa 1;21.11.2026;8;F;21.11.2026 10:15:00;;;;;;;;Kontant;1200;1136,66;;
Kassa 1;21.11.2026;8;;;;;;;;;;Kontant;-63,34;;;
Kassa 1;21.11.2026;9;R;21.11.2026 10:20:00;4711;Kaffe;1;;59,95;6,42;12;Kort;-59,95;59,95;;
Kassa 1;21.11.2026;10;Låda;21.11.2026 10:21:00;;;;;;;;;;;;
`

func TestEDG04CSVWithAMapping(t *testing.T) {
	b := newBench(t, swedish)
	b.write("dag.csv", windows(swedishTable))
	b.mustRound()
	wantTold(t, b.told(), []string{
		"7 control tillOpen",
		"8 sale 113666; sale 4711 2000 = 111990 off 0 vat 11999; sale 2001 420kgm = 1676 off 0 vat 180; cash 120000; cash -6334",
		"9 return -5995; return 4711 -1000 = -5995 off 0 vat -642; card -5995",
		"10 control noSale",
	})
	sale := b.inOrder()[1]
	if sale.Lines[0].Description != `Kaffe "Mörk"; 450 g` || string(sale.Lines[0].Extra["csv"]) != `{"Kampanj":"Höst"}` || sale.Lines[0].TaxRate != 1200 {
		t.Errorf("line %+v", sale.Lines[0])
	}
	if sale.Workstation != "1" || sale.End.Format("15:04:05Z07:00") != "10:15:00+01:00" {
		t.Errorf("sale %+v", sale)
	}
	// The same table with another mapping of what is not its content is the same.
	b.cfg.CSV.Columns = map[string]any{}
	for k, v := range swedish.CSV.Columns {
		if k != "description" {
			b.cfg.CSV.Columns[k] = v
		}
	}
	b.restart()
	b.write("dag.csv", windows(swedishTable))
	b.mustRound()
	if s := b.drop.Status(); s.Known != 4 || s.Refused != 0 {
		t.Errorf("%d known, %d refused, want 4 and 0", s.Known, s.Refused)
	}
}

func windows(text string) string {
	var b strings.Builder
	for _, r := range text {
		b.WriteByte(byte(r))
	}
	return b.String()
}

func TestCSVWithoutAHeaderAndWithAColumnPerTender(t *testing.T) {
	b := newBench(t, Config{Format: FormatCSV, Workstation: "3", Currency: "EUR", CSV: CSV{NoHeader: true, Separator: "tab",
		Columns: map[string]any{"sequenceNumber": 1, "begin": 2, "item": 3, "extendedAmount": 4, "tender.cash": 5, "tender.card": 6}}})
	b.write("x.csv", "\xef\xbb\xbf1\t2026-11-21T10:00\tA\t1.50\t2.00\t\n1\t2026-11-21T10:00\tB\t0.5\t2.00\t\n2\t2026-11-21 11:00\tA\t-1.50\t\t-1.50\n")
	b.mustRound()
	wantTold(t, b.told(), []string{
		"1 sale 200; sale A 1000 = 150 off 0 vat 0; sale B 1000 = 50 off 0 vat 0; cash 200",
		"2 return -150; return A -1000 = -150 off 0 vat 0; card -150",
	})
}

func TestEDG04ABadTableIsRejectedWithLineAndColumn(t *testing.T) {
	for _, tt := range []struct {
		name, old, new string
		line           int
		says           string
	}{
		{"a line cut short", "Låda;21.11.2026 10:21:00;;;;;;;;;;;;\n", "Lå", 8, "wrong number of fields"},
		{"an open quotation mark", `"Kaffe ""Mörk""; 450 g"`, `"Kaffe`, 0, `"`},
		{"another header", "Kvitto", "Nota", 1, `no column "Kvitto"`},
		{"a number that is none", "1.119,90", "elva", 3, "Belopp"},
		{"a receipt number that is none", ";9;R;", ";nio;R;", 7, "Kvitto"},
		{"rows that disagree", "1200;1136,66", "1200;99,00", 5, "Summa"},
		{"a word for a type that nobody knows", ";9;R;", ";9;Retur;", 7, "Typ"},
		{"a day that is none", "Kassa 1;21.11.2026;10", "Kassa 1;2026-11-21;10", 8, "Dag"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, swedish)
			text := swedishTable
			if tt.name == "rows that disagree" {
				text = strings.Replace(text, "119,99;12;;;;Berg", "119,99;12;;;1136,66;Berg", 1)
			}
			b.write("dag.csv", windows(strings.Replace(text, tt.old, tt.new, 1)))
			b.mustRound()
			r := b.report("dag.csv")
			line, says := r.Line, r.Problem
			if len(r.Refusals) > 0 {
				line, says = r.Refusals[0].Faults[0].Line, r.Refusals[0].Faults[0].String()
			}
			if !strings.Contains(says, tt.says) || (tt.line != 0 && line != tt.line) {
				t.Errorf("line %d %q, want line %d and %q", line, says, tt.line, tt.says)
			}
		})
	}
}

func TestATableInAnotherEncodingIsRefusedWithAHint(t *testing.T) {
	cfg := swedish
	cfg.CSV.Encoding = ""
	b := newBench(t, cfg)
	b.write("dag.csv", windows(swedishTable))
	b.mustRound()
	if r := b.report("dag.csv"); r.Line != 1 || !strings.Contains(r.Hint, "csv.encoding") {
		t.Errorf("report %+v", r)
	}
}
