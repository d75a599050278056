// Package sim is the whole chain in one process on a virtual clock, driven by a seed: shops
// with tills and counters that know what truly happened, store PCs that run agent/core on a
// disk in memory, lossy lines, a relay on relay/ledger with a connector, and a schedule of
// faults. It runs the real code and never a copy of it. One goroutine does everything, so the
// same schedule gives the same run, to the byte.
//
// A run trades for some days, heals, drains, and is then checked: what was accepted is in the
// ledger once, or named as lost where the schedule damaged a disk; the sums of each store and
// day are the shop's own; the ledger is what any order of the same records would have made of
// it. A run that does not drain is a failure too.
//
//	make sim SEED=7              one run: its schedule and the digest of all that happened
//	make sim RUNS=5000           many seeds on all cores; stops at the first that fails
//	make sim FILE=schedule.json  a schedule that was kept
//
// A schedule that ever failed is kept in testdata, with a line that says what it found.
package sim
