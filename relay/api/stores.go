package api

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

type storeInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
}

type storeDayInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Day   string `query:"day" format:"date" required:"true" doc:"Business day"`
}

type putStoreInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Body  storeSettings
}

type storeSettings struct {
	Name     string `json:"name" minLength:"1" maxLength:"200"`
	Zone     string `json:"zone" maxLength:"100" doc:"IANA time zone, Europe/Stockholm"`
	CutOff   string `json:"cutOff" pattern:"^([01][0-9]|2[0-3]):[0-5][0-9]$" doc:"When the business day begins, local time"`
	Currency string `json:"currency" doc:"ISO 4217"`
}

type tenderSum struct {
	Currency string `json:"currency"`
	Type     string `json:"type"`
	Count    int64  `json:"count"`
	Amount   int64  `json:"amount" doc:"Received less given"`
}

type reading struct {
	Pos        int64        `json:"pos"`
	ReceivedAt time.Time    `json:"receivedAt"`
	Agent      string       `json:"agent"`
	Day        protocol.Day `json:"day"`
	Record     rawBody      `json:"record" doc:"As the agent said it"`
}

func (a *api) stores() {
	handle(a, http.MethodGet, "/v1/stores", "listStores", ScopeStores, "Stores of the chain",
		func(ctx context.Context, _ *struct{}) (list[ledger.Store], error) {
			token := tokenOf(ctx)
			rows, err := a.Ledger.Stores(ctx, token.Chain)
			return listOf(slices.DeleteFunc(rows, func(s ledger.Store) bool { return !sees(token, s.ID) })), err
		})
	handle(a, http.MethodPut, "/v1/stores/{store}", "putStore", ScopeStoresWrite, "Create or change a store", a.putStore)
	handle(a, http.MethodGet, "/v1/stores/{store}/devices", "listDevices", ScopeDevices, "Newest state of a store's devices",
		func(ctx context.Context, in *storeInput) (list[ledger.DeviceRow], error) {
			token, err := storeToken(ctx, in.Store)
			if err != nil {
				return list[ledger.DeviceRow]{}, err
			}
			rows, err := a.Ledger.Devices(ctx, token.Chain, in.Store)
			return listOf(rows), err
		})
	handle(a, http.MethodGet, "/v1/agents", "listAgents", ScopeDevices, "Store PCs and when they were last heard of",
		func(ctx context.Context, _ *struct{}) (list[ledger.AgentRow], error) {
			token := tokenOf(ctx)
			rows, err := a.Ledger.Agents(ctx, token.Chain)
			return listOf(slices.DeleteFunc(rows, func(r ledger.AgentRow) bool { return !sees(token, r.Store) })), err
		})
	handle(a, http.MethodGet, "/v1/stores/{store}/tenders", "storeTenders", ScopeTransactions, "What each means of payment took on a day",
		func(ctx context.Context, in *storeDayInput) (list[tenderSum], error) {
			token, err := storeToken(ctx, in.Store)
			if err != nil {
				return list[tenderSum]{}, err
			}
			day, err := parseDay("day", in.Day)
			if err != nil {
				return list[tenderSum]{}, err
			}
			rows, err := a.Ledger.Tenders(ctx, token.Chain, in.Store, day)
			sums := []tenderSum{}
			for _, r := range rows {
				sums = append(sums, tenderSum{r.Currency, r.Type, r.Count, r.Amount})
			}
			return listOf(sums), err
		})
	handle(a, http.MethodGet, "/v1/stores/{store}/footfall", "listFootfall", ScopeFootfall, "Footfall counts of a day", a.readings(protocol.KindFootfall))
	handle(a, http.MethodGet, "/v1/stores/{store}/drawer-events", "listDrawerEvents", ScopeDevices, "What the cash drawers did on a day", a.readings(protocol.KindDrawer))
}

func (a *api) putStore(ctx context.Context, in *putStoreInput) (ledger.Store, error) {
	s := ledger.Store{ID: in.Store, Name: in.Body.Name, Zone: in.Body.Zone, CutOff: in.Body.CutOff, Currency: in.Body.Currency}
	token, err := storeToken(ctx, in.Store)
	if err != nil {
		return s, err
	}
	return s, a.Ledger.PutStore(ctx, token.Chain, s)
}

// readings serves one kind of record of a store's day.
func (a *api) readings(kind protocol.Kind) func(ctx context.Context, in *storeDayPage) (page[reading], error) {
	return func(ctx context.Context, in *storeDayPage) (page[reading], error) {
		in.Limit = min(in.Limit, 999) // one more is asked for, and the ledger gives 1000
		token, day, c, err := a.open(ctx, in)
		if err != nil {
			return page[reading]{}, err
		}
		rows, err := a.Ledger.RecordsOf(ctx, token.Chain, in.Store, kind, day, c.pos, in.Limit+1)
		if err != nil {
			return page[reading]{}, err
		}
		p := page[reading]{Items: []reading{}, More: len(rows) > in.Limit}
		for _, r := range rows[:min(len(rows), in.Limit)] {
			c.pos = r.Pos
			p.Items = append(p.Items, reading{r.Pos, r.Received, r.Agent, r.Day, rawBody(r.Body)})
		}
		p.Next = c.String()
		return p, nil
	}
}
