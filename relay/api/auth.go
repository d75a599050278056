package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/storelay/storelay/relay/ledger"
)

// The scopes of tokens.
const (
	ScopeTransactions    = "transactions:read"
	ScopeKPIs            = "kpis:read"
	ScopeFootfall        = "footfall:read"
	ScopeDevices         = "devices:read" // devices, agents and drawer events
	ScopeEvents          = "events:read"  // the stream of all records
	ScopeStores          = "stores:read"
	ScopeStoresWrite     = "stores:write"
	ScopeConnectors      = "connectors:read"
	ScopeConnectorsWrite = "connectors:write"
	ScopeQuarantine      = "quarantine:read"
	ScopeQuarantineWrite = "quarantine:write"
	ScopeCertificates    = "certificates:read"   // certificates of completeness, and who is expected
	ScopeSettle          = "certificates:settle" // say what head office knows of the reasons against a day
	ScopeAlarms          = "alarms:read"
	ScopeAdmin           = "admin" // all of them
)

// Scopes lists all scopes.
func Scopes() []string {
	return []string{ScopeTransactions, ScopeKPIs, ScopeFootfall, ScopeDevices, ScopeEvents, ScopeStores, ScopeStoresWrite,
		ScopeConnectors, ScopeConnectorsWrite, ScopeQuarantine, ScopeQuarantineWrite, ScopeCertificates, ScopeSettle, ScopeAlarms, ScopeAdmin}
}

type tokenKey struct{}

// tokenOf is the token of the request; authorize put it there.
func tokenOf(ctx context.Context) ledger.Token { return ctx.Value(tokenKey{}).(ledger.Token) }

// authorize lets a request through whose token has the scope that the operation names.
func (a *api) authorize(ctx huma.Context, next func(huma.Context)) {
	var scope string
	for _, need := range ctx.Operation().Security {
		scope = need["token"][0]
	}
	scheme, secret, _ := strings.Cut(ctx.Header("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		ctx.SetHeader("WWW-Authenticate", `Bearer realm="storelay"`)
		huma.WriteErr(a.huma, ctx, http.StatusUnauthorized, "no token; send Authorization: Bearer slt_... with the scope "+scope)
		return
	}
	token, err := a.tokens.of(ctx.Context(), a.Ledger, a.Now(), secret)
	if errors.Is(err, ledger.ErrNotFound) {
		ctx.SetHeader("WWW-Authenticate", `Bearer realm="storelay", error="invalid_token"`)
		huma.WriteErr(a.huma, ctx, http.StatusUnauthorized, "this token is not known, or was deleted")
		return
	}
	if err != nil {
		a.Log.Error("token not read", "err", err)
		huma.WriteErr(a.huma, ctx, http.StatusInternalServerError, "the relay could not answer; its log says why")
		return
	}
	if !slices.Contains(token.Scopes, scope) && !slices.Contains(token.Scopes, ScopeAdmin) {
		ctx.SetHeader("WWW-Authenticate", `Bearer realm="storelay", error="insufficient_scope", scope="`+scope+`"`)
		huma.WriteErr(a.huma, ctx, http.StatusForbidden, "the token lacks the scope "+scope)
		return
	}
	next(huma.WithValue(ctx, tokenKey{}, token))
}

// sees says whether the token may know of the store.
func sees(token ledger.Token, store string) bool {
	return len(token.Stores) == 0 || slices.Contains(token.Stores, store)
}

// storeToken is the request's token, if it may know of the store.
func storeToken(ctx context.Context, store string) (ledger.Token, error) {
	token := tokenOf(ctx)
	if !sees(token, store) {
		return token, huma.Error403Forbidden("the token is limited to other stores than " + store)
	}
	return token, nil
}

// chainToken is the request's token, if it is for all stores.
func chainToken(ctx context.Context) (ledger.Token, error) {
	token := tokenOf(ctx)
	if len(token.Stores) > 0 {
		return token, huma.Error403Forbidden("the token is limited to some stores; this needs one for the whole chain")
	}
	return token, nil
}

const (
	tokenTTL  = 3 * time.Second // how long a deleted token may still be let in
	maxTokens = 1000
)

// A tokenCache spares the ledger most look-ups of tokens. It keeps hashes of secrets.
type tokenCache struct {
	mu    sync.Mutex // guards known
	known map[[sha256.Size]byte]knownToken
}

type knownToken struct {
	token ledger.Token
	until time.Time
}

func (c *tokenCache) of(ctx context.Context, l Ledger, now time.Time, secret string) (ledger.Token, error) {
	key := sha256.Sum256([]byte(secret))
	c.mu.Lock()
	k, ok := c.known[key]
	c.mu.Unlock()
	if ok && now.Before(k.until) {
		return k.token, nil
	}
	token, err := l.TokenOf(ctx, secret)
	if err != nil {
		return token, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxTokens {
		c.known = map[[sha256.Size]byte]knownToken{}
	}
	c.known[key] = knownToken{token, now.Add(tokenTTL)}
	return token, nil
}
