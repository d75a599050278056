package journal

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// errStalled: the index is given up.
var errStalled = errors.New("the index does not take what is written to it; is a virus scanner or another program in its folder, or the disk failing?")

// A boundStore ends the wait for a store that hangs: Badger tries for ever to write a table
// that the disk refuses, and whoever writes, or begins to read, waits with it. A write that
// takes longer than limit gives the store up for good: whoever waits and whoever comes later
// gets errStalled, and what hangs is left to the end of the process.
type boundStore struct {
	store
	limit   time.Duration // of one write
	giveUp  sync.Once
	stalled chan struct{} // closed = given up
}

func bound(s store, limit time.Duration) *boundStore {
	return &boundStore{store: s, limit: limit, stalled: make(chan struct{})}
}

func (s *boundStore) givenUp() bool {
	select {
	case <-s.stalled:
		return true
	default:
		return false
	}
}

// write waits for do, within the limit.
func (s *boundStore) write(do func() error) error {
	limit := time.NewTimer(s.limit)
	defer limit.Stop()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-s.stalled:
		return errStalled
	case <-limit.C:
		s.giveUp.Do(func() { close(s.stalled) })
		return fmt.Errorf("%w (waited %s)", errStalled, s.limit)
	}
}

// wait waits for the result of do as long as the store is not given up; then it is dead.
func wait[T any](s *boundStore, do func() T, dead T) T {
	if s.givenUp() {
		return dead
	}
	done := make(chan T, 1)
	go func() { done <- do() }()
	select {
	case t := <-done:
		return t
	case <-s.stalled:
		return dead
	}
}

// Badger begins a transaction, to read too, when all writes before it have ended.
func (s *boundStore) view() view { return wait[view](s, s.store.view, stalledTxn{}) }

func (s *boundStore) update() update {
	return &boundUpdate{update: wait[update](s, s.store.update, stalledTxn{}), s: s}
}

func (s *boundStore) flush() error {
	if s.givenUp() {
		return errStalled
	}
	return s.write(s.store.flush)
}

// flatten may take its time, since nobody waits for it.
func (s *boundStore) flatten() error {
	return wait(s, s.store.flatten, errStalled)
}

func (s *boundStore) close() error {
	if s.givenUp() {
		return errStalled
	}
	return s.store.close()
}

// A boundUpdate is committed within the limit.
type boundUpdate struct {
	update
	s    *boundStore
	done bool // committed, or hanging in it: not to be touched any more
}

func (u *boundUpdate) commit() error {
	u.done = true
	if u.s.givenUp() {
		return errStalled
	}
	return u.s.write(u.update.commit)
}

func (u *boundUpdate) discard() {
	if !u.done {
		u.update.discard()
	}
}

// A stalledTxn is a transaction of a store that is given up.
type stalledTxn struct{}

func (stalledTxn) get([]byte) ([]byte, error)                        { return nil, errStalled }
func (stalledTxn) each(_, _ []byte, _ func(k, v []byte) error) error { return errStalled }
func (stalledTxn) set(_, _ []byte) error                             { return errStalled }
func (stalledTxn) del([]byte) error                                  { return errStalled }
func (stalledTxn) commit() error                                     { return errStalled }
func (stalledTxn) discard()                                          {}
