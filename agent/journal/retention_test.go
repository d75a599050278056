package journal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// clocked gives the rig clocks of its own from the next open on.
func clocked(r *rig) (forward func(time.Duration)) {
	var mu sync.Mutex
	begin := time.Now()
	now := begin
	r.opt.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	r.opt.Mono = func() time.Duration { mu.Lock(); defer mu.Unlock(); return now.Sub(begin) }
	return func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
}

func TestTheNewestSnapshotIsKeptWhenTheClockIsSetBack(t *testing.T) {
	r := newRig(t, t.TempDir())
	ahead := time.Now().AddDate(1, 0, 0)
	for i := range 3 {
		r.append(fmt.Sprint(i), fmt.Sprint("key", i))
		r.settle()
		if i == 2 {
			break
		}
		if err := r.j.Snapshot(); err != nil {
			t.Fatal(err)
		}
		list, err := r.j.snapshots()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(list[0], ahead, ahead); err != nil {
			t.Fatal(err)
		}
	}
	before, err := r.j.snapshots()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.j.Snapshot(); err != nil {
		t.Fatal(err)
	}
	after, err := r.j.snapshots()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != 2 || after[0] <= before[0] || after[1] != before[0] {
		t.Errorf("snapshots %v after %v, want the new one and the one before", after, before)
	}
	r.close()
}

func TestExpiredKeysLeaveTheIndex(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.close()
	forward := clocked(r)
	r.opt.RetainFor = time.Hour
	r.open()
	var last Receipt
	for i := range 100 {
		last = r.append(fmt.Sprintf(`"%01000d"`, i), fmt.Sprint("old", i))
	}
	r.settle()
	r.ack(last.Position)
	r.append(`"waits"`, "waits")
	r.settle()
	r.close()
	r.open()      // begins another segment
	for range 2 { // drops the oldest segments, and then the keys of their records
		if err := r.j.keep(); err != nil {
			t.Fatal(err)
		}
		forward(25 * time.Hour)
	}
	r.append(`"young"`, "young")
	r.settle()
	if err := r.j.keep(); err != nil {
		t.Fatal(err)
	}
	oldest := r.j.segs[0].first
	left := 0
	err := r.j.db.each([]byte{'i'}, func(_, _ []byte) error { left++; return nil })
	if want := int(102 - (oldest - 2)); oldest < 10 || left != want || err != nil { // seq 1 is the seal
		t.Errorf("%d keys in the index, %v, want the %d of the records from %d on", left, err, want, oldest)
	}
	if again := r.append(`"young"`, "young"); !again.Known {
		t.Error("a young key was purged")
	}
	r.close()
}

func TestSnapshotsOnDemandRunBesideTheKeeper(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.append(`1`)
	r.settle()
	var g sync.WaitGroup
	for _, f := range []func() error{r.j.Snapshot, r.j.keep} {
		g.Go(func() {
			for range 5 {
				if err := f(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	r.close()
}

// TestAnIndexFromBeforeTheJournalIsRefilled puts an old copy of the index back, whose
// segments retention has dropped since.
func TestAnIndexFromBeforeTheJournalIsRefilled(t *testing.T) {
	r := newRig(t, t.TempDir())
	first := r.append(`1`, "first")
	r.settle()
	r.close()
	index, old := filepath.Join(r.dir, "index"), filepath.Join(t.TempDir(), "index")
	if err := os.CopyFS(old, os.DirFS(index)); err != nil {
		t.Fatal(err)
	}
	forward := clocked(r)
	r.opt.RetainFor = time.Hour
	r.open()
	r.ack(first.Position)
	r.close()
	for range 3 {
		r.open()
		p := r.append(`2`)
		r.settle()
		r.ack(p.Position)
		r.close()
	}
	r.open()
	for i := range 5 {
		r.append(fmt.Sprint(i), fmt.Sprint("waits", i))
	}
	r.settle()
	for range 2 {
		if err := r.j.keep(); err != nil {
			t.Fatal(err)
		}
		forward(2 * time.Hour)
	}
	want := r.all()
	if r.j.segs[0].ord < 3 {
		t.Fatalf("the journal begins at segment %d, want the first ones dropped", r.j.segs[0].ord)
	}
	r.close()
	if err := os.RemoveAll(index); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(old, index); err != nil {
		t.Fatal(err)
	}
	r.open()
	queue := 0
	err := r.j.db.each([]byte{'q'}, func(_, _ []byte) error { queue++; return nil })
	if queue != len(want) || err != nil {
		t.Errorf("%d records in the index, %v, want %d", queue, err, len(want))
	}
	if got := r.all(); fmt.Sprint(bodies(got)) != fmt.Sprint(bodies(want)) {
		t.Errorf("records %v, want %v", bodies(got), bodies(want))
	}
	r.close()
}

func TestDamageIsNamedBeforeASegmentIsCompressed(t *testing.T) {
	r := newRig(t, t.TempDir())
	var last Receipt
	for i := range 200 {
		last = r.append(fmt.Sprintf(`{"n":%d,"pad":"%0900d"}`, i, i))
	}
	r.settle()
	path := r.j.segmentPath(2, false)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	r.ack(last.Position)
	r.settle()
	if err := r.j.keep(); err != nil {
		t.Fatal(err)
	}
	if d := r.j.Damage(); len(d) != 1 {
		t.Errorf("Damage() = %q, want segment 2 named", d)
	}
	if _, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: []byte("{}")}); err != nil {
		t.Error(err)
	}
	r.close()
}

// What is acknowledged leaves the index's files too, while others append.
func TestAnIndexThatIsDrainedIsMadeSmall(t *testing.T) {
	r := newRig(t, t.TempDir())
	body := `"` + strings.Repeat("x", 2000) + `"`
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 500 {
				r.append(body)
			}
		})
	}
	group.Wait()
	r.settle()
	_, newest := r.j.Heads()
	r.ack(newest)
	r.settle()
	if err := r.j.flatten(t.Context()); err != nil {
		t.Fatal(err)
	}
	if size := r.j.db.size(); size > 1<<20 {
		t.Errorf("the index of %d drained records has %d bytes", newest.Seq, size)
	}

	stop := make(chan struct{})
	accepted := 0
	group.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				r.append(fmt.Sprint(accepted), fmt.Sprint("key", accepted)) // reads the index too
				accepted++
			}
		}
	})
	for range 5 {
		if err := r.j.flatten(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	group.Wait()
	r.close()
	r.open()
	if got := bodies(r.all()); len(got) != accepted {
		t.Errorf("%d records after flushes, want %d", len(got), accepted)
	}
	if len(r.j.Damage()) > 0 {
		t.Errorf("damage: %v", r.j.Damage())
	}
	r.close()
}

func TestAKnownKeyKeepsTheTimeAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zone := time.FixedZone("", rapid.OneOf(rapid.IntRange(-14*60, 14*60), rapid.Just(0)).Draw(t, "minutes")*60+rapid.SampledFrom([]int{0, 0, 20}).Draw(t, "seconds"))
		at := time.UnixMilli(rapid.Int64Range(-1e12, 1e14).Draw(t, "ms")).In(zone).Format(rapid.SampledFrom([]string{timeForm, time.RFC3339Nano, time.RFC1123}).Draw(t, "form"))
		k := known{ord: rapid.Uint64().Draw(t, "ord"), seq: 3, digest: digest{1, 2}, at: at}
		if got, ok := decodeKnown(k.encode()); !ok || got != k {
			t.Fatalf("%+v became %+v", k, got)
		}
	})
}
