package mqtt_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// A port listens on loopback and hands each connection to serve, until the test ends.
type port struct {
	net.Listener
	mu    sync.Mutex // guards what follows
	conns []net.Conn
	done  sync.WaitGroup
}

func listen(t *testing.T, serve func(*port, net.Conn)) *port {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &port{Listener: l}
	p.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.keep(c)
			p.done.Go(func() {
				defer c.Close()
				serve(p, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.done.Wait()
	})
	return p
}

func (p *port) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

// count is the number of connections that came.
func (p *port) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// join passes bytes both ways until either side ends.
func join(a, b net.Conn) {
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // its error is that the line ended
			pair[0].Close()
			pair[1].Close()
		})
	}
	both.Wait()
}

func (p *port) pass(c net.Conn, address string) {
	relay, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return
	}
	p.keep(relay)
	join(c, relay)
}

const user, password = "shop", "hemligt/lösen:1"

var credentials = base64.StdEncoding.EncodeToString([]byte(user + ":" + password))

// What names are for relay.test at the proxies: the relay's certificate is for it, and only
// they know where it is.
const relayName = "relay.test"

// connectProxy is an HTTP proxy for CONNECT that wants a user and a password.
func connectProxy(t *testing.T, relay string) *port {
	return listen(t, func(p *port, c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		switch {
		case r.Header.Get("Proxy-Authorization") != "Basic "+credentials:
			fmt.Fprint(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"shop\"\r\nContent-Length: 0\r\n\r\n")
		case r.Method != http.MethodConnect || !strings.HasPrefix(r.Host, relayName+":"):
			fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\n\r\n")
		default:
			fmt.Fprint(c, "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
			p.pass(c, relay)
		}
	})
}

// socksProxy is a SOCKS5 proxy (RFC 1928) that wants a user and a password (RFC 1929).
func socksProxy(t *testing.T, relay string) *port {
	return listen(t, func(p *port, c net.Conn) {
		read := func(n int) []byte {
			b := make([]byte, n)
			if _, err := io.ReadFull(c, b); err != nil {
				return make([]byte, n)
			}
			return b
		}
		text := func() string { return string(read(int(read(1)[0]))) }
		if hello := read(2); hello[0] != 5 || !strings.Contains(string(read(int(hello[1]))), "\x02") {
			_, _ = c.Write([]byte{5, 0xff})
			return
		}
		_, _ = c.Write([]byte{5, 2})
		if read(1); text() != user || text() != password {
			_, _ = c.Write([]byte{1, 1})
			return
		}
		_, _ = c.Write([]byte{1, 0})
		if request := read(4); request[1] != 1 || request[3] != 3 || text() != relayName {
			_, _ = c.Write([]byte{5, 2, 0, 1, 0, 0, 0, 0, 0, 0}) // not allowed
			return
		}
		read(2) // the port
		_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		p.pass(c, relay)
	})
}

// echoes is a proxy that tells everybody what it was told.
func echoes(t *testing.T, before string) *port {
	return listen(t, func(_ *port, c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		fmt.Fprint(c, before+r.Header.Get("Proxy-Authorization")+"\r\n\r\n")
	})
}

// says is a proxy that answers everything with the same bytes, and then closes or hangs.
func says(t *testing.T, answer string, hang bool) *port {
	return listen(t, func(_ *port, c net.Conn) {
		if _, err := c.Read(make([]byte, 4096)); err != nil {
			return
		}
		_, _ = io.WriteString(c, answer) // the other end may have had enough
		if hang {
			_, _ = io.Copy(io.Discard, c) // until it goes
		}
	})
}
