package link_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// small batches make many messages of few records.
func small() link.Options { return link.Options{MaxRecords: 5, MaxBytes: 2000, Window: 8000} }

func settle(t *testing.T, w *linktest.World) {
	t.Helper()
	if err := w.Settle(); err != nil {
		t.Fatal(err)
	}
}

func TestACleanLineNeverSendsTwice(t *testing.T) {
	w := linktest.NewWorld(1, small())
	w.Source.Begin(1)
	for range 1000 {
		w.Source.Append(100)
	}
	settle(t, w)
	if s := w.Sender.Status(); s.Resent != 0 || s.Sent < 200 || s.Sent > 201 || s.WindowBytes != small().Window {
		t.Errorf("status %+v, want 200 batches sent once through a window that has opened", s)
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
