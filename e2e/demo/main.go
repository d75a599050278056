// Command demo shows the whole chain on one machine: a relay, three stores with simulated
// counters, drawers and tills, a live page, and a proof line that is recomputed all the
// time. With -seconds it stops by itself and fails unless the proof holds when all is
// drained.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/storelay/storelay/e2e/chain"
	"github.com/storelay/storelay/relay/web"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	bin := flag.String("bin", "bin", "`folder` with storelay-agent and storelay-relay")
	seconds := flag.Int("seconds", 0, "stop by itself after so many `seconds`; 0 = at Ctrl-C")
	listen := flag.String("listen", "127.0.0.1:0", "`address` of the page")
	flag.Parse()

	dir, err := os.MkdirTemp("", "storelay-demo-")
	if err != nil {
		return err
	}
	fmt.Println("starting one relay and three stores ...")
	started := time.Now()
	c, err := chain.Start(ctx, chain.Options{Dir: dir, Bin: *bin})
	if err != nil {
		return errors.Join(err, fmt.Errorf("the logs are in %s", dir))
	}
	defer func() {
		if err = errors.Join(err, c.Stop()); err != nil {
			err = errors.Join(err, fmt.Errorf("the logs are in %s", dir))
			return
		}
		err = os.RemoveAll(dir)
	}()

	board := &scoreboard{}
	page, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: pages(c, board), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(page) }() // ends with Close
	defer server.Close()
	fmt.Printf("ready after %.1f s\n\n  live page   http://%s/\n  open API    http://%s/openapi.json   token %s\n  Ctrl-C stops; everything is in %s\n\n",
		time.Since(started).Seconds(), page.Addr(), c.Relays[0].API, c.Token, dir)
	return trade(ctx, c, board, time.Duration(*seconds)*time.Second)
}

// trade lets the stores trade until ctx ends or the limit is reached, shows the proof, and
// drains.
func trade(ctx context.Context, c *chain.Chain, board *scoreboard, limit time.Duration) error {
	var trading context.Context
	var stop context.CancelFunc
	if limit > 0 {
		trading, stop = context.WithTimeout(ctx, limit)
	} else {
		trading, stop = context.WithCancel(ctx)
	}
	defer stop()
	var stores sync.WaitGroup
	for i, s := range c.Stores {
		pace := chain.Pace{Visitors: 600 * time.Millisecond, Sales: 1500 * time.Millisecond, Seed: uint64(i + 1)}
		stores.Go(func() { s.Trade(trading, pace, 5*time.Second) })
	}
	prover := c.NewProver()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for trading.Err() == nil {
		select {
		case <-trading.Done():
		case <-tick.C:
			proof, err := prover.Observe(trading)
			if trading.Err() != nil {
				break
			}
			board.set(proof, err)
			fmt.Printf("\r\033[K%s", board.line())
		}
	}
	stores.Wait()
	fmt.Println("\ndraining ...")
	proof, err := prover.Drain(context.WithoutCancel(ctx), time.Minute)
	board.set(proof, err)
	fmt.Println(proof)
	if err == nil {
		fmt.Println("the proof holds: all that the tills, counters and drawers say is committed once, and the money agrees to the öre")
	}
	return err
}

// A scoreboard is the newest proof, for the page.
type scoreboard struct {
	mu    sync.Mutex // guards what follows
	proof chain.Proof
	err   error
}

func (b *scoreboard) set(p chain.Proof, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err = err; err == nil {
		b.proof = p
	}
}

func (b *scoreboard) line() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return "cannot prove right now: " + b.err.Error()
	}
	return b.proof.String()
}

func (b *scoreboard) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	holds := b.proof.Holds() && b.err == nil
	b.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(map[string]any{"line": b.line(), "holds": holds}) // the viewer is gone
}

// pages are the relay's own page, the proof, and the open API with the demo's token added,
// so that the viewer need not type one.
func pages(c *chain.Chain, board *scoreboard) http.Handler {
	relay := &url.URL{Scheme: "http", Host: c.Relays[0].API}
	api := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(relay)
		r.Out.Header.Set("Authorization", "Bearer "+c.Token)
	}}
	mux := http.NewServeMux()
	mux.Handle("/", web.Handler(web.Options{ProofPath: "/demo/proof", SignedIn: true}))
	mux.Handle("GET /demo/proof", board)
	mux.Handle("GET /v1/", api)
	mux.Handle("GET /openapi.json", api)
	return mux
}
