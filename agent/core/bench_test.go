package core

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/storelay/storelay/agent/journal"
)

// BenchmarkAccept is a sale from its bytes to the answer, with its sync, without the network,
// from 16 tills at once; beside it is journal.Append with a record of that size.
func BenchmarkAccept(b *testing.B) {
	dir := b.TempDir()
	identityFor(b, filepath.Join(dir, "identity"))
	const token = "a-secret-of-the-first-till"
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Listen: "127.0.0.1:0",
		Zone: "Europe/Stockholm", Log: "info", Tills: []Till{{Workstation: "1", Token: token}}}
	a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	body := func(n int64) string {
		return fmt.Sprintf(`{"sequenceNumber":%d,"type":"sale","begin":"2026-11-22T10:00:00+01:00","end":"2026-11-22T10:01:00+01:00","currency":"SEK",`+
			`"lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900,"taxAmount":2580,"taxRate":2500}],`+
			`"tenders":[{"type":"card","amount":12900}],"total":12900}`, n)
	}
	var n atomic.Int64
	parallel := func(b *testing.B, call func(n int64)) {
		b.SetParallelism(8) // on two cores
		b.ResetTimer()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				call(n.Add(1))
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accepts/s")
	}
	b.Run("http", func(b *testing.B) {
		parallel(b, func(n int64) {
			req := httptest.NewRequest(http.MethodPost, "/v1/transactions", strings.NewReader(body(n)))
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("Content-Type", "application/json")
			req.Host = "127.0.0.1"
			res := httptest.NewRecorder()
			if a.Handler().ServeHTTP(res, req); res.Code != http.StatusCreated {
				b.Errorf("%d %s", res.Code, res.Body)
			}
		})
	})
	b.Run("append", func(b *testing.B) {
		parallel(b, func(n int64) {
			if _, err := a.Journal().Append(b.Context(), journal.Entry{Kind: "x", Body: []byte(body(n)), Keys: []string{fmt.Sprint("key", n)}}); err != nil {
				b.Error(err)
			}
		})
	})
}
