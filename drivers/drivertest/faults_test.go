package drivertest_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
)

// A tape is a line that remembers each write as it came.
type tape struct {
	mu     sync.Mutex
	writes [][]byte
	input  []byte // for Read
	closed bool
}

func (l *tape) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, io.ErrClosedPipe
	}
	l.writes = append(l.writes, slices.Clone(p))
	return len(p), nil
}

func (l *tape) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.input) == 0 {
		return 0, io.EOF
	}
	n := copy(p, l.input)
	l.input = l.input[n:]
	return n, nil
}

func (l *tape) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}

func (l *tape) all() (writes [][]byte, joined []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.writes), bytes.Join(l.writes, nil)
}

var sampleFrame = []byte{0x50, 0x43, 0x00, 0x00, 0x00, 0x05, 0x00, 0x0C, 0x00, 0x07, 0x47}

func TestEachFaultShowsOnTheLine(t *testing.T) {
	const seed = 42
	for _, tt := range []struct {
		name   string
		faults drivertest.Faults
		good   func(writes [][]byte, joined []byte, hits drivertest.Hits) bool // after two frames
	}{
		{"none", drivertest.Faults{}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w) == 2 && bytes.Equal(w[0], sampleFrame) && h == drivertest.Hits{Frames: 2}
		}},
		{"split", drivertest.Faults{Split: true}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w) == 22 && bytes.Equal(j, slices.Concat(sampleFrame, sampleFrame)) && h.Split == 2
		}},
		{"join", drivertest.Faults{Join: time.Second}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w) == 1 && bytes.Equal(j, slices.Concat(sampleFrame, sampleFrame)) && h.Joined == 1
		}},
		{"noise", drivertest.Faults{Noise: 100, NoiseBytes: []byte{0xAA}}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w[0]) > 11 && w[0][0] == 0xAA && bytes.Equal(bytes.TrimLeft(w[0], "\xAA"), sampleFrame) && h.Noise == 2
		}},
		{"flip", drivertest.Faults{Flip: 100}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w[0]) == 11 && bitsApart(w[0], sampleFrame) == 1 && bitsApart(w[1], sampleFrame) == 1 && h.Flipped == 2
		}},
		{"drop", drivertest.Faults{Drop: 100}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w[0]) == 10 && len(w[1]) == 10 && h.Dropped == 2
		}},
		{"duplicate", drivertest.Faults{Duplicate: 100}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w) == 2 && bytes.Equal(w[0], slices.Concat(sampleFrame, sampleFrame)) && h.Duplicated == 2
		}},
		{"silent", drivertest.Faults{Silent: true}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w) == 0 && h.Silenced == 2
		}},
		{"slow", drivertest.Faults{Slow: time.Second}, func(w [][]byte, j []byte, h drivertest.Hits) bool {
			return len(w) == 22 && h.Slowed == 2
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				under := new(tape)
				line := drivertest.NewFaultyLine(under, seed)
				line.Set(tt.faults)
				start := time.Now()
				for range 2 {
					if n, err := line.Write(sampleFrame); n != len(sampleFrame) || err != nil {
						t.Fatalf("write: %d, %v (seed %d)", n, err, seed)
					}
				}
				if spent := time.Since(start); tt.faults.Slow > 0 && spent != 22*time.Second {
					t.Errorf("22 slow bytes took %s, want 22s (seed %d)", spent, seed)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if writes, joined := under.all(); !tt.good(writes, joined, line.Hits()) {
					t.Errorf("writes % X, hits %+v (seed %d)", writes, line.Hits(), seed)
				}
				line.Set(drivertest.Faults{})
				if _, err := line.Write(sampleFrame); err != nil {
					t.Fatalf("write: %v (seed %d)", err, seed)
				}
				if writes, _ := under.all(); len(writes) == 0 || !bytes.Equal(writes[len(writes)-1], sampleFrame) {
					t.Errorf("last write % X after the faults ended, want the frame (seed %d)", writes, seed)
				}
			})
		})
	}
}

func bitsApart(a, b []byte) (n int) {
	for i := range min(len(a), len(b)) {
		for x := a[i] ^ b[i]; x != 0; x &= x - 1 {
			n++
		}
	}
	return n
}

func TestSameSeedSameFaults(t *testing.T) {
	run := func(seed uint64) []byte {
		under := new(tape)
		line := drivertest.NewFaultyLine(under, seed)
		line.Set(drivertest.Faults{Noise: 50, Flip: 50, Drop: 50, Duplicate: 50})
		for range 50 {
			if _, err := line.Write(sampleFrame); err != nil {
				t.Fatal(err)
			}
		}
		_, joined := under.all()
		return joined
	}
	if !bytes.Equal(run(3), run(3)) {
		t.Error("two runs of seed 3 differ")
	}
	if bytes.Equal(run(3), run(4)) {
		t.Error("seeds 3 and 4 make the same faults")
	}
}

func TestEchoAndSilenceOfTheClientsBytes(t *testing.T) {
	under := &tape{input: []byte("R\r\n")}
	line := drivertest.NewFaultyLine(under, 1)
	line.Set(drivertest.Faults{Echo: true})
	buf := make([]byte, 16)
	n, err := line.Read(buf)
	if _, joined := under.all(); err != nil || string(buf[:n]) != "R\r\n" || string(joined) != "R\r\n" {
		t.Errorf("read %q, %v; echoed %q; want the command twice", buf[:n], err, joined)
	}
	line.Set(drivertest.Faults{Silent: true})
	under.input = []byte("R\r\n")
	if n, err := line.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read of a silent line: %d, %v, want nothing", n, err)
	}
	if h := line.Hits(); h.Echoed != 1 || h.Silenced != 1 {
		t.Errorf("hits %+v, want 1 echoed and 1 silenced", h)
	}
}

func TestHungUpLineEndsRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		device, client := drivertest.Pipe()
		defer client.Close()
		line := drivertest.NewFaultyLine(device, 1)
		done := make(chan error, 1)
		go func() { done <- drivertest.NewTerabee(drivertest.TerabeeOptions{}).Run(t.Context(), line) }()
		synctest.Wait()
		if err := line.HangUp(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Run ended with %v, want io.ErrClosedPipe", err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the client reads %v, want io.EOF", err)
		}
	})
}

func TestLostWriteOfJoinedFramesIsReported(t *testing.T) {
	under := new(tape)
	line := drivertest.NewFaultyLine(under, 1)
	line.Set(drivertest.Faults{Join: time.Hour})
	if _, err := line.Write(sampleFrame); err != nil {
		t.Fatal(err)
	}
	under.Close()
	line.Set(drivertest.Faults{})
	if _, err := line.Write(sampleFrame); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after the lost frames: %v, want io.ErrClosedPipe", err)
	}
}
