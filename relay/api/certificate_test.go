package api

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// A till counts what it does beside selling with the same numbers: they are no holes, and no
// turnover.
func TestBEY01ControlTransactionsAreNoHoles(t *testing.T) {
	s := newShop(t)
	control := func(what string) {
		s.numbers["1"]++
		s.sell(saturday, func(t *protocol.Transaction) {
			t.Workstation, t.Sequence, t.Type, t.Control = "1", s.numbers["1"], protocol.TypeControl, what
		})
	}
	control("tillOpen")
	s.trade(saturday)
	control("noSale")
	s.sellAt("1", saturday)
	control("tillClose")
	s.mark(saturday)
	c := s.certificate(certificatePath)
	till := ledger.TillDay{Workstation: "1", Expected: true, First: 4, Last: 10, Count: 7, Missing: []ledger.NumberRange{}, Numbering: "continued"}
	if c.State != ledger.DayComplete || !reflect.DeepEqual(c.Tills[0], till) {
		t.Errorf("state %s %+v, tills %+v, want a complete day with %+v", c.State, c.Reasons, c.Tills, till)
	}
	kpis, err := s.b.ledger.KPIs(t.Context(), chain, "0001", saturday, saturday)
	sold := int64(0)
	for _, k := range kpis {
		sold += k.SalesTransactions
	}
	if err != nil || sold != 7 {
		t.Errorf("KPIs %+v, %v, want 7 sales", kpis, err)
	}
}

func TestBEY01ACompleteDayIsCertified(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	first := s.file(certificatePath)
	c, err := ledger.ReadDayCertificate(first, s.roots())
	if err != nil {
		t.Fatal(err)
	}
	if c.State != ledger.DayComplete || c.Proof != ledger.Unproven || c.ProofReason == "" || c.Version != 1 || c.Restates != nil || c.Chain != chain || c.Store != "0001" || c.Day != saturday {
		t.Errorf("certificate %+v, want version 1 of a complete, unproven day", c)
	}
	if len(c.Agents) != 1 || !c.Agents[0].Signed || !c.Agents[0].Complete || c.Agents[0].Mark.Head.Through != s.seq-1 {
		t.Errorf("agents %+v", c.Agents)
	}
	till := ledger.TillDay{Workstation: "1", Expected: true, First: 4, Last: 6, Count: 3, Missing: []ledger.NumberRange{}, Numbering: "continued"}
	if len(c.Tills) != 2 || !reflect.DeepEqual(c.Tills[0], till) {
		t.Errorf("tills %+v, want first %+v", c.Tills, till)
	}
	door := ledger.CounterDay{Counter: "door", Expected: true, Seconds: 86400, Covered: 86400, Permille: 1000, Counts: 1, Gaps: []ledger.TimeRange{}}
	if len(c.Counters) != 1 || !reflect.DeepEqual(c.Counters[0], door) {
		t.Errorf("counters %+v, want %+v", c.Counters, door)
	}
	if want := []ledger.KindCount{{Kind: "dayMark", Count: 1}, {Kind: "footfallCount", Count: 1}, {Kind: "transaction", Count: 6}}; !reflect.DeepEqual(c.Records, want) {
		t.Errorf("records %v, want %v", c.Records, want)
	}

	// As long as nothing changes it is the same file, whoever asks.
	s.clock.set(s.clock.time().Add(time.Hour))
	s.b.restart()
	if again := s.file(certificatePath); !bytes.Equal(again, first) {
		t.Errorf("asked again: %s\nwant %s", again, first)
	}
	if again := s.file(certificatePath + "?version=1"); !bytes.Equal(again, first) {
		t.Error("version 1 is another file")
	}
	s.b.wantProblem(s.b.do("admin", "GET", certificatePath+"?version=2", nil), http.StatusNotFound, "version 2")
	s.b.wantProblem(s.b.do("admin", "GET", "/v1/stores/0009/days/2026-11-21/certificate", nil), http.StatusNotFound, "store 0009")
	s.b.wantProblem(s.b.do("admin", "GET", "/v1/stores/0001/days/2026-02-30/certificate", nil), http.StatusUnprocessableEntity)
}

func TestBEY01ALateSaleRestates(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	first := s.file(certificatePath)
	s.clock.set(s.clock.time().Add(time.Hour))
	s.sellAt("1", saturday) // after the day was closed and certified
	second := s.certificate(certificatePath)
	if second.Version != 2 || second.State != ledger.DayComplete || second.Restates == nil || second.Restates.Version != 1 {
		t.Fatalf("after a late sale: %+v", second)
	}
	if got := strings.Join(second.Restates.Changes, "\n"); !strings.Contains(got, "records of kind transaction: 6 were here, now 7") ||
		!strings.Contains(got, "till 1: 3 receipts (numbers 4 to 6); now 4 receipts (numbers 4 to 7)") {
		t.Errorf("changes:\n%s", got)
	}
	if again := s.file(certificatePath + "?version=1"); !bytes.Equal(again, first) {
		t.Error("version 1 has changed")
	}
	s.send("strangeKind", saturday, `{"x":1}`)
	third := s.certificate(certificatePath)
	if third.Version != 3 || third.State != ledger.DayIncomplete || third.Restates.Version != 2 || !slices.Contains(third.Restates.Changes, "the day was complete and is incomplete") {
		t.Errorf("after a record that cannot be applied: %+v", third)
	}
	s.sellAt("1", saturday.AddDays(1)) // says nothing about Saturday
	if c := s.certificate(certificatePath); c.Version != 3 {
		t.Errorf("version %d after another day's sale, want 3", c.Version)
	}
}

func TestBEY01AnOpenDayIsNotKept(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.clock.set(time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC))
	for range 2 {
		s.sellAt("1", saturday)
		if c := s.certificate(certificatePath); c.Version != 0 || c.State != ledger.DayIncomplete || c.Reasons[0].Kind != ledger.ReasonOpen {
			t.Errorf("while the day is open: %+v", c)
		}
	}
	s.clock.set(time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC))
	s.mark(saturday)
	if c := s.certificate(certificatePath); c.Version != 1 || c.State != ledger.DayComplete {
		t.Errorf("when it has ended: %+v", c)
	}
}

func TestBEY01ManyWhoAskAtOnceGetOneVersion(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	for version := int64(1); version <= 3; version++ {
		files := make([][]byte, 12)
		var g sync.WaitGroup
		for i := range files {
			g.Go(func() {
				file, err := s.b.ledger.DayCertificate(t.Context(), chain, "0001", saturday, 0)
				if err != nil {
					t.Error(err)
				}
				files[i] = file
			})
		}
		g.Wait()
		for _, file := range files {
			if !bytes.Equal(file, files[0]) {
				t.Fatalf("several certificates:\n%s\n%s", file, files[0])
			}
		}
		c, err := ledger.ReadDayCertificate(files[0], s.roots())
		if err != nil || c.Version != version {
			t.Fatalf("%+v, %v, want version %d", c, err, version)
		}
		s.sellAt("1", saturday)
	}
}

func TestBEY01TheRosterDecidesWhoIsExpected(t *testing.T) {
	s := newShop(t)
	s.sellAt("1", saturday)
	s.cover(saturday, "door", 0, 24*time.Hour)
	s.mark(saturday)
	const path = "/v1/stores/0001/roster"
	if c := s.certificate(certificatePath); c.State != ledger.DayIncomplete {
		t.Fatal("the silent till 2 is not missed")
	}
	ask := func(method, query string, body any, status int) {
		t.Helper()
		if resp := s.b.do("admin", method, path+query, body); resp.StatusCode != status {
			text, _ := io.ReadAll(resp.Body)
			t.Fatalf("%s %s: %d %s, want %d", method, query, resp.StatusCode, text, status)
		}
	}
	ask("PUT", "", map[string]string{"kind": "workstation", "id": "2", "firstDay": "2026-01-01", "lastDay": "2026-11-20"}, http.StatusOK)
	if c := s.certificate(certificatePath); c.State != ledger.DayComplete {
		t.Errorf("till 2 has gone, and the day is %s: %+v", c.State, c.Reasons)
	}
	rows := get[struct{ Items []expected }](s.b, "admin", path+"?day=2026-11-21").Items
	want := []expected{
		{"agent", "pc-0001", true, "seen", "2026-11-20", "2026-11-21"},
		{"counter", "door", true, "seen", "2026-11-20", "2026-11-21"},
		{"workstation", "1", true, "seen", "2026-11-20", "2026-11-21"},
		{"workstation", "2", false, "headOffice", "2026-01-01", "2026-11-20"},
	}
	if !slices.Equal(rows, want) {
		t.Errorf("roster %+v, want %+v", rows, want)
	}
	ask("PUT", "", map[string]string{"kind": "workstation", "id": "2", "firstDay": "2026-01-02", "lastDay": "2026-01-01"}, http.StatusUnprocessableEntity)
	ask("PUT", "", map[string]string{"kind": "robot", "id": "2", "firstDay": "2026-01-02"}, http.StatusUnprocessableEntity)
	ask("DELETE", "?kind=workstation&id=2", nil, http.StatusOK)
	ask("DELETE", "?kind=workstation&id=2", nil, http.StatusNotFound)
	if c := s.certificate(certificatePath); c.State != ledger.DayIncomplete {
		t.Error("nobody says any more that till 2 has gone, and it is not missed")
	}
	// 35 days of silence, and nobody waits for it.
	late := get[struct{ Items []expected }](s.b, "admin", path+"?day=2026-12-25").Items
	if slices.ContainsFunc(late, func(e expected) bool { return e.Kind == "workstation" && e.ID == "2" }) {
		t.Errorf("35 days later: %+v", late)
	}
}

// TestBEY01ARegisteredPCIsExpected is a second PC that cannot deliver on its first day, with a
// till that nobody has heard of.
func TestBEY01ARegisteredPCIsExpected(t *testing.T) {
	s := newShop(t)
	s.clock.set(time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC))
	s.must(s.b.ledger.RegisterAgent(t.Context(), protocol.Origin{Chain: chain, Store: "0001", Agent: "pc-2"}), t)
	s.clock.set(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	s.trade(saturday)
	s.mark(saturday)
	missed := func() bool {
		return slices.ContainsFunc(s.certificate(certificatePath).Reasons, func(r ledger.Reason) bool { return r.Kind == ledger.ReasonDayMark && r.Who == "pc-2" })
	}
	if !missed() {
		t.Error("nobody misses the mark of pc-2")
	}
	if c := s.certificate("/v1/stores/0001/days/2026-11-20/certificate"); c.State != ledger.DayComplete {
		t.Errorf("the day before it was registered is %s: %v", c.State, c.Reasons)
	}
	second := s.second("pc-2")
	if !missed() {
		t.Error("with its seal nobody misses the mark of pc-2")
	}
	second.numbers["7"] = 0
	second.sellAt("7", saturday)
	if !missed() {
		t.Error("with a sale nobody misses the mark of pc-2")
	}
	second.mark(saturday)
	if c := s.certificate(certificatePath); c.State != ledger.DayComplete {
		t.Errorf("when pc-2 has delivered the day is %s: %v", c.State, c.Reasons)
	}
	// One that is given up before it began.
	s.must(s.b.ledger.RegisterAgent(t.Context(), protocol.Origin{Chain: chain, Store: "0001", Agent: "pc-3"}), t)
	const sunday = "/v1/stores/0001/roster?day=2026-11-22"
	want := expected{"agent", "pc-3", true, "registered", "2026-11-22", ""}
	if rows := get[struct{ Items []expected }](s.b, "admin", sunday).Items; !slices.Contains(rows, want) {
		t.Errorf("roster %+v, want %+v", rows, want)
	}
	s.must(s.b.ledger.SetAgentState(t.Context(), protocol.Origin{Chain: chain, Store: "0001", Agent: "pc-3"}, ledger.AgentRevoked), t)
	if rows := get[struct{ Items []expected }](s.b, "admin", sunday).Items; slices.ContainsFunc(rows, func(e expected) bool { return e.ID == "pc-3" }) {
		t.Errorf("roster %+v, want no revoked pc-3", rows)
	}
}

// TestBEY01ANewPCIsNotExpectedBefore: the seal of an agent has no day.
func TestBEY01ANewPCIsNotExpectedBefore(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	s.clock.set(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	s.must(s.b.ledger.RegisterAgent(t.Context(), protocol.Origin{Chain: chain, Store: "0001", Agent: "pc-2"}), t)
	second := s.second("pc-2")
	second.numbers["7"] = 0
	second.sellAt("7", saturday.AddDays(2))
	if c := s.certificate(certificatePath); c.State != ledger.DayComplete {
		t.Errorf("before pc-2 came the day is %s: %v", c.State, c.Reasons)
	}
}

func TestBEY01HeadOfficeSettlesAReason(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.numbers["2"] += 3
	s.sellAt("2", saturday)
	s.mark(saturday)
	reason := s.certificate(certificatePath).Reasons[0]
	const path = "/v1/stores/0001/days/2026-11-21/settlements"
	body := map[string]string{"kind": reason.Kind, "who": reason.Who, "what": reason.What, "by": "Berit", "why": "the till was replaced"}
	s.b.token("auditor", nil, ScopeCertificates)
	s.b.token("office", nil, ScopeSettle)
	s.b.token("other", []string{"0002"}, ScopeSettle)
	s.b.wantProblem(s.b.do("auditor", "PUT", path, body), http.StatusForbidden, ScopeSettle)
	s.b.wantProblem(s.b.do("other", "PUT", path, body), http.StatusForbidden, "0001")
	query := "?kind=workstation&who=2&what=" + url.QueryEscape(reason.What)
	s.b.wantProblem(s.b.do("other", "DELETE", path+query, nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("office", "PUT", path, map[string]string{"kind": reason.Kind, "who": reason.Who, "what": reason.What, "by": "Berit", "why": ""}), http.StatusUnprocessableEntity)
	s.b.wantProblem(s.b.do("office", "PUT", path, map[string]string{"kind": reason.Kind, "who": "1", "what": reason.What, "by": "Berit", "why": "x"}), http.StatusNotFound)
	if resp := s.b.do("office", "PUT", path, body); resp.StatusCode != http.StatusOK {
		t.Fatalf("settle: %d", resp.StatusCode)
	}
	s.b.wantProblem(s.b.do("office", "PUT", path, body), http.StatusConflict, "settled")
	c := s.certificate(certificatePath)
	if c.State != ledger.DaySettled || len(c.Reasons) != 1 || c.Reasons[0].Settled == nil || c.Reasons[0].Settled.Through != "token office" || c.Reasons[0].Settled.By != "Berit" {
		t.Errorf("the day is %s: %+v", c.State, c.Reasons)
	}
	if want := []string{"the day was incomplete and is settled", "settled by Berit: " + reason.What}; !slices.Equal(c.Restates.Changes, want) {
		t.Errorf("changes %q, want %q", c.Restates.Changes, want)
	}
	if resp := s.b.do("office", "DELETE", path+query, nil); resp.StatusCode != http.StatusOK {
		t.Fatalf("take it back: %d", resp.StatusCode)
	}
	s.b.wantProblem(s.b.do("office", "DELETE", path+query, nil), http.StatusNotFound)
	c = s.certificate(certificatePath)
	if want := []string{"the day was settled and is incomplete", "no longer settled: " + reason.What}; c.State != ledger.DayIncomplete || !slices.Equal(c.Restates.Changes, want) {
		t.Errorf("the day is %s: %q, want %q", c.State, c.Restates.Changes, want)
	}
}

func TestBEY01ARevokedAgentIsExpectedUntilItsLastDay(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.must(s.b.ledger.SetAgentState(t.Context(), s.origin, ledger.AgentRevoked), t)
	c := s.certificate(certificatePath)
	if !slices.ContainsFunc(c.Reasons, func(r ledger.Reason) bool { return r.Kind == ledger.ReasonDayMark && r.Who == "pc-0001" }) {
		t.Errorf("on its last day: %+v, want its mark missed", c.Reasons)
	}
	s.clock.set(time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC))
	c = s.certificate("/v1/stores/0001/days/2026-11-22/certificate")
	if slices.ContainsFunc(c.Reasons, func(r ledger.Reason) bool { return r.Kind == ledger.ReasonDayMark }) {
		t.Errorf("on the day after: %+v, want no mark missed", c.Reasons)
	}
}

func TestBEY01AChangedFileIsRefused(t *testing.T) {
	s := newShop(t)
	s.trade(saturday)
	s.mark(saturday)
	file, roots := bytes.TrimSpace(s.file(certificatePath)), s.roots()
	var pretty bytes.Buffer
	s.must(json.Indent(&pretty, file, "", "  "), t)
	if _, err := ledger.ReadDayCertificate(pretty.Bytes(), roots); err != nil {
		t.Errorf("the same with white space: %v", err)
	}
	for i := range file {
		for _, bit := range []byte{1, 2, 32} {
			forged := bytes.Clone(file)
			forged[i] ^= bit
			if c, err := ledger.ReadDayCertificate(forged, roots); err == nil {
				t.Fatalf("byte %d changed from %q to %q is taken: %+v", i, file[i], forged[i], c)
			}
		}
	}
	other := newShop(t)
	other.trade(saturday)
	other.mark(saturday)
	if _, err := ledger.ReadDayCertificate(other.file(certificatePath), roots); !errors.Is(err, ca.ErrSignature) {
		t.Errorf("of another authority: %v", err)
	}
	for name, text := range map[string]string{
		"twice the same member": strings.Replace(string(file), `{"certificate":`, `{"certificate":{},"certificate":`, 1),
		"another member":        strings.Replace(string(file), `{"certificate":`, `{"x":1,"certificate":`, 1),
		"more behind it":        string(file) + "{}",
		"half of it":            string(file[:len(file)/2]),
		"nothing":               "",
		"a member missing":      `{"certificate":{},"signature":""}`,
	} {
		if _, err := ledger.ReadDayCertificate([]byte(text), roots); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	// Signed with a key of the authority that is for something else: an agent's.
	var signed ledger.SignedCertificate
	s.must(json.Unmarshal(file, &signed), t)
	public, key, err := ed25519.GenerateKey(rand.Reader)
	s.must(err, t)
	cert, _, err := s.b.ca.IssueAgent(s.origin, time.Hour, public)
	s.must(err, t)
	block, _ := pem.Decode(cert)
	signed.Signature, signed.SignedBy = ed25519.Sign(key, signed.Certificate), block.Bytes
	forged, err := json.Marshal(signed)
	s.must(err, t)
	if _, err := ledger.ReadDayCertificate(forged, roots); !errors.Is(err, ca.ErrSignature) {
		t.Errorf("signed by an agent: %v, want ErrSignature", err)
	}
}

func TestBEY01ACertificateNeedsItsScopeAndItsStore(t *testing.T) {
	s := newShop(t)
	s.b.token("kpis", nil, ScopeKPIs)
	s.b.token("auditor", nil, ScopeCertificates, ScopeAlarms)
	s.b.token("other", []string{"0002"}, ScopeAdmin)
	s.b.wantProblem(s.b.do("kpis", "GET", certificatePath, nil), http.StatusForbidden, ScopeCertificates)
	s.b.wantProblem(s.b.do("kpis", "GET", "/v1/alarms", nil), http.StatusForbidden, ScopeAlarms)
	s.b.wantProblem(s.b.do("other", "GET", certificatePath, nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("other", "GET", "/v1/stores/0001/roster?day=2026-11-21", nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("other", "DELETE", "/v1/stores/0001/roster?kind=agent&id=x", nil), http.StatusForbidden, "0001")
	s.b.wantProblem(s.b.do("auditor", "PUT", "/v1/stores/0001/roster", map[string]string{"kind": "agent", "id": "x", "firstDay": "2026-01-01"}), http.StatusForbidden, ScopeStoresWrite)
	get[any](s.b, "auditor", certificatePath)
}

func TestAnExpiredCertificateIsAnAlarm(t *testing.T) {
	s := newShop(t)
	cert, _, err := s.b.ca.IssueAgent(s.origin, -time.Hour, nil)
	s.must(err, t)
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	s.must(err, t)
	for range 2 {
		s.must(s.b.ledger.KeepCertificate(t.Context(), s.origin, leaf), t)
	}
	type alarms struct{ Items []ledger.Alarm }
	s.clock.set(time.Now().Add(time.Hour))
	s.must(s.b.ledger.KeepCertificate(t.Context(), s.origin, leaf), t)
	found := get[alarms](s.b, "admin", "/v1/alarms").Items
	if len(found) != 1 || found[0].Kind != ledger.AlarmCertificateExpired || found[0].Agent != "pc-0001" {
		t.Errorf("alarms %+v, want one that the certificate has expired", found)
	}
	s.b.token("two", []string{"0002"}, ScopeAlarms)
	if found := get[alarms](s.b, "two", "/v1/alarms").Items; len(found) != 0 {
		t.Errorf("another store's token sees %+v", found)
	}
}

func TestARestoredLedgerIsAnAlarmForEveryStore(t *testing.T) {
	s := newShop(t)
	_, err := s.b.ledger.Raise(t.Context(), 0)
	s.must(err, t)
	s.b.token("two", []string{"0002"}, ScopeAlarms)
	type alarms struct{ Items []ledger.Alarm }
	for _, token := range []string{"admin", "two"} {
		found := get[alarms](s.b, token, "/v1/alarms").Items
		if len(found) != 1 || found[0].Kind != ledger.AlarmRestored || found[0].Store != "" || found[0].Agent != "" {
			t.Errorf("%s: alarms %+v, want one of the whole chain", token, found)
		}
	}
}
