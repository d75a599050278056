package protocol

import "encoding/json"

// A Seal is the body of an epoch's first record. It closes the epoch before at the last
// position that was known durable, so that nothing can be slipped in behind it.
type Seal struct {
	BootID   string            `json:"bootId"`             // of the operating system's run
	Versions map[string]string `json:"versions,omitempty"` // agent, go, os
	Before   *Mark             `json:"before"`             // end of the epoch before; null = this is the agent's first
	Forked   bool              `json:"forked,omitempty"`   // the epoch before forked: nothing behind Before is waited for
}

// DecodeSeal reads the body of a KindSeal record. Errors are Faults.
func DecodeSeal(body []byte) (Seal, error) {
	var s Seal
	if err := json.Unmarshal(body, &s); err != nil {
		return Seal{}, typeFault(err)
	}
	var faults Faults
	if s.Before != nil && !s.Before.Epoch.Valid() {
		faults.Add("before.epoch", "", "want 32 hex digits, got %q", s.Before.Epoch)
	}
	return s, faults.Err()
}

// A Loss is the body of a KindLoss record. Records that nobody can read any more are told to
// the relay by a Skip in their own stream; behind a fork there is no such stream, and a Loss
// in the new epoch names them.
type Loss struct {
	Epoch  Epoch  `json:"epoch"`
	From   uint64 `json:"from"`
	To     uint64 `json:"to"` // >= From
	Reason string `json:"reason"`
}

// DecodeLoss reads the body of a KindLoss record. Errors are Faults.
func DecodeLoss(body []byte) (Loss, error) {
	var l Loss
	if err := json.Unmarshal(body, &l); err != nil {
		return Loss{}, typeFault(err)
	}
	var faults Faults
	if !l.Epoch.Valid() {
		faults.Add("epoch", "", "want 32 hex digits, got %q", l.Epoch)
	}
	if l.From == 0 || l.To < l.From || l.To > 1<<62 {
		faults.Add("from", "", "%d to %d is no stretch of records", l.From, l.To)
	}
	return l, faults.Err()
}
