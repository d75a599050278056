package sim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/storelay/storelay/relay/ledger"
)

// secret signs what the connector delivers.
const secret = "whsec_c3RvcmVsYXkgY29ubmVjdCB0ZXN0IHNlY3JldA=="

// How a receiver misbehaves.
const (
	fails        = iota // 500, and takes nothing
	failsStored         // takes it, and answers 500
	resets              // no answer
	resetsStored        // takes it, and there is no answer
	busy                // 429
	refuses             // 400
)

// A receiver is the system behind the connector, in place of the network: it takes each id
// once.
type receiver struct {
	w       *world
	r       *rand.Rand
	modes   []int64 // faults that last
	dieAt   int64   // the relay dies at this request; 0 = at none
	taken   map[string]delivery
	order   []string // of ids
	repeats int
}

type delivery struct {
	kind, store string
	body        []byte // of the record
}

func newReceiver(w *world) *receiver {
	return &receiver{w: w, r: w.random("receiver", 0), taken: map[string]delivery{}}
}

// RoundTrip implements http.RoundTripper.
func (r *receiver) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	if r.dieAt > 0 {
		if r.dieAt--; r.dieAt == 0 {
			r.w.relay.dead = true
			if r.r.IntN(2) == 0 {
				r.take(req.Header.Get("Webhook-Id"), body)
			}
			return nil, errRelayDied
		}
	}
	if len(r.modes) > 0 && r.r.IntN(2) == 0 {
		switch r.modes[len(r.modes)-1] {
		case failsStored:
			r.take(req.Header.Get("Webhook-Id"), body)
			return respond(req, http.StatusInternalServerError), nil
		case resets:
			return nil, errors.New("connection reset")
		case resetsStored:
			r.take(req.Header.Get("Webhook-Id"), body)
			return nil, errors.New("connection reset")
		case busy:
			return respond(req, http.StatusTooManyRequests), nil
		case refuses:
			return respond(req, http.StatusBadRequest), nil
		default:
			return respond(req, http.StatusInternalServerError), nil
		}
	}
	r.take(req.Header.Get("Webhook-Id"), body)
	return respond(req, http.StatusNoContent), nil
}

func respond(req *http.Request, status int) *http.Response {
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("")), Request: req}
}

// take applies a delivery, once for each id.
func (r *receiver) take(id string, body []byte) {
	var m struct {
		Data ledger.StoredRecord `json:"data"`
	}
	if err := json.Unmarshal(body, &m); err != nil || id == "" {
		r.w.fail("connector: a delivery that cannot be read: %s: %v", body, err)
		return
	}
	d := delivery{string(m.Data.Kind), m.Data.Store, m.Data.Body}
	if before, repeated := r.taken[id]; repeated {
		if !bytes.Equal(before.body, d.body) {
			r.w.fail("connector: id %s is delivered with two contents", id)
		}
		r.repeats++
		return
	}
	r.taken[id] = d
	r.order = append(r.order, id)
}
