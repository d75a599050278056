package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
)

// A rotten disk does not hold some records any more.
type rotten struct {
	*disk
	lost  []bool // by seq; 0 is none
	sealy bool   // the seal is known though its record is lost
}

// batch gives what the disk has from first on: a skip, records until the next that is lost.
func (d *rotten) batch(first, last int) protocol.Batch {
	b := protocol.Batch{Epoch: d.epoch, First: uint64(first), Prev: d.hashes[first-1]}
	next := first
	if d.lost[next] {
		for next < len(d.records) && d.lost[next+1] {
			next++
		}
		b.Skip = &protocol.Skip{From: uint64(first), To: uint64(next), Hash: d.hashes[next], Reason: protocol.SkipDamaged}
		if first == 1 && d.sealy {
			seal, _ := protocol.DecodeSeal(d.records[0].Body)
			b.Skip.Seal = &seal
		}
		next++
	}
	for ; next <= last && !d.lost[next]; next++ {
		b.Records = append(b.Records, d.records[next-1])
	}
	return b
}

// Disks rot while they are sent, batches of before come late and again: whatever reached the
// ledger is applied once or waits in quarantine, every position is there or in a named hole,
// and the stream's hash is the agent's.
func TestWhatIsNotAppliedIsNamedAsLost(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		s := newSubject(t, url)
		runs := 0
		share(t, url)
		rapid.Check(t, func(rt *rapid.T) {
			runs++
			w := &draw{T: rt, t: t, chain: fmt.Sprint("c", runs)}
			var disks []*rotten
			for _, d := range w.disks() {
				disks = append(disks, &rotten{d, make([]bool, len(d.records)+2), w.chance(50, "seal known")})
			}
			reached := set{}
			send := func(d *rotten, b protocol.Batch) {
				got, err := s.Commit(t.Context(), d.from, b)
				if err != nil {
					rt.Fatal(err)
				}
				blind := b.Skip != nil && b.First == 1 && b.Skip.Seal == nil
				of := d.disk
				want := protocol.VerdictAck
				switch {
				case int(b.First) > d.through+1:
					want = protocol.VerdictGap
				case d.waits() && !blind:
					want, of = protocol.VerdictGap, d.before
				default:
					d.through = max(d.through, int(b.Last()))
					for i := range b.Records {
						reached.add(d.disk, &b.Records[i])
					}
				}
				if mark := of.mark(); got.Verdict != want || got.Epoch != mark.Epoch || got.Through != mark.Through || got.Hash != mark.Hash {
					rt.Fatalf("%d..%d of %s/%s (skip %+v): %+v, want %s at %+v", b.First, b.Last(), d.from, d.epoch, b.Skip, got, want, mark)
				}
			}
			type sent struct {
				d *rotten
				b protocol.Batch
			}
			var late []sent
			for range rapid.IntRange(0, 25).Draw(rt, "steps") {
				d := disks[rapid.IntRange(0, len(disks)-1).Draw(rt, "disk")]
				first := rapid.IntRange(1, len(d.records)).Draw(rt, "first")
				last := rapid.IntRange(first, len(d.records)).Draw(rt, "last")
				b := d.batch(first, last)
				switch rapid.IntRange(0, 4).Draw(rt, "step") {
				case 0:
					for seq := first; seq <= last; seq++ {
						d.lost[seq] = true
					}
				case 1:
					late = append(late, sent{d, b})
				case 2:
					if len(late) > 0 {
						l := late[rapid.IntRange(0, len(late)-1).Draw(rt, "late")]
						send(l.d, l.b)
					}
				default:
					send(d, b)
				}
			}
			for _, d := range disks {
				for d.through < len(d.records) {
					before := d.through
					if send(d, d.batch(d.through+1, len(d.records))); d.through == before {
						rt.Fatalf("%s/%s is stuck at %d", d.from, d.epoch, before)
					}
				}
			}
			for _, l := range late {
				send(l.d, l.b)
			}
			waiting, err := s.Quarantined(t.Context(), w.chain, 1000)
			if err != nil {
				rt.Fatal(err)
			}
			for _, q := range waiting {
				if q.Reason != "came after it was said to be lost" {
					continue
				}
				if err := s.RetryQuarantined(t.Context(), w.chain, q.ID); err != nil && !strings.Contains(err.Error(), ": kind: ") && !strings.Contains(err.Error(), ": counter: ") {
					rt.Fatal(err)
				}
			}
			s.count(w, len(reached))
			s.digest(w)
		})
		auditUntouched(t, s.Ledger, url)
		checkHashes(t, url) // also that each position is there once, or in a hole
		if got := selected(t, url, "SELECT count(*) FROM holes"); slices.Equal(got, []string{"0"}) {
			t.Error("nothing was ever lost")
		}
	})
}
