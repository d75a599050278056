package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// output runs a command line and gives what it prints.
func output(t *testing.T, args ...string) (string, error) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	before := os.Stdout
	os.Stdout = file
	defer func() { os.Stdout = before }()
	failed := run(t.Context(), args)
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), failed
}

// setUp makes a relay's folder with a store, and gives the file of a day's certificate.
func setUp(t *testing.T) (config, authority, file string) {
	t.Helper()
	dir := t.TempDir()
	config = filepath.Join(dir, "relay.yaml")
	if err := os.WriteFile(config, []byte("data: "+filepath.Join(dir, "data")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ca", "init", "-config", config},
		{"store", "set", "-config", config, "-chain", "demo", "-id", "0001", "-zone", "Europe/Stockholm", "-currency", "SEK"},
		{"issue", "-config", config, "-chain", "demo", "-store", "0001", "-agent", "pc-1", "-out", filepath.Join(dir, "identity")},
		{"roster", "set", "-config", config, "-chain", "demo", "-store", "0001", "-kind", "agent", "-id", "pc-1", "-from", "2026-01-01"},
	} {
		if _, err := output(t, args...); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
	}
	authority = filepath.Join(dir, "data", "ca")
	c, err := ca.Load(authority)
	if err != nil {
		t.Fatal(err)
	}
	led, err := ledger.Open(context.Background(), "sqlite:"+filepath.Join(dir, "data", "relay.db"), ledger.Options{CA: c, Inline: true, Now: func() time.Time { return time.Date(2026, 3, 3, 12, 0, 0, 0, time.UTC) }})
	if err != nil {
		t.Fatal(err)
	}
	defer led.Close()
	pc, epoch, day := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"}, protocol.Epoch(strings.Repeat("ab", 16)), protocol.Day{Year: 2026, Month: 3, Date: 2}
	seal := protocol.Record{Seq: 1, Kind: protocol.KindSeal, At: "2026-03-02T12:00:00+01:00", Day: day, Body: []byte(`{"bootId":"b","before":null}`)}
	answer, err := led.Commit(t.Context(), pc, protocol.Batch{Epoch: epoch, First: 1, Prev: protocol.Genesis(pc.Chain, pc.Store, pc.Agent, epoch), Records: []protocol.Record{seal}})
	if err != nil || answer.Verdict != protocol.VerdictAck {
		t.Fatalf("commit: %+v, %v", answer, err)
	}
	text, err := led.DayCertificate(t.Context(), "demo", "0001", protocol.Day{Year: 2026, Month: 3, Date: 2}, 0)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "day.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return config, filepath.Join(authority, "ca.crt"), file
}

func TestVerifySaysWhatACertificateStates(t *testing.T) {
	config, authority, file := setUp(t)
	text, err := output(t, "verify", "-ca", authority, file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"The signature holds", "business day 2026-03-02: INCOMPLETE", "  - agent pc-1: no mark of this day", "Version 1,", "Totals: unproven"} {
		if !strings.Contains(text, want) {
			t.Errorf("verify says\n%s\nwithout %q", text, want)
		}
	}
	text, err = output(t, "roster", "list", "-config", config, "-chain", "demo", "-store", "0001", "-day", "2026-03-02")
	if err != nil || !strings.Contains(text, "pc-1") {
		t.Errorf("roster: %s, %v", text, err)
	}
}

func TestIssueKeepsTheCertificateForWhatTheAgentWillSign(t *testing.T) {
	config, _, _ := setUp(t)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(filepath.Dir(config), "data", "relay.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var der []byte
	if err := db.QueryRow("SELECT der FROM agent_certificates WHERE store = '0001' AND agent = 'pc-1'").Scan(&der); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(config), "identity", "agent.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(text); !bytes.Equal(block.Bytes, der) {
		t.Error("another certificate is kept than was issued")
	}
}

func TestVerifyFailsForWhatNobodySigned(t *testing.T) {
	_, authority, file := setUp(t)
	_, foreign, _ := setUp(t)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	forged := filepath.Join(t.TempDir(), "forged.json")
	if err := os.WriteFile(forged, []byte(strings.Replace(string(text), "2026-03-02", "2026-03-01", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"changed":           {"-ca", authority, forged},
		"another authority": {"-ca", foreign, file},
		"no authority":      {"-ca", filepath.Join(t.TempDir(), "ca.crt"), file},
		"no file":           {"-ca", authority, filepath.Join(t.TempDir(), "day.json")},
		"two files":         {"-ca", authority, file, file},
	} {
		if text, err := output(t, append([]string{"verify"}, args...)...); err == nil || text != "" {
			t.Errorf("%s: says %q, %v, want an error alone", name, text, err)
		}
	}
}

func TestAuditEndsWithAnErrorWhenItFindsSomething(t *testing.T) {
	config, _, _ := setUp(t)
	text, err := output(t, "audit", "-config", config, "-chain", "demo")
	if err != nil || !strings.Contains(text, "1 certificates hold") || !strings.Contains(text, "nothing was changed") {
		t.Errorf("an untouched ledger: %s, %v", text, err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(filepath.Dir(config), "data", "relay.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE day_certificates SET state = 'complete'"); err != nil {
		t.Fatal(err)
	}
	text, err = output(t, "audit", "-config", config)
	if err == nil || !strings.Contains(text, "chain demo, store 0001: certificate: certificate of 2026-03-02, version 1: its row says something else") {
		t.Errorf("a changed one: %s, %v, want the finding and an error", text, err)
	}
	for _, args := range [][]string{{"-chain", "other"}, {"-chain", "demo", "-store", "other"}} {
		if _, err := output(t, append([]string{"audit", "-config", config}, args...)...); !errors.Is(err, ledger.ErrNotFound) {
			t.Errorf("%q, which is not there: %v", args, err)
		}
	}
}

// Two more epochs say that they are the first of an agent that has one, and nobody has signed any.
func TestAuditTrustsAlarmsOnlyWhenItIsTold(t *testing.T) {
	config, _, _ := setUp(t)
	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(filepath.Dir(config), "data", "relay.db"), ledger.Options{Inline: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	from := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"}
	for _, epoch := range []protocol.Epoch{protocol.Epoch(strings.Repeat("1", 32)), protocol.Epoch(strings.Repeat("2", 32))} {
		first := protocol.Record{Seq: 1, Kind: protocol.KindSeal, At: "2026-03-02T12:00:00+01:00", Day: protocol.Day{Year: 2026, Month: 3, Date: 2}, Body: []byte(`{"bootId":"x","before":null}`)}
		batch := protocol.Batch{Epoch: epoch, First: 1, Prev: protocol.Genesis(from.Chain, from.Store, from.Agent, epoch), Records: []protocol.Record{first}}
		if answer, err := led.Commit(t.Context(), from, batch); err != nil || answer.Verdict != protocol.VerdictAck {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
	if err := led.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := output(t, "audit", "-config", config)
	if err == nil || !strings.Contains(text, "-trust-alarms lets them be") {
		t.Errorf("untold: %s, %v", text, err)
	}
	text, err = output(t, "audit", "-config", config, "-trust-alarms")
	if err != nil || !strings.Contains(text, "2 seals and records in quarantine rest on the ledger's own word alone") || !strings.Contains(text, "says that it is the agent's first, and it is not") {
		t.Errorf("told to: %s, %v", text, err)
	}
}

func TestSettleAndVerifyShowWhatHeadOfficeKnows(t *testing.T) {
	config, authority, file := setUp(t)
	on := []string{"-config", config, "-chain", "demo", "-store", "0001", "-day", "2026-03-02"}
	settle := func(verb string, more ...string) (string, error) {
		return output(t, append(append([]string{"settle", verb}, on...), more...)...)
	}
	list, err := settle("list")
	id, what, _ := strings.Cut(strings.TrimSpace(list), "  ")
	if err != nil || strings.Contains(what, "\n") || !strings.Contains(what, "agent pc-1: no mark") {
		t.Fatalf("list %q, %v; want one reason", list, err)
	}
	for _, wrong := range [][]string{{"-reason", "x", "-by", "Berit", "-why", "x"}, {"-reason", id, "-by", "Berit"}, {"-reason", id, "-why", "x"}} {
		if _, err := settle("add", wrong...); err == nil {
			t.Errorf("settle add %q is taken", wrong)
		}
	}
	if _, err := settle("add", "-reason", id, "-by", "Berit", "-why", "the PC was stolen"); err != nil {
		t.Fatal(err)
	}
	if list, err = settle("list"); err != nil || !strings.Contains(list, "settled by Berit on ") || !strings.Contains(list, "(command line): the PC was stolen") {
		t.Errorf("list %q, %v", list, err)
	}
	c, err := ca.Load(filepath.Dir(authority))
	if err != nil {
		t.Fatal(err)
	}
	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(filepath.Dir(config), "data", "relay.db"), ledger.Options{CA: c})
	if err != nil {
		t.Fatal(err)
	}
	text, err := led.DayCertificate(t.Context(), "demo", "0001", protocol.Day{Year: 2026, Month: 3, Date: 2}, 0)
	if err := errors.Join(err, led.Close(), os.WriteFile(file, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	said, err := output(t, "verify", "-ca", authority, file)
	for _, want := range []string{"business day 2026-03-02: SETTLED", "It is NOT PROVEN to be complete", "  - " + what, "    settled by Berit on ", ": the PC was stolen"} {
		if err != nil || !strings.Contains(said, want) {
			t.Errorf("verify says %q, %v; want %q", said, err, want)
		}
	}
	// Nobody makes more of it by hand.
	if err := os.WriteFile(file, bytes.Replace(text, []byte(`"state":"settled"`), []byte(`"state":"complete"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if said, err := output(t, "verify", "-ca", authority, file); err == nil || strings.Contains(said, "2026-03-02") {
		t.Errorf("a settled day made complete: %q, %v", said, err)
	}
	if _, err := settle("delete", "-reason", id); err != nil {
		t.Fatal(err)
	}
	if list, err = settle("list"); err != nil || strings.Contains(list, "settled") {
		t.Errorf("after it was taken back: %q, %v", list, err)
	}
}
