package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/storelay/storelay/"

// rooms lists for each room what of ours its code may import (tests may import more). A
// name that ends in /... stands for the room and all below it.
var rooms = map[string][]string{
	"protocol":                  {},
	"protocol/mutant":           {},
	"protocol/identity":         {"protocol"},
	"protocol/link":             {"protocol", "protocol/mutant"},
	"protocol/link/mqtt":        {"protocol", "protocol/link"},
	"protocol/link/linktest":    {"protocol", "protocol/link"},
	"config":                    {"protocol"},
	"drivers":                   {"protocol"},
	"drivers/serialport":        {"drivers"},
	"drivers/counter":           {"protocol", "config", "drivers", "drivers/serialport", "protocol/mutant"},
	"drivers/drawer":            {"protocol", "drivers", "drivers/serialport"},
	"drivers/checkout":          {"protocol", "drivers", "drivers/serialport"},
	"drivers/till":              {"protocol", "drivers"},
	"drivers/filedrop":          {"protocol", "drivers", "drivers/till"},
	"drivers/catalog":           {"protocol", "drivers/..."},
	"drivers/drivertest":        {"protocol", "drivers", "drivers/serialport"},
	"agent":                     {"agent/core", "config"},
	"agent/core":                {"protocol/...", "config", "drivers/...", "agent/journal"},
	"agent/journal":             {"protocol", "protocol/link", "protocol/mutant"},
	"agent/journal/journaltest": {"protocol", "agent/journal"},
	"relay":                     {"protocol/...", "relay/...", "config"},
	"relay/ca":                  {"protocol", "protocol/identity"},
	"relay/broker":              {"protocol", "protocol/link", "protocol/identity", "relay/ca"},
	"relay/ledger":              {"protocol", "protocol/mutant", "relay/ca"},
	"relay/ledger/ledgertest":   {"protocol", "relay/ledger"},
	"relay/connect":             {"protocol", "relay/ledger", "protocol/mutant"},
	"relay/connect/connecttest": {"protocol", "relay/ledger"},
	"relay/api":                 {"protocol", "relay/ledger", "relay/connect"},
	"relay/web":                 {},
	"relay/core":                {"protocol/...", "config", "relay/..."},
	"e2e":                       {"..."},
	"e2e/chain":                 {"..."},
	"e2e/demo":                  {"..."},
	"e2e/powercut":              {"..."},
	"e2e/sim":                   {"..."},
	"e2e/sim/run":               {"e2e/sim"},
}

// owners are the rooms that may import a third-party module (by prefix).
var owners = map[string][]string{
	"github.com/dgraph-io/badger":         {"agent/journal"},
	"github.com/klauspost/compress":       {"agent/journal", "protocol/link"},
	"github.com/eclipse/paho.mqtt.golang": {"protocol/link/mqtt"},
	"github.com/mochi-mqtt/server":        {"relay/broker"},
	"go.bug.st/serial":                    {"drivers/serialport"},
	"github.com/creack/pty":               {"drivers/drivertest"},
	"modernc.org/sqlite":                  {"relay/ledger"},
	"github.com/jackc/pgx":                {"relay/ledger", "relay/ledger/ledgertest"},
	"github.com/pressly/goose":            {"relay/ledger"},
	"github.com/danielgtaylor/huma":       {"relay/api"},
	"github.com/standard-webhooks":        {"relay/connect"},
	"github.com/goccy/go-yaml":            {"config"},
	"golang.org/x/":                       {"..."},
	"pgregory.net/rapid":                  {"protocol/link/linktest", "relay/ledger/ledgertest"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func goList(t *testing.T, env ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	cmd.Env = append(cmd.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func allowed(room string, list []string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		base, tree := strings.CutSuffix(a, "...")
		return room == a || tree && (strings.HasPrefix(room+"/", base))
	})
}

// TestImportRules holds the house together: who may import whom (docs/ARCHITECTURE.md), and
// one owner per third-party package.
func TestImportRules(t *testing.T) {
	packages := append(goList(t), goList(t, "GOOS=windows")...)
	seen := map[string]bool{}
	for _, p := range packages {
		room := strings.TrimPrefix(p.ImportPath, module)
		may, known := rooms[room]
		if !known {
			t.Errorf("room %s is not in the table of rooms: say what it may import", room)
			continue
		}
		seen[room] = true
		for _, imported := range p.Imports {
			first, _, _ := strings.Cut(imported, "/")
			switch ours, is := strings.CutPrefix(imported, module); {
			case is && !allowed(ours, may):
				t.Errorf("%s imports %s, it may import %v", room, ours, may)
			case !is && strings.Contains(first, "."):
				if !owned(imported, room) {
					t.Errorf("%s imports %s, which it does not own", room, imported)
				}
			}
		}
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("room %s is in the table and not in the house", room)
		}
	}
}

func owned(imported, room string) bool {
	for prefix, list := range owners {
		if strings.HasPrefix(imported, prefix) {
			return allowed(room, list)
		}
	}
	return false
}

// TestProtocolIsPure checks that the shared language needs the standard library alone.
func TestProtocolIsPure(t *testing.T) {
	for _, p := range goList(t) {
		if room := strings.TrimPrefix(p.ImportPath, module); room == "protocol" || room == "protocol/identity" || room == "relay/ca" {
			for _, imported := range p.Imports {
				if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") && !strings.HasPrefix(imported, module) {
					t.Errorf("%s imports %s", room, imported)
				}
			}
		}
	}
}
