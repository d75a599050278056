// Package api is the relay's open REST API: what the ledger knows, for programs with a token.
// The OpenAPI 3.1 document is made from the code and served at /openapi.json and
// /openapi.yaml; /docs lists the operations without help from any other host. Every error is
// problem+json (RFC 9457). Amounts are minor units of their currency, days are business days.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/ledger"
)

// A Ledger is what the API needs of *ledger.Ledger.
type Ledger interface {
	Head(ctx context.Context, chain string) (pos, incarnation int64, err error)
	Moved(chain string) (<-chan struct{}, func())
	Records(ctx context.Context, chain string, after int64, limit int) ([]ledger.StoredRecord, error)
	RecordsOf(ctx context.Context, chain, store string, kind protocol.Kind, day protocol.Day, after int64, limit int) ([]ledger.StoredRecord, error)
	Transactions(ctx context.Context, query ledger.TransactionQuery) (rows []ledger.TransactionRow, more bool, err error)
	KPIs(ctx context.Context, chain, store string, from, to protocol.Day) ([]ledger.KPIRow, error)
	Tenders(ctx context.Context, chain, store string, day protocol.Day) ([]ledger.TenderSum, error)
	Devices(ctx context.Context, chain, store string) ([]ledger.DeviceRow, error)
	Agents(ctx context.Context, chain string) ([]ledger.AgentRow, error)
	Stores(ctx context.Context, chain string) ([]ledger.Store, error)
	PutStore(ctx context.Context, chain string, store ledger.Store) error
	Quarantined(ctx context.Context, chain string, limit int) ([]ledger.QuarantinedRecord, error)
	RetryQuarantined(ctx context.Context, chain string, id int64) error
	IncompleteDays(ctx context.Context, chain, store string, from, to protocol.Day) ([]ledger.IncompleteDay, error)
	DayCertificate(ctx context.Context, chain, store string, day protocol.Day, version int64) ([]byte, error)
	Settle(ctx context.Context, chain, store string, day protocol.Day, s ledger.Settlement) error
	Unsettle(ctx context.Context, chain, store string, day protocol.Day, r ledger.Reason) error
	Roster(ctx context.Context, chain, store string, day protocol.Day) ([]ledger.Expected, error)
	PutRoster(ctx context.Context, chain, store string, e ledger.RosterEntry) error
	DeleteRoster(ctx context.Context, chain, store, kind, id string) error
	Alarms(ctx context.Context, chain string) ([]ledger.Alarm, error)
	TokenOf(ctx context.Context, secret string) (ledger.Token, error)
}

// Connectors is what the API needs of *connect.Runner.
type Connectors interface {
	States(ctx context.Context) ([]connect.State, error)
	DeadLetters(ctx context.Context, connector string) ([]ledger.DeadLetter, error)
	Replay(ctx context.Context, connector string, pos int64) error
	Resume(connector string) error
}

// Options of New. Ledger is needed.
type Options struct {
	Ledger     Ledger
	Connectors map[string]Connectors // by chain; a chain without has none
	Log        *slog.Logger          // nil = nothing is logged
	Now        func() time.Time      // nil = time.Now
	Version    string                // of the program, in the document

	Heartbeat  time.Duration // between comments on an idle event stream; 0 = 15 s
	MaxStreams int           // event streams at once; 0 = 500
	WriteLimit time.Duration // how long a client of an event stream may take for one write; 0 = 10 s
}

// maxBody bounds a request's body, in bytes.
const maxBody = 64 << 10

type api struct {
	Options
	huma    huma.API
	tokens  tokenCache
	streams chan struct{} // one value per open event stream
}

// New makes the handler of /v1/..., /openapi.json, /openapi.yaml and /docs.
func New(opts Options) http.Handler {
	_, h := newAPI(opts)
	return h
}

func newAPI(opts Options) (*api, http.Handler) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Heartbeat == 0 {
		opts.Heartbeat = 15 * time.Second
	}
	if opts.MaxStreams == 0 {
		opts.MaxStreams = 500
	}
	if opts.WriteLimit == 0 {
		opts.WriteLimit = 10 * time.Second
	}
	if opts.Version == "" {
		opts.Version = "1"
	}
	mux := http.NewServeMux()
	a := &api{Options: opts, streams: make(chan struct{}, opts.MaxStreams)}
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[protocol.Day](), reflect.TypeFor[dayText]())
	a.huma = humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Storelay", Version: opts.Version, Description: "What the stores of a chain sold and counted. Amounts are whole minor units (öre, cents) of their currency. " +
				"Lists come in pages: pass next as cursor or after to go on."},
			Components: &huma.Components{Schemas: registry, SecuritySchemes: map[string]*huma.SecurityScheme{
				"token": {Type: "http", Scheme: "bearer", Description: "A token of the chain (slt_...). The names beside it are the scopes, of which an operation needs one; admin has all."},
			}},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	})
	a.huma.UseMiddleware(a.authorize)
	a.transactions()
	a.kpis()
	a.stores()
	a.stream()
	a.events()
	a.operations()
	a.proof()
	a.document(mux)
	return a, a.guard(mux)
}

// A reply is what huma writes; only the body matters.
type reply[T any] struct{ Body T }

// handle registers an operation that needs the scope.
func handle[I, O any](a *api, method, path, id, scope, summary string, h func(ctx context.Context, in *I) (O, error)) {
	huma.Register(a.huma, operation(method, path, id, scope, summary), func(ctx context.Context, in *I) (*reply[O], error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, a.problem(ctx, id, err)
		}
		return &reply[O]{out}, nil
	})
}

func operation(method, path, id, scope, summary string) huma.Operation {
	op := huma.Operation{
		Method: method, Path: path, OperationID: id, Summary: summary, Tags: []string{scope}, MaxBodyBytes: maxBody, BodyReadTimeout: 10 * time.Second,
		Security: []map[string][]string{{"token": {scope}}},
		Errors:   []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity},
	}
	if method == http.MethodPut {
		op.Errors = append(op.Errors, http.StatusRequestEntityTooLarge)
	}
	return op
}

// problem turns an error into an answer: what the caller did wrong is told, what is wrong
// with us goes to the log.
func (a *api) problem(ctx context.Context, id string, err error) error {
	var status huma.StatusError
	var faults protocol.Faults
	switch {
	case errors.As(err, &status):
		return status
	case errors.As(err, &faults):
		var details []error
		for _, f := range faults {
			text := f.Problem
			if f.Hint != "" {
				text += " (" + f.Hint + ")"
			}
			details = append(details, &huma.ErrorDetail{Location: "body." + f.Field, Message: text})
		}
		return huma.Error422UnprocessableEntity("validation failed", details...)
	case errors.Is(err, ledger.ErrNotFound):
		return huma.Error404NotFound(err.Error())
	case errors.Is(err, connect.ErrRefused):
		return huma.NewError(http.StatusBadGateway, err.Error())
	case ctx.Err() != nil:
		return huma.Error503ServiceUnavailable("the request ended before its answer")
	}
	a.Log.Error("request failed", "operation", id, "err", err)
	return huma.Error500InternalServerError("the relay could not answer; its log says why")
}

// guard is around everything: headers, bounds, panics, and problems for paths and methods
// that are not served.
func (a *api) guard(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		tracked := &tracker{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, _ := p.(error); errors.Is(err, http.ErrAbortHandler) || tracked.began {
				a.Log.Warn("answer broke off", "method", r.Method, "path", r.URL.Path, "cause", p)
				panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
			}
			a.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "cause", p)
			writeProblem(w, http.StatusInternalServerError, "the relay could not answer; its log says why")
		}()
		if h, pattern := mux.Handler(r); pattern == "" {
			lost := &tracker{ResponseWriter: discard{http.Header{}}}
			h.ServeHTTP(lost, r)
			if lost.status == http.StatusMethodNotAllowed {
				w.Header().Set("Allow", lost.Header().Get("Allow"))
				writeProblem(w, http.StatusMethodNotAllowed, r.Method+" is not served here, but "+lost.Header().Get("Allow"))
				return
			}
			writeProblem(w, http.StatusNotFound, "nothing is served at this path; /docs lists what is")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody+1)
		mux.ServeHTTP(tracked, r)
	})
}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(&huma.ErrorModel{Status: status, Title: http.StatusText(status), Detail: detail})
}

// A tracker remembers whether an answer has begun.
type tracker struct {
	http.ResponseWriter
	began  bool
	status int
}

func (t *tracker) WriteHeader(status int) {
	t.began, t.status = true, status
	t.ResponseWriter.WriteHeader(status)
}

func (t *tracker) Write(b []byte) (int, error) {
	t.began = true
	return t.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (t *tracker) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// discard is a ResponseWriter that keeps the header alone.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// A page is one piece of a list.
type page[T any] struct {
	Items []T    `json:"items" nullable:"false"`
	More  bool   `json:"more" doc:"There is more now; ask again with next"`
	Next  string `json:"next" doc:"Where to go on: pass it as it is, also later when more is false"`
}

// A list is complete.
type list[T any] struct {
	Items []T `json:"items" nullable:"false"`
}

func listOf[T any](items []T) list[T] {
	if items == nil {
		items = []T{}
	}
	return list[T]{items}
}

// parseDay reads a day that huma has checked the form of.
func parseDay(name, s string) (protocol.Day, error) {
	day, err := protocol.ParseDay(s)
	if err != nil {
		return day, huma.Error400BadRequest(fmt.Sprintf("%s: %v", name, err))
	}
	return day, nil
}
