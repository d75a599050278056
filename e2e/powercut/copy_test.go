//go:build linux

package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/protocol"
)

// TestACopyTakenWhileItRuns copies the journal's folder file by file, in a random order,
// while the agent writes to it, as a backup program does that knows nothing of it. Whatever
// was answered before the copying began is in the copy, with the content that was posted:
// segments are only ever appended to, so each file that was copied holds it; the index, whose
// files are of different moments, may be anything and is built anew.
//
// It says nothing of syncs, since the copies come out of the page cache. And a copy is worse
// than a cut in one way: records that were answered while it was made may be missing between
// others that are there. Those must not keep the journal from opening.
func TestACopyTakenWhileItRuns(t *testing.T) {
	bin, err := shipped()
	check(t, err)
	dir := t.TempDir()
	c := start(t, bin, dir)
	s := c.Stores[0]
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		sell(ctx, s)
	}()
	defer func() { stop(); <-stopped }()

	random := rand.New(rand.NewPCG(1, 1))
	type taken struct {
		dir      string
		accepted []drivertest.Receipt
	}
	var copies []taken
	for n := range 6 {
		if n == 3 {
			s.Line.Cut()
		}
		wait(between(random, 300*time.Millisecond, time.Second))
		to := filepath.Join(dir, fmt.Sprint("copy-", n))
		var accepted []drivertest.Receipt
		for {
			accepted = s.Accepted()
			err := copyFolder(filepath.Join(dir, "store-"+s.ID, "data", "journal"), to, random)
			if !errors.Is(err, fs.ErrNotExist) {
				check(t, err)
				break
			} // a segment was compressed meanwhile
		}
		copies = append(copies, taken{to, accepted})
	}
	stop()
	<-stopped

	rebuilt, found := 0, 0
	for _, c := range copies {
		h := readJournal(t, c.dir)
		if h.Rebuilt {
			rebuilt++
		}
		for _, sale := range c.accepted {
			if n := h.Sales[sale.Reference()]; n != 1 {
				t.Errorf("%s holds sale %s %d times, want once; it names as damaged: %q", filepath.Base(c.dir), sale.Reference(), n, h.Damage)
				break
			}
			found++
		}
	}
	if len(copies[0].accepted) < 20 {
		t.Errorf("%d sales before the first copy prove nothing", len(copies[0].accepted))
	}
	t.Logf("%d sales found in %d copies, %d indexes built anew", found, len(copies), rebuilt)
}

// copyFolder copies the files of a folder and those below it, in a random order. A file of
// the folder itself that goes away meanwhile is fs.ErrNotExist; of Badger's it is let go.
func copyFolder(from, to string, random *rand.Rand) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	var files []string
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		below := path != from && filepath.Dir(path) != from
		switch {
		case errors.Is(err, fs.ErrNotExist) && below:
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, strings.TrimPrefix(path, from)), 0o700)
		}
		files = append(files, path)
		return nil
	})
	if err != nil {
		return err
	}
	random.Shuffle(len(files), func(i, k int) { files[i], files[k] = files[k], files[i] })
	for _, path := range files {
		err := copyFile(path, filepath.Join(to, strings.TrimPrefix(path, from)))
		if errors.Is(err, fs.ErrNotExist) && filepath.Dir(path) != from {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// readEnv names the journal that this program prints instead of testing.
const readEnv = "STORELAY_POWERCUT_READ"

// What a journal holds.
type held struct {
	Sales   map[string]int // by store/workstation/day/sequence: how often
	Damage  []string
	Rebuilt bool // the index was set aside
}

// readJournal opens a journal in a process of its own, since Badger may panic over what it
// finds; what a service manager does then, start it again, is done once.
func readJournal(t *testing.T, dir string) (h held) {
	t.Helper()
	for try := range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), readEnv+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil {
			check(t, json.Unmarshal(out, &h))
			return h
		}
		if try == 1 || !strings.Contains(stderr.String(), "badger") {
			t.Fatalf("journal %s does not open: %v\n%s", dir, err, stderr.String())
		}
	}
	return h
}

func printJournal(dir string) error {
	origin, err := journal.Owner(dir)
	if err != nil {
		return err
	}
	j, err := journal.Open(journal.Options{Dir: dir, Origin: origin, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	h := held{Sales: map[string]int{}, Damage: j.Damage()}
	aside, err := filepath.Glob(filepath.Join(dir, "index.aside-*"))
	if err != nil {
		return err
	}
	h.Rebuilt = len(aside) > 0
	for at := j.Next(protocol.Position{}); ; {
		b, err := j.Read(at, 500, 1<<20)
		switch {
		case errors.Is(err, journal.ErrGone):
			at.Seq++ // lost, and named in Damage
			continue
		case err != nil:
			return err
		case len(b.Records) == 0: // the end of an epoch
			next := j.Next(protocol.Position{Epoch: at.Epoch, Seq: math.MaxUint64 - 1})
			if next.Epoch == at.Epoch {
				return errors.Join(json.NewEncoder(os.Stdout).Encode(h), j.Close())
			}
			at = next
			continue
		}
		at.Seq = b.Last() + 1
		for _, r := range b.Records {
			if r.Kind != protocol.KindTransaction {
				continue
			}
			var sale protocol.Transaction
			if err := json.Unmarshal(r.Body, &sale); err != nil {
				return err
			}
			h.Sales[sale.ID().String()]++
		}
	}
}
