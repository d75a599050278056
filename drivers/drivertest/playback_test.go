package drivertest_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers/drivertest"
	"github.com/storelay/storelay/drivers/serialport"
)

func playback(t *testing.T, text string, opts drivertest.PlaybackOptions) *drivertest.Playback {
	t.Helper()
	p, err := drivertest.NewPlayback(strings.NewReader(text), opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const twoPolls = `
# cut from an evening
60.000 > 01 04 00 3C 00 04 31 C5
60.020 < 01 04 08 00 01 11 70
60.025 < 00 01 11 3E AA 07
61.000 > 01 04 00 3C 00 04 31 C5
61.020 < 01 84 06 C2 C2
`

func TestPlaybackAnswersAsInItsRecording(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playback(t, twoPolls, drivertest.PlaybackOptions{})
		c, _ := attach(t, p.Run, 1)
		time.Sleep(time.Second)
		same(t, "before it is asked", c.took(), "")
		same(t, "asked", c.ask("01 04 00 3C 00 04 31 C5", 20*time.Millisecond), "01 04 08 00 01 11 70")
		time.Sleep(5 * time.Millisecond)
		same(t, "then", c.took(), "00 01 11 3E AA 07")
		c.send("01 04 00 3C")
		time.Sleep(time.Second)
		same(t, "asked in two pieces", c.ask("00 04 31 C5", 20*time.Millisecond), "01 84 06 C2 C2")
		synctest.Wait()
		select {
		case <-p.Done():
		default:
			t.Error("the playback is not done")
		}
		if err := p.Err(); err != nil || len(p.Rest()) != 0 {
			t.Errorf("err %v, rest % X", err, p.Rest())
		}
	})
}

func TestPlaybackTellsWhereTheDriverDiffers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := playback(t, twoPolls, drivertest.PlaybackOptions{Quick: true})
		c, _ := attach(t, p.Run, 1)
		begins(t, "another unit asked", c.ask("02 04 00 3C 00 04 31 F6", time.Second), "01 04 08")
		same(t, "nothing asked in time", c.ask("FF", 5*time.Second), "01 84 06 C2 C2")
		err := p.Err()
		if err == nil || !strings.Contains(err.Error(), "entry 1 at 1m0s: the driver sent 02 04") || !strings.Contains(err.Error(), "entry 4 at 1m1s: the driver sent FF,") {
			t.Errorf("err is %v, want both differences", err)
		}
		loose := playback(t, twoPolls, drivertest.PlaybackOptions{Loose: true})
		c, _ = attach(t, loose.Run, 1)
		begins(t, "loose", c.ask("02 04 00 3C 00 04 31 F6", time.Second), "01 04 08")
		if err := loose.Err(); err != nil {
			t.Errorf("loose: %v", err)
		}
	})
}

func TestPlaybackMovesModemLines(t *testing.T) {
	bubble(t, func(t *testing.T) {
		fake := drivertest.NewFakePort("memory")
		port := openFake(t, fake, serialport.Config{})
		p := playback(t, "0 = CTS\n0.5 ! a hand\n1 = CTS DCD\n", drivertest.PlaybackOptions{})
		go p.Run(t.Context(), fake)
		for _, want := range []string{"CTS", "CTS DCD"} {
			synctest.Wait()
			if lines, err := port.ModemLines(); err != nil || lines.String() != want {
				t.Errorf("lines are %s, %v, want %s", lines, err, want)
			}
			time.Sleep(time.Second + time.Millisecond)
		}
		fake.HangUp()
	})
}

// A recording of a conversation with a simulator plays back as that conversation.
func TestRecordedConversationPlaysBack(t *testing.T) {
	talk := func(t *testing.T, run func(*drivertest.FakePort) func()) (heard, recording string) {
		t.Helper()
		fake := drivertest.NewFakePort("memory")
		stop := run(fake)
		var text strings.Builder
		recorder := serialport.NewRecorder(&text, time.Now)
		port, err := recorder.Open(fake.Open)(t.Context(), serialport.Config{Name: "memory"})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := port.Write(t.Context(), []byte("W")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 64)
			n, err := port.Read(t.Context(), buf)
			if err != nil {
				t.Fatal(err)
			}
			heard += string(buf[:n])
		}
		port.Close()
		stop()
		if err := recorder.Err(); err != nil {
			t.Error(err)
		}
		return heard, text.String()
	}
	bubble(t, func(t *testing.T) {
		serve := func(fake *drivertest.FakePort, run func() error) func() {
			done := make(chan struct{})
			go func() { defer close(done); run() }()
			return func() { fake.HangUp(); <-done }
		}
		heard, recording := talk(t, func(fake *drivertest.FakePort) func() {
			s := drivertest.NewScale(drivertest.ScaleOptions{})
			s.Place(1250)
			return serve(fake, func() error { return s.Run(t.Context(), fake) })
		})
		p := playback(t, recording, drivertest.PlaybackOptions{})
		again, _ := talk(t, func(fake *drivertest.FakePort) func() {
			return serve(fake, func() error { return p.Run(t.Context(), fake) })
		})
		if err := p.Err(); err != nil || again != heard || heard == "" {
			t.Errorf("heard %q, played back %q, %v", heard, again, err)
		}
	})
}
