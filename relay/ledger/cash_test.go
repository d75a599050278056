package ledger_test

import (
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

func TestCoinsAreKeptAndBadOnesQuarantined(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		coin := protocol.CashIn{Acceptor: "coins", Event: protocol.CashAccepted, At: time.Unix(1, 0).UTC(), Number: 1, Channel: 3,
			Amount: &protocol.Money{Minor: 100, Currency: "EUR"}, Coin: "EU100A"}
		bad := coin
		bad.Number, bad.Channel = 2, 0
		acked(t, l, a, a.begin(record(t, protocol.KindCashIn, coin), record(t, protocol.KindCashIn, bad)))
		if got := records(t, l); len(got) != 2 || got[1].Kind != protocol.KindCashIn {
			t.Errorf("records %+v, want the seal and the coin", got)
		}
		if q := quarantined(t, l); len(q) != 1 || !strings.HasPrefix(q[0].Reason, "channel: ") {
			t.Errorf("quarantine %+v, want the coin without a channel", q)
		}
	})
}
