package drivertest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// TillOptions shape a Till. URL, Store and Workstation are needed.
type TillOptions struct {
	URL         string // of the agent, without a path: http://127.0.0.1:8420
	Path        string // of transactions; "" = /v1/transactions
	Token       string // sent as Authorization: Bearer; "" = none
	Store       string
	Workstation string
	Currency    string // of two decimals; "" = SEK
	CashUnit    int64  // what cash is rounded to, minor units; 0 = 100 for SEK and NOK, else 1
	Drawer      string // the device that cash sales open first; "" = none
	Seed        uint64
	First       int64                      // the first sequence number; 0 = 1
	Now         func() time.Time           // nil = time.Now
	Day         func(now time.Time) string // the business day; nil = now's date in its zone
	Pause       time.Duration              // before the first repetition, doubled up to 32 times; 0 = 50 ms
	Client      *http.Client               // nil = one with a timeout of 10 s per answer
	Misbehave   Misbehaviour               // what is done wrong on purpose
}

// Misbehaviour is what a till does wrong on purpose, each in percent of its sales.
type Misbehaviour struct {
	Twice             int // the request is sent twice at the same time
	RetryAfterSuccess int // the request is sent again after its 201
	WrongSums         int // total, tenders or lines disagree
	Garbage           int // garbage is posted first; it must be refused
}

// A Refusal is an answer of 4xx, which a till does not repeat.
type Refusal struct {
	Reference string // of the receipt; "" = garbage
	Status    int
	Body      string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("receipt %s is refused: %d %s", r.Reference, r.Status, r.Body)
}

// A Till simulates a till with its own hand: it makes receipts, opens the drawer for cash,
// posts each with an Idempotency-Key and repeats the same request until it is answered with
// 201 or 4xx. Sequence numbers run without holes: only a 201 uses one up. Its methods are
// safe for concurrent use; sales go one after the other.
type Till struct {
	opts TillOptions

	selling sync.Mutex // one sale at a time; guards the fields up to the next mutex
	rng     *rand.Rand
	next    int64
	pending *Receipt // has no answer yet: a sale whose ctx ended
	opened  bool     // the drawer was opened for pending

	mu       sync.Mutex // guards the fields below
	accepted []Receipt
	refused  []Refusal
	repeats  int
	drawer   []error
}

// NewTill makes a till that has sold nothing.
func NewTill(opts TillOptions) *Till {
	opts.URL = strings.TrimSuffix(opts.URL, "/")
	opts.Path = cmp.Or(opts.Path, "/v1/transactions")
	opts.Currency = cmp.Or(opts.Currency, "SEK")
	opts.First = cmp.Or(opts.First, 1)
	opts.Pause = cmp.Or(opts.Pause, 50*time.Millisecond)
	if opts.CashUnit == 0 {
		opts.CashUnit = 1
		if opts.Currency == "SEK" || opts.Currency == "NOK" {
			opts.CashUnit = 100
		}
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Day == nil {
		opts.Day = func(now time.Time) string { return now.Format(time.DateOnly) }
	}
	if opts.Client == nil {
		opts.Client = &http.Client{Timeout: 10 * time.Second}
	}
	return &Till{opts: opts, rng: rand.New(rand.NewPCG(opts.Seed, 3)), next: opts.First}
}

// Accepted lists the sales that were answered 201, in order.
func (t *Till) Accepted() []Receipt {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.accepted)
}

// Refused lists the answers of 4xx to receipts and garbage, in order.
func (t *Till) Refused() []Refusal {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.refused)
}

// Repeats is the number of requests that were sent again, for whatever reason.
func (t *Till) Repeats() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.repeats
}

// DrawerErrors lists why the drawer was not opened; a till sells all the same.
func (t *Till) DrawerErrors() []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.drawer)
}

// Sale sells something and returns when the agent has answered for good. A Refusal is
// returned as *Refusal. When ctx ends first, the next Sale begins with the same request.
func (t *Till) Sale(ctx context.Context) (Receipt, error) {
	t.selling.Lock()
	defer t.selling.Unlock()
	if t.pending == nil {
		receipt := t.ring()
		if t.percent(t.opts.Misbehave.Garbage) {
			if err := t.postGarbage(ctx, receipt.Body); err != nil {
				return Receipt{}, err
			}
		}
		t.pending, t.opened = receipt, false
	}
	receipt := t.pending
	if _, cash := receipt.Tenders["cash"]; cash && t.opts.Drawer != "" && !t.opened {
		t.opened = true // asked for once, whatever comes of it
		if err := t.openDrawer(ctx, receipt.Reference()); err != nil {
			t.mu.Lock()
			t.drawer = append(t.drawer, err)
			t.mu.Unlock()
		}
	}
	err := t.deliver(ctx, receipt)
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		t.pending = nil
		t.mu.Lock()
		t.refused = append(t.refused, *refusal)
		t.mu.Unlock()
		return *receipt, err
	case err != nil:
		return *receipt, err
	}
	t.pending = nil
	t.next++
	t.mu.Lock()
	t.accepted = append(t.accepted, *receipt)
	t.mu.Unlock()
	if t.percent(t.opts.Misbehave.RetryAfterSuccess) {
		t.again()
		if err := t.deliver(ctx, receipt); err != nil {
			return *receipt, fmt.Errorf("repeat of accepted receipt %s: %w", receipt.Reference(), err)
		}
	}
	return *receipt, nil
}

// ring makes the next receipt.
func (t *Till) ring() *Receipt {
	body := draw(t.rng, t.opts.CashUnit)
	now := t.opts.Now()
	body.Store, body.Workstation, body.Day, body.Sequence = t.opts.Store, t.opts.Workstation, t.opts.Day(now), t.next
	body.Begin = now.Add(-time.Duration(20+t.rng.IntN(160)) * time.Second).Format(time.RFC3339)
	body.End = now.Format(time.RFC3339)
	body.Currency = t.opts.Currency
	wrong := t.percent(t.opts.Misbehave.WrongSums)
	if wrong {
		spoil(t.rng, &body)
	}
	receipt := sum(&body)
	receipt.Wrong = wrong
	receipt.Body = body.json()
	receipt.Key = fmt.Sprintf("%s-%d-%016x", body.Workstation, body.Sequence, t.rng.Uint64())
	return &receipt
}

func (t *Till) percent(p int) bool { return p > 0 && t.rng.IntN(100) < p }

func (t *Till) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.repeats++
}

// deliver posts a receipt until it is answered 201 (nil) or 4xx (*Refusal), or ctx ends.
// 408, 425 and 429 ask for a repetition; 409 may mean that the same request is under way and
// is repeated a few times.
func (t *Till) deliver(ctx context.Context, receipt *Receipt) error {
	if t.percent(t.opts.Misbehave.Twice) {
		t.again()
		twin := make(chan struct{})
		go func() {
			defer close(twin)
			_, _, _ = t.send(ctx, t.opts.Path, receipt.Key, receipt.Body) // its answer is lost
		}()
		defer func() { <-twin }()
	}
	pause := t.opts.Pause
	for try := 0; ; try++ {
		if try > 0 {
			t.again()
		}
		status, answer, err := t.send(ctx, t.opts.Path, receipt.Key, receipt.Body)
		switch {
		case err != nil: // lost: it may have been accepted
		case status == http.StatusCreated:
			return nil
		case status == http.StatusConflict && try < 6: // the twin is under way
		case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		case status >= 400 && status < 500:
			return &Refusal{receipt.Reference(), status, answer}
		case status < 500:
			return fmt.Errorf("receipt %s: unexpected answer %d %s", receipt.Reference(), status, answer)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 32*t.opts.Pause)
	}
}

func (t *Till) postGarbage(ctx context.Context, good []byte) error {
	status, answer, err := t.send(ctx, t.opts.Path, fmt.Sprintf("garbage-%016x", t.rng.Uint64()), garbage(t.rng, good))
	switch {
	case err != nil:
		return nil // lost, nobody minds
	case status >= 200 && status < 300:
		return fmt.Errorf("garbage is accepted: %d %s", status, answer)
	case status < 500:
		t.mu.Lock()
		defer t.mu.Unlock()
		t.refused = append(t.refused, Refusal{"", status, answer})
	}
	return nil
}

// openDrawer asks once for the drawer to be opened for a sale.
func (t *Till) openDrawer(ctx context.Context, reference string) error {
	body, err := json.Marshal(map[string]string{"reason": "sale", "reference": reference})
	if err != nil {
		return err
	}
	status, answer, err := t.send(ctx, "/v1/drawers/"+t.opts.Drawer+"/open", "", body)
	if err != nil {
		return fmt.Errorf("open the drawer for %s: %w", reference, err)
	}
	if status < 200 || status >= 300 {
		return fmt.Errorf("open the drawer for %s: %d %s", reference, status, answer)
	}
	return nil
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 10

func (t *Till) send(ctx context.Context, path, key string, body []byte) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.opts.URL+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Content-Type", "application/json")
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	if t.opts.Token != "" {
		request.Header.Set("Authorization", "Bearer "+t.opts.Token)
	}
	response, err := t.opts.Client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return 0, "", fmt.Errorf("read the answer: %w", err)
	}
	return response.StatusCode, string(answer), nil
}
