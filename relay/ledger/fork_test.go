package ledger_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// A record that was accepted at E1/2 and not acknowledged is appended again at each fork, with
// that first position. Whichever copy comes first is applied, the others are acknowledged.
func TestOfAllCopiesOfAForkedRecordTheFirstToArriveIsApplied(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			both(t, func(t *testing.T, url string) {
				l, stop := open(t, url)
				a := newAgent(t, "0001", "pc", 1)
				acked(t, l, a, a.begin())
				end := a.mark()
				content := func() []protocol.Record {
					return append(sales(t, 1), record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: 3, Quality: protocol.QualityOK}))
				}
				again := func(epoch int) protocol.Batch {
					b := a.next(epoch)
					fresh := []protocol.Record{seal(t, &end, true)}
					for i, r := range content() {
						fresh = append(fresh, was(r, a.epoch, uint64(2+i)))
					}
					return b.batch(append(fresh, sales(t, int64(10*epoch))...)...)
				}
				copies := []protocol.Batch{a.batch(content()...), again(2), again(3)}
				for _, i := range order {
					acked(t, l, a, copies[i])
					acked(t, l, a, copies[i])
				}
				stop()
				l, _ = open(t, url)
				for _, i := range order {
					acked(t, l, a, copies[i])
				}
				got := sequences(t, l)
				slices.Sort(got)
				if !slices.Equal(got, []int64{1, 20, 30}) {
					t.Errorf("applied %d, want 1 once beside what each epoch has of its own", got)
				}
				kpis, err := l.KPIs(t.Context(), chain, "0001", day, day)
				if err != nil || len(kpis) != 2 || kpis[0].FootfallCounts != 1 || kpis[0].PassagesIn != 3 {
					t.Errorf("kpis %+v, %v, want one count", kpis, err)
				}
				checkHashes(t, url)
			})
		})
	}
}

// Two disks that were one go on from the same record; each has accepted something else at the
// next position. Both fork, whoever came first, and nothing of either is lost.
func TestTwoClonesThatBothForkKeepTheirRecords(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		t.Run(first+" first", func(t *testing.T) {
			both(t, func(t *testing.T, url string) {
				l, _ := open(t, url)
				a := newAgent(t, "0001", "pc", 1)
				acked(t, l, a, a.begin(sales(t, 1)...))
				end := a.mark()
				b := *a
				// 2 was accepted before the disk was cloned.
				plainA, plainB := a.batch(append(sales(t, 2), sales(t, 3, 4)...)...), b.batch(append(sales(t, 2), sales(t, 5, 6)...)...)
				plain, other := plainA, plainB
				if first == "b" {
					plain, other = plainB, plainA
				}
				acked(t, l, a, plain)
				if got := commit(t, l, a, other); got.Verdict != protocol.VerdictFork || got.Hash == end.Hash {
					t.Errorf("the other clone: %+v, want fork", got)
				}
				fork := func(epoch int, of protocol.Batch) {
					t.Helper()
					e := a.next(epoch)
					fresh := []protocol.Record{seal(t, &end, true)}
					for _, r := range of.Records {
						seq := r.Seq
						r.Seq = 0
						fresh = append(fresh, was(r, a.epoch, seq))
					}
					acked(t, l, e, e.batch(fresh...))
				}
				fork(2, plainB)
				fork(3, plainA)
				fork(4, plainB)
				acked(t, l, a, plain)
				got := sequences(t, l)
				slices.Sort(got)
				if !slices.Equal(got, []int64{1, 2, 3, 4, 5, 6}) {
					t.Errorf("applied %d, want all once", got)
				}
				if kinds := alarmKinds(t, l); !slices.Contains(kinds, ledger.AlarmFork) {
					t.Errorf("alarms %q, want a fork", kinds)
				}
				checkHashes(t, url)
			})
		})
	}
}

// What a clone wrote at the position that a was names does not stand for the record.
func TestAPositionThatHoldsTheClonesContentDoesNotStandForARecord(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin())
		end := a.mark()
		clone := *a
		sale1 := sales(t, 1)[0]
		wrong := record(t, protocol.KindFootfall, []byte(`{"counter":""}`))
		acked(t, l, &clone, clone.batch(sales(t, 8)[0], wrong, sales(t, 8)[0])) // applied, quarantined, a duplicate
		b := a.next(2)
		acked(t, l, b, b.batch(seal(t, &end, true), was(sale1, a.epoch, 2), was(sales(t, 2)[0], a.epoch, 3), was(sales(t, 3)[0], a.epoch, 4)))
		if got := sequences(t, l); !slices.Equal(got, []int64{8, 1, 2, 3}) {
			t.Errorf("applied %d, want the clone's and ours", got)
		}
		// What stands there with our content is ours, in whichever way it was taken.
		c := a.next(3)
		acked(t, l, c, c.batch(seal(t, &end, true), was(sales(t, 8)[0], a.epoch, 2), was(wrong, a.epoch, 3), was(sales(t, 8)[0], a.epoch, 4)))
		if got := sequences(t, l); len(got) != 4 {
			t.Errorf("applied %d, want nothing more", got)
		}
		checkHashes(t, url)
	})
}

func TestAForkBeforeAnythingWasAcknowledgedIsNamed(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin())
		b := a.next(2)
		acked(t, l, b, b.batch(seal(t, nil, true), was(sales(t, 1)[0], epochOf(9), 2)))
		if kinds := alarmKinds(t, l); !slices.Equal(kinds, []string{ledger.AlarmFork}) {
			t.Errorf("alarms %q", kinds)
		}
	})
}

// checkHashes recomputes every stream's hashes from what is stored of it.
func checkHashes(t testing.TB, url string) {
	t.Helper()
	db := database(t, url)
	defer db.Close()
	each := func(scan func(*sql.Rows) error, text string, args ...any) {
		t.Helper()
		rows, err := db.Query(text, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				t.Fatal(err)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	type stream struct {
		chain, id, through int64
		from               protocol.Origin
		epoch              protocol.Epoch
		hash               []byte
	}
	var streams []stream
	each(func(rows *sql.Rows) error {
		var s stream
		err := rows.Scan(&s.chain, &s.from.Chain, &s.id, &s.from.Store, &s.from.Agent, (*string)(&s.epoch), &s.through, &s.hash)
		streams = append(streams, s)
		return err
	}, "SELECT s.chain, c.name, s.id, s.store, s.agent, s.epoch, s.through, s.hash FROM streams s JOIN chains c ON c.id = s.chain")
	for _, s := range streams {
		records := map[uint64]protocol.Record{}
		keep := func(r protocol.Record) {
			if _, twice := records[r.Seq]; twice {
				t.Errorf("%s %s/%d is stored twice", s.from, s.epoch, r.Seq)
			}
			records[r.Seq] = r
		}
		each(func(rows *sql.Rows) error {
			var r protocol.Record
			var seq int64
			var day string
			var was []byte
			if err := rows.Scan(&seq, (*string)(&r.Kind), &r.At, &r.Mono, &day, &r.Body, &was); err != nil {
				return err
			}
			r.Seq = uint64(seq)
			var faults [2]error
			if day != "" {
				r.Day, faults[0] = protocol.ParseDay(day)
			}
			if was != nil {
				faults[1] = json.Unmarshal(was, &r.Was)
			}
			keep(r)
			return errors.Join(faults[:]...)
		}, "SELECT seq, kind, at, mono, day, body, was FROM records WHERE chain = $1 AND stream = $2", s.chain, s.id)
		each(func(rows *sql.Rows) error {
			var text []byte
			var r protocol.Record
			err := errors.Join(rows.Scan(&text), json.Unmarshal(text, &r))
			keep(r)
			return err
		}, "SELECT record FROM duplicates WHERE chain = $1 AND stream = $2 UNION ALL SELECT record FROM quarantined WHERE chain = $1 AND stream = $2", s.chain, s.id)
		type end struct {
			last int64
			hash protocol.Hash
		}
		gone := map[int64]end{}
		each(func(rows *sql.Rows) error {
			var first, last int64
			var hash []byte
			err := rows.Scan(&first, &last, &hash)
			gone[first] = end{last, protocol.Hash(hash)}
			return err
		}, "SELECT first_seq, last_seq, hash FROM holes WHERE chain = $1 AND store = $2 AND agent = $3 AND epoch = $4 AND length(hash) > 0", s.chain, s.from.Store, s.from.Agent, string(s.epoch))
		hash := protocol.Genesis(s.from.Chain, s.from.Store, s.from.Agent, s.epoch)
		for seq := int64(1); seq <= s.through; seq++ {
			if skip, ok := gone[seq]; ok {
				seq, hash = skip.last, skip.hash
				continue
			}
			r, ok := records[uint64(seq)]
			if !ok {
				t.Fatalf("%s %s/%d: nothing is stored of it", s.from, s.epoch, seq)
			}
			hash = r.Hash(hash)
		}
		if hash != protocol.Hash(s.hash) {
			t.Errorf("%s %s/%d: the stored records give another hash", s.from, s.epoch, s.through)
		}
	}
}
