//go:build linux

package drivertest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

func openPty(t *testing.T) *drivertest.Pty {
	t.Helper()
	p, err := drivertest.OpenPty(filepath.Join(t.TempDir(), "counter"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// openPort opens the client's side as a plain file, which the pty's raw mode allows.
func openPort(t *testing.T, p *drivertest.Pty) *os.File {
	t.Helper()
	port, err := os.OpenFile(p.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	if err := port.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return port
}

func TestPtyPassesEveryByteBothWays(t *testing.T) {
	p := openPty(t)
	port := openPort(t, p)
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, way := range []struct {
		name string
		from io.Writer
		to   io.Reader
	}{{"to the client", p, port}, {"to the device", port, p}} {
		if _, err := way.from.Write(all); err != nil {
			t.Fatalf("%s: %v", way.name, err)
		}
		got := make([]byte, 256)
		if _, err := io.ReadFull(way.to, got); err != nil || !bytes.Equal(got, all) {
			t.Errorf("%s: got % X, %v", way.name, got, err)
		}
	}
}

func TestPtyHangsUpAndComesBackAtItsPath(t *testing.T) {
	p := openPty(t)
	port := openPort(t, p)
	s := drivertest.NewTerabee(drivertest.TerabeeOptions{Every: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, func() error { return s.Run(ctx, p) }) }()

	buf := make([]byte, 7)
	if _, err := io.ReadFull(port, buf); err != nil {
		t.Fatal(err)
	}
	if err := p.HangUp(); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; { // until what was under way is read
		if _, err = port.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the client's read goes on after the hang-up")
		}
	}
	if _, err := os.Stat(p.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the path of a line that is hung up: %v, want fs.ErrNotExist", err)
	}
	if _, err := p.Write(buf); !errors.Is(err, drivertest.ErrHungUp) {
		t.Errorf("write to a line that is hung up: %v, want ErrHungUp", err)
	}
	if err := p.Return(); err != nil {
		t.Fatal(err)
	}
	again := openPort(t, p)
	if _, err := io.ReadFull(again, buf); err != nil || string(buf[:2]) != "DD" {
		t.Errorf("after the return: % X, %v, want a distance frame", buf, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve ended with %v, want context.Canceled", err)
	}
}

func TestPtyLosesWhatNobodyReads(t *testing.T) {
	p := openPty(t)
	for range 6 {
		if n, err := p.Write(make([]byte, 16384)); n != 16384 || err != nil {
			t.Fatalf("write without a reader: %d, %v", n, err)
		}
	}
}

func TestServeEndsWhileHungUp(t *testing.T) {
	p := openPty(t)
	if err := p.HangUp(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, func() error { return errors.New("must not run") }) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve ended with %v, want context.Canceled", err)
	}
}
