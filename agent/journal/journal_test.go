package journal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
)

func origin() protocol.Origin { return protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"} }

// A rig is one journal folder whose journal is opened, run and closed again and again.
type rig struct {
	t    rapid.TB
	dir  string
	opt  Options
	j    *Journal
	stop func() error
}

func newRig(t rapid.TB, dir string) *rig {
	r := &rig{t: t, dir: dir, opt: Options{Dir: dir, Origin: origin(), BootID: "boot", SegmentBytes: 64 << 10, ReserveBytes: -1,
		FreeBytes: func(string) (uint64, error) { return 1 << 40, nil }}}
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	j, err := Open(r.opt)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	r.j = j
	r.stop = func() error {
		cancel()
		return errors.Join(<-done, j.Close())
	}
}

func (r *rig) close() {
	r.t.Helper()
	if err := r.stop(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) append(body string, keys ...string) Receipt {
	r.t.Helper()
	receipt, err := r.j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Day: protocol.Day{Year: 2026, Month: 11, Date: 22},
		Body: []byte(body), Keys: keys, Digest: sha256.Sum256([]byte(body))})
	if err != nil {
		r.t.Fatal(err)
	}
	return receipt
}

// all reads every record from the oldest unacknowledged on, waiting for the index, and checks
// the hash chain.
func (r *rig) all() []protocol.Record {
	r.t.Helper()
	r.settle()
	oldest, newest := r.j.Heads()
	var out []protocol.Record
	if oldest.Seq == 0 {
		return nil
	}
	limit := time.After(20 * time.Second)
	for at := oldest; ; {
		b, err := r.j.Read(at, 7, 1<<20)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(b.Records) == 0 {
			select {
			case <-limit:
				r.t.Fatalf("no record at %s, newest %s", at, newest)
			case <-r.j.Wake():
			}
			continue
		}
		prev := b.Prev
		if b.First == 1 {
			o := origin()
			if want := protocol.Genesis(o.Chain, o.Store, o.Agent, b.Epoch); prev != want {
				r.t.Fatalf("prev of %s is not the genesis hash", at)
			}
		}
		for i := range b.Records {
			prev = b.Records[i].Hash(prev)
		}
		out = append(out, b.Records...)
		last := protocol.Position{Epoch: b.Epoch, Seq: b.Last()}
		if last == newest {
			return out
		}
		at = r.j.Next(last)
	}
}

// settle waits until everything durable can be read.
func (r *rig) settle() {
	r.t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		r.j.mu.Lock()
		behind := false
		for _, e := range r.j.epochs {
			behind = behind || e.visible < e.last
		}
		behind = behind || len(r.j.ackIndex) > 0
		r.j.mu.Unlock()
		if !behind {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatal("the index does not catch up")
		}
	}
}

func (r *rig) ack(p protocol.Position) {
	r.t.Helper()
	s, err := r.j.at(p)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.j.Acked(protocol.Mark{Epoch: p.Epoch, Through: p.Seq, Hash: s.rec.Hash(s.prev)}, 1); err != nil {
		r.t.Fatal(err)
	}
}

func bodies(records []protocol.Record) (out []string) {
	for _, r := range records {
		if r.Kind != protocol.KindSeal {
			out = append(out, string(r.Body))
		}
	}
	return out
}

func TestARecordSurvivesARestartAndLeavesTheQueueByItsAck(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.append(`{"n":1}`)
	two := r.append(`{ "n" : 2 }`)
	r.close()
	r.open()
	r.append(`{"n":3}`)
	records := r.all()
	if got := fmt.Sprint(bodies(records)); got != `[{"n":1} {"n":2} {"n":3}]` {
		t.Fatalf("bodies %s", got)
	}
	var seals []protocol.Seal
	for _, rec := range records {
		if rec.Kind == protocol.KindSeal {
			seal, err := protocol.DecodeSeal(rec.Body)
			if err != nil {
				t.Fatal(err)
			}
			seals = append(seals, seal)
		}
	}
	if len(seals) != 2 || seals[0].Before != nil || seals[1].Before == nil || seals[1].Before.Epoch != two.Position.Epoch || seals[1].Before.Through != 3 {
		t.Errorf("seals %+v, want none and the first epoch through 3", seals)
	}
	r.ack(two.Position)
	r.settle()
	if s := r.j.Stats(); s.Waiting != 2 { // the second seal and record 3
		t.Errorf("waiting %d, want 2", s.Waiting)
	}
	if b, err := r.j.Read(protocol.Position{Epoch: two.Position.Epoch, Seq: 1}, 10, 1<<20); err != nil || len(b.Records) != 3 {
		t.Errorf("acknowledged records: %d, %v, want them still readable", len(b.Records), err)
	}
	r.close()
	r.open()
	if got := fmt.Sprint(bodies(r.all())); got != `[{"n":3}]` {
		t.Errorf("after a restart %s, want what is not acknowledged", got)
	}
	if mark, incarnation := r.j.LastAck(); mark == nil || mark.Through != 3 || incarnation != 1 {
		t.Errorf("last ack %v of incarnation %d", mark, incarnation)
	}
	r.close()
}

func TestTheSameKeyIsAcceptedOnce(t *testing.T) {
	r := newRig(t, t.TempDir())
	var receipts [20]Receipt
	var g sync.WaitGroup
	for i := range receipts {
		g.Go(func() { receipts[i] = r.append(`{"n":1}`, "k:1:a", "t:0001/1/2026-11-22/1") })
	}
	g.Wait()
	fresh := 0
	for _, receipt := range receipts {
		if receipt.Position != receipts[0].Position || receipt.At != receipts[0].At {
			t.Errorf("receipt %+v, want %+v", receipt, receipts[0])
		}
		if !receipt.Known {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d accepted, want 1", fresh)
	}
	for range 2 { // in the overlay or the index, and after a restart
		_, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: []byte(`{"n":2}`), Keys: []string{"t:0001/1/2026-11-22/1"}, Digest: sha256.Sum256([]byte("2"))})
		if !errors.Is(err, ErrConflict) {
			t.Errorf("err %v, want ErrConflict", err)
		}
		r.close()
		r.open()
	}
	if again := r.append(`{"n":1}`, "k:1:a"); !again.Known || again.Position != receipts[0].Position {
		t.Errorf("after restarts %+v, want the first receipt", again)
	}
	r.close()
}

func TestStateMovesWithItsRecord(t *testing.T) {
	r := newRig(t, t.TempDir())
	for i := range 3 {
		if _, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: []byte("{}"), StateKey: "door", State: fmt.Appendf(nil, "%d", i)}); err != nil {
			t.Fatal(err)
		}
		if got, err := r.j.State("door"); err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("state %q, %v, want %d", got, err, i)
		}
	}
	r.close()
	r.open()
	if got, err := r.j.State("door"); err != nil || string(got) != "2" {
		t.Errorf("after a restart %q, %v, want 2", got, err)
	}
	r.close()
}

func TestALostIndexIsRebuilt(t *testing.T) {
	for _, damage := range []struct {
		name string
		do   func(dir string) error
	}{
		{"folder deleted", func(dir string) error { return os.RemoveAll(filepath.Join(dir, "index")) }},
		{"MANIFEST deleted", func(dir string) error { return os.Remove(filepath.Join(dir, "index", "MANIFEST")) }},
		{"died while opening", func(dir string) error { return os.WriteFile(filepath.Join(dir, "index.opening"), nil, 0o600) }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			r := newRig(t, t.TempDir())
			var last Receipt
			for i := range 300 {
				last = r.append(fmt.Sprintf(`{"n":%d,"pad":"%0500d"}`, i, i), fmt.Sprint("k", i))
				if i == 99 {
					r.settle()
					r.ack(last.Position)
				}
			}
			if err := r.j.Apply(protocol.FeedPage{Feed: "config", To: 4, Changes: []protocol.Change{{Key: "store", Version: 4, Body: []byte(`{"a":1}`)}}}); err != nil {
				t.Fatal(err)
			}
			want := bodies(r.all())
			r.close()
			if err := damage.do(r.dir); err != nil {
				t.Fatal(err)
			}
			r.open()
			if got := bodies(r.all()); fmt.Sprint(got) != fmt.Sprint(want) || len(got) != 200 {
				t.Errorf("%d records in the queue, want the %d from before", len(got), len(want))
			}
			if again := r.append(fmt.Sprintf(`{"n":%d,"pad":"%0500d"}`, 5, 5), "k5"); !again.Known {
				t.Error("an idempotency key is forgotten")
			}
			if c, ok, err := r.j.Lookup("config", "store"); err != nil || !ok || string(c.Body) != `{"a":1}` {
				t.Errorf("replica %+v %v %v", c, ok, err)
			}
			if cursor, _ := r.j.Cursor("config"); cursor != 4 {
				t.Errorf("cursor %d, want 4", cursor)
			}
			if d := r.j.Damage(); len(d) > 0 {
				t.Errorf("damage %v, want none", d)
			}
			r.close()
		})
	}
}

// newestSegment is the file that was written last.
func newestSegment(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(names) == 0 {
		t.Fatal(err, names)
	}
	return names[len(names)-1]
}

func TestATornTailLosesOnlyWhatWasNotWhole(t *testing.T) {
	base := t.TempDir()
	r := newRig(t, base)
	for i := range 5 {
		r.append(fmt.Sprintf(`{"n":%d}`, i))
	}
	r.close()
	name := filepath.Base(newestSegment(t, base))
	whole, err := os.ReadFile(filepath.Join(base, name))
	if err != nil {
		t.Fatal(err)
	}
	for cut := headerRoom; cut < len(whole); cut += 13 {
		dir := t.TempDir()
		torn := append(append([]byte{}, whole[:cut]...), make([]byte, int(r.opt.SegmentBytes)-cut)...) // as preallocated
		if err := os.WriteFile(filepath.Join(dir, name), torn, 0o600); err != nil {
			t.Fatal(err)
		}
		frames := 0
		if _, _, err := scan(torn, headerRoom, func(frame) error { frames++; return nil }); err != nil {
			t.Fatal(err)
		}
		again := newRig(t, dir)
		again.append(`{"n":"new"}`)
		got := bodies(again.all())
		if want := max(frames-1, 0) + 1; len(got) != want { // without the seal, with the new one
			t.Errorf("cut at %d: %v, want %d records", cut, got, want)
		}
		if d := again.j.Damage(); len(d) > 0 {
			t.Errorf("cut at %d: damage %v for a torn tail", cut, d)
		}
		again.close()
	}
}

func TestAFlippedBitIsRepairedFromTheIndexOrNamed(t *testing.T) {
	for _, lost := range []bool{false, true} {
		r := newRig(t, t.TempDir())
		for i := range 20 {
			r.append(fmt.Sprintf(`{"n":%d}`, i))
		}
		r.settle()
		r.close()
		path := newestSegment(t, r.dir)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[headerRoom+(len(data)-headerRoom)/2] ^= 0x10
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if lost {
			if err := os.RemoveAll(filepath.Join(r.dir, "index")); err != nil {
				t.Fatal(err)
			}
		}
		r.open()
		if got := len(r.j.Damage()); (got > 0) != lost {
			t.Errorf("index lost %v: damage %v", lost, r.j.Damage())
		}
		if !lost {
			if got := bodies(r.all()); len(got) != 20 {
				t.Errorf("%d records, want 20 with the index's help", len(got))
			}
		}
		r.close()
	}
}

func TestWhatIsRefusedIsNotAccepted(t *testing.T) {
	r := newRig(t, t.TempDir())
	big := make([]byte, protocol.MaxRecord)
	for i := range big {
		big[i] = 'x'
	}
	if _, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: fmt.Appendf(nil, `"%s"`, big)}); !errors.Is(err, ErrTooBig) {
		t.Errorf("err %v, want ErrTooBig", err)
	}
	if _, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: []byte("{")}); err == nil {
		t.Error("a body that is not JSON was accepted")
	}
	if _, err := Open(r.opt); err == nil {
		t.Error("a second process opened the journal")
	}
	r.close()
	if _, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: []byte("{}")}); !errors.Is(err, ErrClosed) {
		t.Errorf("err %v, want ErrClosed", err)
	}
	r.opt.FreeBytes = func(string) (uint64, error) { return 20 << 20, nil }
	r.open()
	if _, err := r.j.Append(context.Background(), Entry{Kind: "k", Body: []byte("{}")}); !errors.Is(err, ErrFull) {
		t.Errorf("err %v, want ErrFull", err)
	}
	if s := r.j.Stats(); s.Waiting != 0 {
		t.Errorf("waiting %d, want none of it", s.Waiting)
	}
	r.close()
}

func TestStartsThatAcceptNothingLeaveNothing(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.append(`{"n":1}`)
	for range 30 {
		r.close()
		r.open()
	}
	r.append(`{"n":2}`)
	if s := r.j.Stats(); s.Waiting != 4 || s.Segments != 2 {
		t.Errorf("stats %+v, want two records with two seals in two segments", s)
	}
	r.close()
}

func TestRetentionDropsOnlyWhatASnapshotHolds(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.close()
	forward := clocked(r)
	r.opt.RetainFor = time.Hour
	r.open()
	var last Receipt
	for i := range 400 {
		last = r.append(fmt.Sprintf(`{"n":%d,"pad":"%0900d"}`, i, i))
	}
	key := r.append(`{"n":"last"}`, "key")
	r.settle()
	r.ack(last.Position)
	r.settle()
	before := r.j.Stats()
	if err := r.j.keep(); err != nil {
		t.Fatal(err)
	}
	if s := r.j.Stats(); s.Segments != before.Segments || s.Bytes > before.Bytes/2 {
		t.Errorf("%+v after %+v, want the same segments, compressed", s, before)
	}
	if b, err := r.j.Read(protocol.Position{Epoch: last.Position.Epoch, Seq: 5}, 10, 1<<20); err != nil || len(b.Records) != 10 {
		t.Errorf("compressed records: %d, %v", len(b.Records), err)
	}
	forward(2 * time.Hour)
	if err := r.j.keep(); err != nil {
		t.Fatal(err)
	}
	if s := r.j.Stats(); s.Segments > 2 || s.Waiting != 1 {
		t.Errorf("%+v, want the acknowledged segments dropped", s)
	}
	r.append(`{"n":"young"}`, "young")
	r.close()
	if err := os.RemoveAll(filepath.Join(r.dir, "index")); err != nil {
		t.Fatal(err)
	}
	r.open() // from the snapshot and what is left of the segments
	if got := fmt.Sprint(bodies(r.all())); got != `[{"n":"last"} {"n":"young"}]` {
		t.Errorf("queue %s", got)
	}
	if again := r.append(`{"n":"young"}`, "young"); !again.Known {
		t.Error("a young key is forgotten")
	}
	if key.Position.Epoch == "" {
		t.Error("no receipt")
	}
	r.close()
}

// TestAnyLifeKeepsEveryRecord drives a journal through appends, acks, restarts and losses of
// the index, and compares it with a list.
func TestAnyLifeKeepsEveryRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "journal-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		r := newRig(t, dir)
		type entry struct {
			p    protocol.Position
			body string
		}
		var queue []entry // not acknowledged
		var acked []entry
		n := 0
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"append", "append", "ack", "restart", "lose index", "keep"}).Draw(t, "step") {
			case "append":
				for range rapid.IntRange(1, 30).Draw(t, "records") {
					n++
					body := fmt.Sprintf(`{"n":%d,"pad":"%0*d"}`, n, rapid.SampledFrom([]int{1, 4000}).Draw(t, "size"), n)
					queue = append(queue, entry{r.append(body, fmt.Sprint("k", n)).Position, body})
				}
			case "ack":
				if len(queue) > 0 {
					i := rapid.IntRange(0, len(queue)-1).Draw(t, "ack")
					r.settle()
					for _, e := range queue[:i+1] { // each epoch's last
						r.ack(e.p)
					}
					acked, queue = append(acked, queue[:i+1]...), queue[i+1:]
				}
			case "restart":
				r.close()
				r.open()
			case "lose index":
				r.close()
				if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
					t.Fatal(err)
				}
				r.open()
				// An ack that no group has carried yet is lost with the index: the record is sent
				// again, and acknowledged again.
				if back := len(bodies(r.all())) - len(queue); back > 0 && back <= len(acked) {
					queue = append(append([]entry{}, acked[len(acked)-back:]...), queue...)
					acked = acked[:len(acked)-back]
				}
			case "keep":
				r.settle()
				if err := r.j.keep(); err != nil {
					t.Fatal(err)
				}
			}
			got := bodies(r.all())
			if len(got) != len(queue) {
				t.Fatalf("%d records wait, want %d", len(got), len(queue))
			}
			for i := range queue {
				if got[i] != queue[i].body {
					t.Fatalf("record %d is %.40s, want %.40s", i, got[i], queue[i].body)
				}
			}
			if d := r.j.Damage(); len(d) > 0 {
				t.Fatalf("damage %v", d)
			}
		}
		r.close()
	})
}
