package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/agent/journal/journaltest"
	"github.com/storelay/storelay/protocol"
)

// TestEDG05OnAFullDiskSalesAreRefusedLast fills a shop's disk, over the tills' own API.
func TestEDG05OnAFullDiskSalesAreRefusedLast(t *testing.T) {
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	const token = "a-secret-of-the-first-till"
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	disk := journaltest.NewDisk(1, func() time.Time { return now })
	free := uint64(1 << 30)
	disk.FreeBytes = func() uint64 { return free }
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Zone: "Europe/Stockholm", Log: "info",
		Tills:   []Till{{Workstation: "1", Token: token}},
		Devices: []Device{{ID: "door", Driver: "terabee", Port: "/dev/none"}}}
	a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler), Inline: true, Disk: disk, Index: journal.NewMemoryIndex(),
		Now: func() time.Time { return now }, Mono: func() time.Duration { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	sequence := 0
	sell := func() int {
		sequence++
		body := fmt.Sprintf(`{"sequenceNumber":%d,"type":"sale","begin":"2026-11-22T10:00:00Z","end":"2026-11-22T10:01:00Z","currency":"SEK",
			"lines":[{"type":"sale","item":"4711","quantity":{"milli":1000},"extendedAmount":12900}],"tenders":[{"type":"card","amount":12900}],"total":12900}`, sequence)
		req := httptest.NewRequest(http.MethodPost, "/v1/transactions", strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		req.Host = "127.0.0.1"
		res := httptest.NewRecorder()
		a.Handler().ServeHTTP(res, req)
		if res.Code == http.StatusInsufficientStorage && !strings.Contains(res.Body.String(), "full") {
			t.Errorf("507 says %s, want why", res.Body)
		}
		return res.Code
	}
	host, _ := a.Host("door")
	count := func(interval time.Duration) error {
		return host.Emit(context.Background(), protocol.KindFootfall, protocol.FootfallCount{Counter: "door", From: now.Add(-interval), To: now, In: 1, Quality: protocol.QualityOK}, []byte("{}"))
	}
	state := func() error {
		return host.Emit(context.Background(), protocol.KindDevice, protocol.DeviceState{Device: "door", Driver: "terabee", Class: "counter", State: protocol.DeviceOnline, At: now}, nil)
	}
	for _, tt := range []struct {
		free                             uint64 // MiB
		sale                             int
		minute, quarter, deviceIsRefused bool
	}{
		{200, 201, false, false, false},
		{90, 201, true, false, true}, // below the floor
		{40, 507, true, true, true},  // below half of it
		{200, 201, false, false, false},
	} {
		free = tt.free << 20
		if got := sell(); got != tt.sale {
			t.Errorf("%d MiB free: a sale is answered %d, want %d", tt.free, got, tt.sale)
		}
		for what, got := range map[string][2]bool{
			"count of a minute":  {errors.Is(count(time.Minute), journal.ErrFull), tt.minute},
			"count of a quarter": {errors.Is(count(15*time.Minute), journal.ErrFull), tt.quarter},
			"device state":       {errors.Is(state(), journal.ErrFull), tt.deviceIsRefused},
		} {
			if got[0] != got[1] {
				t.Errorf("%d MiB free: %s refused %v, want %v", tt.free, what, got[0], got[1])
			}
		}
	}
	if n := a.Journal().Stats().Waiting; n != 1+3+2+3+2 { // the seal; sales, counts of a minute and of a quarter, states
		t.Errorf("%d records, want all that were accepted", n)
	}
}

// TestNothingIsKeptOfARefusalWhileTheDiskIsNearlyFull sends what is refused for good, over the
// tills' own API: the room that is left is for sales, and the status says what was not kept.
func TestNothingIsKeptOfARefusalWhileTheDiskIsNearlyFull(t *testing.T) {
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	const token = "a-secret-of-the-first-till"
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	disk := journaltest.NewDisk(1, func() time.Time { return now })
	free := uint64(1 << 30)
	disk.FreeBytes = func() uint64 { return free }
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Zone: "Europe/Stockholm", Log: "info",
		Tills: []Till{{Workstation: "1", Token: token}}}
	a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler), Inline: true, Disk: disk, Index: journal.NewMemoryIndex(),
		Now: func() time.Time { return now }, Mono: func() time.Duration { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, path, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		req.Host = "127.0.0.1"
		res := httptest.NewRecorder()
		a.Handler().ServeHTTP(res, req)
		return res
	}
	for i, tt := range []struct {
		free          uint64 // MiB
		kept, notKept int
		full          string
	}{
		{200, 1, 0, ""},
		{90, 1, 1, "nearly full"}, // below the floor: sales are still accepted
		{40, 1, 2, "nearly full"},
		{200, 2, 2, ""},
	} {
		free = tt.free << 20
		if res := call(http.MethodPost, "/v1/transactions", fmt.Sprintf(`{"sequenceNumber":%d}`, i)); res.Code != http.StatusUnprocessableEntity {
			t.Errorf("%d MiB free: %d %s, want 422", tt.free, res.Code, res.Body)
		}
		var s Status
		if err := json.Unmarshal(call(http.MethodGet, "/v1/status", "").Body.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(filepath.Join(dir, "rejected"))
		if err != nil || len(files) != 2*tt.kept {
			t.Errorf("%d MiB free: %d files, %v; want a body and a report of each of %d", tt.free, len(files), err, tt.kept)
		}
		if s.Rejected != tt.kept || s.RejectedNotKept != tt.notKept || (s.RejectedFull == "") != (tt.full == "") || !strings.Contains(s.RejectedFull, tt.full) {
			t.Errorf("%d MiB free: %d kept, %d not, %q; want %d, %d, %q", tt.free, s.Rejected, s.RejectedNotKept, s.RejectedFull, tt.kept, tt.notKept, tt.full)
		}
	}
}

// TestACountThatIsWrittenDownWhileTheDriverEndsIsAccepted emits with a ctx that is done, as a
// driver does that is told to end while the disk is slow. An error would make it count again
// what is on the disk.
func TestACountThatIsWrittenDownWhileTheDriverEndsIsAccepted(t *testing.T) {
	dir := t.TempDir()
	identityFor(t, filepath.Join(dir, "identity"))
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	cfg := Config{Data: dir, Identity: filepath.Join(dir, "identity"), Relays: []string{"tls://127.0.0.1:1"}, Zone: "Europe/Stockholm", Log: "info",
		Devices: []Device{{ID: "door", Driver: "terabee", Port: "/dev/none"}}}
	a, err := New(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler), Inline: true,
		Disk: journaltest.NewDisk(1, func() time.Time { return now }), Index: journal.NewMemoryIndex(),
		Now: func() time.Time { return now }, Mono: func() time.Duration { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	host, _ := a.Host("door")
	ended, end := context.WithCancel(context.Background())
	end()
	for n := range int64(40) {
		count := protocol.FootfallCount{Counter: "door", From: now, To: now.Add(time.Minute), In: 1, RawIn: n, Quality: protocol.QualityOK}
		if err := host.Emit(ended, protocol.KindFootfall, count, []byte("{}")); err != nil {
			t.Fatalf("count %d is on the disk and refused: %v", n, err)
		}
	}
	if n := a.Journal().Stats().Waiting; n != 1+40 { // the seal
		t.Errorf("%d records, want 40 counts and the seal", n)
	}
}
