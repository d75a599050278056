package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

// selfSigned makes a certificate with the given URIs and its key, both PEM.
func selfSigned(t *testing.T, uris ...*url.URL) (cert *x509.Certificate, certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), URIs: uris}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err = x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func TestOriginOfReadsWhatURIWrites(t *testing.T) {
	want := protocol.Origin{Chain: "Demo_1", Store: "0001", Agent: "pc-1"}
	cert, _, _ := selfSigned(t, URI(want))
	if got, err := OriginOf(cert); err != nil || got != want {
		t.Errorf("OriginOf = %v, %v, want %v", got, err, want)
	}
}

func TestOriginOfRefusesOtherNames(t *testing.T) {
	for _, names := range [][]string{
		{}, {"https://demo/0001/pc"}, {"storelay://demo/0001"}, {"storelay://demo/0001/pc/x"}, {"storelay://demo/0001/p%23"},
		{"storelay://demo/0001/pc?x=1"}, {"storelay://u@demo/0001/pc"}, {"storelay://demo/0001/pc", "storelay://demo/0002/pc"},
	} {
		var uris []*url.URL
		for _, name := range names {
			uri, err := url.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			uris = append(uris, uri)
		}
		cert, _, _ := selfSigned(t, uris...)
		if got, err := OriginOf(cert); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("OriginOf(%v) = %v, %v, want ErrNoIdentity", names, got, err)
		}
	}
}

func TestLoadNamesTheFileThatIsWrong(t *testing.T) {
	want := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}
	_, cert, key := selfSigned(t, URI(want))
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fails := func(part string) {
		t.Helper()
		if _, _, err := Load(dir); err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "storelay-relay issue") {
			t.Errorf("err %v, want one with %q and a hint", err, part)
		}
	}
	fails(CertFile)
	write(CertFile, cert)
	fails(KeyFile)
	write(KeyFile, key)
	fails(CAFile)
	write(CAFile, []byte("no certificate"))
	fails("holds no certificate")
	write(CAFile, cert)
	origin, settings, err := Load(dir)
	if err != nil || origin != want || len(settings.Certificates) != 1 {
		t.Errorf("Load = %v, %v, want %v", origin, err, want)
	}
}
