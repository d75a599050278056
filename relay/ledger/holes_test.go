package ledger_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// lose moves the agent's stream over records that it does not hold any more, and gives the
// skip over them with what stands behind.
func (a *agent) lose(lost []protocol.Record, behind ...protocol.Record) protocol.Batch {
	b := a.batch(lost...)
	b.Skip = &protocol.Skip{From: b.First, To: a.seq, Hash: a.hash, Reason: protocol.SkipDamaged}
	b.Records = a.batch(behind...).Records
	return b
}

func details(t *testing.T, l *ledger.Ledger, kind string) (details []string) {
	t.Helper()
	alarms, err := l.Alarms(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range alarms {
		if a.Kind == kind {
			details = append(details, a.Detail)
		}
	}
	slices.Sort(details)
	return details
}

func sales(t testing.TB, sequences ...int64) (records []protocol.Record) {
	for _, n := range sequences {
		records = append(records, transaction(t, sale("0001", n)))
	}
	return records
}

// sequences are those of the transactions that are applied, in the chain's order.
func sequences(t *testing.T, l *ledger.Ledger) (applied []int64) {
	t.Helper()
	for _, r := range transactions(t, l, ledger.TransactionQuery{Limit: 1000}) {
		applied = append(applied, r.Sequence)
	}
	return applied
}

func TestASkipIsANamedHoleAndTheRestGoesOn(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, stop := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(sales(t, 1)...))
		skip := a.lose(sales(t, 2, 3, 4), sales(t, 5, 6)...)
		early := skip
		early.First, early.Skip = 4, &protocol.Skip{From: 4, To: 5, Hash: skip.Skip.Hash}
		if got := commit(t, l, a, early); got.Verdict != protocol.VerdictGap || got.Through != 2 {
			t.Errorf("a skip that begins behind the stream's end: %+v, want a gap at 2", got)
		}
		for range 2 { // the ack may get lost
			acked(t, l, a, skip)
		}
		mark := a.mark()
		w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Newest: protocol.Position{Epoch: a.epoch, Seq: 7}})
		if err != nil || !slices.Equal(w.Marks, []protocol.Mark{mark}) {
			t.Errorf("marks %+v, %v, want %+v", w.Marks, err, mark)
		}
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 5, 6}) {
			t.Errorf("applied %d", got)
		}
		want := []string{"records 3 to 5 of epoch " + string(a.epoch) + " are lost: damaged"}
		if got := details(t, l, ledger.AlarmHole); !slices.Equal(got, want) {
			t.Errorf("alarms %q, want %q", got, want)
		}
		if got := holes(t, url); !slices.Equal(got, []string{"pc " + string(a.epoch) + " 3..5 damaged 2026-03-02 " + skip.Skip.Hash.String()}) {
			t.Errorf("holes %q", got)
		}
		// After a restart a batch is compared across the hole.
		stop()
		l, _ = open(t, url)
		acked(t, l, a, skip)
		acked(t, l, a, a.batch(sales(t, 7)...))
	})
}

func TestASkipIsCutWhereTheLedgerHasTheRecords(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		first := a.begin(sales(t, 1, 2, 3)...)
		a.batch(sales(t, 4, 5)...) // lost
		skip := protocol.Batch{Epoch: a.epoch, First: 3, Skip: &protocol.Skip{From: 3, To: a.seq, Hash: a.hash, Reason: protocol.SkipTrimmed}}
		skip.Records = a.batch(sales(t, 6)...).Records
		acked(t, l, a, first)
		acked(t, l, a, skip)
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 2, 3, 6}) {
			t.Errorf("applied %d, want what came before the skip to stay", got)
		}
		if got := details(t, l, ledger.AlarmHole); len(got) != 1 || !strings.HasPrefix(got[0], "records 5 to 6 of ") || !strings.HasSuffix(got[0], ": trimmed") {
			t.Errorf("alarms %q, want a hole from 5 to 6", got)
		}
		// A skip over what is all here is known, and compared.
		whole := protocol.Batch{Epoch: a.epoch, First: 2, Skip: &protocol.Skip{From: 2, To: 4, Hash: first.Records[3].Hash(first.Records[2].Hash(first.Records[1].Hash(first.Records[0].Hash(first.Prev))))}}
		acked(t, l, a, whole)
		whole.Skip.Hash[0]++
		if got := commit(t, l, a, whole); got.Verdict != protocol.VerdictFork {
			t.Errorf("a skip to another hash: %+v, want fork", got)
		}
		strange := protocol.Batch{Epoch: a.epoch, First: a.seq + 1, Prev: protocol.Hash{7}, Skip: &protocol.Skip{From: a.seq + 1, To: a.seq + 2}}
		if got := commit(t, l, a, strange); got.Verdict != protocol.VerdictFork {
			t.Errorf("a skip behind another record: %+v, want fork", got)
		}
		if len(holes(t, url)) != 1 {
			t.Errorf("holes %q, want one", holes(t, url))
		}
	})
}

func TestAReasonOfAnyLengthIsTaken(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin())
		reason := strings.Repeat("bad \x00 block ", 10000)
		skip := a.lose(sales(t, 1), record(t, protocol.KindLoss, protocol.Loss{Epoch: epochOf(9), From: 1, To: 1, Reason: reason}))
		skip.Skip.Reason = reason
		acked(t, l, a, skip)
		if got := details(t, l, ledger.AlarmHole); len(got) != 2 || len(got[0]) > 300 {
			t.Errorf("alarms %q", got)
		}
	})
}

// What is found again after it was skipped is neither lost nor put into the stream: it waits
// in quarantine, and is applied once when a person says so, or when it comes again with was.
func TestAHoleIsNeverFilled(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, stop := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		first := a.begin(sales(t, 1)...)
		acked(t, l, a, first)
		prev := a.mark().Hash
		skip := a.lose(sales(t, 2, 3, 4), sales(t, 5)...)
		acked(t, l, a, skip)
		found := protocol.Batch{Epoch: a.epoch, First: 3, Prev: prev}
		for i, r := range sales(t, 2, 3, 4) {
			found.Records = append(found.Records, withSeq(r, uint64(3+i)))
		}
		part := found
		part.Records = found.Records[:2]
		inner := protocol.Batch{Epoch: a.epoch, First: 4, Prev: found.Records[0].Hash(prev), Records: found.Records[1:2]}
		for range 2 {
			acked(t, l, a, part) // ends inside of the hole
			acked(t, l, a, inner)
			acked(t, l, a, found) // ends with it
			acked(t, l, a, protocol.Batch{Epoch: a.epoch, First: 2, Prev: first.Records[0].Hash(first.Prev), Records: append([]protocol.Record{withSeq(sales(t, 1)[0], 2)}, found.Records...)})
		}
		other := found
		other.Prev[0]++
		if got := commit(t, l, a, other); got.Verdict != protocol.VerdictFork {
			t.Errorf("other records of the hole: %+v, want fork", got)
		}
		q := quarantined(t, l)
		if len(q) != 3 || q[0].Seq != 3 || q[0].Reason != "came after it was said to be lost" {
			t.Fatalf("quarantine %+v, want the three that were found", q)
		}
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 5}) {
			t.Errorf("applied %d, want what is in the stream", got)
		}
		if err := l.RetryQuarantined(t.Context(), chain, q[0].ID); err != nil {
			t.Fatal(err)
		}
		stop()
		l, _ = open(t, url)
		b := a.next(2)
		end := a.mark()
		acked(t, l, b, b.batch(seal(t, &end, false), was(found.Records[0], a.epoch, 3), was(found.Records[1], a.epoch, 4)))
		for _, r := range q[1:] {
			if err := l.RetryQuarantined(t.Context(), chain, r.ID); err != nil {
				t.Fatal(err)
			}
		}
		acked(t, l, a, found)
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 5, 2, 3, 4}) {
			t.Errorf("applied %d, want each once", got)
		}
		if q := quarantined(t, l); len(q) != 0 {
			t.Errorf("quarantine %+v, want nothing", q)
		}
		checkHashes(t, url)
	})
}

func was(r protocol.Record, epoch protocol.Epoch, seq uint64) protocol.Record {
	r.Was = &protocol.Was{Epoch: epoch, Seq: seq, SHA256: r.ContentHash()}
	return r
}

func TestASkipOverTheSealIsTreatedLikeTheSeal(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		first := a.begin(sales(t, 1)...)
		end := a.mark()
		b := a.next(2)
		skip := b.lose([]protocol.Record{seal(t, &end, false), sales(t, 2)[0]}, sales(t, 3)...)
		skip.Skip.Seal = &protocol.Seal{BootID: "boot", Before: &end}
		if got := commit(t, l, b, skip); got.Verdict != protocol.VerdictGap || got.Epoch != a.epoch || got.Through != 0 {
			t.Errorf("before the epoch before: %+v, want a gap of that", got)
		}
		acked(t, l, a, first)
		acked(t, l, b, skip)
		acked(t, l, b, b.batch(sales(t, 4)...))
		if got := holes(t, url); len(got) != 1 || !strings.HasPrefix(got[0], "pc "+string(b.epoch)+" 1..2 damaged 2026-03-02 ") {
			t.Errorf("holes %q, want one on the day on which the epoch before ended", got)
		}
		// Nobody knows the seal: nothing is waited for.
		c := a.next(3)
		blind := c.lose([]protocol.Record{seal(t, &protocol.Mark{Epoch: epochOf(77), Through: 5}, false)}, sales(t, 5)...)
		acked(t, l, c, blind)
		got := details(t, l, ledger.AlarmHole)
		if len(got) != 2 || !strings.Contains(got[0]+got[1], "the seal is lost too: how much is missing before the epoch is unknown") {
			t.Errorf("alarms %q, want one that says that the extent is unknown", got)
		}
		// A lost seal contradicts as well as one that is there.
		d := a.next(4)
		second := d.lose([]protocol.Record{seal(t, nil, false)}, sales(t, 6)...)
		second.Skip.Seal = &protocol.Seal{BootID: "boot"}
		acked(t, l, d, second)
		if kinds := alarmKinds(t, l); !slices.Contains(kinds, ledger.AlarmSecondFirst) {
			t.Errorf("alarms %q, want a second first epoch", kinds)
		}
		own := a.next(5)
		bad := own.lose([]protocol.Record{seal(t, nil, false)})
		bad.Skip.Seal = &protocol.Seal{Before: &protocol.Mark{Epoch: own.epoch, Through: 1}}
		if got := commit(t, l, own, bad); got.Verdict != protocol.VerdictRefused {
			t.Errorf("a seal of its own epoch: %+v, want refused", got)
		}
		if got := sequences(t, l); !slices.Equal(got, []int64{1, 3, 4, 5, 6}) {
			t.Errorf("applied %d", got)
		}
		checkHashes(t, url)
	})
}

func TestASealInsideOfAHoleContradictsNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		if err := l.RegisterAgent(t.Context(), a.from); err != nil {
			t.Fatal(err)
		}
		acked(t, l, a, a.begin(sales(t, 1)...))
		skip := a.lose(sales(t, 2, 3))
		acked(t, l, a, skip)
		end := a.mark()
		b := a.next(2)
		acked(t, l, b, b.batch(seal(t, &end, false)))
		c := a.next(3)
		end.Through--
		end.Hash = protocol.Hash{9} // nobody can say what stood there
		acked(t, l, c, c.batch(seal(t, &end, false)))
		if kinds := alarmKinds(t, l); !slices.Equal(kinds, []string{ledger.AlarmHole, ledger.AlarmSealBelow}) {
			t.Errorf("alarms %q", kinds)
		}
	})
}

func TestALossIsAHoleThatTheStreamDoesNotMoveOver(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(sales(t, 1)...))
		end := a.mark()
		late := a.batch(sales(t, 2, 3)...)
		b := a.next(2)
		lost := protocol.Loss{Epoch: a.epoch, From: 2, To: 6, Reason: protocol.SkipDamaged}
		acked(t, l, b, b.batch(seal(t, &end, true), record(t, protocol.KindLoss, lost), record(t, protocol.KindLoss, lost)))
		if got := holes(t, url); !slices.Equal(got, []string{"pc " + string(a.epoch) + " 3..6 damaged 2026-03-02 "}) {
			t.Errorf("holes %q, want what the ledger does not hold", got)
		}
		if got := details(t, l, ledger.AlarmHole); len(got) != 1 || !strings.HasPrefix(got[0], "records 3 to 6 ") {
			t.Errorf("alarms %q", got)
		}
		acked(t, l, a, late)
		acked(t, l, b, b.batch(record(t, protocol.KindLoss, protocol.Loss{Epoch: a.epoch, From: 3, To: 4})))
		if got := holes(t, url); len(got) != 1 {
			t.Errorf("holes %q, want none for what is here", got)
		}
		acked(t, l, b, b.batch(record(t, protocol.KindLoss, protocol.Loss{Epoch: "x", From: 1, To: 1}), record(t, protocol.KindLoss, protocol.Loss{Epoch: a.epoch, From: 3, To: 2})))
		var reasons []string
		for _, q := range quarantined(t, l) {
			field, _, _ := strings.Cut(q.Reason, ":")
			reasons = append(reasons, field)
		}
		if !slices.Equal(reasons, []string{"epoch", "from"}) {
			t.Errorf("quarantined for %q", reasons)
		}
		// A skip says more than a loss of the same stretch.
		acked(t, l, a, a.lose(sales(t, 7, 8)))
		if got := holes(t, url); len(got) != 2 {
			t.Errorf("holes %q", got)
		}
	})
}

func TestADayMarkIsKeptByItsPosition(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(sales(t, 1)...))
		mark := protocol.DayMark{Day: day, Head: a.mark(), Certificate: protocol.Hash{1}, Signature: []byte{2}}
		unsigned := mark
		unsigned.Signature = nil
		acked(t, l, a, a.batch(record(t, protocol.KindDayMark, mark), record(t, protocol.KindDayMark, unsigned), record(t, protocol.KindDayMark, []byte(`{}`))))
		want := []string{
			"2026-03-02 pc " + string(a.epoch) + "/3 heads " + string(a.epoch) + "/2 signed 02",
			"2026-03-02 pc " + string(a.epoch) + "/4 heads " + string(a.epoch) + "/2 signed ",
		}
		if got := dayMarks(t, url); !slices.Equal(got, want) {
			t.Errorf("day marks %q, want %q", got, want)
		}
		if q := quarantined(t, l); len(q) != 1 || !strings.HasPrefix(q[0].Reason, "day: ") {
			t.Errorf("quarantine %+v, want what is no mark", q)
		}
	})
}

// TestARecordThatNobodyCanReadBlocksNothing: it is kept as it came, its stream goes on over a
// hole with its hash, and the same again changes nothing.
func TestARecordThatNobodyCanReadBlocksNothing(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.batch(seal(t, nil, false)))
		bad := transaction(t, sale("0001", 1))
		bad.Seq = 2
		before := a.mark()
		hash := bad.Hash(before.Hash)
		raw := protocol.Batch{Epoch: a.epoch, First: 2, Prev: before.Hash, Raw: []byte(`{"seq":2,"body":`),
			Skip: &protocol.Skip{From: 2, To: 2, Hash: hash, Reason: protocol.SkipUnread}}
		for range 2 {
			answer, err := l.Commit(t.Context(), a.from, raw)
			if err != nil || answer.Verdict != protocol.VerdictAck || answer.Through != 2 || answer.Hash != hash {
				t.Fatalf("answer %+v, %v, want an ack through 2 with its hash", answer, err)
			}
		}
		if got, err := l.Quarantined(t.Context(), chain, 10); err != nil || len(got) != 1 || string(got[0].Record) != string(raw.Raw) || got[0].Seq != 2 {
			t.Errorf("quarantine %+v, %v, want the record as it came, once", got, err)
		}
		if got := holes(t, url); len(got) != 1 || !strings.Contains(got[0], "unread") {
			t.Errorf("holes %q, want one that says unread", got)
		}
		next := transaction(t, sale("0001", 2))
		next.Seq = 3
		answer, err := l.Commit(t.Context(), a.from, protocol.Batch{Epoch: a.epoch, First: 3, Prev: hash, Records: []protocol.Record{next}})
		if err != nil || answer.Verdict != protocol.VerdictAck || answer.Through != 3 {
			t.Errorf("the next: %+v, %v, want an ack", answer, err)
		}
		readable := protocol.Batch{Epoch: a.epoch, First: 4, Prev: answer.Hash, Raw: nil}
		last := transaction(t, sale("0001", 3))
		last.Seq = 4
		readable.Raw, readable.Skip = last.AppendJSON(nil), &protocol.Skip{From: 4, To: 4, Hash: last.Hash(answer.Hash), Reason: protocol.SkipUnread}
		if answer, err = l.Commit(t.Context(), a.from, readable); err != nil || answer.Through != 4 {
			t.Errorf("one that can be read after all: %+v, %v", answer, err)
		}
		if rows, _, err := l.Transactions(t.Context(), ledger.TransactionQuery{Chain: chain}); err != nil || len(rows) != 2 {
			t.Errorf("%d transactions, %v, want the two that can be read", len(rows), err)
		}
	})
}
