package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/storelay/storelay/config"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// keepIssued keeps a new agent's certificate, for verifying what the agent will sign.
func keepIssued(ctx context.Context, led *ledger.Ledger, o protocol.Origin, certPEM []byte) error {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return errors.New("keep certificate: not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	return led.KeepCertificate(ctx, o, cert)
}

func verify(_ context.Context, args []string) error {
	set := flag.NewFlagSet("storelay-relay verify", flag.ContinueOnError)
	authority := set.String("ca", "ca.crt", "`file` with the certificate authority that is trusted: ca.crt of the relay or of any agent")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() != 1 {
		return errors.New("want `storelay-relay verify [-ca ca.crt] FILE`")
	}
	roots, err := ca.ReadRoots(*authority)
	if err != nil {
		return fmt.Errorf("%w (-ca names it)", err)
	}
	file, err := os.ReadFile(set.Arg(0))
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	return verifyFile(os.Stdout, file, roots)
}

// verifyFile says in plain words what a certificate states. An error means that nobody stands
// by it, and nothing of what it states is printed.
func verifyFile(w io.Writer, file []byte, roots *ca.Roots) error {
	c, err := ledger.ReadDayCertificate(file, roots)
	if err != nil {
		return fmt.Errorf("DO NOT TRUST this file: %w", err)
	}
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	line("The signature holds: a relay of this certificate authority gave this certificate out as it is.")
	line("")
	line("Store %s of chain %s, business day %s: %s", c.Store, c.Chain, c.Day, strings.ToUpper(c.State))
	if c.State == ledger.DaySettled {
		line("It is NOT PROVEN to be complete. Head office has explained what stands against it:")
	}
	for _, r := range c.Reasons {
		line("  - %s", r.What)
		if s := r.Settled; s != nil {
			line("    settled by %s on %s (%s): %s", s.By, s.At.Format(time.RFC3339), s.Through, s.Why)
		}
	}
	if c.Version == 0 {
		line("It is not kept: the day had not ended, or the store not begun, when it was issued on %s.", c.IssuedAt.Format(time.RFC3339))
	} else {
		line("Version %d, issued on %s at position %d of the ledger's incarnation %d.", c.Version, c.IssuedAt.Format(time.RFC3339), c.Position, c.Incarnation)
	}
	if r := c.Restates; r != nil {
		line("It restates version %d of %s:", r.Version, r.IssuedAt.Format(time.RFC3339))
		for _, change := range r.Changes {
			line("  - %s", change)
		}
	}
	line("Totals: %s (%s)", c.Proof, c.ProofReason)
	line("")
	for _, a := range c.Agents {
		switch {
		case a.Mark == nil:
			line("agent %s: no mark", a.Agent)
		case !a.Signed:
			line("agent %s: marked at record %d of epoch %s; its own signature is NOT proven", a.Agent, a.Mark.Head.Through, a.Mark.Head.Epoch)
		default:
			line("agent %s: marked at record %d of epoch %s; its own signature holds", a.Agent, a.Mark.Head.Through, a.Mark.Head.Epoch)
		}
	}
	for _, t := range c.Tills {
		if t.Wrapped {
			line("till %s: %d receipts, numbers from %d to its highest and again from 1 to %d, %d voided", t.Workstation, t.Count, t.First, t.Last, t.Voided)
			continue
		}
		line("till %s: %d receipts, numbers %d to %d, %d voided", t.Workstation, t.Count, t.First, t.Last, t.Voided)
	}
	for _, counter := range c.Counters {
		line("counter %s: %d counts cover %d.%d %% of the day, %d doubtful", counter.Counter, counter.Counts, counter.Permille/10, counter.Permille%10, counter.Doubtful)
	}
	return nil
}

func audit(ctx context.Context, args []string) error {
	set, file := flags("audit")
	chain := set.String("chain", "", "`id` of the chain; none = all")
	store := set.String("store", "", "`id` of a store; none = all, and what belongs to the chain as a whole")
	recount := set.Bool("recount", false, "count articles, devices and the like anew, too (needs memory for all their rows)")
	trust := set.Bool("trust-alarms", false, "let alarms, which nobody signs, speak for seals that disagree with the ledger (a disk that lives twice or went back in time), and the quarantine for what it holds")
	cfg, led, err := open(ctx, set, file, args)
	if err != nil {
		return err
	}
	defer led.Close()
	roots, err := ca.ReadRoots(ca.CertFile(cfg.CA))
	if err != nil {
		return err
	}
	report, err := led.Audit(ctx, ledger.AuditOptions{Chain: *chain, Store: *store, Recount: *recount, TrustAlarms: *trust, Roots: roots, Progress: func(chain, store string, records int64) {
		fmt.Fprintf(os.Stderr, "chain %s, store %s: %d records so far\n", chain, store, records)
	}})
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		fmt.Println(f)
	}
	fmt.Printf("%d records in %d streams, of which no signed mark covers %d yet; %d marks and %d certificates hold; agents have told of %d holes\n",
		report.Records, report.Streams, report.Unsigned, report.Marks, report.Certificates, report.Holes)
	if n := len(report.Alarms); n > 0 {
		fmt.Printf("%d seals and records in quarantine rest on the ledger's own word alone, which nobody signed", n)
		if *trust {
			fmt.Print(":")
			for _, f := range report.Alarms {
				fmt.Printf("\n  %s", f)
			}
		} else {
			fmt.Print("; -trust-alarms lets them be")
		}
		fmt.Println()
	}
	if report.Unkept > 0 {
		fmt.Printf("of %d duplicates an older version kept no content: their hashes are taken as they stand\n", report.Unkept)
	}
	if n := len(report.Findings); n > 0 {
		return fmt.Errorf("%d findings: the ledger is not as agents and relay wrote it", n)
	}
	fmt.Println("nothing was changed, removed or inserted (docs/certificate.md says what an audit cannot see)")
	return nil
}

// settle says what head office knows of the reasons against a day.
func settle(ctx context.Context, args []string) error {
	verb, rest := splitVerb(args)
	set, file := flags("settle " + verb)
	chain := set.String("chain", "", "`id` of the chain")
	store := set.String("store", "", "`id` of the store")
	on := set.String("day", "", "business `day`")
	reason := set.String("reason", "", "add, delete: `id` of the reason, as list shows it")
	by := set.String("by", "", "add: `name` of the person who answers for it")
	why := set.String("why", "", "add: what head office knows of it")
	cfg, err := load(set, file, rest)
	if err != nil {
		return err
	}
	day, err := parseDay("day", *on)
	switch {
	case err != nil:
		return err
	case day.IsZero():
		return errors.New("-day: missing")
	case !protocol.ValidID(*chain):
		return fmt.Errorf("-chain: %q is not an id", *chain)
	case !protocol.ValidID(*store):
		return fmt.Errorf("-store: %q is not an id", *store)
	}
	authority, err := ca.Load(cfg.CA)
	if err != nil {
		return err
	}
	led, err := ledger.Open(ctx, cfg.Database, ledger.Options{Log: config.Logger(cfg.Log, os.Stderr), Now: time.Now, CA: authority})
	if err != nil {
		return err
	}
	defer led.Close()
	return settleIn(ctx, os.Stdout, led, verb, *chain, *store, day, *reason, *by, *why)
}

func settleIn(ctx context.Context, out io.Writer, led *ledger.Ledger, verb, chain, store string, day protocol.Day, id, by, why string) error {
	reasons, err := led.OpenReasons(ctx, chain, store, day)
	if err != nil {
		return err
	}
	if verb == "list" {
		for _, r := range reasons {
			fmt.Fprintf(out, "%s  %s\n", r.ID(), r.What)
			if s := r.Settled; s != nil {
				fmt.Fprintf(out, "            settled by %s on %s (%s): %s\n", s.By, s.At.Format(time.RFC3339), s.Through, s.Why)
			}
		}
		return nil
	}
	i := slices.IndexFunc(reasons, func(r ledger.Reason) bool { return r.ID() == id })
	if i < 0 {
		return fmt.Errorf("-reason: nothing stands against the day under the id %q (`storelay-relay settle list` shows what does)", id)
	}
	switch verb {
	case "add":
		return led.Settle(ctx, chain, store, day, ledger.Settlement{Reason: reasons[i], By: by, Why: why, Through: "command line"})
	case "delete":
		return led.Unsettle(ctx, chain, store, day, reasons[i])
	}
	return fmt.Errorf("unknown `settle %s` (list, add or delete)", verb)
}

func roster(ctx context.Context, args []string) error {
	verb, rest := splitVerb(args)
	set, file := flags("roster " + verb)
	chain := set.String("chain", "", "`id` of the chain")
	store := set.String("store", "", "`id` of the store")
	var e ledger.RosterEntry
	set.StringVar(&e.Kind, "kind", "", "set, delete: agent, workstation or counter")
	set.StringVar(&e.ID, "id", "", "set, delete: its `id`")
	first := set.String("from", "", "set: expected from this business `day` on")
	last := set.String("to", "", "set: and up to this `day`; none = until further notice")
	day := set.String("day", time.Now().Format(time.DateOnly), "list: who is expected on this business `day`")
	led, err := openChain(ctx, set, file, chain, rest)
	if err != nil {
		return err
	}
	defer led.Close()
	if !protocol.ValidID(*store) {
		return fmt.Errorf("-store: %q is not an id", *store)
	}
	switch verb {
	case "set":
		if e.FirstDay, err = parseDay("from", *first); err != nil {
			return err
		}
		if e.LastDay, err = parseDay("to", *last); err != nil {
			return err
		}
		return led.PutRoster(ctx, *chain, *store, e)
	case "delete":
		return led.DeleteRoster(ctx, *chain, *store, e.Kind, e.ID)
	case "list":
		on, err := parseDay("day", *day)
		if err != nil {
			return err
		}
		rows, err := led.Roster(ctx, *chain, *store, on)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "KIND\tID\tEXPECTED\tWHY\tFROM\tTO")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\t%t\t%s\t%s\t%s\n", r.Kind, r.ID, r.Expected, r.Why, r.FirstDay, r.LastDay)
		}
		return w.Flush()
	}
	return fmt.Errorf("unknown `roster %s` (list, set or delete)", verb)
}

// parseDay reads the day of a flag; "" is the zero Day.
func parseDay(name, s string) (protocol.Day, error) {
	if s == "" {
		return protocol.Day{}, nil
	}
	d, err := protocol.ParseDay(s)
	if err != nil {
		return d, fmt.Errorf("-%s: %w", name, err)
	}
	return d, nil
}
