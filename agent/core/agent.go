// Package core is the agent: it wires devices and tills to the journal and the journal to
// the relay. The main package adds flags and service control; tests and simulations run the
// same core.
package core

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/catalog"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/mqtt"
)

// Options are what the main package or a test passes in.
type Options struct {
	Version string
	Log     *slog.Logger
	Now     func() time.Time // nil: the system's clock

	// A simulation drives the agent by hand: nothing listens, no goroutine runs, and what is
	// accepted is on its disk when the call returns. It uses Handler, Host, Sender, RollOver
	// and Close, and not Run.
	Inline bool
	Disk   journal.Disk         // of the journal; nil: the system's own
	Index  *journal.MemoryIndex // of the journal; nil: Badger
	Mono   func() time.Duration // since boot
	BootID string
	Random io.Reader   // for epochs
	Jitter rand.Source // of the link

	// Sizes for runs of minutes that stand for weeks; 0: the journal's and the link's own.
	SegmentBytes, ReserveBytes int64
	RetainFor                  time.Duration
	FeedEvery                  time.Duration
}

// An Agent is one store PC's agent. New opens it, Run runs it once.
type Agent struct {
	cfg      Config
	version  string
	log      *slog.Logger
	now      func() time.Time
	started  time.Time
	origin   protocol.Origin
	tls      *tls.Config
	signer   *signer
	clock    *clock
	aside    []string // folders of former agents' journals
	journal  *journal.Journal
	sender   *link.Sender
	rejects  *rejectFolder
	devices  []*device
	settings atomic.Pointer[settings]
	handler  http.Handler
	listener net.Listener
}

// settings are what head office has said of the store, or the configuration file until then.
type settings struct {
	store protocol.Store
	rule  protocol.DayRule
	told  bool // by head office
}

// New reads the identity, opens the journal and the local port. On an error nothing is left
// open.
func New(cfg Config, o Options) (*Agent, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &Agent{cfg: cfg, version: o.Version, log: o.Log, now: o.Now, started: o.Now()}
	var err error
	if a.origin, a.tls, err = identity.Load(cfg.Identity); err != nil {
		return nil, err
	}
	a.log = o.Log.With("store", a.origin.Store, "agent", a.origin.Agent)
	if a.rejects, err = openRejects(filepath.Join(cfg.Data, "rejected"), o.Now); err != nil {
		return nil, err
	}
	if a.signer, err = newSigner(a.origin, a.tls); err != nil {
		return nil, err
	}
	if o.Mono == nil {
		o.BootID, o.Mono = boot()
	}
	if a.clock, err = openClock(filepath.Join(cfg.Data, "clock"), o.Now, o.Mono, o.BootID); err != nil {
		return nil, err
	}
	a.tls.Time = a.clock.validity
	if !o.Inline {
		if a.aside, err = setAside(cfg.Data, a.origin, o.Now, a.log); err != nil {
			return nil, err
		}
	}
	a.journal, err = journal.Open(journal.Options{
		Dir: journalDir(cfg.Data), Origin: a.origin, BootID: o.BootID, Mono: o.Mono, Now: o.Now, Log: a.log,
		Versions: map[string]string{"agent": o.Version}, Random: o.Random, Remark: a.signer.remark,
		Disk: o.Disk, Index: o.Index, Inline: o.Inline,
		SegmentBytes: o.SegmentBytes, ReserveBytes: o.ReserveBytes, RetainFor: o.RetainFor,
	})
	if err != nil {
		return nil, err
	}
	if err := a.wire(o); err != nil {
		return nil, errors.Join(err, a.journal.Close())
	}
	return a, nil
}

// wire makes what stands on the journal.
func (a *Agent) wire(o Options) error {
	if err := a.readSettings(); err != nil {
		return err
	}
	if o.Jitter == nil {
		o.Jitter = rand.NewPCG(rand.Uint64(), rand.Uint64())
	}
	a.sender = link.NewSender(a.journal, replica{a.journal, a}, []string{protocol.FeedConfig},
		link.Options{Version: a.version, Now: a.now, RelayTime: a.heardTime, FeedEvery: o.FeedEvery}, rand.New(o.Jitter))
	registry := catalog.Registry()
	for _, d := range a.cfg.Devices {
		entry := registry[d.Driver]
		driver, err := entry.New(spec(d), serialport.Open)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.ID, err)
		}
		a.devices = append(a.devices, &device{agent: a, spec: d, class: entry.Class, driver: driver})
	}
	a.handler = till.NewHandler(till.Options{
		Agent: a, Store: a.origin.Store, Rule: func() protocol.DayRule { return a.settings.Load().rule },
		Token: a.workstation, Now: a.now, Log: a.log,
	})
	if o.Inline {
		return nil
	}
	var err error
	a.listener, err = net.Listen("tcp", a.cfg.Listen)
	if err != nil {
		return fmt.Errorf("open local API: %w (another agent or program has the port; set `listen` in the configuration)", err)
	}
	return nil
}

// Addr is the address of the local API.
func (a *Agent) Addr() net.Addr { return a.listener.Addr() }

// Handler is the local API for the tills.
func (a *Agent) Handler() http.Handler { return a.handler }

// Sender is the agent's half of the link.
func (a *Agent) Sender() *link.Sender { return a.sender }

// Host is what the driver of a configured device runs on.
func (a *Agent) Host(id string) (drivers.Host, bool) {
	for _, d := range a.devices {
		if d.spec.ID == id {
			return d, true
		}
	}
	return nil, false
}

// Journal is the agent's durable stream.
func (a *Agent) Journal() *journal.Journal { return a.journal }

// Close ends an agent that does not Run.
func (a *Agent) Close() error { return a.journal.Close() }

// heardTime takes the relay's time out of a welcome.
func (a *Agent) heardTime(at time.Time) {
	if err := a.clock.told(at); err != nil {
		a.log.Warn("the relay's time is not kept for the next start", "err", err)
	}
	if skew := a.clock.Skew(); skew != 0 {
		a.log.Warn("this PC's clock is wrong; set it, or look at its battery", "ahead", skew.String())
	}
}

// Run serves until ctx ends or a part fails for good. What was accepted is flushed before it
// returns.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("agent starts", "version", a.version, "listen", a.Addr().String(), "relays", a.cfg.Relays, "devices", len(a.devices))
	// The journal outlives everything that writes to it.
	journalCtx, stopJournal := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJournal()
	journalDone := make(chan struct{})
	var journalErr error // set before journalDone is closed
	go func() {
		journalErr = a.journal.Run(journalCtx)
		close(journalDone)
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-journalDone:
			return errors.New("the journal stopped, nothing more can be accepted")
		}
	})
	if _, err := a.RollOver(ctx); err != nil { // before any other record
		a.log.Error("days are not marked, will be tried again", "err", err)
	}
	g.Go(func() error { return a.keepDays(ctx) })
	for _, d := range a.devices {
		g.Go(func() error {
			return drivers.Supervise(ctx, d.spec.ID, d.driver, d, drivers.Options{Driver: d.spec.Driver, Class: d.class})
		})
	}
	g.Go(func() error { return link.Keep(ctx, a.dial, a.cfg.Relays, a.sender, link.KeepOptions{Log: a.log}) })
	g.Go(func() error { return a.serve(ctx) })
	err := g.Wait()
	stopJournal()
	<-journalDone
	err = errors.Join(ignoreDone(err), journalErr, a.journal.Close())
	a.log.Info("agent stopped", "err", err)
	return err
}

// ignoreDone drops the error of having been told to stop.
func ignoreDone(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// A dialler connects to a relay.
type dialler func(ctx context.Context, relay string) (link.Conn, error)

// dialler connects as an agent, through the proxy if there is one.
func (c *Config) dialler(origin protocol.Origin, settings *tls.Config) dialler {
	return func(ctx context.Context, relay string) (link.Conn, error) {
		return mqtt.Dial(ctx, mqtt.Options{URL: relay, TLS: settings, Proxy: c.proxy(), Origin: origin})
	}
}

func (a *Agent) dial(ctx context.Context, relay string) (link.Conn, error) {
	conn, err := a.cfg.dialler(a.origin, a.tls)(ctx, relay)
	if err != nil {
		a.clock.failed()
	}
	return conn, err
}

// serve answers the tills until ctx ends.
func (a *Agent) serve(ctx context.Context) error {
	server := &http.Server{Handler: a.handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	}()
	if err := server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve local API: %w", err)
	}
	return <-stopped
}

// workstation is the till whose token it is. The digests are compared, so that the time it
// takes says nothing about a token.
func (a *Agent) workstation(token string) (string, bool) {
	digest := sha256.Sum256([]byte(token))
	for _, t := range a.cfg.Tills {
		if sha256.Sum256([]byte(t.Token)) == digest {
			return t.Workstation, true
		}
	}
	return "", false
}

// A replica is the journal as the link's Replica: when the config feed has moved, the agent
// reads its settings again.
type replica struct {
	*journal.Journal
	agent *Agent
}

// Apply implements link.Replica.
func (r replica) Apply(page protocol.FeedPage) error {
	if err := r.Journal.Apply(page); err != nil || page.Feed != protocol.FeedConfig {
		return err
	}
	return r.agent.readSettings()
}

// readSettings takes what head office said of the store from the replica, or else what the
// configuration file says, or else the PC's own zone.
func (a *Agent) readSettings() error {
	change, told, err := a.journal.Lookup(protocol.FeedConfig, protocol.StoreKey)
	if err != nil {
		return err
	}
	s := settings{store: protocol.Store{ID: a.origin.Store, Zone: a.cfg.Zone, CutOff: a.cfg.CutOff}, told: told}
	if told {
		if s.store, err = protocol.DecodeStore(change.Body); err != nil {
			return fmt.Errorf("read settings of head office: %w", err)
		}
	}
	if s.store.Zone == "" {
		s.rule = protocol.DayRule{Zone: time.Local}
	} else if s.rule, err = s.store.Rule(); err != nil {
		return fmt.Errorf("read settings of the store: %w", err)
	}
	a.settings.Store(&s)
	return nil
}

func spec(d Device) drivers.Spec {
	return drivers.Spec{ID: d.ID, Driver: d.Driver, Port: d.Port, Settings: d.Settings}
}
