package protocol

import "time"

// The states of a device.
const (
	DeviceOnline  = "online"
	DeviceOffline = "offline" // the port is gone or silent
	DeviceFault   = "fault"   // it answers, and says that something is wrong
)

// A DeviceState is a change in the health of a device on a store PC.
type DeviceState struct {
	Device string    `json:"device"` // id, unique in the store
	Driver string    `json:"driver"`
	Class  string    `json:"class"` // counter, drawer, scale, scanner, acceptor, drop (a folder of files)
	State  string    `json:"state"` // online, offline, fault
	At     time.Time `json:"at"`    // UTC
	Reason string    `json:"reason,omitempty"`
	Hint   string    `json:"hint,omitempty"`

	Extra Extra `json:"-"`
}

type deviceFields DeviceState

// MarshalJSON writes the state with the members it did not know.
func (s DeviceState) MarshalJSON() ([]byte, error) { return encodeKeeping(deviceFields(s), s.Extra) }

// UnmarshalJSON reads a state; errors are Faults.
func (s *DeviceState) UnmarshalJSON(data []byte) (err error) {
	var v deviceFields
	v.Extra, err = decodeKeeping(data, &v)
	*s = DeviceState(v)
	return err
}

// Validate returns Faults or nil.
func (s *DeviceState) Validate() error {
	var f Faults
	if !ValidID(s.Device) {
		f.Add("device", "letters, digits, _ and -, at most 64", "not an id: %q", s.Device)
	}
	switch s.State {
	case DeviceOnline, DeviceOffline, DeviceFault:
	default:
		f.Add("state", "", "want online, offline or fault, got %q", s.State)
	}
	if s.At.IsZero() {
		f.Add("at", "", "missing")
	}
	return f.Err()
}
