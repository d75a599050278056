package api

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
)

var update = flag.Bool("update", false, "write testdata/openapi.yaml")

// The golden copy shows every change of the API in review.
func TestTheDocumentIsTheGoldenCopy(t *testing.T) {
	b := newBench(t)
	resp := b.do("", "GET", "/openapi.yaml", nil) // without a token
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	golden := filepath.Join("testdata", "openapi.yaml")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("the API changed; look at the difference after go test ./relay/api -run GoldenCopy -update")
	}
}

func TestTheDocumentIsValidOpenAPI31(t *testing.T) {
	b := newBench(t)
	var doc map[string]any
	resp := b.do("", "GET", "/openapi.json", nil)
	if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if v, _ := doc["openapi"].(string); !strings.HasPrefix(v, "3.1.") {
		t.Errorf("openapi %q, want 3.1", v)
	}
	info := doc["info"].(map[string]any)
	if info["title"] == "" || info["version"] != "test" {
		t.Errorf("info %v", info)
	}
	schemes := doc["components"].(map[string]any)["securitySchemes"].(map[string]any)
	ids := map[string]bool{}
	for path, item := range doc["paths"].(map[string]any) {
		for method, o := range item.(map[string]any) {
			op, where := o.(map[string]any), method+" "+path
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] {
				t.Errorf("%s: operationId %q is missing or stands twice", where, id)
			}
			ids[id] = true
			if op["summary"] == nil {
				t.Errorf("%s: no summary", where)
			}
			security, _ := op["security"].([]any)
			if len(security) != 1 {
				t.Fatalf("%s: security %v", where, op["security"])
			}
			for scheme, scopes := range security[0].(map[string]any) {
				if schemes[scheme] == nil || len(scopes.([]any)) != 1 || !slices.Contains(Scopes(), scopes.([]any)[0].(string)) {
					t.Errorf("%s: security %s %v", where, scheme, scopes)
				}
			}
			responses := op["responses"].(map[string]any)
			for _, status := range []string{"200", "400", "401", "403", "404", "422", "500"} {
				r, _ := responses[status].(map[string]any)
				content, _ := r["content"].(map[string]any)
				if r == nil || r["description"] == "" || (status >= "400" && content["application/problem+json"] == nil) || len(content) == 0 {
					t.Errorf("%s: answer %s is %v", where, status, r)
				}
			}
			named := 0
			parameters, _ := op["parameters"].([]any)
			for _, p := range parameters {
				if p.(map[string]any)["in"] == "path" {
					named++
					if !strings.Contains(path, "{"+p.(map[string]any)["name"].(string)+"}") {
						t.Errorf("%s: parameter %v is not in the path", where, p)
					}
				}
			}
			if named != strings.Count(path, "{") {
				t.Errorf("%s: %d path parameters", where, named)
			}
		}
	}
	if len(ids) < 15 {
		t.Errorf("%d operations, want all", len(ids))
	}
	resolve(t, doc, doc, "")
}

// resolve checks that every $ref names something.
func resolve(t *testing.T, doc map[string]any, v any, at string) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok {
			var to any = doc
			for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
				m, _ := to.(map[string]any)
				to = m[part]
			}
			if to == nil {
				t.Errorf("%s: %s names nothing", at, ref)
			}
		}
		for k, sub := range v {
			resolve(t, doc, sub, at+"/"+k)
		}
	case []any:
		for i, sub := range v {
			resolve(t, doc, sub, fmt.Sprintf("%s/%d", at, i))
		}
	}
}

// Every GET operation of the document is called, and its answer checked against its schema.
func TestEveryAnswerIsAsItsSchemaSays(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Connectors = map[string]Connectors{chain: &fakeConnectors{}} })
	first := b.twoStores()
	first.send("strangeKind", saturday, `{"x":1}`)
	values := map[string]string{"store": "0001", "day": "2026-11-21", "name": "erp"}
	checked := 0
	for path, item := range b.api.huma.OpenAPI().Paths {
		op := item.Get
		if op == nil || op.OperationID == "events" { // a stream, see TestHUB04
			continue
		}
		url, query := path, []string{}
		for _, p := range op.Parameters {
			switch value := values[p.Name]; {
			case p.In == "path":
				url = strings.ReplaceAll(url, "{"+p.Name+"}", value)
			case p.Required, op.OperationID == "storeKPIs" && p.Name == "day":
				query = append(query, p.Name+"="+value)
			}
		}
		resp := b.do("admin", "GET", url+"?"+strings.Join(query, "&"), nil)
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s: %d %s %v", url, resp.StatusCode, text, err)
			continue
		}
		for _, fault := range validate(t, b, op.Responses["200"].Content["application/json"].Schema, text) {
			t.Errorf("GET %s: %v in %s", url, fault, text)
		}
		if items := struct{ Items *[]any }{}; json.Unmarshal(text, &items) == nil && items.Items != nil && len(*items.Items) == 0 {
			t.Errorf("GET %s: an empty list proves nothing", url)
		}
		checked++
	}
	if checked < 14 {
		t.Errorf("%d operations checked, want all", checked)
	}
	resp := b.do("admin", "GET", "/v1/records?limit=0", nil)
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	schema := b.api.huma.OpenAPI().Paths["/v1/records"].Get.Responses["422"].Content["application/problem+json"].Schema
	for _, fault := range validate(t, b, schema, text) {
		t.Errorf("problem: %v in %s", fault, text)
	}
	if faults := validate(t, b, schema, []byte(`{"status":"x","more":1}`)); len(faults) != 2 {
		t.Errorf("the check finds %v, want two faults", faults)
	}
}

func validate(t *testing.T, b *bench, schema *huma.Schema, text []byte) []error {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	res := &huma.ValidateResult{}
	huma.Validate(b.api.huma.OpenAPI().Components.Schemas, schema, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, v, res)
	return res.Errors
}

func TestTheDocsPageListsEveryOperationAndNeedsNoOtherHost(t *testing.T) {
	b := newBench(t)
	resp := b.do("", "GET", "/docs", nil)
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for path, item := range b.api.huma.OpenAPI().Paths {
		if item.Get != nil && !strings.Contains(string(text), "GET "+path) {
			t.Errorf("the page does not name %s", path)
		}
	}
	for _, outside := range []string{"http://", "https://", "<script", "src="} {
		if strings.Contains(string(text), outside) {
			t.Errorf("the page has %q", outside)
		}
	}
}
