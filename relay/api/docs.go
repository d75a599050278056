package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"
)

const docsPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}} API</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}code{background:#eee;padding:0 .2em}dt{margin-top:1rem}th,td{text-align:left;padding-right:1rem;vertical-align:top}</style>
</head><body><h1>{{.Title}} API {{.Version}}</h1><p>{{.Description}}</p>
<p>The whole contract: <a href="/openapi.json">openapi.json</a>, <a href="/openapi.yaml">openapi.yaml</a> (OpenAPI 3.1).</p>
<dl>{{range .Operations}}<dt id="{{.ID}}"><code>{{.Method}} {{.Path}}</code> {{.Summary}}</dt>
<dd>Scope <code>{{.Scope}}</code>{{if .Description}}. {{.Description}}{{end}}{{if .Parameters}}<table>{{range .Parameters}}<tr><td><code>{{.Name}}</code></td><td>{{.In}}{{if .Required}}, required{{end}}</td><td>{{.Description}}</td></tr>{{end}}</table>{{end}}</dd>
{{end}}</dl></body></html>
`

type documented struct {
	Method, Path, ID, Summary, Description, Scope string
	Parameters                                    []*huma.Param
}

// document serves the OpenAPI document and a page that lists its operations. Both are made
// once: nothing in them depends on the request.
func (a *api) document(mux *http.ServeMux) {
	doc := a.huma.OpenAPI()
	asJSON, err := json.Marshal(doc)
	must(err)
	asYAML, err := doc.YAML()
	must(err)
	serve(mux, "/openapi.json", "application/openapi+json", asJSON)
	serve(mux, "/openapi.yaml", "application/openapi+yaml", asYAML)

	var operations []documented
	for path, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Get, item.Put, item.Post, item.Delete} {
			if op != nil {
				operations = append(operations, documented{op.Method, path, op.OperationID, op.Summary, op.Description, op.Tags[0], op.Parameters})
			}
		}
	}
	slices.SortFunc(operations, func(a, b documented) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method)) })
	var page writer
	must(template.Must(template.New("docs").Parse(docsPage)).Execute(&page, map[string]any{
		"Title": doc.Info.Title, "Version": doc.Info.Version, "Description": doc.Info.Description, "Operations": operations,
	}))
	serve(mux, "/docs", "text/html; charset=utf-8", page)
}

func serve(mux *http.ServeMux, path, contentType string, content []byte) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Write(content)
	})
}

// must is for what depends on the code alone and is proven by every test.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("api document: %v", err))
	}
}

type writer []byte

func (w *writer) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	return len(b), nil
}
