// Package core is the relay: it wires the door for agents to the ledger, and the ledger to
// the connectors, the open API and the pages. The main package adds flags and sub-commands;
// tests run the same core.
package core

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/api"
	"github.com/storelay/storelay/relay/broker"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/web"
)

// serverValidity is how long the relay's own certificate is valid; it is issued anew at each
// start.
const serverValidity = 825 * 24 * time.Hour

// Options are what the main package or a test passes in.
type Options struct {
	Version string
	Log     *slog.Logger
}

// A Relay is one relay process. New opens it, Run runs it once.
type Relay struct {
	cfg      Config
	log      *slog.Logger
	ledger   *ledger.Ledger
	denied   *ca.DenyList
	broker   *broker.Broker
	runners  []*connect.Runner
	handler  http.Handler
	listener net.Listener
	kept     sync.Map // certificates of agents that this process has kept: SHA-256 and whether expired
}

// New opens the ledger and the ports. On an error nothing is left open.
func New(ctx context.Context, cfg Config, o Options) (*Relay, error) {
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	authority, err := ca.Load(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("%w (`storelay-relay ca init` makes one)", err)
	}
	denied := ca.Denied(cfg.CA)
	if _, err := denied.All(); err != nil {
		return nil, err
	}
	led, err := ledger.Open(ctx, cfg.Database, ledger.Options{Log: o.Log, CA: authority})
	if err != nil {
		return nil, err
	}
	r := &Relay{cfg: cfg, log: o.Log, ledger: led, denied: denied}
	if err := r.wire(authority, o.Version); err != nil {
		return nil, errors.Join(err, led.Close())
	}
	return r, nil
}

// wire makes what stands on the ledger, and opens the ports last.
func (r *Relay) wire(authority *ca.CA, version string) error {
	var holder [8]byte
	if _, err := rand.Read(holder[:]); err != nil {
		return fmt.Errorf("name this relay: %w", err)
	}
	byChain := map[string][]connect.Config{}
	for _, c := range r.cfg.Connectors {
		secret, err := os.ReadFile(c.SecretFile)
		if err != nil {
			return fmt.Errorf("read secret of connector %s: %w", c.Name, err)
		}
		byChain[c.Chain] = append(byChain[c.Chain], *c.settings(string(secret)))
	}
	connectors := map[string]api.Connectors{}
	for chain, configs := range byChain {
		runner, err := connect.New(connect.Options{Ledger: r.ledger, Chain: chain, Holder: hex.EncodeToString(holder[:]), Log: r.log}, configs...)
		if err != nil {
			return fmt.Errorf("connectors of chain %s: %w", chain, err)
		}
		r.runners = append(r.runners, runner)
		connectors[chain] = runner
	}
	open := api.New(api.Options{Ledger: r.ledger, Connectors: connectors, Log: r.log, Version: version})
	pages := web.Handler(web.Options{})
	mux := http.NewServeMux()
	mux.Handle("/", open)
	mux.Handle("GET /{$}", pages)
	mux.Handle("GET /static/", pages)
	r.handler = mux

	server, err := authority.IssueServer(r.cfg.MQTT.Hosts, serverValidity)
	if err != nil {
		return err
	}
	r.broker, err = broker.New(broker.Options{Address: r.cfg.MQTT.Listen, TLS: authority.ServerTLS(server), Sink: r.ledger, Allow: r.allow, Log: r.log})
	if err != nil {
		return err
	}
	if r.listener, err = net.Listen("tcp", r.cfg.HTTP.Listen); err != nil {
		return fmt.Errorf("open API port: %w (another relay or program has it; set http.listen)", err)
	}
	return nil
}

// allow is the broker's question whether an agent may be connected. An agent that the ledger
// does not know has a valid certificate of ours: its row was lost in a restore, and the
// ledger makes it again; the deny list is apart from the ledger and knows who was revoked. The
// certificate is kept, since the agent signs its days with it.
func (r *Relay) allow(ctx context.Context, from protocol.Origin, cert *x509.Certificate) error {
	if denied, err := r.denied.Has(from); err != nil || denied {
		return cmp.Or(err, errors.New("the agent is revoked"))
	}
	state, err := r.ledger.AgentState(ctx, from)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return err
	}
	if state == ledger.AgentRevoked {
		return errors.New("the agent is revoked")
	}
	shown := struct {
		sha256  [sha256.Size]byte
		expired bool
	}{sha256.Sum256(cert.Raw), ca.Expired(cert, time.Now())}
	if _, known := r.kept.Load(shown); known {
		return nil
	}
	if err := r.ledger.KeepCertificate(ctx, from, cert); err != nil {
		return err
	}
	r.kept.Store(shown, true)
	return nil
}

// MQTTAddr and HTTPAddr are the addresses of the two ports.
func (r *Relay) MQTTAddr() net.Addr { return r.broker.Addr() }
func (r *Relay) HTTPAddr() net.Addr { return r.listener.Addr() }

// Run serves until ctx ends or a part fails for good. What agents were told is committed is.
func (r *Relay) Run(ctx context.Context) error {
	database, _, _ := strings.Cut(r.cfg.Database, ":") // the rest may hold a password
	r.log.Info("relay starts", "mqtt", r.MQTTAddr().String(), "http", r.HTTPAddr().String(), "database", database, "connectors", len(r.cfg.Connectors))
	// The ledger outlives everything that commits to it.
	ledgerCtx, stopLedger := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLedger()
	ledgerDone := make(chan struct{})
	var ledgerErr error // set before ledgerDone is closed
	go func() {
		ledgerErr = r.ledger.Run(ledgerCtx)
		close(ledgerDone)
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-ledgerDone:
			return errors.New("the ledger stopped, nothing more can be committed")
		}
	})
	g.Go(func() error { return r.broker.Run(ctx) })
	g.Go(func() error { return r.announce(ctx) })
	for _, runner := range r.runners {
		g.Go(func() error { return runner.Run(ctx) })
	}
	g.Go(func() error { return r.serve(ctx) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil // told to stop
	}
	stopLedger()
	<-ledgerDone
	err = errors.Join(err, ledgerErr, r.ledger.Close())
	r.log.Info("relay stopped", "err", err)
	return err
}

// announce passes the ledger's news on to the agents that are connected here.
func (r *Relay) announce(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case news := <-r.ledger.News():
			if err := r.broker.Announce(news.Chain, news.News); err != nil {
				r.log.Warn("news not announced, agents ask by themselves", "feed", news.Feed, "err", err)
			}
		}
	}
}

// serve answers API and pages until ctx ends.
func (r *Relay) serve(ctx context.Context) error {
	server := &http.Server{Handler: r.handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }} // event streams end with ctx
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()
	var err error
	if r.cfg.HTTP.Cert != "" {
		err = server.ServeTLS(r.listener, r.cfg.HTTP.Cert, r.cfg.HTTP.Key)
	} else {
		err = server.Serve(r.listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return <-stopped
}
