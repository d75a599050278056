package protocol

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFormatMinor(t *testing.T) {
	for _, tt := range []struct {
		minor int64
		exp   int
		want  string
	}{
		{12900, 2, "129.00"}, {-5, 2, "-0.05"}, {0, 2, "0.00"}, {7, 0, "7"}, {-1234, 3, "-1.234"},
		{math.MinInt64, 2, "-92233720368547758.08"},
	} {
		if got := FormatMinor(tt.minor, tt.exp); got != tt.want {
			t.Errorf("FormatMinor(%d, %d) = %q, want %q", tt.minor, tt.exp, got, tt.want)
		}
	}
}

func TestParseMinorIsTheInverseOfFormatMinor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		minor, exp := rapid.Int64().Draw(t, "minor"), rapid.IntRange(0, 4).Draw(t, "exp")
		s := FormatMinor(minor, exp)
		if got, err := ParseMinor(s, exp); err != nil || got != minor {
			t.Fatalf("ParseMinor(%q, %d) = %d, %v, want %d", s, exp, got, err, minor)
		}
	})
}

func TestParseMinorRefusesWhatItWouldHaveToRound(t *testing.T) {
	for _, s := range []string{"1.234", "", "-", "1.", ".5", "1e3", "1,50", "99999999999999999999", " 1", "+1"} {
		if got, err := ParseMinor(s, 2); err == nil {
			t.Errorf("ParseMinor(%q, 2) = %d, want an error", s, got)
		}
	}
	if got, err := ParseMinor("1.500", 2); err != nil || got != 150 {
		t.Errorf(`ParseMinor("1.500", 2) = %d, %v, want 150`, got, err)
	}
}

func TestUnitsCountsAWeighedLineAsOne(t *testing.T) {
	for _, tt := range []struct {
		q    Quantity
		want int64
	}{{Quantity{3000, ""}, 3}, {Quantity{420, "KGM"}, 1}, {Quantity{-2310, "KGM"}, -1}, {Quantity{-2000, "EA"}, -2}, {Quantity{0, "KGM"}, 0}} {
		if got := tt.q.Units(); got != tt.want {
			t.Errorf("%+v.Units() = %d, want %d", tt.q, got, tt.want)
		}
	}
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// The days of 2026 on which clocks change, see kpi 3.3: a day starts at the first instant
// whose local time is at or after the cut-off, also inside the skipped or doubled hour.
func TestDayRuleAroundSummerTime(t *testing.T) {
	for _, tt := range []struct {
		zone, day string
		cutOff    time.Duration
		start     string // UTC
		length    time.Duration
	}{
		{"Europe/Stockholm", "2026-03-29", 0, "2026-03-28T23:00:00Z", 23 * time.Hour},
		{"Europe/Stockholm", "2026-10-25", 0, "2026-10-24T22:00:00Z", 25 * time.Hour},
		{"Europe/Stockholm", "2026-03-28", 4 * time.Hour, "2026-03-28T03:00:00Z", 23 * time.Hour},
		{"Europe/Stockholm", "2026-10-24", 4 * time.Hour, "2026-10-24T02:00:00Z", 25 * time.Hour},
		{"Europe/Stockholm", "2026-03-29", 150 * time.Minute, "2026-03-29T01:00:00Z", 23*time.Hour + 30*time.Minute}, // 02:30 does not exist: 03:00
		{"Europe/Stockholm", "2026-10-25", 150 * time.Minute, "2026-10-25T00:30:00Z", 25 * time.Hour},                // the first 02:30
		{"Europe/Athens", "2026-03-29", 210 * time.Minute, "2026-03-29T01:00:00Z", 23*time.Hour + 30*time.Minute},    // 03:30 does not exist
		{"Europe/Athens", "2026-10-25", 210 * time.Minute, "2026-10-25T00:30:00Z", 25 * time.Hour},
		{"Europe/Lisbon", "2026-03-29", 90 * time.Minute, "2026-03-29T01:00:00Z", 23*time.Hour + 30*time.Minute}, // 01:30 does not exist
		{"Europe/Lisbon", "2026-10-25", 90 * time.Minute, "2026-10-25T00:30:00Z", 25 * time.Hour},
		{"Asia/Tokyo", "2026-10-25", 0, "2026-10-24T15:00:00Z", 24 * time.Hour},
	} {
		rule := DayRule{zone(t, tt.zone), tt.cutOff}
		day, err := ParseDay(tt.day)
		if err != nil {
			t.Fatal(err)
		}
		start := rule.Start(day)
		if got := start.UTC().Format(time.RFC3339); got != tt.start {
			t.Errorf("%s %s cut-off %s starts %s, want %s", tt.zone, tt.day, tt.cutOff, got, tt.start)
		}
		if got := rule.Start(day.AddDays(1)).Sub(start); got != tt.length {
			t.Errorf("%s %s cut-off %s lasts %s, want %s", tt.zone, tt.day, tt.cutOff, got, tt.length)
		}
	}
}

func TestEveryInstantIsInTheDayThatItsRuleGives(t *testing.T) {
	zones := []*time.Location{zone(t, "Europe/Stockholm"), zone(t, "Europe/Athens"), zone(t, "Europe/Lisbon"),
		zone(t, "America/New_York"), zone(t, "Pacific/Apia"), zone(t, "Australia/Lord_Howe"), time.UTC}
	rapid.Check(t, func(t *rapid.T) {
		rule := DayRule{rapid.SampledFrom(zones).Draw(t, "zone"), time.Duration(rapid.IntRange(0, 24*60-1).Draw(t, "cutOff")) * time.Minute}
		at := time.Unix(rapid.Int64Range(1_000_000_000, 2_000_000_000).Draw(t, "at"), 0)
		day := rule.Day(at)
		start, next := rule.Start(day), rule.Start(day.AddDays(1))
		if at.Before(start) || !at.Before(next) {
			t.Fatalf("%s cut-off %s: %s is not in day %s = [%s, %s)", rule.Zone, rule.CutOff, at.UTC(), day, start.UTC(), next.UTC())
		}
	})
}

const sale = `{"store":"0001","workstation":"1","businessDay":"2026-11-21","sequenceNumber":17,"type":"sale",
"begin":"2026-11-21T10:15:00+01:00","end":"2026-11-21T10:16:02+01:00","currency":"SEK","loyaltyLevel":"gold",
"lines":[{"type":"sale","item":"4711","gtin":"7310865004703","quantity":{"milli":2000},"extendedAmount":23800,"discountAmount":2000,"taxAmount":4760,"taxRate":2500,"serial":"S-9"}],
"tenders":[{"type":"cash","amount":30000},{"type":"cash","amount":-6200,"coin":true}],"tax":[{"rate":2500,"taxable":19040,"amount":4760}],"total":23800}`

func decodeSale(t *testing.T, s string) (Transaction, error) {
	t.Helper()
	var tx Transaction
	err := json.Unmarshal([]byte(s), &tx)
	return tx, err
}

func TestUnknownFieldsOfATransactionSurvive(t *testing.T) {
	tx, err := decodeSale(t, sale)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Validate(); err != nil {
		t.Fatal(err)
	}
	if flags := tx.Check(); flags != nil {
		t.Errorf("flags %v, want none", flags)
	}
	out, err := json.Marshal(tx)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(strings.Replace(sale, `"milli":2000`, `"milli":2000`, 1)), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("after a round trip\n got %s\nwant %s", out, sale)
	}
}

func TestATransactionsFaultsNameTheirFields(t *testing.T) {
	for _, tt := range []struct{ name, old, new, field string }{
		{"decimal amount", `"extendedAmount":23800`, `"extendedAmount":238.00`, "lines[0].extendedAmount"},
		{"text for a number", `"milli":2000`, `"milli":"2"`, "lines[0].quantity.milli"},
		{"tender amount", `"amount":-6200`, `"amount":"x"`, "tenders[1].amount"},
		{"bad day", `"businessDay":"2026-11-21"`, `"businessDay":"21/11"`, "businessDay"},
		{"naive time", `10:15:00+01:00`, `10:15:00`, "begin"},
		{"currency", `"SEK"`, `"KRO"`, "currency"},
		{"check digit", `7310865004703`, `7310865004704`, "lines[0].gtin"},
		{"sign", `"milli":2000`, `"milli":-2000`, "lines[0].quantity.milli"},
		{"line type", `{"type":"sale","item"`, `{"type":"sell","item"`, "lines[0].type"},
		{"tender type", `"type":"cash","amount":30000`, `"type":"gold","amount":30000`, "tenders[0].type"},
		{"sequence", `"sequenceNumber":17`, `"sequenceNumber":0`, "sequenceNumber"},
		{"huge", `"total":23800`, `"total":10000000000001`, "total"},
		{"control of a sale", `"sequenceNumber":17,"type":"sale",`, `"sequenceNumber":17,"type":"sale","control":"noSale",`, "control"},
		{"control without a name", `"sequenceNumber":17,"type":"sale",`, `"sequenceNumber":17,"type":"control",`, "control"},
		{"workstation", `"workstation":"1"`, `"workstation":"till 1"`, "workstation"},
		{"another case", `"total":23800`, `"total":23800,"Total":1`, "Total"},
		{"another case in a line", `"extendedAmount"`, `"ITEM":"x","extendedAmount"`, "lines[0].ITEM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tx, err := decodeSale(t, strings.Replace(sale, tt.old, tt.new, 1))
			if err == nil {
				err = tx.Validate()
			}
			faults := faultsOf(err)
			if len(faults) != 1 || faults[0].Field != tt.field {
				t.Errorf("faults %v, want one at %s", err, tt.field)
			}
		})
	}
}

func faultsOf(err error) (faults Faults) {
	errors.As(err, &faults)
	return faults
}

func TestAllFaultsAreNamedAtOnce(t *testing.T) {
	s := strings.NewReplacer(`"milli":2000`, `"milli":"2"`, `"total":23800`, `"total":1.5`, `"amount":30000`, `"amount":null1`).Replace(sale)
	if _, err := decodeSale(t, s); err == nil {
		t.Fatal("want an error for bad syntax")
	}
	s = strings.NewReplacer(`"milli":2000`, `"milli":"2"`, `"total":23800`, `"total":1.5`).Replace(sale)
	_, err := decodeSale(t, s)
	if faults := faultsOf(err); len(faults) != 2 {
		t.Errorf("faults %v, want two", err)
	}
}

func TestSumsThatDisagreeAreFlaggedNotRefused(t *testing.T) {
	for _, tt := range []struct{ old, new, flag string }{
		{`"total":23800`, `"total":23900,"rounding":100`, FlagTenders},
		{`"extendedAmount":23800`, `"extendedAmount":23700`, FlagTotal},
		{`"taxable":19040,"amount":4760`, `"taxable":19040,"amount":4761`, FlagTax},
		{`"sequenceNumber":17,"type":"sale"`, `"sequenceNumber":17,"type":"return"`, FlagType},
		{`10:16:02`, `10:14:00`, FlagTime},
	} {
		tx, err := decodeSale(t, strings.Replace(sale, tt.old, tt.new, 1))
		if err == nil {
			err = tx.Validate()
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := tx.Check(); !reflect.DeepEqual(got, []string{tt.flag}) {
			t.Errorf("%s: flags %v, want %s", tt.new, got, tt.flag)
		}
	}
}

func TestARecordsBodyKeepsItsExactBytes(t *testing.T) {
	body := `{"a" : 1.50, "b":"<&\u00e9>"}`
	batch := Batch{Epoch: Epoch(strings.Repeat("0a", 16)), First: 3, Records: []Record{
		{Seq: 3, Kind: "strange", At: "2026-11-21T10:15:00.120+01:00", Mono: 5, Day: Day{2026, 11, 21}, Body: []byte(body), Key: []byte{1, 2},
			Was: &Was{Epoch: Epoch(strings.Repeat("0b", 16)), Seq: 9}},
		{Seq: 4, Kind: KindFootfall, At: "x", Body: []byte("null")},
	}}
	got, err := DecodeBatch(batch.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, batch) {
		t.Errorf("got %+v\nwant %+v", got, batch)
	}
}

// The vector pins the hash (computed apart, in Python): a change to it would break every
// stored chain.
func TestHashVector(t *testing.T) {
	prev := Genesis("demo", "0001", "pc-1", Epoch(strings.Repeat("00", 16)))
	r := Record{Seq: 1, Kind: KindTransaction, At: "2026-11-21T10:15:00+01:00", Mono: 42, Day: Day{2026, 11, 21}, Body: []byte(`{}`)}
	if got, want := prev.String(), "61b65468156aec13f7ffef4f20a8d820f61629b1fbdf909d45ce4e9fee46efb4"; got != want {
		t.Errorf("genesis %s, want %s", got, want)
	}
	if got, want := r.Hash(prev).String(), "0a01cdb5e1e1276b9c9d1aeef96b675426d78f1f8640efd63b5b98d0da70a113"; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if got, want := r.ContentHash().String(), "8eb21d64af2642e7557b255d2cde5b0ea5733eba9998c4b574c61cd5e6213489"; got != want {
		t.Errorf("content hash %s, want %s", got, want)
	}
}

func TestEveryHashedFieldChangesTheHash(t *testing.T) {
	base := func() *Record {
		return &Record{Seq: 1, Kind: "k", At: "a", Mono: 1, Day: Day{2026, 1, 1}, Body: []byte("{}"), Was: &Was{Seq: 1}}
	}
	want := base().Hash(Hash{})
	for name, change := range map[string]func(r *Record){
		"seq": func(r *Record) { r.Seq++ }, "kind": func(r *Record) { r.Kind = "ka"; r.At = "" }, "at": func(r *Record) { r.At = "b" },
		"mono": func(r *Record) { r.Mono++ }, "day": func(r *Record) { r.Day.Date++ }, "body": func(r *Record) { r.Body = []byte("[]") },
		"was": func(r *Record) { r.Was.Seq++ }, "no was": func(r *Record) { r.Was = nil },
	} {
		r := base()
		if change(r); r.Hash(Hash{}) == want {
			t.Errorf("%s does not change the hash", name)
		}
	}
	r := base()
	r.Key = []byte("k")
	if r.Hash(Hash{}) != want {
		t.Error("key changes the hash, it must travel outside of it")
	}
}

func TestDecodeBatchRefusesAForm(t *testing.T) {
	good := `{"epoch":"` + strings.Repeat("0a", 16) + `","first":1,"prev":"` + strings.Repeat("00", 32) + `","records":[{"seq":1,"kind":"k","at":"","mono":0,"day":"","body":{}}]}`
	if _, err := DecodeBatch([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new, field string }{
		{"0a0a", "0A0A", "epoch"}, {`"first":1`, `"first":0`, "first"}, {`"seq":1`, `"seq":2`, "records[0].seq"},
	} {
		_, err := DecodeBatch([]byte(strings.Replace(good, tt.old, tt.new, 1)))
		if faults := faultsOf(err); len(faults) == 0 || faults[0].Field != tt.field {
			t.Errorf("%s: %v, want a fault at %s", tt.new, err, tt.field)
		}
	}
}

func FuzzTransaction(f *testing.F) {
	f.Add([]byte(sale))
	f.Fuzz(func(t *testing.T, data []byte) {
		var tx Transaction
		if json.Unmarshal(data, &tx) != nil || tx.Validate() != nil {
			return
		}
		tx.Check()
		out, err := json.Marshal(tx)
		if err != nil {
			t.Fatalf("valid transaction does not encode: %v", err)
		}
		var again Transaction
		if err := json.Unmarshal(out, &again); err != nil || again.Validate() != nil {
			t.Fatalf("encoded transaction does not decode: %v", err)
		}
		if same, err := json.Marshal(again); err != nil || string(same) != string(out) {
			t.Fatalf("%s was read as %s, %v", out, same, err)
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	f.Add([]byte(`{"epoch":"0a","first":1,"records":[{"seq":1,"body":{}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBatch(data)
		if err != nil {
			return
		}
		again, err := DecodeBatch(b.Encode())
		if err != nil {
			t.Fatalf("encoded batch does not decode: %v", err)
		}
		for i := range b.Records {
			if string(again.Records[i].Body) != string(b.Records[i].Body) {
				t.Fatalf("body changed from %q to %q", b.Records[i].Body, again.Records[i].Body)
			}
		}
	})
}

func TestAStoresSettingsNameWhatIsWrong(t *testing.T) {
	good := Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:30", Currency: "SEK"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	if rule, err := good.Rule(); err != nil || rule.CutOff != 4*time.Hour+30*time.Minute || rule.Zone.String() != good.Zone {
		t.Errorf("rule %+v, %v", rule, err)
	}
	for _, zone := range []string{"", "Local"} {
		if _, err := (&Store{Zone: zone}).Rule(); err == nil {
			t.Errorf("zone %q was taken", zone)
		}
	}
	bad := Store{ID: "a b", Zone: "Mars/Olympus", CutOff: "4:30", Currency: "KRO"}
	var fields []string
	for _, f := range faultsOf(bad.Validate()) {
		fields = append(fields, f.Field)
	}
	if want := []string{"id", "zone", "cutOff", "currency"}; !reflect.DeepEqual(fields, want) {
		t.Errorf("faults at %v, want %v", fields, want)
	}
}
