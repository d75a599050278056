// Package mutant names the bugs that the whole-chain simulation must be able to find. Each
// is a line at the place where such a bug would be made, behind On. In a program as it is
// shipped On is a constant false and the compiler leaves the bug out; built with the tag
// mutants, the environment variable STORELAY_MUTANT puts one in.
package mutant

// The bugs.
const (
	AckBeforeSync   = "ack-before-sync"    // the journal answers before the group is on the disk
	ForgetOnPuback  = "forget-on-puback"   // the sender takes a batch off the queue when the line has taken it
	ReuseEpoch      = "reuse-epoch"        // a start goes on in the epoch of the start before
	TrimTooEarly    = "trim-too-early"     // the journal drops segments that are not acknowledged
	DedupeOnSeq     = "dedupe-on-seq"      // the ledger takes a known seq for a known record, whatever its hash
	AckBeforeCommit = "ack-before-commit"  // the ledger answers, and the commit fails
	IgnoreSeal      = "ignore-seal"        // the ledger does not wait for the epoch before
	ForgetWas       = "forget-was"         // the ledger applies a record that was appended again once more
	KeepOldMarks    = "keep-old-marks"     // after a restore of the relay the agent resends nothing
	LoseUnreadable  = "lose-unreadable"    // the journal steps over damage without a skip
	FoldTwice       = "fold-twice"         // a transaction that comes again is counted again
	CursorFirst     = "cursor-first"       // a connector saves its cursor before the delivery
	StateApart      = "state-apart"        // a counter's totals are kept apart from its count
	TrustAnyAck     = "trust-any-ack"      // the agent takes an ack without comparing the hash
	ApplyPageTwice  = "apply-page-anyhow"  // the replica takes a page that does not follow its cursor
	CertifyAnyhow   = "certify-incomplete" // a certificate ignores a missing day mark
	MendNothing     = "mend-nothing"       // the journal does not look into the index for what a segment has lost
)

// All lists the bugs.
func All() []string {
	return []string{AckBeforeSync, ForgetOnPuback, ReuseEpoch, TrimTooEarly, DedupeOnSeq, AckBeforeCommit, IgnoreSeal, ForgetWas,
		KeepOldMarks, LoseUnreadable, FoldTwice, CursorFirst, StateApart, TrustAnyAck, ApplyPageTwice, CertifyAnyhow, MendNothing}
}
