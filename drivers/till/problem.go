package till

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/storelay/storelay/protocol"
)

// A problem is a refusal (RFC 9457). Code is stable; the texts are for people.
type problem struct {
	Type   string          `json:"type"`
	Title  string          `json:"title"`
	Status int             `json:"status"`
	Code   string          `json:"code"`
	Detail string          `json:"detail"`
	Hint   string          `json:"hint,omitempty"`
	Faults protocol.Faults `json:"faults,omitempty"`
}

// maxFaults bounds what one answer names.
const maxFaults = 500

// write answers with a problem.
func write(w http.ResponseWriter, p problem) {
	if more := len(p.Faults) - maxFaults; more > 0 {
		p.Faults = append(p.Faults[:maxFaults:maxFaults], protocol.Fault{Problem: strconv.Itoa(more) + " more"})
	}
	p.Type, p.Title = "urn:storelay:problem:"+p.Code, http.StatusText(p.Status)
	writeJSON(w, p.Status, "application/problem+json", p)
}

func writeJSON(w http.ResponseWriter, status int, contentType string, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic("till: answer does not encode: " + err.Error()) // becomes a 500
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data) // a till that is gone comes again
}
