package drivertest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// A check is one promise of a suite.
type check struct {
	name string
	run  func(t testing.TB)
}

// runChecks runs all checks at once, since they spend their time waiting, and reports each
// as a subtest.
func runChecks(t *testing.T, checks []check) {
	attempts := make([]*attempt, len(checks))
	for i, c := range checks {
		attempts[i] = try(t, c)
	}
	for i, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			<-attempts[i].done
			for _, note := range attempts[i].notes {
				t.Log(note)
			}
			for _, complaint := range attempts[i].complaints {
				t.Error(complaint)
			}
		})
	}
}

// runVirtually runs all checks one after the other in virtual time, which is punctual however
// busy the machine is. Nothing in them may wait for the system.
func runVirtually(t *testing.T, checks []check) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { c.run(t) })
		})
	}
}

// An attempt is the testing.TB of one check: it keeps complaints for whoever asked, so that
// a failure can be expected.
type attempt struct {
	testing.TB
	done chan struct{} // closed at the end; complaints and notes may be read then

	mu         sync.Mutex // guards the fields below
	complaints []string
	notes      []string
	cleanups   []func()
}

// try starts a check; its folders live as long as t.
func try(t testing.TB, c check) *attempt {
	a := &attempt{TB: t, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer func() {
			for i := len(a.cleanups) - 1; i >= 0; i-- {
				a.cleanups[i]()
			}
		}()
		c.run(a)
	}()
	return a
}

// Errorf keeps a complaint.
func (a *attempt) Errorf(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.complaints = append(a.complaints, fmt.Sprintf(format, args...))
}

// Fatalf keeps a complaint and ends the check.
func (a *attempt) Fatalf(format string, args ...any) { a.Errorf(format, args...); runtime.Goexit() }

// Fatal keeps a complaint and ends the check.
func (a *attempt) Fatal(args ...any) { a.Fatalf("%s", fmt.Sprint(args...)) }

// Logf keeps a note.
func (a *attempt) Logf(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.notes = append(a.notes, fmt.Sprintf(format, args...))
}

// Failed says whether there is a complaint.
func (a *attempt) Failed() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.complaints) > 0 }

// Helper does nothing: complaints carry no line.
func (a *attempt) Helper() {}

// Cleanup runs f when the check has ended.
func (a *attempt) Cleanup(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cleanups = append(a.cleanups, f)
}
