package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

// TestAnIndexThatHangsEndsRunAndNothingAcceptedIsLost takes the names of Badger's next tables:
// it tries to write them for ever, and waits for that with all that is written and read.
func TestAnIndexThatHangsEndsRunAndNothingAcceptedIsLost(t *testing.T) {
	var log bytes.Buffer
	r := newRig(t, t.TempDir())
	r.close()
	r.opt.IndexTime, r.opt.Log = 500*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
	j, done := running(t, r.opt)
	var taken []string
	for i := 1; i < 300; i++ {
		taken = append(taken, filepath.Join(r.dir, "index", fmt.Sprintf("%06d.sst", i)))
		if err := os.Mkdir(taken[i-1], 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // Badger gets its names back, so that it ends
		for _, path := range taken {
			remove(t, path)
		}
		if err := j.db.store.(*boundStore).store.close(); err != nil {
			t.Error(err)
		}
	})

	accepted := map[string]bool{}
	pad := strings.Repeat("x", 100_000)
	var err error
	for n := 0; n < 2000 && err == nil; n++ {
		body := fmt.Sprintf(`{"n":%d,"pad":"%s"}`, n, pad)
		if _, err = j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: []byte(body), Keys: []string{fmt.Sprint(n)}}); err == nil {
			accepted[body] = true
		}
	}
	if !errors.Is(err, errStalled) && !errors.Is(err, ErrClosed) {
		t.Fatalf("after %d sales: %v, want that the index hangs", len(accepted), err)
	}
	if err := <-done; !errors.Is(err, errStalled) {
		t.Fatalf("Run: %v, want errStalled", err)
	}
	if d := fmt.Sprint(j.Damage()); !strings.Contains(d, "index cannot be written") || !strings.Contains(log.String(), "index cannot be written") {
		t.Errorf("damage %s, log %s; want the index named", d, &log)
	}
	start := time.Now()
	if err := j.Close(); !errors.Is(err, errStalled) {
		t.Errorf("Close: %v, want errStalled", err)
	}
	if took := time.Since(start); took > closeTime {
		t.Errorf("Close took %s, want at most %s", took, closeTime)
	}

	copied := t.TempDir() // as the next process finds it: this one's Badger still tries
	if err := os.CopyFS(copied, os.DirFS(r.dir)); err != nil {
		t.Fatal(err)
	}
	r.dir, r.opt.Dir = copied, copied
	r.open()
	defer r.close()
	for _, rec := range r.all() {
		delete(accepted, string(rec.Body))
	}
	if len(accepted) > 0 {
		t.Errorf("%d sales are gone", len(accepted))
	}
	if len(r.j.Damage()) > 0 {
		t.Errorf("damage %v after the index was built anew", r.j.Damage())
	}
}

// running is a journal under Run, whose end comes over the channel.
func running(t *testing.T, opt Options) (*Journal, <-chan error) {
	t.Helper()
	j, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	return j, run(t, j)
}

func run(t *testing.T, j *Journal) <-chan error {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	return done
}

// A hangingStore is a store whose writes hang, once it is told to, until the test is over. As
// with Badger, nothing begins while a write hangs.
type hangingStore struct {
	*MemoryIndex
	hang    atomic.Bool
	hanging atomic.Bool
	free    chan struct{}
}

func (s *hangingStore) write() {
	if s.hang.Load() {
		s.hanging.Store(true)
		<-s.free
	}
}

func (s *hangingStore) view() view {
	if s.hanging.Load() {
		<-s.free
	}
	return s.MemoryIndex.view()
}

func (s *hangingStore) flush() error   { s.write(); return nil }
func (s *hangingStore) update() update { return hangingUpdate{s.MemoryIndex.update(), s} }

type hangingUpdate struct {
	update
	s *hangingStore
}

func (u hangingUpdate) commit() error { u.s.write(); return u.update.commit() }

// TestWhateverHangsInTheIndexEndsRun has the indexer hang, or the keeper, while others read.
func TestWhateverHangsInTheIndexEndsRun(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(j *Journal) error
	}{
		{"group", func(j *Journal) error {
			_, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: []byte("1")})
			return errors.Join(err, errStalled) // it is on disk, and answered as such
		}},
		{"flush", func(j *Journal) error { return j.flatten(context.Background()) }},
		{"purge", func(j *Journal) error { return j.purge() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &hangingStore{MemoryIndex: NewMemoryIndex(), free: make(chan struct{})}
			t.Cleanup(func() { close(s.free) })
			j, err := Open(Options{Dir: t.TempDir(), Origin: origin(), ReserveBytes: -1, FreeBytes: plenty, Index: s.MemoryIndex})
			if err != nil {
				t.Fatal(err)
			}
			within := bound(s, 200*time.Millisecond)
			j.db.store, j.db.stalled = within, within.stalled
			done := run(t, j)
			if _, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: []byte("0"), Keys: []string{"0"}}); err != nil {
				t.Fatal(err)
			}
			(&rig{t: t, j: j}).settle()
			s.hang.Store(true)
			if err := tt.do(j); !errors.Is(err, errStalled) || errors.Is(err, ErrClosed) {
				t.Errorf("error %v, want errStalled", err)
			}
			if err := <-done; !errors.Is(err, errStalled) {
				t.Errorf("Run: %v, want errStalled", err)
			}
			if _, _, err := j.Lookup("items", "1"); !errors.Is(err, errStalled) {
				t.Errorf("a reader gets %v, want errStalled", err)
			}
			if !s.condemned {
				t.Error("the index is not condemned")
			}
			if _, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: []byte("2")}); !errors.Is(err, ErrClosed) {
				t.Errorf("append after Run: %v, want ErrClosed", err)
			}
			if err := j.Close(); !errors.Is(err, errStalled) {
				t.Errorf("Close: %v, want errStalled", err)
			}
		})
	}
}

// TestAFullQueueRefusesAtOnce has callers go away whose entries wait, as tills do that ask
// again while the disk hangs. Nobody Runs.
func TestAFullQueueRefusesAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		body string
		want int // entries that are taken
	}{
		{"by number", `1`, maxWaiting},
		{"by bytes", `"` + strings.Repeat("x", 100_000-2) + `"`, maxWaitingBytes / 100_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, err := Open(Options{Dir: t.TempDir(), Origin: origin(), ReserveBytes: -1, FreeBytes: plenty, Index: NewMemoryIndex()})
			if err != nil {
				t.Fatal(err)
			}
			gone, cancel := context.WithCancel(context.Background())
			cancel()
			entry := Entry{Kind: protocol.KindTransaction, Body: []byte(tt.body), Digest: sha256.Sum256(nil)}
			taken := 0
			for ; !errors.Is(err, ErrBusy) && taken <= tt.want; taken++ {
				_, err = j.Append(gone, entry)
			}
			if taken--; taken != tt.want || !errors.Is(err, ErrBusy) {
				t.Fatalf("%d were taken, then %v; want %d, then ErrBusy", taken, err, tt.want)
			}
			done := run(t, j)
			for errors.Is(err, ErrBusy) {
				_, err = j.Append(context.Background(), entry)
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := j.Stats().Waiting; n < int64(taken)+2 { // the seal and the last one too
				t.Errorf("%d records, want the %d that were taken, the seal and one more", n, taken)
			}
			select {
			case err := <-done:
				t.Errorf("Run ended: %v", err)
			default:
			}
		})
	}
}
