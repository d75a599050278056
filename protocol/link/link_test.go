package link_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// small batches make many messages of few records.
func small() link.Options { return link.Options{MaxRecords: 5, MaxBytes: 2000} }

func settle(t *testing.T, w *linktest.World) {
	t.Helper()
	w.Faults = linktest.Faults{}
	if err := w.Run(10 * time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := linktest.Check(w.Source, w.Sink); err != nil {
		t.Fatalf("%v; status %+v", err, w.Sender.Status())
	}
}

// TestAnyScheduleDeliversOnceInOrder is the link's promise: whatever the line does, once it
// heals everything is committed exactly once and in order, nothing was acknowledged before
// its commit, and the feeds are equal.
func TestAnyScheduleDeliversOnceInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := linktest.NewWorld(rapid.Uint64().Draw(t, "seed"), small())
		chance := func(name string, most float64) float64 { return rapid.Float64Range(0, most).Draw(t, name) }
		for epoch := range rapid.IntRange(1, 4).Draw(t, "epochs") {
			w.Source.Begin(epoch + 1)
			for range rapid.IntRange(1, 6).Draw(t, "bursts") {
				for range rapid.IntRange(1, 40).Draw(t, "records") {
					w.Source.Append(rapid.SampledFrom([]int{1, 300, 3000}).Draw(t, "size"))
				}
				version := w.Sink.Put(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "key"), `"v"`)
				w.News(`{"feed":"items","version":` + string(rune('0'+version%10)) + `}`)
				w.Faults = linktest.Faults{Drop: chance("drop", 0.3), Double: chance("double", 0.2), Cut: chance("cut", 0.1), Delay: time.Duration(rapid.IntRange(0, 5000).Draw(t, "delay ms")) * time.Millisecond}
				if err := w.Run(time.Duration(rapid.IntRange(0, 60).Draw(t, "s")) * time.Second); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.Faults = linktest.Faults{}
		if err := w.Run(10 * time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := linktest.Check(w.Source, w.Sink); err != nil {
			t.Fatalf("%v; status %+v", err, w.Sender.Status())
		}
		for _, feed := range []string{"config", "items"} {
			if got, want := w.Replica.Values(feed), w.Sink.Values(); !maps.Equal(got, want) {
				t.Fatalf("feed %s is %v, want %v", feed, got, want)
			}
		}
	})
}

func TestACleanLineNeverSendsTwice(t *testing.T) {
	w := linktest.NewWorld(1, small())
	w.Source.Begin(1)
	for range 1000 {
		w.Source.Append(100)
	}
	settle(t, w)
	if s := w.Sender.Status(); s.Resent != 0 || s.Sent < 200 || s.Sent > 201 || s.Window != 8 {
		t.Errorf("status %+v, want 200 batches sent once through a window that has opened to 8", s)
	}
}

func TestAStoreThatFailsGetsNoAnswerAndLosesNothing(t *testing.T) {
	w := linktest.NewWorld(2, small())
	w.Source.Begin(1)
	for range 100 {
		w.Source.Append(100)
	}
	fails := 5
	w.Sink.Fail = func() error {
		if fails--; fails >= 0 {
			return errors.New("disk is full")
		}
		return nil
	}
	settle(t, w)
	if s := w.Sender.Status(); s.Connects != 6 {
		t.Errorf("%d connections, want one after each of 5 failures", s.Connects)
	}
}

// verdicts checks that the link gets through a relay that answers some batches otherwise.
func TestEveryVerdictIsOvercome(t *testing.T) {
	for _, verdict := range []protocol.Verdict{protocol.VerdictBusy, protocol.VerdictRefused, protocol.VerdictGap, protocol.VerdictTooBig, protocol.VerdictUnreadable} {
		t.Run(string(verdict), func(t *testing.T) {
			w := linktest.NewWorld(3, small())
			w.Source.Begin(1)
			for range 60 {
				w.Source.Append(100)
			}
			n := 0
			w.Sink.Judge = func(protocol.Batch) protocol.Verdict {
				if n++; n%4 == 3 {
					return verdict
				}
				return ""
			}
			settle(t, w)
		})
	}
}

func TestARefusalIsShownAndKept(t *testing.T) {
	w := linktest.NewWorld(4, small())
	w.Source.Begin(1)
	w.Source.Append(10)
	w.Sink.Judge = func(protocol.Batch) protocol.Verdict { return protocol.VerdictRefused }
	if err := w.Run(time.Hour); err != nil {
		t.Fatal(err)
	}
	s := w.Sender.Status()
	if s.Refused != "as the test wants" {
		t.Errorf("refusal %q, want the relay's reason", s.Refused)
	}
	if s.Sent < 5 || s.Sent > 40 {
		t.Errorf("tried %d times in an hour, want pauses that grow to 5 minutes", s.Sent)
	}
	w.Sink.Judge = nil
	settle(t, w)
	if s := w.Sender.Status(); s.Refused != "" {
		t.Errorf("refusal %q is still shown", s.Refused)
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
	if raw := w.Sink.Raw(); len(raw) == 0 || !strings.Contains(raw[0], `"seq":7`) {
		t.Errorf("raw %v, want record 7", raw)
	}
}

func TestAForkStopsTheStreamAndSaysSo(t *testing.T) {
	w := linktest.NewWorld(6, small())
	w.Source.Begin(1)
	w.Source.Append(10)
	w.Sink.Judge = func(protocol.Batch) protocol.Verdict { return protocol.VerdictFork }
	if err := w.Run(time.Hour); err != nil {
		t.Fatal(err)
	}
	if s := w.Sender.Status(); s.Forked == "" || s.Sent != 1 {
		t.Errorf("status %+v, want a fork named after one batch", s)
	}
	if oldest, _ := w.Source.Heads(); oldest.Seq != 1 {
		t.Errorf("oldest %v, want the record kept", oldest)
	}
}

func TestAnAckOfAnotherHashIsNoAck(t *testing.T) {
	w := linktest.NewWorld(7, small())
	w.Source.Begin(1)
	w.Source.Append(10)
	s := w.Sender
	s.Connected(w.Now, "me")
	hear := func(d protocol.Down) error {
		d.To = "me"
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return s.Received(w.Now, link.TopicDown, text)
	}
	if err := hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1}}); err != nil {
		t.Fatal(err)
	}
	_, newest := w.Source.Heads()
	if err := hear(protocol.Down{Answer: &protocol.Answer{Verdict: protocol.VerdictAck, Incarnation: 1, Epoch: newest.Epoch, Through: 1}}); err != nil {
		t.Fatal(err)
	}
	if oldest, _ := w.Source.Heads(); oldest.Seq != 1 || s.Status().Forked == "" {
		t.Errorf("oldest %v, status %+v: want the record kept and the fork named", oldest, s.Status())
	}
}

func TestARelayWithAnOlderLedgerIsLeft(t *testing.T) {
	w := linktest.NewWorld(8, small())
	w.Source.Begin(1)
	w.Source.Append(10)
	w.Sink.Incarnation = 5
	settle(t, w)
	w.Sender.Connected(w.Now, "me")
	err := w.Sender.Received(w.Now, link.TopicDown, []byte(`{"to":"me","welcome":{"incarnation":4,"time":"","marks":[]}}`))
	if !errors.Is(err, link.ErrLeave) {
		t.Errorf("err %v, want ErrLeave", err)
	}
}

func TestGarbageFromTheRelayIsCountedAndIgnored(t *testing.T) {
	w := linktest.NewWorld(9, small())
	w.Sender.Connected(w.Now, "me")
	for _, payload := range []string{"", "{", "\x28\xb5\x2f\xfd garbage", `{"to":"me"}`, strings.Repeat("x", protocol.MaxWire+1)} {
		if err := w.Sender.Received(w.Now, link.TopicDown, []byte(payload)); err != nil {
			t.Errorf("%.20q: %v", payload, err)
		}
	}
	if got := w.Sender.Status().Garbage; got != 4 { // the one to me is before its welcome
		t.Errorf("garbage %d, want 4", got)
	}
	if err := w.Sender.Received(w.Now, link.TopicDown, []byte(`{"to":"you","welcome":{"incarnation":1}}`)); err != nil || w.Sender.Status().Welcomed {
		t.Error("a message for another client was taken")
	}
}

func TestTheReceiverAnswersWhatItCannotRead(t *testing.T) {
	sink := linktest.NewSink()
	r := link.NewReceiver(sink)
	handle := func(topic link.Topic, payload string) *protocol.Down {
		t.Helper()
		out, err := r.Handle(context.Background(), linktest.Origin(), "c", topic, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		if out == nil {
			return nil
		}
		var d protocol.Down
		if err := json.Unmarshal(out, &d); err != nil {
			t.Fatal(err)
		}
		return &d
	}
	for payload, want := range map[string]protocol.Verdict{
		"{": protocol.VerdictUnreadable, `{"epoch":"x"}`: protocol.VerdictUnreadable, "\x28\xb5\x2f\xfd junk": protocol.VerdictUnreadable,
		strings.Repeat("x", protocol.MaxWire+1): protocol.VerdictTooBig,
	} {
		if d := handle(link.TopicRecords, payload); d == nil || d.Answer == nil || d.Answer.Verdict != want || d.Answer.Reason == "" || d.To != "c" || d.Answer.Incarnation != 1 {
			t.Errorf("%.20q: answer %+v, want %s with a reason", payload, d, want)
		}
	}
	if d := handle(link.TopicAsk, "{"); d != nil {
		t.Errorf("answer %+v to garbage, want none", d)
	}
}

// pipe is a connection in memory for Keep.
type pipe struct {
	id   string
	r    *link.Receiver
	down chan []byte
	dead chan struct{}
	cut  int // publishes until the line is cut; < 0 = never
}

func (p *pipe) ID() string { return p.id }

func (p *pipe) Publish(ctx context.Context, topic link.Topic, payload []byte) error {
	if p.cut--; p.cut == 0 {
		close(p.dead)
		return errors.New("line was cut")
	}
	answer, err := p.r.Handle(ctx, linktest.Origin(), p.id, topic, payload)
	if err == nil && answer != nil {
		select {
		case p.down <- answer:
		default: // nobody reads: lost
		}
	}
	return err
}

func (p *pipe) Receive(ctx context.Context) (link.Topic, []byte, error) {
	select {
	case b := <-p.down:
		return link.TopicDown, b, nil
	case <-p.dead:
		return 0, nil, errors.New("line was cut")
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

func (p *pipe) Close() error { return nil }

func TestKeepConnectsAgainToTheNextRelay(t *testing.T) {
	source, sink := linktest.NewSource(), linktest.NewSink()
	source.Begin(1)
	for range 2000 {
		source.Append(50)
	}
	sender := link.NewSender(source, linktest.NewReplica(), nil, link.Options{MaxRecords: 50}, rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dials := map[string]int{} // Keep dials from one goroutine
	n := 0
	dial := func(_ context.Context, relay string) (link.Conn, error) {
		n++
		dials[relay]++
		if n%3 == 0 {
			return nil, errors.New("nobody listens")
		}
		return &pipe{id: "c", r: link.NewReceiver(sink), down: make(chan []byte, 64), dead: make(chan struct{}), cut: 10}, nil
	}
	ended := make(chan error, 1)
	go func() {
		ended <- link.Keep(ctx, dial, []string{"a", "b"}, sender, link.KeepOptions{MinPause: time.Millisecond, MaxPause: 2 * time.Millisecond})
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(time.Minute); linktest.Check(source, sink) != nil; {
		select {
		case <-tick.C:
		case <-limit:
			cancel()
			t.Fatalf("not delivered: %v; status %+v", linktest.Check(source, sink), sender.Status())
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := linktest.Check(source, sink); err != nil {
		t.Error(err)
	}
	if dials["a"] == 0 || dials["b"] == 0 {
		t.Errorf("dialled %v, want both relays", dials)
	}
}
