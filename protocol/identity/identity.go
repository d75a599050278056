// Package identity reads who an agent is from its certificate, and makes the TLS settings of
// the agent's side. The relay's certificate authority (relay/ca) writes what this package
// reads. Standard library only.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/storelay/storelay/protocol"
)

// The files of an agent's identity folder.
const (
	CertFile = "agent.crt" // PEM, the agent's certificate
	KeyFile  = "agent.key" // PEM, its private key, readable by the agent alone
	CAFile   = "ca.crt"    // PEM, the relay's certificate authorities
)

// URI is the name that a certificate carries: storelay://chain/store/agent.
func URI(o protocol.Origin) *url.URL {
	return &url.URL{Scheme: "storelay", Host: o.Chain, Path: "/" + o.Store + "/" + o.Agent}
}

// ErrNoIdentity means that a certificate does not name an agent.
var ErrNoIdentity = errors.New("certificate names no agent")

// OriginOf reads the origin from a certificate's one storelay: URI. It does not verify the
// certificate.
func OriginOf(cert *x509.Certificate) (protocol.Origin, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "storelay" {
		return protocol.Origin{}, fmt.Errorf("%w: want one URI storelay://chain/store/agent", ErrNoIdentity)
	}
	uri := cert.URIs[0]
	store, agent, _ := strings.Cut(strings.TrimPrefix(uri.Path, "/"), "/")
	o := protocol.Origin{Chain: uri.Host, Store: store, Agent: agent}
	if !protocol.ValidID(o.Chain) || !protocol.ValidID(o.Store) || !protocol.ValidID(o.Agent) || uri.String() != URI(o).String() {
		return protocol.Origin{}, fmt.Errorf("%w: %q is not storelay://chain/store/agent", ErrNoIdentity, uri)
	}
	return o, nil
}

// Load reads an identity folder: who the agent is, and the TLS settings with which it shows
// that to a relay. The relay's certificate must come from the folder's authorities.
func Load(dir string) (protocol.Origin, *tls.Config, error) {
	const hint = "copy the folder that `storelay-relay issue` made"
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return protocol.Origin{}, nil, fmt.Errorf("load identity: %w (%s)", err, hint)
	}
	origin, err := OriginOf(pair.Leaf)
	if err != nil {
		return protocol.Origin{}, nil, fmt.Errorf("load identity %s: %w (%s)", dir, err, hint)
	}
	authorities, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return protocol.Origin{}, nil, fmt.Errorf("load identity: %w (%s)", err, hint)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return protocol.Origin{}, nil, fmt.Errorf("load identity: %s holds no certificate (%s)", filepath.Join(dir, CAFile), hint)
	}
	return origin, &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
	}, nil
}
