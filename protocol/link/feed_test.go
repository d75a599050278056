package link_test

import (
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/link"
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
