package protocol

import "time"

// The events of a device that takes coins (UnifiedPOS CoinAcceptor).
const (
	CashAccepted = "accepted" // one coin is in
	CashRejected = "rejected" // coins were given back, or the acceptor named a fault
	CashMissed   = "missed"   // the acceptor forgot events before they were read: there may be coins among them
	CashReset    = "reset"    // it began to count anew: it was switched on, or is new here
)

// A CashIn is one event of a coin acceptor. Each coin is one record: Number has no holes, so
// that a coin that is lost or told twice is seen.
type CashIn struct {
	Acceptor string    `json:"acceptor"`          // device id, unique in the store
	Event    string    `json:"event"`             // accepted, rejected, missed, reset
	At       time.Time `json:"at"`                // UTC, when the agent read it
	Number   int64     `json:"number"`            // of the record at this acceptor: 1, 2, 3 ...
	Amount   *Money    `json:"amount,omitempty"`  // accepted: of the coin; missing = its value is not known
	Coin     string    `json:"coin,omitempty"`    // accepted: the acceptor's name for it, such as EU100A
	Channel  int       `json:"channel,omitempty"` // accepted: the acceptor's number for it, from 1
	Path     int       `json:"path,omitempty"`    // accepted: where it fell; 0 = not said
	Count    int64     `json:"count,omitempty"`   // rejected, missed: how many events
	Code     int       `json:"code,omitempty"`    // rejected: the acceptor's code of the last one

	Extra Extra `json:"-"`
}

type cashFields CashIn

// MarshalJSON writes the event with the members it did not know.
func (c CashIn) MarshalJSON() ([]byte, error) { return encodeKeeping(cashFields(c), c.Extra) }

// UnmarshalJSON reads an event; errors are Faults.
func (c *CashIn) UnmarshalJSON(data []byte) (err error) {
	var v cashFields
	v.Extra, err = decodeKeeping(data, &v)
	*c = CashIn(v)
	return err
}

// Validate returns Faults or nil.
func (c *CashIn) Validate() error {
	var f Faults
	if !ValidID(c.Acceptor) {
		f.Add("acceptor", "letters, digits, _ and -, at most 64", "not an id: %q", c.Acceptor)
	}
	switch c.Event {
	case CashAccepted:
		if c.Channel < 1 {
			f.Add("channel", "", "want 1 or more, got %d", c.Channel)
		}
	case CashRejected, CashMissed:
		if c.Count < 1 {
			f.Add("count", "", "want 1 or more, got %d", c.Count)
		}
	case CashReset:
	default:
		f.Add("event", "", "want accepted, rejected, missed or reset, got %q", c.Event)
	}
	if c.At.IsZero() {
		f.Add("at", "", "missing")
	}
	if c.Number < 1 {
		f.Add("number", "", "want 1 or more, got %d", c.Number)
	}
	if c.Amount != nil {
		if c.Event != CashAccepted || c.Amount.Minor < 1 {
			f.Add("amount.minor", "", "want a coin's value with accepted alone, got %d with %q", c.Amount.Minor, c.Event)
		}
		if _, ok := CurrencyExponent(c.Amount.Currency); !ok {
			f.Add("amount.currency", "an ISO 4217 code such as SEK", "unknown currency %q", c.Amount.Currency)
		}
	}
	return f.Err()
}
