// Package connect delivers a chain's records to other systems: every connector has its own
// durable cursor in the ledger and gets the records that it asked for in the order of their
// positions, at least once, each with an id that stays the same over retries, over relays and
// over a restore, so that the receiver can tell a repeat.
//
// # What happens to a failure
//
// No answer, 408, 425, 429 and 503 say nothing about the record: it is tried again for ever,
// with pauses that grow from 1 s to 5 min, or as long as Retry-After asks. Other answers from
// 300 up to 399 and from 500 on are tried again too, until the record is older in trying than
// Config.GiveUp; then it becomes a dead letter. Other 4xx refuse the record for good: it
// becomes a dead letter at once, and the next one is delivered. 410, and twenty refusals in a
// row without a success between, pause the connector: the record at hand stays, and is tried
// once an hour, or at Runner.Resume.
package connect

import (
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// TypeWebhook is the connector that posts each record to a URL, signed as Standard Webhooks
// says (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
const TypeWebhook = "webhook"

// Where a connector that the ledger has no cursor of begins.
const (
	StartBeginning = "beginning" // also ""
	StartNow       = "now"
)

// A Config is one connector.
type Config struct {
	Name   string          // unique in the chain; the ledger keeps the cursor under it
	Type   string          // webhook
	URL    string          // http or https, without user and fragment
	Secret string          // whsec_ and 24 to 64 bytes in base64; never logged
	Kinds  []protocol.Kind // none = transactions, footfall counts, drawer events and device states
	Stores []string        // none = all
	Start  string          // beginning (also "") or now
	GiveUp time.Duration   // how long a record that the receiver fails on is tried; 0 = 24 h
}

// LogValue keeps the secret, and what a URL may hold of one, out of the log.
func (c Config) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", c.Name), slog.String("type", c.Type), slog.String("host", c.host()))
}

// Validate returns all that is wrong with the connector, or nil.
func (c *Config) Validate() protocol.Faults {
	var f protocol.Faults
	if !protocol.ValidID(c.Name) {
		f.Add("name", "letters, digits, _ and -, at most 64", "not an id: %q", c.Name)
	}
	if c.Type != TypeWebhook {
		f.Add("type", "", "want webhook, got %q", c.Type)
	}
	switch u, err := url.Parse(c.URL); {
	case err != nil: // the error repeats the URL, which may hold a secret
		f.Add("url", "https://erp.example/storelay", "not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		f.Add("url", "https://erp.example/storelay", "want http or https, got %q", u.Scheme)
	case u.Hostname() == "":
		f.Add("url", "https://erp.example/storelay", "names no host")
	case u.User != nil || u.Fragment != "":
		f.Add("url", "deliveries are signed; leave user, password and #fragment out", "want a URL without user and fragment")
	}
	if key, err := secretKey(c.Secret); err != nil {
		f.Add("secret", "whsec_ and 24 to 64 random bytes in base64: printf whsec_; openssl rand -base64 32", "not a signing secret")
	} else if len(key) < 24 || len(key) > 64 {
		f.Add("secret", "printf whsec_; openssl rand -base64 32", "has %d bytes, want 24 to 64", len(key))
	}
	for i, kind := range c.Kinds {
		if !slices.Contains(businessKinds(), kind) && kind != protocol.KindSeal && kind != protocol.KindDayMark {
			f.Add(fmt.Sprintf("kinds[%d]", i), "transaction, footfallCount, drawerEvent, cashIn, deviceState, dayMark or seal", "unknown kind %q", kind)
		}
	}
	for i, store := range c.Stores {
		if !protocol.ValidID(store) {
			f.Add(fmt.Sprintf("stores[%d]", i), "letters, digits, _ and -, at most 64", "not an id: %q", store)
		}
	}
	switch c.Start {
	case "", StartBeginning, StartNow:
	default:
		f.Add("start", "", "want beginning or now, got %q", c.Start)
	}
	if c.GiveUp < 0 {
		f.Add("giveUp", "", "want 0 or more, got %s", c.GiveUp)
	}
	return f
}

func (c *Config) host() string {
	u, err := url.Parse(c.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

func secretKey(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(secret, "whsec_")
	if !ok {
		return nil, fmt.Errorf("no prefix whsec_")
	}
	return base64.StdEncoding.DecodeString(text)
}

func businessKinds() []protocol.Kind {
	return []protocol.Kind{protocol.KindTransaction, protocol.KindFootfall, protocol.KindDrawer, protocol.KindCashIn, protocol.KindDevice}
}

// wants says whether the record passes the connector's filters.
func (c *Config) wants(r *ledger.StoredRecord) bool {
	kinds := c.Kinds
	if len(kinds) == 0 {
		kinds = businessKinds()
	}
	return slices.Contains(kinds, r.Kind) && (len(c.Stores) == 0 || slices.Contains(c.Stores, r.Store))
}
