package protocol

import (
	"encoding/json"
	"fmt"
	"time"
)

// A Store is a shop of the chain (ARTS business unit). The relay holds it, and the config
// feed brings it to the store's agents under the key "store".
type Store struct {
	ID       string `json:"id"`
	Name     string `json:"name,omitempty"`
	Zone     string `json:"zone"`     // IANA name, Europe/Stockholm
	CutOff   string `json:"cutOff"`   // HH:MM, when the business day begins; "" = 00:00
	Currency string `json:"currency"` // ISO 4217
}

// StoreKey is the key of a store's own settings in the config feed.
const StoreKey = "store"

// Validate returns Faults or nil.
func (s *Store) Validate() error {
	var f Faults
	if !ValidID(s.ID) {
		f.Add("id", "letters, digits, _ and -, at most 64", "not an id: %q", s.ID)
	}
	if len(s.Name) > 200 {
		f.Add("name", "", "%d bytes, at most 200", len(s.Name))
	}
	if _, err := s.Rule(); err != nil {
		f.AddAll(err)
	}
	if _, ok := CurrencyExponent(s.Currency); !ok {
		f.Add("currency", "an ISO 4217 code such as SEK", "unknown currency %q", s.Currency)
	}
	return f.Err()
}

// Rule is when the store's business day begins. Errors are Faults at zone and cutOff.
func (s *Store) Rule() (DayRule, error) {
	var f Faults
	zone, err := time.LoadLocation(s.Zone)
	if err != nil || s.Zone == "" || s.Zone == "Local" { // each machine has another Local
		f.Add("zone", "an IANA name such as Europe/Stockholm", "unknown time zone %q", s.Zone)
	}
	var cutOff time.Duration
	if s.CutOff != "" {
		t, err := time.Parse("15:04", s.CutOff)
		if err != nil || len(s.CutOff) != 5 {
			f.Add("cutOff", "HH:MM such as 04:00", "not a time of day: %q", s.CutOff)
		}
		cutOff = time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
	}
	return DayRule{Zone: zone, CutOff: cutOff}, f.Err()
}

// String is the store's name with its id.
func (s *Store) String() string {
	if s.Name == "" {
		return s.ID
	}
	return fmt.Sprintf("%s (%s)", s.Name, s.ID)
}

// DecodeStore reads the body of the key StoreKey. Errors are Faults.
func DecodeStore(body []byte) (Store, error) {
	var s Store
	if err := json.Unmarshal(body, &s); err != nil {
		return Store{}, typeFault(err)
	}
	return s, s.Validate()
}
