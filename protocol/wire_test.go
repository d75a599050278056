package protocol

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const (
	epochA = Epoch("0123456789abcdef0123456789abcdef")
	epochB = Epoch("fedcba9876543210fedcba9876543210")
)

func TestABatchWithASkipIsReadAsItWasWritten(t *testing.T) {
	before := &Mark{Epoch: epochB, Through: 9, Hash: Hash{1}}
	for name, want := range map[string]Batch{
		"records alone":     {Epoch: epochA, First: 1, Records: []Record{{Seq: 1, Kind: KindSeal, Body: []byte(`{}`)}, {Seq: 2, Kind: KindDrawer, Body: []byte(`{"a":"<&>"}`)}}},
		"skip alone":        {Epoch: epochA, First: 3, Skip: &Skip{From: 3, To: 7, Hash: Hash{2}, Reason: SkipTrimmed}, Records: []Record{}},
		"skip and a record": {Epoch: epochA, First: 3, Skip: &Skip{From: 3, To: 7, Hash: Hash{2}, Reason: SkipDamaged}, Records: []Record{{Seq: 8, Kind: KindDrawer, Body: []byte(`{}`)}}},
		"skip of a seal":    {Epoch: epochA, First: 1, Skip: &Skip{From: 1, To: 1, Hash: Hash{2}, Reason: SkipDamaged, Seal: &Seal{Before: before}}, Records: []Record{}},
		"of another agent":  {Epoch: epochA, First: 1, Of: &Origin{"c", "s", "a"}, Records: []Record{{Seq: 1, Kind: KindSeal, Body: []byte(`{}`)}}},
	} {
		got, err := DecodeBatch(want.Encode())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	b := Batch{First: 3, Skip: &Skip{From: 3, To: 7}, Records: make([]Record, 2)}
	if b.Begin() != 8 || b.Last() != 9 {
		t.Errorf("begins at %d and ends at %d, want 8 and 9", b.Begin(), b.Last())
	}
}

func TestABatchThatMakesNoSenseNamesItsField(t *testing.T) {
	record := `{"seq":%SEQ%,"kind":"drawerEvent","body":{}}`
	at := func(seq string) string { return strings.Replace(record, "%SEQ%", seq, 1) }
	for field, text := range map[string]string{
		"epoch":          `{"epoch":"x","first":1,"records":[` + at("1") + `]}`,
		"first":          `{"epoch":"` + string(epochA) + `","first":0,"records":[` + at("1") + `]}`,
		"records":        `{"epoch":"` + string(epochA) + `","first":1,"records":[]}`,
		"records[0].seq": `{"epoch":"` + string(epochA) + `","first":1,"records":[` + at("2") + `]}`,
		"raw":            `{"epoch":"` + string(epochA) + `","first":1,"skip":{"from":1,"to":2,"hash":"` + Hash{}.String() + `"},"raw":"eA=="}`,
		"skip":           `{"epoch":"` + string(epochA) + `","first":2,"skip":{"from":2,"to":1,"hash":"` + Hash{}.String() + `"},"records":[]}`,
		"of":             `{"epoch":"` + string(epochA) + `","first":1,"of":{"chain":"c","store":"../x","agent":"a"},"records":[` + at("1") + `]}`,
	} {
		_, err := DecodeBatch([]byte(text))
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func FuzzBatch(f *testing.F) {
	b := Batch{Epoch: epochA, First: 3, Skip: &Skip{From: 3, To: 7}, Records: []Record{{Seq: 8, Kind: KindDrawer, Body: []byte(`{}`)}}}
	f.Add(b.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeBatch(data)
		if err != nil {
			return
		}
		again, err := DecodeBatch(b.Encode())
		if err != nil {
			t.Fatalf("%q was read, and what was made of it is not: %v", data, err)
		}
		if b.First != again.First || b.Last() != again.Last() || b.Begin() != again.Begin() {
			t.Fatalf("%q: %d..%d became %d..%d", data, b.First, b.Last(), again.First, again.Last())
		}
	})
}

func TestAskIsOneMember(t *testing.T) {
	text, err := json.Marshal(Ask{Marks: &MarksAsk{Epochs: []Epoch{epochA}}})
	if want := `{"marks":{"epochs":["` + string(epochA) + `"]}}`; err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
}
