// Package drivers is the contract between the agent and the devices of a store, the form
// of their settings, and the supervisor that keeps a driver running: it reopens a port that
// was lost, with growing pauses, and reports the device's state. The registry is in
// drivers/catalog, which imports every driver.
//
// A driver is the constants of a wire format with the manual's page, a pure codec that is
// fuzzed, and a dull Run.
package drivers

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A Spec is one device of the agent's configuration.
type Spec struct {
	ID       string         // unique in the store
	Driver   string         // a name in catalog.Registry
	Port     string         // device path, COM3, by-id:NAME or usb:VID:PID[:SERIAL]
	Settings map[string]any // the driver's own keys
}

// A Driver speaks to one device until ctx ends or the device is lost.
type Driver interface {
	// Run opens the device, reads it and emits what it says. It returns when ctx is done or
	// when the port must be opened again; the supervisor decides when. An error may be a
	// *Fault, which carries a hint for a person.
	Run(ctx context.Context, host Host) error
}

// An Opener is a driver of a cash drawer: it can be told to open it.
type Opener interface {
	Driver
	// Open sends the opening pulse and returns when the device has it; the events follow
	// through Host.Emit. ErrOffline when the device is not there.
	Open(ctx context.Context, command OpenCommand) error
	// Opened says whether the drawer is open; known is false when it has no switch, or has
	// not said yet.
	Opened() (open, known bool)
}

// A Watcher is an Opener that says when Opened changes.
type Watcher interface {
	Opener
	// Changed is closed at the next change; ask for it before Opened.
	Changed() <-chan struct{}
}

// A Weigher is a driver of a scale.
type Weigher interface {
	Driver
	// Weigh asks the scale now. ErrOffline when it is not there or does not answer.
	Weigh(ctx context.Context) (Weighing, error)
}

// A Weighing is one answer of a scale.
type Weighing struct {
	State  string            // WeightStable, or why there is no weight
	Weight protocol.Quantity // while State is WeightStable or WeightZero
	At     time.Time
}

// The states of a scale.
const (
	WeightStable    = "stable"
	WeightZero      = "zero"             // nothing lies on it
	WeightMotion    = "motion"           // it has not come to rest
	WeightOver      = "overCapacity"     // too heavy
	WeightUnder     = "underZero"        // lighter than nothing: it wants to be set to zero
	WeightZeroRange = "outsideZeroRange" // it was switched on with something on it
	WeightNone      = "notReady"         // for another reason
)

// A Scanner is a driver of a bar code scanner.
type Scanner interface {
	Driver
	// Scans waits for scans after a cursor of an earlier answer and returns at least one; ""
	// is from now on, and a cursor from before the agent's last start is all since it. It
	// keeps the last ones only. Next is the place to go on from, also with ctx's error.
	// ErrOffline when the scanner is not there.
	Scans(ctx context.Context, after string) (scans []Scan, next string, err error)
}

// A Scan is what one bar code says.
type Scan struct {
	Data string    `json:"data"` // without prefix and end
	At   time.Time `json:"at"`   // UTC
}

// An OpenCommand says why a drawer is opened; it goes into the event.
type OpenCommand struct {
	Reason    string // reason code of the till, such as sale, change, noSale
	Reference string // the transaction it goes with, if any
	Operator  string
}

// A Host is what the agent gives to one running driver.
type Host interface {
	// Emit accepts a record: when it returns nil, body and state are on disk, both or
	// neither. State is what the driver wants back from State at its next start; nil leaves
	// it as it was. On an error nothing was accepted: the driver keeps its totals and tries
	// again with the next reading. A protocol.DeviceState of state fault says what the device
	// itself reports; Supervise limits how often it becomes a record.
	Emit(ctx context.Context, kind protocol.Kind, body any, state []byte) error
	// State is the state of the last accepted Emit, nil at the very first start.
	State() ([]byte, error)
	// Online reports that the device answers. Cheap: call it at every good frame.
	Online()
	// Note counts something worth showing on the store PC's page, such as noise.
	Note(what string)
	// Now is the time; drivers use no other clock.
	Now() time.Time
}

// LoadState reads what host keeps for the driver, as JSON. Without any, state stays as it is; what
// cannot be read leaves it zero, and is noted.
func LoadState[T any](host Host, state *T, note string) error {
	stored, err := host.State()
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if len(stored) > 0 && json.Unmarshal(stored, state) != nil {
		host.Note(note)
		*state = *new(T)
	}
	return nil
}

// A Fault is an error about a device, with a hint for the person in the shop.
type Fault struct {
	Device string
	Err    error
	Hint   string
}

func (f *Fault) Error() string {
	s := "device " + f.Device + ": " + f.Err.Error()
	if f.Hint != "" {
		s += " (" + f.Hint + ")"
	}
	return s
}

func (f *Fault) Unwrap() error { return f.Err }
