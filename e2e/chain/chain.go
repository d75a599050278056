// Package chain runs a whole chain on one machine for the demo and the stories: relays and
// agents as real processes, simulated counters, drawers and tills on real pseudo-terminals
// and HTTP, and a proof that compares what the simulators say was accepted with what the
// open API says is committed.
package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Name is the id of the chain.
const Name = "demo"

// Options shape a chain. Zero values mean one relay on SQLite and three stores.
type Options struct {
	Dir      string // temporary folder; everything stays inside
	Bin      string // folder with storelay-agent and storelay-relay
	Stores   int
	Relays   int
	Database string        // postgres://... for several relays
	Interval time.Duration // of a counter's counts; 0 = 2 s
	API      string        // address of the first relay's API; "" = a free one
	Webhook  string        // URL of a receiver; "" = no connector
	Secret   string        // of the webhook
	Lines    bool          // each store has a Line to the first relay
	NoDrawer bool          // tills do not open the drawer: what a drawer does while no agent runs nobody can know
	Tills    int           // of each store; 0 = 1

	// Drops are folders of files of each store, as in the agent's configuration; their folders
	// are made, and filled in.
	Drops []map[string]any
}

// A Chain is running relays and stores.
type Chain struct {
	Relays []*Relay
	Stores []*Store
	Token  string // of the open API, all reading scopes

	opts Options
}

// A Relay is one relay process.
type Relay struct {
	*Process
	MQTT, API string // addresses
	config    string
}

// Start writes configurations, certificates and tokens and starts everything. On an error
// what was started is stopped.
func Start(ctx context.Context, o Options) (c *Chain, err error) {
	if o.Stores == 0 {
		o.Stores = 3
	}
	if o.Relays == 0 {
		o.Relays = 1
	}
	if o.Interval == 0 {
		o.Interval = 2 * time.Second
	}
	if o.Tills == 0 {
		o.Tills = 1
	}
	c = &Chain{opts: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	for i := range o.Relays {
		relay, err := c.newRelay(i)
		if err != nil {
			return c, err
		}
		c.Relays = append(c.Relays, relay)
	}
	if err := c.prepare(ctx); err != nil {
		return c, err
	}
	for _, relay := range c.Relays {
		if err := c.StartRelay(ctx, relay); err != nil {
			return c, err
		}
	}
	for i := range o.Stores {
		store, err := c.newStore(ctx, i)
		if err != nil {
			return c, err
		}
		c.Stores = append(c.Stores, store)
		if err := store.StartAgent(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *Chain) newRelay(i int) (*Relay, error) {
	name := fmt.Sprintf("relay-%d", i+1)
	r := &Relay{config: filepath.Join(c.opts.Dir, name+".yaml")}
	var err error
	if r.MQTT, err = FreeAddress(); err != nil {
		return nil, err
	}
	if r.API = c.opts.API; r.API == "" || i > 0 {
		if r.API, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	config := map[string]any{
		"data": filepath.Join(c.opts.Dir, name), "ca": filepath.Join(c.opts.Dir, "ca"), "log": "info",
		"mqtt": map[string]any{"listen": r.MQTT, "hosts": []string{"127.0.0.1"}},
		"http": map[string]any{"listen": r.API},
	}
	if c.opts.Database != "" {
		config["database"] = c.opts.Database
	}
	if c.opts.Webhook != "" {
		secret := filepath.Join(c.opts.Dir, "webhook.secret")
		if err := os.WriteFile(secret, []byte(c.opts.Secret), 0o600); err != nil {
			return nil, err
		}
		config["connectors"] = []map[string]any{{"chain": Name, "name": "webhook", "type": "webhook", "url": c.opts.Webhook, "secretFile": secret, "start": "beginning"}}
	}
	if err := writeJSON(r.config, config); err != nil {
		return nil, err
	}
	r.Process = NewProcess(name, c.opts.Dir, c.bin("storelay-relay"), "serve", "-config", r.config)
	return r, nil
}

// writeJSON writes a configuration; JSON is YAML.
func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

func (c *Chain) bin(name string) string { return filepath.Join(c.opts.Bin, name) }

// Admin runs a sub-command of the relay's program, as an administrator would, and returns
// what it prints.
func (c *Chain) Admin(ctx context.Context, args ...string) (string, error) {
	words := 1
	for words < len(args) && !strings.HasPrefix(args[words], "-") {
		words++
	}
	all := append(append(append([]string{}, args[:words]...), "-config", c.Relays[0].config), args[words:]...)
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, c.bin("storelay-relay"), all...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("storelay-relay %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// prepare makes the certificate authority, the stores and the API token.
func (c *Chain) prepare(ctx context.Context) error {
	if _, err := c.Admin(ctx, "ca", "init"); err != nil {
		return err
	}
	for i := range c.opts.Stores {
		if _, err := c.Admin(ctx, "store", "set", "-chain", Name, "-id", storeID(i), "-name", storeName(i), "-zone", "Europe/Stockholm", "-currency", "SEK"); err != nil {
			return err
		}
	}
	var err error
	c.Token, err = c.Admin(ctx, "token", "create", "-chain", Name, "-name", "demo",
		"-scopes", "transactions:read,kpis:read,footfall:read,devices:read,events:read,stores:read,stores:write,connectors:read,quarantine:read")
	return err
}

func storeID(i int) string { return fmt.Sprintf("%04d", i+1) }

func storeName(i int) string {
	names := []string{"High Street", "Station", "Harbour", "Mall", "Old Town", "Airport"}
	return names[i%len(names)]
}

// StartRelay starts a relay, again after it has ended, and waits until its API answers.
func (c *Chain) StartRelay(ctx context.Context, r *Relay) error {
	if err := r.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return r.until(ctx, func() bool {
		conn, err := net.DialTimeout("tcp", r.MQTT, time.Second)
		if err != nil {
			return false
		}
		conn.Close()
		_, err = c.api(ctx, r, "/v1/head", nil)
		return err == nil
	})
}

// Get reads a path of the open API from the first relay that runs.
func (c *Chain) Get(ctx context.Context, path string, into any) error {
	err := errors.New("no relay runs")
	for _, r := range c.Relays {
		if r.Running() {
			if _, err = c.api(ctx, r, path, into); err == nil {
				return nil
			}
		}
	}
	return err
}

func (c *Chain) api(ctx context.Context, r *Relay, path string, into any) (int, error) {
	return request(ctx, "http://"+r.API+path, c.Token, into)
}

func request(ctx context.Context, url, token string, into any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		var problem struct{ Detail string }
		_ = json.NewDecoder(res.Body).Decode(&problem) // the status says enough
		return res.StatusCode, fmt.Errorf("GET %s: %s: %s", url, res.Status, problem.Detail)
	}
	if into == nil {
		return res.StatusCode, nil
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return res.StatusCode, fmt.Errorf("GET %s: %w", url, err)
	}
	return res.StatusCode, nil
}

// Stop stops what runs, stores first; its error names what did not end well.
func (c *Chain) Stop() error {
	var err error
	for _, s := range c.Stores {
		err = errors.Join(err, s.stop())
	}
	for _, r := range c.Relays {
		err = errors.Join(err, r.Stop())
	}
	return err
}
