package drivertest

import (
	"strings"
	"testing"
	"testing/synctest"
)

// complaints runs the named check and returns what it complains about.
func complaints(t *testing.T, checks []check, name string) string {
	t.Helper()
	for _, c := range checks {
		if c.name == name {
			a := try(t, c)
			<-a.done
			return strings.Join(a.complaints, "; ")
		}
	}
	t.Fatalf("no check %q", name)
	return ""
}

// virtualComplaints is complaints of a suite that runs in virtual time.
func virtualComplaints(t *testing.T, checks []check, name string) (said string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { said = complaints(t, checks, name) })
	return said
}
