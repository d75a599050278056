package till

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// maxWait bounds what a till may wait for with ?wait=; it stays below the server's limit for
// reading a request, which would end the wait.
const maxWait = 30 * time.Second

// wait reads ?wait=, the time that the till is ready to wait; without it there is none.
func wait(w http.ResponseWriter, r *http.Request) (time.Duration, bool) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, true
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxWait {
		write(w, problem{Status: http.StatusBadRequest, Code: "wait", Detail: fmt.Sprintf("wait is a time up to %s, got %q", maxWait, text), Hint: "such as ?wait=20s; ask again when it has passed"})
		return 0, false
	}
	return d, true
}

// device gives the device of the address as a D.
func device[D drivers.Driver](h *handler, w http.ResponseWriter, r *http.Request, what string) (id string, d D, ok bool) {
	id = r.PathValue("id")
	if driver, found := h.Agent.Device(id); found {
		if d, ok = driver.(D); ok {
			return id, d, true
		}
	}
	write(w, problem{Status: http.StatusNotFound, Code: what, Detail: fmt.Sprintf("no %s %q", what, id), Hint: "the ids of the devices are in the agent's configuration and on its page"})
	return "", d, false
}

// weighing is the answer to GET /v1/scales/{id}.
type weighing struct {
	ID     string             `json:"id"`
	Stable bool               `json:"stable"` // there is a weight
	State  string             `json:"state"`  // stable, zero, motion, overCapacity, underZero, outsideZeroRange, notReady
	Weight *protocol.Quantity `json:"weight"` // null when there is none
	At     time.Time          `json:"at"`
}

// scale answers GET /v1/scales/{id}: it asks the scale now.
func (h *handler) scale(w http.ResponseWriter, r *http.Request, workstation string) {
	id, scale, ok := device[drivers.Weigher](h, w, r, "scale")
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), acceptTimeout)
	defer cancel()
	got, err := scale.Weigh(ctx)
	if err != nil {
		write(w, h.silent(id, workstation, "scale", err))
		return
	}
	answer := weighing{ID: id, State: got.State, At: got.At}
	if got.State == drivers.WeightStable || got.State == drivers.WeightZero {
		answer.Stable, answer.Weight = true, &got.Weight
	}
	writeJSON(w, http.StatusOK, "application/json", answer)
}

// scans is the answer to GET /v1/scanners/{id}.
type scans struct {
	ID    string         `json:"id"`
	Scans []drivers.Scan `json:"scans"` // oldest first; empty when the wait has passed
	Next  string         `json:"next"`  // ?after= of the next request
}

// scanner answers GET /v1/scanners/{id}: the scans after a cursor, as soon as there is one.
func (h *handler) scanner(w http.ResponseWriter, r *http.Request, workstation string) {
	id, scanner, ok := device[drivers.Scanner](h, w, r, "scanner")
	if !ok {
		return
	}
	limit, ok := wait(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	got, next, err := scanner.Scans(ctx, r.URL.Query().Get("after"))
	if err != nil && ctx.Err() == nil {
		write(w, h.silent(id, workstation, "scanner", err))
		return
	}
	writeJSON(w, http.StatusOK, "application/json", scans{ID: id, Scans: append([]drivers.Scan{}, got...), Next: next})
}

// silent is the refusal for a device that does not answer.
func (h *handler) silent(id, workstation, what string, err error) problem {
	p := problem{Status: http.StatusServiceUnavailable, Code: what + "Error", Detail: "the " + what + " could not be asked"}
	var fault *drivers.Fault
	if errors.As(err, &fault) {
		p.Hint = fault.Hint
	}
	if errors.Is(err, drivers.ErrOffline) {
		p.Status, p.Code, p.Detail = http.StatusConflict, what+"Offline", "the "+what+" is offline"
		return p
	}
	h.Log.Error(what+" not asked", "device", id, "workstation", workstation, "err", err)
	return p
}
