package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, h http.Handler, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Result(), string(body)
}

func TestThePageLoadsNothingFromElsewhere(t *testing.T) {
	h := Handler(Options{ProofPath: `/demo/"proof`, SignedIn: true})
	res, body := get(t, h, "/")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `data-signed-in="true"`) || strings.Contains(body, `/demo/"proof`) {
		t.Errorf("%s: %s", res.Status, body)
	}
	if policy := res.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("policy %q", policy)
	}
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if strings.HasPrefix(m[1], "data:") {
			continue
		}
		if res, _ := get(t, h, m[1]); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", m[1], res.Status)
		}
	}
	if res, _ := get(t, h, "/elsewhere"); res.StatusCode != http.StatusNotFound {
		t.Errorf("elsewhere: %s, want 404", res.Status)
	}
}
