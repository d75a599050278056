package protocol

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/big"
	"testing"
)

func certificate(t *testing.T) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func TestADayMarkHoldsForItsAgentAndItsWordsAlone(t *testing.T) {
	key, cert := certificate(t)
	o := Origin{Chain: "c", Store: "0001", Agent: "pc"}
	day, err := ParseDay("2026-11-21")
	if err != nil {
		t.Fatal(err)
	}
	made, err := SignDayMark(o, day, Mark{Epoch: epochA, Through: 7, Hash: Hash{3}}, cert.Raw, key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	mark, err := DecodeDayMark(body)
	if err != nil {
		t.Fatal(err)
	}
	if err := mark.Verify(o, cert); err != nil {
		t.Errorf("its own: %v", err)
	}
	_, other := certificate(t)
	for name, check := range map[string]func() error{
		"another certificate": func() error { return mark.Verify(o, other) },
		"another agent":       func() error { return mark.Verify(Origin{"c", "0001", "pc2"}, cert) },
		"another day":         func() error { m := mark; m.Day = m.Day.AddDays(1); return m.Verify(o, cert) },
		"another place":       func() error { m := mark; m.Head.Through++; return m.Verify(o, cert) },
		"another hash":        func() error { m := mark; m.Head.Hash[0]++; return m.Verify(o, cert) },
	} {
		if err := check(); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
}

func TestADayMarkWithoutAPlaceIsRefused(t *testing.T) {
	for _, body := range []string{`{}`, `{"day":"2026-11-21"}`, `{"day":"2026-11-21","head":{"epoch":"x","through":1,"hash":"` + Hash{}.String() + `"}}`, `[]`} {
		if m, err := DecodeDayMark([]byte(body)); err == nil {
			t.Errorf("%s: got %+v, want an error", body, m)
		}
	}
}
