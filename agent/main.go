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
	case "record":
		return record(ctx, args[1:])
	case "version":
		fmt.Println(version)
		return nil
	case "help", "h":
		fmt.Print(`storelay-agent: the store PC's part of Storelay

Usage: storelay-agent COMMAND [flags]   (COMMAND -h explains its flags)

  run      read devices and tills, and send to the relay, until told to stop
  check    read the configuration and say all that is wrong with it
  drain    deliver what a former agent of this PC still holds, after a new enrolment
  record   write down what passes through a serial port
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
were set aside in the data folder. The agent may run meanwhile. A folder that is delivered
is renamed to NAME.drained.
`, args)
	if err != nil {
		return err
	}
	folders := set.Args()
	told := int64(-1)
	err = core.Drain(ctx, cfg, core.Options{Version: version, Log: config.Logger(cfg.Log, os.Stderr)}, folders, func(p core.DrainProgress) {
		if p.Waiting != told {
			fmt.Printf("%s: %d records of %s are left\n", p.Folder, p.Waiting, p.Of)
			told = p.Waiting
		}
	})
	if err == nil && told < 0 {
		fmt.Println("nothing is set aside")
	}
	return err
}

func record(ctx context.Context, args []string) (err error) {
	var o core.RecordOptions
	set := flag.NewFlagSet("storelay-agent record", flag.ContinueOnError)
	file := set.String("o", "", "`file` of the recording; without it, standard output")
	limit := set.Duration("for", 0, "stop after this `time`; without it, when told to")
	set.StringVar(&o.Driver, "driver", "", "let this `driver` speak to the device, and note what it makes of it")
	set.StringVar(&o.Between, "between", "", "stand between the device and this other `port`, such as a till's")
	set.StringVar(&o.Send, "send", "", "send these `bytes` in hex when the port opens")
	set.DurationVar(&o.Every, "every", 0, "send them again at each `interval`")
	set.Func("set", "a setting of the driver or the line, such as `baud=19200`; may come several times", func(s string) error {
		o.Settings = append(o.Settings, s)
		return nil
	})
	set.Usage = func() {
		fmt.Fprint(set.Output(), `Usage: storelay-agent record PORT [flags]

Writes what passes through a serial port, both ways and with its time, as text that can be read
and cut. Stop the agent first: a port has one owner. A recording holds all that was said: codes
that were scanned, receipts, card slips. Look through it before you send it to anybody.

`)
		set.PrintDefaults()
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		o.Port, args = args[0], args[1:]
	}
	if err := set.Parse(args); err != nil {
		return err
	}
	if o.Port == "" && set.NArg() == 1 {
		o.Port = set.Arg(0)
	} else if o.Port == "" || set.NArg() > 0 {
		return errors.New("record: want one port, and flags after it (`storelay-agent record -h` explains them)")
	}
	o.Log, o.Out = config.Logger("warn", os.Stderr), os.Stdout
	if *file != "" {
		out, err2 := os.OpenFile(*file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err2 != nil {
			return fmt.Errorf("record: %w", err2)
		}
		defer func() { err = errors.Join(err, out.Close()) }()
		o.Out = out
	}
	if *limit > 0 {
		limited, cancel := context.WithTimeout(ctx, *limit)
		defer cancel()
		ctx = limited
	}
	return core.Record(ctx, o)
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
