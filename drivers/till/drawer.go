package till

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// An openRequest is the body of POST /v1/drawers/{id}/open.
type openRequest struct {
	Reason    string `json:"reason"`
	Reference string `json:"reference"`
	Operator  string `json:"operator"`
}

func (o openRequest) faults() protocol.Faults {
	var faults protocol.Faults
	if o.Reason == "" {
		faults.Add("reason", "the till's code, such as sale, change or noSale", "missing")
	}
	for _, field := range []struct{ name, text string }{{"reason", o.Reason}, {"reference", o.Reference}, {"operator", o.Operator}} {
		if len(field.text) > 128 || !printable(field.text) {
			faults.Add(field.name, "", "want at most 128 printable ASCII characters")
		}
	}
	return faults
}

// drawerState is the answer to GET /v1/drawers/{id}.
type drawerState struct {
	ID     string `json:"id"`
	Opened *bool  `json:"opened"` // null: it has no switch, or has not said yet
}

// sent is the answer to an open command; whether the drawer opened is an event.
type sent struct {
	ID   string `json:"id"`
	Sent bool   `json:"sent"`
}

// find gives the drawer of the address.
func (h *handler) find(w http.ResponseWriter, r *http.Request) (string, drivers.Opener, bool) {
	id := r.PathValue("id")
	if opener, ok := h.Agent.Drawer(id); ok {
		return id, opener, true
	}
	write(w, problem{Status: http.StatusNotFound, Code: "drawer", Detail: fmt.Sprintf("no drawer %q", id), Hint: "the ids of the drawers are in the agent's configuration and on its page"})
	return "", nil, false
}

// drawer answers GET /v1/drawers/{id}, with ?wait= when the drawer is closed.
func (h *handler) drawer(w http.ResponseWriter, r *http.Request, _ string) {
	id, opener, ok := h.find(w, r)
	if !ok {
		return
	}
	limit, ok := wait(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	state := drawerState{ID: id}
	if open, known := closed(ctx, opener); known {
		state.Opened = &open
	}
	writeJSON(w, http.StatusOK, "application/json", state)
}

// closed waits until the drawer is not known to be open, or ctx ends, and says how it is then.
func closed(ctx context.Context, opener drivers.Opener) (open, known bool) {
	watcher, ok := opener.(drivers.Watcher)
	if !ok {
		return opener.Opened()
	}
	for {
		changed := watcher.Changed()
		open, known = watcher.Opened()
		if !open || !known {
			return open, known
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return watcher.Opened()
		}
	}
}

// openDrawer answers POST /v1/drawers/{id}/open. It is not idempotent: each request is a
// pulse.
func (h *handler) openDrawer(w http.ResponseWriter, r *http.Request, workstation string) {
	id, opener, ok := h.find(w, r)
	if !ok {
		return
	}
	body, p := readBody(w, r, maxDrawer)
	if p.Status != 0 {
		write(w, p)
		return
	}
	compact, faults := strictJSON(body)
	if faults != nil {
		write(w, problem{Status: http.StatusBadRequest, Code: "json", Detail: "the body is not one JSON object", Faults: faults})
		return
	}
	var request openRequest
	if err := json.Unmarshal(compact, &request); err != nil {
		faults = protocol.Faults{{Problem: "reason, reference and operator are texts: " + err.Error()}}
	} else {
		faults = request.faults()
	}
	if faults != nil {
		write(w, problem{Status: http.StatusUnprocessableEntity, Code: "invalid", Detail: "the command is not complete", Faults: faults})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptTimeout)
	defer cancel()
	if err := opener.Open(ctx, drivers.OpenCommand{Reason: request.Reason, Reference: request.Reference, Operator: request.Operator}); err != nil {
		write(w, h.notOpened(id, workstation, err))
		return
	}
	writeJSON(w, http.StatusAccepted, "application/json", sent{ID: id, Sent: true})
}

func (h *handler) notOpened(id, workstation string, err error) problem {
	p := problem{Status: http.StatusServiceUnavailable, Code: "drawerError", Detail: "the command did not reach the drawer"}
	var fault *drivers.Fault
	if errors.As(err, &fault) {
		p.Hint = fault.Hint
	}
	if errors.Is(err, drivers.ErrOffline) {
		p.Status, p.Code, p.Detail = http.StatusConflict, "drawerOffline", "the drawer is offline"
		if p.Hint == "" {
			p.Hint = "is the printer or the drawer switched on and connected?"
		}
		return p
	}
	h.Log.Error("drawer not opened", "drawer", id, "workstation", workstation, "err", err)
	return p
}
