package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

type certificateInput struct {
	Store   string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Day     string `path:"day" format:"date" doc:"Business day"`
	Version int64  `query:"version" minimum:"1" doc:"One that was given out before; absent = as the day stands now"`
}

// A certificateFile is a certificate of completeness byte by byte, since it is signed.
type certificateFile []byte

// MarshalJSON gives the bytes.
func (f certificateFile) MarshalJSON() ([]byte, error) { return f, nil }

// Schema is that of signedCertificate: huma.SchemaProvider.
func (certificateFile) Schema(r huma.Registry) *huma.Schema {
	return r.Schema(reflect.TypeFor[signedCertificate](), true, "")
}

// A signedCertificate documents the file.
type signedCertificate struct {
	Certificate ledger.DayCertificate `json:"certificate"`
	Signature   []byte                `json:"signature" doc:"Ed25519 over the certificate's JSON without white space"`
	SignedBy    []byte                `json:"signedBy" doc:"X.509 certificate (DER) of the signing key, from the relay's certificate authority"`
}

type settlement struct {
	Kind string `json:"kind" doc:"Of the reason, as the certificate has it"`
	Who  string `json:"who" doc:"Of the reason"`
	What string `json:"what" doc:"Of the reason, word by word"`
	By   string `json:"by" minLength:"1" maxLength:"200" doc:"The person who answers for it"`
	Why  string `json:"why" minLength:"1" maxLength:"300" doc:"What head office knows of it"`
}

type putSettlementInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Day   string `path:"day" format:"date" doc:"Business day"`
	Body  settlement
}

type deleteSettlementInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Day   string `path:"day" format:"date" doc:"Business day"`
	Kind  string `query:"kind" required:"true"`
	Who   string `query:"who"`
	What  string `query:"what" required:"true"`
}

type rosterEntry struct {
	Kind     string `json:"kind" enum:"agent,workstation,counter"`
	ID       string `json:"id" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	FirstDay string `json:"firstDay" format:"date" doc:"Expected from this business day on"`
	LastDay  string `json:"lastDay,omitempty" format:"date" doc:"And up to this one; absent = until further notice"`
}

type putRosterInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Body  rosterEntry
}

type deleteRosterInput struct {
	Store string `path:"store" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Kind  string `query:"kind" enum:"agent,workstation,counter" required:"true"`
	ID    string `query:"id" pattern:"^[A-Za-z0-9_-]{1,64}$" required:"true"`
}

type expected struct {
	Kind     string `json:"kind" enum:"agent,workstation,counter"`
	ID       string `json:"id"`
	Expected bool   `json:"expected"`
	Why      string `json:"why" enum:"seen,registered,headOffice,gone" doc:"Seen by the relay, registered and not heard of yet, said by head office, or retired or revoked since"`
	FirstDay string `json:"firstDay,omitempty" format:"date" doc:"Of head office's entry, when an agent was registered or its first record's, or when it was first seen"`
	LastDay  string `json:"lastDay,omitempty" format:"date" doc:"Of head office's entry, or when it was last seen"`
}

// proof is for those who check: certificates, who is expected, alarms.
func (a *api) proof() {
	handle(a, http.MethodGet, "/v1/stores/{store}/days/{day}/certificate", "dayCertificate", ScopeCertificates, "Signed certificate that a business day is complete, or what it lacks",
		func(ctx context.Context, in *certificateInput) (certificateFile, error) {
			token, day, err := tokenAndDay(ctx, in.Store, in.Day)
			if err != nil {
				return nil, err
			}
			return a.Ledger.DayCertificate(ctx, token.Chain, in.Store, day, in.Version)
		})
	handle(a, http.MethodPut, "/v1/stores/{store}/days/{day}/settlements", "putSettlement", ScopeSettle, "Say what head office knows of one reason why a day is incomplete: the certificate shows both, and is never complete by it",
		func(ctx context.Context, in *putSettlementInput) (settlement, error) {
			token, day, err := tokenAndDay(ctx, in.Store, in.Day)
			if err != nil {
				return settlement{}, err
			}
			err = a.Ledger.Settle(ctx, token.Chain, in.Store, day, ledger.Settlement{
				Reason: ledger.Reason{Kind: in.Body.Kind, Who: in.Body.Who, What: in.Body.What}, By: in.Body.By, Why: in.Body.Why, Through: "token " + token.Name})
			if errors.Is(err, ledger.ErrExists) {
				err = huma.Error409Conflict("the reason is settled: take that back first")
			}
			return in.Body, err
		})
	handle(a, http.MethodDelete, "/v1/stores/{store}/days/{day}/settlements", "deleteSettlement", ScopeSettle, "Take back what was said of a reason",
		func(ctx context.Context, in *deleteSettlementInput) (done, error) {
			token, day, err := tokenAndDay(ctx, in.Store, in.Day)
			if err == nil {
				err = a.Ledger.Unsettle(ctx, token.Chain, in.Store, day, ledger.Reason{Kind: in.Kind, Who: in.Who, What: in.What})
			}
			return done{err == nil}, err
		})
	handle(a, http.MethodGet, "/v1/stores/{store}/roster", "listRoster", ScopeCertificates, "Agents, tills and counters, and whether they are expected on a day",
		func(ctx context.Context, in *storeDayInput) (list[expected], error) {
			token, err := storeToken(ctx, in.Store)
			if err != nil {
				return list[expected]{}, err
			}
			day, err := parseDay("day", in.Day)
			if err != nil {
				return list[expected]{}, err
			}
			rows, err := a.Ledger.Roster(ctx, token.Chain, in.Store, day)
			all := []expected{}
			for _, r := range rows {
				all = append(all, expected{r.Kind, r.ID, r.Expected, r.Why, r.FirstDay.String(), r.LastDay.String()})
			}
			return listOf(all), err
		})
	handle(a, http.MethodPut, "/v1/stores/{store}/roster", "putRoster", ScopeStoresWrite, "Say from when and until when an agent, till or counter is expected", a.putRoster)
	handle(a, http.MethodDelete, "/v1/stores/{store}/roster", "deleteRoster", ScopeStoresWrite, "Take back what was said: what the relay has seen decides again",
		func(ctx context.Context, in *deleteRosterInput) (done, error) {
			token, err := storeToken(ctx, in.Store)
			if err == nil {
				err = a.Ledger.DeleteRoster(ctx, token.Chain, in.Store, in.Kind, in.ID)
			}
			return done{err == nil}, err
		})
	handle(a, http.MethodGet, "/v1/alarms", "listAlarms", ScopeAlarms, "What a person must look at: forked or rolled-back disks, agents that nobody registered, expired certificates; without store and agent: a ledger that was restored",
		func(ctx context.Context, _ *struct{}) (list[ledger.Alarm], error) {
			token := tokenOf(ctx)
			rows, err := a.Ledger.Alarms(ctx, token.Chain)
			return listOf(slices.DeleteFunc(rows, func(r ledger.Alarm) bool { return r.Store != "" && !sees(token, r.Store) })), err
		})
}

// tokenAndDay is the request's token, if it may know of the store, and its day.
func tokenAndDay(ctx context.Context, store, day string) (ledger.Token, protocol.Day, error) {
	token, err := storeToken(ctx, store)
	if err != nil {
		return token, protocol.Day{}, err
	}
	d, err := parseDay("day", day)
	return token, d, err
}

func (a *api) putRoster(ctx context.Context, in *putRosterInput) (rosterEntry, error) {
	token, err := storeToken(ctx, in.Store)
	if err != nil {
		return rosterEntry{}, err
	}
	e := ledger.RosterEntry{Kind: in.Body.Kind, ID: in.Body.ID}
	if e.FirstDay, err = parseDay("firstDay", in.Body.FirstDay); err != nil {
		return rosterEntry{}, err
	}
	if in.Body.LastDay != "" {
		if e.LastDay, err = parseDay("lastDay", in.Body.LastDay); err != nil {
			return rosterEntry{}, err
		}
	}
	return in.Body, a.Ledger.PutRoster(ctx, token.Chain, in.Store, e)
}
