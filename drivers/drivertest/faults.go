package drivertest

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// Faults are what goes wrong on a line. A frame is one write of the simulator. The zero
// Faults are a good line. Percentages are chances per frame, 0 to 100.
type Faults struct {
	Split      bool          // every byte in a write of its own
	Join       time.Duration // frames are held back this long and sent as one write
	Noise      int           // percent: 1 to 8 bytes that nobody sent come before the frame
	NoiseBytes []byte        // the bytes that noise is made of; nil = any
	Flip       int           // percent: one bit of the frame is flipped
	Drop       int           // percent: one byte of the frame is lost
	Duplicate  int           // percent: the frame comes twice
	Echo       bool          // what the client sends comes back to it (half-duplex cable)
	Silent     bool          // nothing passes, in neither direction
	Slow       time.Duration // pause before each byte
}

// Hits say how often each fault has struck, so that a test can know that it did. Frames are
// held by Join; they are joined when more than one was.
type Hits struct {
	Frames, Split, Held, Joined, Noise, Flipped, Dropped, Duplicated, Echoed, Silenced, Slowed int
}

// A FaultyLine stands between a simulator and its line and makes faults, drawn from a seed.
// The faults can be changed at any time. It is safe for concurrent use by one reader, one
// writer and any number of callers of the other methods.
type FaultyLine struct {
	line io.ReadWriter
	seed uint64

	mu     sync.Mutex // guards the fields below
	rng    *rand.Rand
	faults Faults
	hits   Hits
	held   [][]byte // frames held back by Join
	failed error    // of a write of held frames

	writing sync.Mutex // one write at a time
}

// NewFaultyLine wraps the simulator's side of a line.
func NewFaultyLine(line io.ReadWriter, seed uint64) *FaultyLine {
	return &FaultyLine{line: line, seed: seed, rng: rand.New(rand.NewPCG(seed, 0))}
}

// Seed is what the faults are drawn from.
func (l *FaultyLine) Seed() uint64 { return l.seed }

// Set changes the faults; frames that were held back are sent first.
func (l *FaultyLine) Set(f Faults) {
	l.release()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = f
}

// Hits says how often each fault has struck so far.
func (l *FaultyLine) Hits() Hits {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hits
}

// HangUp hangs the line up, or closes it when it can only be closed.
func (l *FaultyLine) HangUp() error {
	switch line := l.line.(type) {
	case interface{ HangUp() error }:
		return line.HangUp()
	case io.Closer:
		return line.Close()
	}
	return errors.New("the line cannot be hung up")
}

// Close hangs the line up.
func (l *FaultyLine) Close() error { return l.HangUp() }

// SetDeadline is that of the line beneath; os.ErrNoDeadline when it has none.
func (l *FaultyLine) SetDeadline(t time.Time) error {
	if d, ok := l.line.(deadliner); ok {
		return d.SetDeadline(t)
	}
	return os.ErrNoDeadline
}

// Read reads what the client sent; what is swallowed by silence is not returned.
func (l *FaultyLine) Read(p []byte) (int, error) {
	for {
		n, err := l.line.Read(p)
		l.mu.Lock()
		f := l.faults
		if n > 0 && f.Silent {
			l.hits.Silenced++
			n = 0
		}
		if n > 0 && f.Echo {
			l.hits.Echoed++
		}
		l.mu.Unlock()
		if n > 0 && f.Echo {
			if err := l.put(p[:n]); err != nil {
				return n, err
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends one frame through the faults. It reports the frame as written whatever became
// of it; an error is one of the line.
func (l *FaultyLine) Write(frame []byte) (int, error) {
	out, f, err := l.mangle(frame)
	if err != nil {
		return 0, err
	}
	switch {
	case f.Silent, len(out) == 0: // swallowed, or held back by Join
	case f.Split || f.Slow > 0:
		l.writing.Lock()
		defer l.writing.Unlock()
		for i := range out {
			if f.Slow > 0 {
				time.Sleep(f.Slow)
			}
			if _, err := l.line.Write(out[i : i+1]); err != nil {
				return i, err
			}
		}
	default:
		if err := l.put(out); err != nil {
			return 0, err
		}
	}
	return len(frame), nil
}

// mangle draws the faults of one frame and returns the bytes to send now.
func (l *FaultyLine) mangle(frame []byte) ([]byte, Faults, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.faults
	if err := l.failed; err != nil {
		l.failed = nil
		return nil, f, err
	}
	l.hits.Frames++
	if f.Silent {
		l.hits.Silenced++
		return nil, f, nil
	}
	out := append([]byte(nil), frame...)
	if l.strikes(f.Flip, &l.hits.Flipped) && len(out) > 0 {
		out[l.rng.IntN(len(out))] ^= 1 << l.rng.IntN(8)
	}
	if l.strikes(f.Drop, &l.hits.Dropped) && len(out) > 0 {
		at := l.rng.IntN(len(out))
		out = append(out[:at], out[at+1:]...)
	}
	if l.strikes(f.Duplicate, &l.hits.Duplicated) {
		out = append(out, out...)
	}
	if l.strikes(f.Noise, &l.hits.Noise) {
		noise := make([]byte, 1+l.rng.IntN(8))
		for i := range noise {
			noise[i] = byte(l.rng.Uint32())
			if len(f.NoiseBytes) > 0 {
				noise[i] = f.NoiseBytes[l.rng.IntN(len(f.NoiseBytes))]
			}
		}
		out = append(noise, out...)
	}
	if f.Split {
		l.hits.Split++
	}
	if f.Slow > 0 {
		l.hits.Slowed++
	}
	if f.Join > 0 {
		l.hits.Held++
		if l.held = append(l.held, out); len(l.held) == 1 {
			time.AfterFunc(f.Join, l.release)
		}
		return nil, f, nil
	}
	return out, f, nil
}

func (l *FaultyLine) strikes(percent int, hits *int) bool {
	if percent <= 0 || l.rng.IntN(100) >= percent {
		return false
	}
	*hits++
	return true
}

// release sends the frames held back as one write.
func (l *FaultyLine) release() {
	l.mu.Lock()
	var all []byte
	for _, frame := range l.held {
		all = append(all, frame...)
	}
	if len(l.held) > 1 {
		l.hits.Joined++
	}
	l.held = nil
	l.mu.Unlock()
	if len(all) == 0 {
		return
	}
	if err := l.put(all); err != nil {
		l.mu.Lock()
		l.failed = err
		l.mu.Unlock()
	}
}

func (l *FaultyLine) put(p []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := l.line.Write(p)
	return err
}
