package filedrop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
)

// A memory is an agent that accepts as the journal does: once for each key.
type memory struct {
	mu       sync.Mutex // guards what follows
	digests  map[string][32]byte
	accepted []protocol.Transaction
	times    map[string]int // transaction -> how often it was accepted
	err      error          // instead of accepting
	after    error          // behind accepting: the answer is lost
}

func (m *memory) Accept(ctx context.Context, in till.Intake) (till.Accepted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return till.Accepted{}, m.err
	}
	for _, key := range in.Keys {
		if digest, known := m.digests[key]; known && digest == in.Digest {
			return till.Accepted{Known: true}, m.after
		} else if known {
			return till.Accepted{}, fmt.Errorf("accept: %w", till.ErrConflict)
		}
	}
	for _, key := range in.Keys {
		m.digests[key] = in.Digest
	}
	var t protocol.Transaction
	if err := json.Unmarshal(in.Body, &t); err != nil {
		return till.Accepted{}, err
	}
	m.accepted = append(m.accepted, t)
	m.times[t.ID().String()]++
	return till.Accepted{}, m.after
}

// fail makes every answer an error; nil mends it.
func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// A clockHost is a drivers.Host whose clock stands still until the test moves it.
type clockHost struct {
	mu     sync.Mutex // guards what follows
	now    time.Time
	online int
	states []protocol.DeviceState
}

func (h *clockHost) Emit(_ context.Context, _ protocol.Kind, body any, _ []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.states = append(h.states, body.(protocol.DeviceState))
	return nil
}
func (h *clockHost) State() ([]byte, error) { return nil, nil }
func (h *clockHost) Online() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.online++
}
func (h *clockHost) Note(string) {}
func (h *clockHost) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}
func (h *clockHost) said() []protocol.DeviceState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.states)
}
func (h *clockHost) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(d)
}

// A bench is a drop with its folder, agent and clock.
type bench struct {
	t     testing.TB
	dir   string
	cfg   Config
	agent *memory
	host  *clockHost
	drop  *Drop

	cutOff time.Duration // of the store's day
}

var stockholm = func() *time.Location {
	zone, err := time.LoadLocation("Europe/Stockholm")
	if err != nil {
		panic(err)
	}
	return zone
}()

func newBench(t testing.TB, cfg Config) *bench {
	t.Helper()
	cfg.ID, cfg.Folder = "files", t.TempDir()
	if faults := Check([]Config{cfg}); faults != nil {
		t.Fatal(faults)
	}
	b := &bench{t: t, cutOff: 4 * time.Hour, dir: cfg.Folder, cfg: cfg, agent: &memory{digests: map[string][32]byte{}, times: map[string]int{}},
		host: &clockHost{now: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)}}
	b.restart()
	return b
}

// restart is another run of the agent over the same folder.
func (b *bench) restart() {
	desk := till.Desk{Store: "0001", Rule: func() protocol.DayRule { return protocol.DayRule{Zone: stockholm, CutOff: b.cutOff} }}
	b.drop = New(b.cfg, desk, b.agent)
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// round looks as Run does, until the files have had all the time that they get.
func (b *bench) round() error {
	for _, later := range []time.Duration{0, b.drop.cfg.Settle, patience * b.drop.cfg.Settle} {
		b.host.pass(later)
		if _, err := b.drop.round(b.t.Context(), b.host); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) mustRound() {
	b.t.Helper()
	if err := b.round(); err != nil {
		b.t.Fatal(err)
	}
}

// files lists what lies in a folder, below it too; folders are left out.
func (b *bench) files(dir string) []string {
	b.t.Helper()
	var list []string
	root := filepath.Join(b.dir, dir)
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, path)
			list = append(list, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	return list
}

func (b *bench) wantFiles(dir string, want ...string) {
	b.t.Helper()
	if got := b.files(dir); !slices.Equal(got, want) {
		b.t.Errorf("in %s: %q, want %q", dir, got, want)
	}
}

func (b *bench) report(name string) Report {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, rejectedDir, name+reportEnding))
	if err != nil {
		b.t.Fatal(err)
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		b.t.Fatal(err)
	}
	return r
}

// inOrder are the accepted transactions by number.
func (b *bench) inOrder() []protocol.Transaction {
	b.agent.mu.Lock()
	defer b.agent.mu.Unlock()
	return slices.SortedFunc(slices.Values(b.agent.accepted), func(x, y protocol.Transaction) int { return int(x.Sequence - y.Sequence) })
}

// told is one line about each accepted transaction.
func (b *bench) told() []string {
	var all []string
	for _, t := range b.inOrder() {
		all = append(all, tell(&t))
	}
	return all
}

func tell(t *protocol.Transaction) string {
	s := fmt.Sprintf("%d %s", t.Sequence, t.Type)
	if t.Control != "" {
		s += " " + t.Control
	}
	if t.Training {
		s += " training"
	}
	if t.Voids != nil {
		s += " of " + t.Voids.String()
	}
	if t.Type != protocol.TypeControl && t.Type != protocol.TypeVoid {
		s += fmt.Sprintf(" %d", t.Total)
	}
	if t.Rounding != 0 {
		s += fmt.Sprintf(" rounded %d", t.Rounding)
	}
	for _, l := range t.Lines {
		s += fmt.Sprintf("; %s %s %d", l.Type, l.Item, l.Quantity.Milli)
		s += fmt.Sprintf("%s = %d off %d vat %d", strings.ToLower(l.Quantity.Unit), l.ExtendedAmount, l.DiscountAmount, l.TaxAmount)
		if l.ItemType != "" {
			s += " " + l.ItemType
		}
		if l.Voided {
			s += " struck"
		}
		if l.Of != nil {
			s += " of " + l.Of.String()
		}
	}
	for _, tender := range t.Tenders {
		s += fmt.Sprintf("; %s %d", tender.Type, tender.Amount)
	}
	if flags := t.Check(); flags != nil && t.Type != protocol.TypeVoid {
		s += fmt.Sprint(" ", flags)
	}
	return s
}

func wantTold(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("transaction %d:\n got %s\nwant %s", i+1, g, w)
		}
	}
}

// sale is one of our own transactions.
func sale(number int) string {
	return fmt.Sprintf(`{"workstation":"4","businessDay":"2026-11-21","sequenceNumber":%d,"type":"sale","begin":"2026-11-21T10:00:00+01:00","end":"2026-11-21T10:01:00+01:00","currency":"SEK",
"lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900}],"tenders":[{"type":"card","amount":12900}],"total":12900}`, number)
}

func sample(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// utf16 writes a text as Windows programs do.
func utf16Text(text string, big bool) string {
	var b bytes.Buffer
	for _, r := range "\ufeff" + text {
		if r > 0xFFFF {
			panic("not in this test")
		}
		if big {
			b.Write([]byte{byte(r >> 8), byte(r)})
		} else {
			b.Write([]byte{byte(r), byte(r >> 8)})
		}
	}
	return b.String()
}
