//go:build !mutants

package mutant

// On says whether the program is built with this bug.
func On(string) bool { return false }
