package drivertest_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/storelay/storelay/drivers/drivertest"
)

func TestDeviceLosesItsOldestFramesFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		device, client := drivertest.Pipe()
		s := drivertest.NewTerabee(drivertest.TerabeeOptions{Every: -1, Short: true})
		s.Walk(5, 0) // before Run: lost
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, device) }()
		synctest.Wait()
		s.Walk(3000, 0)
		frame := make([]byte, 11)
		frames, last := 0, 0
		for last < 3005 {
			if _, err := io.ReadFull(client, frame); err != nil {
				t.Fatal(err)
			}
			total := int(frame[6])<<8 | int(frame[7])
			if total <= last || total <= 5 {
				t.Fatalf("a frame with %d came after %d", total, last)
			}
			frames, last = frames+1, total
		}
		if frames > 1025 {
			t.Errorf("%d frames were kept for a client that did not read, want at most 1025", frames)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v, want context.Canceled", err)
		}
	})
}

// A plainLine has no deadlines.
type plainLine struct {
	io.Reader
	io.Writer
	io.Closer
}

func TestRunEndsOnALineWithoutDeadlines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, w := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- drivertest.NewLineCounter(drivertest.LineCounterOptions{}).Run(ctx, plainLine{r, w, r})
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v, want context.Canceled", err)
		}
	})
}
