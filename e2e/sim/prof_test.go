package sim

import "testing"

func BenchmarkRuns(b *testing.B) {
	for i := 0; b.Loop(); i++ {
		Run(Generate(uint64(i%20+1)), nil)
	}
}
