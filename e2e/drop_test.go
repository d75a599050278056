package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/storelay/storelay/e2e/chain"
)

// committed reads all transactions from the open API: id -> how often.
func committed(t *testing.T, c *chain.Chain) map[string]int {
	t.Helper()
	times := map[string]int{}
	for after := int64(0); ; {
		var page struct {
			Items []struct {
				Pos  int64
				Kind string
				Body struct {
					Workstation, BusinessDay, Type string
					SequenceNumber                 int64
				}
			}
			More bool
		}
		check(t, c.Get(t.Context(), "/v1/records?"+url.Values{"after": {strconv.FormatInt(after, 10)}, "limit": {"500"}}.Encode(), &page))
		for _, r := range page.Items {
			after = r.Pos
			if r.Kind == "transaction" {
				times[fmt.Sprintf("%s/%s/%d", r.Body.Workstation, r.Body.Type, r.Body.SequenceNumber)]++
			}
		}
		if !page.More {
			return times
		}
	}
}

// A filingTill writes files as tills do: whole ones under another name first, or piece by
// piece, and some of them twice.
type filingTill struct {
	random *rand.Rand
	want   map[string]bool
	n      int
}

func (f *filingTill) poslog(folder string) error {
	text := `<POSLog xmlns="http://www.nrf-arts.org/IXRetail/namespace/" MajorVersion="6" MinorVersion="0" FixVersion="0">`
	for range 1 + f.random.IntN(4) {
		f.n++
		kind, body := "sale", `<RetailTransaction><LineItem><Sale><ItemID>4711</ItemID><ExtendedAmount>129.00</ExtendedAmount><Quantity>1</Quantity></Sale></LineItem>
<LineItem><Tender TenderType="Cash"><Amount>129.00</Amount></Tender></LineItem><Total TotalType="TransactionGrandAmount">129.00</Total></RetailTransaction>`
		if f.n%5 == 0 {
			kind, body = "control", `<ControlTransaction><NoSale/></ControlTransaction>`
		}
		text += fmt.Sprintf(`<Transaction><RetailStoreID>0001</RetailStoreID><WorkstationID>X</WorkstationID><SequenceNumber>%d</SequenceNumber>
<BusinessDayDate>2026-11-21</BusinessDayDate><EndDateTime>2026-11-21T10:00:00</EndDateTime><CurrencyCode>SEK</CurrencyCode>%s</Transaction>`, f.n, body)
		f.want[fmt.Sprintf("X/%s/%d", kind, f.n)] = true
	}
	text += `</POSLog>`
	for copies := 0; copies == 0 || copies == 1 && f.random.IntN(4) == 0; copies++ {
		name := filepath.Join(folder, fmt.Sprintf("%06d-%d", f.n, copies))
		if err := os.WriteFile(name+".tmp", []byte(text), 0o600); err != nil {
			return err
		}
		if err := os.Rename(name+".tmp", name+".xml"); err != nil {
			return err
		}
	}
	return nil
}

func (f *filingTill) json(folder string) error {
	f.n++
	text := fmt.Sprintf(`{"workstation":"J","businessDay":"2026-11-21","sequenceNumber":%d,"type":"sale","begin":"2026-11-21T10:00:00+01:00","end":"2026-11-21T10:01:00+01:00","currency":"SEK",
"lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900}],"tenders":[{"type":"card","amount":12900}],"total":12900}`, f.n)
	f.want[fmt.Sprintf("J/sale/%d", f.n)] = true
	file, err := os.Create(filepath.Join(folder, fmt.Sprintf("%06d.json", f.n)))
	if err != nil {
		return err
	}
	for _, part := range []string{text[:100], text[100:250], text[250:]} {
		_, wrong := file.WriteString(part)
		err = errors.Join(err, wrong)
		wait(30 * time.Millisecond)
	}
	return errors.Join(err, file.Close())
}

// TestEDG04FilesDroppedWhileTheAgentIsKilled lets two tills write files while the agent is
// killed again and again: every transaction is committed once, no half-written file is read,
// and nothing lies about in the end but what is done.
func TestEDG04FilesDroppedWhileTheAgentIsKilled(t *testing.T) {
	c := start(t, chain.Options{Stores: 1, Interval: time.Second, NoDrawer: true, Drops: []map[string]any{
		{"id": "x", "format": "poslog", "ready": "rename", "poll": "50ms"},
		{"id": "j", "format": "json", "settle": "400ms", "poll": "100ms"},
	}})
	s := c.Stores[0]
	want := map[string]bool{}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan map[string]bool, 2)
	for i, write := range []func(f *filingTill) error{
		func(f *filingTill) error { return f.poslog(s.Drops[0]) }, func(f *filingTill) error { return f.json(s.Drops[1]) },
	} {
		go func() {
			f := &filingTill{random: rand.New(rand.NewPCG(4, uint64(i))), want: map[string]bool{}}
			for ctx.Err() == nil {
				if err := write(f); err != nil {
					t.Error(err)
				}
				wait(20 * time.Millisecond)
			}
			done <- f.want
		}()
	}
	random := rand.New(rand.NewPCG(4, 4))
	for range 20 * longer(t) {
		wait(time.Duration(100+random.IntN(600)) * time.Millisecond)
		check(t, s.Agent.Kill())
		check(t, s.Agent.Start())
	}
	stop()
	for range 2 {
		for id := range <-done {
			want[id] = true
		}
	}
	check(t, s.Awake(t.Context()))

	var times map[string]int
	for limit := time.Now().Add(2 * time.Minute); len(times) < len(want) && time.Now().Before(limit); wait(200 * time.Millisecond) {
		times = committed(t, c)
	}
	for id := range want {
		if times[id] != 1 {
			t.Errorf("%s is committed %d times, want once", id, times[id])
		}
	}
	if len(times) != len(want) || len(want) < 50 {
		t.Errorf("%d transactions are committed, want the %d that were written", len(times), len(want))
	}
	var quarantine struct{ Items []json.RawMessage }
	check(t, c.Get(t.Context(), "/v1/quarantine", &quarantine))
	if len(quarantine.Items) != 0 {
		t.Errorf("%d in quarantine: %s", len(quarantine.Items), quarantine.Items[0])
	}
	for _, folder := range s.Drops {
		left := []string{"?"}
		for limit := time.Now().Add(20 * time.Second); len(left) > 0 && time.Now().Before(limit); wait(100 * time.Millisecond) {
			left = nil
			for _, pattern := range []string{"*.*", "work/*.*", "rejected/*"} {
				found, err := filepath.Glob(filepath.Join(folder, pattern))
				check(t, err)
				left = append(left, found...)
			}
		}
		if len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	}
	var status struct {
		Drops []struct {
			ID, State, Problem string
			Rejected           int
		}
	}
	check(t, s.StatusInto(t.Context(), &status))
	if len(status.Drops) != 2 || status.Drops[0].State != "online" || status.Drops[1].Problem != "" || status.Drops[0].Rejected != 0 {
		t.Errorf("status %+v", status.Drops)
	}
	t.Logf("%d transactions in files, each committed once", len(want))
}
