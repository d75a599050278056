package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
)

// TestAnAgentWhoseIndexHangsEndsWithAnError has Badger try to write a table for ever. The agent's
// Run returns, so that its process ends and the service manager starts it again; what was
// accepted is there then.
func TestAnAgentWhoseIndexHangsEndsWithAnError(t *testing.T) {
	dir, err := os.MkdirTemp("", "stall") // not t's: Badger is in it until the process ends
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	identityFor(t, filepath.Join(dir, "identity"))
	const token = "a-secret-of-the-first-till"
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Listen: "127.0.0.1:0",
		Zone: "Europe/Stockholm", Log: "info", Tills: []Till{{Workstation: "1", Token: token}},
		Devices: []Device{{ID: "door", Driver: "terabee", Port: filepath.Join(dir, "none")}}}
	o := Options{Version: "test", Log: slog.New(slog.DiscardHandler), IndexTime: time.Second}
	a, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 100; i++ {
		if err := os.Mkdir(filepath.Join(dir, "journal", "index", fmt.Sprintf("%06d.sst", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- a.Run(t.Context()) }()
	accepted, pad := int64(0), strings.Repeat("x", 100_000)
	for err == nil {
		if _, err = a.Journal().Append(context.Background(), journal.Entry{Kind: protocol.KindTransaction, Body: []byte(`"` + pad + `"`), Keys: []string{fmt.Sprint(accepted)}}); err == nil {
			accepted++
		}
	}
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "the journal stopped") || !strings.Contains(err.Error(), "index does not take") {
			t.Errorf("Run: %v, want what stopped and why", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the agent does not end")
	}
	if conn, err := net.Dial("tcp", a.Addr().String()); err == nil {
		conn.Close()
		t.Error("an agent that has ended still answers")
	}

	copied := t.TempDir() // as the next process finds it
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	cfg.Data = copied
	if a, err = New(cfg, o); err != nil {
		t.Fatal(err)
	}
	if n := a.Journal().Stats().Waiting; n < accepted+1 { // the seal
		t.Errorf("%d records after the start, want the %d that were accepted", n, accepted)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
