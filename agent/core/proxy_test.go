package core

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTheRelayIsDialledThroughTheConfiguredProxy checks the wiring, of the agent and of drain,
// with a proxy that refuses; protocol/link/mqtt has the tests of what comes behind it.
func TestTheRelayIsDialledThroughTheConfiguredProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan *http.Request, 9)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(asked)
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				asked <- r
				fmt.Fprint(c, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
			}
			c.Close()
		}
	}()
	defer l.Close()
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://relay.test:8883"}, Listen: "127.0.0.1:0",
		Proxy: "http://shop:s%2Fecret@" + l.Addr().String()}
	a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler), Inline: true, Mono: func() time.Duration { return 0 }, BootID: "boot"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for name, dial := range map[string]dialler{"agent": a.dial, "drain": cfg.dialler(a.origin, a.tls)} {
		conn, err := dial(t.Context(), cfg.Relays[0])
		if err == nil {
			t.Fatalf("%s: connected %v", name, conn)
		}
		if text := err.Error(); !strings.Contains(text, "user and password") || strings.Contains(text, "s/ecret") || strings.Contains(text, "s%2Fecret") {
			t.Errorf("%s: %q, want an error that says what the proxy wants, without the password", name, text)
		}
		r := <-asked
		r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
		if user, password, ok := r.BasicAuth(); !ok || user != "shop" || password != "s/ecret" || r.Method != http.MethodConnect || r.Host != "relay.test:8883" {
			t.Errorf("%s: the proxy was asked %s %s by %q with %q", name, r.Method, r.Host, user, password)
		}
	}
}
