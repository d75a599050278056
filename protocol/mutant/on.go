//go:build mutants

package mutant

import "os"

var chosen = os.Getenv("STORELAY_MUTANT")

// On says whether the program is built with this bug.
func On(name string) bool { return name == chosen }
