package checkout

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
)

func TestScansAreLines(t *testing.T) {
	for _, tt := range []struct {
		name, bytes string
		want        []string
	}{
		{"CR LF", "7350000100010\r\n5901234123457\r\n", []string{"7350000100010", "5901234123457"}},
		{"tab", "96385074\t", []string{"96385074"}},
		{"no end", "96385074", nil},
		{"GS1 with a separator", "]d20107350000100010\x1D10ABC\r", []string{"]d20107350000100010\x1D10ABC"}},
		{"UTF-8", "å\r", []string{"å"}},
		{"Latin-1", "\xE5\r", []string{"å"}},
		{"wrong baud", "\x00\x80\xF8\r", []string{"! " + errScanControl.Error()}},
		{"too long, then a good one", strings.Repeat("9", 40) + "\r12345670\r", []string{"! " + errScanLong.Error(), "12345670"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 3, len(tt.bytes)} {
				c := ScanCodec{Ends: []byte("\r\n\t"), Max: 32}
				var got []string
				for part := range slices.Chunk([]byte(tt.bytes), size) {
					c.Push(part, func(s string, err error) {
						if err != nil {
							s = "! " + err.Error()
						}
						got = append(got, s)
					})
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("in pieces of %d: %q, want %q", size, got, tt.want)
				}
			}
		})
	}
}

func TestAPrefixIsTakenOff(t *testing.T) {
	c := ScanCodec{Prefix: []byte{0x02}, Ends: []byte("\x03"), Max: 32}
	var got []string
	c.Push([]byte("\x0212345670\x03999\x03\x02\x03"), func(s string, err error) {
		if err != nil {
			s = err.Error()
		}
		got = append(got, s)
	})
	if want := []string{"12345670", errScanPrefix.Error()}; !slices.Equal(got, want) {
		t.Errorf("scans = %q, want %q", got, want)
	}
}

func FuzzScans(f *testing.F) {
	f.Add([]byte("7350000100010\r\n5901234123457\r"), uint8(4))
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		scans := func(parts ...[]byte) (got []string) {
			c := ScanCodec{Ends: []byte("\r\n"), Max: 32}
			for _, p := range parts {
				c.Push(p, func(s string, err error) {
					if err == nil && (s == "" || strings.ContainsAny(s, "\r\n\x00\x1B") || len([]rune(s)) > 32) {
						t.Errorf("scan %q", s)
					}
					got = append(got, s)
				})
			}
			return got
		}
		at := min(int(cut), len(data))
		if whole, parts := scans(data), scans(data[:at], data[at:]); !slices.Equal(whole, parts) {
			t.Errorf("cut at %d: %q, want %q", at, parts, whole)
		}
	})
}

func texts(scans []drivers.Scan) (s []string) {
	for _, x := range scans {
		s = append(s, x.Data)
	}
	return s
}

func TestTillsWaitForScans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, NewScanner, nil, nil)
		s := r.driver.(drivers.Scanner)
		r.send([]byte("before\r")...)
		got := make(chan []string)
		var next string
		go func() {
			scans, after, err := s.Scans(t.Context(), "")
			if err != nil {
				t.Error(err)
			}
			next = after
			got <- texts(scans)
		}()
		synctest.Wait()
		r.send([]byte("first\r")...)
		if g := <-got; !slices.Equal(g, []string{"first"}) {
			t.Errorf("scans = %q, want the one that came while the till waited", g)
		}
		r.send([]byte("second\rthird\r")...)
		scans, next, err := s.Scans(t.Context(), next)
		if err != nil || !slices.Equal(texts(scans), []string{"second", "third"}) {
			t.Errorf("scans = %q, %v", texts(scans), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if scans, again, err := s.Scans(ctx, next); !errors.Is(err, context.DeadlineExceeded) || len(scans) != 0 || again != next {
			t.Errorf("scans = %q, %q, %v, want none and the same cursor", texts(scans), again, err)
		}
		scans, _, err = s.Scans(t.Context(), "0123456789ab-7")
		if err != nil || !slices.Equal(texts(scans), []string{"before", "first", "second", "third"}) {
			t.Errorf("scans after another run's cursor = %q, %v", texts(scans), err)
		}
		r.stop()
	})
}

func TestOnlyTheLastScansAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, NewScanner, nil, nil)
		for range keptScans + 10 {
			r.send([]byte("x\r")...)
		}
		scans, _, err := r.driver.(drivers.Scanner).Scans(t.Context(), "other-0")
		if err != nil || len(scans) != keptScans {
			t.Errorf("%d scans, %v, want %d", len(scans), err, keptScans)
		}
		r.stop()
	})
}

func TestAPauseEndsAScan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, NewScanner, map[string]any{"ends": "", "idle": "100ms"}, nil)
		r.send([]byte("123")...)
		time.Sleep(50 * time.Millisecond)
		r.send([]byte("456")...)
		time.Sleep(time.Second)
		scans, _, err := r.driver.(drivers.Scanner).Scans(t.Context(), "other-0")
		if err != nil || !slices.Equal(texts(scans), []string{"123456"}) {
			t.Errorf("scans = %q, %v", texts(scans), err)
		}
		r.stop()
	})
}

func TestAScannerThatIsGoneIsOffline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, &memoryHost{}, NewScanner, nil, nil)
		s := r.driver.(drivers.Scanner)
		waiting := make(chan error)
		go func() {
			_, _, err := s.Scans(t.Context(), "")
			waiting <- err
		}()
		synctest.Wait()
		r.hangUp()
		if err := <-waiting; !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Scans = %v, want ErrOffline", err)
		}
		if _, _, err := s.Scans(t.Context(), ""); !errors.Is(err, drivers.ErrOffline) {
			t.Errorf("Scans = %v, want ErrOffline", err)
		}
	})
}

func TestScannerSettingsAreChecked(t *testing.T) {
	for field, settings := range map[string]map[string]any{
		"settings.ends":   {"ends": ""},
		"settings.prefix": {"prefix": `\x`},
	} {
		_, err := NewScanner(drivers.Spec{ID: "s", Port: "COM1", Settings: settings}, nil)
		expectFault(t, err, field)
	}
}
