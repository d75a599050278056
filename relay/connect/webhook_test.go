package connect

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// A receiver knows a record again that an agent appended to a later epoch.
func TestAForkKeepsTheIDOfAMessage(t *testing.T) {
	first := ledger.StoredRecord{Pos: 7, Agent: "pc", Epoch: protocol.Epoch(strings.Repeat("1", 32)), Seq: 5}
	again := ledger.StoredRecord{Pos: 9, Agent: "pc", Epoch: protocol.Epoch(strings.Repeat("2", 32)), Seq: 3, Was: &protocol.Was{Epoch: first.Epoch, Seq: 5}}
	if a, b := messageID("demo", &first), messageID("demo", &again); a != b {
		t.Errorf("ids %s and %s, want one", a, b)
	}
}

// Two disks that were one, or one that was rolled back, accept two records at one place: the
// receiver must not take the second for a repeat.
func TestTwoRecordsOfOnePlaceHaveTwoIDs(t *testing.T) {
	epoch := protocol.Epoch(strings.Repeat("1", 32))
	one := ledger.StoredRecord{Agent: "pc", Epoch: epoch, Seq: 5, Body: []byte(`{"n":1}`)}
	other := ledger.StoredRecord{Agent: "pc", Epoch: protocol.Epoch(strings.Repeat("2", 32)), Seq: 2, Body: []byte(`{"n":2}`), Was: &protocol.Was{Epoch: epoch, Seq: 5}}
	if a, b := messageID("demo", &one), messageID("demo", &other); a == b {
		t.Errorf("both have id %s", a)
	}
}

func TestBackoffDoublesUpToItsBoundWithJitter(t *testing.T) {
	most, least := func() float64 { return 0 }, func() float64 { return 0.999999 }
	for attempts, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 9: 256 * time.Second, 10: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := backoff(attempts, time.Second, 5*time.Minute, most); got != want {
			t.Errorf("pause after %d attempts without jitter %s, want %s", attempts, got, want)
		}
		if got := backoff(attempts, time.Second, 5*time.Minute, least); got < want/2 || got >= want {
			t.Errorf("pause after %d attempts with jitter %s, want from %s to below %s", attempts, got, want/2, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-3": 0, "soon": 0, "86400": time.Hour, "99999999999999999999": 0,
		"Sat, 21 Nov 2026 10:02:00 GMT": 2 * time.Minute, "Sat, 21 Nov 2026 09:00:00 GMT": 0, "Sun, 22 Nov 2026 10:00:00 GMT": time.Hour,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("Retry-After %q: %s, want %s", s, got, want)
		}
	}
}

func TestEveryAnswerHasItsVerdict(t *testing.T) {
	for status, want := range map[int]verdict{
		200: delivered, 202: delivered, 204: delivered, 301: failed, 307: failed, 400: refused, 401: refused, 404: refused, 409: refused,
		408: later, 410: gone, 425: later, 429: later, 500: failed, 502: failed, 503: later, 504: failed,
	} {
		if got := judge(status, http.Header{}, nil, time.Now()); got.verdict != want {
			t.Errorf("%d: verdict %d, want %d", status, got.verdict, want)
		}
	}
	o := judge(400, http.Header{}, []byte(strings.Repeat("é", 5000)), time.Now())
	if len(o.reason) > maxExcerpt+10 {
		t.Errorf("reason has %d bytes", len(o.reason))
	}
}
