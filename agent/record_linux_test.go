package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storelay/storelay/drivers/drivertest"
)

func TestRecordCommandWritesAPortDown(t *testing.T) {
	dir := t.TempDir()
	pty, err := drivertest.OpenPty(filepath.Join(dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	defer pty.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		scale := drivertest.NewScale(drivertest.ScaleOptions{})
		pty.Serve(ctx, func() error { return scale.Run(ctx, io.ReadWriter(pty)) })
	}()
	file := filepath.Join(dir, "evening.txt")
	args := []string{"record", pty.Path(), "-o", file, "-for", "1s", "-send", "57", "-every", "100ms", "-set", "baud=4800"}
	if err := run(t.Context(), args); err != nil {
		t.Errorf("record: %v", err)
	}
	cancel()
	<-done
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), " ! open "+pty.Path()+" 4800 8none1\n") ||
		!strings.Contains(string(text), " > 57 ") || !strings.Contains(string(text), " < 02 30 30 2E 30 30 30 0D ") {
		t.Errorf("%v\n%s", err, text)
	}
	if mode, err := os.Stat(file); err != nil || mode.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600: a recording is private", mode.Mode(), err)
	}
	if err := run(t.Context(), args); err == nil || !strings.Contains(err.Error(), "file exists") {
		t.Errorf("a recording over another: %v, want an error", err)
	}
	if err := run(t.Context(), []string{"record", "-for", "1s"}); err == nil || !strings.Contains(err.Error(), "want one port") {
		t.Errorf("without a port: %v", err)
	}
}
