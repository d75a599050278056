package link_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

func TestEveryVerdictIsOvercome(t *testing.T) {
	for _, verdict := range []protocol.Verdict{protocol.VerdictBusy, protocol.VerdictRefused, protocol.VerdictGap, protocol.VerdictTooBig,
		protocol.VerdictUnreadable, protocol.VerdictFork, "applauded"} {
		t.Run(string(verdict), func(t *testing.T) {
			w := linktest.NewWorld(3, small())
			w.Source.Begin(1)
			for range 60 {
				w.Source.Append(100)
			}
			n := 0
			w.Sink.Judge = func(protocol.Batch) protocol.Verdict {
				if n++; n%4 == 3 && n < 40 {
					return verdict
				}
				return ""
			}
			settle(t, w)
		})
	}
}

// tries counts how often a link sends within an hour to a relay that always answers so.
func tries(t *testing.T, w *linktest.World, v protocol.Verdict) int64 {
	t.Helper()
	w.Sink.Judge = func(protocol.Batch) protocol.Verdict { return v }
	if err := w.Run(time.Hour); err != nil {
		t.Fatal(err)
	}
	return w.Sender.Status().Sent
}

func TestARefusalIsShownAndKept(t *testing.T) {
	w := linktest.NewWorld(4, small())
	w.Source.Begin(1)
	w.Source.Append(10)
	if n := tries(t, w, protocol.VerdictRefused); n < 5 || n > 40 {
		t.Errorf("tried %d times in an hour, want pauses that grow to 5 minutes", n)
	}
	if s := w.Sender.Status(); s.Refused != "as the test wants" {
		t.Errorf("refusal %q, want the relay's reason", s.Refused)
	}
	w.Sink.Judge = nil
	settle(t, w)
	if s := w.Sender.Status(); s.Refused != "" {
		t.Errorf("refusal %q is still shown", s.Refused)
	}
}

func TestASingleRecordThatIsNotTakenIsTriedWithGrowingPauses(t *testing.T) {
	for _, verdict := range []protocol.Verdict{protocol.VerdictTooBig, protocol.VerdictUnreadable} {
		t.Run(string(verdict), func(t *testing.T) {
			w := linktest.NewWorld(5, small())
			w.Source.Begin(1)
			for range 20 {
				w.Source.Append(100)
			}
			if n := tries(t, w, verdict); n < 8 || n > 45 {
				t.Errorf("tried %d times in an hour, want halving and then pauses that grow to 5 minutes", n)
			}
			if s := w.Sender.Status(); !strings.Contains(s.Refused, "/1: "+string(verdict)) {
				t.Errorf("refusal %q, want the record and the verdict", s.Refused)
			}
			w.Sink.Judge = nil
			settle(t, w)
			if s := w.Sender.Status(); s.Refused != "" {
				t.Errorf("refusal %q is still shown", s.Refused)
			}
		})
	}
}

func TestARecordThatNobodyCanReadIsSentRaw(t *testing.T) {
	w := linktest.NewWorld(5, small())
	w.Source.Begin(1)
	for range 12 {
		w.Source.Append(100)
	}
	w.Sink.Judge = func(b protocol.Batch) protocol.Verdict {
		for _, r := range b.Records {
			if r.Seq == 7 {
				return protocol.VerdictUnreadable
			}
		}
		return ""
	}
	settle(t, w)
	if raw := w.Sink.Raw(); len(raw) != 1 || !strings.Contains(raw[0], `"seq":7`) {
		t.Errorf("raw %v, want record 7 alone", raw)
	}
}

// A relay that does not know skips finds them unreadable; what follows it may know.
func TestASkipIsNeverSentRaw(t *testing.T) {
	source := records(9, 100)
	source.Lose(0, 1, 4, protocol.SkipDamaged, true)
	d := newDesk(t, source, nil, small())
	d.step()
	for range 3 {
		d.answer(protocol.VerdictUnreadable, protocol.Mark{})
		d.wait(15 * time.Second)
		if b := d.batches[0]; b.Skip == nil || b.Raw != nil || b.First != 1 || b.Skip.To != 4 {
			t.Fatalf("batch %+v, want the skip over 1 to 4", b)
		}
	}
	if b := d.batches[0]; len(b.Records) != 0 {
		t.Errorf("the skip still carries %d records", len(b.Records))
	}
	d.ack()
	if d.step(); d.batches[0].First != 5 {
		t.Errorf("behind the skip comes %d, want 5", d.batches[0].First)
	}
}

// The batches under way behind the one that was refused are refused too: they are no news.
func TestLateVerdictsDoNotMakePausesGrow(t *testing.T) {
	for _, verdict := range []protocol.Verdict{protocol.VerdictRefused, protocol.VerdictBusy, protocol.VerdictTooBig} {
		d := newDesk(t, records(2000, 100), nil, small())
		d.step()
		for range 3 { // opens the window
			for len(d.batches) > 0 {
				d.ack()
			}
			d.step()
		}
		if len(d.batches) < 4 {
			t.Fatalf("%d batches under way, want several", len(d.batches))
		}
		first := d.batches[0]
		for range d.batches {
			d.answer(verdict, protocol.Mark{Epoch: first.Epoch})
		}
		waited := d.wait(time.Minute)
		if waited > 10*time.Second {
			t.Errorf("%s: waited %s, want the first pause", verdict, waited)
		}
		if b := d.batches[0]; b.First != first.First || verdict == protocol.VerdictTooBig && len(b.Records) > 2 || len(b.Records) < 2 {
			t.Errorf("%s: then sent %d records from %d, want the first batch again, halved once if too big", verdict, len(b.Records), b.First)
		}
	}
}

func TestAGapIsFollowedBackToAnAcknowledgedRecord(t *testing.T) {
	d := newDesk(t, records(40, 100), nil, small())
	d.step()
	d.ack()
	d.step()
	e := d.batches[0].Epoch
	for range 3 { // the answers to all batches under way
		d.answer(protocol.VerdictGap, protocol.Mark{Epoch: e, Through: 2})
	}
	if d.step(); len(d.batches) != 1 || d.batches[0].First != 3 {
		t.Fatalf("batches %+v, want one from 3", d.batches)
	}
	// That one is lost. The relay asks again when the oldest comes: it must be heard again.
	d.now = d.now.Add(time.Minute)
	d.step()
	d.answer(protocol.VerdictGap, protocol.Mark{Epoch: e, Through: 2})
	if d.step(); len(d.batches) != 1 || d.batches[0].First != 3 {
		t.Errorf("batches %+v, want one from 3 again", d.batches)
	}
}

func TestAGapOfAnEpochThatNobodyAskedForIsIgnored(t *testing.T) {
	d := newDesk(t, records(40, 100), nil, small())
	d.step()
	d.answer(protocol.VerdictGap, protocol.Mark{Epoch: protocol.Epoch(strings.Repeat("9", 32)), Through: 7})
	if d.step(); len(d.batches) != 0 || d.sender.Status().FlyingBatches != 1 || d.sender.Status().Forks != 0 {
		t.Errorf("batches %+v, status %+v, want nothing changed", d.batches, d.sender.Status())
	}
}

func TestARelayWithAnOlderLedgerIsLeft(t *testing.T) {
	for name, down := range map[string]protocol.Down{
		"welcome": {Welcome: &protocol.Welcome{Incarnation: 4}},
		"answer":  {Answer: &protocol.Answer{Verdict: protocol.VerdictBusy, Incarnation: 4}},
		"marks":   {Marks: &protocol.Marks{Incarnation: 4}},
	} {
		d := newDesk(t, records(3, 10), nil, small())
		d.step()
		mark := end(d.batches[0])
		d.hear(protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: 1, Epoch: mark.Epoch, Through: mark.Through, Hash: mark.Hash}})
		d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 5}})
		d.sender.Connected(d.now, "me") // to another relay
		if name != "welcome" {
			d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 5}})
		}
		if err := d.try(down); !errors.Is(err, link.ErrLeave) {
			t.Errorf("%s: err %v, want ErrLeave", name, err)
		}
	}
}

func TestGarbageFromTheRelayIsCountedAndIgnored(t *testing.T) {
	d := newDesk(t, records(3, 10), nil, small())
	for i, payload := range []string{"", "{", "\x28\xb5\x2f\xfd garbage", `{"to":"me"}`, strings.Repeat("x", protocol.MaxWire+1),
		`{"to":"me","answer":{"verdict":"so so","incarnation":1}}`, `{"to":"me","page":{"feed":"unknown"}}`, `{"to":"me","answer":{"hash":"abc"}}`} {
		if err := d.sender.Received(d.now, link.TopicDown, []byte(payload)); err != nil {
			t.Errorf("%.20q: %v", payload, err)
		}
		if got := d.sender.Status().Garbage; got != int64(i+1) {
			t.Errorf("after %.20q garbage is %d, want %d", payload, got, i+1)
		}
	}
	for _, payload := range []string{`{"to":"you","answer":{"verdict":"fork","incarnation":9}}`, `{"to":"me","marks":{"incarnation":1,"marks":[]}}`} {
		if err := d.sender.Received(d.now, link.TopicDown, []byte(payload)); err != nil {
			t.Errorf("%s: %v", payload, err)
		}
	}
	if s := d.sender.Status(); s.Garbage != 8 || s.Forks != 0 {
		t.Errorf("status %+v, want what is for another client, or not asked for, ignored", s)
	}
	if d.step(); len(d.batches) != 1 {
		t.Errorf("%d batches, want the link to go on", len(d.batches))
	}
}

// failing is a source whose disk fails some of its calls.
type failing struct {
	*linktest.Source
	forks, rewinds int // that fail
}

func (f *failing) Fork(reason string) error {
	if f.forks--; f.forks >= 0 {
		return fmt.Errorf("disk is full")
	}
	return f.Source.Fork(reason)
}

func (f *failing) Rewind(marks []protocol.Mark, incarnation int64) error {
	if f.rewinds--; f.rewinds >= 0 {
		return fmt.Errorf("disk is full")
	}
	return f.Source.Rewind(marks, incarnation)
}
