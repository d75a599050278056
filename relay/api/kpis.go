package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// maxDays bounds a range of days.
const maxDays = 366

type storeKPIsInput struct {
	Store     string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Day       string `query:"day" format:"date" doc:"One business day"`
	From      string `query:"from" format:"date" doc:"First day, with to"`
	To        string `query:"to" format:"date" doc:"Last day, inclusive; at most 366 days"`
	Direction string `query:"direction" enum:"in,out,mean" default:"in" doc:"Which passages are visitors: in, out, or half of both"`
}

type chainKPIsInput struct {
	Day       string `query:"day" format:"date" required:"true" doc:"Business day"`
	Direction string `query:"direction" enum:"in,out,mean" default:"in" doc:"Which passages are visitors: in, out, or half of both"`
}

type storeKPIs struct {
	Store     string   `json:"store"`
	Direction string   `json:"direction"`
	Days      []dayKPI `json:"days" nullable:"false" doc:"Every day of the range, also without records"`
	Total     kpiSet   `json:"total" doc:"Sums over the days; ratios are made from the sums"`
}

type dayKPI struct {
	Day  protocol.Day `json:"day"`
	KPIs kpiSet       `json:"kpis"`
}

type chainKPIs struct {
	Day       protocol.Day `json:"day"`
	Direction string       `json:"direction"`
	Stores    []storeKPI   `json:"stores" nullable:"false" doc:"Stores with records on the day"`
	Total     kpiSet       `json:"total" doc:"Sums over the stores; ratios are made from the sums"`
}

type storeKPI struct {
	Store string `json:"store"`
	KPIs  kpiSet `json:"kpis"`
}

func (a *api) kpis() {
	handle(a, http.MethodGet, "/v1/stores/{store}/kpis", "storeKPIs", ScopeKPIs, "KPIs of a store per business day", a.storeKPIs)
	handle(a, http.MethodGet, "/v1/kpis", "chainKPIs", ScopeKPIs, "KPIs of a business day per store, and their total", a.chainKPIs)
}

func (a *api) storeKPIs(ctx context.Context, in *storeKPIsInput) (storeKPIs, error) {
	out := storeKPIs{Store: in.Store, Direction: in.Direction, Days: []dayKPI{}}
	token, err := storeToken(ctx, in.Store)
	if err != nil {
		return out, err
	}
	from, to, err := dayRange(in)
	if err != nil {
		return out, err
	}
	rows, err := a.Ledger.KPIs(ctx, token.Chain, in.Store, from, to)
	if err != nil {
		return out, err
	}
	lacking, err := a.lacking(ctx, token.Chain, in.Store, from, to)
	if err != nil {
		return out, err
	}
	byDay := map[protocol.Day][]ledger.KPIRow{}
	for _, r := range rows {
		byDay[r.Day] = append(byDay[r.Day], r)
	}
	total := tally{direction: in.Direction}
	for day := from; ; day = day.AddDays(1) {
		t := tally{direction: in.Direction, lacking: lacking[storeDay{in.Store, day}]}
		total.lacking = total.lacking || t.lacking
		if rows := byDay[day]; len(rows) > 0 {
			t.add(rows)
			total.add(rows)
		}
		out.Days = append(out.Days, dayKPI{day, t.set()})
		if day == to {
			break
		}
	}
	out.Total = total.set()
	return out, nil
}

// dayRange reads day, or from and to.
func dayRange(in *storeKPIsInput) (from, to protocol.Day, err error) {
	if (in.Day == "") == (in.From == "" && in.To == "") || (in.From == "") != (in.To == "") {
		return from, to, huma.Error400BadRequest("give day, or from and to")
	}
	if in.Day != "" {
		from, err = parseDay("day", in.Day)
		return from, from, err
	}
	if from, err = parseDay("from", in.From); err != nil {
		return from, to, err
	}
	if to, err = parseDay("to", in.To); err != nil {
		return from, to, err
	}
	if to.String() < from.String() {
		return from, to, huma.Error400BadRequest("to is before from")
	}
	if from.AddDays(maxDays-1).String() < to.String() {
		return from, to, huma.Error400BadRequest(fmt.Sprintf("more than %d days from %s to %s", maxDays, from, to))
	}
	return from, to, nil
}

func (a *api) chainKPIs(ctx context.Context, in *chainKPIsInput) (chainKPIs, error) {
	out := chainKPIs{Direction: in.Direction, Stores: []storeKPI{}}
	token := tokenOf(ctx)
	day, err := parseDay("day", in.Day)
	if err != nil {
		return out, err
	}
	out.Day = day
	rows, err := a.Ledger.KPIs(ctx, token.Chain, "", day, day)
	if err != nil {
		return out, err
	}
	lacking, err := a.lacking(ctx, token.Chain, "", day, day)
	if err != nil {
		return out, err
	}
	byStore := map[string][]ledger.KPIRow{}
	var stores []string
	for at := range lacking { // also one whose only records are in quarantine
		if sees(token, at.store) {
			byStore[at.store], stores = []ledger.KPIRow{}, append(stores, at.store)
		}
	}
	for _, r := range rows {
		if !sees(token, r.Store) {
			continue
		}
		if byStore[r.Store] == nil {
			stores = append(stores, r.Store)
		}
		byStore[r.Store] = append(byStore[r.Store], r)
	}
	slices.Sort(stores)
	total := tally{direction: in.Direction}
	for _, store := range stores {
		t := tally{direction: in.Direction, lacking: lacking[storeDay{store, day}]}
		total.lacking = total.lacking || t.lacking
		t.add(byStore[store])
		total.add(byStore[store])
		out.Stores = append(out.Stores, storeKPI{store, t.set()})
	}
	out.Total = total.set()
	return out, nil
}

type storeDay struct {
	store string
	day   protocol.Day
}

// lacking are the stores and days that have records in quarantine.
func (a *api) lacking(ctx context.Context, chain, store string, from, to protocol.Day) (map[storeDay]bool, error) {
	days, err := a.Ledger.IncompleteDays(ctx, chain, store, from, to)
	found := map[storeDay]bool{}
	for _, d := range days {
		found[storeDay{d.Store, d.Day}] = true
	}
	return found, err
}
