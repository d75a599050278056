package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

// A desk runs commands on a data folder of its own.
type desk struct {
	t              *testing.T
	config, folder string
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, folder: t.TempDir()}
	d.config = filepath.Join(d.folder, "relay.yaml")
	if err := os.WriteFile(d.config, fmt.Appendf(nil, "data: %s\n", filepath.Join(d.folder, "data")), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// try runs a command, "agent list -chain demo", and gives what it prints.
func (d *desk) try(line string, more ...string) (string, error) {
	d.t.Helper()
	words := strings.Fields(line)
	verbs := 1
	for verbs < len(words) && !strings.HasPrefix(words[verbs], "-") {
		verbs++
	}
	args := append(append(append([]string{}, words[:verbs]...), "-config", d.config), append(words[verbs:], more...)...)
	stdout := os.Stdout
	read, write, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	os.Stdout = write
	err = run(d.t.Context(), args)
	os.Stdout = stdout
	closed := write.Close()
	printed, failed := io.ReadAll(read)
	if err := errors.Join(closed, failed, read.Close()); err != nil {
		d.t.Fatal(err)
	}
	return string(printed), err
}

// do wants a command to print something.
func (d *desk) do(want, line string, more ...string) {
	d.t.Helper()
	if got, err := d.try(line, more...); err != nil || !strings.Contains(got, want) {
		d.t.Fatalf("%s: %q, %v, want %q", line, got, err, want)
	}
}

// fails wants a command to fail and say why.
func (d *desk) fails(want, line string, more ...string) {
	d.t.Helper()
	if got, err := d.try(line, more...); err == nil || !strings.Contains(err.Error(), want) {
		d.t.Fatalf("%s: %q, %v, want an error with %q", line, got, err, want)
	}
}

func TestARevokedAgentStaysOutOfAnOlderBackup(t *testing.T) {
	d := newDesk(t)
	d.do("made the certificate authority", "ca init")
	pc := "-chain demo -store 0001 -agent pc"
	d.do("may connect", "issue "+pc, "-out", filepath.Join(d.folder, "id"))
	d.do("active", "agent list -chain demo")
	file := filepath.Join(d.folder, "monday.db")
	d.do("the ledger is in "+file, "backup", "-out", file)
	d.fails("file already exists", "backup", "-out", file)
	d.do("is let in no more", "revoke "+pc)
	d.fails("a new agent id", "issue "+pc, "-out", filepath.Join(d.folder, "id"))
	d.fails("a new agent id", "agent activate "+pc)

	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(d.folder, "data", "relay.db"), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.fails("stop the relay", "restore", "-from", file)
	if err := led.Close(); err != nil {
		t.Fatal(err)
	}
	d.do("run 'storelay-agent drain' on it again", "restore", "-from", file)
	d.do("(all)  (all)  restored  the ledger was restored and has incarnation 2, raised by `storelay-relay restore`; it had no record then", "alarms -chain demo")
	d.do("revoked", "agent list -chain demo")
	d.fails("either -from FILE or -raise", "restore")

	// A database that its own tools have put back knows nothing of it.
	data := filepath.Join(d.folder, "data", "relay.db")
	if err := os.Remove(data); err != nil {
		t.Fatal(err)
	}
	copied, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(data, copied, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.do("active", "agent list -chain demo")
	d.do("incarnation 2", "restore -raise")
	d.do("revoked", "agent list -chain demo")
}

func TestAgentsAndAlarmsAreListed(t *testing.T) {
	d := newDesk(t)
	d.do("made the certificate authority", "ca init")
	pc := "-chain demo -store 0001 -agent pc"
	d.do("may connect", "issue "+pc, "-out", filepath.Join(d.folder, "id"))
	d.do("gets no more feeds", "agent retire "+pc)
	d.do("retiring", "agent list -chain demo")
	d.do("is active", "agent activate "+pc)
	d.fails("agent list -chain demo", "agent retire -chain demo -store 0001 -agent nobody")
	d.fails("unknown `agent forget`", "agent forget "+pc)
	d.do("did not know demo/0009/lost", "revoke -chain demo -store 0009 -agent lost")

	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(d.folder, "data", "relay.db"), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := led.Welcome(context.Background(), protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}, protocol.Hello{Version: "1.2", Time: "2000-01-01T00:00:00Z"}); err != nil {
		t.Fatal(err)
	}
	if err := led.Close(); err != nil {
		t.Fatal(err)
	}
	d.do(" behind", "agent list -chain demo")
	d.do("the PC's clock is more than thirty days behind the relay's", "alarms -chain demo")
	d.fails("is not an id", "alarms")
}
