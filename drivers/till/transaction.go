package till

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/storelay/storelay/protocol"
)

// An answer tells a till that its transaction is on disk.
type answer struct {
	TransactionID protocol.TransactionID `json:"transactionId"`
	Position      protocol.Position      `json:"position"`
	AcceptedAt    string                 `json:"acceptedAt"`
	Flags         []string               `json:"flags"` // what does not add up; it is accepted all the same
}

// transaction answers POST /v1/transactions.
func (h *handler) transaction(w http.ResponseWriter, r *http.Request, workstation string) {
	body, p := readBody(w, r, MaxBody)
	if p.Status == 0 {
		var known bool
		var done answer
		if done, known, p = h.accept(r, workstation, body); p.Status == 0 {
			if known {
				w.Header().Set("Idempotency-Replayed", "true")
			}
			writeJSON(w, http.StatusCreated, "application/json", done)
			return
		}
	}
	if p.Status < 500 && len(body) > 0 { // beyond it the till is to send it again
		h.keep(r.Context(), workstation, body, p)
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusInsufficientStorage {
		w.Header().Set("Retry-After", "5")
	}
	write(w, p)
}

// accept takes one body from its bytes to the disk.
func (h *handler) accept(r *http.Request, workstation string, body []byte) (answer, bool, problem) {
	key := r.Header.Get("Idempotency-Key")
	if !printable(key) || len(key) > MaxKey || len(r.Header.Values("Idempotency-Key")) > 1 {
		return answer{}, false, problem{Status: http.StatusBadRequest, Code: "idempotencyKey", Detail: fmt.Sprintf("want one Idempotency-Key of at most %d printable ASCII characters", MaxKey)}
	}
	intake, err := Desk{Store: h.Store, Rule: h.Rule}.Take(body, workstation)
	if err != nil {
		return answer{}, false, refused(err)
	}
	if key != "" {
		intake.Keys = append([]string{"k:" + workstation + ":" + key}, intake.Keys...)
	}
	t := intake.Transaction
	// A till that hangs up after sending has sent: its transaction goes on.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), acceptTimeout)
	defer cancel()
	accepted, err := h.Agent.Accept(ctx, intake)
	if err != nil {
		return answer{}, false, h.refusal(err, intake)
	}
	if accepted.Known && accepted.Body != nil { // stamped then; the day rule may have changed since
		var first protocol.Transaction
		if err := json.Unmarshal(accepted.Body, &first); err == nil {
			t = first
		}
	}
	return answer{TransactionID: t.ID(), Position: accepted.Position, AcceptedAt: accepted.At, Flags: append([]string{}, t.Check()...)}, accepted.Known, problem{}
}

// refused is the answer to an error of Desk.Take.
func refused(err error) problem {
	switch faults := asFaults(err); {
	case errors.Is(err, ErrSyntax):
		return problem{Status: http.StatusBadRequest, Code: "json", Detail: "the body is not one JSON object", Faults: faults}
	case errors.Is(err, ErrTooBig):
		return problem{Status: http.StatusRequestEntityTooLarge, Code: "tooBig", Detail: faults[0].Problem, Hint: faults[0].Hint}
	default:
		return problem{Status: http.StatusUnprocessableEntity, Code: "invalid", Detail: fmt.Sprintf("%d things are wrong with the transaction", len(faults)), Faults: faults}
	}
}

// refusal is the answer to an error of Accept.
func (h *handler) refusal(err error, intake Intake) problem {
	switch {
	case errors.Is(err, ErrConflict):
		return problem{Status: http.StatusConflict, Code: "conflict", Detail: "another transaction was accepted under this key or this number: " + intake.Transaction.ID().String(),
			Hint: "a correction is a new transaction (a void or a return) with a number of its own"}
	case errors.Is(err, ErrTooBig):
		return tooBig(len(intake.Body))
	case errors.Is(err, ErrFull):
		h.Log.Error("transaction not accepted", "transaction", intake.Transaction.ID().String(), "err", err)
		return problem{Status: http.StatusInsufficientStorage, Code: "full", Detail: "the disk of the store PC is full; nothing was accepted", Hint: "free space on the store PC, then send the transaction again"}
	}
	h.Log.Error("transaction not accepted", "transaction", intake.Transaction.ID().String(), "err", err)
	if errors.Is(err, ErrBusy) {
		return problem{Status: http.StatusServiceUnavailable, Code: "busy", Detail: "the disk of the store PC does not keep up; this transaction was not taken", Hint: "send the same transaction again in a while"}
	}
	return problem{Status: http.StatusServiceUnavailable, Code: "notAccepted", Detail: "the agent could not write the transaction down", Hint: "send the same transaction again"}
}

func tooBig(size int) problem { return refused(&RefusalError{ErrTooBig, tooLong(size)}) }

// readBody reads a JSON body of at most limit bytes. Of a longer one it gives the first
// MaxKept bytes; the rest is thrown away as it comes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, problem) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout)) // a writer without deadlines has its own
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case err != nil:
		return nil, problem{Status: http.StatusBadRequest, Code: "incomplete", Detail: "the body did not arrive: " + err.Error(), Hint: "send the same transaction again"}
	case int64(len(body)) > limit:
		_, _ = io.CopyN(io.Discard, r.Body, maxDrain) // ends early when the till is done
		return body[:min(len(body), MaxKept)], problem{Status: http.StatusRequestEntityTooLarge, Code: "tooBig", Detail: fmt.Sprintf("the body is longer than %d bytes", limit)}
	}
	if kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" || !utf8Charset(params["charset"]) {
		return body, problem{Status: http.StatusUnsupportedMediaType, Code: "contentType", Detail: fmt.Sprintf("want Content-Type application/json, got %q", r.Header.Get("Content-Type"))}
	}
	return body, problem{}
}

// keep hands a refused body to the agent.
func (h *handler) keep(ctx context.Context, workstation string, body []byte, p problem) {
	faults := p.Faults
	if len(faults) == 0 {
		faults = protocol.Faults{{Problem: p.Detail, Hint: p.Hint}}
	}
	sum := sha256.Sum256(body)
	name := workstation + "-" + hex.EncodeToString(sum[:8])
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptTimeout)
	defer cancel()
	if err := h.Agent.Reject(ctx, name, body, faults); err != nil {
		h.Log.Error("refused transaction not kept", "name", name, "code", p.Code, "err", err)
	}
}

func asFaults(err error) protocol.Faults {
	var faults protocol.Faults
	if errors.As(err, &faults) {
		return faults
	}
	return protocol.Faults{{Problem: err.Error()}}
}
