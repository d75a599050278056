package ca

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
)

func create(t *testing.T) (*CA, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	c, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

func TestAnIssuedCertificateNamesItsAgent(t *testing.T) {
	_, dir := create(t)
	c, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"}
	cert, key, err := c.IssueAgent(want, time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := identity.OriginOf(pair.Leaf); err != nil || got != want {
		t.Errorf("origin %v, %v, want %v", got, err, want)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CertPEM())
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("an agent's certificate may serve")
	}
	other, _ := create(t)
	foreign := x509.NewCertPool()
	foreign.AppendCertsFromPEM(other.CertPEM())
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: foreign}); err == nil {
		t.Error("another authority vouches for it")
	}
}

func TestOneAuthorityPerFolderWithAPrivateKey(t *testing.T) {
	_, dir := create(t)
	if _, err := Create(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("err %v, want exist", err)
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file %v, %v, want mode 0600", info.Mode(), err)
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("loaded an authority from an empty folder")
	}
}

func TestBadNamesAreNotIssued(t *testing.T) {
	c, _ := create(t)
	for _, o := range []protocol.Origin{{}, {Chain: "a/b", Store: "1", Agent: "x"}, {Chain: "a", Store: "1", Agent: "x#"}} {
		if _, _, err := c.IssueAgent(o, time.Hour, nil); err == nil {
			t.Errorf("%v was issued a certificate", o)
		}
	}
	if _, err := c.IssueServer(nil, time.Hour); err == nil {
		t.Error("a server without a name was issued a certificate")
	}
}

func TestServerCertificateIsForItsHosts(t *testing.T) {
	c, _ := create(t)
	server, err := c.IssueServer([]string{"relay.example.com", "127.0.0.1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(server.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{"relay.example.com": true, "127.0.0.1": true, "evil.example.com": false} {
		if got := leaf.VerifyHostname(host) == nil; got != want {
			t.Errorf("%s: valid %v, want %v", host, got, want)
		}
	}
	if block, _ := pem.Decode(c.CertPEM()); block == nil {
		t.Error("authority's certificate is not PEM")
	}
}

// TestAnAgentIsLetInWithACertificateThatHasOnlyExpired shakes hands over a pipe with each
// kind of certificate.
func TestAnAgentIsLetInWithACertificateThatHasOnlyExpired(t *testing.T) {
	c, _ := create(t)
	other, _ := create(t)
	server, err := c.IssueServer([]string{"relay"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	agent := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"}
	issue := func(by *CA, validity time.Duration) tls.Certificate {
		cert, key, err := by.IssueAgent(agent, validity, nil)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	serverAsClient, err := c.IssueServer([]string{"relay"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CertPEM())
	for name, tt := range map[string]struct {
		pair tls.Certificate
		ok   bool
	}{
		"valid":               {issue(c, time.Hour), true},
		"expired":             {issue(c, -time.Hour), true},
		"expired, of another": {issue(other, -time.Hour), false},
		"valid, of another":   {issue(other, time.Hour), false},
		"a server's":          {serverAsClient, false},
		"none":                {tls.Certificate{}, false},
	} {
		near, far := net.Pipe()
		failed := make(chan error, 1)
		go func() {
			conn := tls.Server(far, c.ServerTLS(server))
			failed <- conn.Handshake()
			far.Close()
		}()
		config := &tls.Config{RootCAs: pool, ServerName: "relay", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tt.pair, nil }}
		client := tls.Client(near, config)
		_ = client.Handshake()              // the server's word counts
		_, _ = client.Read(make([]byte, 1)) // its refusal comes after the handshake
		near.Close()
		if err := <-failed; (err == nil) != tt.ok {
			t.Errorf("%s: %v, want let in: %v", name, err, tt.ok)
		}
	}
}
