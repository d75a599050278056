package ca

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
)

// signerFile holds the key that signs what the relay certifies, and its certificate, in one
// file, so that there is never one without the other. Mode 0600.
const signerFile = "signer.pem"

// documentSigning is the purpose of the signer's certificate (RFC 9336). It is neither that of
// an agent nor that of a server, and no agent's or server's certificate has it.
var documentSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 36}

// ErrSignature means that something was not signed with a key that the authority certified
// for it.
var ErrSignature = errors.New("the signature does not hold")

// A signer is the key that signs certificates of completeness.
type signer struct {
	key  ed25519.PrivateKey
	cert []byte // DER
}

// Sign signs a message with Ed25519 and gives the certificate (DER) of the key. An authority
// that was made before there were such keys gets one at the first call.
func (c *CA) Sign(message []byte) (signature, certificate []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.signer == nil {
		if c.signer, err = c.loadSigner(); err != nil {
			return nil, nil, err
		}
	}
	return ed25519.Sign(c.signer.key, message), c.signer.cert, nil
}

// loadSigner reads the folder's signer, or makes it. Of several processes that make one at
// once all end up with the same.
func (c *CA) loadSigner() (*signer, error) {
	path := filepath.Join(c.dir, signerFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := c.makeSigner(path); err != nil {
			return nil, fmt.Errorf("make the signing key in %s: %w", c.dir, err)
		}
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	s, err := parseSigner(text)
	if err == nil {
		message := []byte("is the key that of the certificate, and the certificate ours")
		err = c.Roots().Signed(s.cert, message, ed25519.Sign(s.key, message))
	}
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w (move the file away and a new one is made; what the old one signed stays valid)", path, err)
	}
	return s, nil
}

func (c *CA) makeSigner(path string) error {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	cert, err := c.sign(&x509.Certificate{
		Subject:   pkix.Name{CommonName: "Storelay relay, certificates of completeness"},
		NotBefore: time.Now().Add(-backdate), NotAfter: c.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{documentSigning},
		BasicConstraintsValid: true,
	}, public)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), encodeCert(cert)...)
	err = writeOnce(path, text)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	return err
}

// writeOnce makes a file of mode 0600 with all of its content or not at all; fs.ErrExist when
// there is one already.
func writeOnce(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(text); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func parseSigner(text []byte) (*signer, error) {
	s := &signer{}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			s.key, _ = key.(ed25519.PrivateKey)
		case "CERTIFICATE":
			s.cert = block.Bytes
		}
	}
	if s.key == nil || s.cert == nil {
		return nil, errors.New("want an Ed25519 key and its certificate")
	}
	return s, nil
}

// Roots are certificate authorities that somebody trusts: all that checking needs.
type Roots struct{ pool *x509.CertPool }

// Roots is the authority alone.
func (c *CA) Roots() *Roots {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return &Roots{pool}
}

// CertFile is the path of the certificate of the authority in dir.
func CertFile(dir string) string { return filepath.Join(dir, certFile) }

// ReadRoots reads a PEM file of authorities, such as an agent's ca.crt.
func ReadRoots(file string) (*Roots, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read certificate authority: %s holds no certificate in PEM", file)
	}
	return &Roots{pool}, nil
}

// Agent gives the agent that a certificate of the authorities names, as it stood when it was
// issued: what an agent signed stays signed when its certificate expires.
func (r *Roots) Agent(cert *x509.Certificate) (protocol.Origin, error) {
	if err := verifyClient(r.pool, []*x509.Certificate{cert}, cert.NotBefore); err != nil {
		return protocol.Origin{}, err
	}
	return identity.OriginOf(cert)
}

// Signed checks that message was signed with the key of certificate (DER), and that the
// authorities certified that key for signing documents. Other certificates of theirs, those of
// agents and servers, do not count. Nor do dates: what was signed once is kept for as long as
// books are kept, and whoever has the key can write any date. Errors are ErrSignature.
func (r *Roots) Signed(certificate, message, signature []byte) error {
	cert, err := x509.ParseCertificate(certificate)
	if err != nil {
		return fmt.Errorf("%w: its certificate cannot be read: %w", ErrSignature, err)
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || cert.IsCA || !slices.ContainsFunc(cert.UnknownExtKeyUsage, documentSigning.Equal) {
		return fmt.Errorf("%w: its certificate is not one for signing documents", ErrSignature)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: r.pool, CurrentTime: cert.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("%w: its certificate does not come from the certificate authority: %w", ErrSignature, err)
	}
	if !ed25519.Verify(key, message, signature) {
		return fmt.Errorf("%w: it is not of this text", ErrSignature)
	}
	return nil
}
