package ledger_test

import (
	"testing"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

func transaction(t testing.TB, tr protocol.Transaction) protocol.Record {
	return record(t, protocol.KindTransaction, tr)
}

func TestASaleIsARowANumberAndSums(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		acked(t, l, a, a.begin(transaction(t, sale("0001", 7)), transaction(t, sale("0001", 8))))

		rows, more, err := l.Transactions(t.Context(), ledger.TransactionQuery{Chain: chain, Store: "0001", Type: protocol.TypeSale, From: 1})
		if err != nil || more || len(rows) != 2 {
			t.Fatalf("transactions %+v, %v, %v, want two", rows, more, err)
		}
		r := rows[0]
		if r.Pos != 2 || r.Number != 1 || r.Sequence != 7 || r.Day != day || r.Total != 10000 || r.Currency != "SEK" || len(r.Flags) != 0 || r.Voided {
			t.Errorf("row %+v", r)
		}
		kpis, err := l.KPIs(t.Context(), chain, "", day, day)
		want := ledger.KPIRow{Store: "0001", Day: day, Currency: "SEK", Version: 3, Customers: 2, SalesTransactions: 2, UnitsSold: 2,
			GrossSales: 21000, Discounts: 1000, TurnoverIncl: 20000, TurnoverEx: 16000}
		if err != nil || len(kpis) != 1 || kpis[0] != want {
			t.Errorf("kpis %+v, %v\nwant %+v", kpis, err, want)
		}
		tenders, err := l.Tenders(t.Context(), chain, "0001", day)
		if err != nil || len(tenders) != 1 || tenders[0] != (ledger.TenderSum{Store: "0001", Day: day, Currency: "SEK", Type: "cash", Count: 2, Amount: 20000}) {
			t.Errorf("tenders %+v, %v", tenders, err)
		}
		if pos := heads(t, l); pos != 3 {
			t.Errorf("head %d, want 3", pos)
		}
	})
}
