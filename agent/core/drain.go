package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/protocol/link"
)

const (
	asidePrefix   = "journal-of-" // a former agent's journal, not delivered yet
	drainedSuffix = ".drained"
)

func journalDir(data string) string { return filepath.Join(data, "journal") }

// setAside moves the journal of another agent out of the way: this PC was given a new
// identity. What it holds is delivered by Drain. It returns the folders that wait for that.
func setAside(data string, origin protocol.Origin, now func() time.Time, log *slog.Logger) ([]string, error) {
	owner, err := journal.Owner(journalDir(data)) // on an error the journal itself says what is wrong
	if err == nil && owner != origin {
		to := filepath.Join(data, fmt.Sprintf("%s%s-%s-%s", asidePrefix, owner.Store, owner.Agent, now().UTC().Format("20060102T150405")))
		if err := os.Rename(journalDir(data), to); err != nil {
			return nil, fmt.Errorf("set aside the journal of %s: %w", owner, err)
		}
		log.Warn("this PC has a new identity; the journal of the one before is set aside: `storelay-agent drain` delivers it", "former", owner.String(), "folder", to)
	}
	return waiting(data)
}

// waiting are the folders that were set aside and not drained.
func waiting(data string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(data, asidePrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("look for journals set aside: %w", err)
	}
	return slices.DeleteFunc(found, func(dir string) bool { return filepath.Ext(dir) == drainedSuffix }), nil
}

// DrainProgress says how far Drain is.
type DrainProgress struct {
	Folder  string
	Of      protocol.Origin
	Waiting int64 // records
	Status  link.Status
}

// Drain delivers what former agents of this PC hold, under the present identity, into the
// relay's quarantine, and marks each folder as drained. It may run beside the agent. With no
// folder given it takes all that were set aside.
func Drain(ctx context.Context, cfg Config, o Options, folders []string, tell func(DrainProgress)) error {
	origin, settings, err := identity.Load(cfg.Identity)
	if err != nil {
		return err
	}
	if len(folders) == 0 {
		if folders, err = waiting(cfg.Data); err != nil {
			return err
		}
	}
	dial := cfg.dialler(origin, settings)
	for _, dir := range folders {
		if err := drain(ctx, cfg, o, dir, dial, tell); err != nil {
			return fmt.Errorf("drain %s: %w", dir, err)
		}
		if err := os.Rename(dir, dir+drainedSuffix); err != nil {
			return fmt.Errorf("drain %s: %w", dir, err)
		}
	}
	return nil
}

func drain(ctx context.Context, cfg Config, o Options, dir string, dial dialler, tell func(DrainProgress)) error {
	of, err := journal.Owner(dir)
	if err != nil {
		return err
	}
	j, err := journal.Open(journal.Options{Dir: dir, Origin: of, Now: o.Now, Log: o.Log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	sender := link.NewSender(Former(j, of), j, nil, link.Options{Version: o.Version}, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	kept := make(chan error, 1)
	go func() { kept <- link.Keep(ctx, dial, cfg.Relays, sender, link.KeepOptions{Log: o.Log}) }()
	err = untilDelivered(ctx, j, func(waiting int64) {
		tell(DrainProgress{dir, of, waiting, sender.Status()})
	})
	cancel()
	<-kept // its error is that it was told to stop
	return errors.Join(err, <-ran, j.Close())
}

func untilDelivered(ctx context.Context, j *journal.Journal, tell func(waiting int64)) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		waiting := j.Stats().Waiting
		tell(waiting)
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Former is the journal of another agent, of, as a Source for the agent that delivers it:
// each batch says whose it is.
func Former(j *journal.Journal, of protocol.Origin) link.Source { return former{j, of} }

type former struct {
	*journal.Journal
	of protocol.Origin
}

// Read implements link.Source.
func (f former) Read(from protocol.Position, maxRecords, maxBytes int) (protocol.Batch, error) {
	b, err := f.Journal.Read(from, maxRecords, maxBytes)
	b.Of = &f.of
	return b, err
}

// LastAck implements link.Source: what a former agent's acks say means nothing to a relay
// that knows this connection as another agent's; it would take its own ledger for restored.
// The incarnation is kept: a ledger that was restored gets everything again.
func (f former) LastAck() (*protocol.Mark, int64) {
	_, incarnation := f.Journal.LastAck()
	return nil, incarnation
}

// Fork implements link.Source: records that are delivered for another agent have no stream
// to fork.
func (f former) Fork(reason string) error {
	return fmt.Errorf("the relay has other records of %s under these numbers: %s", f.of, reason)
}
