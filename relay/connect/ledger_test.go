package connect_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

const (
	chain = "demo"
	// seals is the number of positions before the first record of a test: each of its two
	// stores has an agent, whose epoch begins with a seal.
	seals = 2
)

var (
	day     = protocol.Day{Year: 2026, Month: 11, Date: 21}
	errAway = errors.New("the database is away")
)

// A testLedger is a real ledger on SQLite that a test can cut off.
type testLedger struct {
	*ledger.Ledger
	t testing.TB

	mu     sync.Mutex // guards what follows
	agents map[string]*agent
	stolen time.Time // until then every lease is another relay's
	down   bool
	loops  int // delivery loops that wait for news
}

type agent struct {
	origin protocol.Origin
	epoch  protocol.Epoch
	seq    uint64
	prev   protocol.Hash
}

func openLedger(t testing.TB) *testLedger {
	t.Helper()
	l, err := ledger.Open(context.Background(), "sqlite:"+filepath.Join(t.TempDir(), "relay.db"), ledger.Options{
		Now: func() time.Time { return time.Date(2026, 11, 21, 9, 15, 1, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ran
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	tl := &testLedger{Ledger: l, t: t, agents: map[string]*agent{}}
	for i, store := range []string{"0001", "0002"} {
		a := &agent{origin: protocol.Origin{Chain: chain, Store: store, Agent: fmt.Sprintf("pc-%d", i+1)}, epoch: protocol.Epoch(strings.Repeat(fmt.Sprintf("%da", i), 16))}
		a.prev = protocol.Genesis(chain, store, a.origin.Agent, a.epoch)
		tl.agents[store] = a
		tl.commit(store, protocol.KindSeal, `{"bootId":"b","before":null}`)
	}
	return tl
}

// commit commits records of one kind in one batch.
func (l *testLedger) commit(store string, kind protocol.Kind, bodies ...string) {
	l.t.Helper()
	a := l.agents[store]
	batch := protocol.Batch{Epoch: a.epoch, First: a.seq + 1, Prev: a.prev}
	for _, body := range bodies {
		a.seq++
		r := protocol.Record{Seq: a.seq, Kind: kind, At: "2026-11-21T10:15:00+01:00", Day: day, Body: []byte(body)}
		a.prev = r.Hash(a.prev)
		batch.Records = append(batch.Records, r)
	}
	answer, err := l.Commit(context.Background(), a.origin, batch)
	if err != nil || answer.Verdict != protocol.VerdictAck || answer.Through != a.seq {
		l.t.Fatalf("commit: %+v, %v, want an ack through %d", answer, err, a.seq)
	}
}

// sell commits n sales of a store.
func (l *testLedger) sell(store string, n int) {
	l.t.Helper()
	for n > 0 {
		var bodies []string
		first := l.agents[store].seq
		for i := range min(n, 500) {
			bodies = append(bodies, sale(store, first+uint64(i)+1))
		}
		l.commit(store, protocol.KindTransaction, bodies...)
		n -= len(bodies)
	}
}

func sale(store string, sequence uint64) string {
	return fmt.Sprintf(`{"store":"%s","workstation":"1","businessDay":"2026-11-21","sequenceNumber":%d,"type":"sale","begin":"2026-11-21T10:15:00+01:00","end":"2026-11-21T10:16:02+01:00","currency":"SEK","lines":[{"type":"sale","item":"<4711> & Söner","quantity":{"milli":1000},"extendedAmount":100}],"tenders":[{"type":"cash","amount":100}],"total":100}`, store, sequence)
}

// raise makes the ledger find out that it was restored from a backup: an agent has an ack
// for more than it knows.
func (l *testLedger) raise() {
	l.t.Helper()
	a := l.agents["0001"]
	w, err := l.Welcome(context.Background(), a.origin, protocol.Hello{
		Newest:      protocol.Position{Epoch: a.epoch, Seq: a.seq + 100},
		Incarnation: 1, LastAck: &protocol.Mark{Epoch: a.epoch, Through: a.seq + 100},
	})
	if err != nil || w.Incarnation != 2 {
		l.t.Fatalf("welcome %+v, %v, want incarnation 2", w, err)
	}
}

// cursor is the connector's durable cursor.
func (l *testLedger) cursor(connector string) ledger.Cursor {
	l.t.Helper()
	c, err := l.Ledger.Cursor(context.Background(), chain, connector)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// steal makes every lease another relay's, until then.
func (l *testLedger) steal(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stolen = until
}

// cut makes what the runner asks of the ledger fail, or work again.
func (l *testLedger) cut(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
}

func (l *testLedger) away() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return errAway
	}
	return nil
}

// waiting is the number of delivery loops.
func (l *testLedger) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.loops
}

func (l *testLedger) Moved(chain string) (<-chan struct{}, func()) {
	moved, stop := l.Ledger.Moved(chain)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loops++
	return moved, func() {
		stop()
		l.mu.Lock()
		defer l.mu.Unlock()
		l.loops--
	}
}

func (l *testLedger) Head(ctx context.Context, chain string) (int64, int64, error) {
	if err := l.away(); err != nil {
		return 0, 0, err
	}
	return l.Ledger.Head(ctx, chain)
}

func (l *testLedger) Records(ctx context.Context, chain string, after int64, limit int) ([]ledger.StoredRecord, error) {
	if err := l.away(); err != nil {
		return nil, err
	}
	return l.Ledger.Records(ctx, chain, after, limit)
}

func (l *testLedger) SaveCursor(ctx context.Context, chain, connector string, c ledger.Cursor) error {
	if err := l.away(); err != nil {
		return err
	}
	return l.Ledger.SaveCursor(ctx, chain, connector, c)
}

func (l *testLedger) Lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	if err := l.away(); err != nil {
		return false, err
	}
	l.mu.Lock()
	stolen := time.Now().Before(l.stolen)
	l.mu.Unlock()
	if stolen {
		return false, nil
	}
	return l.Ledger.Lease(ctx, name, holder, ttl)
}
