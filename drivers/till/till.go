// Package till takes transactions from the tills of a shop and opens drawers for them: an
// HTTP API on the store PC. What the till is told was accepted is on disk.
//
//	POST /v1/transactions       a protocol.Transaction -> 201 {transactionId, position, acceptedAt, flags}
//	GET  /v1/status             the agent's own status
//	POST /v1/drawers/{id}/open  {reason, reference?, operator?} -> 202 {id, sent}
//	GET  /v1/drawers/{id}       {id, opened: true, false or null}; with ?wait=20s not before
//	                            it is closed, or so long has passed
//	GET  /v1/scales/{id}        {id, stable, state, weight: {milli, unit} or null, at}
//	GET  /v1/scanners/{id}      {id, scans: [{data, at}], next}; ?after= goes on from next,
//	                            ?wait=20s waits for a scan
//
// Every request carries a bearer token, which names its workstation. A refusal is RFC 9457
// application/problem+json with a stable code, and says all that is wrong at once. A refused
// body is kept through Agent.Reject, so that no receipt is lost because a till takes no for
// an answer; the same body refused again is the same file.
//
// A till may repeat any request: the same transaction is accepted once, and gets the same
// answer byte by byte, with the header Idempotency-Replayed: true.
package till

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// What Accept may answer beside success.
var (
	ErrConflict = errors.New("a key is known with other content")
	ErrFull     = errors.New("disk is full")
	ErrTooBig   = errors.New("record is too big")
	ErrBusy     = errors.New("too much waits already")
)

// Bounds of a request, in bytes.
const (
	MaxBody   = 1 << 20   // read at all
	MaxKept   = 128 << 10 // kept of a body that is too big to read
	MaxKey    = 128       // of the Idempotency-Key header
	maxDrawer = 4 << 10   // of an open command
	maxDrain  = 16 << 20  // thrown away, so that a till which sends first and reads later sees its answer
)

const (
	readTimeout   = 30 * time.Second // for a body
	acceptTimeout = 15 * time.Second // for the disk and the drawer
)

// An Agent is what the handler needs of the agent. Its methods are safe for concurrent use.
type Agent interface {
	// Accept puts a transaction on disk, once for each of its keys: when any of them is
	// known with the same digest, it answers what it answered then, with Known. ErrConflict
	// when a key is known with another digest, ErrFull when the disk is, ErrTooBig when the
	// record would be beyond protocol.MaxRecord, ErrBusy when so much waits to be put on
	// disk that it is not taken. After any error nothing was accepted as far
	// as is known.
	Accept(ctx context.Context, intake Intake) (Accepted, error)
	// Drawer is the drawer with that device id.
	Drawer(id string) (drivers.Opener, bool)
	// Device is the driver of any device.
	Device(id string) (drivers.Driver, bool)
	// Status is encoded as JSON for GET /v1/status.
	Status() any
	// Reject keeps a refused body with what was wrong with it. Name is a valid file name,
	// the same for the same workstation and body; again is fine.
	Reject(ctx context.Context, name string, body []byte, faults protocol.Faults) error
}

// An Intake is one valid transaction to accept.
type Intake struct {
	Transaction protocol.Transaction // stamped: store, workstation and business day are there
	Body        []byte               // the same as compact JSON: the record's body
	Keys        []string             // k:<workstation>:<Idempotency-Key> if given, t:<transaction id>
	Digest      [sha256.Size]byte    // of the compacted request, before stamping
}

// An Accepted says where a transaction is.
type Accepted struct {
	Position protocol.Position
	At       string // RFC 3339, when it was first accepted
	Known    bool   // it was there already
	Body     []byte // Known: the body that was accepted first; nil when it is the intake's
}

// Options of NewHandler.
type Options struct {
	Agent Agent
	Store string                  // of this agent: stamped, and must match when a till says it
	Rule  func() protocol.DayRule // of the store, now
	// Token gives the workstation that a bearer token belongs to. It compares in constant
	// time, as with hashes.
	Token func(token string) (workstation string, ok bool)
	Hosts []string         // names in the Host header beside localhost, 127.0.0.1 and [::1]
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: no log
}

type handler struct {
	Options
	mux *http.ServeMux
}

// NewHandler serves the API. A panic within it ends as a 500 and in the log.
func NewHandler(o Options) http.Handler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &handler{Options: o, mux: http.NewServeMux()}
	for _, route := range []struct {
		method, path string
		serve        func(http.ResponseWriter, *http.Request, string)
	}{
		{http.MethodPost, "/v1/transactions", h.transaction},
		{http.MethodGet, "/v1/status", h.status},
		{http.MethodPost, "/v1/drawers/{id}/open", h.openDrawer},
		{http.MethodGet, "/v1/drawers/{id}", h.drawer},
		{http.MethodGet, "/v1/scales/{id}", h.scale},
		{http.MethodGet, "/v1/scanners/{id}", h.scanner},
	} {
		h.mux.HandleFunc(route.path, func(w http.ResponseWriter, r *http.Request) {
			workstation, ok := h.till(w, r)
			if !ok {
				return
			}
			if r.Method != route.method {
				w.Header().Set("Allow", route.method)
				write(w, problem{Status: http.StatusMethodNotAllowed, Code: "method", Detail: r.Method + " is not for this address"})
				return
			}
			route.serve(w, r, workstation)
		})
	}
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		write(w, problem{Status: http.StatusNotFound, Code: "address", Detail: "no such address", Hint: "POST /v1/transactions, GET /v1/status, POST /v1/drawers/{id}/open, GET /v1/drawers/{id}, GET /v1/scales/{id}, GET /v1/scanners/{id}"})
	})
	return h
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			h.Log.Error("till request panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			write(w, problem{Status: http.StatusInternalServerError, Code: "internal", Detail: "the agent made a mistake; it is in its log", Hint: "send the transaction again"})
		}
	}()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if p := h.foreign(r); p.Status != 0 {
		write(w, p)
		return
	}
	h.mux.ServeHTTP(w, r)
}

// foreign refuses what a web page in a browser of this PC could send: another Host (DNS
// rebinding) or another Origin.
func (h *handler) foreign(r *http.Request) problem {
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name = strings.ToLower(strings.Trim(name, "[]"))
	if !slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, name) && !slices.ContainsFunc(h.Hosts, func(s string) bool { return strings.EqualFold(s, name) }) {
		return problem{Status: http.StatusForbidden, Code: "host", Detail: "this agent is not called " + name, Hint: "call it localhost, or add the name to its configuration"}
	}
	for _, origin := range r.Header.Values("Origin") {
		if u, err := url.Parse(origin); err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return problem{Status: http.StatusForbidden, Code: "origin", Detail: "requests from web pages of " + origin + " are not taken"}
		}
	}
	return problem{}
}

// till checks the token and gives its workstation.
func (h *handler) till(w http.ResponseWriter, r *http.Request) (string, bool) {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") && token != "" {
		if workstation, ok := h.Token(strings.TrimSpace(token)); ok {
			return workstation, true
		}
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="storelay"`)
	write(w, problem{Status: http.StatusUnauthorized, Code: "token", Detail: "no valid token", Hint: "send Authorization: Bearer with this till's token from the agent's configuration"})
	return "", false
}

// status answers GET /v1/status.
func (h *handler) status(w http.ResponseWriter, _ *http.Request, _ string) {
	writeJSON(w, http.StatusOK, "application/json", h.Agent.Status())
}
