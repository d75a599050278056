// Package broker is the relay's door for agents: an embedded MQTT broker that takes an
// agent's identity from its certificate alone, lets it publish only under its own topics and
// subscribe only to its own answers and its chain's news, and sends the PUBACK of a batch
// after the ledger's commit. It is the only importer of mochi-mqtt.
package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/protocol/link"
)

const (
	allowEvery    = 5 * time.Second // live connections are checked against Allow
	pendingWrites = 64              // news that wait for a slow agent; 8192 would cost 64 KiB each
	packetRoom    = 1 << 10         // of an MQTT packet beside its payload
	maxKeepAlive  = 300             // seconds; a silent connection is closed after half as much again
	idDigits      = 16              // hex digits behind the agent's id in a client id
)

// Options of a Broker.
type Options struct {
	Address string      // host:port, port 0 lets the system choose
	TLS     *tls.Config // requires and verifies client certificates
	Sink    link.Sink
	// Allow says with an error why an agent may not, or no more, be connected. It is asked at
	// each connect and every few seconds after that.
	Allow func(ctx context.Context, from protocol.Origin, cert *x509.Certificate) error
	Log   *slog.Logger
}

// A Broker serves agents. New opens its port, Run serves until ctx ends.
type Broker struct {
	opt      Options
	listener net.Listener
	server   *mqtt.Server
	receiver *link.Receiver

	mu       sync.Mutex // guards what follows
	ctx      context.Context
	sessions map[net.Conn]session
}

// A session is one connection of an agent.
type session struct {
	client *mqtt.Client
	origin protocol.Origin
	cert   *x509.Certificate
	since  time.Time
}

// New opens the port; connections wait for Run.
func New(o Options) (*Broker, error) {
	tcp, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("open MQTT port: %w", err)
	}
	b := &Broker{opt: o, listener: tcp, receiver: link.NewReceiver(o.Sink), sessions: map[net.Conn]session{}}
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClientWritesPending = pendingWrites
	capabilities.MaximumPacketSize = protocol.MaxWire + packetRoom
	capabilities.MaximumSessionExpiryInterval = 0
	capabilities.MaximumQos = 1
	capabilities.RetainAvailable = 0
	capabilities.WildcardSubAvailable = 0
	capabilities.SharedSubAvailable = 0
	b.server = mqtt.New(&mqtt.Options{Capabilities: capabilities, InlineClient: true, Logger: quiet(o.Log)})
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("set up MQTT: %w", err), tcp.Close())
	}
	if err := b.server.AddListener(newListener(tcp, o.TLS, o.Log, b.forget)); err != nil {
		return nil, errors.Join(fmt.Errorf("set up MQTT: %w", err), tcp.Close())
	}
	return b, nil
}

// quiet lowers the broker library's own messages to debug: agents come and go all day.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(lowered{log.Handler()}) }

type lowered struct{ slog.Handler }

func (h lowered) Enabled(ctx context.Context, _ slog.Level) bool {
	return h.Handler.Enabled(ctx, slog.LevelDebug)
}

func (h lowered) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return h.Handler.Handle(ctx, r)
}

// Addr is the address of the port.
func (b *Broker) Addr() net.Addr { return b.listener.Addr() }

// Run serves until ctx ends, then closes every connection.
func (b *Broker) Run(ctx context.Context) error {
	b.mu.Lock()
	b.ctx = ctx
	b.mu.Unlock()
	if err := b.server.Serve(); err != nil {
		return fmt.Errorf("serve MQTT: %w", err)
	}
	tick := time.NewTicker(allowEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return b.server.Close()
		case <-tick.C:
			b.recheck(ctx)
		}
	}
}

// recheck closes the connections of agents that are allowed no more.
func (b *Broker) recheck(ctx context.Context) {
	for _, s := range b.live() {
		if err := b.opt.Allow(ctx, s.origin, s.cert); err != nil && ctx.Err() == nil {
			b.opt.Log.Warn("agent is let in no more", "agent", s.origin.String(), "err", err)
			s.client.Stop(err)
		}
	}
}

func (b *Broker) live() map[net.Conn]session {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.sessions)
}

// Announce hints at a feed's new version to the chain's agents that are connected here.
func (b *Broker) Announce(chain string, news protocol.News) error {
	payload, err := json.Marshal(news)
	if err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return b.server.Publish(protocol.NewsTopic(chain), payload, false, 0)
}

// Disconnect closes the live connections of an agent.
func (b *Broker) Disconnect(from protocol.Origin) {
	for _, s := range b.live() {
		if s.origin == from {
			s.client.Stop(errors.New("disconnected by the relay"))
		}
	}
}

// A Client is a connected agent.
type Client struct {
	Origin protocol.Origin `json:"origin"`
	Since  time.Time       `json:"since"`
}

// Clients are the connected agents, in the order of their names.
func (b *Broker) Clients() []Client {
	var list []Client
	for _, s := range b.live() {
		list = append(list, Client{s.origin, s.since})
	}
	slices.SortFunc(list, func(x, y Client) int { return strings.Compare(x.Origin.String(), y.Origin.String()) })
	return list
}

// running is Run's context; the background before.
func (b *Broker) running() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx == nil {
		return context.Background()
	}
	return b.ctx
}

func (b *Broker) session(client *mqtt.Client) (session, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.sessions[client.Net.Conn]
	return s, ok
}

// forget ends a connection's session, if it had one.
func (b *Broker) forget(conn net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.sessions, conn)
}

// A hook is what the broker library calls, in the connection's own goroutine.
type hook struct {
	mqtt.HookBase
	b *Broker
}

// ID implements mqtt.Hook.
func (h *hook) ID() string { return "storelay" }

// Provides implements mqtt.Hook.
func (h *hook) Provides(b byte) bool {
	return slices.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnPacketRead, mqtt.OnPublish}, b)
}

// OnConnectAuthenticate implements mqtt.Hook: the certificate says who it is.
func (h *hook) OnConnectAuthenticate(client *mqtt.Client, pk packets.Packet) bool {
	s, err := h.identify(client, pk)
	if err != nil {
		h.b.opt.Log.Warn("agent is not let in", "from", client.Net.Remote, "agent", s.origin.String(), "err", err)
		return false
	}
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	h.b.sessions[client.Net.Conn] = s
	return true
}

func (h *hook) identify(client *mqtt.Client, pk packets.Packet) (session, error) {
	conn, ok := client.Net.Conn.(*tls.Conn)
	if !ok || len(conn.ConnectionState().PeerCertificates) == 0 {
		return session{}, errors.New("no client certificate")
	}
	s := session{client: client, cert: conn.ConnectionState().PeerCertificates[0], since: time.Now()}
	var err error
	if s.origin, err = identity.OriginOf(s.cert); err != nil {
		return s, err
	}
	digits, ok := strings.CutPrefix(client.ID, s.origin.Agent)
	if !ok || len(digits) != idDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return s, fmt.Errorf("client id %q is not the agent's id and %d hex digits", client.ID, idDigits)
	}
	switch c := pk.Connect; {
	case pk.ProtocolVersion != 4:
		return s, fmt.Errorf("MQTT protocol level %d, want 4 (MQTT 3.1.1)", pk.ProtocolVersion)
	case c.WillFlag:
		return s, errors.New("a will is not taken")
	case !c.Clean:
		return s, errors.New("want a clean session")
	case c.Keepalive == 0 || c.Keepalive > maxKeepAlive:
		return s, fmt.Errorf("keep alive of %d s, want 1 to %d", c.Keepalive, maxKeepAlive)
	}
	return s, h.b.opt.Allow(h.b.running(), s.origin, s.cert)
}

// OnACLCheck implements mqtt.Hook: an agent's own topics and its chain's news, nothing else.
// A publish elsewhere ends the connection, since MQTT 3.1.1 could not tell the agent.
func (h *hook) OnACLCheck(client *mqtt.Client, topic string, write bool) bool {
	s, ok := h.b.session(client)
	if ok && write && (topic == s.origin.RecordTopic() || topic == s.origin.AskTopic()) {
		return true
	}
	if ok && !write && (topic == s.origin.DownTopic() || topic == protocol.NewsTopic(s.origin.Chain)) {
		return true
	}
	h.b.opt.Log.Warn("topic refused", "agent", s.origin.String(), "topic", topic, "publish", write)
	if write {
		client.Stop(packets.ErrNotAuthorized)
	}
	return false
}

// OnPacketRead implements mqtt.Hook: what the contract does not know ends the connection.
// The library passes over any error but ErrRejectPacket.
func (h *hook) OnPacketRead(_ *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Publish && (pk.FixedHeader.Qos > 1 || pk.FixedHeader.Retain) {
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// OnPublish implements mqtt.Hook: it hands the payload to the ledger and returns after the
// commit, so that the PUBACK follows it. When the ledger fails there is no PUBACK and the
// connection ends: the agent sends again, here or elsewhere.
func (h *hook) OnPublish(client *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if client.Net.Inline {
		return pk, nil
	}
	s, ok := h.b.session(client)
	if !ok {
		return pk, packets.ErrRejectPacket
	}
	topic := link.TopicRecords
	if pk.TopicName == s.origin.AskTopic() {
		topic = link.TopicAsk
	}
	answer, err := h.b.receiver.Handle(h.b.running(), s.origin, client.ID, topic, pk.Payload)
	if err == nil && answer != nil {
		err = client.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: s.origin.DownTopic(), Payload: answer,
		})
	}
	if err != nil {
		h.b.opt.Log.Warn("agent is let go", "agent", s.origin.String(), "err", err)
		client.Stop(err)
		return pk, packets.ErrRejectPacket
	}
	return pk, packets.CodeSuccessIgnore
}
