package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/storelay/storelay/config"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/core"
	"github.com/storelay/storelay/relay/ledger"
)

// flags makes the flag set of a command with the flag that all of them have.
func flags(name string) (*flag.FlagSet, *string) {
	set := flag.NewFlagSet("storelay-relay "+name, flag.ContinueOnError)
	return set, set.String("config", "/etc/storelay/relay.yaml", "configuration `file`")
}

// load parses the flags and reads the configuration file.
func load(set *flag.FlagSet, file *string, args []string) (core.Config, error) {
	if err := set.Parse(args); err != nil {
		return core.Config{}, err
	}
	return core.LoadConfig(*file)
}

// open is load, and the ledger that the configuration names.
func open(ctx context.Context, set *flag.FlagSet, file *string, args []string) (core.Config, *ledger.Ledger, error) {
	cfg, err := load(set, file, args)
	if err != nil {
		return cfg, nil, err
	}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return cfg, nil, fmt.Errorf("make data folder: %w", err)
	}
	led, err := ledger.Open(ctx, cfg.Database, ledger.Options{Log: config.Logger(cfg.Log, os.Stderr), Now: time.Now})
	return cfg, led, err
}

// splitVerb takes the verb off a command's arguments; without one it is list.
func splitVerb(args []string) (verb string, rest []string) {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return args[0], args[1:]
	}
	return "list", args
}

// openChain is open for a command about one chain, which the flag -chain names.
func openChain(ctx context.Context, set *flag.FlagSet, file, chain *string, args []string) (*ledger.Ledger, error) {
	_, led, err := open(ctx, set, file, args)
	if err != nil {
		return nil, err
	}
	if !protocol.ValidID(*chain) {
		return nil, errors.Join(fmt.Errorf("-chain: %q is not an id", *chain), led.Close())
	}
	return led, nil
}

func serve(ctx context.Context, args []string) error {
	set, file := flags("serve")
	cfg, err := load(set, file, args)
	if err != nil {
		return err
	}
	log := config.Logger(cfg.Log, os.Stderr)
	slog.SetDefault(log)
	relay, err := core.New(ctx, cfg, core.Options{Version: version, Log: log})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

func check(_ context.Context, args []string) error {
	set, file := flags("check")
	if _, err := load(set, file, args); err != nil {
		return err
	}
	fmt.Println(*file, "is fine")
	return nil
}

func authority(_ context.Context, args []string) error {
	if len(args) == 0 || args[0] != "init" {
		return errors.New("want `storelay-relay ca init`")
	}
	set, file := flags("ca init")
	cfg, err := load(set, file, args[1:])
	if err != nil {
		return err
	}
	if _, err := ca.Create(cfg.CA); err != nil {
		return err
	}
	fmt.Println("made the certificate authority in", cfg.CA, "(keep a copy of this folder in a safe)")
	return nil
}

// agentFlags name one agent.
func agentFlags(set *flag.FlagSet) *protocol.Origin {
	o := &protocol.Origin{}
	set.StringVar(&o.Chain, "chain", "", "`id` of the chain")
	set.StringVar(&o.Store, "store", "", "`id` of the store")
	set.StringVar(&o.Agent, "agent", "", "`id` of the agent, unique in the chain")
	return o
}

func checkOrigin(o *protocol.Origin) error {
	for _, id := range []struct{ flag, value string }{{"chain", o.Chain}, {"store", o.Store}, {"agent", o.Agent}} {
		if !protocol.ValidID(id.value) {
			return fmt.Errorf("-%s: %q is not an id (letters, digits, _ and -, at most 64)", id.flag, id.value)
		}
	}
	return nil
}

func issue(ctx context.Context, args []string) error {
	set, file := flags("issue")
	origin := agentFlags(set)
	out := set.String("out", "", "`folder` to write agent.crt, agent.key and ca.crt to")
	days := set.Int("days", 365, "how many `days` the certificate is valid")
	cfg, led, err := open(ctx, set, file, args)
	if err != nil {
		return err
	}
	defer led.Close()
	if err := checkOrigin(origin); err != nil {
		return err
	}
	if *out == "" {
		return errors.New("-out: missing")
	}
	authority, err := ca.Load(cfg.CA)
	if err != nil {
		return fmt.Errorf("%w (`storelay-relay ca init` makes one)", err)
	}
	if denied, err := ca.Denied(cfg.CA).Has(*origin); err != nil || denied {
		return cmp.Or(err, fmt.Errorf("%s is revoked (issue a certificate for a new agent id)", origin))
	}
	cert, key, err := authority.IssueAgent(*origin, time.Duration(*days)*24*time.Hour, nil)
	if err != nil {
		return err
	}
	if err := led.RegisterAgent(ctx, *origin); errors.Is(err, ledger.ErrExists) {
		if state, err := led.AgentState(ctx, *origin); err != nil || state == ledger.AgentRevoked {
			return errors.Join(err, fmt.Errorf("%s is %s (issue a certificate for a new agent id)", origin, state))
		}
	} else if err != nil {
		return err
	}
	if err := keepIssued(ctx, led, *origin, cert); err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o700); err != nil {
		return fmt.Errorf("make identity folder: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{identity.CertFile, cert}, {identity.KeyFile, key}, {identity.CAFile, authority.CertPEM()}} {
		if err := os.WriteFile(filepath.Join(*out, f.name), f.data, 0o600); err != nil {
			return fmt.Errorf("write identity: %w", err)
		}
	}
	fmt.Printf("%s may connect; copy %s to its PC and delete it here\n", origin, *out)
	return nil
}

func token(ctx context.Context, args []string) error {
	verb, rest := splitVerb(args)
	set, file := flags("token " + verb)
	chain := set.String("chain", "", "`id` of the chain")
	name := set.String("name", "", "create: what the token is for")
	scopes := set.String("scopes", "", "create: `list` such as transactions:read,kpis:read")
	stores := set.String("stores", "", "create: `list` of stores; none = all")
	id := set.String("id", "", "delete: `id` of the token")
	led, err := openChain(ctx, set, file, chain, rest)
	if err != nil {
		return err
	}
	defer led.Close()
	switch verb {
	case "create":
		if *scopes == "" {
			return errors.New("-scopes: missing (a token may do only what its scopes say)")
		}
		secret, err := led.CreateToken(ctx, ledger.Token{Chain: *chain, Name: *name, Scopes: list(*scopes), Stores: list(*stores)})
		if err != nil {
			return err
		}
		fmt.Println(secret)
		return nil
	case "delete":
		return led.DeleteToken(ctx, *chain, *id)
	case "list":
		tokens, err := led.Tokens(ctx, *chain)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tNAME\tSCOPES\tSTORES\tCREATED")
		for _, t := range tokens {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Name, strings.Join(t.Scopes, ","), strings.Join(t.Stores, ","), t.Created.Format(time.RFC3339))
		}
		return w.Flush()
	}
	return fmt.Errorf("unknown `token %s` (create, list or delete)", verb)
}

func store(ctx context.Context, args []string) error {
	verb, rest := splitVerb(args)
	set, file := flags("store " + verb)
	chain := set.String("chain", "", "`id` of the chain")
	var s protocol.Store
	set.StringVar(&s.ID, "id", "", "set: `id` of the store")
	set.StringVar(&s.Name, "name", "", "set: its name")
	set.StringVar(&s.Zone, "zone", "", "set: IANA time `zone`, Europe/Stockholm")
	set.StringVar(&s.CutOff, "cut-off", "00:00", "set: when its business day begins, `HH:MM`")
	set.StringVar(&s.Currency, "currency", "", "set: ISO 4217 `code`")
	led, err := openChain(ctx, set, file, chain, rest)
	if err != nil {
		return err
	}
	defer led.Close()
	switch verb {
	case "set":
		if err := led.PutStore(ctx, *chain, s); err != nil {
			return err
		}
		fmt.Println(s.String(), "is set; its agents hear of it within a minute")
		return nil
	case "list":
		stores, err := led.Stores(ctx, *chain)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tNAME\tZONE\tCUT-OFF\tCURRENCY")
		for _, s := range stores {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.ID, s.Name, s.Zone, s.CutOff, s.Currency)
		}
		return w.Flush()
	}
	return fmt.Errorf("unknown `store %s` (set or list)", verb)
}

func quarantine(ctx context.Context, args []string) error {
	verb, rest := splitVerb(args)
	set, file := flags("quarantine " + verb)
	chain := set.String("chain", "", "`id` of the chain")
	id := set.String("id", "", "retry: `id` of the record in quarantine")
	led, err := openChain(ctx, set, file, chain, rest)
	if err != nil {
		return err
	}
	defer led.Close()
	switch verb {
	case "retry":
		n, err := strconv.ParseInt(*id, 10, 64)
		if err != nil {
			return fmt.Errorf("-id: %q is not a number", *id)
		}
		return led.RetryQuarantined(ctx, *chain, n)
	case "list":
		records, err := led.Quarantined(ctx, *chain, 1000)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tSTORE\tAGENT\tSEQ\tKIND\tRECEIVED\tREASON")
		for _, r := range records {
			fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t%s\n", r.ID, r.Store, r.Agent, r.Seq, r.Kind, r.Received.Format(time.RFC3339), r.Reason)
		}
		return w.Flush()
	}
	return fmt.Errorf("unknown `quarantine %s` (list or retry)", verb)
}

// list splits a comma-separated flag; nil when it is empty.
func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}
