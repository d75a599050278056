package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
	"github.com/storelay/storelay/relay/ledger/ledgertest"
)

const billion = 1_000_000_000

func raise(t *testing.T, l *ledger.Ledger, want int64) {
	t.Helper()
	if got, err := l.Raise(t.Context(), 0); err != nil || got != want {
		t.Fatalf("raise: %d, %v, want %d", got, err, want)
	}
}

// Relays commit while another raises the incarnation several times. Each commit is wholly
// before or after: positions and numbers have no gap within an incarnation and begin behind
// its billion, and the recorded jumps say where each ended.
func TestCommitsStandBeforeOrAfterARaise(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		ledgers := []*ledger.Ledger{}
		for range 2 {
			l, _ := open(t, url)
			ledgers = append(ledgers, l)
		}
		if strings.HasPrefix(url, "sqlite:") {
			ledgers = ledgers[:1]
		}
		const agents, batches, raises = 6, 40, 5
		var wg sync.WaitGroup
		progress := make(chan struct{}, agents*batches)
		answers := make([][]protocol.Answer, agents)
		for n := range agents {
			wg.Go(func() {
				store := fmt.Sprint("s", n%3)
				a := newAgent(t, store, fmt.Sprint("pc", n), n+1)
				for i := range batches {
					fresh := []protocol.Record{transaction(t, sale(store, int64(1000*n+i+1)))}
					if i == 0 {
						fresh = append([]protocol.Record{seal(t, nil, false)}, fresh...)
					}
					answer, err := ledgers[(n+i)%len(ledgers)].Commit(context.Background(), a.from, a.batch(fresh...))
					if err != nil || answer.Verdict != protocol.VerdictAck {
						t.Errorf("%+v, %v", answer, err)
						return
					}
					answers[n] = append(answers[n], answer)
					progress <- struct{}{}
				}
			})
		}
		wg.Go(func() {
			for i := range raises {
				for range agents * batches / (raises + 2) {
					await(t, progress, "commit")
				}
				l := ledgers[i%len(ledgers)]
				if err := l.FeedChange(context.Background(), chain, protocol.FeedItems, "", fmt.Sprint(i), []byte(`1`)); err != nil {
					t.Error(err)
				}
				if _, err := l.Raise(context.Background(), 0); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Wait()
		for n := range answers {
			if !slices.IsSortedFunc(answers[n], func(a, b protocol.Answer) int { return int(a.Incarnation - b.Incarnation) }) {
				t.Errorf("agent %d: the incarnation went back", n)
			}
		}
		all := records(t, ledgers[0])
		if len(all) != agents*(batches+1) {
			t.Fatalf("%d records, want %d", len(all), agents*(batches+1))
		}
		ends, numbers := map[int64]int64{}, map[string]int64{}
		before := int64(0)
		for _, r := range all {
			if era := r.Pos / billion; era != before/billion {
				if r.Pos != era*billion+1 {
					t.Fatalf("incarnation %d begins at %d", era+1, r.Pos)
				}
				ends[before/billion] = before
			} else if r.Pos != before+1 {
				t.Fatalf("position %d follows %d", r.Pos, before)
			}
			before = r.Pos
			if r.Kind == protocol.KindTransaction {
				if last := numbers[r.Store]; r.Number != last+1 && r.Number != r.Pos/billion*billion+1 {
					t.Fatalf("position %d of store %s has number %d behind %d", r.Pos, r.Store, r.Number, last)
				}
				if r.Number/billion != r.Pos/billion {
					t.Fatalf("position %d has number %d", r.Pos, r.Number)
				}
				numbers[r.Store] = r.Number
			}
		}
		jumps := selected(t, url, "SELECT incarnation, head_before, head_after FROM jumps ORDER BY incarnation")
		if len(jumps) != raises {
			t.Fatalf("jumps %q", jumps)
		}
		for i, jump := range jumps {
			end := ends[int64(i)]
			if end == 0 { // nothing was committed in that incarnation
				end = int64(i) * billion
			}
			if want := fmt.Sprintf("%d %d %d", i+2, end, int64(i+1)*billion); jump != want {
				t.Errorf("jump %q, want %q", jump, want)
			}
		}
		checkHashes(t, url)
		// A cursor of the first incarnation reads the whole feed.
		page, err := ledgers[0].FeedPage(t.Context(), protocol.Origin{Chain: chain, Store: "s0", Agent: "pc0"}, protocol.FeedAsk{Feed: protocol.FeedItems, After: 1})
		if err != nil || !page.Reset || len(page.Changes) != raises || page.To < raises*billion {
			t.Errorf("page %+v, %v, want a reset with %d keys", page, err, raises)
		}
	})
}

// A chain, store or type that the restored ledger does not know had numbers in the incarnation
// that was lost: the new one begins behind them.
func TestWhatIsNewInAnIncarnationBeginsAtItsBillion(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		raise(t, l, 2)
		raise(t, l, 3)
		a := newAgent(t, "0001", "pc", 1)
		if got := commit(t, l, a, a.begin(sales(t, 1)...)); got.Verdict != protocol.VerdictAck || got.Incarnation != 3 {
			t.Fatalf("answer %+v", got)
		}
		rows := transactions(t, l, ledger.TransactionQuery{Store: "0001", Type: protocol.TypeSale})
		if len(rows) != 1 || rows[0].Pos != 2*billion+2 || rows[0].Number != 2*billion+1 {
			t.Errorf("rows %+v, want position and number behind two billion", rows)
		}
	})
}

// Many raises, as a broken agent may cause them, leave room for more.
func TestRaisesDoNotUseUpTheNumbers(t *testing.T) {
	l, _ := open(t, sqliteURL(t))
	a := newAgent(t, "0001", "pc", 1)
	acked(t, l, a, a.begin(sales(t, 1)...))
	if err := l.FeedChange(t.Context(), chain, protocol.FeedItems, "", "a", []byte(`1`)); err != nil {
		t.Fatal(err)
	}
	for n := range int64(100) {
		raise(t, l, n+2)
	}
	page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedItems, After: 1})
	if err != nil || !page.Reset || page.To != 100*billion+1 {
		t.Errorf("page %+v, %v, want the feed behind a hundred billion", page, err)
	}
	if page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedItems, After: page.To}); err != nil || page.Reset || len(page.Changes) != 0 {
		t.Errorf("page %+v, %v, want nothing more", page, err)
	}
}

// A relay that runs on while a standby takes over meets the new timeline on its next
// connection, before it commits anything there.
func TestARunningRelayMeetsANewTimelineBeforeItCommits(t *testing.T) {
	url := ledgertest.Postgres(t)
	l, _ := open(t, url)
	a := newAgent(t, "0001", "pc", 1)
	acked(t, l, a, a.begin(sales(t, 1)...))
	execute(t, url, "UPDATE ledger SET timeline = timeline + 1") // as the standby remembers another
	execute(t, url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	b := a.batch(sales(t, 2)...)
	var answer protocol.Answer
	var err error
	for range 20 { // until the pool has noticed
		if answer, err = l.Commit(t.Context(), a.from, b); err == nil {
			break
		}
	}
	if err != nil || answer.Verdict != protocol.VerdictAck || answer.Incarnation != 2 {
		t.Fatalf("answer %+v, %v, want an ack of incarnation 2", answer, err)
	}
	two, _ := open(t, url) // not over a connection that was cut
	if rows := transactions(t, two, ledger.TransactionQuery{From: billion}); len(rows) != 1 || rows[0].Pos != billion+1 {
		t.Errorf("rows %+v, want the second at one billion and one", rows)
	}
	if _, incarnation, err := two.Head(t.Context(), chain); err != nil || incarnation != 2 {
		t.Errorf("incarnation %d, %v, want it raised once", incarnation, err)
	}
}

func TestAClockThatIsFarOffIsNamed(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		if err := l.RegisterAgent(t.Context(), a.from); err != nil {
			t.Fatal(err)
		}
		w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Version: "7"})
		if err != nil {
			t.Fatal(err)
		}
		now := timeOf(t, w.Time)
		for _, tt := range []struct {
			ahead string
			alarm string
		}{
			{"4m", ""},
			{"-4m", ""},
			{"7m", "the PC's clock is more than five minutes ahead of the relay's"},
			{"8m", "the PC's clock is more than five minutes ahead of the relay's"},
			{"-49h", "the PC's clock is more than a day behind the relay's"},
			{"876000h", "the PC's clock is more than thirty days ahead of the relay's"},
		} {
			ahead := durationOf(t, tt.ahead)
			if _, err := l.Welcome(t.Context(), a.from, protocol.Hello{Time: now.Add(ahead).Format("2006-01-02T15:04:05Z07:00")}); err != nil {
				t.Fatal(err)
			}
			agents, err := l.Agents(t.Context(), chain)
			if err != nil || len(agents) != 1 || agents[0].Version != "7" || agents[0].Skew < int64(ahead.Seconds())-59 || agents[0].Skew > int64(ahead.Seconds())+1 {
				t.Errorf("agents %+v, %v, want a skew of %s", agents, err, tt.ahead)
			}
			if got := details(t, l, ledger.AlarmClock); tt.alarm != "" && !slices.Contains(got, tt.alarm) || tt.alarm == "" && len(got) != 0 {
				t.Errorf("%s: alarms %q, want %q", tt.ahead, got, tt.alarm)
			}
		}
		if got := details(t, l, ledger.AlarmClock); len(got) != 3 {
			t.Errorf("alarms %q, want three", got)
		}
		if _, err := l.Welcome(t.Context(), a.from, protocol.Hello{Time: "noon"}); err != nil {
			t.Fatal(err)
		}
		if agents, err := l.Agents(t.Context(), chain); err != nil || agents[0].Skew < 876000*3600-60 {
			t.Errorf("agents %+v, %v, want the skew kept", agents, err)
		}
	})
}

func TestARetiringAgentDeliversAndGetsNoFeed(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(sales(t, 1)...))
		if err := l.PutStore(t.Context(), chain, ledger.Store{ID: "0001", Zone: "UTC", Currency: "SEK"}); err != nil {
			t.Fatal(err)
		}
		changes := func() int {
			t.Helper()
			page, err := l.FeedPage(t.Context(), a.from, protocol.FeedAsk{Feed: protocol.FeedConfig})
			if err != nil {
				t.Fatal(err)
			}
			return len(page.Changes)
		}
		state := func(state string) {
			t.Helper()
			if err := l.SetAgentState(t.Context(), a.from, state); err != nil {
				t.Fatal(err)
			}
		}
		state(ledger.AgentRetiring)
		mark := a.mark()
		w, err := l.Welcome(t.Context(), a.from, protocol.Hello{Newest: protocol.Position{Epoch: a.epoch, Seq: 9}})
		if err != nil || !slices.Equal(w.Marks, []protocol.Mark{mark}) {
			t.Errorf("welcome %+v, %v, want its mark", w, err)
		}
		acked(t, l, a, a.batch(sales(t, 2)...))
		if n := changes(); n != 0 {
			t.Errorf("%d changes of a feed for a retiring agent, want none", n)
		}
		state(ledger.AgentActive)
		if n := changes(); n != 1 {
			t.Errorf("%d changes of a feed for an active agent, want one", n)
		}
		state(ledger.AgentRevoked)
		state(ledger.AgentRevoked)
		for _, s := range []string{ledger.AgentActive, ledger.AgentRetiring} {
			if err := l.SetAgentState(t.Context(), a.from, s); !errors.Is(err, ledger.ErrRevoked) {
				t.Errorf("%s again: %v, want ErrRevoked", s, err)
			}
		}
		unknown := protocol.Origin{Chain: "new", Store: "0001", Agent: "lost"}
		if err := l.Revoke(t.Context(), a.from, unknown, unknown); err != nil {
			t.Fatal(err)
		}
		if state, err := l.AgentState(t.Context(), unknown); err != nil || state != ledger.AgentRevoked {
			t.Errorf("state %s, %v, want revoked without a row before", state, err)
		}
	})
}
