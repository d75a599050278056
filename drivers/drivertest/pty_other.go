//go:build !linux

package drivertest

import (
	"context"
	"errors"
	"time"
)

// A Pty exists on Linux only; elsewhere use Pipe.
type Pty struct{}

// OpenPty fails: there are no pseudo-terminals here.
func OpenPty(string) (*Pty, error) {
	return nil, errors.New("pseudo-terminals are made on Linux only")
}

// Path is empty.
func (*Pty) Path() string { return "" }

// Return fails with ErrHungUp.
func (*Pty) Return() error { return ErrHungUp }

// HangUp does nothing.
func (*Pty) HangUp() error { return nil }

// Close does nothing.
func (*Pty) Close() error { return nil }

// Read fails with ErrHungUp.
func (*Pty) Read([]byte) (int, error) { return 0, ErrHungUp }

// Write fails with ErrHungUp.
func (*Pty) Write([]byte) (int, error) { return 0, ErrHungUp }

// SetDeadline does nothing.
func (*Pty) SetDeadline(time.Time) error { return nil }

// Serve fails with ErrHungUp.
func (*Pty) Serve(context.Context, func() error) error { return ErrHungUp }
