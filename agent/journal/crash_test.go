package journal

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

// childDir names the folder that a child process of the test appends to until it is killed.
const childDir = "STORELAY_JOURNAL_TEST_DIR"

// TestMain turns the test binary into that child when it is asked to.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Println("child:", appendForEver(dir))
		os.Exit(1)
	}
	if is, err := child(); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// appendForEver prints each receipt once Append has returned.
func appendForEver(dir string) error {
	j, err := Open(Options{Dir: dir, Origin: origin(), SegmentBytes: 64 << 10, ReserveBytes: -1, FreeBytes: plenty})
	if err != nil {
		return err
	}
	go func() { fmt.Println("child:", j.Run(context.Background())) }()
	for n := 0; ; n++ {
		key := fmt.Sprintf("%d-%d", os.Getpid(), n)
		body := fmt.Sprintf(`{"key":%q}`, key)
		receipt, err := j.Append(context.Background(), Entry{Kind: protocol.KindTransaction, Body: []byte(body),
			Keys: []string{key}, Digest: sha256.Sum256([]byte(body)), StateKey: "newest", State: []byte(key)})
		if err != nil {
			return err
		}
		if _, err := fmt.Printf("%s %d %s\n", receipt.Position.Epoch, receipt.Position.Seq, key); err != nil {
			return err
		}
	}
}

func plenty(string) (uint64, error) { return 1 << 40, nil }

func TestWhatWasAcceptedSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	type line struct {
		epoch string
		seq   uint64
		key   string
	}
	var printed []line
	for run := range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for s := bufio.NewScanner(out); s.Scan(); {
			var l line
			if _, err := fmt.Sscanf(s.Text(), "%s %d %s", &l.epoch, &l.seq, &l.key); err != nil {
				if strings.HasPrefix(s.Text(), "child:") {
					t.Fatal(s.Text())
				}
				continue // the last line of a killed process is cut
			}
			printed = append(printed, l)
			if lines++; lines == 100+70*run {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("child ended by itself")
		}
		cancel()
		if lines < 100 {
			t.Fatalf("run %d: child accepted %d records, want 100 at least", run, lines)
		}
	}
	r := newRig(t, dir)
	have := map[string]string{}
	oldest, newest := r.j.Heads()
	for at := oldest; ; {
		b, err := r.j.Read(at, 500, 1<<20)
		if err != nil || len(b.Records) == 0 {
			t.Fatalf("Read(%s) = %d records, %v", at, len(b.Records), err)
		}
		for _, rec := range b.Records {
			have[fmt.Sprint(b.Epoch, " ", rec.Seq)] = string(rec.Body)
		}
		last := protocol.Position{Epoch: b.Epoch, Seq: b.Last()}
		if last == newest {
			break
		}
		at = r.j.Next(last)
	}
	for _, l := range printed {
		body := fmt.Sprintf(`{"key":%q}`, l.key)
		if got := have[fmt.Sprint(l.epoch, " ", l.seq)]; got != body {
			t.Errorf("record %s/%d = %q, want %q", l.epoch, l.seq, got, body)
		}
		if got := r.append(body, l.key); !got.Known || got.Position.Seq != l.seq || string(got.Position.Epoch) != l.epoch {
			t.Errorf("key %s gives %+v, want the position %s/%d, known", l.key, got, l.epoch, l.seq)
		}
	}
	if d := r.j.Damage(); len(d) > 0 {
		t.Errorf("Damage() = %q, want none", d)
	}
	r.close()
}

func TestASecondJournalOnTheFolderIsRefusedWithAHint(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.append(`1`)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+r.dir)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process has it open; stop the other agent") {
		t.Errorf("second process said %q, %v, want the hint", out, err)
	}
	r.append(`2`)
	r.close()
	r.open() // the lock is released
	r.close()
}

func TestAFailedSyncEndsSegmentAndEpoch(t *testing.T) {
	r := newRig(t, t.TempDir())
	first := r.append(`"before"`, "before")
	r.close()

	j, err := Open(r.opt)
	if err != nil {
		t.Fatal(err)
	}
	broken := map[File]bool{}
	fail := false
	j.datasync = func(f File) error {
		if broken[f] {
			t.Error("a file is synced again after its sync failed")
		}
		if fail {
			fail, broken[f] = false, true
			return errors.New("input/output error")
		}
		return f.Datasync()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r.j, r.stop = j, func() error { cancel(); return errors.Join(<-done, j.Close()) }
	// the committer alone calls datasync, one call after the other; between calls of Append
	// with no other caller it is idle
	go func() { done <- j.Run(ctx) }()
	good := r.append(`"good"`, "good")
	fail = true
	if _, err := j.Append(ctx, Entry{Kind: protocol.KindTransaction, Body: []byte(`"doubt"`), Keys: []string{"doubt"}, StateKey: "s", State: []byte("doubt")}); err == nil {
		t.Fatal("Append returned nil after a failed sync")
	}
	if s, err := j.State("s"); s != nil || err != nil {
		t.Errorf("State = %q, %v, want none: its record is not durable", s, err)
	}
	again := r.append(`"doubt"`, "doubt")
	if again.Known || again.Position.Epoch == good.Position.Epoch || again.Position.Seq != 2 {
		t.Errorf("after the failed sync: %+v, want seq 2 of a new epoch", again)
	}
	want := []string{`"before"`, `"good"`, `"doubt"`}
	if got := bodies(r.all()); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("records = %v, want %v", got, want)
	}
	r.close()
	for _, lose := range []bool{false, true} {
		if lose {
			if err := os.RemoveAll(filepath.Join(r.dir, "index")); err != nil {
				t.Fatal(err)
			}
		}
		r.open()
		if got := bodies(r.all()); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("index lost %v: records = %v, want %v", lose, got, want)
		}
		if got := r.append(`"doubt"`, "doubt"); !got.Known || got.Position != again.Position {
			t.Errorf("index lost %v: %+v, want %s, known", lose, got, again.Position)
		}
		if got := r.append(`"before"`, "before"); !got.Known || got.Position != first.Position {
			t.Errorf("index lost %v: %+v, want %s, known", lose, got, first.Position)
		}
		r.close()
	}
}

// TestADoubtfulIndexIsSetAside damages the index in the ways that Badger dies of, or would
// silently lose entries by.
func TestADoubtfulIndexIsSetAside(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
	}{
		{"it died while opening", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "index.opening"), "") }},
		{"MANIFEST deleted", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "index", "MANIFEST")) }},
		{"MANIFEST emptied", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "index", "MANIFEST"), "") }},
		{"empty table", func(t *testing.T, dir string) { write(t, oneOf(t, dir, "*.sst"), "") }},
		{"empty value log", func(t *testing.T, dir string) { write(t, oneOf(t, dir, "*.vlog"), "") }},
		{"table deleted", func(t *testing.T, dir string) { remove(t, oneOf(t, dir, "*.sst")) }},
		{"bit flip in a table", func(t *testing.T, dir string) {
			path := oneOf(t, dir, "*.sst")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			raw[len(raw)/4] ^= 0x40
			write(t, path, string(raw))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, t.TempDir())
			for n := range 50 {
				r.append(fmt.Sprint(n), fmt.Sprint("key", n))
			}
			before := r.all()
			r.close()
			tt.damage(t, r.dir)
			r.open()
			if got := r.all(); fmt.Sprint(bodies(got)) != fmt.Sprint(bodies(before)) {
				t.Errorf("records = %v, want %v", bodies(got), bodies(before))
			}
			if got := r.append("7", "key7"); !got.Known {
				t.Errorf("key7 is not known any more: %+v", got)
			}
			if aside, err := filepath.Glob(filepath.Join(r.dir, "index.aside-*")); len(aside) != 1 || err != nil {
				t.Errorf("set aside: %v, %v, want one folder", aside, err)
			}
			r.close()
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func oneOf(t *testing.T, dir, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "index", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s in the index: %v", pattern, err)
	}
	return paths[0]
}
