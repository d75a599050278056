package link_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// A story is a world and what a test has drawn for it.
type story struct {
	*rapid.T
	w       *linktest.World
	disks   []*linktest.Source // kept for rollbacks
	backups []linktest.Backup
	since   int64 // incarnation of the newest backup
	silent  bool  // the sink was restored and nobody may have noticed
}

func (s *story) chance(name string, most float64) float64 {
	return rapid.Float64Range(0, most).Draw(s.T, name)
}

func (s *story) agent() *linktest.Agent { return rapid.SampledFrom(s.w.Agents()).Draw(s.T, "agent") }

// trade accepts some records and lets some time pass on a line with faults.
func (s *story) trade() {
	a := s.agent()
	for range rapid.IntRange(1, 40).Draw(s.T, "records") {
		a.Source.Append(rapid.SampledFrom([]int{1, 300, 3000}).Draw(s.T, "size"))
	}
	s.w.Faults = linktest.Faults{
		Drop: s.chance("drop", 0.3), Double: s.chance("double", 0.2), Cut: s.chance("cut", 0.1),
		Delay: time.Duration(rapid.IntRange(0, 5000).Draw(s.T, "delay ms")) * time.Millisecond,
	}
	if err := s.w.Run(time.Duration(rapid.IntRange(0, 60).Draw(s.T, "s")) * time.Second); err != nil {
		s.Fatal(err)
	}
}

func (s *story) headOffice() {
	version := s.w.Sink.Put(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(s.T, "key"), fmt.Sprint(rapid.IntRange(0, 99).Draw(s.T, "value")))
	s.w.News(fmt.Sprintf(`{"feed":"items","version":%d}`, version))
}

func (s *story) crash() { s.w.Crash(s.agent()) }

func (s *story) clone() {
	if len(s.w.Agents()) < 3 {
		s.w.Clone(s.agent(), rapid.Bool().Draw(s.T, "memory"))
	}
}

func (s *story) keepDisk() { s.disks = append(s.disks, s.agent().Source.Copy()) }

func (s *story) rollback() {
	if len(s.disks) > 0 {
		s.w.Rollback(s.agent(), rapid.SampledFrom(s.disks).Draw(s.T, "disk"), rapid.Bool().Draw(s.T, "memory"))
	}
}

func (s *story) lose() {
	a := s.agent()
	lengths := a.Source.Lengths()
	epoch := rapid.IntRange(0, len(lengths)-1).Draw(s.T, "epoch")
	from := rapid.Uint64Range(1, lengths[epoch]).Draw(s.T, "from")
	a.Source.Lose(epoch, from, from+rapid.Uint64Range(0, 9).Draw(s.T, "more"), protocol.SkipDamaged, rapid.Bool().Draw(s.T, "seal"))
}

// trim drops what is acknowledged. Retention keeps what a backup that is still used may need
// when another copy has gone on from it; what one disk alone has dropped becomes a hole.
func (s *story) trim() {
	s.agent().Source.Trim()
	if len(s.w.Agents()) > 1 {
		s.backups = nil
	}
}

func (s *story) backup() {
	s.backups, s.since = append(s.backups, s.w.Sink.Backup()), s.w.Sink.Incarnation
}

// restore is the restore command, or a database that goes back in time by itself.
func (s *story) restore() {
	if len(s.backups) == 0 {
		return
	}
	if s.since == s.w.Sink.Incarnation && rapid.Bool().Draw(s.T, "silent") {
		s.silent = true
		s.w.Restore(s.backups[len(s.backups)-1], true)
		return
	}
	s.w.Restore(rapid.SampledFrom(s.backups).Draw(s.T, "backup"), false)
}

// TestAnyScheduleDeliversOnceInOrder is the link's promise: whatever the line, the disks and
// the ledger do, once it is quiet everything that an agent accepted and still knows of is
// applied exactly once, in the agent's order, or stands in a hole that is named; nothing was
// acknowledged before its commit; and the feeds are equal.
func TestAnyScheduleDeliversOnceInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &story{T: t, w: linktest.NewWorld(rapid.Uint64().Draw(t, "seed"), small())}
		s.w.Source.Begin(1)
		acts := []func(*story){(*story).crash, (*story).clone, (*story).keepDisk, (*story).rollback, (*story).lose, (*story).trim,
			(*story).backup, (*story).restore, (*story).headOffice}
		for range rapid.IntRange(1, 12).Draw(t, "acts") {
			s.trade()
			acts[rapid.IntRange(0, len(acts)-1).Draw(t, "act")](s)
		}
		if err := s.w.Settle(); err != nil {
			t.Fatal(err)
		}
		if s.silent {
			return // a feed that lost changes while nobody noticed is the ledger's business
		}
		for _, a := range s.w.Agents() {
			for _, feed := range []string{"config", "items"} {
				if got, want := a.Replica.Values(feed), s.w.Sink.Values(); !maps.Equal(got, want) {
					t.Fatalf("feed %s is %v, want %v", feed, got, want)
				}
			}
		}
	})
}
