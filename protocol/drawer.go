package protocol

import "time"

// The events of a cash drawer (UnifiedPOS CashDrawer: StatusUpdate, openDrawer).
const (
	DrawerOpened     = "opened"
	DrawerClosed     = "closed"
	DrawerOpenFailed = "openFailed" // commanded, and the drawer did not open
	DrawerLeftOpen   = "leftOpen"
)

// The causes of an opening.
const (
	CauseCommanded = "commanded" // the agent sent the pulse, or saw the till send it (then the reason is "till")
	CauseManual    = "manual"    // key, or another program
	CauseUnknown   = "unknown"   // open when we first saw it
)

// A DrawerEvent is one thing that a cash drawer did.
type DrawerEvent struct {
	Drawer    string    `json:"drawer"` // device id, unique in the store
	Event     string    `json:"event"`  // opened, closed, openFailed, leftOpen
	At        time.Time `json:"at"`     // UTC, when the agent saw it
	Cause     string    `json:"cause,omitempty"`
	OpenMS    int64     `json:"openMs,omitempty"`    // closed and leftOpen: how long it was open, ms
	Reason    string    `json:"reason,omitempty"`    // commanded: the reason code that the till gave
	Reference string    `json:"reference,omitempty"` // commanded: the transaction that it goes with
	Operator  string    `json:"operator,omitempty"`

	Extra Extra `json:"-"`
}

type drawerFields DrawerEvent

// MarshalJSON writes the event with the members it did not know.
func (e DrawerEvent) MarshalJSON() ([]byte, error) { return encodeKeeping(drawerFields(e), e.Extra) }

// UnmarshalJSON reads an event; errors are Faults.
func (e *DrawerEvent) UnmarshalJSON(data []byte) (err error) {
	var v drawerFields
	v.Extra, err = decodeKeeping(data, &v)
	*e = DrawerEvent(v)
	return err
}

// Validate returns Faults or nil.
func (e *DrawerEvent) Validate() error {
	var f Faults
	if !ValidID(e.Drawer) {
		f.Add("drawer", "letters, digits, _ and -, at most 64", "not an id: %q", e.Drawer)
	}
	switch e.Event {
	case DrawerOpened, DrawerClosed, DrawerOpenFailed, DrawerLeftOpen:
	default:
		f.Add("event", "", "want opened, closed, openFailed or leftOpen, got %q", e.Event)
	}
	switch e.Cause {
	case "", CauseCommanded, CauseManual, CauseUnknown:
	default:
		f.Add("cause", "", "want commanded, manual or unknown, got %q", e.Cause)
	}
	if e.At.IsZero() {
		f.Add("at", "", "missing")
	}
	return f.Err()
}
