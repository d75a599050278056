package core

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// The database may be an older one that was restored without our own command.
func TestADeniedAgentIsNotLetInWhateverTheLedgerSays(t *testing.T) {
	dir := t.TempDir()
	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(dir, "relay.db"), ledger.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer led.Close()
	r := &Relay{ledger: led, denied: ca.Denied(dir)}
	pc, unknown := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}, protocol.Origin{Chain: "demo", Store: "0001", Agent: "lost"}
	if err := led.RegisterAgent(t.Context(), pc); err != nil {
		t.Fatal(err)
	}
	for _, o := range []protocol.Origin{pc, unknown} {
		if err := r.allow(t.Context(), o, nil); err != nil {
			t.Errorf("%s before: %v", o, err)
		}
		if err := ca.Denied(dir).Add(o, time.Now()); err != nil { // another process
			t.Fatal(err)
		}
		if err := r.allow(t.Context(), o, nil); err == nil {
			t.Errorf("%s is let in, though it is denied", o)
		}
	}
}
