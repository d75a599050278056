package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

func agents(ctx context.Context, args []string) error {
	verb, rest := splitVerb(args)
	set, file := flags("agent " + verb)
	origin := agentFlags(set)
	led, err := openChain(ctx, set, file, &origin.Chain, rest)
	if err != nil {
		return err
	}
	defer led.Close()
	if verb == "list" {
		rows, err := led.Agents(ctx, origin.Chain)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "STORE\tAGENT\tSTATE\tVERSION\tLAST SEEN\tCLOCK")
		for _, a := range rows {
			seen := "never"
			if !a.LastSeen.IsZero() {
				seen = a.LastSeen.Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Store, a.Agent, a.State, a.Version, seen, clock(a.Skew))
		}
		return w.Flush()
	}
	state, known := map[string]string{"retire": ledger.AgentRetiring, "activate": ledger.AgentActive}[verb]
	if !known {
		return fmt.Errorf("unknown `agent %s` (list, retire or activate; `storelay-relay revoke` is for good)", verb)
	}
	if err := checkOrigin(origin); err != nil {
		return err
	}
	err = led.SetAgentState(ctx, *origin, state)
	switch {
	case errors.Is(err, ledger.ErrRevoked):
		return fmt.Errorf("%w (it stays so: issue a certificate for a new agent id)", err)
	case errors.Is(err, ledger.ErrNotFound):
		return fmt.Errorf("%w (`storelay-relay agent list -chain %s` lists them)", err, origin.Chain)
	case err == nil && state == ledger.AgentRetiring:
		fmt.Println(origin, "delivers what it holds, and gets no more feeds and commands")
	case err == nil:
		fmt.Println(origin, "is active")
	}
	return err
}

// clock says how far a PC's clock is off.
func clock(skew int64) string {
	d := (time.Duration(skew) * time.Second).Abs()
	switch {
	case skew > 0:
		return d.String() + " ahead"
	case skew < 0:
		return d.String() + " behind"
	}
	return "right"
}

func revoke(ctx context.Context, args []string) error {
	set, file := flags("revoke")
	origin := agentFlags(set)
	cfg, led, err := open(ctx, set, file, args)
	if err != nil {
		return err
	}
	defer led.Close()
	if err := checkOrigin(origin); err != nil {
		return err
	}
	if _, err := led.AgentState(ctx, *origin); errors.Is(err, ledger.ErrNotFound) {
		fmt.Println("the ledger did not know", origin, "yet; it is revoked all the same")
	} else if err != nil {
		return err
	}
	// The list first: it alone outlives the restore of an older database.
	if err := ca.Denied(cfg.CA).Add(*origin, time.Now()); err != nil {
		return err
	}
	if err := led.Revoke(ctx, *origin); err != nil {
		return err
	}
	fmt.Println(origin, "is let in no more; a live connection ends within seconds")
	return nil
}

func alarms(ctx context.Context, args []string) error {
	set, file := flags("alarms")
	chain := set.String("chain", "", "`id` of the chain")
	led, err := openChain(ctx, set, file, chain, args)
	if err != nil {
		return err
	}
	defer led.Close()
	rows, err := led.Alarms(ctx, *chain)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "FIRST SEEN\tSTORE\tAGENT\tALARM\tDETAIL")
	for _, a := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", a.At.Format(time.RFC3339), cmp.Or(a.Store, "(all)"), cmp.Or(a.Agent, "(all)"), a.Kind, a.Detail)
	}
	return w.Flush()
}
