// Package connecttest has a webhook receiver that checks signatures with its own code, takes
// each id once, and misbehaves as a test plans it.
package connecttest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/relay/ledger"
)

// Secret signs what the receiver of New accepts.
const Secret = "whsec_c3RvcmVsYXkgY29ubmVjdCB0ZXN0IHNlY3JldA=="

// A Fault is how the receiver misbehaves at one attempt.
type Fault int

// The faults. "Stores" means that the record is applied all the same.
const (
	None         Fault = iota
	Fail               // 500
	FailStored         // stores, then 500
	HoldStored         // stores, then holds the answer until the sender gives up
	TooMany            // 429 with Retry-After: 1
	ResetStored        // stores, then resets the connection in the middle of the answer's body
	Reset              // resets the connection without an answer
	Refuse             // 400
	Gone               // 410
	AnswerTwice        // stores, and sends the answer twice
	Redirect           // 307 to another path
	Hold               // holds the answer until the sender gives up or Release
	Unauthorized       // 401
)

// A Message is what the receiver applied.
type Message struct {
	ID        string
	Type      string              `json:"type"`
	Timestamp time.Time           `json:"timestamp"`
	Data      ledger.StoredRecord `json:"data"`
	Body      []byte              `json:"-"` // as it came
}

// A Receiver is a real HTTP server on loopback.
type Receiver struct {
	URL string

	release chan struct{}
	once    sync.Once

	mu       sync.Mutex // guards what follows
	plan     func(m Message, attempt int) Fault
	applied  []Message
	byID     map[string]int // index in applied
	seen     map[string]int // attempts by id
	attempts int
	bad      []string
	changed  chan struct{} // closed and replaced at each attempt
}

// New starts a receiver that ends with the test. plan decides for each attempt, counted from
// 1 per id; nil = no faults.
func New(t testing.TB, plan func(m Message, attempt int) Fault) *Receiver {
	if plan == nil {
		plan = func(Message, int) Fault { return None }
	}
	r := &Receiver{plan: plan, byID: map[string]int{}, seen: map[string]int{}, changed: make(chan struct{}), release: make(chan struct{})}
	server := httptest.NewServer(r)
	r.URL = server.URL + "/hook?token=hidden"
	t.Cleanup(func() { r.Release(); server.Close() })
	return r
}

// Release ends all Hold and HoldStored.
func (r *Receiver) Release() { r.once.Do(func() { close(r.release) }) }

// Plan changes the plan.
func (r *Receiver) Plan(plan func(m Message, attempt int) Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plan = plan
}

// Applied is what was taken, once per id, in the order in which it came.
func (r *Receiver) Applied() []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Message(nil), r.applied...)
}

// Attempts is the number of deliveries that came, repeats included.
func (r *Receiver) Attempts() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts
}

// Bad lists what was wrong with deliveries: signatures, headers, bodies, repeats that differ.
func (r *Receiver) Bad() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.bad...)
}

// Wait returns when done says so; it asks again after each attempt. The test fails after 30 s.
func (r *Receiver) Wait(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if done() {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			t.Fatalf("waited 30 s for %s: %d applied, %d attempts, bad %q", what, len(r.Applied()), r.Attempts(), r.Bad())
		}
	}
}

// WaitApplied waits until n records are applied.
func (r *Receiver) WaitApplied(t testing.TB, n int) {
	t.Helper()
	r.Wait(t, fmt.Sprintf("%d records", n), func() bool { return len(r.Applied()) >= n })
}

// verify checks the headers and the signature (Standard Webhooks: base64 of HMAC-SHA256 over
// id.timestamp.body) without the library that the sender signs with.
func verify(h http.Header, body []byte) error {
	id, at := h.Get("Webhook-Id"), h.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return fmt.Errorf("timestamp %q", at)
	}
	if age := time.Since(time.Unix(seconds, 0)); age > 5*time.Minute || age < -5*time.Minute {
		return fmt.Errorf("timestamp is off by %s", age)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(Secret, "whsec_"))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + at + "."))
	mac.Write(body)
	for _, signature := range strings.Fields(h.Get("Webhook-Signature")) {
		text, v1 := strings.CutPrefix(signature, "v1,")
		got, err := base64.StdEncoding.DecodeString(text)
		if v1 && err == nil && hmac.Equal(got, mac.Sum(nil)) {
			return nil
		}
	}
	return fmt.Errorf("signature %q does not match", h.Get("Webhook-Signature"))
}

func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		return // the sender went away
	}
	m := Message{ID: req.Header.Get("Webhook-Id"), Body: body}
	err = verify(req.Header, body)
	if err == nil {
		err = json.Unmarshal(body, &m)
	}
	if err == nil && (req.Method != http.MethodPost || req.URL.Path != "/hook" || req.Header.Get("Content-Type") != "application/json") {
		err = fmt.Errorf("%s %s %s", req.Method, req.URL.Path, req.Header.Get("Content-Type"))
	}
	fault, err := r.note(m, err)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.answer(w, req, fault)
}

// note counts the attempt, applies the record if the plan says so, and returns the fault.
func (r *Receiver) note(m Message, err error) (Fault, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { close(r.changed); r.changed = make(chan struct{}) }()
	r.attempts++
	if err != nil {
		r.bad = append(r.bad, err.Error())
		return None, err
	}
	r.seen[m.ID]++
	fault := r.plan(m, r.seen[m.ID])
	switch fault {
	case None, FailStored, HoldStored, ResetStored, AnswerTwice:
	default:
		return fault, nil
	}
	if at, repeated := r.byID[m.ID]; repeated {
		if string(r.applied[at].Body) != string(m.Body) {
			r.bad = append(r.bad, "a repeat of "+m.ID+" has another body")
		}
		return fault, nil
	}
	r.byID[m.ID] = len(r.applied)
	r.applied = append(r.applied, m)
	return fault, nil
}

func (r *Receiver) answer(w http.ResponseWriter, req *http.Request, fault Fault) {
	switch fault {
	case Fail, FailStored:
		http.Error(w, "out of order", http.StatusInternalServerError)
	case Hold, HoldStored:
		select {
		case <-req.Context().Done():
		case <-r.release:
		}
	case TooMany:
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	case Reset, ResetStored, AnswerTwice:
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		if fault == AnswerTwice {
			_, _ = io.WriteString(conn, strings.Repeat("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 2))
			return
		}
		if fault == ResetStored {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // close sends RST
		}
	case Refuse:
		http.Error(w, "no such article", http.StatusBadRequest)
	case Gone:
		w.WriteHeader(http.StatusGone)
	case Unauthorized:
		w.WriteHeader(http.StatusUnauthorized)
	case Redirect:
		http.Redirect(w, req, "/elsewhere", http.StatusTemporaryRedirect)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
