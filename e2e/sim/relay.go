package sim

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/ledger"
)

var errRelayDied = errors.New("the relay died")

// A relay is the ledger with the doors to it: what the broker and the API do beside it are a
// line or two here.
type relay struct {
	w        *world
	path     string
	up       bool
	ledger   *ledger.Ledger
	receiver *link.Receiver
	runner   *connect.Runner
	fails    string // the step of the next commit at which the relay dies
	dead     bool   // it has died within a call
	restores int
	backups  []backup
	due      time.Time // of the next round of the connector; zero = none is due
	denied   []protocol.Origin
	ca       *ca.CA
	kept     map[protocol.Origin]bool // whose certificates this run of the relay has kept

	incarnation int64 // newest seen; 0 = the next is taken as it is
	rises       int   // that are to be expected

	committed []committed // by the present ledger, in order
	doubtful  []committed // as it died
	promised  promises
}

// A backup is a copy of the ledger, and what the simulation knew of it.
type backup struct {
	path        string
	committed   int
	promised    promises
	incarnation int64
	settings    []protocol.Store
}

// promises are what agents were told is committed.
type promises struct {
	order []stream
	marks map[stream]mark
}

func (p *promises) set(s stream, m mark) {
	if _, known := p.marks[s]; !known {
		p.order = append(p.order, s)
	}
	p.marks[s] = m
}

func (p *promises) clone() promises {
	return promises{slices.Clone(p.order), maps.Clone(p.marks)}
}

// A stream is an epoch of an agent.
type stream struct {
	origin protocol.Origin
	epoch  protocol.Epoch
}

// A mark is how far a stream is committed.
type mark struct {
	through uint64
	hash    protocol.Hash
}

func newRelay(w *world) *relay {
	return &relay{w: w, path: filepath.Join(w.dir, "relay.db"), promised: promises{marks: map[stream]mark{}}}
}

func (r *relay) options() ledger.Options {
	return ledger.Options{Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return r.w.now }, CA: r.ca, Inline: true, Fail: r.fail}
}

// open starts the relay.
func (r *relay) open() error {
	if r.ca == nil {
		var err error
		if r.ca, err = openAuthority(filepath.Join(r.w.dir, "ca")); err != nil {
			r.w.fail("harness: authority: %v", err)
			return r.w.failed
		}
	}
	r.kept = map[protocol.Origin]bool{}
	l, err := ledger.Open(r.w.ctx(), "sqlite:"+r.path, r.options())
	if err != nil {
		r.w.fail("the relay does not start: %v", err)
		return r.w.failed
	}
	r.ledger, r.up, r.dead = l, true, false
	r.receiver = link.NewReceiver(sink{r})
	r.runner, err = connect.New(connect.Options{Ledger: mortal{l, r}, Chain: chain, Holder: "relay", Now: func() time.Time { return r.w.now },
		Random: r.w.random("connector", r.restores).Float64, Transport: r.w.receiver},
		connect.Config{Name: connector, Type: connect.TypeWebhook, URL: "http://erp.example/hook", Secret: secret,
			Kinds: []protocol.Kind{protocol.KindTransaction, protocol.KindFootfall}})
	if err != nil {
		r.w.fail("connector: %v", err)
		return r.w.failed
	}
	r.keepsPromises()
	r.deliverAt(r.w.now.Add(time.Second))
	return r.w.failed
}

// end closes the ledger when the run is over.
func (r *relay) end() error {
	if r.ledger == nil {
		return nil
	}
	return r.ledger.Close()
}

// die ends the relay and starts it again later.
func (r *relay) die(d time.Duration) {
	if !r.up {
		return
	}
	r.w.say("relay: dies")
	r.up, r.dead, r.fails = false, true, ""
	if err := r.ledger.Close(); err != nil { // what a dead process leaves is what was committed
		r.w.fail("relay: close: %v", err)
	}
	r.ledger = nil
	for _, e := range r.w.ends() {
		e.cut(errRelayDied)
	}
	r.w.in(d, r.start)
}

func (r *relay) start() {
	if r.up {
		return
	}
	r.w.say("relay: starts")
	_ = r.open() // it has failed the run
}

// fail is asked at each step of a commit.
func (r *relay) fail(step string) error {
	if r.dead {
		return errRelayDied
	}
	if r.fails != "" && r.fails == step {
		r.dead = true
		return fmt.Errorf("at %q: %w", step, errRelayDied)
	}
	return nil
}

// connector is the name of the one there is.
const connector = "erp"

// deliverEvery is how long commits gather for the connector.
const deliverEvery = 30 * time.Second

// steps are where KillRelay kills; "" = at once.
var steps = [...]string{"", ledger.StepBegin, ledger.StepWritten, ledger.StepCommitted}

// admits says whether the broker lets an agent in.
func (r *relay) admits(o protocol.Origin, cert *x509.Certificate) bool {
	if !r.up {
		return false
	}
	state, err := r.ledger.AgentState(r.w.ctx(), o)
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		r.w.fail("agent state: %v", err)
	}
	if state == ledger.AgentRevoked {
		return false
	}
	if !r.kept[o] {
		if err := r.ledger.KeepCertificate(r.w.ctx(), o, cert); err != nil {
			r.w.fail("keep certificate: %v", err)
		}
		r.kept[o] = true
	}
	return true
}

// handle is the broker's publish hook.
func (r *relay) handle(e *end, id string, topic link.Topic, payload []byte) ([]byte, error) {
	if !r.up {
		return nil, errRelayDied
	}
	answer, err := r.receiver.Handle(r.w.ctx(), e.origin, id, topic, payload)
	if r.dead { // it died in the middle; what it said before that is on its way
		r.w.in(0, func() { r.die(3 * time.Minute) })
	}
	if err != nil {
		return nil, err
	}
	if topic == link.TopicRecords {
		r.deliverAt(r.w.now.Add(deliverEvery))
	}
	return answer, nil
}

// putStore is what head office does through the API.
func (r *relay) putStore(s protocol.Store) error {
	if err := r.ledger.PutStore(r.w.ctx(), chain, s); err != nil {
		r.w.fail("put store: %v", err)
		return r.w.failed
	}
	for {
		select {
		case news := <-r.ledger.News():
			payload := mustJSON(news.News)
			for _, e := range r.w.ends() {
				e.travel(func() { e.down(link.TopicNews, payload) })
			}
			continue
		default:
		}
		return nil
	}
}

func (r *relay) register(o protocol.Origin) error {
	if err := r.ledger.RegisterAgent(r.w.ctx(), o); err != nil {
		r.w.fail("register: %v", err)
	}
	return r.w.failed
}

// deliverAt lets the connector deliver.
func (r *relay) deliverAt(t time.Time) {
	if !r.due.IsZero() && !t.Before(r.due) {
		return
	}
	r.due = t
	r.w.at(t, func() {
		if !r.due.Equal(t) {
			return
		}
		r.due = time.Time{}
		if !r.up {
			return
		}
		next, err := r.runner.Round(r.w.ctx())
		switch {
		case r.dead:
			r.die(3 * time.Minute)
		case err != nil:
			r.w.fail("connector: %v", err)
		case !next.IsZero():
			r.deliverAt(next)
		}
	})
}

// undelivered says what the connector has not delivered.
func (r *relay) undelivered() string {
	if !r.up {
		return "the relay does not run"
	}
	states, err := r.runner.States(r.w.ctx())
	if err != nil {
		return err.Error()
	}
	if s := states[0]; s.Lag > 0 || s.DeadLetters > 0 {
		return fmt.Sprintf("the connector lags: %+v", s)
	}
	return ""
}

// replay delivers the dead letters once more, as a person does when the receiver is well again.
func (r *relay) replay() {
	if !r.up {
		return
	}
	letters, err := r.runner.DeadLetters(r.w.ctx(), connector)
	if err != nil {
		r.w.fail("dead letters: %v", err)
	}
	for _, d := range letters {
		r.w.say("connector: dead letter %d is delivered again: %s", d.Pos, d.Reason)
		if err := r.runner.Replay(r.w.ctx(), connector, d.Pos); err != nil {
			r.w.fail("dead letter %d: %v", d.Pos, err)
		}
	}
}

// copyNow makes a backup.
func (r *relay) copyNow() {
	if !r.up {
		return
	}
	b := backup{path: filepath.Join(r.w.dir, fmt.Sprintf("backup-%d.db", len(r.backups))), committed: len(r.committed), promised: r.promised.clone(), incarnation: r.incarnation}
	for _, s := range r.w.stores {
		b.settings = append(b.settings, s.settings)
	}
	if err := r.ledger.Backup(r.w.ctx(), b.path); err != nil {
		r.w.fail("backup: %v", err)
		return
	}
	r.w.say("relay: backup %d, %d commits", len(r.backups), b.committed)
	r.backups = append(r.backups, b)
}

// restore puts the newest backup in place: by the command, or unnoticed, by a copied file.
func (r *relay) restore(unnoticed bool, d time.Duration) {
	if len(r.backups) == 0 || !r.up {
		return
	}
	b := r.backups[len(r.backups)-1]
	r.w.say("relay: backup %d is restored, unnoticed: %v; %d of %d commits", len(r.backups)-1, unnoticed, b.committed, len(r.committed))
	r.die(d)
	r.restores++
	r.rises++
	r.committed, r.doubtful, r.promised = r.committed[:b.committed:b.committed], nil, b.promised.clone()
	for i, s := range r.w.stores {
		s.settings = b.settings[i]
	}
	if !unnoticed {
		if _, err := ledger.Restore(r.w.ctx(), "sqlite:"+r.path, b.path, r.denied, ledger.Options{Log: slog.New(slog.DiscardHandler), Now: r.options().Now, Inline: true}); err != nil {
			r.w.fail("restore: %v", err)
		}
		return
	}
	if b.incarnation != r.incarnation { // agents that have seen a higher one wait, and say so
		r.incarnation = b.incarnation
		r.rises++
		r.w.in(d+20*time.Minute, r.lookAtAlarms)
	}
	data, err := os.ReadFile(b.path)
	for _, suffix := range []string{"-wal", "-shm"} {
		if gone := os.Remove(r.path + suffix); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	if err = errors.Join(err, os.WriteFile(r.path, data, 0o600)); err != nil {
		r.w.fail("restore: %v", err)
	}
}

// lookAtAlarms is somebody who does what the alarm about an older ledger asks for.
func (r *relay) lookAtAlarms() {
	r.w.in(20*time.Minute, r.lookAtAlarms)
	if !r.up {
		return
	}
	alarms, err := r.ledger.Alarms(r.w.ctx(), chain)
	_, stands, headErr := r.ledger.Head(r.w.ctx(), chain) // it may be raised already, and no agent there to hear
	if err = errors.Join(err, headErr); err != nil {
		r.w.fail("alarms: %v", err)
	}
	for _, a := range alarms {
		var seen int64
		_, after, found := strings.Cut(a.Detail, "-above ")
		if _, err := fmt.Sscan(after, &seen); a.Kind != ledger.AlarmOlderLedger || !found || err != nil || seen <= max(r.incarnation, stands) {
			continue
		}
		r.w.say("relay: is raised above %d: %s", seen, a.Detail)
		r.rises++
		if _, err := r.ledger.Raise(r.w.ctx(), seen); err != nil {
			r.w.fail("raise: %v", err)
		}
		return
	}
}

// A mortal ledger is the connector's: it fails once the relay has died.
type mortal struct {
	*ledger.Ledger
	r *relay
}

// SaveCursor implements connect.Ledger.
func (m mortal) SaveCursor(ctx context.Context, chain, connector string, c ledger.Cursor) error {
	if m.r.dead {
		return errRelayDied
	}
	return m.Ledger.SaveCursor(ctx, chain, connector, c)
}

// AddDeadLetter implements connect.Ledger.
func (m mortal) AddDeadLetter(ctx context.Context, chain string, d ledger.DeadLetter, next ledger.Cursor) error {
	if m.r.dead {
		return errRelayDied
	}
	return m.Ledger.AddDeadLetter(ctx, chain, d, next)
}

// Records implements connect.Ledger.
func (m mortal) Records(ctx context.Context, chain string, after int64, limit int) ([]ledger.StoredRecord, error) {
	if m.r.dead {
		return nil, errRelayDied
	}
	return m.Ledger.Records(ctx, chain, after, limit)
}
