package drivertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/protocol"
)

// A shopAgent takes transactions as an agent does, and fails at random.
type shopAgent struct {
	t    *testing.T
	loss int // percent of answers that are lost, before or after they are accepted, or 503

	mu     sync.Mutex // guards the fields below
	rng    *rand.Rand
	bodies map[string]string // by Idempotency-Key
	taken  []protocol.Transaction
	drawer []map[string]string
	down   bool
}

func newShopAgent(t *testing.T, loss int) (*shopAgent, string) {
	a := &shopAgent{t: t, loss: loss, rng: rand.New(rand.NewPCG(5, 5)), bodies: map[string]string{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return a, server.URL
}

func (a *shopAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/v1/drawers/drawer1/open" {
		var command map[string]string
		if err := json.Unmarshal(body, &command); err != nil {
			a.t.Errorf("drawer command %s: %v", body, err)
		}
		a.drawer = append(a.drawer, command)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	roll := a.rng.IntN(300)
	if a.down || roll < a.loss {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if roll < 2*a.loss {
		panic(http.ErrAbortHandler) // lost before it was taken
	}
	key := r.Header.Get("Idempotency-Key")
	if first, ok := a.bodies[key]; !ok {
		var sale protocol.Transaction
		if err := errors.Join(json.Unmarshal(body, &sale), sale.Validate()); err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		a.bodies[key] = string(body)
		a.taken = append(a.taken, sale)
	} else if first != string(body) {
		a.t.Errorf("key %s came with another body", key)
	}
	if roll < 3*a.loss {
		panic(http.ErrAbortHandler) // lost after it was taken
	}
	w.WriteHeader(http.StatusCreated)
}

func newTill(url string, misbehave drivertest.Misbehaviour) *drivertest.Till {
	return drivertest.NewTill(drivertest.TillOptions{
		URL: url, Token: "secret", Store: "0042", Workstation: "till1", Drawer: "drawer1", Seed: 11,
		Pause: time.Millisecond, Misbehave: misbehave,
	})
}

func TestTillAndAgentAgreeToTheMinorUnit(t *testing.T) {
	agent, url := newShopAgent(t, 15)
	till := newTill(url, drivertest.Misbehaviour{Twice: 10, RetryAfterSuccess: 10, WrongSums: 10, Garbage: 10})
	const sales = 300
	for range sales {
		if _, err := till.Sale(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	accepted := till.Accepted()
	if len(accepted) != sales || len(agent.taken) != sales {
		t.Fatalf("%d accepted, %d taken, want %d of both", len(accepted), len(agent.taken), sales)
	}
	if till.Repeats() == 0 {
		t.Error("nothing was repeated on a bad line")
	}
	cash, wrong, kinds := 0, 0, map[string]int{}
	for i, r := range accepted {
		said := agent.taken[i]
		if want := strconv.Itoa(i + 1); said.Sequence != int64(i+1) || r.Reference() != said.ID().String() || !strings.HasSuffix(r.Reference(), "/"+want) {
			t.Fatalf("sale %s is receipt %s, transaction %s", want, r.Reference(), said.ID())
		}
		if flags := said.Check(); (len(flags) > 0) != r.Wrong {
			t.Errorf("receipt %s: flags %q, made wrong %t: %s", r.Reference(), flags, r.Wrong, r.Body)
		}
		var turnover, gift, discounts, returns, tax, sold, returned int64
		tenders, rates, customer := map[string]int64{}, map[int64]int64{}, false
		for _, l := range said.Lines {
			tax += l.TaxAmount
			if l.TaxRate > 0 {
				rates[l.TaxRate] += l.TaxAmount
			}
			switch units := l.Quantity.Units(); {
			case !l.Merchandise():
				gift += l.ExtendedAmount
				kinds["gift card"]++
				continue
			case l.Quantity.Milli > 0:
				customer = true
				sold += units
				discounts += l.DiscountAmount
			default:
				returned -= units
				returns -= l.ExtendedAmount
				kinds["return"]++
			}
			turnover += l.ExtendedAmount
			if l.Quantity.Weighed() {
				kinds["weighed"]++
			}
			if l.DiscountAmount != 0 {
				kinds["discount"]++
			}
		}
		for _, tender := range said.Tenders {
			tenders[tender.Type] += tender.Amount
			if tender.Amount < 0 && said.Total > 0 {
				kinds["change"]++
			}
		}
		if said.Rounding != 0 {
			kinds["rounding"]++
		}
		if !maps.Equal(r.Tenders, tenders) || !maps.Equal(r.TaxByRate, rates) || r.Customer != customer {
			t.Errorf("receipt %s: %+v, want tenders %v, tax %v, customer %t", r.Reference(), r, tenders, rates, customer)
		}
		got := []int64{r.Turnover, r.GiftCards, r.Discounts, r.Returns, r.Tax, r.UnitsSold, r.UnitsReturned, r.Total}
		if want := []int64{turnover, gift, discounts, returns, tax, sold, returned, said.Total}; !slices.Equal(got, want) {
			t.Errorf("receipt %s: sums %d, want %d", r.Reference(), got, want)
		}
		if _, ok := tenders["cash"]; ok {
			cash++
			if !r.Wrong && said.Total%100 != 0 {
				t.Errorf("receipt %s: cash total %d is not in whole kronor", r.Reference(), said.Total)
			}
			if len(agent.drawer) < cash || agent.drawer[cash-1]["reference"] != r.Reference() || agent.drawer[cash-1]["reason"] != "sale" {
				t.Fatalf("drawer commands %v: number %d is not of %s", agent.drawer, cash, r.Reference())
			}
		}
		if r.Wrong {
			wrong++
		}
	}
	if len(agent.drawer) != cash || len(till.DrawerErrors()) != 0 {
		t.Errorf("%d drawer commands for %d cash sales, errors %v", len(agent.drawer), cash, till.DrawerErrors())
	}
	for _, kind := range []string{"gift card", "return", "weighed", "discount", "change", "rounding"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s among %d sales (seed 11)", kind, sales)
		}
	}
	if wrong == 0 || len(till.Refused()) == 0 {
		t.Errorf("%d wrong receipts, %d refusals of garbage, want some of both (seed 11)", wrong, len(till.Refused()))
	}
}

func TestTillKeepsASaleWithoutAnswer(t *testing.T) {
	agent, url := newShopAgent(t, 0)
	till := newTill(url, drivertest.Misbehaviour{})
	agent.down = true
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	first, err := till.Sale(ctx)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("sale while the agent is down: %v, want context.DeadlineExceeded", err)
	}
	agent.mu.Lock()
	agent.down = false
	agent.mu.Unlock()
	again, err := till.Sale(t.Context())
	if err != nil || again.Key != first.Key || string(again.Body) != string(first.Body) {
		t.Errorf("the next sale is %s, %v, want the same request as %s", again.Key, err, first.Key)
	}
	if next, err := till.Sale(t.Context()); err != nil || next.Sequence != 2 || len(till.Accepted()) != 2 {
		t.Errorf("the sale after it is number %d of %d, %v, want 2", next.Sequence, len(till.Accepted()), err)
	}
}

func TestRefusedSaleUsesNoNumber(t *testing.T) {
	_, url := newShopAgent(t, 0)
	till := drivertest.NewTill(drivertest.TillOptions{URL: url, Token: "wrong", Store: "0042", Workstation: "till1"})
	for range 2 {
		receipt, err := till.Sale(t.Context())
		var refusal *drivertest.Refusal
		if !errors.As(err, &refusal) || refusal.Status != http.StatusUnauthorized || receipt.Sequence != 1 {
			t.Errorf("sale with a wrong token: number %d, %v, want a refusal of number 1", receipt.Sequence, err)
		}
	}
	if n := len(till.Accepted()); n != 0 {
		t.Errorf("%d sales accepted, want none", n)
	}
}

func TestTillTellsWhenGarbageIsAccepted(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusCreated)
	}))
	defer server.Close()
	till := newTill(server.URL, drivertest.Misbehaviour{Garbage: 100})
	if _, err := till.Sale(t.Context()); err == nil || !strings.Contains(err.Error(), "garbage is accepted") {
		t.Errorf("sale: %v, want a complaint about garbage", err)
	}
}

func TestSameSeedSameReceipts(t *testing.T) {
	now := time.Date(2026, 3, 29, 10, 15, 0, 0, time.UTC)
	sell := func(seed uint64) string {
		_, url := newShopAgent(t, 0)
		till := drivertest.NewTill(drivertest.TillOptions{URL: url, Token: "secret", Store: "1", Workstation: "2", Seed: seed,
			Currency: "EUR", Now: func() time.Time { return now }})
		var all strings.Builder
		for range 20 {
			receipt, err := till.Sale(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if receipt.Rounding != 0 || receipt.Day != "2026-03-29" {
				t.Errorf("receipt in EUR on %s has a rounding of %d, want 0 on 2026-03-29", receipt.Day, receipt.Rounding)
			}
			all.Write(receipt.Body)
		}
		return all.String()
	}
	if first, again := sell(1), sell(1); first != again {
		t.Error("two tills of seed 1 differ")
	}
	if sell(1) == sell(2) {
		t.Error("tills of seeds 1 and 2 sell the same")
	}
}

func TestTillSellsWithoutItsDrawer(t *testing.T) {
	_, url := newShopAgent(t, 0)
	till := drivertest.NewTill(drivertest.TillOptions{URL: url, Token: "secret", Store: "0042", Workstation: "till1", Drawer: "gone", Seed: 11})
	cash := 0
	for range 20 {
		receipt, err := till.Sale(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := receipt.Tenders["cash"]; ok {
			cash++
		}
	}
	if got := len(till.DrawerErrors()); cash == 0 || got != cash {
		t.Errorf("%d drawer errors for %d cash sales (seed 11)", got, cash)
	}
}
