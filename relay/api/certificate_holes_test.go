package api

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

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
		"a mark that came before the day had ended": {func(s *shop) {
			s.trade(saturday)
			s.clock.set(time.Date(2026, 11, 22, 2, 59, 59, 0, time.UTC))
			s.mark(saturday)
			s.clock.set(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
		}, ledger.ReasonDayMark, "pc-0001", "marked before the day ended"},
		"a mark of a clock that was ahead": {func(s *shop) {
			s.trade(saturday)
			s.markAt(saturday, "2026-11-24T12:00:00+01:00")
		}, ledger.ReasonDayMark, "pc-0001", "marked before the day ended"},
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
		"a mark that was early, and another when the day had ended": func(s *shop) {
			s.clock.set(time.Date(2026, 11, 22, 2, 0, 0, 0, time.UTC))
			s.mark(saturday)
			s.trade(saturday)
			s.clock.set(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
			s.mark(saturday)
		},
		"the day before marked again behind it": func(s *shop) {
			s.trade(saturday)
			s.mark(saturday)
			s.skip(2)
			s.mark(friday)
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
