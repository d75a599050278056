package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// An eventStream is a client of server-sent events, with a parser of its own.
type eventStream struct {
	t      *testing.T
	lines  *bufio.Scanner
	cancel context.CancelFunc
}

type event struct{ id, kind, data, comment string }

func (b *bench) listen(t *testing.T, token, query, lastEventID string) *eventStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", b.server.URL+"/v1/events?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+b.secrets[token])
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("events: %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return &eventStream{t, bufio.NewScanner(resp.Body), cancel}
}

// next is the next event or comment.
func (s *eventStream) next() event {
	s.t.Helper()
	var e event
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ": ")
		switch name {
		case "id":
			e.id = value
		case "event":
			e.kind = value
		case "data":
			e.data += value
		case "":
			e.comment += value
		}
		if s.lines.Text() == "" && e != (event{}) {
			return e
		}
	}
	s.t.Fatalf("the stream ended: %v", s.lines.Err())
	return e
}

// record is the next event that is none of the comments.
func (s *eventStream) record() (event, ledger.StoredRecord) {
	s.t.Helper()
	for {
		e := s.next()
		if e.comment != "" {
			continue
		}
		var r ledger.StoredRecord
		if err := json.Unmarshal([]byte(e.data), &r); err != nil {
			s.t.Fatalf("event %+v: %v", e, err)
		}
		return e, r
	}
}

func TestHUB04EventsBeginAtTheHeadAndResumeByID(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	a.sell(saturday, nil) // before: not told
	s := b.listen(t, "admin", "", "")
	if e := s.next(); e.comment != "from 1-2" {
		t.Errorf("first %+v, want the comment with the place", e)
	}
	for range 3 {
		a.sell(saturday, nil)
	}
	var last string
	for want := int64(3); want <= 4; want++ {
		e, r := s.record()
		if r.Pos != want || e.id != fmt.Sprintf("1-%d", want) || e.kind != "transaction" || r.Number != want-1 || r.Store != "0001" {
			t.Errorf("event %+v, want position %d", e, want)
		}
		last = e.id
	}
	s.cancel() // the third was under way, and is told again
	a.sell(saturday, nil)
	for _, s := range []*eventStream{b.listen(t, "admin", "", last), b.listen(t, "admin", "after="+last, "")} {
		for want := int64(5); want <= 6; want++ {
			if e, r := s.record(); r.Pos != want {
				t.Errorf("after %s: %+v, want position %d", last, e, want)
			}
		}
	}
	b.wantProblem(b.do("admin", "GET", "/v1/events?after=yesterday", nil), http.StatusBadRequest, "id of an event")
}

func TestHUB04EventsHaveTheExactBodyAndFilters(t *testing.T) {
	b := newBench(t)
	one, two := b.agent("0001"), b.agent("0002")
	b.token("two", []string{"0002"}, ScopeEvents)
	streams := map[string]*eventStream{
		"kind":  b.listen(t, "admin", "kind=footfallCount,drawerEvent", ""),
		"store": b.listen(t, "admin", "store=0002", ""),
		"token": b.listen(t, "two", "", ""),
	}
	const drawer = `{"drawer":"d","event":"opened","at":"2026-11-21T11:00:00Z","reason":"<&> \u2028"}`
	one.sell(saturday, nil)                         // 3
	two.sell(saturday, nil)                         // 4
	one.count(saturday, 1, 1, nil)                  // 5
	two.send(protocol.KindDrawer, saturday, drawer) // 6
	for name, want := range map[string][]int64{"kind": {5, 6}, "store": {4, 6}, "token": {4, 6}} {
		for _, pos := range want {
			e, r := streams[name].record()
			if r.Pos != pos {
				t.Errorf("%s: position %d, want %d", name, r.Pos, pos)
			}
			if pos == 6 && !strings.Contains(e.data, `"body":`+drawer) {
				t.Errorf("%s: %s, want the body as it was sent", name, e.data)
			}
		}
	}
}

func TestHUB04AnIdleStreamHasAHeartbeat(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Heartbeat = 10 * time.Millisecond })
	s := b.listen(t, "admin", "", "")
	s.next()
	for range 3 {
		if e := s.next(); e.comment != "heartbeat" {
			t.Errorf("%+v, want a heartbeat", e)
		}
	}
}

func TestHUB04AStreamEndsWithItsToken(t *testing.T) {
	b := newBench(t, func(o *Options) {
		o.Heartbeat = 5 * time.Millisecond
		var asked atomic.Int64
		o.Now = func() time.Time { return time.Unix(0, 0).Add(time.Duration(asked.Add(1)) * tokenTTL) } // nothing stays in the cache
		o.MaxStreams = 1
	})
	b.token("club", nil, ScopeEvents)
	s := b.listen(t, "club", "", "")
	s.next()
	b.wantProblem(b.do("admin", "GET", "/v1/events", nil), http.StatusServiceUnavailable, "1 event streams")
	tokens, err := b.ledger.Tokens(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		if token.Name == "club" {
			if err := b.ledger.DeleteToken(t.Context(), chain, token.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	for s.lines.Scan() { // until it ends
	}
	if err := s.lines.Err(); err != nil {
		t.Errorf("the stream ended with %v, want a clean end", err)
	}
}

// A client that does not read must not make the relay hold what it does not take.
func TestHUB04ASlowReaderIsDisconnectedAndResumes(t *testing.T) {
	b := newBench(t, func(o *Options) { o.WriteLimit = 2 * time.Second })
	a := b.agent("0001")
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v1/events?after=1-0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", b.secrets["admin"])
	first, err := bufio.NewReader(io.LimitReader(conn, 100)).ReadString('\n')
	if err != nil || !strings.Contains(first, "200") {
		t.Fatalf("%q, %v", first, err)
	}
	const records = 100
	filler := strings.Repeat("x", 100<<10)
	for range records { // 10 MB: more than the sockets hold
		a.sell(saturday, func(tx *protocol.Transaction) { tx.Lines[0].Description = filler })
	}
	deadline := time.After(20 * time.Second)
	for !strings.Contains(b.log.String(), "client does not read") {
		select {
		case <-deadline:
			t.Fatal("the relay still holds a client that does not read")
		case <-time.After(5 * time.Millisecond): // the relay says it in its log alone
		}
	}
	s := b.listen(t, "admin", "after="+url.QueryEscape("1-1"), "")
	s.lines.Buffer(nil, 1<<20)
	for want := int64(2); want <= records+1; want++ {
		if _, r := s.record(); r.Pos != want {
			t.Fatalf("position %d, want %d", r.Pos, want)
		}
	}
}
