// Command storelay-agent runs on a store's PC: it takes what counters, drawers and tills say,
// keeps it on disk, and sends it to a relay.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	_ "time/tzdata" // the store's zone, whatever the PC knows

	"github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/config"
)

// version is stamped by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "storelay-agent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	switch strings.TrimLeft(args[0], "-") {
	case "run":
		return serve(ctx, args[1:])
	case "check":
		return check(args[1:])
	case "drain":
		return drain(ctx, args[1:])
	case "version":
		fmt.Println(version)
		return nil
	case "help", "h":
		fmt.Print(`storelay-agent: the store PC's part of Storelay

Usage: storelay-agent COMMAND [flags]   (COMMAND -h explains its flags)

  run      read devices and tills, and send to the relay, until told to stop
  check    read the configuration and say all that is wrong with it
  drain    deliver what a former agent of this PC still holds, after a new enrolment
  version  print the version
`)
		return nil
	}
	return fmt.Errorf("unknown command %q (`storelay-agent help` lists them)", args[0])
}

// load parses the flags and reads the configuration file.
func load(name string, args []string) (core.Config, string, error) {
	cfg, set, err := loadSet(name, "", args)
	return cfg, set.Lookup("config").Value.String(), err
}

// loadSet is load for a command with arguments, which usage tells.
func loadSet(name, usage string, args []string) (core.Config, *flag.FlagSet, error) {
	set := flag.NewFlagSet("storelay-agent "+name, flag.ContinueOnError)
	file := set.String("config", core.DefaultConfig(), "configuration `file`")
	if usage != "" {
		set.Usage = func() {
			fmt.Fprintln(set.Output(), usage)
			set.PrintDefaults()
		}
	}
	if err := set.Parse(args); err != nil {
		return core.Config{}, set, err
	}
	cfg, err := core.LoadConfig(*file)
	return cfg, set, err
}

func drain(ctx context.Context, args []string) error {
	cfg, set, err := loadSet("drain", `Usage: storelay-agent drain [flags] [FOLDER ...]

Delivers the journals of former agents of this PC, under its present identity, into the
relay's quarantine, where a person decides about them. Without a FOLDER it takes all that
were ever set aside in the data folder. The agent may run meanwhile. A folder that is
delivered is renamed to NAME.drained-N; N is the incarnation of the ledger then. After a
ledger was restored from a backup run it again: what the backup lacks is delivered once
more, for as long as the journal retains it. It is safe to run it again at any time.
`, args)
	if err != nil {
		return err
	}
	folders := set.Args()
	told := ""
	err = core.Drain(ctx, cfg, core.Options{Version: version, Log: config.Logger(cfg.Log, os.Stderr)}, folders, func(p core.DrainProgress) {
		line := fmt.Sprintf("%s: %s\n", p.Folder, progress(p))
		if line != told {
			fmt.Print(line)
			told = line
		}
	})
	if err == nil && told == "" {
		fmt.Println("nothing is set aside")
	}
	return err
}

func progress(p core.DrainProgress) string {
	switch {
	case !p.Status.Welcomed && p.Status.LastError != "":
		return "waits for the relay: " + p.Status.LastError
	case !p.Status.Welcomed:
		return "waits for the relay"
	case p.Status.Rewinding:
		return "the ledger was restored; asks what it has"
	case p.Waiting == 0:
		return fmt.Sprintf("the relay has everything of %s", p.Of)
	}
	return fmt.Sprintf("%d records of %s are left", p.Waiting, p.Of)
}

func serve(ctx context.Context, args []string) error {
	cfg, _, err := load("run", args)
	if err != nil {
		return err
	}
	limitMemory()
	log := config.Logger(cfg.Log, os.Stderr)
	slog.SetDefault(log)
	agent, err := core.New(cfg, core.Options{Version: version, Log: log})
	if err != nil {
		return err
	}
	return agent.Run(ctx)
}

// limitMemory keeps the agent small beside a till program; GOGC and GOMEMLIMIT in the
// environment win.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(36 << 20)
	}
}

func check(args []string) error {
	_, file, err := load("check", args)
	if err != nil {
		return err
	}
	fmt.Println(file, "is fine")
	return nil
}
