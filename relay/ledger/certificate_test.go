package ledger_test

import (
	"crypto"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// openStore opens a house with store 0001.
func openStore(t *testing.T, url string) *house {
	t.Helper()
	h := openHouse(t, url)
	if err := h.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}); err != nil {
		t.Fatal(err)
	}
	return h
}

// certificate gives the certificate of store 0001's day as anybody reads it.
func (h *house) certificate(day protocol.Day) *ledger.DayCertificate {
	h.t.Helper()
	file, err := h.DayCertificate(h.t.Context(), chain, "0001", day, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := ledger.ReadDayCertificate(file, h.ca.Roots())
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// wants checks the state of a day, and that each reason begins a text in order.
func (h *house) wants(day protocol.Day, state string, reasons ...string) {
	h.t.Helper()
	c := h.certificate(day)
	ok := c.State == state && len(c.Reasons) == len(reasons)
	for i := 0; ok && i < len(reasons); i++ {
		ok = strings.HasPrefix(c.Reasons[i].What, reasons[i])
	}
	if !ok {
		h.t.Errorf("%s is %s: %+v; want %s with %q", day, c.State, c.Reasons, state, reasons)
	}
}

// skip loses the agent's next n records, with a raw one beside when that is not nil.
func (s *signing) skip(n uint64, raw []byte) {
	s.h.t.Helper()
	skip := &protocol.Skip{From: s.seq + 1, To: s.seq + n, Hash: protocol.Hash{byte(n)}, Reason: protocol.SkipDamaged}
	answer := commit(s.h.t, s.h.Ledger, s.agent, protocol.Batch{Epoch: s.epoch, First: skip.From, Prev: s.hash, Skip: skip, Raw: raw, Records: []protocol.Record{}})
	if answer.Verdict != protocol.VerdictAck || answer.Through != skip.To {
		s.h.t.Fatalf("skip: %+v", answer)
	}
	s.seq, s.hash = skip.To, skip.Hash
}

func TestAMarkThatNobodySignedBoundsNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2, 3)
		pc.end(day)
		h.wants(day, ledger.DayComplete)
		h.tamper("SELECT body FROM records WHERE pos = 2", "UPDATE records SET body = $1 WHERE pos = 2", dearer)
		const changed = "agent pc: record 2 of epoch"
		h.wants(day, ledger.DayIncomplete, changed)
		// Below it nothing would be looked at.
		h.sql("INSERT INTO day_marks (chain, store, day, agent, epoch, seq, head_epoch, head_seq, head_hash, certificate, signature) SELECT 1, '0001', $1, 'pc', $2, 3, $2, 3, hash, $3, $3 FROM records WHERE pos = 3",
			day.AddDays(-1).String(), string(epochOf(1)), []byte{1})
		h.wants(day, ledger.DayIncomplete, changed)
	})
}

func TestAHoleIsFilledByRecordsAlone(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2)
		pc.skip(2, nil)
		pc.end(day)
		const lost = "records 4 to 5 of epoch"
		h.wants(day, ledger.DayIncomplete, lost)
		h.sql("INSERT INTO resent (chain, store, agent, epoch, seq, sha256) VALUES (1, '0001', 'pc', $1, 4, $2), (1, '0001', 'pc', $1, 5, $2)", string(epochOf(1)), make([]byte, 32))
		h.wants(day, ledger.DayIncomplete, lost)
		h.sql("DELETE FROM resent")
		// One comes again and is applied, one is known by its business key already.
		fourth, fifth := transaction(t, sale("0001", 3)), transaction(t, sale("0001", 1))
		fourth.Was = &protocol.Was{Epoch: epochOf(1), Seq: 4, SHA256: fourth.ContentHash()}
		fifth.Was = &protocol.Was{Epoch: epochOf(1), Seq: 5, SHA256: fifth.ContentHash()}
		pc.restart(2)
		pc.send(fourth)
		h.wants(day, ledger.DayIncomplete, lost)
		pc.send(fifth)
		h.wants(day, ledger.DayComplete)
		h.tamper("SELECT body FROM records WHERE was IS NOT NULL", "UPDATE records SET body = $1 WHERE was IS NOT NULL", dearer)
		h.wants(day, ledger.DayIncomplete, lost)
	})
}

// TestAnUnreadableRecordFillsNoHole: it may have been of the day, and comes a day late.
func TestAnUnreadableRecordFillsNoHole(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2)
		pc.skip(1, []byte("{nonsense"))
		pc.end(day)
		h.wants(day, ledger.DayIncomplete, "record 4 of epoch "+string(epochOf(1))+" was lost at the agent")
	})
}

func TestNumbersThatBeginAgainBehindTheirHighestAreNoHole(t *testing.T) {
	next := day.AddDays(1)
	for name, tt := range map[string]struct {
		before, today, behind []int64
		reasons               []string
		first, last           int64
	}{
		"9999 and 1 again":               {[]int64{9996, 9997}, []int64{9998, 9999, 1, 2}, []int64{3}, nil, 9998, 2},
		"on the first day":               {nil, []int64{9998, 9999, 1, 2}, nil, nil, 9998, 2},
		"in disorder within the runs":    {[]int64{99996}, []int64{99998, 99997, 99999, 2, 1}, []int64{3}, nil, 99997, 2},
		"a number missing before":        {[]int64{9996}, []int64{9998, 9999, 1, 2}, []int64{3}, []string{"till 1: number 9997 is missing between"}, 9998, 2},
		"a number missing behind":        {[]int64{9997}, []int64{9998, 9999, 1, 2}, []int64{4}, []string{"till 1: number 3 is missing between"}, 9998, 2},
		"a number missing in each run":   {[]int64{9996}, []int64{9997, 9999, 1, 3}, []int64{4}, []string{"till 1: number 2 is missing", "till 1: number 9998 is missing"}, 9997, 3},
		"the other way about":            {nil, []int64{1, 2, 9998, 9999}, nil, []string{"till 1: numbers 3 to 9997 are missing"}, 1, 9999},
		"set back before its highest":    {[]int64{5000}, []int64{5001, 1, 2}, nil, []string{"till 1: numbers 3 to 5000 are missing"}, 1, 5001},
		"the highest one is not there":   {nil, []int64{9998, 1, 2}, nil, []string{"till 1: numbers 3 to 9997 are missing"}, 1, 9998},
		"the first one is not there":     {[]int64{9997}, []int64{9998, 9999, 2}, nil, []string{"till 1: numbers 3 to 9997 are missing", "till 1: number 1 is missing"}, 2, 9999},
		"a second pass over the highest": {nil, []int64{9998, 9999, 5, 6, 1, 2}, nil, []string{"till 1: numbers 3 to 4 are missing", "till 1: numbers 7 to 9997 are missing"}, 1, 9999},
	} {
		t.Run(name, func(t *testing.T) {
			h := openStore(t, sqliteURL(t))
			pc := h.agent("0001", "pc", 1)
			acked(t, h.Ledger, pc.agent, pc.begin())
			sell := func(day protocol.Day, numbers []int64) {
				for _, n := range numbers {
					x := sale("0001", n)
					x.BusinessDay = day
					pc.send(transaction(t, x))
				}
			}
			sell(day.AddDays(-1), tt.before)
			sell(day, tt.today)
			pc.end(day)
			sell(next, tt.behind)
			state := ledger.DayComplete
			if tt.reasons != nil {
				state = ledger.DayIncomplete
			}
			h.wants(day, state, tt.reasons...)
			till := h.certificate(day).Tills[0]
			if till.First != tt.first || till.Last != tt.last || till.Wrapped != (tt.last < tt.first) {
				t.Errorf("till %+v, want numbers %d to %d", till, tt.first, tt.last)
			}
			if tt.behind != nil && tt.reasons == nil { // and the days around know it
				pc.end(next)
				h.wants(next, ledger.DayComplete)
			}
		})
	}
}

// TestASilentDayBetweenTheHighestNumberAndTheFirst proves itself.
func TestASilentDayBetweenTheHighestNumberAndTheFirst(t *testing.T) {
	h := openStore(t, sqliteURL(t))
	pc := h.agent("0001", "pc", 1)
	acked(t, h.Ledger, pc.agent, pc.begin())
	for _, s := range []struct {
		on int
		n  int64
	}{{-2, 9997}, {-1, 9998}, {-1, 9999}, {1, 1}, {2, 2}} {
		x := sale("0001", s.n)
		x.BusinessDay = day.AddDays(s.on)
		pc.send(transaction(t, x))
	}
	pc.end(day)
	h.wants(day, ledger.DayComplete)
}

func TestHeadOfficeSettlesWhatNobodyCanBring(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(5000, 1, 2) // a till that was replaced
		other := sale("0001", 1)
		other.Total, other.Operator = 10000, "anna"
		pc.send(transaction(t, other)) // a receipt in conflict
		pc.end(day)
		h.sql("INSERT INTO alarms (chain, store, agent, kind, detail, at) VALUES (1, '0001', 'pc', 'sealedTwice', 'epoch x is sealed a second time', $1)", timeOf(t, noon).UnixMicro())
		first := h.certificate(day)
		if first.State != ledger.DayIncomplete || len(first.Reasons) != 3 {
			t.Fatalf("%s: %+v, want three reasons", first.State, first.Reasons)
		}
		settle := func(r ledger.Reason) error {
			return h.Settle(t.Context(), chain, "0001", day, ledger.Settlement{Reason: r, By: "Berit", Why: "the till was replaced at noon", Through: "token office"})
		}
		for i, r := range first.Reasons {
			if err := settle(r); err != nil {
				t.Fatal(err)
			}
			c := h.certificate(day)
			want := ledger.DayIncomplete
			if i == 2 {
				want = ledger.DaySettled
			}
			if s := c.Reasons[i].Settled; c.State != want || len(c.Reasons) != 3 || s == nil || s.By != "Berit" || s.Why != "the till was replaced at noon" || s.Through != "token office" || s.At.IsZero() {
				t.Fatalf("after %d are settled the day is %s: %+v, want it %s", i+1, c.State, c.Reasons, want)
			}
			if c.Version != int64(i+2) || !strings.HasPrefix(c.Restates.Changes[len(c.Restates.Changes)-1], "settled by Berit: ") && i < 2 {
				t.Errorf("version %d restates %+v", c.Version, c.Restates)
			}
		}
		if err := settle(first.Reasons[0]); !errors.Is(err, ledger.ErrExists) {
			t.Errorf("once more: %v, want ErrExists", err)
		}
		for _, f := range h.audit().Findings {
			if f.Kind == "certificate" {
				t.Errorf("the audit finds %s", f)
			}
		}
		// Another reason opens the day again, and what is taken back is open.
		pc.sell(7)
		h.wants(day, ledger.DayIncomplete, "till 1: numbers 3 to 6 are missing", "till 1: numbers 8 to 4999 are missing", "transaction 5 of epoch", "alarm sealedTwice")
		if err := h.Unsettle(t.Context(), chain, "0001", day, first.Reasons[2]); err != nil {
			t.Fatal(err)
		}
		if err := h.Unsettle(t.Context(), chain, "0001", day, first.Reasons[2]); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("taken back twice: %v, want ErrNotFound", err)
		}
		if c := h.certificate(day); c.Reasons[3].Settled != nil || c.Reasons[2].Settled == nil {
			t.Errorf("after one is taken back: %+v", c.Reasons)
		}
	})
}

func TestWhatCannotBeSettled(t *testing.T) {
	h := openStore(t, sqliteURL(t))
	pc := h.agent("0001", "pc", 1)
	acked(t, h.Ledger, pc.agent, pc.begin())
	pc.sell(1, 2)
	pc.end(day)
	h.tamper("SELECT body FROM records WHERE pos = 2", "UPDATE records SET body = $1 WHERE pos = 2", dearer)
	changed := h.certificate(day).Reasons[0]
	open := h.certificate(day.AddDays(100_000)).Reasons[0]
	for name, tt := range map[string]struct {
		day protocol.Day
		s   ledger.Settlement
		is  error
	}{
		"a record that was changed":      {day, ledger.Settlement{Reason: changed, By: "B", Why: "x"}, nil},
		"a day that has not ended":       {day.AddDays(100_000), ledger.Settlement{Reason: open, By: "B", Why: "x"}, nil},
		"more that is not named":         {day, ledger.Settlement{Reason: ledger.Reason{Kind: ledger.ReasonQuarantine, What: "and 5 more records were received and not applied"}, By: "B", Why: "x"}, nil},
		"nobody answers for it":          {day, ledger.Settlement{Reason: ledger.Reason{Kind: ledger.ReasonTill, Who: "1", What: "x"}, Why: "x"}, nil},
		"nobody says why":                {day, ledger.Settlement{Reason: ledger.Reason{Kind: ledger.ReasonTill, Who: "1", What: "x"}, By: " "}, nil},
		"what does not stand against it": {day, ledger.Settlement{Reason: ledger.Reason{Kind: ledger.ReasonTill, Who: "1", What: "x"}, By: "B", Why: "x"}, ledger.ErrNotFound},
	} {
		err := h.Settle(t.Context(), chain, "0001", tt.day, tt.s)
		var faults protocol.Faults
		if tt.is != nil && !errors.Is(err, tt.is) || tt.is == nil && !errors.As(err, &faults) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nor by whoever may write to the database.
	h.sql("INSERT INTO settlements (chain, store, day, kind, who, what, said_by, why, through, at) VALUES (1, '0001', $1, $2, $3, $4, 'x', 'x', 'x', 1)", day.String(), changed.Kind, changed.Who, changed.What)
	h.wants(day, ledger.DayIncomplete, changed.What)
}

// conflict is a receipt of another business day that comes on day with other content than the
// one before.
func (s *signing) conflict(of protocol.Day, number int64, filler int) {
	s.h.t.Helper()
	for _, operator := range []string{"anna", "bo" + strings.Repeat("o", filler)} {
		x := sale("0001", number)
		x.BusinessDay, x.Operator = of, operator
		s.send(transaction(s.h.t, x))
	}
}

func TestAReceiptInQuarantineBearsOnItsOwnBusinessDay(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		friday := day.AddDays(-3)
		pc.conflict(friday, 1, 0)
		const nobody, says = "no agent of the store is expected", "transaction 3 of epoch"
		h.wants(friday, ledger.DayIncomplete, nobody, says)
		h.wants(day.AddDays(-1), ledger.DayIncomplete, nobody, "till 1 sent nothing")
		// A ledger of an older version has no such column: its rows are read once.
		for _, text := range []string{"DROP INDEX quarantined_day", "DROP INDEX quarantined_business_day"} {
			execute(t, h.url, text)
		}
		h.sql("UPDATE quarantined SET business_day = ''")
		h.sql("DELETE FROM goose_db_version WHERE version_id >= 6")
		h.sql("DELETE FROM day_certificates")
		again, err := ledger.Open(t.Context(), url, ledger.Options{CA: h.ca})
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		if got := selected(t, url, "SELECT seq, business_day FROM quarantined"); len(got) != 1 || got[0] != "3 "+friday.String() {
			t.Errorf("in quarantine %q, want the receipt's business day", got)
		}
		h.wants(friday, ledger.DayIncomplete, nobody, says)
	})
}

// TestACertificateReadsNoBodiesOfOtherDays: quarantine may hold a lot.
func TestACertificateReadsNoBodiesOfOtherDays(t *testing.T) {
	h := openStore(t, sqliteURL(t))
	pc := h.agent("0001", "pc", 1)
	acked(t, h.Ledger, pc.agent, pc.begin())
	const n, size = 100, 60_000
	friday := day.AddDays(-3)
	for i := range int64(n) {
		pc.conflict(friday, i+1, size)
	}
	pc.sell(1)
	pc.end(day)
	held := selected(t, h.url, "SELECT count(*), min(length(record)) FROM quarantined")
	if !strings.HasPrefix(held[0], "100 60") {
		t.Fatalf("in quarantine %q, want %d of %d bytes", held, n, size)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	h.certificate(day.AddDays(1))
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > n*size/2 {
		t.Errorf("a certificate of another day takes %d bytes, and %d are in quarantine", got, n*size)
	}
}

func TestNoCertificateIsKeptOfADayBeforeTheStoreBegan(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		h.wants(day, ledger.DayIncomplete, "no agent of the store is expected")
		pc := h.agent("0001", "pc", 1)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1)
		for i := 1; i < 50; i++ {
			if c := h.certificate(day.AddDays(-i)); c.Version != 0 || c.State != ledger.DayIncomplete {
				t.Fatalf("%d days before: version %d, %s", i, c.Version, c.State)
			}
		}
		if c := h.certificate(day); c.Version != 1 {
			t.Errorf("of the store's first day: version %d, want 1", c.Version)
		}
		if got := selected(t, url, "SELECT day, version FROM day_certificates"); len(got) != 1 || got[0] != day.String()+" 1" {
			t.Errorf("kept %q, want that of the first day alone", got)
		}
	})
}

// TestAMarkThatWasBroughtByHandIsNoNewerOne: a former disk of the agent was drained, and its
// mark of a day applied.
func TestAMarkThatWasBroughtByHandIsNoNewerOne(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		h := openStore(t, url)
		pc, courier := h.agent("0001", "pc", 1), newAgent(t, "0002", "courier", 7)
		acked(t, h.Ledger, pc.agent, pc.begin())
		pc.sell(1, 2)
		pc.end(day)
		former := &signing{agent: newAgent(t, "0001", "pc", 9), h: h, pair: pc.pair}
		b := former.begin()
		head := former.mark()
		m, err := protocol.SignDayMark(former.from, day, head, former.pair.Certificate[0], former.pair.PrivateKey.(crypto.Signer))
		if err != nil {
			t.Fatal(err)
		}
		b.Of = &pc.from
		b.Records = append(b.Records, former.batch(record(t, protocol.KindDayMark, m)).Records...)
		acked(t, h.Ledger, courier, b)
		held, err := h.Quarantined(t.Context(), chain, 0)
		if err != nil || len(held) != 2 || held[1].Kind != protocol.KindDayMark {
			t.Fatalf("in quarantine %+v, %v; want a seal and a mark", held, err)
		}
		if err := h.RetryQuarantined(t.Context(), chain, held[1].ID); err != nil {
			t.Fatal(err)
		}
		c := h.certificate(day)
		if a := c.Agents[0]; !a.Complete || a.Mark.Head.Epoch != pc.epoch || len(c.Reasons) != 1 || c.Reasons[0].Kind != ledger.ReasonQuarantine {
			t.Errorf("agent %+v, reasons %+v; want its own mark, and the seal in quarantine", a, c.Reasons)
		}
	})
}
