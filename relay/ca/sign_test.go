package ca

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

func TestWhatTheAuthoritySignsHoldsForItsTextAndItsAuthorityAlone(t *testing.T) {
	c, dir := create(t)
	other, _ := create(t)
	text := []byte("store 0001 is complete")
	signature, cert, err := c.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	roots, err := ReadRoots(CertFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := roots.Signed(cert, text, signature); err != nil {
		t.Errorf("its own: %v", err)
	}
	flipped := slices.Clone(signature)
	flipped[7] ^= 1
	for name, err := range map[string]error{
		"another text":      roots.Signed(cert, []byte("store 0002 is complete"), signature),
		"another signature": roots.Signed(cert, text, flipped),
		"another authority": other.Roots().Signed(cert, text, signature),
		"no certificate":    roots.Signed([]byte("x"), text, signature),
	} {
		if !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
}

// A key that the authority certified for something else must not certify a day.
func TestOnlyAKeyThatIsForSigningDocumentsSigns(t *testing.T) {
	c, _ := create(t)
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agent, _, err := c.IssueAgent(protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}, time.Hour, public)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(agent)
	self := &x509.Certificate{SerialNumber: c.cert.SerialNumber, Subject: c.cert.Subject, NotBefore: c.cert.NotBefore, NotAfter: c.cert.NotAfter,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{documentSigning}}
	own, err := x509.CreateCertificate(rand.Reader, self, self, public, key)
	if err != nil {
		t.Fatal(err)
	}
	text := []byte("x")
	for name, cert := range map[string][]byte{"an agent's": block.Bytes, "its own": own} {
		if err := c.Roots().Signed(cert, text, ed25519.Sign(key, text)); !errors.Is(err, ErrSignature) {
			t.Errorf("%s certificate: got %v, want ErrSignature", name, err)
		}
	}
}

func TestTheSigningKeyIsNeitherAnAgentNorAServer(t *testing.T) {
	c, _ := create(t)
	_, der, err := c.Sign([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Roots().Agent(cert); err == nil {
		t.Error("it passes for an agent's certificate")
	}
	settings := c.ServerTLS(tls.Certificate{})
	if err := settings.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}); err == nil {
		t.Error("the door for agents lets it in")
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: c.Roots().pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("it may serve")
	}
}

// An authority from before gets its key when it is first needed, and all who ask at once get
// the same; it stays the same after a start.
func TestAnOlderAuthorityGetsOneSigningKey(t *testing.T) {
	_, dir := create(t)
	if err := os.Remove(filepath.Join(dir, signerFile)); err != nil {
		t.Fatal(err)
	}
	var g sync.WaitGroup
	certs := make([][]byte, 8)
	for i := range certs {
		g.Go(func() {
			c, err := Load(dir)
			if err == nil {
				_, certs[i], err = c.Sign([]byte("x"))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	for _, cert := range certs {
		if !slices.Equal(cert, certs[0]) {
			t.Fatal("there are several keys")
		}
	}
	info, err := os.Stat(filepath.Join(dir, signerFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file %v, %v, want mode 0600", info, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, signerFile+".*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestAForeignSigningKeyIsNamed(t *testing.T) {
	_, dir := create(t)
	_, other := create(t)
	text, err := os.ReadFile(filepath.Join(other, signerFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"foreign": text, "empty": nil} {
		if err := os.WriteFile(filepath.Join(dir, signerFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Sign([]byte("x")); err == nil {
			t.Errorf("%s: signs", name)
		}
	}
}

func TestAnAgentsCertificateCountsAlsoWhenItHasExpired(t *testing.T) {
	c, _ := create(t)
	other, _ := create(t)
	want := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}
	text, _, err := c.IssueAgent(want, -time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Roots().Agent(cert); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := other.Roots().Agent(cert); err == nil {
		t.Error("another authority vouches for it")
	}
}
