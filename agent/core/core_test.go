package core

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"log/slog"

	"github.com/storelay/storelay/protocol"
)

func TestAllFaultsOfAConfigurationAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	text := `
data: /tmp/x
relays: [mqtt://relay]
listen: 0.0.0.0:80
zone: Mars/Olympus
tills: [{workstation: "1", token: short}]
devices:
  - {id: door, driver: terabee, port: /dev/ttyACM0, settings: {intervall: 5s}}
  - {id: door, driver: nobody, port: /dev/ttyACM0}
drops:
  - {id: door, folder: /tmp/x, format: poslog, redy: settle}
  - {id: files, folder: /tmp/y, format: csv, csv: {columns: {colour: Colour}}}
colour: red
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadConfig(path)
	if err == nil {
		t.Fatal("want an error")
	}
	for _, part := range []string{"colour: line 13: unknown key", "drops[0].redy: line 11: unknown key (did you mean ready?)", "drops[0].id", "drops[1].csv.columns.colour", "relays[0]", "listen", "zone", "tills[0].token", "devices[0].settings.intervall", "devices[1].driver", "devices[1].id"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in:\n%v", part, err)
		}
	}
}

// TestEDG04FilesAndTillsShareOneDesk drops a file and posts what is in it, over a restart.
func TestEDG04FilesAndTillsShareOneDesk(t *testing.T) {
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	folder := filepath.Join(dir, "files")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	const token = "a-secret-of-the-first-till"
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Listen: "127.0.0.1:0", Zone: "Europe/Stockholm", Log: "info",
		Tills: []Till{{Workstation: "1", Token: token}}, Drops: []Drop{
			{ID: "files", Folder: folder, Format: "json", Ready: "rename", Poll: 50 * time.Millisecond, Workstation: "1"},
			{ID: "away", Folder: filepath.Join(dir, "away"), Format: "poslog"},
		}}
	sale := `{"sequenceNumber":1,"type":"sale","begin":"2026-11-22T10:00:00+01:00","end":"2026-11-22T10:01:00+01:00","currency":"SEK",
		"lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900}],"tenders":[{"type":"card","amount":12900}],"total":12900}`
	for round := range 2 {
		if err := os.WriteFile(filepath.Join(folder, "sale.json"), []byte(sale), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var s Status
		for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); <-tick.C {
			if s = a.Status().(Status); s.Drops[0].Done == 1 && s.Drops[0].State != "" && s.Drops[1].Problem != "" {
				break
			}
		}
		if got := s.Drops[0]; got.Done != 1 || got.Accepted != int64(1-round) || got.Known != int64(round) || got.State != protocol.DeviceOnline {
			t.Errorf("round %d: %+v, want the sale accepted once", round, got)
		}
		if got := s.Drops[1]; !strings.Contains(got.Hint, "away") {
			t.Errorf("%+v, want a hint about the folder that is not there", got)
		}
		req, err := http.NewRequest(http.MethodPost, "http://"+a.Addr().String()+"/v1/transactions", strings.NewReader(sale))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusCreated || res.Header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("posted after it was dropped: %s, want that it is known", res.Status)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestRejectedBodiesAreKeptWithTheirReport(t *testing.T) {
	dir := t.TempDir()
	now := func() time.Time { return time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC) }
	roomy := func() bool { return false }
	r, err := openRejects(dir, now, roomy)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the same again is the same file
		if err := r.keep("1-abc", []byte("{bad"), protocol.Faults{{Field: "total", Problem: "missing"}}); err != nil {
			t.Fatal(err)
		}
	}
	if kept, _, _ := r.status(); kept != 1 || r.used != 2*diskBlock {
		t.Errorf("kept %d in %d bytes, want 1 in two blocks", kept, r.used)
	}
	body, err := os.ReadFile(filepath.Join(dir, "1-abc.body"))
	if err != nil || string(body) != "{bad" {
		t.Errorf("body %q, %v", body, err)
	}
	report, err := os.ReadFile(filepath.Join(dir, "1-abc.report"))
	if err != nil || !strings.Contains(string(report), `"total"`) {
		t.Errorf("report %s, %v", report, err)
	}
	again, err := openRejects(dir, now, roomy)
	if err != nil || again.count != 1 || again.used != r.used {
		t.Errorf("after a restart %d kept, %v", again.count, err)
	}
	r.limit = r.used
	if err := r.keep("2-abc", []byte("x"), nil); err == nil {
		t.Error("the folder grows without bound")
	}
	if _, notKept, full := r.status(); notKept != 1 || !strings.Contains(full, dir) {
		t.Errorf("%d not kept, %q; want 1 and what to empty", notKept, full)
	}
}

// TestEDG04ATillsSaleIsOnDiskBeforeItsAnswer drives a whole agent that has no relay.
func TestEDG04ATillsSaleIsOnDiskBeforeItsAnswer(t *testing.T) {
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	const token = "a-secret-of-the-first-till"
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Listen: "127.0.0.1:0",
		Zone: "Europe/Stockholm", Log: "info", Tills: []Till{{Workstation: "1", Token: token}}}
	run := func() (*Agent, func()) {
		t.Helper()
		a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		return a, func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	call := func(a *Agent, method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+a.Addr().String()+path, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	at := time.Now().Format(time.RFC3339)
	sale := func(total int) string {
		return fmt.Sprintf(`{"sequenceNumber":1,"type":"sale","begin":"%s","end":"%s","currency":"SEK",
			"lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900}],"tenders":[{"type":"card","amount":12900}],"total":%d}`, at, at, total)
	}
	a, stop := run()
	status, first := call(a, http.MethodPost, "/v1/transactions", sale(12900))
	if status != http.StatusCreated {
		t.Fatalf("status %d: %s", status, first)
	}
	stop()
	a, stop = run()
	defer stop()
	if status, again := call(a, http.MethodPost, "/v1/transactions", sale(12900)); status != http.StatusCreated || again != first {
		t.Errorf("after a restart %d %s, want the same answer %s", status, again, first)
	}
	if status, text := call(a, http.MethodPost, "/v1/transactions", sale(99)); status != http.StatusConflict {
		t.Errorf("other content: %d %s, want 409", status, text)
	}
	if status, text := call(a, http.MethodPost, "/v1/transactions", strings.Replace(sale(1), "SEK", "KRO", 1)); status != http.StatusUnprocessableEntity || !strings.Contains(text, `"currency"`) {
		t.Errorf("unknown currency: %d %s, want 422 that names it", status, text)
	}
	code, text := call(a, http.MethodGet, "/v1/status", "")
	var s Status
	if err := json.Unmarshal([]byte(text), &s); err != nil || code != http.StatusOK {
		t.Fatal(code, err, text)
	}
	if s.Queue.Waiting != 3 || s.Rejected != 2 || s.Origin.Store != "0001" { // the seal, the mark of the day before, the sale
		t.Errorf("status %s, want one sale waiting and two bodies rejected", text)
	}
}
