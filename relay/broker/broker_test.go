package broker_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
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

// A door is a running broker with its own authority.
type door struct {
	t      *testing.T
	ca     *ca.CA
	broker *broker.Broker
	refuse atomic.Pointer[string] // why nobody is let in
}

func open(t *testing.T, sink link.Sink) *door {
	t.Helper()
	d := &door{t: t, ca: authority(t)}
	server, err := d.ca.IssueServer([]string{"127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	d.broker, err = broker.New(broker.Options{Address: "127.0.0.1:0", TLS: d.ca.ServerTLS(server), Sink: sink, Log: slog.New(slog.DiscardHandler),
		Allow: func(context.Context, protocol.Origin, *x509.Certificate) error {
			if why := d.refuse.Load(); why != nil {
				return errors.New(*why)
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.broker.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d
}

func authority(t *testing.T) *ca.CA {
	t.Helper()
	c, err := ca.Create(t.TempDir() + "/ca")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settings are an agent's TLS settings with a certificate of the given authority.
func (d *door) settings(from *ca.CA, o protocol.Origin) *tls.Config {
	d.t.Helper()
	cert, key, err := from.IssueAgent(o, time.Hour, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		d.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(d.ca.CertPEM())
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool}
}

func (d *door) url() string { return "tls://" + d.broker.Addr().String() }

func (d *door) dial(settings *tls.Config, o protocol.Origin) (link.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return mqtt.Dial(ctx, mqtt.Options{URL: d.url(), TLS: settings, Origin: o})
}

// dead waits until the connection ends.
func dead(t *testing.T, c link.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		if _, _, err := c.Receive(ctx); err != nil {
			if ctx.Err() != nil {
				t.Error("the connection lives on")
			}
			return
		}
	}
}

func TestOnlyOurOwnCertificatesAreLetIn(t *testing.T) {
	d := open(t, linktest.NewSink())
	o := linktest.Origin()
	if _, err := d.dial(d.settings(authority(t), o), o); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another authority's agent: %v, want an error about its certificate", err)
	}
	why := "the agent is revoked"
	d.refuse.Store(&why)
	if _, err := d.dial(d.settings(d.ca, o), o); err == nil {
		t.Error("a revoked agent was let in")
	}
	d.refuse.Store(nil)
	c, err := d.dial(d.settings(d.ca, o), o)
	if err != nil {
		t.Fatal(err)
	}
	d.refuse.Store(&why) // takes effect on the live connection
	dead(t, c)
}

func TestAnAgentReachesOnlyItsOwnTopics(t *testing.T) {
	sink := linktest.NewSink()
	d := open(t, sink)
	o := linktest.Origin()
	own := d.settings(d.ca, o)
	other := protocol.Origin{Chain: o.Chain, Store: "0002", Agent: o.Agent} // the same client id, another store's topics
	if _, err := d.dial(own, other); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("subscribing to another store's answers: %v, want a refusal", err)
	}
	if got := sink.Committed(); len(got) != 0 {
		t.Errorf("committed %v", got)
	}
}

func TestAStoreThatFailsGetsNoPubackAndEverythingComesAgain(t *testing.T) {
	sink := linktest.NewSink()
	var n atomic.Int64
	sink.Fail = func() error {
		if n.Add(1)%7 == 3 {
			return errors.New("disk is full")
		}
		return nil
	}
	d := open(t, sink)
	source := linktest.NewSource()
	source.Begin(1)
	for range 20_000 {
		source.Append(100)
	}
	o := linktest.Origin()
	settings := d.settings(d.ca, o)
	sender := link.NewSender(source, linktest.NewReplica(), []string{"config"}, link.Options{}, rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithCancel(context.Background())
	var g sync.WaitGroup
	g.Go(func() {
		_ = link.Keep(ctx, func(ctx context.Context, relay string) (link.Conn, error) {
			return mqtt.Dial(ctx, mqtt.Options{URL: relay, TLS: settings, Origin: o})
		}, []string{d.url()}, sender, link.KeepOptions{MinPause: 10 * time.Millisecond, MaxPause: 20 * time.Millisecond}) // ends with ctx
	})
	defer g.Wait()
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Minute); ; {
		err := linktest.Check(source, sink)
		if err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%v; status %+v", err, sender.Status())
		}
	}
	if s := sender.Status(); s.Connects < 2 {
		t.Errorf("status %+v, want connections that ended with the failures", s)
	}
}

func TestGarbageIsAnsweredAndAHugePayloadEndsTheConnection(t *testing.T) {
	d := open(t, linktest.NewSink())
	o := linktest.Origin()
	c, err := d.dial(d.settings(d.ca, o), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := c.Publish(ctx, link.TopicRecords, []byte("{")); err != nil {
		t.Fatal(err)
	}
	_, answer, err := c.Receive(ctx)
	if err != nil || !strings.Contains(string(answer), `"unreadable"`) {
		t.Errorf("answer %s, %v, want unreadable", answer, err)
	}
	if err := c.Publish(ctx, link.TopicRecords, make([]byte, protocol.MaxWire+4096)); err != nil {
		t.Fatal(err)
	}
	dead(t, c)
}

func TestNewsReachesTheChainsAgents(t *testing.T) {
	d := open(t, linktest.NewSink())
	var conns []link.Conn
	for _, agent := range []string{"pc-1", "pc-2"} {
		o := protocol.Origin{Chain: "demo", Store: "0001", Agent: agent}
		c, err := d.dial(d.settings(d.ca, o), o)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if err := d.broker.Announce("demo", protocol.News{Feed: "config", Version: 7}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for _, c := range conns {
		topic, payload, err := c.Receive(ctx)
		if err != nil || topic != link.TopicNews || string(payload) != `{"feed":"config","version":7}` {
			t.Errorf("%v %s %v", topic, payload, err)
		}
	}
	if got := len(d.broker.Clients()); got != 2 {
		t.Errorf("%d clients, want 2", got)
	}
	d.broker.Disconnect(protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"})
	dead(t, conns[0])
}
