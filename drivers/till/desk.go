package till

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/storelay/storelay/protocol"
)

// ErrSyntax means that a body is not one JSON object in UTF-8.
var ErrSyntax = errors.New("not one JSON object")

// ErrInvalid means that a transaction has faults.
var ErrInvalid = errors.New("transaction is invalid")

// A RefusalError says why a body is no transaction that can be accepted.
type RefusalError struct {
	Cause  error // ErrSyntax, ErrInvalid or ErrTooBig
	Faults protocol.Faults
}

func (r *RefusalError) Error() string { return r.Cause.Error() + ": " + r.Faults.Error() }

// Unwrap gives the cause and the faults.
func (r *RefusalError) Unwrap() []error { return []error{r.Cause, r.Faults} }

// A Desk is the one way from a till's bytes to an Intake, whichever door they come by.
type Desk struct {
	Store string                  // of this agent: stamped, and must match when a till says it
	Rule  func() protocol.DayRule // of the store, now
}

// Take reads one transaction as JSON, fills in what the till may leave out, and checks it.
// Workstation is the till that it comes from; "" takes any that the body names. The error is
// a *RefusalError that names all that is wrong.
func (d Desk) Take(body []byte, workstation string) (Intake, error) {
	compact, faults := strictJSON(body)
	if faults != nil {
		return Intake{}, &RefusalError{ErrSyntax, faults}
	}
	t, faults := d.stamp(compact, workstation)
	if faults != nil {
		return Intake{}, &RefusalError{ErrInvalid, faults}
	}
	intake := Intake{Transaction: t, Digest: sha256.Sum256(compact), Keys: []string{"t:" + t.ID().String()}}
	var err error
	if intake.Body, err = json.Marshal(t); err != nil {
		return Intake{}, &RefusalError{ErrInvalid, asFaults(err)}
	}
	if len(intake.Body) > protocol.MaxRecord {
		return Intake{}, &RefusalError{ErrTooBig, tooLong(len(intake.Body))}
	}
	return intake, nil
}

// stamp reads a transaction, fills in what the till may leave out, and names all that is
// wrong with it.
func (d Desk) stamp(compact []byte, workstation string) (protocol.Transaction, protocol.Faults) {
	var t protocol.Transaction
	if err := json.Unmarshal(compact, &t); err != nil {
		return t, asFaults(err)
	}
	var faults protocol.Faults
	if t.Store == "" {
		t.Store = d.Store
	} else if t.Store != d.Store {
		faults.Add("store", "leave it out: the agent fills it in", "this is store %q, got %q", d.Store, t.Store)
	}
	if t.Workstation == "" {
		t.Workstation = workstation
	} else if workstation != "" && t.Workstation != workstation {
		faults.Add("workstation", "each till sends under its own name", "this comes from %q, got %q", workstation, t.Workstation)
	}
	if t.BusinessDay.IsZero() && !t.End.IsZero() {
		t.BusinessDay = d.Rule().Day(t.End)
	}
	if err := t.Validate(); err != nil {
		faults = append(faults, asFaults(err)...)
	}
	return t, faults
}

func tooLong(size int) protocol.Faults {
	return protocol.Faults{{Problem: fmt.Sprintf("the transaction has %d bytes, at most %d", size, protocol.MaxRecord),
		Hint: "leave texts that repeat the item master out of the lines"}}
}
