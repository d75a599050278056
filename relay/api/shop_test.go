package api

import (
	"crypto"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

const certificatePath = "/v1/stores/0001/days/2026-11-21/certificate"

// A shop is store 0001, whose agent signs its days with the key of a real certificate.
type shop struct {
	*agent
	identity tls.Certificate
	numbers  map[string]int64 // last number by till
	clock    *testClock
}

type testClock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func (c *testClock) time() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// newShop opens a bench on the Sunday behind and a shop that has traded on Friday.
func newShop(t *testing.T) *shop {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "relay.db"), secrets: map[string]string{}, log: &safeBuffer{}}
	s := &shop{numbers: map[string]int64{}, clock: &testClock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}}
	var err error
	if b.ca, err = ca.Create(filepath.Join(t.TempDir(), "ca")); err != nil {
		t.Fatal(err)
	}
	b.now = s.clock.time
	b.open()
	t.Cleanup(func() { b.stop() })
	b.token("admin", nil, ScopeAdmin)
	s.must(b.ledger.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Name: "Storgatan", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}), t)
	origin := protocol.Origin{Chain: chain, Store: "0001", Agent: "pc-0001"}
	s.must(b.ledger.RegisterAgent(t.Context(), origin), t)
	s.agent = b.agent("0001")
	s.enrol(origin)
	s.trade(friday)
	s.mark(friday)
	return s
}

// second begins the stream of another agent of the shop, with a seal as agents write it.
func (s *shop) second(name string) *shop {
	s.b.t.Helper()
	o := protocol.Origin{Chain: chain, Store: "0001", Agent: name}
	a := &agent{b: s.b, origin: o, epoch: protocol.Epoch(fmt.Sprintf("%032x", []byte(name)))}
	a.prev = protocol.Genesis(chain, o.Store, o.Agent, a.epoch)
	second := &shop{agent: a, numbers: map[string]int64{}, clock: s.clock}
	second.enrol(o)
	second.sendRecord(protocol.Record{Kind: protocol.KindSeal, At: "2026-11-21T12:00:00+01:00", Body: []byte(`{"bootId":"b","before":null}`)})
	return second
}

func (s *shop) must(err error, t testing.TB) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// enrol issues a certificate, which the relay keeps.
func (s *shop) enrol(o protocol.Origin) {
	s.b.t.Helper()
	cert, key, err := s.b.ca.IssueAgent(o, time.Hour, nil)
	s.must(err, s.b.t)
	s.identity, err = tls.X509KeyPair(cert, key)
	s.must(err, s.b.t)
	s.must(s.b.ledger.KeepCertificate(s.b.t.Context(), o, s.identity.Leaf), s.b.t)
}

// trade is a day of two tills and a counter that covers all of it.
func (s *shop) trade(day protocol.Day) {
	s.b.t.Helper()
	for range 3 {
		s.sellAt("1", day)
		s.sellAt("2", day)
	}
	s.cover(day, "door", 0, 24*time.Hour)
}

func (s *shop) sellAt(till string, day protocol.Day) {
	s.b.t.Helper()
	s.numbers[till]++
	s.sell(day, func(t *protocol.Transaction) { t.Workstation, t.Sequence = till, s.numbers[till] })
}

// cover sends a count of a stretch of the day, which begins at 04:00 in Stockholm.
func (s *shop) cover(day protocol.Day, counter string, from, to time.Duration) {
	s.b.t.Helper()
	start := time.Date(day.Year, day.Month, day.Date, 3, 0, 0, 0, time.UTC)
	s.count(day, 4, 4, func(c *protocol.FootfallCount) {
		c.Counter, c.From, c.To = counter, start.Add(from), start.Add(to)
	})
}

// mark ends a day, as the agent does.
func (s *shop) mark(day protocol.Day) {
	s.b.t.Helper()
	s.markHead(day, protocol.Mark{Epoch: s.epoch, Through: s.seq, Hash: s.prev})
}

func (s *shop) markHead(day protocol.Day, head protocol.Mark) {
	s.b.t.Helper()
	s.send(protocol.KindDayMark, day, string(s.signed(day, head)))
}

// markAt marks a day at a time of the PC's clock.
func (s *shop) markAt(day protocol.Day, at string) {
	s.b.t.Helper()
	body := s.signed(day, protocol.Mark{Epoch: s.epoch, Through: s.seq, Hash: s.prev})
	s.sendRecord(protocol.Record{Kind: protocol.KindDayMark, At: at, Day: day, Body: body})
}

func (s *shop) signed(day protocol.Day, head protocol.Mark) []byte {
	s.b.t.Helper()
	m, err := protocol.SignDayMark(s.origin, day, head, s.identity.Certificate[0], s.identity.PrivateKey.(crypto.Signer))
	s.must(err, s.b.t)
	body, err := json.Marshal(m)
	s.must(err, s.b.t)
	return body
}

func (s *shop) sendRecord(r protocol.Record) {
	s.b.t.Helper()
	s.seq++
	r.Seq = s.seq
	answer, err := s.b.ledger.Commit(s.b.t.Context(), s.origin, protocol.Batch{Epoch: s.epoch, First: s.seq, Prev: s.prev, Records: []protocol.Record{r}})
	s.prev = r.Hash(s.prev)
	if err != nil || answer.Verdict != protocol.VerdictAck {
		s.b.t.Fatalf("commit: %+v, %v", answer, err)
	}
}

// skip loses the next n records at the agent, as it tells the relay.
func (s *shop) skip(n uint64) {
	s.b.t.Helper()
	skip := &protocol.Skip{From: s.seq + 1, To: s.seq + n, Hash: protocol.Hash{byte(n)}, Reason: protocol.SkipDamaged}
	answer, err := s.b.ledger.Commit(s.b.t.Context(), s.origin, protocol.Batch{Epoch: s.epoch, First: skip.From, Prev: s.prev, Skip: skip, Records: []protocol.Record{}})
	if err != nil || answer.Verdict != protocol.VerdictAck || answer.Through != skip.To {
		s.b.t.Fatalf("skip: %+v, %v", answer, err)
	}
	s.seq, s.prev = skip.To, skip.Hash
}

// sql changes the database behind the ledger's back.
func (s *shop) sql(text string, args ...any) {
	s.b.t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.b.path+"?_pragma=busy_timeout(10000)")
	s.must(err, s.b.t)
	defer db.Close()
	result, err := db.Exec(text, args...)
	s.must(err, s.b.t)
	if n, _ := result.RowsAffected(); n == 0 {
		s.b.t.Fatalf("%s changed nothing", text)
	}
}

// restart begins another epoch that seals the one under way.
func (s *shop) restart(day protocol.Day) {
	s.b.t.Helper()
	seal, err := json.Marshal(protocol.Seal{BootID: "b", Before: &protocol.Mark{Epoch: s.epoch, Through: s.seq, Hash: s.prev}})
	s.must(err, s.b.t)
	s.epoch = protocol.Epoch(fmt.Sprintf("%032x", append([]byte(s.epoch[20:]), 1)))[:32]
	s.seq, s.prev = 0, protocol.Genesis(chain, s.origin.Store, s.origin.Agent, s.epoch)
	s.send(protocol.KindSeal, day, string(seal))
}

// roots are read from the file that anyone gets.
func (s *shop) roots() *ca.Roots {
	s.b.t.Helper()
	file := filepath.Join(s.b.t.TempDir(), "ca.crt")
	s.must(os.WriteFile(file, s.b.ca.CertPEM(), 0o644), s.b.t)
	roots, err := ca.ReadRoots(file)
	s.must(err, s.b.t)
	return roots
}

// file gets a certificate as it is given out.
func (s *shop) file(path string) []byte {
	s.b.t.Helper()
	resp := s.b.do("admin", "GET", path, nil)
	text, err := io.ReadAll(resp.Body)
	s.must(err, s.b.t)
	if resp.StatusCode != http.StatusOK {
		s.b.t.Fatalf("GET %s: %d %s", path, resp.StatusCode, text)
	}
	return text
}

// certificate gets a certificate and verifies it as `storelay-relay verify` does.
func (s *shop) certificate(path string) *ledger.DayCertificate {
	s.b.t.Helper()
	c, err := ledger.ReadDayCertificate(s.file(path), s.roots())
	s.must(err, s.b.t)
	return c
}
