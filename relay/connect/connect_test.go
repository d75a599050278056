package connect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/connect/connecttest"
	"github.com/storelay/storelay/relay/ledger"
)

// quick are options under which a test need not wait.
func quick(l connect.Ledger, holder string) connect.Options {
	return connect.Options{Ledger: l, Chain: chain, Holder: holder, RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond, LeaseTTL: 600 * time.Millisecond}
}

func hook(name string, r *connecttest.Receiver) connect.Config {
	return connect.Config{Name: name, Type: connect.TypeWebhook, URL: r.URL, Secret: connecttest.Secret}
}

// run runs the connectors until stop is called or the test ends.
func run(t testing.TB, opts connect.Options, configs ...connect.Config) (r *connect.Runner, stop func()) {
	t.Helper()
	r, err := connect.New(opts, configs...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx); close(done) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

// nth is the record's place in the test, from 1.
func nth(m connecttest.Message) int64 { return m.Data.Pos - seals }

// wantRecords checks that exactly these records were applied, in order, without a fault.
func wantRecords(t *testing.T, r *connecttest.Receiver, want ...int64) {
	t.Helper()
	var got []int64
	for _, m := range r.Applied() {
		got = append(got, nth(m))
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("applied records %v, want %v", got, want)
	}
	if bad := r.Bad(); len(bad) > 0 {
		t.Errorf("bad deliveries: %q", bad)
	}
}

func upTo(n int64) []int64 {
	var all []int64
	for i := int64(1); i <= n; i++ {
		all = append(all, i)
	}
	return all
}

// waitState asks for the state until it is as wanted.
func waitState(t *testing.T, r *connect.Runner, what string, want func(connect.State) bool) connect.State {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		states, err := r.States(t.Context())
		if err == nil && len(states) > 0 && want(states[0]) {
			return states[0]
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for %s: %+v, %v", what, states, err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(2 * time.Millisecond): // nothing announces a state
		}
	}
}

func TestHUB02EveryFaultStillAppliesExactlyOnceInOrder(t *testing.T) {
	for name, fault := range map[string]connecttest.Fault{
		"500": connecttest.Fail, "500 after commit": connecttest.FailStored, "timeout after commit": connecttest.HoldStored,
		"429 with Retry-After": connecttest.TooMany, "reset in mid-body after commit": connecttest.ResetStored, "reset": connecttest.Reset,
		"answers twice": connecttest.AnswerTwice, "redirect": connecttest.Redirect,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := openLedger(t)
			l.sell("0001", 12)
			attempts := 3
			if fault == connecttest.TooMany {
				attempts = 2 // each waits a second
			}
			r := connecttest.New(t, func(m connecttest.Message, attempt int) connecttest.Fault {
				if nth(m) == 5 && attempt < attempts || fault == connecttest.AnswerTwice {
					return fault
				}
				return connecttest.None
			})
			opts := quick(l, "a")
			opts.Timeout = 10 * time.Second // a busy machine must not look like a fault
			if fault == connecttest.HoldStored {
				opts.Timeout = 250 * time.Millisecond
			}
			began := time.Now()
			runner, _ := run(t, opts, hook("erp", r))
			r.WaitApplied(t, 12)
			state := waitState(t, runner, "the cursor", func(s connect.State) bool { return s.Cursor == seals+12 })
			wantRecords(t, r, upTo(12)...)
			if exact := fault != connecttest.HoldStored; fault != connecttest.AnswerTwice && (exact && r.Attempts() != 12+attempts-1 || r.Attempts() < 12+attempts-1) {
				t.Errorf("%d attempts, want %d", r.Attempts(), 12+attempts-1)
			}
			if waited := time.Since(began); fault == connecttest.TooMany && waited < time.Second {
				t.Errorf("delivered again after %s, Retry-After asked for 1 s", waited)
			}
			if state.DeadLetters != 0 {
				t.Errorf("%d dead letters, want none", state.DeadLetters)
			}
		})
	}
}

func TestHUB02ARestartInTheMiddleOfADeliveryGoesOn(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 40)
	var hold bool
	reached := make(chan struct{})
	r := connecttest.New(t, func(m connecttest.Message, _ int) connecttest.Fault {
		if nth(m) == 7 && !hold {
			hold = true
			close(reached)
			return connecttest.HoldStored
		}
		return connecttest.None
	})
	_, stop := run(t, quick(l, "a"), hook("erp", r))
	<-reached
	stop()
	if c := l.cursor("erp"); c.Pos != seals+6 {
		t.Errorf("cursor %d after the stop, want 6: what was answered, and no more", c.Pos)
	}
	run(t, quick(l, "b"), hook("erp", r))
	r.WaitApplied(t, 40)
	wantRecords(t, r, upTo(40)...)
	if r.Attempts() != 41 {
		t.Errorf("%d attempts, want 41: only the record under way is repeated", r.Attempts())
	}
}

func TestHUB02TwoRelaysDeliverOnce(t *testing.T) {
	l := openLedger(t)
	r := connecttest.New(t, nil)
	a, stopA := run(t, quick(l, "a"), hook("erp", r))
	b, stopB := run(t, quick(l, "b"), hook("erp", r))
	for range 50 {
		l.sell("0001", 1)
	}
	r.WaitApplied(t, 50)
	waitState(t, a, "the cursor", func(s connect.State) bool { return s.Cursor == seals+50 })
	stopA() // whichever delivers, the other goes on
	l.sell("0001", 10)
	r.WaitApplied(t, 60)
	waitState(t, b, "the cursor", func(s connect.State) bool { return s.Cursor == seals+60 })
	stopB()
	wantRecords(t, r, upTo(60)...)
	if r.Attempts() != 60 {
		t.Errorf("%d attempts, want 60", r.Attempts())
	}
}

func TestHUB02ALostLeaseStopsWorkBeforeTheNextDelivery(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 3)
	r := connecttest.New(t, func(m connecttest.Message, _ int) connecttest.Fault {
		if nth(m) == 2 {
			return connecttest.Hold
		}
		return connecttest.None
	})
	runner, _ := run(t, quick(l, "a"), hook("erp", r))
	r.Wait(t, "the second delivery", func() bool { return r.Attempts() == 2 })
	l.steal(time.Now().Add(time.Hour))
	waitState(t, runner, "the lease to be lost", func(s connect.State) bool {
		return !s.Active && strings.Contains(s.LastError, "lease")
	})
	if r.Attempts() != 2 {
		t.Errorf("%d attempts, want 2", r.Attempts())
	}
	if c := l.cursor("erp"); c.Pos > seals+1 {
		t.Errorf("cursor %d, want at most 1", c.Pos)
	}
	r.Plan(func(connecttest.Message, int) connecttest.Fault { return connecttest.None })
	l.steal(time.Time{}) // the other relay died
	r.WaitApplied(t, 3)
	wantRecords(t, r, 1, 2, 3)
}

func TestHUB02ARefusedRecordBecomesADeadLetterAndCanBeReplayed(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 6)
	r := connecttest.New(t, func(m connecttest.Message, _ int) connecttest.Fault {
		if nth(m) == 3 {
			return connecttest.Refuse
		}
		return connecttest.None
	})
	runner, _ := run(t, quick(l, "a"), hook("erp", r))
	r.WaitApplied(t, 5)
	wantRecords(t, r, 1, 2, 4, 5, 6)
	state := waitState(t, runner, "the cursor", func(s connect.State) bool { return s.Cursor == seals+6 })
	if state.DeadLetters != 1 || state.Lag != 0 || state.Delivered != 5 || state.LastMinute != 5 {
		t.Errorf("state %+v, want 1 dead letter, lag 0, 5 delivered", state)
	}
	letters, err := runner.DeadLetters(t.Context(), "erp")
	if err != nil || len(letters) != 1 || letters[0].Pos != seals+3 || letters[0].Attempts != 1 || letters[0].Reason != "400: no such article" {
		t.Fatalf("dead letters %+v, %v, want record 3 with the receiver's words", letters, err)
	}
	if err := runner.Replay(t.Context(), "erp", seals+3); !errors.Is(err, connect.ErrRefused) {
		t.Errorf("replay while the receiver still refuses: %v, want ErrRefused", err)
	}
	r.Plan(func(connecttest.Message, int) connecttest.Fault { return connecttest.None })
	if err := runner.Replay(t.Context(), "erp", seals+3); err != nil {
		t.Fatal(err)
	}
	wantRecords(t, r, 1, 2, 4, 5, 6, 3)
	if letters, err := runner.DeadLetters(t.Context(), "erp"); err != nil || len(letters) != 0 {
		t.Errorf("dead letters after the replay %+v, %v, want none", letters, err)
	}
	for what, err := range map[string]error{
		"replay again": runner.Replay(t.Context(), "erp", seals+3), "no such letter": runner.Replay(t.Context(), "erp", seals+4),
		"no such connector": runner.Replay(t.Context(), "crm", seals+3), "resume": runner.Resume("crm"),
	} {
		if !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", what, err)
		}
	}
}

func TestHUB02ARecordThatTheReceiverFailsOnIsGivenUpInTheEnd(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 3)
	r := connecttest.New(t, func(m connecttest.Message, _ int) connecttest.Fault {
		if nth(m) == 2 {
			return connecttest.Fail
		}
		return connecttest.None
	})
	config := hook("erp", r)
	config.GiveUp = 50 * time.Millisecond
	runner, _ := run(t, quick(l, "a"), config)
	r.WaitApplied(t, 2)
	wantRecords(t, r, 1, 3)
	letters, err := runner.DeadLetters(t.Context(), "erp")
	if err != nil || len(letters) != 1 || letters[0].Pos != seals+2 || letters[0].Attempts < 2 {
		t.Errorf("dead letters %+v, %v, want record 2 after several attempts", letters, err)
	}
}

func TestHUB02AStuckConnectorDoesNotDelayAnother(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 1)
	stuck := connecttest.New(t, func(connecttest.Message, int) connecttest.Fault { return connecttest.Hold })
	free := connecttest.New(t, nil)
	run(t, quick(l, "a"), hook("stuck", stuck), hook("free", free))
	stuck.Wait(t, "the first attempt", func() bool { return stuck.Attempts() == 1 })
	l.sell("0001", 200)
	free.WaitApplied(t, 201)
	wantRecords(t, free, upTo(201)...)
	if len(stuck.Applied()) != 0 || stuck.Attempts() != 1 {
		t.Errorf("stuck receiver saw %d attempts and took %d", stuck.Attempts(), len(stuck.Applied()))
	}
}

// TestALeapOfPositionsIsNoLag restores the ledger behind a connector that has delivered all.
func TestALeapOfPositionsIsNoLag(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 2)
	r := connecttest.New(t, nil)
	runner, _ := run(t, quick(l, "a"), hook("erp", r))
	r.WaitApplied(t, 2)
	waitState(t, runner, "the cursor at the end", func(s connect.State) bool { return s.Cursor == s.Head })
	l.raise()
	states, err := runner.States(t.Context())
	if err != nil || states[0].Head < 1_000_000 || states[0].Lag != 0 {
		t.Errorf("states %+v, %v, want no lag", states, err)
	}
}

func TestHUB02GonePausesUntilResume(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 2)
	r := connecttest.New(t, func(m connecttest.Message, _ int) connecttest.Fault { return connecttest.Gone })
	runner, _ := run(t, quick(l, "a"), hook("erp", r))
	state := waitState(t, runner, "the pause", func(s connect.State) bool { return s.Paused })
	if state.Cursor > seals || state.DeadLetters != 0 || state.Lag != seals+2-state.Cursor {
		t.Errorf("state %+v, want nothing lost", state)
	}
	r.Plan(func(connecttest.Message, int) connecttest.Fault { return connecttest.None })
	if err := runner.Resume("erp"); err != nil {
		t.Fatal(err)
	}
	r.WaitApplied(t, 2)
	wantRecords(t, r, 1, 2)
	waitState(t, runner, "the end of the pause", func(s connect.State) bool { return !s.Paused && s.LastError == "" })
}

func TestHUB02ManyRefusalsInARowPause(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 100)
	r := connecttest.New(t, func(connecttest.Message, int) connecttest.Fault { return connecttest.Unauthorized })
	runner, _ := run(t, quick(l, "a"), hook("erp", r))
	waitState(t, runner, "the pause", func(s connect.State) bool { return s.Paused })
	letters, err := runner.DeadLetters(t.Context(), "erp")
	if err != nil || len(letters) != 19 {
		t.Errorf("%d dead letters, %v, want 19: a wrong secret must not turn a whole history into dead letters", len(letters), err)
	}
	r.Plan(func(connecttest.Message, int) connecttest.Fault { return connecttest.None })
	if err := runner.Resume("erp"); err != nil {
		t.Fatal(err)
	}
	r.WaitApplied(t, 81)
	wantRecords(t, r, upTo(100)[19:]...)
}

func TestHUB02FiltersByKindAndStore(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 1)
	l.sell("0002", 1)
	l.commit("0001", protocol.KindFootfall, `{"counter":"door","from":"2026-11-21T10:15:00Z","to":"2026-11-21T10:16:00Z","in":1,"out":2,"rawIn":1,"rawOut":2,"quality":"ok"}`)
	l.sell("0001", 1)
	l.commit("0001", protocol.KindDayMark, `{}`)
	all, some := connecttest.New(t, nil), connecttest.New(t, nil)
	narrow := hook("some", some)
	narrow.Kinds, narrow.Stores = []protocol.Kind{protocol.KindTransaction}, []string{"0001"}
	run(t, quick(l, "a"), hook("all", all), narrow)
	all.WaitApplied(t, 4)
	some.WaitApplied(t, 2)
	wantRecords(t, all, 1, 2, 3, 4)
	wantRecords(t, some, 1, 4)
	if got := all.Applied()[2].Type; got != "footfallCount.committed" {
		t.Errorf("type %q, want footfallCount.committed", got)
	}
}

func TestHUB02StartNowLeavesThePastAlone(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 5)
	r := connecttest.New(t, nil)
	config := hook("erp", r)
	config.Start = connect.StartNow
	runner, stop := run(t, quick(l, "a"), config)
	waitState(t, runner, "the cursor", func(s connect.State) bool { return s.Cursor == seals+5 })
	stop()
	l.sell("0001", 2) // while no relay runs: still after "now"
	run(t, quick(l, "b"), config)
	r.WaitApplied(t, 2)
	wantRecords(t, r, 6, 7)
}

func TestHUB02ACursorOfAnOlderIncarnationGoesOn(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 5)
	r := connecttest.New(t, nil)
	if err := l.SaveCursor(t.Context(), chain, "erp", ledger.Cursor{Incarnation: 1, Pos: 900}); err != nil { // delivered further than the backup reaches
		t.Fatal(err)
	}
	l.raise()
	run(t, quick(l, "a"), hook("erp", r))
	l.sell("0002", 2)
	r.WaitApplied(t, 2)
	if got := r.Applied(); got[0].Data.Store != "0002" || got[0].Data.Pos <= 1_000_000_000 || got[1].Data.Pos != got[0].Data.Pos+1 {
		t.Errorf("applied %+v, want the two new records, behind the jump", got)
	}
	runner, err := connect.New(quick(l, "b"), hook("erp", r))
	if err != nil {
		t.Fatal(err)
	}
	waitState(t, runner, "the cursor to be saved", func(connect.State) bool {
		return l.cursor("erp") == ledger.Cursor{Incarnation: 2, Pos: r.Applied()[1].Data.Pos}
	})
}

func TestHUB02ADatabaseThatWasAwayLosesNothing(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 3)
	r := connecttest.New(t, nil)
	runner, _ := run(t, quick(l, "a"), hook("erp", r))
	r.WaitApplied(t, 3)
	waitState(t, runner, "the cursor", func(s connect.State) bool { return s.Cursor == seals+3 })
	l.cut(true)
	l.sell("0001", 3)
	deadline := time.After(20 * time.Second)
	for l.waiting() > 0 { // the delivery loop meets the outage and ends
		select {
		case <-deadline:
			t.Fatal("the runner did not stop without its ledger")
		case <-time.After(time.Millisecond):
		}
	}
	l.cut(false)
	r.WaitApplied(t, 6)
	wantRecords(t, r, upTo(6)...)
}

func TestHUB04TheMessageIsTheRecordWithItsExactBody(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 1)
	r := connecttest.New(t, nil)
	run(t, quick(l, "a"), hook("erp", r))
	r.WaitApplied(t, 1)
	m := r.Applied()[0]
	want := `{"type":"transaction.committed","timestamp":"2026-11-21T09:15:01Z","data":{"pos":3,"store":"0001","agent":"pc-1","epoch":"` + strings.Repeat("0a", 16) +
		`","seq":2,"kind":"transaction","at":"2026-11-21T10:15:00+01:00","day":"2026-11-21","number":1,"received":"2026-11-21T09:15:01Z","body":` + sale("0001", 2) + `}}`
	if string(m.Body) != want {
		t.Errorf("body\n got %s\nwant %s", m.Body, want)
	}
	// Computed apart, in Python: sha256 of the length-prefixed chain, agent and epoch, seq, and the body's sha256.
	if want := "msg_b7e230df4b4fc1b640f8b3cc1203665b"; m.ID != want {
		t.Errorf("webhook-id %s, want %s: it must never change", m.ID, want)
	}
}

func TestAConfigsFaultsNameTheirFieldsWithoutTheSecret(t *testing.T) {
	good := connect.Config{Name: "erp", Type: "webhook", URL: "https://erp.example/hook", Secret: connecttest.Secret}
	if f := good.Validate(); f != nil {
		t.Fatalf("good config: %v", f)
	}
	for field, change := range map[string]func(*connect.Config){
		"name": func(c *connect.Config) { c.Name = "my erp" }, "type": func(c *connect.Config) { c.Type = "fax" },
		"url": func(c *connect.Config) { c.URL = "file:///etc/passwd" }, "secret": func(c *connect.Config) { c.Secret = "hunter2hunter2" },
		"kinds[0]": func(c *connect.Config) { c.Kinds = []protocol.Kind{"sale"} }, "stores[1]": func(c *connect.Config) { c.Stores = []string{"1", "a b"} },
		"start": func(c *connect.Config) { c.Start = "tomorrow" }, "giveUp": func(c *connect.Config) { c.GiveUp = -1 },
	} {
		c := good
		change(&c)
		f := c.Validate()
		if len(f) != 1 || f[0].Field != field {
			t.Errorf("%s: faults %v, want one there", field, f)
		}
		if strings.Contains(fmt.Sprint(f), "hunter2") {
			t.Errorf("the fault repeats the secret: %v", f)
		}
	}
	for _, u := range []string{"https://u:hunter2@erp.example/", "http://%zz?hunter2", "https:///x", "ftp://h", "https://h/#f", "erp.example"} {
		c := good
		c.URL = u
		if f := c.Validate(); len(f) != 1 || f[0].Field != "url" || strings.Contains(f.Error(), "hunter2") {
			t.Errorf("%s: faults %v, want one at url that keeps the secret", u, f)
		}
	}
	for _, s := range []string{"", "whsec_", "whsec_c2hvcnQ=", connecttest.Secret[6:], "whsec_" + strings.Repeat("AAAA", 22)} {
		c := good
		c.Secret = s
		if f := c.Validate(); len(f) != 1 || f[0].Field != "secret" {
			t.Errorf("secret %q: faults %v, want one at secret", s, f)
		}
	}
	_, err := connect.New(connect.Options{Ledger: openLedger(t), Chain: chain}, good, good)
	var f protocol.Faults
	if errors.As(err, &f); len(f) != 1 || f[0].Field != "connectors[1].name" {
		t.Errorf("the same name twice: %v, want a fault at connectors[1].name", err)
	}
}

func BenchmarkDeliver(b *testing.B) {
	l := openLedger(b)
	l.sell("0001", b.N)
	done := make(chan struct{})
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if n++; n == b.N { // one connector delivers one record at a time
			close(done)
		}
	}))
	defer server.Close()
	opts := quick(l, "a")
	opts.LeaseTTL = 0
	b.ResetTimer()
	run(b, opts, connect.Config{Name: "erp", Type: "webhook", URL: server.URL, Secret: connecttest.Secret})
	<-done
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
