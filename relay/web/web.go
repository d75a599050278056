// Package web is the pages that head office looks at, served by the relay. They are static
// files that read the open API with the viewer's own token, so a page can never show more
// than its viewer may read.
package web

import (
	"embed"
	"html/template"
	"io/fs"
	"net/http"
)

//go:embed static
var files embed.FS

// Options are what the pages may be told.
type Options struct {
	// ProofPath is where the page polls a proof line from ({"line": "...", "holds": true});
	// "" = there is none. The demo has one.
	ProofPath string
	// SignedIn says that the server in front adds the token itself, so the page asks for none.
	SignedIn bool
}

// Handler serves the page at / and its files under /static/.
func Handler(o Options) http.Handler {
	static, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // the folder is compiled in
	}
	index := template.Must(template.ParseFS(static, "index.html"))
	mux := http.NewServeMux()
	mux.Handle("GET /static/", http.StripPrefix("/static/", http.FileServerFS(static)))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := index.Execute(w, o); err != nil {
			http.Error(w, "cannot write the page", http.StatusInternalServerError)
		}
	})
	return secured(mux)
}

// secured adds the headers that keep a page from loading or being loaded by anything else.
func secured(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		next.ServeHTTP(w, r)
	})
}
