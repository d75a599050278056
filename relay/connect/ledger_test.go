package connect_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

const chain = "demo"

// memory is a ledger in memory.
type memory struct {
	mu          sync.Mutex // guards what follows
	incarnation int64
	base        int64 // position before the first record
	records     []ledger.StoredRecord
	cursors     map[string]ledger.Cursor
	letters     []ledger.DeadLetter
	leases      map[string]lease
	moved       map[chan struct{}]bool
	down        bool // every call fails
}

type lease struct {
	holder string
	until  time.Time
}

func openLedger(testing.TB) *memory {
	return &memory{incarnation: 1, cursors: map[string]ledger.Cursor{}, leases: map[string]lease{}, moved: map[chan struct{}]bool{}}
}

// add commits one record of the kind and store.
func (m *memory) add(kind protocol.Kind, store string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := int64(len(m.records)) + 1
	m.records = append(m.records, ledger.StoredRecord{
		Pos: m.base + n, Store: store, Agent: "pc-1", Epoch: protocol.Epoch(strings.Repeat("0a", 16)), Seq: uint64(n), Kind: kind,
		At: "2026-11-21T10:15:00+01:00", Day: protocol.Day{Year: 2026, Month: 11, Date: 21}, Number: n,
		Received: time.Date(2026, 11, 21, 9, 15, 1, 0, time.UTC), Body: []byte(fmt.Sprintf(`{"text":"<&>","n":%d}`, n)),
	})
	for ch := range m.moved {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return m.base + n
}

func (m *memory) sell(n int) {
	for range n {
		m.add(protocol.KindTransaction, "0001")
	}
}

// breakDown makes every call fail until it is called with false.
func (m *memory) breakDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func (m *memory) lock() error {
	m.mu.Lock()
	if m.down {
		m.mu.Unlock()
		return fmt.Errorf("the database is away")
	}
	return nil
}

func (m *memory) Head(context.Context, string) (int64, int64, error) {
	if err := m.lock(); err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	return m.base + int64(len(m.records)), m.incarnation, nil
}

func (m *memory) Moved(string) (<-chan struct{}, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan struct{}, 1)
	m.moved[ch] = true
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.moved, ch)
	}
}

func (m *memory) Records(_ context.Context, _ string, after int64, limit int) ([]ledger.StoredRecord, error) {
	if err := m.lock(); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	from := min(max(after-m.base, 0), int64(len(m.records)))
	return append([]ledger.StoredRecord(nil), m.records[from:min(from+int64(limit), int64(len(m.records)))]...), nil
}

func (m *memory) Cursor(_ context.Context, _, connector string) (ledger.Cursor, error) {
	if err := m.lock(); err != nil {
		return ledger.Cursor{}, err
	}
	defer m.mu.Unlock()
	c, ok := m.cursors[connector]
	if !ok {
		return c, ledger.ErrNotFound
	}
	return c, nil
}

func (m *memory) SaveCursor(_ context.Context, _, connector string, c ledger.Cursor) error {
	if err := m.lock(); err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.cursors[connector] = c
	return nil
}

func (m *memory) AddDeadLetter(_ context.Context, _ string, d ledger.DeadLetter, next ledger.Cursor) error {
	if err := m.lock(); err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.letters = append(m.letters, d)
	m.cursors[d.Connector] = next
	return nil
}

func (m *memory) DeadLetters(_ context.Context, _, connector string) ([]ledger.DeadLetter, error) {
	if err := m.lock(); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	var out []ledger.DeadLetter
	for _, d := range m.letters {
		if d.Connector == connector {
			out = append(out, d)
		}
	}
	return out, nil
}

func (m *memory) RemoveDeadLetter(_ context.Context, _, connector string, pos int64) error {
	if err := m.lock(); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for i, d := range m.letters {
		if d.Connector == connector && d.Pos == pos {
			m.letters = append(m.letters[:i], m.letters[i+1:]...)
			return nil
		}
	}
	return ledger.ErrNotFound
}

func (m *memory) Lease(_ context.Context, name, holder string, ttl time.Duration) (bool, error) {
	if err := m.lock(); err != nil {
		return false, err
	}
	defer m.mu.Unlock()
	if l := m.leases[name]; l.holder != holder && time.Now().Before(l.until) {
		return false, nil
	}
	m.leases[name] = lease{holder, time.Now().Add(ttl)}
	return true, nil
}

// steal gives the lease of every connector to another holder.
func (m *memory) steal(holder string, ttl time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.leases {
		m.leases[name] = lease{holder, time.Now().Add(ttl)}
	}
}
