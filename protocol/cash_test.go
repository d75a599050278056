package protocol

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"
)

func TestCashInNamesWhatIsWrong(t *testing.T) {
	at := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	coin := &Money{Minor: 100, Currency: "EUR"}
	for _, good := range []CashIn{
		{Acceptor: "coins", Event: CashAccepted, At: at, Number: 1, Amount: coin, Coin: "EU100A", Channel: 3, Path: 1},
		{Acceptor: "coins", Event: CashAccepted, At: at, Number: 2, Channel: 9},
		{Acceptor: "coins", Event: CashRejected, At: at, Number: 3, Count: 2, Code: 23},
		{Acceptor: "coins", Event: CashMissed, At: at, Number: 4, Count: 7},
		{Acceptor: "coins", Event: CashReset, At: at, Number: 5},
	} {
		if err := good.Validate(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
		data, err := json.Marshal(good)
		if err != nil {
			t.Fatal(err)
		}
		var again CashIn
		if err := json.Unmarshal(data, &again); err != nil || !reflect.DeepEqual(again, good) {
			t.Errorf("%s was read as %+v, %v", data, again, err)
		}
	}
	for _, tt := range []struct {
		bad  CashIn
		want []string
	}{
		{CashIn{}, []string{"acceptor", "event", "at", "number"}},
		{CashIn{Acceptor: "c", Event: CashAccepted, At: at, Number: 1, Amount: &Money{Currency: "KRO"}}, []string{"channel", "amount.minor", "amount.currency"}},
		{CashIn{Acceptor: "c", Event: CashMissed, At: at, Number: 1}, []string{"count"}},
		{CashIn{Acceptor: "c", Event: CashReset, At: at, Number: 1, Amount: coin}, []string{"amount.minor"}},
	} {
		var faults Faults
		errors.As(tt.bad.Validate(), &faults)
		var fields []string
		for _, f := range faults {
			fields = append(fields, f.Field)
		}
		if !reflect.DeepEqual(fields, tt.want) {
			t.Errorf("%+v: faults of %q, want %q", tt.bad, fields, tt.want)
		}
	}
}
