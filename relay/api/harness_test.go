package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/ledger"
)

const chain = "demo"

var (
	friday   = protocol.Day{Year: 2026, Month: 11, Date: 20}
	saturday = protocol.Day{Year: 2026, Month: 11, Date: 21}
)

// A bench is an API over a real ledger on SQLite.
type bench struct {
	t       testing.TB
	ledger  *ledger.Ledger
	api     *api
	server  *httptest.Server
	secrets map[string]string // by name of the token
	path    string
	ca      *ca.CA
	now     func() time.Time // of the ledger; nil = time.Now
	log     *safeBuffer
	stop    func()
}

// safeBuffer is a log that a test may read while it is written.
type safeBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newBench(t testing.TB, change ...func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "relay.db"), secrets: map[string]string{}, log: &safeBuffer{}}
	var err error
	if b.ca, err = ca.Create(filepath.Join(t.TempDir(), "ca")); err != nil {
		t.Fatal(err)
	}
	b.open(change...)
	t.Cleanup(func() { b.stop() })
	b.token("admin", nil, ScopeAdmin)
	return b
}

// open opens the ledger, as a relay that starts.
func (b *bench) open(change ...func(*Options)) {
	b.t.Helper()
	l, err := ledger.Open(context.Background(), "sqlite:"+b.path, ledger.Options{CA: b.ca, Now: b.now})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	opts := Options{Ledger: l, Version: "test", Log: newLog(b.log)}
	for _, c := range change {
		c(&opts)
	}
	b.ledger = l
	var handler http.Handler
	b.api, handler = newAPI(opts)
	b.server = httptest.NewServer(handler)
	b.stop = func() {
		b.server.CloseClientConnections()
		b.server.Close()
		cancel()
		<-ran
		if err := l.Close(); err != nil {
			b.t.Errorf("close: %v", err)
		}
	}
}

// restart is a relay that stops and starts again on the same database.
func (b *bench) restart() {
	b.t.Helper()
	b.stop()
	b.open()
}

func (b *bench) token(name string, stores []string, scopes ...string) {
	b.t.Helper()
	secret, err := b.ledger.CreateToken(context.Background(), ledger.Token{Chain: chain, Name: name, Scopes: scopes, Stores: stores})
	if err != nil {
		b.t.Fatal(err)
	}
	b.secrets[name] = secret
}

func (b *bench) do(token, method, path string, body any) *http.Response {
	b.t.Helper()
	var r io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			b.t.Fatal(err)
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, b.server.URL+path, r)
	if err != nil {
		b.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+b.secrets[token])
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// get reads an answer of 200 into a T, strictly.
func get[T any](b *bench, token, path string) T {
	b.t.Helper()
	var v T
	resp := b.do(token, http.MethodGet, path, nil)
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("GET %s: %d %s %v", path, resp.StatusCode, text, err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		b.t.Fatalf("GET %s: %v in %s", path, err, text)
	}
	return v
}

// A problem is an answer that is an error.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Errors []struct{ Message, Location string }
}

// wantProblem checks that the answer is a problem of that status whose text names all of say.
func (b *bench) wantProblem(resp *http.Response, status int, say ...string) {
	b.t.Helper()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	var p problem
	if err := json.Unmarshal(text, &p); err != nil || resp.StatusCode != status || p.Status != status || p.Title != http.StatusText(status) ||
		resp.Header.Get("Content-Type") != "application/problem+json" {
		b.t.Errorf("%s %s: %d %s %s, want problem+json of %d", resp.Request.Method, resp.Request.URL.Path, resp.StatusCode, resp.Header.Get("Content-Type"), text, status)
	}
	for _, s := range say {
		if !strings.Contains(string(text), s) {
			b.t.Errorf("%s %s: %s, want it to name %q", resp.Request.Method, resp.Request.URL, text, s)
		}
	}
}

// An agent commits records in batches of one epoch.
type agent struct {
	b      *bench
	origin protocol.Origin
	epoch  protocol.Epoch
	seq    uint64
	prev   protocol.Hash
	next   int64 // receipt

	rawIn, rawOut int64 // totals of all counters together
}

func (b *bench) agent(store string) *agent {
	b.t.Helper()
	a := &agent{b: b, origin: protocol.Origin{Chain: chain, Store: store, Agent: "pc-" + store}}
	a.epoch = protocol.Epoch(fmt.Sprintf("%032x", []byte(store)))
	a.prev = protocol.Genesis(chain, store, a.origin.Agent, a.epoch)
	a.send(protocol.KindSeal, friday, `{"bootId":"b","before":null}`)
	return a
}

// send commits one record.
func (a *agent) send(kind protocol.Kind, day protocol.Day, body string) {
	a.b.t.Helper()
	a.seq++
	r := protocol.Record{Seq: a.seq, Kind: kind, At: day.String() + "T12:00:00+01:00", Mono: int64(a.seq), Day: day, Body: []byte(body)}
	answer, err := a.b.ledger.Commit(context.Background(), a.origin, protocol.Batch{Epoch: a.epoch, First: a.seq, Prev: a.prev, Records: []protocol.Record{r}})
	a.prev = r.Hash(a.prev)
	if err != nil || answer.Verdict != protocol.VerdictAck || answer.Through != a.seq || answer.Hash != a.prev {
		a.b.t.Fatalf("commit of %s: %+v, %v, want an ack through %d", body, answer, err, a.seq)
	}
}

// sell commits a transaction: the next receipt of workstation 1, unless change says other.
func (a *agent) sell(day protocol.Day, change func(t *protocol.Transaction)) protocol.TransactionID {
	a.b.t.Helper()
	a.next++
	at := time.Date(day.Year, day.Month, day.Date, 11, 0, 0, 0, time.UTC)
	t := protocol.Transaction{Store: a.origin.Store, Workstation: "1", BusinessDay: day, Sequence: a.next, Type: protocol.TypeSale, Begin: at, End: at.Add(time.Minute), Currency: "SEK"}
	t.Lines = []protocol.LineItem{line("4711", 1000, 12500, 2500)}
	if change != nil {
		change(&t)
	}
	if t.Total == 0 {
		for _, l := range t.Lines {
			if !l.Voided {
				t.Total += l.ExtendedAmount
			}
		}
		t.Total += t.Rounding
	}
	if t.Tenders == nil {
		t.Tenders = []protocol.Tender{{Type: protocol.TenderCard, Amount: t.Total}}
	}
	body, err := json.Marshal(t)
	if err != nil {
		a.b.t.Fatal(err)
	}
	a.send(protocol.KindTransaction, day, string(body))
	return t.ID()
}

// line is a sale, or a return when milli is negative.
func line(item string, milli, amount, tax int64) protocol.LineItem {
	l := protocol.LineItem{Type: protocol.LineSale, Item: item, Quantity: protocol.Quantity{Milli: milli}, ExtendedAmount: amount, TaxAmount: tax, TaxRate: 2500}
	if milli < 0 {
		l.Type = protocol.LineReturn
	}
	return l
}

// count commits passages.
func (a *agent) count(day protocol.Day, in, out int64, change func(*protocol.FootfallCount)) {
	a.b.t.Helper()
	at := time.Date(day.Year, day.Month, day.Date, 11, 0, 0, 0, time.UTC)
	c := protocol.FootfallCount{Counter: "door", From: at, To: at.Add(time.Minute), In: in, Out: out, Quality: protocol.QualityOK}
	if change != nil {
		change(&c)
	}
	a.rawIn, a.rawOut = a.rawIn+c.In, a.rawOut+c.Out
	c.RawIn, c.RawOut = a.rawIn, a.rawOut
	body, err := json.Marshal(c)
	if err != nil {
		a.b.t.Fatal(err)
	}
	a.send(protocol.KindFootfall, day, string(body))
}

// twoStores is a Saturday of store 0001 with every kind of transaction and footfall, one of
// store 0002 without a counter, and a Friday. It gives the first store's agent.
func (b *bench) twoStores() *agent {
	b.t.Helper()
	first, second := b.agent("0001"), b.agent("0002")
	for _, s := range []ledger.Store{{ID: "0001", Name: "Storgatan", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}, {ID: "0002", Name: "Torget", Zone: "Europe/Stockholm", CutOff: "00:00", Currency: "SEK"}} {
		if err := b.ledger.PutStore(context.Background(), chain, s); err != nil {
			b.t.Fatal(err)
		}
	}
	first.sell(friday, nil)
	first.sell(saturday, func(t *protocol.Transaction) { // two of one, and 0.42 kg
		t.Lines = []protocol.LineItem{line("4711", 2000, 23800, 4760), line("banan", 420, 1050, 113)}
		t.Lines[0].DiscountAmount = 2000
		t.Lines[1].Quantity.Unit = "KGM"
		t.Tenders = []protocol.Tender{{Type: "cash", Amount: 30000}, {Type: "cash", Amount: -5150}}
		t.Tax = []protocol.Tax{{Rate: 2500, Taxable: 19977, Amount: 4873}}
	})
	first.sell(saturday, func(t *protocol.Transaction) { // an exchange, with a deposit and a struck line
		t.Lines = []protocol.LineItem{line("4712", 1000, 30000, 6000), line("4711", -1000, -11900, -2380), line("pant", 3000, 300, 0), line("4713", 1000, 5000, 1000)}
		t.Lines[2].ItemType, t.Lines[3].Voided = protocol.ItemDeposit, true
	})
	first.sell(saturday, func(t *protocol.Transaction) { // a pure return
		t.Type, t.Lines = protocol.TypeReturn, []protocol.LineItem{line("4711", -2000, -25000, -5000)}
	})
	first.sell(saturday, func(t *protocol.Transaction) { t.Training = true })
	victim := first.sell(saturday, func(t *protocol.Transaction) { t.Lines = []protocol.LineItem{line("4714", 1000, 99900, 19980)} })
	first.sell(saturday, func(t *protocol.Transaction) { t.Type, t.Voids, t.Lines = protocol.TypeVoid, &victim, nil })
	first.sell(saturday, func(t *protocol.Transaction) { // the till adds up wrongly
		t.Total, t.Tenders = 12600, []protocol.Tender{{Type: "card", Amount: 12500}}
	})
	first.count(saturday, 5, 4, nil)
	first.count(saturday, 3, 4, nil)
	first.count(saturday, 3, 0, func(c *protocol.FootfallCount) { c.Counter, c.Undirect = "side", true })
	first.send(protocol.KindDrawer, saturday, `{"drawer":"drawer-1","event":"opened","at":"2026-11-21T11:00:00Z","cause":"manual"}`)
	first.send(protocol.KindDrawer, saturday, `{"drawer":"drawer-1","event":"closed","at":"2026-11-21T11:00:09Z","openMs":9000}`)
	first.send(protocol.KindDevice, saturday, `{"device":"door","driver":"line","class":"counter","state":"online","at":"2026-11-21T08:00:00Z"}`)
	second.sell(saturday, nil)
	return first
}

// fakeConnectors stand for a runner, which relay/connect proves.
type fakeConnectors struct {
	mu       sync.Mutex // guards what follows
	replayed []string
	resumed  []string
	refuse   bool
}

func (f *fakeConnectors) States(context.Context) ([]connect.State, error) {
	return []connect.State{{Name: "erp", Type: "webhook", Host: "erp.example", Cursor: 3, Head: 9, Lag: 6, DeadLetters: 1, Active: true}}, nil
}

func (f *fakeConnectors) DeadLetters(_ context.Context, name string) ([]ledger.DeadLetter, error) {
	if name != "erp" {
		return nil, fmt.Errorf("connector %s: %w", name, ledger.ErrNotFound)
	}
	return []ledger.DeadLetter{{Connector: "erp", Pos: 2, Attempts: 1, Reason: "400: no such article", At: time.Unix(1_700_000_000, 0).UTC()}}, nil
}

func (f *fakeConnectors) Replay(_ context.Context, name string, pos int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse {
		return fmt.Errorf("%w: 400: no such article", connect.ErrRefused)
	}
	f.replayed = append(f.replayed, fmt.Sprint(name, "/", pos))
	return nil
}

func (f *fakeConnectors) Resume(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resumed = append(f.resumed, name)
	return nil
}
