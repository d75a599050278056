package api

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
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

func (s *shop) sellAt(till string, day protocol.Day) protocol.TransactionID {
	s.b.t.Helper()
	s.numbers[till]++
	return s.sell(day, func(t *protocol.Transaction) { t.Workstation, t.Sequence = till, s.numbers[till] })
}

// cover sends a count of a stretch of the day, which begins at 04:00 in Stockholm.
func (s *shop) cover(day protocol.Day, counter string, from, to time.Duration) {
	s.b.t.Helper()
	start := time.Date(day.Year, day.Month, day.Date, 3, 0, 0, 0, time.UTC)
	s.count(day, 4, 4, func(c *protocol.FootfallCount) {
		c.Counter, c.From, c.To = counter, start.Add(from), start.Add(to)
	})
}

// mark ends a day, as the agent does; change alters what was signed.
func (s *shop) mark(day protocol.Day, change ...func(*protocol.DayMark)) {
	s.b.t.Helper()
	s.markHead(day, protocol.Mark{Epoch: s.epoch, Through: s.seq, Hash: s.prev}, change...)
}

func (s *shop) markHead(day protocol.Day, head protocol.Mark, change ...func(*protocol.DayMark)) {
	s.b.t.Helper()
	m, err := protocol.SignDayMark(s.origin, day, head, s.identity.Certificate[0], s.identity.PrivateKey.(crypto.Signer))
	s.must(err, s.b.t)
	for _, c := range change {
		c(&m)
	}
	body, err := json.Marshal(m)
	s.must(err, s.b.t)
	s.send(protocol.KindDayMark, day, string(body))
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

// epochs begins another epoch that seals the one under way.
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

func TestBEY01ACompleteDayIsCertified(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	first := s.file(certificatePath)
	c, err := ledger.ReadDayCertificate(first, s.roots())
	if err != nil {
		t.Fatal(err)
	}
	if c.State != ledger.DayComplete || c.Proof != ledger.Unproven || c.ProofReason == "" || c.Version != 1 || c.Restates != nil || c.Chain != chain || c.Store != "0001" || c.Day != saturday {
		t.Errorf("certificate %+v, want version 1 of a complete, unproven day", c)
	}
	if len(c.Agents) != 1 || !c.Agents[0].Signed || !c.Agents[0].Complete || c.Agents[0].Mark.Head.Through != s.seq-1 {
		t.Errorf("agents %+v", c.Agents)
	}
	till := ledger.TillDay{Workstation: "1", Expected: true, First: 4, Last: 6, Count: 3, Missing: []ledger.NumberRange{}, Numbering: "continued"}
	if len(c.Tills) != 2 || !reflect.DeepEqual(c.Tills[0], till) {
		t.Errorf("tills %+v, want first %+v", c.Tills, till)
	}
	door := ledger.CounterDay{Counter: "door", Expected: true, Seconds: 86400, Covered: 86400, Permille: 1000, Counts: 1, Gaps: []ledger.TimeRange{}}
	if len(c.Counters) != 1 || !reflect.DeepEqual(c.Counters[0], door) {
		t.Errorf("counters %+v, want %+v", c.Counters, door)
	}
	if want := []ledger.KindCount{{Kind: "dayMark", Count: 1}, {Kind: "footfallCount", Count: 1}, {Kind: "transaction", Count: 6}}; !reflect.DeepEqual(c.Records, want) {
		t.Errorf("records %v, want %v", c.Records, want)
	}

	// As long as nothing changes it is the same file, whoever asks.
	s.clock.set(s.clock.time().Add(time.Hour))
	s.b.restart()
	if again := s.file(certificatePath); !bytes.Equal(again, first) {
		t.Errorf("asked again: %s\nwant %s", again, first)
	}
	if again := s.file(certificatePath + "?version=1"); !bytes.Equal(again, first) {
		t.Error("version 1 is another file")
	}
	s.b.wantProblem(s.b.do("admin", "GET", certificatePath+"?version=2", nil), http.StatusNotFound, "version 2")
	s.b.wantProblem(s.b.do("admin", "GET", "/v1/stores/0009/days/2026-11-21/certificate", nil), http.StatusNotFound, "store 0009")
	s.b.wantProblem(s.b.do("admin", "GET", "/v1/stores/0001/days/2026-02-30/certificate", nil), http.StatusUnprocessableEntity)
}

// TestBEY01EachHoleIsNamed is one way after another in which a day can be incomplete.
func TestBEY01EachHoleIsNamed(t *testing.T) {
	rest := func(s *shop) { s.trade(saturday); s.mark(saturday) }
	for name, tt := range map[string]struct {
		saturday func(s *shop)
		kind     string
		who      string
		says     string
	}{
		"no mark": {func(s *shop) { s.trade(saturday) }, ledger.ReasonDayMark, "pc-0001", "no mark of this day"},
		"a mark signed with another key": {func(s *shop) {
			s.trade(saturday)
			_, key, err := s.b.ca.IssueAgent(s.origin, time.Hour, nil)
			s.must(err, s.b.t)
			block, _ := pem.Decode(key)
			s.identity.PrivateKey, err = x509.ParsePKCS8PrivateKey(block.Bytes)
			s.must(err, s.b.t)
			s.mark(saturday)
		}, ledger.ReasonSignature, "pc-0001", "the signature is not the agent's"},
		"a mark signed by another agent of the chain": {func(s *shop) {
			s.trade(saturday)
			s.enrol(protocol.Origin{Chain: chain, Store: "0001", Agent: "pc-2"})
			s.mark(saturday)
		}, ledger.ReasonSignature, "pc-0001", "pc-2"},
		"a certificate that is not kept": {func(s *shop) {
			rest(s)
			s.sql("DELETE FROM agent_certificates")
		}, ledger.ReasonSignature, "pc-0001", "is not kept"},
		"a certificate of another authority": {func(s *shop) {
			s.trade(saturday)
			other, err := ca.Create(filepath.Join(s.b.t.TempDir(), "ca"))
			s.must(err, s.b.t)
			s.b.ca, other = other, s.b.ca
			s.enrol(s.origin)
			s.b.ca = other
			s.mark(saturday)
		}, ledger.ReasonSignature, "pc-0001", "does not hold"},
		"records that have not come": {func(s *shop) {
			s.trade(saturday)
			s.markHead(saturday, protocol.Mark{Epoch: s.epoch, Through: s.seq + 5, Hash: protocol.Hash{1}})
		}, ledger.ReasonStream, "pc-0001", "of which"},
		"an epoch of which nothing has come": {func(s *shop) {
			s.trade(saturday)
			s.markHead(saturday, protocol.Mark{Epoch: protocol.Epoch(strings.Repeat("ab", 16)), Through: 2})
		}, ledger.ReasonStream, "pc-0001", "of which nothing has come"},
		"another hash than was signed": {func(s *shop) {
			s.trade(saturday)
			s.markHead(saturday, protocol.Mark{Epoch: s.epoch, Through: s.seq, Hash: protocol.Hash{1}})
		}, ledger.ReasonStream, "pc-0001", "another hash"},
		"a record that was changed": {func(s *shop) {
			rest(s)
			s.sql("UPDATE records SET at = '2026-11-21T12:00:01+01:00' WHERE seq = 12")
		}, ledger.ReasonStream, "pc-0001", "record 12 of epoch"},
		"a record that is gone": {func(s *shop) {
			rest(s)
			s.sql("DELETE FROM records WHERE seq = 16")
		}, ledger.ReasonStream, "pc-0001", "record 16 of epoch"},
		"an epoch whose end is gone": {func(s *shop) {
			s.trade(saturday)
			s.restart(saturday)
			s.mark(saturday)
			s.sql("UPDATE streams SET through = through - 2 WHERE id = 1")
		}, ledger.ReasonStream, "pc-0001", "the seal of epoch"},
		"an earlier epoch that ends otherwise": {func(s *shop) {
			s.restart(friday)
			s.mark(friday)
			rest(s)
			s.sql("UPDATE streams SET hash = $1 WHERE id = 1", bytes.Repeat([]byte{7}, 32))
		}, ledger.ReasonStream, "pc-0001", "another hash than the seal"},
		"numbers missing within the day": {func(s *shop) {
			s.trade(saturday)
			s.numbers["2"] += 3
			s.sellAt("2", saturday)
			s.mark(saturday)
		}, ledger.ReasonTill, "2", "till 2: numbers 7 to 9 are missing"},
		"a number missing since the day before": {func(s *shop) {
			s.numbers["1"]++
			rest(s)
		}, ledger.ReasonTill, "1", "number 4 is missing between its last number of 2026-11-20"},
		"numbers missing before the next day": {func(s *shop) {
			rest(s)
			s.numbers["1"] += 2
			s.sellAt("1", saturday.AddDays(1))
		}, ledger.ReasonTill, "1", "numbers 7 to 8 are missing between its last number of this day and its first of 2026-11-22"},
		"a till that begins anew and not at 1": {func(s *shop) {
			s.numbers["1"] = 1
			rest(s)
		}, ledger.ReasonTill, "1", "till 1: number 1 is missing"},
		"a till that is silent": {func(s *shop) {
			s.sellAt("1", saturday)
			s.cover(saturday, "door", 0, 24*time.Hour)
			s.mark(saturday)
		}, ledger.ReasonTill, "2", "till 2 sent nothing on this day"},
		"a silent till whose numbers went on": {func(s *shop) {
			s.sellAt("1", saturday)
			s.cover(saturday, "door", 0, 24*time.Hour)
			s.mark(saturday)
			s.numbers["2"]++
			s.sellAt("2", saturday.AddDays(1))
		}, ledger.ReasonTill, "2", "number 4 is missing between its last number of 2026-11-20 and its first of 2026-11-22"},
		"a till of head office that never came": {func(s *shop) {
			rest(s)
			s.must(s.b.ledger.PutRoster(s.b.t.Context(), chain, "0001", ledger.RosterEntry{Kind: ledger.RosterTill, ID: "9", FirstDay: friday}), s.b.t)
		}, ledger.ReasonTill, "9", "till 9 is expected and has sent nothing yet"},
		"a number with two contents": {func(s *shop) {
			s.trade(saturday)
			s.numbers["1"]--
			s.sell(saturday, func(x *protocol.Transaction) { x.Sequence, x.Operator = 6, "other" })
			s.mark(saturday)
		}, ledger.ReasonQuarantine, "pc-0001", "transaction 17 of epoch"},
		"a counter with a gap": {func(s *shop) {
			s.sellAt("1", saturday)
			s.sellAt("2", saturday)
			s.cover(saturday, "door", 0, 5*time.Hour)
			s.cover(saturday, "door", 6*time.Hour, 24*time.Hour)
			s.mark(saturday)
		}, ledger.ReasonCounter, "door", "no count covers 2026-11-21T09:00:00+01:00 to 2026-11-21T10:00:00+01:00"},
		"a counter that is silent": {func(s *shop) {
			s.sellAt("1", saturday)
			s.sellAt("2", saturday)
			s.mark(saturday)
		}, ledger.ReasonCounter, "door", "has counted nothing"},
		"a record that was not applied": {func(s *shop) {
			s.trade(saturday)
			s.send("strangeKind", saturday, `{"x":1}`)
			s.mark(saturday)
		}, ledger.ReasonQuarantine, "pc-0001", "strangeKind 17 of epoch"},
		"a hole in the day": {func(s *shop) {
			s.skip(2)
			rest(s)
		}, ledger.ReasonHole, "pc-0001", "records 10 to 11 of epoch 00000000000000000000000030303031 were lost at the agent (damaged)"},
		"a hole that took the seal of an epoch": {func(s *shop) {
			s.trade(saturday)
			s.epoch, s.seq, s.prev = protocol.Epoch(strings.Repeat("cd", 16)), 0, protocol.Hash{}
			s.skip(3)
			s.mark(saturday)
		}, ledger.ReasonHole, "pc-0001", "what is missing before the epoch is not known"},
		"a disk that lives twice": {func(s *shop) {
			rest(s)
			s.sql("INSERT INTO alarms (chain, store, agent, kind, detail, at) VALUES (1, '0001', 'pc-0001', 'fork', 'epoch x came with two contents', $1)", time.Date(2026, 11, 21, 18, 0, 0, 0, time.UTC).UnixMicro())
		}, ledger.ReasonAlarm, "pc-0001", "two contents"},
		"a day that has not ended": {func(s *shop) {
			rest(s)
			s.clock.set(time.Date(2026, 11, 22, 2, 59, 59, 0, time.UTC))
		}, ledger.ReasonOpen, "", "2026-11-22T04:00:00+01:00"},
		"an agent that head office expects": {func(s *shop) {
			rest(s)
			s.must(s.b.ledger.PutRoster(s.b.t.Context(), chain, "0001", ledger.RosterEntry{Kind: ledger.RosterAgent, ID: "pc-9", FirstDay: friday}), s.b.t)
		}, ledger.ReasonDayMark, "pc-9", "no mark"},
		"no agent at all": {func(s *shop) {
			s.must(s.b.ledger.PutRoster(s.b.t.Context(), chain, "0001", ledger.RosterEntry{Kind: ledger.RosterAgent, ID: "pc-0001", FirstDay: friday, LastDay: friday}), s.b.t)
		}, ledger.ReasonNobody, "", "nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			tt.saturday(s)
			c := s.certificate(certificatePath)
			if c.State != ledger.DayIncomplete {
				t.Fatalf("the day is %s", c.State)
			}
			if !slices.ContainsFunc(c.Reasons, func(r ledger.Reason) bool {
				return r.Kind == tt.kind && r.Who == tt.who && strings.Contains(r.What, tt.says)
			}) {
				t.Errorf("reasons %+v, want one of kind %s about %q that says %q", c.Reasons, tt.kind, tt.who, tt.says)
			}
		})
	}
}

// What does not make a day incomplete.
func TestBEY01ADayIsCompleteAllTheSame(t *testing.T) {
	for name, saturdayOf := range map[string]func(s *shop){
		"several epochs": func(s *shop) {
			s.restart(saturday)
			s.trade(saturday)
			s.restart(saturday)
			s.mark(saturday)
		},
		"a mark that was made anew": func(s *shop) {
			s.trade(saturday)
			s.markHead(saturday, protocol.Mark{Epoch: s.epoch, Through: s.seq, Hash: protocol.Hash{9}})
			s.mark(saturday)
		},
		"a receipt that came twice": func(s *shop) {
			s.trade(saturday)
			s.sell(saturday, func(x *protocol.Transaction) { x.Sequence = 6 })
			s.mark(saturday)
		},
		"tills that begin at 1 each day": func(s *shop) {
			clear(s.numbers)
			s.trade(saturday)
			s.mark(saturday)
			clear(s.numbers)
			s.trade(saturday.AddDays(1))
		},
		"a silent till whose next number proves it": func(s *shop) {
			s.sellAt("1", saturday)
			s.cover(saturday, "door", 0, 24*time.Hour)
			s.mark(saturday)
			s.sellAt("2", saturday.AddDays(1))
		},
		"a counter whose next count covers the night": func(s *shop) {
			s.sellAt("1", saturday)
			s.sellAt("2", saturday)
			s.cover(saturday, "door", 0, 14*time.Hour)
			s.mark(saturday)
			s.cover(saturday.AddDays(1), "door", -10*time.Hour, 5*time.Hour)
		},
		"a counter that is new": func(s *shop) {
			s.trade(saturday)
			s.cover(saturday, "side", 7*time.Hour, 24*time.Hour)
			s.mark(saturday)
		},
		"an alarm after the mark": func(s *shop) {
			s.trade(saturday)
			s.mark(saturday)
			s.sql("INSERT INTO alarms (chain, store, agent, kind, detail, at) VALUES (1, '0001', 'pc-0001', 'fork', 'x', $1)", time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC).UnixMicro())
		},
		"a hole behind the mark": func(s *shop) {
			s.trade(saturday)
			s.mark(saturday)
			s.skip(2)
			s.mark(saturday.AddDays(1))
		},
		"a hole whose records came after all": func(s *shop) {
			s.trade(saturday)
			lost := protocol.Record{Kind: protocol.KindDrawer, At: "2026-11-21T12:00:00+01:00", Day: saturday, Body: []byte(`{"drawer":"d","event":"opened","at":"2026-11-21T11:00:00Z"}`)}
			lost.Was = &protocol.Was{Epoch: s.epoch, Seq: s.seq + 1, SHA256: lost.ContentHash()}
			s.skip(1)
			s.restart(saturday)
			s.sendRecord(lost)
			s.mark(saturday)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			saturdayOf(s)
			if c := s.certificate(certificatePath); c.State != ledger.DayComplete {
				t.Errorf("the day is %s: %+v", c.State, c.Reasons)
			}
		})
	}
}

func TestBEY01ALateSaleRestates(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	first := s.file(certificatePath)
	s.clock.set(s.clock.time().Add(time.Hour))
	s.sellAt("1", saturday) // after the day was closed and certified
	second := s.certificate(certificatePath)
	if second.Version != 2 || second.State != ledger.DayComplete || second.Restates == nil || second.Restates.Version != 1 {
		t.Fatalf("after a late sale: %+v", second)
	}
	if got := strings.Join(second.Restates.Changes, "\n"); !strings.Contains(got, "records of kind transaction: 6 were here, now 7") ||
		!strings.Contains(got, "till 1: 3 receipts (numbers 4 to 6); now 4 receipts (numbers 4 to 7)") {
		t.Errorf("changes:\n%s", got)
	}
	if again := s.file(certificatePath + "?version=1"); !bytes.Equal(again, first) {
		t.Error("version 1 has changed")
	}
	s.send("strangeKind", saturday, `{"x":1}`)
	third := s.certificate(certificatePath)
	if third.Version != 3 || third.State != ledger.DayIncomplete || third.Restates.Version != 2 || !slices.Contains(third.Restates.Changes, "the day was complete and is incomplete") {
		t.Errorf("after a record that cannot be applied: %+v", third)
	}
	s.sellAt("1", saturday.AddDays(1)) // says nothing about Saturday
	if c := s.certificate(certificatePath); c.Version != 3 {
		t.Errorf("version %d after another day's sale, want 3", c.Version)
	}
}

func TestBEY01AnOpenDayIsNotKept(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.clock.set(time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC))
	for range 2 {
		s.sellAt("1", saturday)
		if c := s.certificate(certificatePath); c.Version != 0 || c.State != ledger.DayIncomplete || c.Reasons[0].Kind != ledger.ReasonOpen {
			t.Errorf("while the day is open: %+v", c)
		}
	}
	s.mark(saturday)
	s.clock.set(time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC))
	if c := s.certificate(certificatePath); c.Version != 1 || c.State != ledger.DayComplete {
		t.Errorf("when it has ended: %+v", c)
	}
}

func TestBEY01ManyWhoAskAtOnceGetOneVersion(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	for version := int64(1); version <= 3; version++ {
		files := make([][]byte, 12)
		var g sync.WaitGroup
		for i := range files {
			g.Go(func() {
				file, err := s.b.ledger.DayCertificate(t.Context(), chain, "0001", saturday, 0)
				if err != nil {
					t.Error(err)
				}
				files[i] = file
			})
		}
		g.Wait()
		for _, file := range files {
			if !bytes.Equal(file, files[0]) {
				t.Fatalf("several certificates:\n%s\n%s", file, files[0])
			}
		}
		c, err := ledger.ReadDayCertificate(files[0], s.roots())
		if err != nil || c.Version != version {
			t.Fatalf("%+v, %v, want version %d", c, err, version)
		}
		s.sellAt("1", saturday)
	}
}

func TestBEY01TheRosterDecidesWhoIsExpected(t *testing.T) {
	s := newShop(t)
	s.sellAt("1", saturday)
	s.cover(saturday, "door", 0, 24*time.Hour)
	s.mark(saturday)
	const path = "/v1/stores/0001/roster"
	if c := s.certificate(certificatePath); c.State != ledger.DayIncomplete {
		t.Fatal("the silent till 2 is not missed")
	}
	ask := func(method, query string, body any, status int) {
		t.Helper()
		if resp := s.b.do("admin", method, path+query, body); resp.StatusCode != status {
			text, _ := io.ReadAll(resp.Body)
			t.Fatalf("%s %s: %d %s, want %d", method, query, resp.StatusCode, text, status)
		}
	}
	ask("PUT", "", map[string]string{"kind": "workstation", "id": "2", "firstDay": "2026-01-01", "lastDay": "2026-11-20"}, http.StatusOK)
	if c := s.certificate(certificatePath); c.State != ledger.DayComplete {
		t.Errorf("till 2 has gone, and the day is %s: %+v", c.State, c.Reasons)
	}
	rows := get[struct{ Items []expected }](s.b, "admin", path+"?day=2026-11-21").Items
	want := []expected{
		{"agent", "pc-0001", true, "seen", "2026-11-20", "2026-11-21"},
		{"counter", "door", true, "seen", "2026-11-20", "2026-11-21"},
		{"workstation", "1", true, "seen", "2026-11-20", "2026-11-21"},
		{"workstation", "2", false, "headOffice", "2026-01-01", "2026-11-20"},
	}
	if !slices.Equal(rows, want) {
		t.Errorf("roster %+v, want %+v", rows, want)
	}
	ask("PUT", "", map[string]string{"kind": "workstation", "id": "2", "firstDay": "2026-01-02", "lastDay": "2026-01-01"}, http.StatusUnprocessableEntity)
	ask("PUT", "", map[string]string{"kind": "robot", "id": "2", "firstDay": "2026-01-02"}, http.StatusUnprocessableEntity)
	ask("DELETE", "?kind=workstation&id=2", nil, http.StatusOK)
	ask("DELETE", "?kind=workstation&id=2", nil, http.StatusNotFound)
	if c := s.certificate(certificatePath); c.State != ledger.DayIncomplete {
		t.Error("nobody says any more that till 2 has gone, and it is not missed")
	}
	// 35 days of silence, and nobody waits for it.
	late := get[struct{ Items []expected }](s.b, "admin", path+"?day=2026-12-25").Items
	if slices.ContainsFunc(late, func(e expected) bool { return e.Kind == "workstation" && e.ID == "2" }) {
		t.Errorf("35 days later: %+v", late)
	}
}

func TestBEY01ARevokedAgentIsExpectedUntilItsLastDay(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.must(s.b.ledger.SetAgentState(t.Context(), s.origin, ledger.AgentRevoked), t)
	c := s.certificate(certificatePath)
	if !slices.ContainsFunc(c.Reasons, func(r ledger.Reason) bool { return r.Kind == ledger.ReasonDayMark && r.Who == "pc-0001" }) {
		t.Errorf("on its last day: %+v, want its mark missed", c.Reasons)
	}
	s.clock.set(time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC))
	c = s.certificate("/v1/stores/0001/days/2026-11-22/certificate")
	if slices.ContainsFunc(c.Reasons, func(r ledger.Reason) bool { return r.Kind == ledger.ReasonDayMark }) {
		t.Errorf("on the day after: %+v, want no mark missed", c.Reasons)
	}
}

func TestBEY01AChangedFileIsRefused(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	file, roots := bytes.TrimSpace(s.file(certificatePath)), s.roots()
	var pretty bytes.Buffer
	s.must(json.Indent(&pretty, file, "", "  "), t)
	if _, err := ledger.ReadDayCertificate(pretty.Bytes(), roots); err != nil {
		t.Errorf("the same with white space: %v", err)
	}
	for i := range file {
		for _, bit := range []byte{1, 2, 32} {
			forged := bytes.Clone(file)
			forged[i] ^= bit
			if c, err := ledger.ReadDayCertificate(forged, roots); err == nil {
				t.Fatalf("byte %d changed from %q to %q is taken: %+v", i, file[i], forged[i], c)
			}
		}
	}
	other := newShop(t)
	other.trade(saturday)
	other.mark(saturday)
	if _, err := ledger.ReadDayCertificate(other.file(certificatePath), roots); !errors.Is(err, ca.ErrSignature) {
		t.Errorf("of another authority: %v", err)
	}
	for name, text := range map[string]string{
		"twice the same member": strings.Replace(string(file), `{"certificate":`, `{"certificate":{},"certificate":`, 1),
		"another member":        strings.Replace(string(file), `{"certificate":`, `{"x":1,"certificate":`, 1),
		"more behind it":        string(file) + "{}",
		"half of it":            string(file[:len(file)/2]),
		"nothing":               "",
		"a member missing":      `{"certificate":{},"signature":""}`,
	} {
		if _, err := ledger.ReadDayCertificate([]byte(text), roots); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// Signed with a key of the authority that is for something else: an agent's.
	var signed ledger.SignedCertificate
	s.must(json.Unmarshal(file, &signed), t)
	public, key, err := ed25519.GenerateKey(rand.Reader)
	s.must(err, t)
	cert, _, err := s.b.ca.IssueAgent(s.origin, time.Hour, public)
	s.must(err, t)
	block, _ := pem.Decode(cert)
	signed.Signature, signed.SignedBy = ed25519.Sign(key, signed.Certificate), block.Bytes
	forged, err := json.Marshal(signed)
	s.must(err, t)
	if _, err := ledger.ReadDayCertificate(forged, roots); !errors.Is(err, ca.ErrSignature) {
		t.Errorf("signed by an agent: %v, want ErrSignature", err)
	}
}

func TestBEY01ACertificateNeedsItsScopeAndItsStore(t *testing.T) {
	s := newShop(t)
	s.b.token("kpis", nil, ScopeKPIs)
	s.b.token("auditor", nil, ScopeCertificates, ScopeAlarms)
	s.b.token("other", []string{"0002"}, ScopeAdmin)
	s.b.wantProblem(s.b.do("kpis", "GET", certificatePath, nil), http.StatusForbidden, ScopeCertificates)
	s.b.wantProblem(s.b.do("kpis", "GET", "/v1/alarms", nil), http.StatusForbidden, ScopeAlarms)
	s.b.wantProblem(s.b.do("other", "GET", certificatePath, nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("other", "GET", "/v1/stores/0001/roster?day=2026-11-21", nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("other", "DELETE", "/v1/stores/0001/roster?kind=agent&id=x", nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("auditor", "PUT", "/v1/stores/0001/roster", map[string]string{"kind": "agent", "id": "x", "firstDay": "2026-01-01"}), http.StatusForbidden, ScopeStoresWrite)
	get[any](s.b, "auditor", certificatePath)
}

func TestAnExpiredCertificateIsAnAlarm(t *testing.T) {
	s := newShop(t)
	cert, _, err := s.b.ca.IssueAgent(s.origin, -time.Hour, nil)
	s.must(err, t)
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	s.must(err, t)
	for range 2 {
		s.must(s.b.ledger.KeepCertificate(t.Context(), s.origin, leaf), t)
	}
	type alarms struct{ Items []ledger.Alarm }
	s.clock.set(time.Now().Add(time.Hour))
	s.must(s.b.ledger.KeepCertificate(t.Context(), s.origin, leaf), t)
	found := get[alarms](s.b, "admin", "/v1/alarms").Items
	if len(found) != 1 || found[0].Kind != ledger.AlarmCertificateExpired || found[0].Agent != "pc-0001" {
		t.Errorf("alarms %+v, want one that the certificate has expired", found)
	}
	s.b.token("two", []string{"0002"}, ScopeAlarms)
	if found := get[alarms](s.b, "two", "/v1/alarms").Items; len(found) != 0 {
		t.Errorf("another store's token sees %+v", found)
	}
}
