package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/storelay/storelay/config"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/core"
	"github.com/storelay/storelay/relay/ledger"
)

func backup(ctx context.Context, args []string) error {
	set, file := flags("backup")
	out := set.String("out", "", "`file` to write the ledger to; it must not be there yet")
	cfg, led, err := open(ctx, set, file, args)
	if err != nil {
		return err
	}
	defer led.Close()
	if *out == "" {
		return errors.New("-out: missing")
	}
	if err := led.Backup(ctx, *out); err != nil {
		return err
	}
	fmt.Printf("the ledger is in %s; keep a copy of %s apart from it (authority, deny list)\n", *out, cfg.CA)
	return nil
}

func restore(ctx context.Context, args []string) error {
	set, file := flags("restore")
	from := set.String("from", "", "`file` that backup has written; it replaces the embedded database")
	above := set.Int64("above", 0, "with -raise: an `incarnation` that agents have seen, as the alarm olderLedger says")
	raise := set.Bool("raise", false, "the database was restored by its own tools: only raise its incarnation and apply the deny list")
	cfg, err := load(set, file, args)
	if err != nil {
		return err
	}
	if (*from == "") != *raise {
		return errors.New("want either -from FILE or -raise")
	}
	denied, err := ca.Denied(cfg.CA).All()
	if err != nil {
		return err
	}
	options := ledger.Options{Log: config.Logger(cfg.Log, os.Stderr)}
	if *raise {
		return raised(ctx, cfg, *above, denied, options)
	}
	done, err := ledger.Restore(ctx, cfg.Database, *from, denied, options)
	if errors.Is(err, ledger.ErrInUse) {
		return fmt.Errorf("%w (stop the relay, and every other command that uses it)", err)
	} else if err != nil {
		return err
	}
	if done.Replaced != "" {
		fmt.Println("the ledger that was there is kept as", done.Replaced)
	}
	told(done.Incarnation)
	return nil
}

func raised(ctx context.Context, cfg core.Config, above int64, denied []protocol.Origin, options ledger.Options) error {
	led, err := ledger.Open(ctx, cfg.Database, options)
	if err != nil {
		return err
	}
	defer led.Close()
	if err := led.Revoke(ctx, denied...); err != nil {
		return err
	}
	incarnation, err := led.Raise(ctx, above)
	if err != nil {
		return err
	}
	told(incarnation)
	return nil
}

func told(incarnation int64) {
	fmt.Printf(`the ledger has incarnation %d; agents send again what they still hold and it lacks
what they do not do by themselves:
- where a PC was given a new identity, run 'storelay-agent drain' on it again: the records of its former agent come
  only so. Its status page says so under setAside, as soon as it has connected. Then look at 'storelay-relay quarantine list'
- what was done by hand since the backup is undone: stores, rosters, tokens, agents that retire, quarantined records that
  were applied. Do it again (revoked agents stay revoked)
- certificates of completeness that were given out since the backup are issued anew; 'storelay-relay audit' checks the whole
'storelay-relay alarms' says from when the backup is
`, incarnation)
}
