package ledger_test

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

func TestMain(m *testing.M) { os.Exit(ledgertest.Main(m)) }

// both runs a test on each database with an empty ledger, by its URL.
func both(t *testing.T, test func(t *testing.T, url string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, sqliteURL(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, ledgertest.Postgres(t)) })
}

func sqliteURL(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "relay.db") }

// open opens a ledger and runs it until the test ends or stop is called.
func open(t testing.TB, url string) (l *ledger.Ledger, stop func()) {
	t.Helper()
	return openAt(t, url, nil)
}

// openAt is open with a clock of the test's own.
func openAt(t testing.TB, url string, now func() time.Time) (l *ledger.Ledger, stop func()) {
	t.Helper()
	l, err := ledger.Open(t.Context(), url, ledger.Options{Now: now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		auditUntouched(t, l, url)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(stop)
	return l, stop
}

// touched are the databases that a test changed behind their ledger's back.
var touched sync.Map

// auditUntouched audits what a test leaves behind: whatever agents send, and in whatever order,
// nothing may look as if somebody had changed the ledger. The marks in these tests are signed
// by nobody.
func auditUntouched(t testing.TB, l *ledger.Ledger, url string) {
	t.Helper()
	_, yes := touched.Load(url)
	if _, benchmark := t.(*testing.B); yes || benchmark || t.Failed() {
		return
	}
	authority, err := ca.Create(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	all := ledger.AuditOptions{TrustAlarms: true, Recount: true, Roots: authority.Roots()}
	found, err := findings(l, all)
	if err != nil { // a test may have cut the connections
		found, err = findings(l, all)
	}
	if err != nil || len(found) > 0 {
		t.Errorf("the audit of an untouched ledger finds %v, %v", found, err)
	}
}

// findings audits a ledger whose marks are signed by nobody.
func findings(l *ledger.Ledger, opts ledger.AuditOptions) ([]ledger.Finding, error) {
	report, err := l.Audit(context.Background(), opts)
	return slices.DeleteFunc(report.Findings, func(f ledger.Finding) bool { return strings.Contains(f.What, "was not signed by its agent") }), err
}

const chain = "demo"

// An agent makes the records of one stream.
type agent struct {
	t     testing.TB
	from  protocol.Origin
	epoch protocol.Epoch
	seq   uint64
	hash  protocol.Hash
}

func epochOf(n int) protocol.Epoch { return protocol.Epoch(fmt.Sprintf("%032x", n)) }

// newAgent begins an agent's first epoch, whose seal is the first record of the first batch.
func newAgent(t testing.TB, store, name string, epoch int) *agent {
	from := protocol.Origin{Chain: chain, Store: store, Agent: name}
	return &agent{t: t, from: from, epoch: epochOf(epoch), hash: protocol.Genesis(chain, store, name, epochOf(epoch))}
}

const noon = "2026-03-02T12:00:00+01:00"

var day = protocol.Day{Year: 2026, Month: 3, Date: 2}

func record(t testing.TB, kind protocol.Kind, body any) protocol.Record {
	t.Helper()
	raw, ok := body.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	return protocol.Record{Kind: kind, At: noon, Mono: 1, Day: day, Body: raw}
}

func seal(t testing.TB, before *protocol.Mark, forked bool) protocol.Record {
	return record(t, protocol.KindSeal, protocol.Seal{BootID: "boot", Before: before, Forked: forked})
}

// batch gives the next records of the stream.
func (a *agent) batch(records ...protocol.Record) protocol.Batch {
	b := protocol.Batch{Epoch: a.epoch, First: a.seq + 1, Prev: a.hash, Records: records}
	for i := range records {
		a.seq++
		records[i].Seq = a.seq
		a.hash = records[i].Hash(a.hash)
	}
	return b
}

// begin gives the stream's first batch: its seal and more.
func (a *agent) begin(records ...protocol.Record) protocol.Batch {
	return a.batch(append([]protocol.Record{seal(a.t, nil, false)}, records...)...)
}

func (a *agent) mark() protocol.Mark {
	return protocol.Mark{Epoch: a.epoch, Through: a.seq, Hash: a.hash}
}

func commit(t testing.TB, l *ledger.Ledger, a *agent, b protocol.Batch) protocol.Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	answer, err := l.Commit(ctx, a.from, b)
	if err != nil {
		t.Fatalf("commit %s %d..%d: %v", a.from, b.First, b.Last(), err)
	}
	return answer
}

// acked commits and wants an ack through the batch's end.
func acked(t testing.TB, l *ledger.Ledger, a *agent, b protocol.Batch) {
	t.Helper()
	got := commit(t, l, a, b)
	if got.Verdict != protocol.VerdictAck || got.Through < b.Last() || got.Incarnation != 1 || got.Epoch != b.Epoch {
		t.Fatalf("%s %d..%d: answer %+v, want an ack", a.from, b.First, b.Last(), got)
	}
}

// sale is a transaction of one article at 100.00 with VAT 25 %, paid in cash with change.
func sale(store string, sequence int64) protocol.Transaction {
	at, _ := time.Parse(time.RFC3339, noon)
	return protocol.Transaction{
		Store: store, Workstation: "1", BusinessDay: day, Sequence: sequence, Type: protocol.TypeSale, Begin: at, End: at, Currency: "SEK",
		Lines: []protocol.LineItem{{Type: protocol.LineSale, Item: "A1", Group: "shoes", Quantity: protocol.Quantity{Milli: 1000},
			ExtendedAmount: 10000, DiscountAmount: 500, TaxAmount: 2000, TaxRate: 2500}},
		Tenders: []protocol.Tender{{Type: protocol.TenderCash, Amount: 15000}, {Type: protocol.TenderCash, Amount: -5000}},
		Total:   10000,
	}
}

func heads(t testing.TB, l *ledger.Ledger) int64 {
	t.Helper()
	pos, _, err := l.Head(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

// database opens the database behind the ledger's back.
func database(t testing.TB, url string) *sql.DB {
	t.Helper()
	driver, name := "pgx", url
	if path, ok := strings.CutPrefix(url, "sqlite:"); ok {
		driver, name = "sqlite", "file:"+path+"?_pragma=busy_timeout(10000)"
	}
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func execute(t testing.TB, url, text string) {
	t.Helper()
	touched.Store(url, true)
	db := database(t, url)
	defer db.Close()
	if _, err := db.Exec(text); err != nil {
		t.Fatal(err)
	}
}

// selected gives the rows of a query, each as text with spaces between; bytes as hex.
func selected(t testing.TB, url, text string) (rows []string) {
	t.Helper()
	db := database(t, url)
	defer db.Close()
	found, err := db.Query(text)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	columns, err := found.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for found.Next() {
		values, dest := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			dest[i] = &values[i]
		}
		if err := found.Scan(dest...); err != nil {
			t.Fatal(err)
		}
		words := make([]string, len(values))
		for i, v := range values {
			if b, ok := v.([]byte); ok {
				v = hex.EncodeToString(b)
			}
			words[i] = fmt.Sprint(v)
		}
		rows = append(rows, strings.Join(words, " "))
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

func holes(t testing.TB, url string) []string {
	return selected(t, url, "SELECT agent, epoch, first_seq || '..' || last_seq, reason, day, hash FROM holes ORDER BY epoch, first_seq")
}

func dayMarks(t testing.TB, url string) []string {
	return selected(t, url, "SELECT day, agent, epoch || '/' || seq, 'heads', head_epoch || '/' || head_seq, 'signed', signature FROM day_marks ORDER BY epoch, seq")
}

func timeOf(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func durationOf(t testing.TB, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
