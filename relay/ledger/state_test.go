package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

// await waits for a value, a minute at most.
func await[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case v = <-ch:
	case <-ctx.Done():
		t.Fatalf("no %s within a minute", what)
	}
	return v
}

func TestOpenKeepsWhatIsThere(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, stop := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(transaction(t, sale("0001", 1))))
		stop()
		l, _ = open(t, url) // the migrations are there already
		two, _ := open(t, url)
		acked(t, two, a, a.batch(transaction(t, sale("0001", 2))))
		checkOrder(t, l, 3)
	})
}

func TestRelaysThatStartAtOnceTakeTurns(t *testing.T) {
	url := ledgertest.Postgres(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			l, err := ledger.Open(context.Background(), url, ledger.Options{})
			if err != nil {
				t.Error(err)
				return
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestOpenRefusesADatabaseThatForgets(t *testing.T) {
	url := ledgertest.Postgres(t)
	for name, tt := range map[string]struct{ url, want string }{
		"synchronous_commit": {url + "&synchronous_commit=off", "synchronous_commit is off"},
		"scheme":             {"mysql://x", "sqlite:/path"},
		"no path":            {"sqlite:", "no path"},
		"no folder":          {"sqlite:/nonexistent/relay.db", "open ledger"},
		"no server":          {"postgres://x@127.0.0.1:1/x?sslmode=disable&connect_timeout=5", "open ledger"},
	} {
		if l, err := ledger.Open(t.Context(), tt.url, ledger.Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v, want an error with %q", name, l, err, tt.want)
		}
	}
}

func TestAnotherTimelineRaisesTheIncarnation(t *testing.T) {
	url := ledgertest.Postgres(t)
	l, stop := open(t, url)
	if _, incarnation, err := l.Head(t.Context(), chain); err != nil || incarnation != 1 {
		t.Fatalf("incarnation %d, %v", incarnation, err)
	}
	stop()
	execute(t, url, "UPDATE ledger SET timeline = timeline + 1") // as if a standby had taken over
	for range 2 {
		l, stop = open(t, url)
		if _, incarnation, err := l.Head(t.Context(), chain); err != nil || incarnation != 2 {
			t.Errorf("incarnation %d, %v, want 2", incarnation, err)
		}
		stop()
	}
}

func TestAStoreReachesItsAgentsThroughTheConfigFeed(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		if err := l.RegisterAgent(t.Context(), a.from); err != nil {
			t.Fatal(err)
		}
		var faults protocol.Faults
		if err := l.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "Mars", CutOff: "x", Currency: "SEK"}); !errors.As(err, &faults) || len(faults) != 2 {
			t.Errorf("bad store: %v, want faults of zone and cutOff", err)
		}
		first := ledger.Store{ID: "0001", Name: "Centrum", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}
		other := ledger.Store{ID: "0002", Zone: "Europe/Lisbon", Currency: "EUR"}
		second := first
		second.CutOff = "05:00"
		for _, s := range []ledger.Store{first, other, second} {
			if err := l.PutStore(t.Context(), chain, s); err != nil {
				t.Fatal(err)
			}
		}
		if stores, err := l.Stores(t.Context(), chain); err != nil || !slices.Equal(stores, []ledger.Store{second, other}) {
			t.Errorf("stores %+v, %v", stores, err)
		}
		page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedConfig})
		if err != nil || len(page.Changes) != 1 || page.Changes[0].Key != protocol.StoreKey || !strings.Contains(string(page.Changes[0].Body), `"05:00"`) || page.To != 3 || page.More {
			t.Errorf("page %+v, %v, want the store's newest settings at 3", page, err)
		}
		for _, want := range []int64{1, 2, 3} {
			if news := await(t, l.News(), "news"); news != (ledger.ChainNews{Chain: chain, News: protocol.News{Feed: protocol.FeedConfig, Version: want}}) {
				t.Errorf("news %+v, want version %d", news, want)
			}
		}
	})
}

func TestAFeedComesInPages(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		if err := l.RegisterAgent(t.Context(), a.from); err != nil {
			t.Fatal(err)
		}
		put := func(store, key string, body []byte) {
			t.Helper()
			if err := l.FeedChange(t.Context(), chain, protocol.FeedItems, store, key, body); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]string{}
		for i := range 250 {
			key := fmt.Sprint("i", i)
			put("", key, []byte(`1`))
			want[key] = `1`
		}
		put("0002", "not ours", []byte(`1`))
		got := map[string]string{}
		ask := protocol.FeedAsk{Feed: protocol.FeedItems}
		read := func() (pages int) {
			for more := true; more; pages++ {
				page, err := l.FeedPage(t.Context(), a.from, ask)
				if err != nil || page.From != ask.After || page.Feed != ask.Feed || len(page.Changes) > 200 {
					t.Fatalf("page %+v, %v", page, err)
				}
				if page.Reset {
					clear(got)
				}
				for _, c := range page.Changes {
					if c.Body == nil {
						delete(got, c.Key)
					} else {
						got[c.Key] = string(c.Body)
					}
				}
				ask.After, more = page.To, page.More
			}
			return pages
		}
		if pages := read(); pages != 2 || !reflect.DeepEqual(got, want) {
			t.Errorf("%d pages, %d keys, want 2 and %d", pages, len(got), len(want))
		}
		put("0001", "i0", []byte(`2`)) // the store's own, beside the chain's
		put("", "i1", nil)
		put("", "i2", []byte(`3`))
		want["i0"], want["i2"] = `2`, `3`
		delete(want, "i1")
		if pages := read(); pages != 1 || !reflect.DeepEqual(got, want) {
			t.Errorf("%d pages, keys %d, want 1 and %d", pages, len(got), len(want))
		}
		ask.After = 1_000_000 // a cursor that this ledger never gave
		if read(); !reflect.DeepEqual(got, want) {
			t.Errorf("after a reset %d keys, want %d", len(got), len(want))
		}
	})
}

func TestOtherRelaysHearOfCommits(t *testing.T) {
	url := ledgertest.Postgres(t)
	one, _ := open(t, url)
	two, _ := open(t, url)
	here, cancelHere := one.Moved(chain)
	defer cancelHere()
	there, cancelThere := two.Moved(chain)
	defer cancelThere()
	a := newAgent(t, "0001", "pc", 1)
	b := a.begin()
	for n := int64(1); n <= 5; n++ {
		acked(t, one, a, b)
		await(t, here, "word of a commit here")
		if heads(t, two) < n {
			t.Fatal("the other relay does not see the commit")
		}
		await(t, there, "word of a commit there")
		b = a.batch(transaction(t, sale("0001", n)))
	}
	if err := one.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "UTC", Currency: "SEK"}); err != nil {
		t.Fatal(err)
	}
	if news := await(t, two.News(), "news there"); news.Chain != chain || news.Feed != protocol.FeedConfig || news.Version != 1 {
		t.Errorf("news %+v", news)
	}
}

func TestTokensAreKnownByTheirSecretAlone(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		secret, err := l.CreateToken(t.Context(), ledger.Token{Chain: chain, Name: "erp", Scopes: []string{"read", "write"}, Stores: []string{"0001"}})
		if err != nil || !strings.HasPrefix(secret, "slt_") || len(secret) != 4+43 {
			t.Fatalf("secret %q, %v", secret, err)
		}
		got, err := l.TokenOf(t.Context(), secret)
		if err != nil || got.ID == "" || got.Chain != chain || got.Name != "erp" || !slices.Equal(got.Scopes, []string{"read", "write"}) || !slices.Equal(got.Stores, []string{"0001"}) || got.Created.IsZero() {
			t.Errorf("token %+v, %v", got, err)
		}
		if _, err := l.CreateToken(t.Context(), ledger.Token{ID: got.ID, Chain: chain}); !errors.Is(err, ledger.ErrExists) {
			t.Errorf("the same id: %v, want ErrExists", err)
		}
		if _, err := l.CreateToken(t.Context(), ledger.Token{Chain: "a b"}); err == nil {
			t.Error("a chain without form was taken")
		}
		if list, err := l.Tokens(t.Context(), chain); err != nil || len(list) != 1 || list[0].ID != got.ID {
			t.Errorf("tokens %+v, %v", list, err)
		}
		if _, err := l.TokenOf(t.Context(), secret+"x"); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("wrong secret: %v", err)
		}
		if err := l.DeleteToken(t.Context(), "other", got.ID); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("delete of another chain: %v", err)
		}
		if err := l.DeleteToken(t.Context(), chain, got.ID); err != nil {
			t.Fatal(err)
		}
		if _, err := l.TokenOf(t.Context(), secret); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("deleted token: %v", err)
		}
	})
}

func TestALeaseHasOneHolder(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		lease := func(holder string, ttl time.Duration, want bool) {
			t.Helper()
			if got, err := l.Lease(t.Context(), "connectors", holder, ttl); err != nil || got != want {
				t.Errorf("lease for %s: %v, %v, want %v", holder, got, err, want)
			}
		}
		lease("a", time.Hour, true)
		lease("b", time.Hour, false)
		lease("a", 0, true)         // renewed, and given up at once
		lease("b", time.Hour, true) // taken over after expiry
		lease("a", time.Hour, false)
	})
}

func TestALetterAndItsCursorAreOneCommit(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		cursor := func(want ledger.Cursor) {
			t.Helper()
			if got, err := l.Cursor(t.Context(), chain, "erp"); err != nil || got != want {
				t.Errorf("cursor %+v, %v, want %+v", got, err, want)
			}
		}
		cursor(ledger.Cursor{})
		if err := l.SaveCursor(t.Context(), chain, "erp", ledger.Cursor{Incarnation: 1, Pos: 6}); err != nil {
			t.Fatal(err)
		}
		cursor(ledger.Cursor{Incarnation: 1, Pos: 6})
		letter := ledger.DeadLetter{Connector: "erp", Pos: 7, Attempts: 3, Reason: "400\x00", At: time.UnixMicro(5).UTC()}
		if err := l.AddDeadLetter(t.Context(), chain, letter, ledger.Cursor{Incarnation: 1, Pos: 7}); err != nil {
			t.Fatal(err)
		}
		cursor(ledger.Cursor{Incarnation: 1, Pos: 7})
		letter.Reason = "400\uFFFD"
		for _, connector := range []string{"", "erp"} {
			if got, err := l.DeadLetters(t.Context(), chain, connector); err != nil || len(got) != 1 || got[0] != letter {
				t.Errorf("letters of %q %+v, %v", connector, got, err)
			}
		}
		// When the cursor cannot be saved, there is no letter either.
		execute(t, url, "ALTER TABLE cursors RENAME TO away")
		if err := l.AddDeadLetter(t.Context(), chain, ledger.DeadLetter{Connector: "erp", Pos: 8}, ledger.Cursor{Incarnation: 1, Pos: 8}); err == nil {
			t.Error("a letter without its cursor was taken")
		}
		execute(t, url, "ALTER TABLE away RENAME TO cursors")
		cursor(ledger.Cursor{Incarnation: 1, Pos: 7})
		if got, err := l.DeadLetters(t.Context(), chain, "erp"); err != nil || len(got) != 1 {
			t.Errorf("letters %+v, %v, want the first alone", got, err)
		}
		if err := l.RemoveDeadLetter(t.Context(), chain, "erp", 7); err != nil {
			t.Fatal(err)
		}
		if err := l.RemoveDeadLetter(t.Context(), chain, "erp", 7); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("remove twice: %v", err)
		}
	})
}

func TestAChainThatIsUnknownIsEmpty(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		pos, incarnation, err := l.Head(t.Context(), "nobody")
		if err != nil || pos != 0 || incarnation != 1 {
			t.Errorf("head %d, %d, %v", pos, incarnation, err)
		}
		rows, more, err := l.Transactions(t.Context(), ledger.TransactionQuery{Chain: "nobody"})
		if err != nil || more || len(rows) != 0 {
			t.Errorf("transactions %+v, %v, %v", rows, more, err)
		}
		if err := l.RetryQuarantined(t.Context(), "nobody", 1); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("retry: %v", err)
		}
	})
}

// The server is stopped without a checkpoint while agents send: they get errors, no acks,
// and what they were told is there is there once.
func TestAStoppedServerLosesAndDoublesNothing(t *testing.T) {
	server := ledgertest.Private(t)
	url, err := server.Database(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l, _ := open(t, url)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const agents, batches = 8, 60
	var wg sync.WaitGroup
	var failed, done = make(chan struct{}, 1), make(chan struct{}, agents*batches)
	for n := range agents {
		wg.Go(func() {
			store := fmt.Sprint("s", n)
			a := newAgent(t, store, "pc", n+1)
			for i := range batches {
				next := transaction(t, sale(store, int64(i+1)))
				if i == 0 {
					next = seal(t, nil, false)
				}
				b := a.batch(next)
				for {
					answer, err := l.Commit(ctx, a.from, b)
					if err == nil && answer.Verdict == protocol.VerdictAck && answer.Through == b.Last() {
						break
					}
					if err == nil || ctx.Err() != nil {
						t.Errorf("agent %d: %+v, %v", n, answer, err)
						return
					}
					select {
					case failed <- struct{}{}:
					default:
					}
				}
				done <- struct{}{}
			}
		})
	}
	for range agents * batches / 3 {
		await(t, done, "commit before the stop")
	}
	if err := server.Crash(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, failed, "error while the server is down")
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	checkOrder(t, l, agents*batches)
	if q := quarantined(t, l); len(q) != 0 {
		t.Errorf("quarantine %+v, want nothing: the database was away, the records are good", q)
	}
}
