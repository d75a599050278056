package link_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/protocol/link/linktest"
)

// page answers a question for a feed; from and to are versions.
func page(from, to int64, more bool) protocol.Down {
	return protocol.Down{Page: &protocol.FeedPage{Feed: "items", From: from, To: to, More: more, Changes: []protocol.Change{}}}
}

func TestAFeedIsAskedOnAtOnceOnlyWhenItLeadsOn(t *testing.T) {
	for name, tt := range map[string]struct {
		page     protocol.Down
		min, max time.Duration
	}{
		"more":             {page(0, 3, true), 0, 0},
		"the last":         {page(0, 3, false), 30 * time.Second, 60 * time.Second},
		"not after cursor": {page(2, 3, true), 3 * time.Second, 6 * time.Second},
		"leads nowhere":    {page(0, 0, true), 3 * time.Second, 6 * time.Second},
	} {
		d := newDesk(t, records(1, 1), []string{"items"}, link.Options{})
		d.step()
		if len(d.asks) != 1 || d.asks[0].Feed.After != 0 {
			t.Fatalf("asks %+v, want one from the beginning", d.asks)
		}
		d.ack()
		d.hear(tt.page)
		if waited := d.wait(2 * time.Minute); waited < tt.min || waited > tt.max {
			t.Errorf("%s: asked again after %s, want %s to %s", name, waited, tt.min, tt.max)
		}
	}
}

func TestNewsLetsTheFeedBeAskedForAtOnce(t *testing.T) {
	d := newDesk(t, records(1, 1), []string{"items", "prices"}, link.Options{})
	d.step()
	d.ack()
	d.hear(page(0, 3, false))
	if err := d.sender.Received(d.now, link.TopicNews, []byte(`{"feed":"items","version":4}`)); err != nil {
		t.Fatal(err)
	}
	if d.step(); len(d.asks) != 1 || d.asks[0].Feed.Feed != "items" || d.asks[0].Feed.After != 3 {
		t.Errorf("asks %+v, want items after 3", d.asks)
	}
	if err := d.sender.Received(d.now, link.TopicNews, []byte(`{`)); err != nil || d.sender.Status().Garbage != 1 {
		t.Errorf("garbage: %v, status %+v", err, d.sender.Status())
	}
}

// A fullReplica has no room for pages.
type fullReplica struct{ *linktest.Replica }

func (fullReplica) Apply(protocol.FeedPage) error { return fmt.Errorf("apply: %w", link.ErrFull) }

// TestAPageThatHasNoRoomDoesNotStopTheRecords: on a full disk the shop still delivers.
func TestAPageThatHasNoRoomDoesNotStopTheRecords(t *testing.T) {
	source := records(1, 5)
	d := &desk{t: t, source: source, now: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)}
	d.sender = link.NewSender(source, fullReplica{linktest.NewReplica()}, []string{"items"}, link.Options{}, rand.New(rand.NewPCG(1, 2)))
	d.sender.Connected(d.now, "me")
	d.step()
	d.hear(protocol.Down{Welcome: &protocol.Welcome{Incarnation: 1}})
	d.step()
	d.hear(page(0, 3, true)) // fails the test on an error
	d.ack()
	if oldest, _ := source.Heads(); oldest.Seq != 0 {
		t.Errorf("oldest %s, want all delivered", oldest)
	}
	if waited := d.wait(2 * time.Minute); waited < 30*time.Second {
		t.Errorf("asked again after %s: there is no room yet", waited)
	}
}
