package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/ledger"
)

// maxQuarantined is how many quarantined records are looked through.
const maxQuarantined = 1000

type limitInput struct {
	Limit int `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

type idInput struct {
	ID int64 `path:"id"`
}

type connectorInput struct {
	Name string `path:"name" pattern:"^[A-Za-z0-9_-]{1,64}$"`
}

type letterInput struct {
	Name string `path:"name" pattern:"^[A-Za-z0-9_-]{1,64}$"`
	Pos  int64  `path:"pos" minimum:"1"`
}

type done struct {
	Done bool `json:"done"`
}

// operations are for those who run the chain: quarantine and connectors.
func (a *api) operations() {
	handle(a, http.MethodGet, "/v1/quarantine", "listQuarantine", ScopeQuarantine, "Records that were received and not applied",
		func(ctx context.Context, in *limitInput) (list[ledger.QuarantinedRecord], error) {
			rows, err := a.quarantined(ctx)
			return listOf(rows[:min(len(rows), in.Limit)]), err
		})
	handle(a, http.MethodPost, "/v1/quarantine/{id}/retry", "retryQuarantine", ScopeQuarantineWrite, "Apply a quarantined record again",
		func(ctx context.Context, in *idInput) (done, error) {
			rows, err := a.quarantined(ctx)
			if err != nil {
				return done{}, err
			}
			is := func(r ledger.QuarantinedRecord) bool { return r.ID == in.ID }
			token := tokenOf(ctx)
			if len(token.Stores) > 0 && !slices.ContainsFunc(rows, is) { // it must be of one of them
				return done{}, fmt.Errorf("quarantined record %d: %w", in.ID, ledger.ErrNotFound)
			}
			err = a.Ledger.RetryQuarantined(ctx, token.Chain, in.ID)
			if err == nil || errors.Is(err, ledger.ErrNotFound) {
				return done{err == nil}, err
			}
			a.Log.Warn("quarantined record not applied", "chain", token.Chain, "id", in.ID, "err", err)
			rows, again := a.quarantined(ctx)
			if i := slices.IndexFunc(rows, is); again == nil && i >= 0 {
				return done{}, huma.Error409Conflict("still in quarantine: " + rows[i].Reason)
			}
			return done{}, err
		})
	handle(a, http.MethodGet, "/v1/connectors", "listConnectors", ScopeConnectors, "How the connectors stand",
		func(ctx context.Context, _ *struct{}) (list[connect.State], error) {
			c, err := a.connectors(ctx)
			if err != nil || c == nil {
				return listOf[connect.State](nil), err
			}
			states, err := c.States(ctx)
			return listOf(states), err
		})
	handle(a, http.MethodGet, "/v1/connectors/{name}/dead-letters", "listDeadLetters", ScopeConnectors, "Records that a connector could not deliver",
		func(ctx context.Context, in *connectorInput) (list[ledger.DeadLetter], error) {
			c, err := a.connector(ctx, in.Name)
			if err != nil {
				return list[ledger.DeadLetter]{}, err
			}
			letters, err := c.DeadLetters(ctx, in.Name)
			return listOf(letters), err
		})
	handle(a, http.MethodPost, "/v1/connectors/{name}/dead-letters/{pos}/replay", "replayDeadLetter", ScopeConnectorsWrite, "Deliver a dead letter again; 502 when the receiver still does not take it",
		func(ctx context.Context, in *letterInput) (done, error) {
			c, err := a.connector(ctx, in.Name)
			if err != nil {
				return done{}, err
			}
			err = c.Replay(ctx, in.Name, in.Pos)
			return done{err == nil}, err
		})
	handle(a, http.MethodPost, "/v1/connectors/{name}/resume", "resumeConnector", ScopeConnectorsWrite, "Let a paused connector try at once",
		func(ctx context.Context, in *connectorInput) (done, error) {
			c, err := a.connector(ctx, in.Name)
			if err != nil {
				return done{}, err
			}
			err = c.Resume(in.Name)
			return done{err == nil}, err
		})
}

// quarantined is what the token may see.
func (a *api) quarantined(ctx context.Context) ([]ledger.QuarantinedRecord, error) {
	token := tokenOf(ctx)
	rows, err := a.Ledger.Quarantined(ctx, token.Chain, maxQuarantined)
	return slices.DeleteFunc(rows, func(r ledger.QuarantinedRecord) bool { return !sees(token, r.Store) }), err
}

// connectors are those of the token's chain; nil when it has none.
func (a *api) connectors(ctx context.Context) (Connectors, error) {
	token, err := chainToken(ctx)
	if err != nil {
		return nil, err
	}
	return a.Connectors[token.Chain], nil
}

func (a *api) connector(ctx context.Context, name string) (Connectors, error) {
	c, err := a.connectors(ctx)
	if err == nil && c == nil {
		err = fmt.Errorf("connector %s: %w", name, ledger.ErrNotFound)
	}
	return c, err
}
