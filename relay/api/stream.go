package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/storelay/storelay/relay/ledger"
)

// pageSize is how many records an event stream reads at once: all that it ever holds.
const pageSize = 100

type head struct {
	Pos         int64 `json:"pos" doc:"Newest position of the chain"`
	Incarnation int64 `json:"incarnation" doc:"Raised when the ledger was restored from a backup"`
}

type recordsInput struct {
	After int64 `query:"after" minimum:"0" doc:"Exclusive position; absent = from the beginning"`
	Limit int   `query:"limit" minimum:"1" maximum:"500" default:"100"`
}

type recordPage struct {
	Items []ledger.StoredRecord `json:"items" nullable:"false"`
	More  bool                  `json:"more"`
	Next  int64                 `json:"next" doc:"Pass it as after"`
}

func (a *api) stream() {
	handle(a, http.MethodGet, "/v1/head", "head", ScopeEvents, "The newest position",
		func(ctx context.Context, _ *struct{}) (head, error) {
			pos, incarnation, err := a.Ledger.Head(ctx, tokenOf(ctx).Chain)
			return head{pos, incarnation}, err
		})
	handle(a, http.MethodGet, "/v1/records", "listRecords", ScopeEvents, "All records in the chain's order",
		func(ctx context.Context, in *recordsInput) (recordPage, error) {
			token := tokenOf(ctx)
			rows, err := a.Ledger.Records(ctx, token.Chain, in.After, in.Limit+1)
			if err != nil {
				return recordPage{}, err
			}
			p := recordPage{Items: []ledger.StoredRecord{}, More: len(rows) > in.Limit, Next: in.After}
			for _, r := range rows[:min(len(rows), in.Limit)] {
				p.Next = r.Pos
				if sees(token, r.Store) {
					p.Items = append(p.Items, r)
				}
			}
			return p, nil
		})
}

type eventsInput struct {
	LastEventID string   `header:"Last-Event-ID" maxLength:"60" doc:"The id of the last event received; sent by browsers by themselves"`
	After       string   `query:"after" maxLength:"60" doc:"The same, for clients that cannot set the header; without both the stream begins at the head"`
	Kind        []string `query:"kind" maxItems:"20" doc:"Only these kinds, separated by commas"`
	Store       []string `query:"store" maxItems:"500" doc:"Only these stores, separated by commas"`
}

// events is the stream of new records as server-sent events (WHATWG HTML, 9.2).
func (a *api) events() {
	op := operation(http.MethodGet, "/v1/events", "events", ScopeEvents, "New records as they are committed (server-sent events)")
	op.Description = "id is incarnation-position, event the record's kind, data the record. A comment comes every 15 s. A client that does not read is disconnected and resumes with Last-Event-ID."
	op.Errors = append(op.Errors, http.StatusServiceUnavailable)
	op.Responses = map[string]*huma.Response{"200": {
		Description: "A stream that does not end",
		Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
	huma.Register(a.huma, op, func(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
		token := tokenOf(ctx)
		for _, store := range in.Store {
			if !sees(token, store) {
				return nil, huma.Error403Forbidden("the token is limited to other stores than " + store)
			}
		}
		pos, incarnation, err := a.Ledger.Head(ctx, token.Chain)
		if err != nil {
			return nil, a.problem(ctx, "events", err)
		}
		from := cursor{incarnation, pos}
		if id := in.LastEventID; id != "" || in.After != "" {
			if id == "" {
				id = in.After
			}
			if from, err = readEventID(id); err != nil {
				return nil, err
			}
		}
		select {
		case a.streams <- struct{}{}:
		default:
			return nil, huma.Error503ServiceUnavailable(fmt.Sprintf("%d event streams are open, which is the limit of this relay", cap(a.streams)))
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) { //nolint:contextcheck // the request's own is in hc
			defer func() { <-a.streams }()
			r, w := humago.Unwrap(hc)
			f := &feed{api: a, in: in, token: token, at: from, w: w, secret: bearer(r)}
			if err := f.run(r.Context()); !errors.Is(err, context.Canceled) {
				a.Log.Info("event stream ended", "chain", token.Chain, "token", token.ID, "cause", err)
			}
		}}, nil
	})
}

func bearer(r *http.Request) string {
	_, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return secret
}

func readEventID(s string) (cursor, error) {
	var c cursor
	if _, err := fmt.Sscanf(s, "%d-%d", &c.incarnation, &c.pos); err != nil || fmt.Sprintf("%d-%d", c.incarnation, c.pos) != s || c.pos < 0 || c.incarnation < 0 {
		return c, huma.Error400BadRequest("not the id of an event, which is incarnation-position")
	}
	return c, nil
}

// A feed is one open event stream. It reads the ledger at the pace of its client, and holds
// one page at most.
type feed struct {
	api    *api
	in     *eventsInput
	token  ledger.Token
	secret string
	at     cursor
	w      http.ResponseWriter
}

var errRevoked = errors.New("the token is no longer valid")

func (f *feed) run(ctx context.Context) error {
	moved, stop := f.api.Ledger.Moved(f.token.Chain)
	defer stop()
	h := f.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx
	f.w.WriteHeader(http.StatusOK)
	if err := f.send(fmt.Appendf(nil, ": from %d-%d\n\n", f.at.incarnation, f.at.pos)); err != nil {
		return err
	}
	beat := time.NewTicker(f.api.Heartbeat)
	defer beat.Stop()
	for {
		full, err := f.page(ctx)
		if err != nil {
			return err
		}
		if full && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, open := <-moved:
			if !open {
				moved = nil // the ledger stops; the heartbeat alone is left
			}
		case <-beat.C:
			token, err := f.api.tokens.of(ctx, f.api.Ledger, f.api.Now(), f.secret)
			if errors.Is(err, ledger.ErrNotFound) {
				return errRevoked
			}
			if err == nil {
				f.token = token
			}
			if err := f.send([]byte(": heartbeat\n\n")); err != nil {
				return err
			}
		}
	}
}

// page sends the next records, and says whether there may be more at once.
func (f *feed) page(ctx context.Context) (full bool, err error) {
	pos, incarnation, err := f.api.Ledger.Head(ctx, f.token.Chain)
	if err != nil {
		return false, fmt.Errorf("read head: %w", err)
	}
	f.at = f.at.carry(pos, incarnation)
	records, err := f.api.Ledger.Records(ctx, f.token.Chain, f.at.pos, pageSize)
	if err != nil {
		return false, fmt.Errorf("read records after %d: %w", f.at.pos, err)
	}
	var out bytes.Buffer
	for i := range records {
		r := &records[i]
		f.at.pos = r.Pos
		if f.wants(r) {
			if err := f.write(&out, r); err != nil {
				return false, err
			}
		}
		if out.Len() > 256<<10 || i == len(records)-1 {
			if err := f.send(out.Bytes()); err != nil {
				return false, err
			}
			out.Reset()
		}
	}
	return len(records) == pageSize, nil
}

func (f *feed) wants(r *ledger.StoredRecord) bool {
	return sees(f.token, r.Store) && (len(f.in.Store) == 0 || slices.Contains(f.in.Store, r.Store)) &&
		(len(f.in.Kind) == 0 || slices.Contains(f.in.Kind, string(r.Kind)))
}

// write appends one event. A record's JSON is one line, so data is too.
func (f *feed) write(out *bytes.Buffer, r *ledger.StoredRecord) error {
	event := strings.Map(func(c rune) rune { // a kind is an agent's text
		if c == '\n' || c == '\r' {
			return -1
		}
		return c
	}, string(r.Kind))
	fmt.Fprintf(out, "id: %d-%d\nevent: %s\ndata: ", f.at.incarnation, r.Pos, event)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil { // ends with a newline
		return fmt.Errorf("encode record %d: %w", r.Pos, err)
	}
	out.WriteByte('\n')
	return nil
}

// send writes and flushes within the time that a client has.
func (f *feed) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	control := http.NewResponseController(f.w)
	if err := control.SetWriteDeadline(time.Now().Add(f.api.WriteLimit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := f.w.Write(b); err != nil {
		return fmt.Errorf("client does not read: %w", err)
	}
	if err := control.Flush(); err != nil {
		return fmt.Errorf("client does not read: %w", err)
	}
	return nil
}
