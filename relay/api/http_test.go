package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/storelay/storelay/relay/ledger"
)

func TestATokenNeedsTheScopeOfTheOperation(t *testing.T) {
	b := newBench(t)
	b.token("kpis", nil, ScopeKPIs)
	b.secrets["forged"] = "slt_forged"
	const path = "/v1/stores/0001/transactions?day=2026-11-21"
	resp := b.do("", "GET", path, nil)
	b.wantProblem(resp, http.StatusUnauthorized, ScopeTransactions)
	if got := resp.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, "Bearer ") {
		t.Errorf("WWW-Authenticate %q", got)
	}
	b.wantProblem(b.do("forged", "GET", path, nil), http.StatusUnauthorized, "not known")
	resp = b.do("kpis", "GET", path, nil)
	b.wantProblem(resp, http.StatusForbidden, ScopeTransactions)
	if got := resp.Header.Get("WWW-Authenticate"); !strings.Contains(got, `scope="transactions:read"`) {
		t.Errorf("WWW-Authenticate %q, want the scope", got)
	}
	get[any](b, "kpis", "/v1/kpis?day=2026-11-21")
	for _, secret := range b.secrets {
		if strings.Contains(b.log.String(), secret) {
			t.Error("a secret is in the log")
		}
	}
}

func TestADeletedTokenEndsWithinSeconds(t *testing.T) {
	var passed atomic.Int64
	b := newBench(t, func(o *Options) {
		o.Now = func() time.Time { return time.Unix(0, 0).Add(time.Duration(passed.Load())) }
	})
	b.token("club", nil, ScopeEvents)
	get[any](b, "club", "/v1/head")
	tokens, err := b.ledger.Tokens(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range tokens {
		if token.Name == "club" {
			if err := b.ledger.DeleteToken(t.Context(), chain, token.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	passed.Add(int64(tokenTTL))
	b.wantProblem(b.do("club", "GET", "/v1/head", nil), http.StatusUnauthorized, "deleted")
}

func TestATokenForOneStoreSeesNoOther(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	b.token("two", []string{"0002"}, ScopeAdmin)
	for path, count := range map[string]int{"/v1/stores": 1, "/v1/agents": 1, "/v1/records?limit=500": 2} {
		var rows struct{ Items []struct{ Store, ID string } }
		resp := b.do("two", "GET", path, nil)
		if err := json.NewDecoder(resp.Body).Decode(&rows); err != nil {
			t.Fatal(err)
		}
		if len(rows.Items) != count {
			t.Errorf("%s: %d rows, want %d", path, len(rows.Items), count)
		}
		for _, r := range rows.Items {
			if r.Store+r.ID != "0002" {
				t.Errorf("%s shows %+v", path, r)
			}
		}
	}
	for _, path := range []string{"transactions?day=2026-11-21", "kpis?day=2026-11-21", "devices", "footfall?day=2026-11-21", "drawer-events?day=2026-11-21", "tenders?day=2026-11-21"} {
		b.wantProblem(b.do("two", "GET", "/v1/stores/0001/"+path, nil), http.StatusForbidden, "0001")
	}
	b.wantProblem(b.do("two", "PUT", "/v1/stores/0001", map[string]string{"name": "x", "zone": "UTC", "cutOff": "00:00", "currency": "SEK"}), http.StatusForbidden, "0001")
	b.wantProblem(b.do("two", "GET", "/v1/connectors", nil), http.StatusForbidden, "whole chain")
	b.wantProblem(b.do("two", "GET", "/v1/events?store=0001", nil), http.StatusForbidden, "0001")
}

func TestEveryErrorIsAProblem(t *testing.T) {
	b := newBench(t)
	b.wantProblem(b.do("admin", "GET", "/v1/nothing", nil), http.StatusNotFound, "/docs")
	b.wantProblem(b.do("admin", "GET", "/", nil), http.StatusNotFound)
	resp := b.do("admin", "DELETE", "/v1/stores", nil)
	b.wantProblem(resp, http.StatusMethodNotAllowed, "GET")
	if got := resp.Header.Get("Allow"); !strings.Contains(got, "GET") {
		t.Errorf("Allow %q", got)
	}
	b.wantProblem(b.do("admin", "GET", "/v1/head?verbose=1", nil), http.StatusUnprocessableEntity, "query.verbose")
	b.wantProblem(b.do("admin", "GET", "/v1/records?limit=501", nil), http.StatusUnprocessableEntity, "query.limit", "500")
	b.wantProblem(b.do("admin", "GET", "/v1/stores/a%20b/kpis?day=2026-11-21", nil), http.StatusUnprocessableEntity, "path.store")
	b.wantProblem(b.do("admin", "GET", "/v1/stores/0001/transactions", nil), http.StatusUnprocessableEntity, "query.day")
	b.wantProblem(b.do("admin", "GET", "/v1/stores/0001/transactions?day=2026-11-21&cursor=zzz", nil), http.StatusBadRequest, "cursor")
	b.wantProblem(b.do("admin", "PUT", "/v1/stores/0001", map[string]string{"name": strings.Repeat("x", maxBody)}), http.StatusRequestEntityTooLarge)
	if got := resp.Header.Get("X-Content-Type-Options") + " " + resp.Header.Get("Cache-Control"); got != "nosniff no-store" {
		t.Errorf("security headers %q", got)
	}
}

// panicking is a ledger that breaks.
type panicking struct{ Ledger }

func (panicking) Stores(context.Context, string) ([]ledger.Store, error) { panic("secret cause") }

func (panicking) Agents(context.Context, string) ([]ledger.AgentRow, error) {
	return nil, io.ErrUnexpectedEOF
}

func TestWhatIsWrongWithUsIsLoggedAndNotTold(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Ledger = panicking{o.Ledger} })
	for path, cause := range map[string]string{"/v1/stores": "secret cause", "/v1/agents": "unexpected EOF"} {
		resp := b.do("admin", "GET", path, nil)
		var text bytes.Buffer
		resp.Body = io.NopCloser(io.TeeReader(resp.Body, &text))
		b.wantProblem(resp, http.StatusInternalServerError, "its log says why")
		if strings.Contains(text.String(), cause) {
			t.Errorf("%s tells %s", path, text.String())
		}
		if !strings.Contains(b.log.String(), cause) {
			t.Errorf("%s: the log does not name %q", path, cause)
		}
	}
}

func TestAStoreIsPutAndListed(t *testing.T) {
	b := newBench(t)
	want := map[string]any{"id": "0007", "name": "Hamnen", "zone": "Europe/Stockholm", "cutOff": "04:00", "currency": "SEK"}
	body := map[string]any{"name": "Hamnen", "zone": "Europe/Stockholm", "cutOff": "04:00", "currency": "SEK"}
	for range 2 { // a repeat is fine
		if resp := b.do("admin", "PUT", "/v1/stores/0007", body); resp.StatusCode != http.StatusOK {
			t.Fatalf("put: %d", resp.StatusCode)
		}
	}
	got := get[struct{ Items []map[string]any }](b, "admin", "/v1/stores")
	if !reflect.DeepEqual(got.Items, []map[string]any{want}) {
		t.Errorf("stores %v, want %v", got.Items, want)
	}
	for field, value := range map[string]string{"zone": "Europe/Atlantis", "currency": "KRO", "cutOff": "25:00", "manager": "Bo"} {
		bad := map[string]any{}
		for k, v := range body {
			bad[k] = v
		}
		bad[field] = value
		b.wantProblem(b.do("admin", "PUT", "/v1/stores/0007", bad), http.StatusUnprocessableEntity, "body."+field)
	}
}

func TestReadingsOfADay(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	type readings struct {
		Items []struct {
			Pos    int64
			Agent  string
			Record map[string]any
		}
		More bool
		Next string
	}
	first := get[readings](b, "admin", "/v1/stores/0001/footfall?day=2026-11-21&limit=2")
	if len(first.Items) != 2 || !first.More || first.Items[0].Record["in"] != 5.0 || first.Items[0].Record["counter"] != "door" {
		t.Fatalf("first page %+v", first)
	}
	rest := get[readings](b, "admin", "/v1/stores/0001/footfall?day=2026-11-21&cursor="+first.Next)
	if len(rest.Items) != 1 || rest.More || rest.Items[0].Record["undirected"] != true {
		t.Errorf("rest %+v, want the beam", rest)
	}
	drawer := get[readings](b, "admin", "/v1/stores/0001/drawer-events?day=2026-11-21")
	if len(drawer.Items) != 2 || drawer.Items[1].Record["openMs"] != 9000.0 {
		t.Errorf("drawer events %+v", drawer)
	}
	if none := get[readings](b, "admin", "/v1/stores/0001/footfall?day=2026-11-20"); none.Items == nil || len(none.Items) != 0 {
		t.Errorf("friday %+v, want an empty list", none)
	}
	devices := get[struct{ Items []ledger.DeviceRow }](b, "admin", "/v1/stores/0001/devices").Items
	states := map[string]string{}
	for _, d := range devices {
		states[d.Device] = d.State + d.Drawer
	}
	if states["door"] != "online" || !strings.Contains(states["drawer-1"], "closed") {
		t.Errorf("devices %+v, want door online and drawer-1 closed", devices)
	}
	tenders := get[struct {
		Items []struct {
			Currency, Type string
			Count, Amount  int64
		}
	}](b, "admin", "/v1/stores/0001/tenders?day=2026-11-21").Items
	sums := map[string]int64{}
	for _, s := range tenders {
		sums[s.Currency+s.Type] = s.Amount
	}
	if want := map[string]int64{"SEKcash": 24850, "SEKcard": 18400 - 25000 + 12500}; !reflect.DeepEqual(sums, want) {
		t.Errorf("tenders %v, want %v", sums, want)
	}
}

func TestRecordsAreTheWholeOrderByPosition(t *testing.T) {
	b := newBench(t)
	b.twoStores()
	head := get[struct{ Pos, Incarnation int64 }](b, "admin", "/v1/head")
	var got []int64
	for after, more := "0", true; more; {
		p := get[struct {
			Items []ledger.StoredRecord
			More  bool
			Next  json.Number
		}](b, "admin", "/v1/records?limit=5&after="+after)
		for _, r := range p.Items {
			got = append(got, r.Pos)
		}
		after, more = p.Next.String(), p.More
	}
	for i, pos := range got {
		if pos != int64(i)+1 {
			t.Fatalf("positions %v, want all from 1", got)
		}
	}
	if int64(len(got)) != head.Pos || head.Incarnation != 1 {
		t.Errorf("%d records, head %+v", len(got), head)
	}
}

func TestQuarantineIsShownAndRetried(t *testing.T) {
	b := newBench(t)
	a := b.agent("0001")
	a.send("strangeKind", saturday, `{"x":1}`)
	b.token("two", []string{"0002"}, ScopeAdmin)
	rows := get[struct{ Items []ledger.QuarantinedRecord }](b, "admin", "/v1/quarantine").Items
	if len(rows) != 1 || rows[0].Kind != "strangeKind" || !strings.Contains(rows[0].Reason, "strangeKind") || !strings.Contains(string(rows[0].Record), `{"x":1}`) {
		t.Fatalf("quarantine %+v", rows)
	}
	if rows := get[struct{ Items []any }](b, "two", "/v1/quarantine").Items; len(rows) != 0 {
		t.Errorf("a token for store 0002 sees %v", rows)
	}
	b.wantProblem(b.do("admin", "POST", "/v1/quarantine/1/retry", nil), http.StatusConflict, "strangeKind")
	b.wantProblem(b.do("two", "POST", "/v1/quarantine/1/retry", nil), http.StatusNotFound)
	b.wantProblem(b.do("admin", "POST", "/v1/quarantine/99/retry", nil), http.StatusNotFound, "99")
}

func TestConnectorsAreShownReplayedAndResumed(t *testing.T) {
	f := &fakeConnectors{}
	b := newBench(t, func(o *Options) { o.Connectors = map[string]Connectors{chain: f} })
	states := get[struct {
		Items []struct {
			Name   string
			Lag    int64
			Active bool
		}
	}](b, "admin", "/v1/connectors").Items
	if len(states) != 1 || states[0].Name != "erp" || states[0].Lag != 6 || !states[0].Active {
		t.Errorf("connectors %+v", states)
	}
	letters := get[struct{ Items []ledger.DeadLetter }](b, "admin", "/v1/connectors/erp/dead-letters").Items
	if len(letters) != 1 || letters[0].Pos != 2 || letters[0].Reason == "" {
		t.Errorf("dead letters %+v", letters)
	}
	for _, path := range []string{"/v1/connectors/erp/dead-letters/2/replay", "/v1/connectors/erp/resume"} {
		if resp := b.do("admin", "POST", path, nil); resp.StatusCode != http.StatusOK {
			t.Errorf("POST %s: %d", path, resp.StatusCode)
		}
	}
	if !reflect.DeepEqual(f.replayed, []string{"erp/2"}) || !reflect.DeepEqual(f.resumed, []string{"erp"}) {
		t.Errorf("replayed %v, resumed %v", f.replayed, f.resumed)
	}
	f.refuse = true
	b.wantProblem(b.do("admin", "POST", "/v1/connectors/erp/dead-letters/2/replay", nil), http.StatusBadGateway, "no such article")
	b.wantProblem(b.do("admin", "GET", "/v1/connectors/crm/dead-letters", nil), http.StatusNotFound, "crm")
	b.token("reader", nil, ScopeConnectors)
	b.wantProblem(b.do("reader", "POST", "/v1/connectors/erp/resume", nil), http.StatusForbidden, ScopeConnectorsWrite)

	none := newBench(t)
	if rows := get[struct{ Items []any }](none, "admin", "/v1/connectors").Items; rows == nil || len(rows) != 0 {
		t.Errorf("a chain without connectors: %v, want an empty list", rows)
	}
}
