// Command storelay-relay takes what the agents of a chain's stores send, keeps it in one
// ledger, and serves it to every other system.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	_ "time/tzdata" // the stores' zones, whatever the machine knows
)

// version is stamped by the build.
var version = "dev"

// A command is one word of the command line.
type command struct {
	name     string
	synopsis string
	run      func(ctx context.Context, args []string) error
}

// commands are in the order in which help prints them.
func commands() []command {
	return []command{
		{"serve", "run the relay until it is told to stop", serve},
		{"check", "read the configuration and say all that is wrong with it", check},
		{"ca", "init: make the certificate authority that agents trust", authority},
		{"issue", "write the identity folder of one agent", issue},
		{"agent", "list the agents of a chain, let one retire, or let it be active again", agents},
		{"revoke", "let an agent in no more", revoke},
		{"alarms", "list what a person must look at: lost records, cloned disks, wrong clocks, a restored ledger", alarms},
		{"token", "create, list or delete tokens for the API", token},
		{"store", "set or list the stores of a chain", store},
		{"quarantine", "list what could not be applied, or try one again", quarantine},
		{"roster", "say which agents, tills and counters a store is expected to have", roster},
		{"settle", "say what head office knows of the reasons why a day is incomplete", settle},
		{"audit", "look whether anyone has changed the ledger since agents and relay wrote it", audit},
		{"verify", "check a certificate of completeness, without relay or network", verify},
		{"backup", "write the whole ledger to a file, also while the relay serves", backup},
		{"restore", "put a backup in the place of the ledger, or say that the database was restored by its own tools", restore},
		{"version", "print the version", func(context.Context, []string) error { fmt.Println(version); return nil }},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "storelay-relay:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || strings.TrimLeft(args[0], "-") == "help" || args[0] == "-h" {
		usage()
		return nil
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(ctx, args[1:])
		}
	}
	return fmt.Errorf("unknown command %q (`storelay-relay help` lists them)", args[0])
}

func usage() {
	fmt.Println("storelay-relay: one ledger of all stores\n\nUsage: storelay-relay COMMAND [flags]   (COMMAND -h explains its flags)")
	fmt.Println()
	for _, c := range commands() {
		fmt.Printf("  %-11s %s\n", c.name, c.synopsis)
	}
}
