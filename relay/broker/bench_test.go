package broker_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link/linktest"
	"github.com/storelay/storelay/relay/broker"
	"github.com/storelay/storelay/relay/ca"
)

const idle = 300 // connections at once

// BenchmarkIdleConnection measures what an idle agent's connection costs in heap and stacks,
// both ends of the TLS together, beside connections to a bare TLS listener; the difference is
// the broker's own.
func BenchmarkIdleConnection(b *testing.B) {
	authority, err := ca.Create(b.TempDir() + "/ca")
	if err != nil {
		b.Fatal(err)
	}
	server, err := authority.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	o := linktest.Origin()
	cert, key, err := authority.IssueAgent(o, time.Hour, nil)
	if err != nil {
		b.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.CertPEM())
	client := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}

	b.Run("tls", func(b *testing.B) {
		l, err := tls.Listen("tcp", "127.0.0.1:0", authority.ServerTLS(server))
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 64)) }() // ends with the connection
			}
		}()
		measure(b, l.Addr(), client)
	})
	b.Run("broker", func(b *testing.B) {
		door, err := broker.New(broker.Options{Address: "127.0.0.1:0", TLS: authority.ServerTLS(server), Sink: linktest.NewSink(), Log: slog.New(slog.DiscardHandler),
			Allow: func(context.Context, protocol.Origin, *x509.Certificate) error { return nil }})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- door.Run(ctx) }()
		measure(b, door.Addr(), client)
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// measure opens idle connections and reports the memory of each.
func measure(b *testing.B, addr net.Addr, settings *tls.Config) {
	b.Helper()
	for range b.N {
		before := inUse()
		conns := make([]net.Conn, idle)
		for i := range conns {
			c, err := tls.Dial("tcp", addr.String(), settings)
			if err != nil {
				b.Fatal(err)
			}
			conns[i] = c
			id := fmt.Sprintf("%s%016d", linktest.Origin().Agent, i)
			// CONNECT of MQTT 3.1.1: clean session, keep-alive 600 s.
			packet := append([]byte{0x10, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 2, 88, 0, byte(len(id))}, id...)
			if _, err := c.Write(packet); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(inUse()-before)/idle/1024, "KiB/connection")
		for _, c := range conns {
			c.Close()
		}
	}
}

// inUse is the heap and the stacks in use after a collection, in bytes.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
