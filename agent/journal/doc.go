// Package journal is the agent's memory: accepted means on disk. A record is appended to a
// segment file and synced before Append returns; Badger stands behind the segments as the
// index that reads, idempotency keys, states and the feeds' replica are answered from, and
// holds nothing that the segments and the newest snapshot cannot rebuild.
//
// # Files
//
//	lock                 held by the one process that has the journal open
//	N.seg                a segment: header, then frames; preallocated, synced per group
//	N.seg.zst            a segment whose records are all acknowledged, kept for a while
//	N.snap               what retention may drop: keys, states, replica, acks, seals
//	index/               Badger
//	index.opening        stands while Badger opens; found at start = it died there
//	index.starts         how often in a row the index was not closed
//	index.aside-T        a Badger folder that was set aside; the newest is kept
//
// # The promise
//
// A group of records is written, synced once, and only then answered. A sync that fails ends
// the segment and the epoch and is never tried again on that file: the callers get an error,
// and the next segment's header says where its predecessor ends, so that whatever lies
// beyond is ignored for ever. At start a tail that was not closed is written anew to a fresh
// file and synced before anything builds on it.
//
// A frame carries the offset at which its group began. Groups are written one after the
// other, each after the sync of the one before; so a damaged frame with a later group behind
// it was on disk once (damage, repaired from the index if possible and named if not), and
// one without is the torn end of a group that nobody was told of.
package journal
