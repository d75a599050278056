package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

func backup(t *testing.T, l *ledger.Ledger) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "backup.db")
	if err := l.Backup(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

func restore(t *testing.T, url, from string, denied ...protocol.Origin) ledger.Restored {
	t.Helper()
	done, err := ledger.Restore(t.Context(), url, from, denied, ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// files lists what stands beside the database.
func files(t *testing.T, url string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(strings.TrimPrefix(url, "sqlite:")))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestARestoredLedgerGetsAgainWhatItLacks(t *testing.T) {
	url := sqliteURL(t)
	l, stop := open(t, url)
	a, stolen := newAgent(t, "0001", "pc", 1), newAgent(t, "0001", "stolen", 2)
	acked(t, l, a, a.begin(sales(t, 1)...))
	acked(t, l, stolen, stolen.begin())
	if err := l.FeedChange(t.Context(), chain, protocol.FeedItems, "", "a", []byte(`1`)); err != nil {
		t.Fatal(err)
	}
	old := a.mark()
	commits, err := l.Records(t.Context(), chain, 0, 1)
	if err != nil || len(commits) != 1 {
		t.Fatalf("%d records, %v", len(commits), err)
	}
	from := backup(t, l)
	acked(t, l, a, a.batch(sales(t, 2)...))
	if err := l.Revoke(t.Context(), stolen.from); err != nil {
		t.Fatal(err)
	}
	raise(t, l, 2)
	lost := a.batch(sales(t, 3)...)
	if got := commit(t, l, a, lost); got.Verdict != protocol.VerdictAck {
		t.Fatalf("%+v", got)
	}
	if _, err := ledger.Restore(t.Context(), url, from, nil, ledger.Options{}); !errors.Is(err, ledger.ErrInUse) {
		t.Errorf("restore of an open ledger: %v, want ErrInUse", err)
	}
	stop()
	done := restore(t, url, from, stolen.from)
	if done.Incarnation != 3 {
		t.Errorf("incarnation %d, want 3: above the one that was replaced", done.Incarnation)
	}
	if want := []string{"relay.db", "relay.db.lock", filepath.Base(done.Replaced)}; !slices.Equal(files(t, url), want) {
		t.Errorf("files %q, want %q", files(t, url), want)
	}

	l, stop = open(t, url)
	w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Incarnation: 2, Newest: protocol.Position{Epoch: a.epoch, Seq: a.seq}, LastAck: &protocol.Mark{Epoch: a.epoch, Through: a.seq, Hash: a.hash}})
	if err != nil || w.Incarnation != 3 || !slices.Equal(w.Marks, []protocol.Mark{old}) {
		t.Errorf("welcome %+v, %v, want the old mark %+v of incarnation 3", w, err, old)
	}
	if _, err := l.Welcome(t.Context(), stolen.from, protocol.Hello{}); !errors.Is(err, ledger.ErrRevoked) {
		t.Errorf("welcome of a denied agent: %v, want ErrRevoked", err)
	}
	again := protocol.Batch{Epoch: a.epoch, First: old.Through + 1, Prev: old.Hash}
	for i, r := range sales(t, 2, 3) {
		again.Records = append(again.Records, withSeq(r, old.Through+1+uint64(i)))
	}
	if got := commit(t, l, a, again); got.Verdict != protocol.VerdictAck || got.Through != a.seq || got.Hash != a.hash || got.Incarnation != 3 {
		t.Errorf("what was lost, again: %+v", got)
	}
	rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale})
	if len(rows) != 3 || rows[0].Pos != 2 || rows[1].Pos != 2*billion+1 || rows[1].Number != 2*billion+1 || rows[2].Number != 2*billion+2 {
		t.Errorf("rows %+v, want the two that came again behind all that was handed out before", rows)
	}
	alarms := details(t, l, ledger.AlarmRestored)
	if len(alarms) != 1 || !strings.Contains(alarms[0], "has incarnation 3, raised by `storelay-relay restore`; its newest record then had come at "+commits[0].Received.Format(time.RFC3339)) ||
		!strings.Contains(alarms[0], "storelay-agent drain") {
		t.Errorf("alarms %q, want one that says from when the backup is, and what to do", alarms)
	}
	// Whoever read on in the incarnation that is lost goes on with what it has not seen.
	if got, err := l.Records(t.Context(), chain, billion+1, 10); err != nil || len(got) != 2 {
		t.Errorf("records behind the last of incarnation 2: %+v, %v, want both", got, err)
	}
	page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedItems, After: billion + 1})
	if err != nil || !page.Reset || len(page.Changes) != 1 {
		t.Errorf("page for a cursor of incarnation 2: %+v, %v, want a reset", page, err)
	}
	stop()

	// The one that was replaced is whole.
	l, _ = open(t, "sqlite:"+done.Replaced)
	if got := sequences(t, l); !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("the replaced ledger holds %d", got)
	}
}

func TestABackupIsOneMomentOfALedgerThatServes(t *testing.T) {
	url := sqliteURL(t)
	l, stop := open(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	committed := make(chan struct{}, 1)
	for n := range 4 {
		wg.Go(func() {
			a := newAgent(t, "0001", "pc"+string(rune('a'+n)), n+1)
			b := a.begin()
			for i := int64(1); ctx.Err() == nil; i++ {
				if got, err := l.Commit(context.Background(), a.from, b); err != nil || got.Verdict != protocol.VerdictAck {
					t.Errorf("%+v, %v", got, err)
				}
				select {
				case committed <- struct{}{}:
				default:
				}
				b = a.batch(sales(t, int64(n)*100000+i)...)
			}
		})
	}
	var backups []string
	for range 5 {
		for range 5 {
			await(t, committed, "commit")
		}
		backups = append(backups, backup(t, l))
	}
	cancel()
	wg.Wait()
	if err := l.Backup(t.Context(), backups[0]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("backup over a file that is there: %v, want ErrExist", err)
	}
	stop()
	for _, from := range backups {
		to := sqliteURL(t)
		done := restore(t, to, from)
		if done.Incarnation != 2 || done.Replaced != "" {
			t.Errorf("restored %+v where nothing was", done)
		}
		copied, _ := open(t, to)
		rows := records(t, copied)
		if len(rows) == 0 || rows[len(rows)-1].Pos != int64(len(rows)) {
			t.Errorf("%d records, want positions without a gap", len(rows))
		}
		checkHashes(t, to)
	}
}

func TestWhatIsNoBackupIsNotRestored(t *testing.T) {
	url := sqliteURL(t)
	l, stop := open(t, url)
	a := newAgent(t, "0001", "pc", 1)
	acked(t, l, a, a.begin(sales(t, 1)...))
	good := backup(t, l)
	stop()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	for i := 4096 * 2; i < len(flipped); i += 4096 {
		flipped[i+5] ^= 0xff
	}
	other := filepath.Join(dir, "other.db")
	execute(t, "sqlite:"+other, "CREATE TABLE x (y)")
	newer := write("newer.db", whole)
	execute(t, "sqlite:"+newer, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)")
	live := write("live.db", whole)
	write("live.db-wal", []byte("something"))
	for name, tt := range map[string]struct{ from, want string }{
		"text":            {write("text.db", []byte(strings.Repeat("no database ", 1000))), "not a ledger's backup"},
		"half":            {write("half.db", whole[:len(whole)/2]), "not a ledger's backup"},
		"empty":           {write("empty.db", nil), "another program's"},
		"flipped":         {write("flipped.db", flipped), "not a ledger's backup"},
		"another program": {other, "another program's"},
		"newer":           {newer, "a newer relay made it"},
		"live":            {live, "a log beside it"},
		"none":            {filepath.Join(dir, "none.db"), "no such file"},
	} {
		if _, err := ledger.Restore(t.Context(), url, tt.from, nil, ledger.Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, tt.want)
		}
	}
	if got := files(t, url); !slices.Equal(got, []string{"relay.db", "relay.db.lock"}) {
		t.Errorf("files %q, want nothing left over", got)
	}
	l, _ = open(t, url)
	if _, incarnation, err := l.Head(t.Context(), chain); err != nil || incarnation != 1 {
		t.Errorf("incarnation %d, %v, want the ledger as it was", incarnation, err)
	}
	checkOrder(t, l, 2)
}

// The database that is there may be what is damaged.
func TestADamagedLedgerIsReplaced(t *testing.T) {
	url := sqliteURL(t)
	path := strings.TrimPrefix(url, "sqlite:")
	l, stop := open(t, url)
	a := newAgent(t, "0001", "pc", 1)
	acked(t, l, a, a.begin(sales(t, 1)...))
	from := backup(t, l)
	stop()
	if err := errors.Join(os.WriteFile(path, bytes.Repeat([]byte("rot"), 5000), 0o600), os.WriteFile(path+"-wal", []byte("rot"), 0o600)); err != nil {
		t.Fatal(err)
	}
	done := restore(t, url, from)
	if want := []string{"relay.db", "relay.db.damaged-shm", "relay.db.damaged-wal", "relay.db.lock", filepath.Base(done.Replaced)}; done.Incarnation != 2 || !slices.Equal(files(t, url), want) {
		t.Errorf("%+v, files %q, want %q", done, files(t, url), want)
	}
	l, _ = open(t, url)
	checkHashes(t, url)
	if got := sequences(t, l); !slices.Equal(got, []int64{1}) {
		t.Errorf("applied %d", got)
	}
}

// A relay that was killed leaves a log: it belongs to the database that is replaced, and must
// not be read into the one that takes its place.
func TestTheLogOfAKilledRelayStaysWithItsLedger(t *testing.T) {
	live := sqliteURL(t)
	l, _ := open(t, live)
	a := newAgent(t, "0001", "pc", 1)
	acked(t, l, a, a.begin(sales(t, 1)...))
	from := backup(t, l)
	acked(t, l, a, a.batch(sales(t, 2)...))
	url := sqliteURL(t)
	for _, suffix := range []string{"", "-wal"} { // what a kill leaves
		data, err := os.ReadFile(strings.TrimPrefix(live, "sqlite:") + suffix)
		if err != nil || len(data) == 0 {
			t.Fatalf("%d bytes of %q, %v", len(data), suffix, err)
		}
		if err := os.WriteFile(strings.TrimPrefix(url, "sqlite:")+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	done := restore(t, url, from)
	if want := []string{"relay.db", "relay.db.lock", filepath.Base(done.Replaced)}; !slices.Equal(files(t, url), want) {
		t.Errorf("files %q, want %q", files(t, url), want)
	}
	for url, want := range map[string][]int64{url: {1}, "sqlite:" + done.Replaced: {1, 2}} {
		l, _ := open(t, url)
		if got := sequences(t, l); !slices.Equal(got, want) {
			t.Errorf("%s holds %d, want %d", url, got, want)
		}
	}
}

func TestPostgreSQLIsBackedUpByItsOwnTools(t *testing.T) {
	url := ledgertest.Postgres(t)
	l, _ := open(t, url)
	if err := l.Backup(t.Context(), filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "pg_dump") {
		t.Errorf("backup: %v, want the tools named", err)
	}
	if _, err := ledger.Restore(t.Context(), url, "x", nil, ledger.Options{}); err == nil {
		t.Error("restore took a PostgreSQL")
	}
}
