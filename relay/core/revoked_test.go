package core

import (
	"crypto/x509"
	"encoding/pem"
	"path/filepath"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// certificate is an agent's, of an authority of its own.
func certificate(t *testing.T, o protocol.Origin, validity time.Duration) *x509.Certificate {
	t.Helper()
	c, err := ca.Create(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := c.IssueAgent(o, validity, nil)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// An agent whose certificate has expired delivers, and an alarm says so once, however often it
// connects.
func TestAnAgentWithAnExpiredCertificateIsLetInAndTold(t *testing.T) {
	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "relay.db"), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer led.Close()
	pc := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}
	cert := certificate(t, pc, -time.Hour)
	for range 2 {
		r := &Relay{ledger: led, denied: ca.Denied(t.TempDir())}
		for range 2 {
			if err := r.allow(t.Context(), pc, cert); err != nil {
				t.Fatal(err)
			}
		}
	}
	alarms, err := led.Alarms(t.Context(), "demo")
	if err != nil || len(alarms) != 1 || alarms[0].Kind != ledger.AlarmCertificateExpired {
		t.Errorf("alarms %+v, %v, want one of the certificate", alarms, err)
	}
}

// The database may be an older one that was restored without our own command.
func TestADeniedAgentIsNotLetInWhateverTheLedgerSays(t *testing.T) {
	dir := t.TempDir()
	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(dir, "relay.db"), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer led.Close()
	r := &Relay{ledger: led, denied: ca.Denied(dir)}
	pc, unknown := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}, protocol.Origin{Chain: "demo", Store: "0001", Agent: "lost"}
	if err := led.RegisterAgent(t.Context(), pc); err != nil {
		t.Fatal(err)
	}
	for _, o := range []protocol.Origin{pc, unknown} {
		cert := certificate(t, o, time.Hour)
		if err := r.allow(t.Context(), o, cert); err != nil {
			t.Errorf("%s before: %v", o, err)
		}
		if err := ca.Denied(dir).Add(o, time.Now()); err != nil { // another process
			t.Fatal(err)
		}
		if err := r.allow(t.Context(), o, cert); err == nil {
			t.Errorf("%s is let in, though it is denied", o)
		}
	}
}
