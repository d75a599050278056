// Package ca is the relay's small certificate authority, on the standard library alone. It
// issues a certificate per agent, whose one URI says who the agent is (protocol/identity),
// the relay's own server certificate, and one for the key that signs what the relay certifies.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
)

// The files of an authority's folder.
const (
	certFile = "ca.crt"
	keyFile  = "ca.key" // 0600
)

const (
	lifetime = 20 * 365 * 24 * time.Hour // of the authority
	backdate = 24 * time.Hour            // a store PC's clock may be slow by so much
)

// A CA signs certificates. Its methods are safe for concurrent use.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer

	mu     sync.Mutex // guards signer
	signer *signer    // nil = not read yet
}

// Create makes an authority in dir, which is made with mode 0700. fs.ErrExist when there is
// one already: every agent would have to be issued anew.
func Create(dir string) (*CA, error) {
	if _, err := os.Stat(filepath.Join(dir, keyFile)); err == nil {
		return nil, fmt.Errorf("make certificate authority in %s: %w", dir, fs.ErrExist)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Storelay relay CA"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	c := &CA{dir: dir, cert: template, key: key}
	der, err := c.sign(template, key.Public())
	if err != nil {
		return nil, err
	}
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, keyFile), keyPEM, 0o600); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, certFile), c.CertPEM(), 0o644); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	if c.signer, err = c.loadSigner(); err != nil {
		return nil, err
	}
	return c, nil
}

// Load reads the authority in dir.
func Load(dir string) (*CA, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("load certificate authority: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("load certificate authority: %s holds no authority", dir)
	}
	return &CA{dir: dir, cert: pair.Leaf, key: key}, nil
}

// CertPEM is the authority's certificate, which agents trust.
func (c *CA) CertPEM() []byte { return encodeCert(c.cert.Raw) }

// IssueAgent signs a certificate for the agent: CN agent, OU store, O chain, and the URI
// that decides who it is. pub is the agent's public key; nil lets the authority draw a key,
// which is returned as PEM.
func (c *CA) IssueAgent(o protocol.Origin, validity time.Duration, pub crypto.PublicKey) (certPEM, keyPEM []byte, err error) {
	for _, id := range []string{o.Chain, o.Store, o.Agent} {
		if !protocol.ValidID(id) {
			return nil, nil, fmt.Errorf("issue certificate: %q is not an id (letters, digits, _ and -, at most 64)", id)
		}
	}
	if pub == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, fmt.Errorf("issue certificate: %w", err)
		}
		if keyPEM, err = encodeKey(key); err != nil {
			return nil, nil, err
		}
		pub = key.Public()
	}
	now := time.Now()
	der, err := c.sign(&x509.Certificate{
		Subject:   pkix.Name{CommonName: o.Agent, OrganizationalUnit: []string{o.Store}, Organization: []string{o.Chain}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, URIs: []*url.URL{identity.URI(o)},
	}, pub)
	if err != nil {
		return nil, nil, err
	}
	return encodeCert(der), keyPEM, nil
}

// IssueServer signs a certificate for the names and addresses that agents know the relay by.
func (c *CA) IssueServer(hosts []string, validity time.Duration) (tls.Certificate, error) {
	if len(hosts) == 0 {
		return tls.Certificate{}, errors.New("issue server certificate: no host names")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue server certificate: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: hosts[0]},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := c.sign(template, key.Public())
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: key}, nil
}

// ServerTLS are the settings of the door for agents: a client certificate of this authority
// is required, and it must name an agent. One that has only expired is let in, so that a
// shop that nobody looked after still delivers; Expired tells.
func (c *CA) ServerTLS(server tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{server},
		ClientAuth: tls.RequireAnyClientCert, ClientCAs: pool, // verified here below
		VerifyConnection: func(s tls.ConnectionState) error { // also on resumed sessions
			return verifyClient(pool, s.PeerCertificates, time.Now())
		},
	}
}

// verifyClient checks an agent's certificate as it stood when it was last valid.
func verifyClient(roots *x509.CertPool, chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("no client certificate")
	}
	leaf, between := chain[0], x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	if Expired(leaf, now) {
		now = leaf.NotAfter
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	_, err = identity.OriginOf(leaf)
	return err
}

// Expired says that a certificate was valid once and is no more.
func Expired(cert *x509.Certificate, now time.Time) bool { return now.After(cert.NotAfter) }

func (c *CA) sign(template *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, pub, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
