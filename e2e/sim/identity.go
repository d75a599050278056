package sim

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/relay/ca"
)

// writeIdentity writes the folder that shows who an agent is. Its keys follow from its name,
// so that what it signs is the same in every run.
func writeIdentity(dir string, o protocol.Origin) error {
	authority, root, rootDER, err := makeRoot()
	if err != nil {
		return err
	}
	key, err := keyOf(o.String())
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: o.Agent}, NotBefore: validFrom(), NotAfter: validTo(),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, URIs: []*url.URL{identity.URI(o)}}
	leafDER, err := x509.CreateCertificate(nil, leaf, root, key.Public(), authority)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(dir, map[string]*pem.Block{
		identity.CertFile: {Type: "CERTIFICATE", Bytes: leafDER}, identity.KeyFile: {Type: "PRIVATE KEY", Bytes: keyDER}, identity.CAFile: {Type: "CERTIFICATE", Bytes: rootDER},
	})
}

// makeRoot makes the authority that certifies all agents.
func makeRoot() (*ecdsa.PrivateKey, *x509.Certificate, []byte, error) {
	key, err := keyOf("authority")
	if err != nil {
		return nil, nil, nil, err
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "simulated CA"}, NotBefore: validFrom(), NotAfter: validTo(),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, root, root, key.Public(), key)
	return key, root, der, err
}

// openAuthority gives the relay's own view of that authority.
func openAuthority(dir string) (*ca.CA, error) {
	key, _, der, err := makeRoot()
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := writePEM(dir, map[string]*pem.Block{"ca.crt": {Type: "CERTIFICATE", Bytes: der}, "ca.key": {Type: "PRIVATE KEY", Bytes: keyDER}}); err != nil {
		return nil, err
	}
	return ca.Load(dir)
}

func writePEM(dir string, files map[string]*pem.Block) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, block := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// certificateOf is what an agent shows when it connects.
func certificateOf(dir string) (*x509.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, identity.CertFile), filepath.Join(dir, identity.KeyFile))
	return pair.Leaf, err
}

func keyOf(name string) (*ecdsa.PrivateKey, error) {
	sum := sha256.Sum256([]byte("storelay simulation " + name))
	return ecdsa.ParseRawPrivateKey(elliptic.P256(), sum[:])
}

func validFrom() time.Time { return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) }
func validTo() time.Time   { return time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC) }

func mustJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // of what the simulation made itself
	}
	return text
}
