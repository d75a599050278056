// Package mqtt is the link's line over MQTT 3.1.1. It is the only importer of paho, used
// with the options that were found to hold: a new client for each connection, no automatic
// reconnecting, a deadline on every write.
package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
)

const (
	underWay = 16 // publishes without a PUBACK
	inbound  = 64 // messages that wait for Receive; more are dropped and asked for again
)

// Options of Dial; zero times are the defaults.
type Options struct {
	URL    string      // tls://host:port; tcp://host:port without TLS
	TLS    *tls.Config // the agent's identity
	Proxy  *url.URL    // http or socks5, with user and password if it wants them; nil = straight to the relay
	Origin protocol.Origin

	// A line whose other end is gone is noticed after KeepAlive without a byte from it and
	// PingTimeout without an answer to a ping, or after WriteTimeout in a write.
	KeepAlive      time.Duration // whole seconds; 20 s
	PingTimeout    time.Duration // 10 s
	WriteTimeout   time.Duration // of one write to the socket; 15 s
	ConnectTimeout time.Duration // of everything to the relay's yes, and of each subscription; 10 s
}

func (o *Options) defaults() {
	for _, t := range []struct {
		v *time.Duration
		d time.Duration
	}{{&o.KeepAlive, 20 * time.Second}, {&o.PingTimeout, 10 * time.Second}, {&o.WriteTimeout, 15 * time.Second}, {&o.ConnectTimeout, 10 * time.Second}} {
		if *t.v == 0 {
			*t.v = t.d
		}
	}
}

type message struct {
	topic   link.Topic
	payload []byte
}

type conn struct {
	client paho.Client
	origin protocol.Origin
	id     string
	in     chan message
	out    chan message
	slots  chan struct{}
	dead   chan struct{} // closed when the connection is lost

	once sync.Once // closes dead
	err  error     // why; set before dead is closed
}

// Dial connects, subscribes to the agent's own answers and its chain's news, and returns the
// line. Its errors say whether the proxy or the relay was not reached, did not accept the
// certificate, or refused a subscription; the proxy's password is in none.
func Dial(ctx context.Context, o Options) (link.Conn, error) {
	o.defaults()
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("draw client id: %w", err)
	}
	c := &conn{
		origin: o.Origin, id: o.Origin.Agent + hex.EncodeToString(random[:]),
		in: make(chan message, inbound), out: make(chan message), slots: make(chan struct{}, underWay), dead: make(chan struct{}),
	}
	options := paho.NewClientOptions().AddBroker(o.URL).SetClientID(c.id).SetProtocolVersion(4).SetCleanSession(true).
		SetAutoReconnect(false).SetConnectRetry(false).SetKeepAlive(o.KeepAlive).SetPingTimeout(o.PingTimeout).
		SetConnectTimeout(o.ConnectTimeout).SetWriteTimeout(o.WriteTimeout).SetOrderMatters(true).
		SetConnectionLostHandler(func(_ paho.Client, err error) { c.fail(err) }).
		SetCustomOpenConnectionFn(func(u *url.URL, _ paho.ClientOptions) (net.Conn, error) { return open(ctx, u, &o) })
	c.client = paho.NewClient(options)
	if err := wait(ctx, 2*o.ConnectTimeout, c.client.Connect()); err != nil { // its own parts end within the time, and say more
		c.client.Disconnect(0)
		return nil, fmt.Errorf("connect to %s: %w", o.URL, err)
	}
	for topic, filter := range map[link.Topic]string{link.TopicDown: o.Origin.DownTopic(), link.TopicNews: protocol.NewsTopic(o.Origin.Chain)} {
		token := c.client.Subscribe(filter, 0, func(_ paho.Client, m paho.Message) { c.take(topic, m.Payload()) })
		err := wait(ctx, o.ConnectTimeout, token)
		if sub, ok := token.(*paho.SubscribeToken); err == nil && ok && sub.Result()[filter] == 0x80 {
			err = errors.New("the relay refused it")
		}
		if err != nil {
			c.client.Disconnect(0)
			return nil, fmt.Errorf("subscribe to %s: %w", filter, err)
		}
	}
	go c.pump()
	return c, nil
}

// open dials and does the TLS handshake; every later write has a deadline.
func open(ctx context.Context, u *url.URL, o *Options) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	raw, err := dial(ctx, o.Proxy, u.Host)
	if err != nil {
		return nil, err
	}
	line := net.Conn(deadlineConn{raw, o.WriteTimeout})
	if u.Scheme == "tcp" {
		return line, nil
	}
	settings := o.TLS.Clone()
	settings.ServerName = u.Hostname()
	secure := tls.Client(line, settings)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS: %w", err), raw.Close())
	}
	return secure, nil
}

// A deadlineConn bounds each write, so that a line whose other end is gone is noticed even
// when the system's buffer is full.
type deadlineConn struct {
	net.Conn
	timeout time.Duration
}

func (c deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// wait waits for a token, for so long at most.
func wait(ctx context.Context, most time.Duration, token paho.Token) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("no answer within %s", most))
	defer cancel()
	select {
	case <-token.Done():
		return token.Error()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// take queues a message for Receive without blocking paho's router: what does not fit is
// dropped, since everything down can be asked for again.
func (c *conn) take(topic link.Topic, payload []byte) {
	select {
	case c.in <- message{topic, payload}:
	default:
	}
}

func (c *conn) fail(err error) {
	c.once.Do(func() {
		c.err = err
		close(c.dead)
	})
}

// ID implements link.Conn.
func (c *conn) ID() string { return c.id }

// Publish implements link.Conn: QoS 1, with a bounded number of publishes that wait for
// their PUBACK.
func (c *conn) Publish(ctx context.Context, topic link.Topic, payload []byte) error {
	select {
	case c.slots <- struct{}{}:
	case <-c.dead:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case c.out <- message{topic, payload}:
		return nil
	case <-c.dead:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pump hands to paho what Publish takes, until the connection is lost. It stands between
// them since paho's Publish knows no context, and waits on a line that is lost already.
func (c *conn) pump() {
	for {
		var m message
		select {
		case m = <-c.out:
		case <-c.dead:
			return
		}
		name := c.origin.RecordTopic()
		if m.topic == link.TopicAsk {
			name = c.origin.AskTopic()
		}
		token := c.client.Publish(name, 1, false, m.payload)
		go func() { // ends with the PUBACK or the connection
			select {
			case <-token.Done():
				if err := token.Error(); err != nil {
					c.fail(err)
				}
			case <-c.dead:
			}
			<-c.slots
		}()
	}
}

// Receive implements link.Conn.
func (c *conn) Receive(ctx context.Context) (link.Topic, []byte, error) {
	select {
	case m := <-c.in:
		return m.topic, m.payload, nil
	case <-c.dead:
		return 0, nil, c.err
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

// Close implements link.Conn.
func (c *conn) Close() error {
	c.fail(net.ErrClosed)
	c.client.Disconnect(0)
	return nil
}
