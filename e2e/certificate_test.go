package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	agentcore "github.com/storelay/storelay/agent/core"
	"github.com/storelay/storelay/drivers/till"
	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/protocol/identity"
	"github.com/storelay/storelay/protocol/link"
	"github.com/storelay/storelay/relay/ca"
	"github.com/storelay/storelay/relay/ledger"
)

// TestBEY01FromTheAgentsKeyToTheCertificate runs the agent's core and the ledger over two
// business days: what the agent signs with its client certificate makes the day complete for
// anyone who holds ca.crt, and a sale that is late restates it.
func TestBEY01FromTheAgentsKeyToTheCertificate(t *testing.T) {
	now := time.Date(2026, 3, 6, 10, 0, 0, 0, time.UTC) // a Friday
	clock := func() time.Time { return now }
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	dir, origin := t.TempDir(), protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc-1"}
	authority, err := ca.Create(filepath.Join(dir, "ca"))
	check(t, err)
	led, err := ledger.Open(t.Context(), "sqlite:"+filepath.Join(dir, "relay.db"), ledger.Options{Log: log, Now: clock, CA: authority, Inline: true})
	check(t, err)
	defer led.Close()
	check(t, led.PutStore(t.Context(), "demo", ledger.Store{ID: "0001", Zone: "Europe/Stockholm", CutOff: "04:00", Currency: "SEK"}))
	check(t, led.RegisterAgent(t.Context(), origin))
	cert, key, err := authority.IssueAgent(origin, time.Hour, nil)
	check(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	check(t, err)
	check(t, led.KeepCertificate(t.Context(), origin, pair.Leaf))
	folder := filepath.Join(dir, "identity")
	check(t, os.MkdirAll(folder, 0o700))
	for name, text := range map[string][]byte{identity.CertFile: cert, identity.KeyFile: key, identity.CAFile: authority.CertPEM()} {
		check(t, os.WriteFile(filepath.Join(folder, name), text, 0o600))
	}
	agent, err := agentcore.New(agentcore.Config{Data: filepath.Join(dir, "agent"), Identity: folder, Relays: []string{"tls://127.0.0.1:1"}, Zone: "Europe/Stockholm", CutOff: "04:00"},
		agentcore.Options{Version: "test", Log: log, Inline: true, Now: clock, Mono: func() time.Duration { return now.Sub(time.Date(2026, 3, 6, 0, 0, 0, 0, time.UTC)) }, BootID: "b"})
	check(t, err)
	defer agent.Close()

	rollOver := func() {
		t.Helper()
		_, err := agent.RollOver(t.Context())
		check(t, err)
	}
	sell := func(day protocol.Day, sequence int64) {
		t.Helper()
		sale := protocol.Transaction{Store: "0001", Workstation: "1", BusinessDay: day, Sequence: sequence, Type: protocol.TypeSale, Begin: now, End: now, Currency: "SEK",
			Lines: []protocol.LineItem{{Type: protocol.LineSale, Item: "A1", Quantity: protocol.Quantity{Milli: 1000}, ExtendedAmount: 100}}, Tenders: []protocol.Tender{{Type: protocol.TenderCard, Amount: 100}}, Total: 100}
		body, err := json.Marshal(sale)
		check(t, err)
		_, err = agent.Accept(t.Context(), till.Intake{Transaction: sale, Body: body, Keys: []string{"t:" + sale.ID().String()}, Digest: sha256.Sum256(body)})
		check(t, err)
	}
	receiver, id := link.NewReceiver(led), origin.Agent+"0123456789abcdef"
	agent.Sender().Connected(now, id)
	deliver := func() {
		t.Helper()
		for range 100 {
			out, _, err := agent.Sender().Step(now)
			check(t, err)
			for _, o := range out {
				answer, err := receiver.Handle(t.Context(), origin, id, o.Topic, o.Payload)
				check(t, err)
				if answer != nil {
					check(t, agent.Sender().Received(now, link.TopicDown, answer))
				}
			}
			if len(out) == 0 {
				return
			}
		}
		t.Fatal("the agent does not come to an end")
	}
	friday, saturday := protocol.Day{Year: 2026, Month: 3, Date: 6}, protocol.Day{Year: 2026, Month: 3, Date: 7}
	certificate := func(day protocol.Day) *ledger.DayCertificate {
		t.Helper()
		file, err := led.DayCertificate(t.Context(), "demo", "0001", day, 0)
		check(t, err)
		c, err := ledger.ReadDayCertificate(file, authority.Roots())
		check(t, err)
		return c
	}

	rollOver()
	sell(friday, 1)
	sell(friday, 2)
	deliver()
	now = now.Add(24 * time.Hour)
	if c := certificate(friday); c.State != ledger.DayIncomplete || c.Reasons[0].Kind != ledger.ReasonDayMark {
		t.Errorf("before the agent has marked Friday: %s, %+v", c.State, c.Reasons)
	}
	rollOver()
	deliver()
	if c := certificate(friday); c.State != ledger.DayComplete || c.Version != 2 || !c.Agents[0].Signed || c.Tills[0].Count != 2 {
		t.Errorf("after the agent has marked Friday: %+v", c)
	}
	sell(friday, 3) // by a till that was offline over night
	sell(saturday, 4)
	deliver()
	if c := certificate(friday); c.State != ledger.DayComplete || c.Version != 3 || c.Restates.Version != 2 || c.Tills[0].Count != 3 {
		t.Errorf("after a late sale: %+v", c)
	}
	now = now.Add(time.Hour)
	rollOver() // Friday again, behind the late sale
	deliver()
	if c := certificate(friday); c.State != ledger.DayComplete || c.Version != 4 || c.Agents[0].Mark.Head.Through != 8 {
		t.Errorf("after the mark of it: %+v", c)
	}
	report, err := led.Audit(t.Context(), ledger.AuditOptions{Roots: authority.Roots()})
	check(t, err)
	if len(report.Findings) != 0 || report.Marks != 4 || report.Certificates != 4 {
		t.Errorf("audit: %+v", report)
	}
}
