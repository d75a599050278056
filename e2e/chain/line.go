package chain

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A Line is the network between a store and a relay: it passes bytes on, and can be cut, or
// be dead without anybody being told.
type Line struct {
	Address string // what the store connects to
	to      string
	l       net.Listener

	mu    sync.Mutex // guards what follows
	state lineState
	conns map[net.Conn]bool
	woken chan struct{} // closed when state changes
	done  sync.WaitGroup
}

type lineState int

const (
	lineUp     lineState = iota
	lineCut              // connections are closed and refused
	lineSilent           // connections stay and carry nothing: half open
)

// NewLine listens on a free loopback port and passes connections on to an address.
func NewLine(to string) (*Line, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("lay a line: %w", err)
	}
	line := &Line{Address: l.Addr().String(), to: to, l: l, conns: map[net.Conn]bool{}, woken: make(chan struct{})}
	line.done.Go(line.accept)
	return line, nil
}

// Cut ends every connection and lets none begin.
func (l *Line) Cut() { l.set(lineCut) }

// Silence lets connections stay and carry nothing, as behind a router that lost its state.
func (l *Line) Silence() { l.set(lineSilent) }

// Mend makes the line whole. What was silent meanwhile was dropped, so those connections end.
func (l *Line) Mend() { l.set(lineUp) }

func (l *Line) set(s lineState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s != l.state && (s == lineCut || l.state == lineSilent) {
		for c := range l.conns {
			_ = c.Close() // its copier says so
		}
	}
	l.state = s
	close(l.woken)
	l.woken = make(chan struct{})
}

// up waits until the line is not silent; false when it is cut.
func (l *Line) up() bool {
	for {
		l.mu.Lock()
		s, woken := l.state, l.woken
		l.mu.Unlock()
		if s != lineSilent {
			return s == lineUp
		}
		<-woken
	}
}

func (l *Line) accept() {
	for {
		c, err := l.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		l.done.Go(func() { l.pass(c) })
	}
}

// pass carries one connection until it ends on either side.
func (l *Line) pass(store net.Conn) {
	defer store.Close()
	if !l.up() {
		return
	}
	relay, err := net.DialTimeout("tcp", l.to, 5*time.Second)
	if err != nil {
		return
	}
	defer relay.Close()
	l.mu.Lock()
	l.conns[store], l.conns[relay] = true, true
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { l.copy(relay, store) })
	both.Go(func() { l.copy(store, relay) })
	both.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, store)
	delete(l.conns, relay)
}

func (l *Line) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if !l.up() {
			return
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if errors.Is(err, io.EOF) || err != nil {
			return
		}
	}
}

// Close ends the line.
func (l *Line) Close() error {
	err := l.l.Close()
	l.Cut()
	l.done.Wait()
	return err
}
