package protocol

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
)

// A DayMark is the body of a KindDayMark record: the agent's word, signed with the key of its
// certificate, that everything it accepted on the business day, and before it, stands at or
// before Head. It is made when the day rolls over, or at the next start.
type DayMark struct {
	Day         Day    `json:"day"`
	Head        Mark   `json:"head"`        // the record before the mark
	Certificate Hash   `json:"certificate"` // SHA-256 of the signing certificate, DER
	Signature   []byte `json:"signature"`   // ECDSA, ASN.1, over the SHA-256 of Message
}

// ErrSignature means that a day mark was not signed with the key of its certificate.
var ErrSignature = errors.New("the signature is not the agent's")

// Message is what is signed: a fixed text, then chain, store, agent, day, epoch, seq as
// decimal digits and hash in hex, each on a line of its own.
func (m *DayMark) Message(o Origin) []byte {
	return fmt.Appendf(nil, "storelay day mark 1\n%s\n%s\n%s\n%s\n%s\n%d\n%s\n", o.Chain, o.Store, o.Agent, m.Day, m.Head.Epoch, m.Head.Through, m.Head.Hash)
}

// SignDayMark makes the mark of an agent's day. cert is the agent's certificate, DER; key is
// its ECDSA key.
func SignDayMark(o Origin, day Day, head Mark, cert []byte, key crypto.Signer) (DayMark, error) {
	m := DayMark{Day: day, Head: head, Certificate: sha256.Sum256(cert)}
	digest := sha256.Sum256(m.Message(o))
	var err error
	if m.Signature, err = key.Sign(nil, digest[:], crypto.SHA256); err != nil { // nil: deterministic, RFC 6979
		return DayMark{}, fmt.Errorf("sign day mark: %w", err)
	}
	return m, nil
}

// DecodeDayMark reads the body of a KindDayMark record. Errors are Faults.
func DecodeDayMark(body []byte) (DayMark, error) {
	var m DayMark
	if err := json.Unmarshal(body, &m); err != nil {
		return DayMark{}, typeFault(err)
	}
	var faults Faults
	if m.Day.IsZero() {
		faults.Add("day", "", "missing")
	}
	if !m.Head.Epoch.Valid() || m.Head.Through == 0 {
		faults.Add("head", "", "want the position of a record, got %s/%d", m.Head.Epoch, m.Head.Through)
	}
	return m, faults.Err()
}

// Verify checks the signature with the certificate; ErrSignature when it, or the certificate,
// is another. That the certificate itself is to be trusted is for the caller to know.
func (m *DayMark) Verify(o Origin, cert *x509.Certificate) error {
	if Hash(sha256.Sum256(cert.Raw)) != m.Certificate {
		return fmt.Errorf("%w: another certificate", ErrSignature)
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("%w: the certificate has no ECDSA key", ErrSignature)
	}
	digest := sha256.Sum256(m.Message(o))
	if !ecdsa.VerifyASN1(key, digest[:], m.Signature) {
		return ErrSignature
	}
	return nil
}
