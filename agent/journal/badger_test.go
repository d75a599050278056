package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

// Badger panics in goroutines of its own on some damage, so each look at a damaged journal is
// a process of its own, as an agent's start is.
const (
	fillDir = "STORELAY_JOURNAL_TEST_FILL" // append records, say so, and wait to be killed
	lookDir = "STORELAY_JOURNAL_TEST_LOOK" // open, say what is held, and close
)

const filled = 6000 // records of 500 bytes: several tables and a write-ahead log

// child is what TestMain does in such a process; false when it is not one.
func child() (bool, error) {
	if dir := os.Getenv(fillDir); dir != "" {
		return true, fill(dir)
	}
	if dir := os.Getenv(lookDir); dir != "" {
		return true, look(dir)
	}
	return false, nil
}

func fill(dir string) error {
	j, err := Open(Options{Dir: dir, Origin: origin(), SegmentBytes: 1 << 20, FreeBytes: plenty, ReserveBytes: -1})
	if err != nil {
		return err
	}
	go func() { fmt.Println("child:", j.Run(context.Background())) }()
	answers := make(chan error, filled)
	for n := range filled {
		go func() {
			body := fmt.Sprintf(`{"n":%d,"pad":"%s"}`, n, strings.Repeat("x", 450))
			_, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: []byte(body), Keys: []string{fmt.Sprint("k", n)}, StateKey: "s", State: []byte("last")})
			answers <- err
		}()
	}
	for range filled {
		if err := <-answers; err != nil {
			return err
		}
	}
	for oldest, newest := j.Heads(); newest.Seq < filled+1; oldest, newest = j.Heads() {
		<-j.Wake()
		_ = oldest
	}
	fmt.Println("filled")
	select {} // until it is killed
}

// A view of a journal, as a process of its own has it.
type sight struct {
	Sales  int      `json:"sales"` // different ones that wait
	Known  bool     `json:"known"` // the keys of the first and the last sale
	State  string   `json:"state"`
	Damage []string `json:"damage"`
}

func look(dir string) error {
	j, err := Open(Options{Dir: dir, Origin: origin(), SegmentBytes: 1 << 20, FreeBytes: plenty, ReserveBytes: -1})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	s := sight{Known: true, Damage: j.Damage()}
	seen := map[string]bool{}
	oldest, newest := j.Heads()
	for at := oldest; at.Seq > 0; {
		b, err := j.Read(at, 500, 1<<20)
		if err != nil {
			return err
		}
		for i := range b.Records {
			if b.Records[i].Kind == protocol.KindTransaction {
				seen[string(b.Records[i].Body)] = true
			}
		}
		last := protocol.Position{Epoch: at.Epoch, Seq: b.Last()}
		if last == newest {
			break
		}
		at = j.Next(last)
	}
	s.Sales = len(seen)
	for _, n := range []int{0, filled - 1} {
		r, err := j.Append(ctx, Entry{Kind: protocol.KindTransaction, Body: []byte(`{"other":true}`), Keys: []string{fmt.Sprint("k", n)}})
		s.Known = s.Known && err == nil && r.Known
	}
	state, err := j.State("s")
	if err != nil {
		return err
	}
	s.State = string(state)
	cancel()
	if err := <-done; err != nil {
		return err
	}
	if err := j.Close(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// restarted looks at a journal, again when the process dies, as a service manager does.
func restarted(t *testing.T, dir string) (s sight, deaths int) {
	t.Helper()
	for ; deaths < 4; deaths++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), lookDir+"="+dir)
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Run(); err == nil {
			if err := json.Unmarshal(out.Bytes(), &s); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			return s, deaths
		} else if deaths == 3 {
			t.Fatalf("it does not come up: %v\n%.3000s", err, stderr.String())
		}
	}
	return s, deaths
}

// TestEDG05BadgersFaultsLoseNothing damages the index of a killed agent in every way that was
// found to make Badger lose entries, hand out wrong ones, refuse to open, or panic. The
// journal rebuilds it by itself.
func TestEDG05BadgersFaultsLoseNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "whole")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fillDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }) // a fill that hangs
	line := make([]byte, 64)
	n, _ := out.Read(line)
	killed.Stop()
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if string(line[:n]) != "filled\n" {
		t.Fatalf("the child says %q", line[:n])
	}

	change := func(pattern string, how func(data []byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := oneOf(t, dir, pattern)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, string(how(data)))
		}
	}
	gone := func(pattern string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { remove(t, oneOf(t, dir, pattern)) }
	}
	used := func(data []byte) int { return len(bytes.TrimRight(data, "\x00")) }
	flip := func(share float64) func([]byte) []byte {
		return func(data []byte) []byte { data[int(share*float64(used(data)))] ^= 0x20; return data }
	}
	page := func(share float64) func([]byte) []byte {
		return func(data []byte) []byte {
			from := int(share*float64(used(data))) / 4096 * 4096
			clear(data[from:min(from+4096, len(data))])
			return data
		}
	}
	empty := func([]byte) []byte { return nil }
	zeroed := func(data []byte) []byte { clear(data); return data }
	for _, tt := range []struct {
		name   string
		damage func(*testing.T, string)
	}{
		{"nothing", func(*testing.T, string) {}},
		{"WAL cut by 100 bytes", change("*.mem", func(d []byte) []byte { clear(d[used(d)-100:]); return d })},
		{"WAL flipped bit", change("*.mem", flip(0.5))},
		{"WAL zeroed page", change("*.mem", page(0.5))},
		{"WAL empty", change("*.mem", empty)},
		{"WAL deleted", gone("*.mem")},
		{"value log empty", change("*.vlog", empty)},
		{"value log deleted", gone("*.vlog")},
		{"table flipped bit", change("*.sst", flip(0.3))},
		{"table zeroed page", change("*.sst", page(0.3))},
		{"table index flipped bit", change("*.sst", flip(0.999))},
		{"table cut by 100 bytes", change("*.sst", func(d []byte) []byte { return d[:len(d)-100] })},
		{"table empty", change("*.sst", empty)},
		{"table deleted", gone("*.sst")},
		{"MANIFEST zeroed", change("MANIFEST", zeroed)},
		{"MANIFEST empty", change("MANIFEST", empty)},
		{"MANIFEST flipped bit", change("MANIFEST", flip(0.5))},
		{"MANIFEST cut by 10 bytes", change("MANIFEST", func(d []byte) []byte { return d[:len(d)-10] })},
		{"MANIFEST deleted", gone("MANIFEST")},
		{"KEYREGISTRY zeroed", change("KEYREGISTRY", zeroed)},
		{"KEYREGISTRY deleted", gone("KEYREGISTRY")},
		{"DISCARD deleted", gone("DISCARD")},
		{"everything deleted", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "index")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, copied)
			s, deaths := restarted(t, copied)
			if s.Sales != filled || !s.Known || s.State != "last" || len(s.Damage) > 0 {
				t.Errorf("after %d deaths: %+v; want all %d sales, their keys and the state, and no damage", deaths, s, filled)
			}
			if deaths > 1 {
				t.Errorf("%d starts died, want at most the one that Badger takes with it", deaths)
			}
		})
	}
}
