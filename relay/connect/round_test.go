package connect_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/storelay/storelay/relay/connect"
	"github.com/storelay/storelay/relay/connect/connecttest"
)

func TestARoundEndsWhereRunWouldWait(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 30)
	fail := true
	receiver := connecttest.New(t, func(m connecttest.Message, _ int) connecttest.Fault {
		if nth(m) == 25 && fail {
			return connecttest.FailStored
		}
		return connecttest.None
	})
	now := time.Now() // the receiver compares signatures with the clock
	opts := quick(l, "a")
	opts.Now = func() time.Time { return now }
	opts.Transport = http.DefaultTransport
	r, err := connect.New(opts, hook("erp", receiver))
	if err != nil {
		t.Fatal(err)
	}
	next, err := r.Round(t.Context())
	if err != nil || next.Before(now) || next.After(now.Add(opts.RetryMax)) {
		t.Errorf("next at %s, %v; want within %s", next, err, opts.RetryMax)
	}
	wantRecords(t, receiver, upTo(25)...)
	if states, err := r.States(t.Context()); err != nil || states[0].Cursor != seals+24 {
		t.Errorf("%+v, %v, want the cursor behind what was taken", states, err)
	}
	fail = false
	if next, err = r.Round(t.Context()); err != nil || !next.IsZero() {
		t.Errorf("next at %s, %v, want none: all is delivered", next, err)
	}
	wantRecords(t, receiver, upTo(30)...)
	if n := receiver.Attempts(); n != 31 {
		t.Errorf("%d attempts, want 31: record 25 twice", n)
	}
}

func TestARoundOfAPausedConnectorIsDueInAnHour(t *testing.T) {
	l := openLedger(t)
	l.sell("0001", 1)
	receiver := connecttest.New(t, func(connecttest.Message, int) connecttest.Fault { return connecttest.Gone })
	now := time.Now()
	opts := quick(l, "a")
	opts.Now = func() time.Time { return now }
	r, err := connect.New(opts, hook("erp", receiver))
	if err != nil {
		t.Fatal(err)
	}
	if next, err := r.Round(t.Context()); err != nil || !next.Equal(now.Add(time.Hour)) {
		t.Errorf("next at %s, %v, want in an hour", next, err)
	}
}
