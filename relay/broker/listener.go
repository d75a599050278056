package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

const (
	connectTimeout = 10 * time.Second       // from the accept to the end of the CONNECT packet
	writeTimeout   = 15 * time.Second       // of one write to an agent's socket
	acceptPause    = 200 * time.Millisecond // after a failed accept, such as too many open files
)

// A listener takes connections for the broker library. Unlike the library's own it gives a
// peer that says nothing only so much time, survives a failed accept, and ends with every
// connection closed.
type listener struct {
	tcp  net.Listener
	tls  *tls.Config
	log  *slog.Logger
	gone func(net.Conn) // told when a connection has ended

	ctx  context.Context // ends with Close
	stop context.CancelFunc

	mu     sync.Mutex // guards what follows
	closed bool
	open   map[net.Conn]struct{}
	conns  sync.WaitGroup
}

func newListener(tcp net.Listener, settings *tls.Config, log *slog.Logger, gone func(net.Conn)) *listener {
	l := &listener{tcp: tcp, tls: settings, log: log, gone: gone, open: map[net.Conn]struct{}{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// Init implements listeners.Listener.
func (l *listener) Init(*slog.Logger) error { return nil }

// ID implements listeners.Listener.
func (l *listener) ID() string { return "agents" }

// Protocol implements listeners.Listener.
func (l *listener) Protocol() string { return "tls" }

// Address implements listeners.Listener.
func (l *listener) Address() string { return l.tcp.Addr().String() }

// Serve implements listeners.Listener: it accepts until Close.
func (l *listener) Serve(establish listeners.EstablishFn) {
	for {
		raw, err := l.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.log.Error("accept agent", "err", err)
			select {
			case <-l.ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		if !l.take(raw) {
			_ = raw.Close() // it came too late to be told anything
			return
		}
		go l.serve(raw, establish)
	}
}

// take counts a connection in; false when the listener is closed.
func (l *listener) take(raw net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.open[raw] = struct{}{}
	l.conns.Add(1)
	return true
}

// serve is one connection from its handshake to its end.
func (l *listener) serve(raw net.Conn, establish listeners.EstablishFn) {
	defer l.conns.Done()
	conn := tls.Server(deadlineConn{raw}, l.tls)
	defer func() {
		l.gone(conn)
		_ = raw.Close() // mostly closed already
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.open, raw)
	}()
	err := conn.SetDeadline(time.Now().Add(connectTimeout)) // the library sets it anew after CONNECT
	if err == nil {
		err = conn.HandshakeContext(l.ctx)
	}
	if err == nil {
		err = establish(l.ID(), conn)
	}
	if err != nil {
		l.log.Debug("connection ended", "from", raw.RemoteAddr().String(), "err", err)
	}
}

// Close implements listeners.Listener: it closes the port and every connection, and waits
// for their ends. The library's goodbye is not sent: MQTT 3.1.1 has none, and a peer that
// does not read would hold the others up.
func (l *listener) Close(listeners.CloseFn) {
	l.mu.Lock()
	l.closed = true
	for raw := range l.open {
		_ = raw.Close() // its reader says what was wrong with it
	}
	l.mu.Unlock()
	l.stop()
	_ = l.tcp.Close() // nothing is left to do about it
	l.conns.Wait()
}

// A deadlineConn bounds each write, so that a peer that does not read is let go.
type deadlineConn struct{ net.Conn }

func (c deadlineConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
