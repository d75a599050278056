package connect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/storelay/storelay/relay/ledger"
)

const (
	maxAnswer  = 64 << 10 // bytes read of an answer, so that its connection can be used again
	maxExcerpt = 200      // bytes of a refusal that are kept as its reason
)

// A verdict is what one attempt came to.
type verdict int

const (
	delivered verdict = iota
	later             // nobody answered, or the receiver asks for patience
	failed            // the receiver failed on the record
	refused           // the receiver will never take the record
	gone              // the receiver wants nothing more
)

// An outcome is the verdict with its reason. wait is what Retry-After asks for.
type outcome struct {
	verdict verdict
	reason  string
	wait    time.Duration
}

// A webhook posts records to one URL.
type webhook struct {
	chain   string
	url     string
	signer  *webhooks.Webhook
	client  *http.Client
	timeout time.Duration
	now     func() time.Time

	// multiplexed says that the last answer came over HTTP/2. Over HTTP/1 each delivery has a
	// connection of its own: on a shared one, the second answer of a server that answers
	// twice would count as the answer to the next record, which would be lost.
	multiplexed atomic.Bool
}

func newWebhook(o Options, c Config) (*webhook, error) {
	signer, err := webhooks.NewWebhook(c.Secret)
	if err != nil {
		return nil, errors.New("the secret is not base64") // the library's error repeats part of it
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: o.Timeout}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(8)},
			MaxIdleConns:           2,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: maxAnswer,
			ForceAttemptHTTP2:      true,
		}
	}
	return &webhook{
		chain: o.Chain, url: c.URL, signer: signer, timeout: o.Timeout, now: o.Now,
		client: &http.Client{
			Transport:     o.Transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// messageID is the record's idempotency key: it depends on where the agent accepted the record
// first, on its body, and on nothing that a retry, a fork, another relay or a restored ledger
// would change. Where a disk was cloned or rolled back two records have one place.
func messageID(chain string, r *ledger.StoredRecord) string {
	epoch, seq := r.Epoch, r.Seq
	if r.Was != nil {
		epoch, seq = r.Was.Epoch, r.Was.Seq
	}
	var key []byte
	for _, s := range []string{chain, r.Agent, string(epoch)} {
		key = append(binary.BigEndian.AppendUint32(key, uint32(len(s))), s...)
	}
	body := sha256.Sum256(r.Body)
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint64(key, seq), body[:]...))
	return "msg_" + hex.EncodeToString(sum[:16])
}

// message is the body of a delivery: the same bytes at every attempt.
func message(r *ledger.StoredRecord) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a compact body keeps its bytes
	err := enc.Encode(struct {
		Type      string               `json:"type"`
		Timestamp time.Time            `json:"timestamp"`
		Data      *ledger.StoredRecord `json:"data"`
	}{string(r.Kind) + ".committed", r.Received, r})
	if err != nil {
		return nil, fmt.Errorf("encode record %d: %w", r.Pos, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// deliver posts the record once. The error is that of ctx, when it ended first.
func (w *webhook) deliver(ctx context.Context, r *ledger.StoredRecord) (outcome, error) {
	body, err := message(r)
	if err != nil {
		return outcome{verdict: refused, reason: err.Error()}, nil
	}
	id, at := messageID(w.chain, r), w.now()
	signature, err := w.signer.Sign(id, at, body)
	if err != nil {
		return outcome{}, fmt.Errorf("sign record %d: %w", r.Pos, err)
	}
	attempt, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(attempt, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return outcome{}, fmt.Errorf("deliver record %d: %w", r.Pos, withoutURL(err))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "storelay")
	req.Header.Set(webhooks.HeaderWebhookID, id)
	req.Header.Set(webhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	req.Header.Set(webhooks.HeaderWebhookSignature, signature)
	req.Close = !w.multiplexed.Load()
	resp, err := w.client.Do(req)
	if err != nil {
		w.multiplexed.Store(false)
		if ctx.Err() != nil {
			return outcome{}, ctx.Err()
		}
		return outcome{verdict: later, reason: "no answer: " + withoutURL(err).Error()}, nil
	}
	defer resp.Body.Close()
	w.multiplexed.Store(resp.ProtoMajor >= 2)
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if ctx.Err() != nil {
		return outcome{}, ctx.Err()
	}
	if err != nil { // the status alone is not an answer: what follows may say that it failed
		return outcome{verdict: later, reason: "answer broke off: " + withoutURL(err).Error()}, nil
	}
	return judge(resp.StatusCode, resp.Header, answer, at), nil
}

// judge turns an answer into an outcome.
func judge(status int, header http.Header, answer []byte, now time.Time) outcome {
	o := outcome{reason: strconv.Itoa(status), wait: retryAfter(header.Get("Retry-After"), now)}
	if text := strings.TrimSpace(strings.ToValidUTF8(string(answer[:min(len(answer), maxExcerpt)]), "")); text != "" {
		o.reason += ": " + text
	}
	switch {
	case status >= 200 && status <= 299:
		return outcome{verdict: delivered}
	case status == http.StatusGone:
		o.verdict = gone
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		o.verdict = later
	case status >= 400 && status <= 499:
		o.verdict = refused
	default:
		o.verdict = failed
	}
	return o
}

// retryAfter reads the header (RFC 9110 10.2.3: seconds, or a date); 0 when it says nothing.
// More than an hour is taken as an hour.
func retryAfter(s string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		wait = time.Duration(min(max(seconds, 0), 3600)) * time.Second
	} else if at, err := http.ParseTime(s); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), time.Hour)
}

// withoutURL takes the URL out of an error of net/http: its query may hold a secret.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// backoff is the pause after the given number of attempts of one record: doubled each time
// from least to most, of which a random half is taken off so that relays do not march in step.
func backoff(attempts int, least, most time.Duration, random func() float64) time.Duration {
	pause := least
	for i := 1; i < attempts && pause < most; i++ {
		pause *= 2
	}
	pause = min(pause, most)
	return pause - time.Duration(random()*float64(pause)/2)
}
