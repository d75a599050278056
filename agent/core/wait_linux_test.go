package core

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

// A till waits for a scan with all the patience it may have; the agent is told to stop.
func TestATillThatWaitsDoesNotHoldUpTheAgentsEnd(t *testing.T) {
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	port, err := drivertest.OpenPty(filepath.Join(dir, "scanner"))
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Listen: "127.0.0.1:0",
		Zone: "Europe/Stockholm", Log: "info", Tills: []Till{{Workstation: "1", Token: "a-secret-of-the-first-till"}},
		Devices: []Device{{ID: "scanner", Driver: "scanner", Port: port.Path()}}}
	a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	asked, inner := make(chan struct{}, 100), a.handler
	a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Last") != "" {
			asked <- struct{}{}
		}
		inner.ServeHTTP(w, r)
	})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()

	get := func(ctx context.Context, last string) (int, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.Addr().String()+"/v1/scanners/scanner?wait=30s", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer a-secret-of-the-first-till")
		req.Header.Set("Last", last)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			return 0, err.Error()
		}
		return res.StatusCode, string(body)
	}
	answer := make(chan string, 1)
	for end := time.Now().Add(10 * time.Second); ; { // until the scanner's port is open
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		status, text := get(short, "")
		cancel()
		if status == 0 { // it waits
			break
		}
		if status != http.StatusConflict || time.Now().After(end) {
			t.Fatal(status, text)
		}
	}
	go func() {
		status, text := get(context.Background(), "yes")
		answer <- fmt.Sprint(status, " ", text)
	}()
	<-asked
	began := time.Now()
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if got := <-answer; !strings.HasPrefix(got, "200 ") && !strings.HasPrefix(got, "409 ") {
		t.Errorf("the till got %s, want an answer without scans", got)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the agent took %s to end", took)
	}
}
