package till

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// A memoryAgent keeps the promises of Agent in memory.
type memoryAgent struct {
	mu       sync.Mutex
	err      error // of Accept
	panics   bool
	keys     map[string]entry
	intakes  []Intake
	rejected map[string]protocol.Faults
	bodies   map[string][]byte
	drawers  map[string]*fakeDrawer
	devices  map[string]drivers.Driver
}

type entry struct {
	digest   [32]byte
	accepted Accepted
	body     []byte
}

func (a *memoryAgent) Accept(_ context.Context, in Intake) (Accepted, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.panics {
		panic("nil map")
	}
	if a.err != nil {
		return Accepted{}, a.err
	}
	for _, key := range in.Keys {
		known, ok := a.keys[key]
		if !ok {
			continue
		}
		if known.digest != in.Digest {
			return Accepted{}, fmt.Errorf("accept: %w", ErrConflict)
		}
		again := known.accepted
		again.Known, again.Body = true, known.body
		return again, nil
	}
	a.intakes = append(a.intakes, in)
	accepted := Accepted{Position: protocol.Position{Epoch: "00000000000000000000000000000001", Seq: uint64(len(a.intakes))}, At: fmt.Sprintf("2026-03-02T10:00:%02dZ", len(a.intakes))}
	for _, key := range in.Keys {
		a.keys[key] = entry{in.Digest, accepted, in.Body}
	}
	return accepted, nil
}

func (a *memoryAgent) Drawer(id string) (drivers.Opener, bool) {
	if d, ok := a.drawers[id]; ok {
		return d, true
	}
	d, ok := a.devices[id].(drivers.Opener)
	return d, ok
}

func (a *memoryAgent) Device(id string) (drivers.Driver, bool) {
	d, ok := a.devices[id]
	return d, ok
}

func (a *memoryAgent) Status() any { return map[string]string{"agent": "well"} }

func (a *memoryAgent) Reject(_ context.Context, name string, body []byte, faults protocol.Faults) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rejected[name], a.bodies[name] = faults, bytes.Clone(body)
	return nil
}

type fakeDrawer struct {
	err         error
	open, known bool
	got         drivers.OpenCommand
}

func (d *fakeDrawer) Run(context.Context, drivers.Host) error { return nil }
func (d *fakeDrawer) Open(_ context.Context, c drivers.OpenCommand) error {
	d.got = c
	return d.err
}
func (d *fakeDrawer) Opened() (bool, bool) { return d.open, d.known }

func newAgent() *memoryAgent {
	return &memoryAgent{keys: map[string]entry{}, rejected: map[string]protocol.Faults{}, bodies: map[string][]byte{}, drawers: map[string]*fakeDrawer{}, devices: map[string]drivers.Driver{}}
}

// A shop is a handler with its agent; cutOff is that of the business day.
type shop struct {
	agent   *memoryAgent
	cutOff  time.Duration
	handler http.Handler
}

func newShop(t testing.TB) *shop {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Stockholm")
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{agent: newAgent(), cutOff: 5 * time.Hour}
	s.handler = NewHandler(Options{
		Agent: s.agent, Store: "0042", Hosts: []string{"backoffice"},
		Rule: func() protocol.DayRule { return protocol.DayRule{Zone: zone, CutOff: s.cutOff} },
		Token: func(token string) (string, bool) {
			w, ok := map[string]string{"secret1": "till1", "secret2": "till2"}[token]
			return w, ok
		},
	})
	return s
}

// A call is a request that is right but for what a test changes.
type call struct {
	method, path, host, body string
	header                   map[string]string
}

func (s *shop) do(c call) *httptest.ResponseRecorder {
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.path == "" {
		c.path = "/v1/transactions"
	}
	r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
	r.Host = "localhost:8080"
	if c.host != "" {
		r.Host = c.host
	}
	header := map[string]string{"Authorization": "Bearer secret1", "Content-Type": "application/json"}
	maps.Copy(header, c.header)
	for k, v := range header {
		if v != "" {
			r.Header.Set(k, v)
		}
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// expect checks status and code of a refusal.
func expect(t *testing.T, w *httptest.ResponseRecorder, status int, code string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("answer %d %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || p.Code != code || p.Status != status {
		t.Errorf("answer = %d %s, want %d %s: %s", w.Code, p.Code, status, code, w.Body)
	}
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" || p.Detail == "" || p.Type == "" || p.Title == "" {
		t.Errorf("answer is %s %+v, want a whole problem", got, p)
	}
	return p
}

const sale = `{"sequenceNumber": 7, "type": "sale", "begin": "2026-03-02T10:14:00+01:00", "end": "2026-03-02T10:15:00+01:00", "currency": "SEK",
 "lines": [{"type": "sale", "item": "4711", "quantity": {"milli": 1000}, "extendedAmount": 12900, "colour": "blå"}],
 "tenders": [{"type": "cash", "amount": 12900}], "total": 12900, "loyaltyClub": "A & B"}`

func TestATransactionIsStampedAndAccepted(t *testing.T) {
	s := newShop(t)
	w := s.do(call{body: sale, header: map[string]string{"Idempotency-Key": "abc 1"}})
	want := `{"transactionId":{"store":"0042","workstation":"till1","businessDay":"2026-03-02","sequenceNumber":7},"position":{"epoch":"00000000000000000000000000000001","seq":1},"acceptedAt":"2026-03-02T10:00:01Z","flags":[]}`
	if w.Code != http.StatusCreated || w.Body.String() != want {
		t.Errorf("answer = %d %s, want 201 %s", w.Code, w.Body, want)
	}
	in := s.agent.intakes[0]
	if keys := []string{"k:till1:abc 1", "t:0042/till1/2026-03-02/7"}; !slices.Equal(in.Keys, keys) {
		t.Errorf("keys = %q, want %q", in.Keys, keys)
	}
	var stored protocol.Transaction
	if err := json.Unmarshal(in.Body, &stored); err != nil || stored.Validate() != nil {
		t.Fatalf("body %s: %v", in.Body, err)
	}
	if stored.ID() != in.Transaction.ID() || string(stored.Extra["loyaltyClub"]) != `"A \u0026 B"` && string(stored.Extra["loyaltyClub"]) != `"A & B"` {
		t.Errorf("body = %s, want it stamped and unknown members kept", in.Body)
	}
	var compact bytes.Buffer
	if json.Compact(&compact, in.Body); !bytes.Equal(compact.Bytes(), in.Body) {
		t.Error("the record's body is not compact")
	}
	if w.Header().Get("Idempotency-Replayed") != "" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("headers = %v", w.Header())
	}
}

func TestTheBusinessDayFollowsTheRule(t *testing.T) {
	s := newShop(t)
	night := strings.NewReplacer("10:14", "04:58", "10:15", "04:59").Replace(sale)
	s.do(call{body: night})
	if day := s.agent.intakes[0].Transaction.BusinessDay.String(); day != "2026-03-01" {
		t.Errorf("day = %s, want that of the evening before", day)
	}
	s.do(call{body: strings.Replace(sale, "{", `{"businessDay": "2026-03-05",`, 1)})
	if day := s.agent.intakes[1].Transaction.BusinessDay.String(); day != "2026-03-05" {
		t.Errorf("day = %s, want the till's own", day)
	}
}

func TestSumsThatDisagreeAreFlaggedNotRefused(t *testing.T) {
	w := newShop(t).do(call{body: strings.Replace(sale, `"total": 12900`, `"total": 12800`, 1)})
	if w.Code != http.StatusCreated || !strings.Contains(w.Body.String(), `"flags":["totalDiffers","tendersDiffer"]`) {
		t.Errorf("answer = %d %s, want 201 with flags", w.Code, w.Body)
	}
}

func TestARepeatedTransactionGetsTheSameAnswer(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second call
	}{
		{"same key", call{body: sale, header: map[string]string{"Idempotency-Key": "k"}}, call{body: sale, header: map[string]string{"Idempotency-Key": "k"}}},
		{"no key", call{body: sale}, call{body: sale}},
		{"a new key each time", call{body: sale, header: map[string]string{"Idempotency-Key": "1"}}, call{body: sale, header: map[string]string{"Idempotency-Key": "2"}}},
		{"other white space", call{body: sale}, call{body: strings.ReplaceAll(sale, ", ", ",\t")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShop(t)
			first, second := s.do(tt.first), s.do(tt.second)
			if first.Code != 201 || second.Code != 201 || first.Body.String() != second.Body.String() {
				t.Errorf("answers = %d %s and %d %s, want the same", first.Code, first.Body, second.Code, second.Body)
			}
			if second.Header().Get("Idempotency-Replayed") != "true" || len(s.agent.intakes) != 1 {
				t.Errorf("%d accepted, header %q", len(s.agent.intakes), second.Header().Get("Idempotency-Replayed"))
			}
		})
	}
}

func TestARepetitionAfterTheDayRuleChangedGetsTheSameAnswer(t *testing.T) {
	s := newShop(t)
	c := call{body: strings.NewReplacer("10:14", "04:58", "10:15", "04:59").Replace(sale), header: map[string]string{"Idempotency-Key": "k"}}
	first := s.do(c)
	s.cutOff = 0
	if second := s.do(c); first.Body.String() != second.Body.String() {
		t.Errorf("answers = %s and %s, want the same", first.Body, second.Body)
	}
}

func TestAKnownKeyWithOtherContentIsAConflict(t *testing.T) {
	for _, tt := range []struct{ name, from, to string }{
		{"same number", `"item": "4711"`, `"item": "4712"`},
		{"same key", `"sequenceNumber": 7`, `"sequenceNumber": 8`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShop(t)
			s.do(call{body: sale, header: map[string]string{"Idempotency-Key": "k"}})
			other := strings.Replace(sale, tt.from, tt.to, 1)
			expect(t, s.do(call{body: other, header: map[string]string{"Idempotency-Key": "k"}}), 409, "conflict")
			if len(s.agent.rejected) != 1 || len(s.agent.intakes) != 1 {
				t.Errorf("%d kept and %d accepted, want 1 and 1", len(s.agent.rejected), len(s.agent.intakes))
			}
		})
	}
}

func TestTwoTillsMayUseTheSameKey(t *testing.T) {
	s := newShop(t)
	s.do(call{body: sale, header: map[string]string{"Idempotency-Key": "k"}})
	w := s.do(call{body: sale, header: map[string]string{"Idempotency-Key": "k", "Authorization": "Bearer secret2"}})
	if w.Code != 201 || len(s.agent.intakes) != 2 {
		t.Errorf("answer = %d %s, want a second transaction", w.Code, w.Body)
	}
}

func TestAllFaultsAreNamedAtOnceAndTheBodyIsKept(t *testing.T) {
	s := newShop(t)
	body := `{"store": "0043", "workstation": "till2", "sequenceNumber": 0, "type": "sale", "currency": "KRO", "lines": [{"type": "sale", "item": "", "quantity": {"milli": -1}}]}`
	p := expect(t, s.do(call{body: body}), 422, "invalid")
	var fields []string
	for _, f := range p.Faults {
		fields = append(fields, f.Field)
	}
	want := []string{"store", "workstation", "businessDay", "sequenceNumber", "begin", "end", "currency", "lines[0].quantity.milli", "lines[0].item"}
	if !slices.Equal(fields, want) {
		t.Errorf("fields = %q, want %q", fields, want)
	}
	s.do(call{body: body}) // a naive till sends it again: still one file
	if len(s.agent.rejected) != 1 {
		t.Fatalf("kept %v, want one", slices.Collect(maps.Keys(s.agent.rejected)))
	}
	for name, faults := range s.agent.rejected {
		if !strings.HasPrefix(name, "till1-") || strings.ContainsAny(name, `/\:. `) || string(s.agent.bodies[name]) != body || len(faults) != len(want) {
			t.Errorf("kept %q with %d faults and body %s", name, len(faults), s.agent.bodies[name])
		}
	}
}

func TestWrongTypesNameTheirFields(t *testing.T) {
	body := strings.NewReplacer(`"total": 12900`, `"total": 129.00`, `"amount": 12900`, `"amount": "12900"`).Replace(sale)
	p := expect(t, newShop(t).do(call{body: body}), 422, "invalid")
	if len(p.Faults) != 2 || p.Faults[0].Field != "tenders[0].amount" || p.Faults[1].Field != "total" {
		t.Errorf("faults = %+v, want tenders[0].amount and total", p.Faults)
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		call   call
		status int
		code   string
		kept   bool
	}{
		{"no token", call{body: sale, header: map[string]string{"Authorization": ""}}, 401, "token", false},
		{"a wrong token", call{body: sale, header: map[string]string{"Authorization": "Bearer guess"}}, 401, "token", false},
		{"another scheme", call{body: sale, header: map[string]string{"Authorization": "Basic secret1"}}, 401, "token", false},
		{"a text", call{body: sale, header: map[string]string{"Content-Type": "text/plain"}}, 415, "contentType", true},
		{"a form", call{body: sale, header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}}, 415, "contentType", true},
		{"no type", call{body: sale, header: map[string]string{"Content-Type": ""}}, 415, "contentType", true},
		{"another charset", call{body: sale, header: map[string]string{"Content-Type": "application/json; charset=latin1"}}, 415, "contentType", true},
		{"a rebound host", call{body: sale, host: "evil.example:8080"}, 403, "host", false},
		{"a foreign page", call{body: sale, header: map[string]string{"Origin": "https://evil.example"}}, 403, "origin", false},
		{"a page of another port", call{body: sale, header: map[string]string{"Origin": "http://localhost:3000"}}, 403, "origin", false},
		{"a page without origin", call{body: sale, header: map[string]string{"Origin": "null"}}, 403, "origin", false},
		{"a long key", call{body: sale, header: map[string]string{"Idempotency-Key": strings.Repeat("k", 129)}}, 400, "idempotencyKey", true},
		{"a key that cannot be printed", call{body: sale, header: map[string]string{"Idempotency-Key": "k\u00e9"}}, 400, "idempotencyKey", true},
		{"no body", call{}, 400, "json", false},
		{"half a body", call{body: sale[:100]}, 400, "json", true},
		{"a list", call{body: "[" + sale + "]"}, 400, "json", true},
		{"two", call{body: sale + sale}, 400, "json", true},
		{"a name twice", call{body: strings.Replace(sale, "{", `{"total": 1,`, 1)}, 400, "json", true},
		{"a name twice in two cases", call{body: strings.Replace(sale, "{", `{"TOTAL": 1,`, 1)}, 400, "json", true},
		{"a name twice in a line", call{body: strings.Replace(sale, `"item": "4711"`, `"item": "4711", "item": "1"`, 1)}, 400, "json", true},
		{"Latin-1", call{body: strings.Replace(sale, "å", "\xe5", 1)}, 400, "json", true},
		{"too deep", call{body: `{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`}, 400, "json", true},
		{"a stamp in another case", call{body: strings.Replace(sale, "{", `{"STORE": "",`, 1)}, 422, "invalid", true},
		{"a long record", call{body: strings.Replace(sale, "A & B", strings.Repeat("x", protocol.MaxRecord), 1)}, 413, "tooBig", true},
		{"a long body", call{body: strings.Replace(sale, "A & B", strings.Repeat("x", MaxBody), 1)}, 413, "tooBig", true},
		{"the wrong method", call{method: "GET"}, 405, "method", false},
		{"an unknown address", call{path: "/v2/transactions", body: sale}, 404, "address", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShop(t)
			w := s.do(tt.call)
			expect(t, w, tt.status, tt.code)
			if kept := len(s.agent.rejected) == 1; kept != tt.kept {
				t.Errorf("kept = %t, want %t", kept, tt.kept)
			}
			for name, body := range s.agent.bodies {
				want := tt.call.body
				if len(want) > MaxBody {
					want = want[:MaxKept]
				}
				if string(body) != want {
					t.Errorf("%s: %d bytes kept, want the %d that were sent", name, len(body), len(want))
				}
			}
			if len(s.agent.intakes) != 0 {
				t.Error("accepted all the same")
			}
			if tt.status == 401 && w.Header().Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
			if tt.status == 405 && w.Header().Get("Allow") != "POST" {
				t.Errorf("Allow = %q", w.Header().Get("Allow"))
			}
		})
	}
}

func TestHostsThatAreTaken(t *testing.T) {
	for _, host := range []string{"localhost", "LOCALHOST:8080", "127.0.0.1:80", "[::1]:8080", "[::1]", "backoffice:8080"} {
		if w := newShop(t).do(call{body: sale, host: host, header: map[string]string{"Origin": "http://" + host}}); w.Code != 201 {
			t.Errorf("host %s = %d %s, want 201", host, w.Code, w.Body)
		}
	}
}

func TestErrorsOfTheAgent(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		code   string
		kept   bool
	}{
		{ErrFull, 507, "full", false}, {ErrTooBig, 413, "tooBig", true}, {ErrConflict, 409, "conflict", true}, {ErrBusy, 503, "busy", false},
		{errors.New("torn"), 503, "notAccepted", false},
	} {
		s := newShop(t)
		s.agent.err = fmt.Errorf("accept: %w", tt.err)
		w := s.do(call{body: sale})
		expect(t, w, tt.status, tt.code)
		if kept := len(s.agent.rejected) == 1; kept != tt.kept {
			t.Errorf("%v: kept = %t, want %t", tt.err, kept, tt.kept)
		}
		if tt.status >= 500 && w.Header().Get("Retry-After") == "" {
			t.Errorf("%v: no Retry-After", tt.err)
		}
	}
}

func TestAPanicIsA500(t *testing.T) {
	s := newShop(t)
	s.agent.panics = true
	expect(t, s.do(call{body: sale}), 500, "internal")
}

func TestStatus(t *testing.T) {
	s := newShop(t)
	w := s.do(call{method: "GET", path: "/v1/status"})
	if w.Code != 200 || w.Body.String() != `{"agent":"well"}` || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("answer = %d %s", w.Code, w.Body)
	}
	expect(t, s.do(call{method: "GET", path: "/v1/status", header: map[string]string{"Authorization": ""}}), 401, "token")
}

func TestDrawers(t *testing.T) {
	s := newShop(t)
	d := &fakeDrawer{}
	s.agent.drawers["d1"] = d
	open := func(body string) *httptest.ResponseRecorder {
		return s.do(call{path: "/v1/drawers/d1/open", body: body})
	}
	for _, tt := range []struct {
		open, known bool
		want        string
	}{{false, false, "null"}, {true, true, "true"}, {false, true, "false"}} {
		d.open, d.known = tt.open, tt.known
		if w := s.do(call{method: "GET", path: "/v1/drawers/d1"}); w.Code != 200 || w.Body.String() != `{"id":"d1","opened":`+tt.want+`}` {
			t.Errorf("answer = %d %s, want %s", w.Code, w.Body, tt.want)
		}
	}
	if w := open(`{"reason": "sale", "reference": "7", "operator": "op1"}`); w.Code != 202 || w.Body.String() != `{"id":"d1","sent":true}` {
		t.Errorf("answer = %d %s, want 202", w.Code, w.Body)
	}
	if want := (drivers.OpenCommand{Reason: "sale", Reference: "7", Operator: "op1"}); d.got != want {
		t.Errorf("command = %+v, want %+v", d.got, want)
	}
	if p := expect(t, open(`{"operator": "op\u0007"}`), 422, "invalid"); len(p.Faults) != 2 {
		t.Errorf("faults = %+v, want reason and operator", p.Faults)
	}
	expect(t, open(`{"reason": 1}`), 422, "invalid")
	expect(t, open(`x`), 400, "json")
	expect(t, open(`{"reason": "`+strings.Repeat("x", maxDrawer)+`"}`), 413, "tooBig")
	d.err = &drivers.Fault{Device: "d1", Err: drivers.ErrOffline, Hint: "out of paper"}
	if p := expect(t, open(`{"reason": "sale"}`), 409, "drawerOffline"); p.Hint != "out of paper" {
		t.Errorf("hint = %q", p.Hint)
	}
	d.err = errors.New("stuck")
	expect(t, open(`{"reason": "sale"}`), 503, "drawerError")
	expect(t, s.do(call{path: "/v1/drawers/d2/open", body: `{"reason": "sale"}`}), 404, "drawer")
	expect(t, s.do(call{method: "GET", path: "/v1/drawers/d2"}), 404, "drawer")
	if len(s.agent.rejected) != 0 {
		t.Error("a drawer's command was kept as a transaction")
	}
}

// serve runs the handler behind a real server.
func (s *shop) serve(t *testing.T) *httptest.Server {
	server := httptest.NewServer(s.handler)
	t.Cleanup(server.Close)
	return server
}

func request(t testing.TB, url string, body io.Reader) *http.Request {
	r, err := http.NewRequestWithContext(t.Context(), "POST", url+"/v1/transactions", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer secret1")
	r.Header.Set("Content-Type", "application/json")
	return r
}

// Ten connections send the same receipt at once: one is accepted, all hear the same.
func TestTheSameTransactionAtTheSameTime(t *testing.T) {
	s := newShop(t)
	server := s.serve(t)
	answers := make(chan string, 10)
	var sending sync.WaitGroup
	for range cap(answers) {
		sending.Go(func() {
			r := request(t, server.URL, strings.NewReader(sale))
			r.Header.Set("Idempotency-Key", "k")
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			answers <- fmt.Sprint(resp.StatusCode, string(body), err)
		})
	}
	sending.Wait()
	close(answers)
	first := <-answers
	for a := range answers {
		if a != first {
			t.Errorf("answers differ: %s and %s", first, a)
		}
	}
	if len(s.agent.intakes) != 1 || !strings.HasPrefix(first, "201") {
		t.Errorf("%d accepted with %s, want one with 201", len(s.agent.intakes), first)
	}
}

// The till hangs up before it reads the answer, and sends again.
func TestALostAnswerIsGivenAgain(t *testing.T) {
	s := newShop(t)
	server := s.serve(t)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(sale), sale)
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the answer has begun: it is accepted
		t.Fatal(err)
	}
	conn.Close()
	resp, err := http.DefaultClient.Do(request(t, server.URL, strings.NewReader(sale)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 201 || resp.Header.Get("Idempotency-Replayed") != "true" || len(s.agent.intakes) != 1 {
		t.Errorf("answer = %d, %d accepted, want the first answer again", resp.StatusCode, len(s.agent.intakes))
	}
}

// A till that sends 10 MB before it reads gets its answer, not a reset connection.
func TestTenMegabytesAreRefusedInWords(t *testing.T) {
	s := newShop(t)
	server := s.serve(t)
	resp, err := http.DefaultClient.Do(request(t, server.URL, io.LimitReader(spaces{}, 10<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("answer = %d, want 413", resp.StatusCode)
	}
	for _, body := range s.agent.bodies {
		if len(body) != MaxKept {
			t.Errorf("%d bytes kept, want %d", len(body), MaxKept)
		}
	}
	if len(s.agent.bodies) != 1 {
		t.Errorf("%d bodies kept, want 1", len(s.agent.bodies))
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func FuzzPostTransaction(f *testing.F) {
	for _, body := range []string{sale, sale[:200], `{"STORE":"",` + sale[1:], `{"lines":[{"Item":"x","quantity":{"Milli":-0}}],"end":"2026-03-02T10:15:00Z"}`, `{"total":1e400}`, `{}`, `[]`, "\xef\xbb\xbf{}", `{"a":{"a":{"a":[[]]}}}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		s := newShop(t)
		first, second := s.do(call{body: body}), s.do(call{body: body})
		if first.Code != second.Code || first.Body.String() != second.Body.String() {
			t.Errorf("answers differ: %s and %s", first.Body, second.Body)
		}
		switch first.Code {
		case http.StatusCreated:
			var stored protocol.Transaction
			if err := json.Unmarshal(s.agent.intakes[0].Body, &stored); err != nil {
				t.Fatal(err)
			}
			if err := stored.Validate(); err != nil || stored.Store != "0042" || stored.Workstation != "till1" || len(s.agent.intakes) != 1 {
				t.Errorf("accepted %s: %v", s.agent.intakes[0].Body, err)
			}
		case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
			if body != "" && len(s.agent.rejected) != 1 {
				t.Errorf("%d kept, want the refused body", len(s.agent.rejected))
			}
		default:
			t.Errorf("answer = %d %s", first.Code, first.Body)
		}
	})
}
