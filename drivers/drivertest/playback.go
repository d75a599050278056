package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/storelay/storelay/drivers/serialport"
)

// PlaybackOptions shape a Playback.
type PlaybackOptions struct {
	Quick    bool          // no pause is longer than 10 ms; else all are as they were
	Loose    bool          // the driver's bytes need not be those of the recording, only as many
	Patience time.Duration // for the driver's bytes; 0 = 5 s
}

// A Playback is a device that says again what it said in a recording (serialport.Recorder).
// Where the recording sent something to it, it waits for that; pauses count from there. After
// the last entry it is silent. A line that is lost ends nothing: the next Run goes on.
type Playback struct {
	opts    PlaybackOptions
	entries []serialport.Entry
	out     *outbox
	wake    chan struct{} // capacity 1
	done    chan struct{} // closed after the last entry

	mu     sync.Mutex // guards the fields below
	next   int
	heard  []byte
	faults []error
}

// NewPlayback reads a recording, or a part of one.
func NewPlayback(recording io.Reader, opts PlaybackOptions) (*Playback, error) {
	entries, err := serialport.ReadRecording(recording)
	if err != nil {
		return nil, err
	}
	if opts.Patience == 0 {
		opts.Patience = 5 * time.Second
	}
	return &Playback{opts: opts, entries: entries, out: newOutbox(), wake: make(chan struct{}, 1), done: make(chan struct{})}, nil
}

// Done is closed when all was said and heard.
func (p *Playback) Done() <-chan struct{} { return p.done }

// Err joins where the driver said something else than in the recording, or nothing.
func (p *Playback) Err() error { p.mu.Lock(); defer p.mu.Unlock(); return errors.Join(p.faults...) }

// Rest is what the driver has said and no entry has asked for.
func (p *Playback) Rest() []byte { p.mu.Lock(); defer p.mu.Unlock(); return bytes.Clone(p.heard) }

// Run speaks on the line until ctx ends or the line is lost. Modem lines move on a FakePort.
func (p *Playback) Run(ctx context.Context, line io.ReadWriter) error {
	side := modemLines(line)
	return p.out.serve(ctx, line, p.hear, func(ctx context.Context) error {
		last := time.Now()
		for i := p.place(); i < len(p.entries); i++ {
			e := p.entries[i]
			if e.Kind == serialport.Sent {
				if !p.await(ctx, i, e) {
					return ctx.Err()
				}
			} else if i > 0 {
				gap := e.At - p.entries[i-1].At
				if p.opts.Quick {
					gap = min(gap, 10*time.Millisecond)
				}
				if pause(ctx, gap-time.Since(last)); ctx.Err() != nil {
					return ctx.Err()
				}
			}
			last = time.Now()
			switch {
			case e.Kind == serialport.Received:
				p.out.send(e.Bytes)
			case e.Kind == serialport.Lines && side != nil:
				side.SetModemLines(e.Lines)
			}
			p.mu.Lock()
			p.next = i + 1
			p.mu.Unlock()
		}
		select {
		case <-p.done:
		default:
			close(p.done)
		}
		<-ctx.Done()
		return ctx.Err()
	})
}

func (p *Playback) place() int { p.mu.Lock(); defer p.mu.Unlock(); return p.next }

func (p *Playback) hear(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = append(p.heard, b...)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// await waits for what the driver sent in entry i; false when ctx ended first. What is wrong
// is kept for Err, and the playback goes on.
func (p *Playback) await(ctx context.Context, i int, e serialport.Entry) bool {
	timer := time.NewTimer(p.opts.Patience)
	defer timer.Stop()
	for {
		p.mu.Lock()
		if len(p.heard) >= len(e.Bytes) {
			got := p.heard[:len(e.Bytes)]
			if p.heard = p.heard[len(e.Bytes):]; !p.opts.Loose && !bytes.Equal(got, e.Bytes) {
				p.faults = append(p.faults, fmt.Errorf("entry %d at %s: the driver sent % X, the recording has % X", i+1, e.At, got, e.Bytes))
			}
			p.mu.Unlock()
			return true
		}
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return false
		case <-p.wake:
		case <-timer.C:
			p.mu.Lock()
			p.faults = append(p.faults, fmt.Errorf("entry %d at %s: the driver sent % X, the recording has % X", i+1, e.At, p.heard, e.Bytes))
			p.heard = nil
			p.mu.Unlock()
			return true
		}
	}
}
