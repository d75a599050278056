package ledger_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// openShop opens a ledger with a store, and an agent that has begun its first epoch.
func openShop(t *testing.T, url string) (*house, *signing) {
	t.Helper()
	h := openHouse(t, url)
	if err := h.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}); err != nil {
		t.Fatal(err)
	}
	pc := h.agent("0001", "pc", 1)
	acked(t, h.Ledger, pc.agent, pc.begin())
	return h, pc
}

// trusting audits with alarms trusted.
func (h *house) trusting() *ledger.AuditReport {
	h.t.Helper()
	report, err := h.Audit(h.t.Context(), ledger.AuditOptions{Roots: h.ca.Roots(), TrustAlarms: true})
	if err != nil {
		h.t.Fatal(err)
	}
	return report
}

// makeDearer makes a sale dearer, with every hash of its epoch and every sum.
func (h *house) makeDearer(pos, epoch int, after uint64) {
	h.t.Helper()
	h.tamper(fmt.Sprintf("SELECT body FROM records WHERE pos = %d", pos), fmt.Sprintf("UPDATE records SET body = $1 WHERE pos = %d", pos), dearer)
	h.forge(epoch, after)
	h.sql("UPDATE kpis SET gross_sales = gross_sales + 80000, turnover_incl = turnover_incl + 80000, turnover_ex = turnover_ex + 80000 WHERE store = '0001' AND currency = 'SEK'")
}

// kinds are the kinds of what an audit found.
func kinds(found []ledger.Finding) string {
	var all []string
	for _, f := range found {
		all = append(all, f.Kind)
	}
	return strings.Join(all, " ")
}

func TestBEY10AnAlarmThatSomebodyWroteExcusesNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h, pc := openShop(t, url)
		pc.sell(1, 2)
		pc.restart(2)
		pc.sell(3)
		pc.end(day)
		if r := h.audit(); len(r.Findings) != 0 || r.Unsigned != 1 {
			t.Fatalf("untouched: %+v", r)
		}
		h.makeDearer(2, 1, 0)
		if r := h.audit(); kinds(r.Findings) != "changed" {
			t.Errorf("without an alarm: %v", r.Findings)
		}
		raise := "INSERT INTO alarms (chain, store, agent, kind, detail, at) VALUES (1, '0001', 'pc', $1, $2, 0)"
		h.sql(raise, ledger.AlarmSealedTwice, fmt.Sprintf("epoch %s is sealed a second time", epochOf(1)))
		if r := h.audit(); kinds(r.Findings) != "changed" {
			t.Errorf("with one of another kind: %v", r.Findings)
		}
		h.sql(raise, ledger.AlarmSealDiffers, fmt.Sprintf("epoch %s seals %s at 3 with another hash", epochOf(2), epochOf(1)))
		if r := h.audit(); kinds(r.Findings) != "alarm" || len(r.Alarms) != 1 {
			t.Errorf("with one: %v", r.Findings)
		}
		if r := h.trusting(); len(r.Findings) != 0 || len(r.Alarms) != 1 || r.Unsigned != 4 {
			t.Errorf("with one that is trusted: %+v", r)
		}
	})
}

// A disk that went back in time leaves an epoch that goes on behind its seal. When the agent
// signed both, no alarm needs to be trusted; but one was raised then.
func TestBEY10TwoSignedWordsThatDisagreeNeedNoTrust(t *testing.T) {
	for _, signed := range []bool{true, false} {
		h, pc := openShop(t, sqliteURL(t))
		pc.sell(1)
		back := *pc.agent
		pc.sell(2)
		if signed {
			pc.end(day)
		}
		*pc.agent = back
		pc.restart(2)
		pc.end(day.AddDays(1))
		alone, without := "", "alarm"
		if !signed {
			alone, without = "alarm", "inserted"
		}
		if r := h.audit(); kinds(r.Findings) != alone || kinds(r.Alarms) != alone || len(h.trusting().Findings) != 0 {
			t.Errorf("signed %t: %v, alarms %v", signed, r.Findings, r.Alarms)
		}
		h.sql("DELETE FROM alarms")
		if r := h.audit(); kinds(r.Findings) != without {
			t.Errorf("signed %t, without alarms: %v", signed, r.Findings)
		}
	}
}

// Two installations of one agent: each says that it is the first.
func TestBEY10TwoSignedFirstEpochsNeedNoTrust(t *testing.T) {
	h, pc := openShop(t, sqliteURL(t))
	pc.sell(1)
	pc.end(day)
	pc.epoch, pc.seq, pc.hash = epochOf(2), 0, protocol.Genesis(chain, "0001", "pc", epochOf(2))
	pc.send(seal(t, nil, false))
	if r := h.audit(); kinds(r.Findings) != "alarm" {
		t.Errorf("before the second has signed: %v", r.Findings)
	}
	pc.end(day.AddDays(1))
	if r := h.audit(); len(r.Findings) != 0 || len(r.Alarms) != 0 {
		t.Errorf("when both have: %v", r.Findings)
	}
	h.sql("DELETE FROM alarms")
	if r := h.audit(); kinds(r.Findings) != "alarm" || len(h.trusting().Findings) != 1 {
		t.Errorf("without the alarm of then: %v", r.Findings)
	}
}

// A hole's hash is not computed from the records before it, so a mark behind it does not speak
// for them.
func TestBEY10NoMarkSpeaksForWhatLiesBeforeAHole(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openHouse(t, url)
		h.trade()
		before := h.audit()
		h.makeDearer(19, 2, 1)
		if after := h.audit(); len(after.Findings) != 0 || after.Unsigned != before.Unsigned || before.Unsigned != 6 {
			t.Errorf("%d unsigned before, %d after, want 6: the last records of three streams, and two before the hole and the one that only they seal: %v", before.Unsigned, after.Unsigned, after.Findings)
		}
	})
}
