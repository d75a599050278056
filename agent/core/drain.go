package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/protocol/link"
)

const (
	asidePrefix   = "journal-of-" // a former agent's journal
	drainedSuffix = ".drained"    // then the incarnation of the ledger that it was delivered to: .drained-1
)

func journalDir(data string) string { return filepath.Join(data, "journal") }

// AsideFolder is where the journal of a former agent is set aside.
func AsideFolder(data string, owner protocol.Origin, at time.Time) string {
	return filepath.Join(data, fmt.Sprintf("%s%s-%s-%s", asidePrefix, owner.Store, owner.Agent, at.UTC().Format("20060102T150405")))
}

// setAside moves the journal of another agent out of the way: this PC was given a new
// identity. What it holds is delivered by Drain.
func setAside(data string, origin protocol.Origin, now func() time.Time, log *slog.Logger) error {
	owner, err := journal.Owner(journalDir(data))
	if err != nil || owner == origin {
		return nil //nolint:nilerr // the journal itself says what is wrong when it is opened
	}
	to := AsideFolder(data, owner, now())
	if err := os.Rename(journalDir(data), to); err != nil {
		return fmt.Errorf("set aside the journal of %s: %w", owner, err)
	}
	log.Warn("this PC has a new identity; the journal of the one before is set aside: `storelay-agent drain` delivers it", "former", owner.String(), "folder", to)
	return nil
}

// An Aside is a former agent's journal that waits for `storelay-agent drain`.
type Aside struct {
	Folder string `json:"folder"`
	Why    string `json:"why"`
}

// asideOf lists what waits to be drained: what was never delivered, and what was delivered
// before the ledger was restored. That ledger may lack it, and nobody else on this PC would
// send it again. The folder's name remembers the incarnation, so that it holds for as long as
// the folder is there, whatever becomes of the agent.
func asideOf(data string, incarnation int64) (list []Aside) {
	for _, dir := range folders(data) {
		switch at, drained := drainedAt(dir); {
		case !drained:
			list = append(list, Aside{dir, "it was never delivered: run `storelay-agent drain`"})
		case at < incarnation:
			list = append(list, Aside{dir, fmt.Sprintf("it was delivered to incarnation %d of the ledger, which was restored since and has %d: run `storelay-agent drain` again", at, incarnation)})
		}
	}
	return list
}

// folders are all that were set aside, drained or not.
func folders(data string) []string {
	found, _ := filepath.Glob(filepath.Join(data, asidePrefix+"*")) // its one error is that of a bad pattern
	return found
}

// drainedAt is the incarnation of the ledger that a folder was delivered to; 0 when its name
// does not say.
func drainedAt(dir string) (incarnation int64, drained bool) {
	_, after, drained := strings.Cut(filepath.Base(dir), drainedSuffix)
	incarnation, err := strconv.ParseInt(strings.TrimPrefix(after, "-"), 10, 64)
	if err != nil {
		incarnation = 0
	}
	return incarnation, drained
}

// Drained marks a folder as delivered to an incarnation of the ledger.
func Drained(dir string, incarnation int64) error {
	dir = filepath.Clean(dir)
	name, _, _ := strings.Cut(filepath.Base(dir), drainedSuffix)
	to := filepath.Join(filepath.Dir(dir), fmt.Sprintf("%s%s-%d", name, drainedSuffix, incarnation))
	if to == dir {
		return nil
	}
	return os.Rename(dir, to)
}

// DrainProgress says how far Drain is. What waits means something only when the link is
// welcomed and not rewinding: before that a restored ledger has not said what it lacks.
type DrainProgress struct {
	Folder  string
	Of      protocol.Origin
	Waiting int64 // records
	Status  link.Status
}

// Drain delivers what former agents of this PC hold, under the present identity, into the
// relay's quarantine, and marks each folder as drained. It may run beside the agent. With no
// folder given it takes all that were ever set aside: of those that were drained already the
// relay is asked whether it still has everything, and is given what it lacks, as far as the
// journal retains it.
func Drain(ctx context.Context, cfg Config, o Options, dirs []string, tell func(DrainProgress)) error {
	origin, settings, err := identity.Load(cfg.Identity)
	if err != nil {
		return err
	}
	if len(dirs) == 0 {
		dirs = folders(cfg.Data)
	}
	dial := cfg.dialler(origin, settings)
	var errs []error // one folder that cannot be drained does not keep the others here
	for _, dir := range dirs {
		incarnation, err := drain(ctx, cfg, o, dir, dial, tell)
		if err == nil {
			err = Drained(dir, incarnation)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("drain %s: %w", dir, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// drain delivers one folder, and says to which incarnation of the ledger.
func drain(ctx context.Context, cfg Config, o Options, dir string, dial dialler, tell func(DrainProgress)) (incarnation int64, err error) {
	of, err := journal.Owner(dir)
	if err != nil {
		return 0, err
	}
	j, err := journal.Open(journal.Options{Dir: dir, Origin: of, Now: o.Now, Log: o.Log})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	sender := link.NewSender(Former(j, of), j, nil, link.Options{Version: o.Version}, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	kept := make(chan error, 1)
	go func() { kept <- link.Keep(ctx, dial, cfg.Relays, sender, link.KeepOptions{Log: o.Log}) }()
	incarnation, err = untilDelivered(ctx, j, sender, func(waiting int64, s link.Status) { tell(DrainProgress{dir, of, waiting, s}) })
	cancel()
	<-kept //nolint:errcheck // its error is that it was told to stop
	return incarnation, errors.Join(err, <-ran, j.Close())
}

func untilDelivered(ctx context.Context, j *journal.Journal, sender *link.Sender, tell func(waiting int64, s link.Status)) (incarnation int64, err error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		status := sender.Status()
		tell(j.Stats().Waiting, status)
		if Delivered(j, status) {
			return status.Incarnation, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// Delivered says that the relay has all of a journal, by a status of the link that was taken
// before. That nothing waits is no news before the relay has welcomed this connection: a
// ledger that was restored is asked then what it has, and all that it lacks waits once more.
func Delivered(j *journal.Journal, s link.Status) bool {
	return s.Welcomed && !s.Rewinding && j.Stats().Waiting == 0
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
