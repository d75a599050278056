package till

import (
	"context"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

type fakeScale struct {
	got drivers.Weighing
	err error
}

func (s *fakeScale) Run(context.Context, drivers.Host) error         { return nil }
func (s *fakeScale) Weigh(context.Context) (drivers.Weighing, error) { return s.got, s.err }

type fakeScanner struct {
	scans []drivers.Scan
	err   error
	after string
}

func (s *fakeScanner) Run(context.Context, drivers.Host) error { return nil }
func (s *fakeScanner) Scans(ctx context.Context, after string) ([]drivers.Scan, string, error) {
	s.after = after
	if s.err != nil || len(s.scans) > 0 {
		return s.scans, "run-7", s.err
	}
	<-ctx.Done()
	return nil, "run-6", ctx.Err()
}

func (s *shop) get(path string) *httptest.ResponseRecorder {
	return s.do(call{method: "GET", path: path})
}

func TestAScaleIsAskedWhenTheTillAsks(t *testing.T) {
	s, scale := newShop(t), &fakeScale{}
	s.agent.devices["s1"] = scale
	at := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		got  drivers.Weighing
		want string
	}{
		{drivers.Weighing{State: drivers.WeightStable, Weight: protocol.Quantity{Milli: 420, Unit: "KGM"}, At: at}, `{"id":"s1","stable":true,"state":"stable","weight":{"milli":420,"unit":"KGM"},"at":"2026-03-02T12:00:00Z"}`},
		{drivers.Weighing{State: drivers.WeightZero, Weight: protocol.Quantity{Unit: "KGM"}, At: at}, `{"id":"s1","stable":true,"state":"zero","weight":{"milli":0,"unit":"KGM"},"at":"2026-03-02T12:00:00Z"}`},
		{drivers.Weighing{State: drivers.WeightMotion, At: at}, `{"id":"s1","stable":false,"state":"motion","weight":null,"at":"2026-03-02T12:00:00Z"}`},
	} {
		scale.got = tt.got
		if w := s.get("/v1/scales/s1"); w.Code != 200 || w.Body.String() != tt.want {
			t.Errorf("answer = %d %s, want %s", w.Code, w.Body, tt.want)
		}
	}
	scale.err = &drivers.Fault{Device: "s1", Err: drivers.ErrOffline, Hint: "off"}
	if p := expect(t, s.get("/v1/scales/s1"), 409, "scaleOffline"); p.Hint != "off" {
		t.Errorf("hint = %q", p.Hint)
	}
	scale.err = context.DeadlineExceeded
	expect(t, s.get("/v1/scales/s1"), 503, "scaleError")
	expect(t, s.get("/v1/scales/s2"), 404, "scale")
	s.agent.devices["s2"] = &fakeScanner{}
	expect(t, s.get("/v1/scales/s2"), 404, "scale")
	expect(t, s.do(call{method: "GET", path: "/v1/scales/s1", header: map[string]string{"Authorization": ""}}), 401, "token")
}

func TestATillWaitsForAScanButNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, scanner := newShop(t), &fakeScanner{}
		s.agent.devices["b1"] = scanner
		began := time.Now()
		if w := s.get("/v1/scanners/b1?wait=20s&after=run-6"); w.Code != 200 || w.Body.String() != `{"id":"b1","scans":[],"next":"run-6"}` {
			t.Errorf("answer = %d %s", w.Code, w.Body)
		}
		if waited := time.Since(began); waited != 20*time.Second || scanner.after != "run-6" {
			t.Errorf("waited %s after %q", waited, scanner.after)
		}
		scanner.scans = []drivers.Scan{{Data: "7350000100010", At: time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)}}
		if w := s.get("/v1/scanners/b1?wait=20s&after=run-6"); w.Code != 200 || w.Body.String() != `{"id":"b1","scans":[{"data":"7350000100010","at":"2026-03-02T12:00:00Z"}],"next":"run-7"}` {
			t.Errorf("answer = %d %s", w.Code, w.Body)
		}
		scanner.err = &drivers.Fault{Device: "b1", Err: drivers.ErrOffline}
		expect(t, s.get("/v1/scanners/b1?wait=20s"), 409, "scannerOffline")
		expect(t, s.get("/v1/scanners/b1?wait=31s"), 400, "wait")
		expect(t, s.get("/v1/scanners/b1?wait=x"), 400, "wait")
		expect(t, s.get("/v1/scanners/b2"), 404, "scanner")
	})
}

// A watchedDrawer is closed when it is told to.
type watchedDrawer struct {
	fakeDrawer
	changed chan struct{}
}

func (d *watchedDrawer) Changed() <-chan struct{} { return d.changed }

func TestATillWaitsUntilTheDrawerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop(t)
		d := &watchedDrawer{fakeDrawer{open: true, known: true}, make(chan struct{})}
		s.agent.devices["d1"] = d
		began := time.Now()
		if w := s.get("/v1/drawers/d1?wait=10s"); w.Code != 200 || w.Body.String() != `{"id":"d1","opened":true}` || time.Since(began) != 10*time.Second {
			t.Errorf("answer after %s = %d %s, want it open after all", time.Since(began), w.Code, w.Body)
		}
		answer := make(chan string)
		go func() { answer <- s.get("/v1/drawers/d1?wait=10s").Body.String() }()
		time.Sleep(time.Second)
		synctest.Wait()
		d.open = false
		close(d.changed)
		if got := <-answer; got != `{"id":"d1","opened":false}` {
			t.Errorf("answer = %s, want it closed", got)
		}
		d.known = false // nothing to wait for
		began = time.Now()
		if w := s.get("/v1/drawers/d1?wait=10s"); w.Body.String() != `{"id":"d1","opened":null}` || time.Since(began) != 0 {
			t.Errorf("answer after %s = %s", time.Since(began), w.Body)
		}
		expect(t, s.get("/v1/drawers/d1?wait=1h"), 400, "wait")
	})
}
