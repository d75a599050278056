package mqtt_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
	"github.com/storelay/storelay/protocol/link/mqtt"
	"github.com/storelay/storelay/relay/broker"
	"github.com/storelay/storelay/relay/ca"
)

// A shop has a relay and one agent's identity.
type shop struct {
	t      *testing.T
	sink   *linktest.Sink
	broker *broker.Broker
	agent  *tls.Config
}

func open(t *testing.T) *shop {
	t.Helper()
	authority, err := ca.Create(t.TempDir() + "/ca")
	if err != nil {
		t.Fatal(err)
	}
	server, err := authority.IssueServer([]string{relayName, "127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{t: t, sink: linktest.NewSink()}
	s.broker, err = broker.New(broker.Options{Address: "127.0.0.1:0", TLS: authority.ServerTLS(server), Sink: s.sink, Log: slog.New(slog.DiscardHandler),
		Allow: func(context.Context, protocol.Origin, *x509.Certificate) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.broker.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	cert, key, err := authority.IssueAgent(linktest.Origin(), time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.CertPEM())
	s.agent = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
	return s
}

func (s *shop) address() string { return s.broker.Addr().String() }

// options connect to an address of the relay within short times.
func (s *shop) options(address string) mqtt.Options {
	return mqtt.Options{URL: "tls://" + address, TLS: s.agent, Origin: linktest.Origin(),
		KeepAlive: time.Second, PingTimeout: 500 * time.Millisecond, WriteTimeout: time.Second, ConnectTimeout: 5 * time.Second}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// deliver keeps a link up until all records of a source are acknowledged.
func (s *shop) deliver(source *linktest.Source, o mqtt.Options) *link.Sender {
	s.t.Helper()
	sender := link.NewSender(source, linktest.NewReplica(), nil, link.Options{}, rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithCancel(s.t.Context())
	var g sync.WaitGroup
	g.Go(func() {
		_ = link.Keep(ctx, func(ctx context.Context, _ string) (link.Conn, error) { return mqtt.Dial(ctx, o) },
			[]string{o.URL}, sender, link.KeepOptions{MinPause: 10 * time.Millisecond, MaxPause: 20 * time.Millisecond}) // ends with ctx
	})
	s.t.Cleanup(g.Wait)
	s.t.Cleanup(cancel)
	return sender
}

// delivered waits until all of a source is committed.
func (s *shop) delivered(source *linktest.Source, sender *link.Sender) {
	s.t.Helper()
	limit := within(s.t, time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := linktest.Check(source, s.sink)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit.Done():
			s.t.Fatalf("%v; status %+v", err, sender.Status())
		}
	}
}

func records(n int) *linktest.Source {
	source := linktest.NewSource()
	source.Begin(1)
	for range n {
		source.Append(300)
	}
	return source
}

// dead waits until a connection ends, and says how long that took.
func dead(t *testing.T, c link.Conn) time.Duration {
	t.Helper()
	began, ctx := time.Now(), within(t, 20*time.Second)
	for {
		if _, _, err := c.Receive(ctx); ctx.Err() != nil {
			t.Fatal("the connection lives on")
		} else if err != nil {
			return time.Since(began)
		}
	}
}

func proxyURL(p *port, scheme string, who *url.Userinfo) *url.URL {
	return &url.URL{Scheme: scheme, User: who, Host: p.Addr().String()}
}

func TestRecordsAreDeliveredThroughProxies(t *testing.T) {
	for scheme, proxy := range map[string]func(*testing.T, string) *port{"http": connectProxy, "socks5": socksProxy} {
		t.Run(scheme, func(t *testing.T) {
			s := open(t)
			p := proxy(t, s.address())
			o := s.options(relayName + ":8883") // only the proxies know this name
			o.Proxy = proxyURL(p, scheme, url.UserPassword(user, password))
			source := records(2000)
			s.delivered(source, s.deliver(source, o))
			if p.count() != 2 { // to the proxy, and from it
				t.Errorf("%d connections at the proxy, want one and no other", p.count())
			}
		})
	}
}

func TestTheRelaysCertificateIsCheckedThroughAProxy(t *testing.T) {
	s, other := open(t), open(t) // the proxy leads to another authority's relay
	o := s.options(relayName + ":8883")
	o.Proxy = proxyURL(connectProxy(t, other.address()), "http", url.UserPassword(user, password))
	if c, err := mqtt.Dial(within(t, 20*time.Second), o); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v, %v, want an error about the certificate", c, err)
	}
}

func TestAProxyThatMisbehavesIsNamedInTimeAndItsPasswordIsNot(t *testing.T) {
	s := open(t)
	long := strings.Repeat("X-Filler: "+strings.Repeat("x", 100)+"\r\n", 1000)
	with := url.UserPassword(user, password)
	for name, tt := range map[string]struct {
		scheme string
		proxy  *port
		who    *url.Userinfo
		want   string
	}{
		"http, no user":              {"http", connectProxy(t, s.address()), nil, "wants a user and a password"},
		"http, wrong password":       {"http", connectProxy(t, s.address()), url.UserPassword(user, password+"!"), "does not take the user and password"},
		"http, refused":              {"http", says(t, "HTTP/1.1 403 Not from here\r\n\r\n", false), with, "403 Forbidden"},
		"http, bad gateway and body": {"http", says(t, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\nno route.", true), with, "502 Bad Gateway"},
		"http, hangs":                {"http", says(t, "", true), with, "proxy"},
		"http, hangs in its answer":  {"http", says(t, "HTTP/1.1 200 OK\r\nVia: ", true), with, "proxy"},
		"http, closes":               {"http", says(t, "", false), with, "EOF"},
		"http, closes in its answer": {"http", says(t, "HTTP/1.1 20", false), with, "is not HTTP"},
		"http, garbage":              {"http", says(t, "\x00\x01\x02garbage\r\n\r\n", true), with, "is not HTTP"},
		"http, echoes":               {"http", echoes(t, "HTTP/1.1 400 Bad: "), with, "400 Bad Request"},
		"http, echoes garbage":       {"http", echoes(t, ""), with, "is not HTTP"},
		"http, never ends":           {"http", says(t, "HTTP/1.1 200 OK\r\n"+long, true), with, "read its answer"},
		"http, says too much":        {"http", says(t, "HTTP/1.1 200 OK\r\n\r\nhello", true), with, "more than its answer"},
		"http, closes behind it":     {"http", says(t, "HTTP/1.1 200 OK\r\n\r\n", false), with, "TLS"},
		"http, silent behind it":     {"http", says(t, "HTTP/1.1 200 OK\r\n\r\n", true), with, "TLS"},
		"socks5, no user":            {"socks5", socksProxy(t, s.address()), nil, "no acceptable authentication methods"},
		"socks5, wrong password":     {"socks5", socksProxy(t, s.address()), url.UserPassword(user, password+"!"), "authentication failed"},
		"socks5, other version":      {"socks5", says(t, "\x04\x00", true), with, "unexpected protocol version"},
		"socks5, refused":            {"socks5", says(t, "\x05\x00\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00", true), with, "connection refused"},
		"socks5, hangs":              {"socks5", says(t, "", true), with, "proxy"},
		"socks5, hangs in between":   {"socks5", says(t, "\x05\x00\x05\x00", true), with, "proxy"},
		"socks5, closes":             {"socks5", says(t, "\x05", false), with, "EOF"},
		"nobody listens":             {"http", closed(t), with, "refused"},
		"another scheme":             {"ftp", closed(t), with, "want http or socks5"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := s.options(relayName + ":8883")
			o.ConnectTimeout = time.Second
			o.Proxy = proxyURL(tt.proxy, tt.scheme, tt.who)
			began := time.Now()
			c, err := mqtt.Dial(within(t, 20*time.Second), o)
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			if text := err.Error(); !strings.Contains(text, tt.want) || len(text) > 600 {
				t.Errorf("error %q, want one with %q", text, tt.want)
			}
			for _, secret := range []string{password, with.String(), "hemligt", credentials} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the password is in %q", err)
				}
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("it took %s, want it given up within the second that connecting may take", took)
			}
		})
	}
}

// closed is a port that nobody listens on any more.
func closed(t *testing.T) *port {
	p := listen(t, func(*port, net.Conn) {})
	p.Close()
	return p
}

func TestARelayThatNeverAnswersIsGivenUp(t *testing.T) {
	s := open(t)
	for name, p := range map[string]*port{"no TLS": says(t, "", true), "nothing behind TLS": muteTLS(t, s)} {
		t.Run(name, func(t *testing.T) {
			o := s.options(p.Addr().String())
			o.ConnectTimeout = time.Second
			began := time.Now()
			if c, err := mqtt.Dial(within(t, 20*time.Second), o); err == nil || time.Since(began) > 4*time.Second {
				t.Errorf("%v, %v after %s, want an error after a second", c, err, time.Since(began))
			}
		})
	}
}

// muteTLS is a relay that lets the agent in and then says nothing.
func muteTLS(t *testing.T, s *shop) *port {
	authority, err := ca.Create(t.TempDir() + "/ca")
	if err != nil {
		t.Fatal(err)
	}
	server, err := authority.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.agent.RootCAs.AppendCertsFromPEM(authority.CertPEM())
	return listen(t, func(_ *port, c net.Conn) {
		secure := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{server}})
		for buf := make([]byte, 4096); ; {
			if _, err := secure.Read(buf); err != nil {
				return
			}
		}
	})
}

// A wire passes bytes between agent and relay until it is told to be silent, or deaf to the
// agent; connections that come after that are whole.
type wire struct {
	*port
	state atomic.Pointer[chan struct{}] // closed = what there is now carries nothing more
}

func newWire(t *testing.T, relay string, deaf bool) *wire {
	w := &wire{}
	w.mend()
	w.port = listen(t, func(p *port, c net.Conn) {
		stop := *w.state.Load()
		_ = c.(*net.TCPConn).SetReadBuffer(4096) // small, so that it is soon full
		up, err := net.DialTimeout("tcp", relay, 5*time.Second)
		if err != nil {
			return
		}
		p.keep(up)
		defer up.Close()
		var both sync.WaitGroup
		carry := func(to, from net.Conn, deaf bool) {
			buf := make([]byte, 4096)
			for {
				n, err := from.Read(buf)
				select {
				case <-stop:
					if deaf {
						return // the other way stays open, and nobody reads this one
					}
				default:
					if _, broken := to.Write(buf[:n]); err != nil || broken != nil {
						c.Close()
						up.Close()
						return
					}
				}
				if err != nil {
					return
				}
			}
		}
		both.Go(func() { carry(up, c, deaf) })
		both.Go(func() { carry(c, up, false) })
		both.Wait()
	})
	return w
}

func (w *wire) mend() {
	whole := make(chan struct{})
	w.state.Store(&whole)
}

// silence ends what the wire carries now, without a word to either side.
func (w *wire) silence() {
	close(*w.state.Load())
	w.mend()
}

func TestAHalfOpenLineIsNoticed(t *testing.T) {
	s := open(t)
	w := newWire(t, s.address(), false)
	// The keep alive, the ping, and how often paho looks, twice a quarter of the keep alive.
	most := time.Second + 500*time.Millisecond + 500*time.Millisecond + time.Second
	t.Run("idle", func(t *testing.T) {
		c, err := mqtt.Dial(within(t, 20*time.Second), s.options(w.Addr().String()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		w.silence()
		if took := dead(t, c); took > most {
			t.Errorf("noticed after %s, want %s at most", took, most)
		}
	})
	t.Run("with traffic", func(t *testing.T) {
		c, err := mqtt.Dial(within(t, 20*time.Second), s.options(w.Addr().String()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx := within(t, 20*time.Second)
		lost := make(chan error, 1)
		go func() {
			for {
				if err := c.Publish(ctx, link.TopicAsk, []byte(`{"feed":{"feed":"items","after":0}}`)); err != nil {
					lost <- err
					return
				}
			}
		}()
		if _, _, err := c.Receive(ctx); err != nil {
			t.Fatal(err)
		}
		w.silence()
		began := time.Now()
		dead(t, c)
		<-lost
		if took := time.Since(began); took > most {
			t.Errorf("noticed after %s, want %s at most", took, most)
		}
	})
}

func TestAfterAHalfOpenLineTheLinkComesBackAndLosesNothing(t *testing.T) {
	s := open(t)
	w := newWire(t, s.address(), false)
	source := records(5000)
	sender := s.deliver(source, s.options(w.Addr().String()))
	for n := range 3 {
		limit := within(t, time.Minute)
		for sender.Status().Acked == int64(0) || sender.Status().Connects == int64(n) {
			if limit.Err() != nil {
				t.Fatalf("status %+v, want a new connection", sender.Status())
			}
			<-time.After(time.Millisecond)
		}
		source.Append(300)
		w.silence()
		source.Append(300)
	}
	s.delivered(source, sender)
	if st := sender.Status(); st.Connects < 3 || st.Forks > 0 {
		t.Errorf("status %+v, want a connection after each silence", st)
	}
}

// A relay that does not read fills the system's buffers; then the write has a deadline. The
// pings of this agent are an hour apart, so nothing else can notice.
func TestARelayThatDoesNotReadIsNoticed(t *testing.T) {
	s := open(t)
	w := newWire(t, s.address(), true)
	o := s.options(w.Addr().String())
	o.KeepAlive = 300 * time.Second
	c, err := mqtt.Dial(within(t, 20*time.Second), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.silence()
	ctx := within(t, 30*time.Second)
	noise := make([]byte, 250_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	began := time.Now()
	for err == nil {
		err = c.Publish(ctx, link.TopicRecords, noise)
	}
	if ctx.Err() != nil || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %s, want the line dead a second after its buffers are full", err, time.Since(began))
	}
	dead(t, c)
}
