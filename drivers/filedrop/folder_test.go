package filedrop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
)

func (b *bench) look() {
	b.t.Helper()
	if _, err := b.drop.round(b.t.Context(), b.host); err != nil {
		b.t.Fatal(err)
	}
}

func TestEDG04AHalfWrittenFileIsNeverRead(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON, Settle: 3 * time.Second})
	text := sale(1)
	for cut := 10; cut < len(text); cut += 60 { // the till writes on whenever we look
		b.write("1.json", text[:cut])
		b.look()
		b.host.pass(2 * time.Second)
	}
	b.write("1.json", text)
	b.look()
	b.host.pass(2 * time.Second)
	b.look()
	if len(b.agent.accepted) != 0 || len(b.files(rejectedDir)) != 0 {
		t.Fatalf("read before it had settled: %q", b.files(""))
	}
	b.host.pass(time.Second)
	b.look()
	b.wantFiles("", "done/2026-11-22/1.json")
	b.write("empty.json", "")
	b.mustRound()
	b.wantFiles("", "done/2026-11-22/1.json", "empty.json")
}

// A copy over the network may stand still for longer than it takes to settle.
func TestEDG04AFileThatIsCompletedLateIsNotRejected(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog})
	text := sample(t, "tax-on-top.xml")
	file, err := os.Create(filepath.Join(b.dir, "t.xml"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(s string) {
		if _, err := file.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	put(text[:300])
	for range 8 {
		b.look()
		b.host.pass(b.drop.cfg.Settle)
	}
	b.wantFiles("", "work/t.xml")
	put(text[300:]) // it is open still, wherever it lies now
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	b.look()
	b.host.pass(b.drop.cfg.Settle)
	b.look()
	b.wantFiles("", "done/2026-11-22/t.xml")
	if len(b.agent.accepted) != 1 {
		t.Errorf("%d accepted, want one", len(b.agent.accepted))
	}
}

func TestAFileIsReadyWhenItHasItsName(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON, Ready: ReadyRename, Files: "T?.json"})
	b.write("T1.tmp", sale(1))
	b.mustRound()
	if s := b.drop.Status(); len(b.agent.accepted) != 0 || s.Ignored != 1 {
		t.Errorf("%d accepted, %d ignored, want the other name left alone", len(b.agent.accepted), s.Ignored)
	}
	if err := os.Rename(filepath.Join(b.dir, "T1.tmp"), filepath.Join(b.dir, "T1.json")); err != nil {
		t.Fatal(err)
	}
	b.look()
	b.wantFiles("", "done/2026-11-22/T1.json")
}

func TestAFileIsReadyWhenItsMarkerIsThere(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON, Ready: ReadyMarker})
	b.write("1.json", sale(1)[:50])
	b.write("2.json", sale(2))
	b.mustRound()
	b.wantFiles("", "1.json", "2.json")
	b.write("2.done", "")
	b.mustRound()
	b.wantFiles("", "1.json", "done/2026-11-22/2.json")
	b.write("1.json", sale(1))
	b.write("1.json.done", "")
	b.look()
	b.wantFiles("", "done/2026-11-22/1.json", "done/2026-11-22/2.json")
	// The marker is used up: the next file of the name needs its own.
	b.write("1.json", sale(3))
	b.mustRound()
	if len(b.agent.accepted) != 2 {
		t.Errorf("%d accepted, want the file without a marker left alone", len(b.agent.accepted))
	}
}

func TestEDG04AGoodFileIsNeverReadTwice(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	for range 3 { // the till writes the same name each time, and once the same again
		b.write("sales.json", sale(1)+"\n"+sale(2))
		b.mustRound()
	}
	b.write("copy.json", "["+sale(2)+","+sale(3)+"]")
	b.mustRound()
	if got := len(b.agent.accepted); got != 3 {
		t.Errorf("%d accepted, want 3", got)
	}
	if got := b.files(doneDir); len(got) != 4 {
		t.Errorf("done: %q, want all four", got)
	}
	// Another content under a number that is known is refused, and kept.
	b.write("other.json", strings.ReplaceAll(sale(1), "12900", "1"))
	b.mustRound()
	if r := b.report("other.json"); len(b.agent.accepted) != 3 || r.Refused != 1 || r.Refusals[0].Faults[0].Field != "sequenceNumber" {
		t.Errorf("report %+v", r)
	}
}

// A file that does not say the business day is known again after the store's day begins at
// another hour.
func TestAFileIsKnownByItsContentToo(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	text := strings.NewReplacer(`"businessDay":"2026-11-21",`, "", "T10:0", "T05:0").Replace(sale(1))
	for range 2 {
		b.write("1.json", text)
		b.mustRound()
		b.cutOff = 6 * time.Hour // it was 04:00: the sale at 05:00 belongs to the day before now
		b.restart()
	}
	if len(b.agent.accepted) != 1 || len(b.files(rejectedDir)) != 0 {
		t.Errorf("accepted %v, want it once", b.agent.times)
	}
}

func TestWhatIsDoneMayBeDeleted(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog, Delete: true, Currency: "SEK"})
	b.write("t.xml", sample(t, "poslog-2.xml"))
	// A record cannot hold all of this: the file stays.
	b.write("u.xml", strings.Replace(sample(t, "tax-on-top.xml"), "<WorkstationID>4</WorkstationID>", "<WorkstationID>5</WorkstationID><Log>"+strings.Repeat("<L>abcdefgh</L>", 4000)+"</Log>", 1))
	b.mustRound()
	b.wantFiles("", "done/2026-11-22/u.xml")
	if len(b.agent.accepted) != 8 {
		t.Errorf("%d accepted, want 8", len(b.agent.accepted))
	}
}

func TestTheSameReceiptByBothDoorsIsAcceptedOnce(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	intake, err := b.drop.desk.Take([]byte(sale(1)), "4")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.agent.Accept(t.Context(), intake); err != nil {
		t.Fatal(err)
	}
	b.write("1.json", sale(1))
	b.mustRound()
	b.wantFiles("", "done/2026-11-22/1.json")
	if s := b.drop.Status(); s.Known != 1 || len(b.agent.accepted) != 1 {
		t.Errorf("%d known, %d accepted", s.Known, len(b.agent.accepted))
	}
}

// TestEDG04AnEndAtAnyStepLosesNothing ends the agent before each step that changes anything,
// and after each acceptance whose answer it does not hear any more.
func TestEDG04AnEndAtAnyStepLosesNothing(t *testing.T) {
	died := errors.New("died")
	for name, cfg := range map[string]Config{
		"settle": {Format: FormatJSON}, "marker": {Format: FormatJSON, Ready: ReadyMarker}, "rename": {Format: FormatJSON, Ready: ReadyRename},
		"delete": {Format: FormatJSON, Delete: true}, "delete and marker": {Format: FormatJSON, Delete: true, Ready: ReadyMarker},
	} {
		t.Run(name, func(t *testing.T) {
			for end, ended := 1, true; ended; end++ {
				b := newBench(t, cfg)
				b.write("a.json", sale(1)+sale(2))
				b.write("b.json", sale(3))
				b.write("c.json", `{"bad":`)
				b.write("d.json", sale(4)+strings.Replace(sale(5), "SEK", "KRO", 1))
				if cfg.Ready == ReadyMarker {
					for _, f := range []string{"a", "b", "c", "d"} {
						b.write(f+".done", "")
					}
				}
				var mu sync.Mutex
				steps := 0
				ended = false
				b.drop.step = func(what string) error {
					mu.Lock()
					defer mu.Unlock()
					if steps++; steps >= end {
						ended = true
						if what == "accept" { // it is accepted, and nobody hears of it
							b.agent.mu.Lock()
							b.agent.after = died
							b.agent.mu.Unlock()
							return nil
						}
						return died
					}
					return nil
				}
				if err := b.round(); err == nil && ended {
					t.Fatalf("step %d: no error", end)
				}
				b.agent.after = nil
				b.restart()
				if cfg.Ready == ReadyMarker {
					// Meanwhile the till writes another file of a name that it used, and is not done
					// with it: no marker that was left behind may vouch for it.
					if _, err := os.Stat(filepath.Join(b.dir, "b.json")); errors.Is(err, os.ErrNotExist) {
						b.write("b.json", sale(9)[:40])
					}
				}
				for range 4 {
					b.mustRound()
				}
				for n := 1; n <= 4; n++ {
					if got := b.agent.times[fmt.Sprintf("0001/4/2026-11-21/%d", n)]; got != 1 {
						t.Errorf("step %d: sale %d accepted %d times", end, n, got)
					}
				}
				if len(b.agent.accepted) != 4 {
					t.Errorf("step %d: %d accepted, want 4", end, len(b.agent.accepted))
				}
				rejected := []string{"c.json", "c.json" + reportEnding, "d.json", "d.json" + reportEnding}
				if got := b.files(rejectedDir); !slices.Equal(got, rejected) {
					t.Errorf("step %d: rejected %q, want %q", end, got, rejected)
				}
				done := []string{"2026-11-22/a.json", "2026-11-22/b.json"}
				if cfg.Delete {
					done = nil
				}
				if got := b.files(doneDir); !slices.Equal(got, done) {
					t.Errorf("step %d: done %q, want %q", end, got, done)
				}
				b.wantFiles(workDir)
				if end > 200 {
					t.Fatal("it never gets to its end")
				}
			}
		})
	}
}

// A file that is written to while it is read is read again: what was added is not lost.
func TestAFileThatGrowsWhileItIsReadIsReadAgain(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	b.write("1.json", sale(1))
	grown := false
	b.drop.step = func(what string) error {
		if what == "accept" && !grown {
			grown = true
			b.write("work/1.json", sale(1)+sale(2))
		}
		return nil
	}
	var later *laterError
	if err := b.round(); !errors.As(err, &later) {
		t.Fatalf("error %v, want that it waits", err)
	}
	b.mustRound()
	b.wantFiles("", "done/2026-11-22/1.json")
	if len(b.agent.accepted) != 2 {
		t.Errorf("%d accepted, want both", len(b.agent.accepted))
	}
}

func TestEDG04AFullDiskMakesFilesWait(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	synctest.Test(t, func(t *testing.T) {
		b.t = t
		b.agent.fail(fmt.Errorf("append: %w", till.ErrFull))
		b.write("1.json", sale(1))
		host := &bubbleHost{clockHost: b.host}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.drop.Run(ctx, host) }()
		wait(2 * time.Minute)
		if s := b.drop.Status(); !strings.Contains(s.Problem, "disk is full") || s.Hint == "" || s.Done != 0 {
			t.Errorf("status %+v, want why it waits", s)
		}
		b.wantFiles("", "work/1.json")
		if said := b.host.said(); len(said) == 0 || said[0].State != protocol.DeviceFault {
			t.Errorf("states %+v, want a fault", said)
		}
		b.agent.fail(nil)
		wait(2 * time.Minute)
		b.wantFiles("", "done/1999-12-31/1.json")
		if s := b.drop.Status(); s.Problem != "" || s.Accepted != 1 {
			t.Errorf("status %+v, want it well again", s)
		}
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func wait(d time.Duration) { <-time.After(d) }

// A bubbleHost lives by the clock of a synctest bubble.
type bubbleHost struct{ *clockHost }

func (bubbleHost) Now() time.Time { return time.Now() }

// A network folder goes and comes back: what was read before is not rejected, and nothing is
// lost.
func TestAFolderThatVanishesIsLookedForAgain(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	b.write("1.json", sale(1))
	b.mustRound()
	away := b.dir + ".away"
	if err := os.Rename(b.dir, away); err != nil {
		t.Fatal(err)
	}
	err := b.drop.Run(t.Context(), b.host)
	var fault *drivers.Fault
	if !errors.As(err, &fault) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(fault.Hint, b.dir) {
		t.Errorf("error %v, want a fault with the folder in its hint", err)
	}
	if s := b.drop.Status(); s.Problem == "" {
		t.Error("the status says nothing of it")
	}
	if err := os.Rename(away, b.dir); err != nil {
		t.Fatal(err)
	}
	b.write("2.json", sale(2))
	b.mustRound()
	if len(b.agent.accepted) != 2 {
		t.Errorf("%d accepted, want 2", len(b.agent.accepted))
	}
}

// What the disk does not give is no fault of the file.
func TestAFileThatCannotBeReadIsNotRejected(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog})
	b.write("t.xml", sample(t, "tax-on-top.xml"))
	text := sample(t, "tax-on-top.xml")
	for cut := 0; cut < len(text); cut += 97 {
		src := open(t.Context(), &broken{text: text[:cut]})
		err := b.drop.poslog(src, func(found) error { return nil })
		if err == nil || src.file.err == nil {
			t.Fatalf("after %d bytes: error %v, source %v, want the disk's error remembered", cut, err, src.file.err)
		}
	}
}

// A broken file gives an error of the disk behind its text.
type broken struct{ text string }

func (b *broken) Read(p []byte) (int, error) {
	if b.text == "" {
		return 0, errors.New("stale file handle")
	}
	n := copy(p, b.text)
	b.text = b.text[n:]
	return n, nil
}

func TestEDG04AFileOfAGigabyteIsRefusedUnread(t *testing.T) {
	b := newBench(t, Config{Format: FormatPOSLog})
	big, err := os.Create(filepath.Join(b.dir, "big.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(big.Truncate(1<<30), big.Close()); err != nil { // holes take no room
		t.Fatal(err)
	}
	b.mustRound()
	if r := b.report("big.xml"); !strings.Contains(r.Problem, "1024 MB") || r.Bytes != 1<<30 {
		t.Errorf("report %+v", r)
	}
	b.wantFiles(workDir)
}

func TestALinkIsNotFollowed(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON})
	secret := filepath.Join(t.TempDir(), "secret.json")
	if err := os.WriteFile(secret, []byte(sale(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(b.dir, "1.json")); err != nil {
		t.Fatal(err)
	}
	b.look()
	if err := os.Symlink(secret, filepath.Join(b.dir, workDir, "2.json")); err != nil {
		t.Fatal(err)
	}
	b.mustRound()
	b.mustRound()
	if r := b.report("2.json"); len(b.agent.accepted) != 0 || r.Problem == "" {
		t.Errorf("%d accepted, report %+v, want links left alone", len(b.agent.accepted), r)
	}
}

// More files than are looked at once, in the order of their names.
func TestEDG04ManyFilesAreAllRead(t *testing.T) {
	b := newBench(t, Config{Format: FormatJSON, Ready: ReadyRename})
	const files = window + 500
	for n := range files {
		b.write(fmt.Sprintf("%06d.json", n+1), sale(n+1))
	}
	b.mustRound()
	if len(b.agent.accepted) != files || len(b.files(doneDir)) != files {
		t.Errorf("%d accepted, %d done, want %d", len(b.agent.accepted), len(b.files(doneDir)), files)
	}
	if len(b.drop.seen) > window {
		t.Errorf("%d files are remembered, want at most %d", len(b.drop.seen), window)
	}
}

func TestAllFaultsOfADropAreNamed(t *testing.T) {
	faults := Check([]Config{
		{ID: "a", Folder: "/x", Format: FormatCSV, CSV: CSV{Separator: ";;", Decimal: "!", Encoding: "ebcdic", TimeFormat: "often", Columns: map[string]any{"colour": "Färg", "end": "Tid"}}},
		{ID: "a", Folder: "/x/", Format: "pdf", Files: "[", Ready: "soon", Settle: time.Millisecond, Poll: 2 * time.Hour, MaxMB: -1, Workstation: "till 4",
			Workstations: map[string]any{"POS 1": "a b"}, Currency: "KRO", Zone: "Mars/Olympus", Tenders: map[string]any{"Gold": "gold"}, Statuses: map[string]any{"Odd": "!"}},
		{Format: FormatPOSLog, CSV: CSV{Columns: map[string]any{"end": "x"}}},
	})
	text := faults.Error()
	for _, field := range []string{"drops[0].csv.separator", "drops[0].csv.decimal", "drops[0].csv.encoding", "drops[0].csv.timeFormat", "drops[0].csv.columns.colour", "drops[0].csv.columns.sequenceNumber",
		"drops[1].id", "drops[1].folder", "drops[1].format", "drops[1].files", "drops[1].ready", "drops[1].settle", "drops[1].poll", "drops[1].maxMB", "drops[1].workstation:", "drops[1].workstations.POS 1",
		"drops[1].currency", "drops[1].zone", "drops[1].tenders.Gold", "drops[1].statuses.Odd", "drops[2].id", "drops[2].folder", "drops[2].csv"} {
		if !strings.Contains(text, field) {
			t.Errorf("%s is missing in %s", field, text)
		}
	}
}
