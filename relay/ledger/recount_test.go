package ledger_test

import (
	"slices"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
	"github.com/storelay/storelay/relay/ledger"
)

func TestRecountNamesWhatTheRecordsDoNotGive(t *testing.T) {
	fill := func(t *testing.T, url string) *ledger.Ledger {
		l, _ := open(t, url)
		a := newAgent(t, "0001", "pc", 1)
		void := sale("0001", 3)
		void.Type, void.Voids = protocol.TypeVoid, &protocol.TransactionID{Store: "0001", Workstation: "1", BusinessDay: day, Sequence: 2}
		at := timeOf(t, noon)
		acked(t, l, a, a.begin(append(sales(t, 1, 2), transaction(t, void),
			record(t, protocol.KindFootfall, protocol.FootfallCount{Counter: "door", In: 3, Quality: protocol.QualityOK}),
			record(t, protocol.KindDevice, protocol.DeviceState{Device: "door", State: protocol.DeviceOnline, At: at}),
			record(t, protocol.KindDrawer, protocol.DrawerEvent{Drawer: "d", Event: protocol.DrawerOpened, Cause: "manual", At: at}),
			record(t, protocol.KindDrawer, protocol.DrawerEvent{Drawer: "d", Event: protocol.DrawerOpenFailed, Cause: "manual", At: at}))...))
		mark := a.mark()
		acked(t, l, a, a.batch(record(t, protocol.KindDayMark, protocol.DayMark{Day: day, Head: mark, Signature: []byte{1}})))
		raise(t, l, 2)
		if got := commit(t, l, a, a.batch(sales(t, 4)...)); got.Verdict != protocol.VerdictAck {
			t.Fatalf("%+v", got)
		}
		raise(t, l, 3)
		return l
	}
	both(t, func(t *testing.T, url string) {
		l := fill(t, url)
		want := func(tables ...string) {
			t.Helper()
			found, err := l.Recount(t.Context(), chain)
			var got []string
			for _, d := range found {
				got = append(got, d.Table)
			}
			if err != nil || !slices.Equal(got, tables) {
				t.Errorf("differences %v, %v, want in %q", found, err, tables)
			}
		}
		digest := func() protocol.Hash {
			t.Helper()
			d, err := l.Digest(t.Context(), chain)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		want()
		before := digest()
		for _, tt := range []struct {
			change, undo string
			tables       []string
			digest       bool // whether it tells of it
		}{
			{"UPDATE kpis SET turnover_incl = turnover_incl + 1 WHERE currency <> ''", "UPDATE kpis SET turnover_incl = turnover_incl - 1 WHERE currency <> ''", []string{"kpis"}, true},
			{"UPDATE kpis SET version = version + 1", "UPDATE kpis SET version = version - 1", []string{"kpis", "kpis"}, false},
			{"UPDATE tender_days SET amount = amount + 1", "UPDATE tender_days SET amount = amount - 1", []string{"tender_days"}, true},
			{"UPDATE item_days SET units = units + 1", "UPDATE item_days SET units = units - 1", []string{"item_days"}, true},
			{"UPDATE voids SET sequence = 9", "UPDATE voids SET sequence = 2", []string{"voids", "voids"}, true},
			{"UPDATE devices SET state = 'fault' WHERE device = 'door'", "UPDATE devices SET state = 'online' WHERE device = 'door'", []string{"devices"}, true},
			{"UPDATE day_spans SET last_pos = 1", "UPDATE day_spans SET last_pos = 1000000001", []string{"day_spans"}, false},
			{"UPDATE day_marks SET head_seq = 1", "UPDATE day_marks SET head_seq = 8", []string{"day_marks"}, false},
			{"UPDATE business_keys SET pos = pos + 100", "UPDATE business_keys SET pos = pos - 100", []string{"business_keys"}, false},
			{"UPDATE numbers SET last = last + 1 WHERE type = 'sale'", "UPDATE numbers SET last = last - 1 WHERE type = 'sale'", []string{"numbers"}, false},
			{"UPDATE chains SET head = head - 1", "UPDATE chains SET head = head + 1", []string{"chains"}, false},
			{"UPDATE records SET voided = 1 WHERE pos = 2", "UPDATE records SET voided = 0 WHERE pos = 2", []string{"records"}, false},
			{"UPDATE records SET number = 7 WHERE pos = 3", "UPDATE records SET number = 2 WHERE pos = 3", []string{"numbers"}, false},
			{"UPDATE records SET pos = 77 WHERE pos = 9", "UPDATE records SET pos = 9 WHERE pos = 77", []string{"records"}, false},
		} {
			execute(t, url, tt.change)
			want(tt.tables...)
			if changed := digest() != before; changed != tt.digest {
				t.Errorf("%s: digest changed %v, want %v", tt.change, changed, tt.digest)
			}
			execute(t, url, tt.undo)
		}
		want()
		if digest() != before {
			t.Error("the digest is another though all was undone")
		}
		if found, err := l.Recount(t.Context(), "nobody"); err != nil || len(found) != 0 {
			t.Errorf("a chain that is not known: %v, %v", found, err)
		}
		// The other database gives the same digest.
		other := fill(t, sqliteURL(t))
		if d, err := other.Digest(t.Context(), chain); err != nil || d != before {
			t.Errorf("digest %s, %v, want %s", d, err, before)
		}
	})
}

// A ledger that works inline tells the time by the caller's clock alone.
func TestAnInlineLedgerNeedsNoGoroutineAndNoClock(t *testing.T) {
	now := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	l, err := ledger.Open(t.Context(), sqliteURL(t), ledger.Options{Inline: true, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := newAgent(t, "0001", "pc", 1)
	acked(t, l, a, a.begin(sales(t, 1)...))
	if got := records(t, l); len(got) != 2 || !got[1].Received.Equal(now) {
		t.Errorf("records %+v, want them received in 2001", got)
	}
	lease := func(holder string, want bool) {
		t.Helper()
		if got, err := l.Lease(t.Context(), "x", holder, time.Minute); err != nil || got != want {
			t.Errorf("lease for %s: %v, %v, want %v", holder, got, err, want)
		}
	}
	lease("one", true)
	lease("two", false)
	now = now.Add(2 * time.Minute)
	lease("two", true)
}
