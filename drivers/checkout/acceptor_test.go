package checkout

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
)

// A bench is a coin acceptor at address 2, as the manuals describe it.
type bench struct {
	mu     sync.Mutex // guards what follows
	state  ccReading
	mask   uint16
	asked  int  // for credits
	silent bool // answers nothing
	echo   bool
	names  map[byte]string
	buf    []byte
	last   time.Time // of the last question for credits
}

// answer takes what the host sent.
func (b *bench) answer(sent []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, sent...)
	var out []byte
	if b.echo {
		out = slices.Clone(sent)
	}
	for len(b.buf) >= 5 && len(b.buf) >= 5+int(b.buf[1]) {
		m := b.buf[:5+int(b.buf[1])]
		b.buf = b.buf[len(m):]
		if !b.silent {
			out = append(out, b.obey(m[3], m[4:len(m)-1])...)
		}
	}
	return out
}

func (b *bench) obey(header byte, data []byte) []byte {
	say := func(header byte, data ...byte) []byte {
		m := append([]byte{1, byte(len(data)), 2, header}, data...)
		var sum byte
		for _, x := range m {
			sum += x
		}
		return append(m, -sum)
	}
	switch header {
	case 229:
		b.asked++
		b.last = time.Now()
		out := []byte{b.state.counter}
		for _, e := range b.state.events {
			out = append(out, e.A, e.B)
		}
		return say(0, out...)
	case 231:
		b.mask = uint16(data[0]) | uint16(data[1])<<8
		return say(0)
	case 184:
		if name, ok := b.names[data[0]]; ok {
			return say(0, []byte(name)...)
		}
		return say(5)
	}
	return nil // 228 is not known here
}

// coin puts one in; it comes back when it is not wanted.
func (b *bench) coin(n byte) (taken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mask&(1<<(n-1)) == 0 {
		return false
	}
	copy(b.state.events[1:], b.state.events[:4])
	b.state.events[0] = ccEvent{n, 1}
	b.state.counter++
	return true
}

func (b *bench) power() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state, b.mask = ccReading{}, 0
}

func newBench() *bench {
	return &bench{names: map[byte]string{1: "EU100A", 2: "EU020A", 3: "GB050A"}}
}

func TestCoinsBecomeRecordsWithTheirValue(t *testing.T) {
	for _, echo := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			host, b := &memoryHost{}, newBench()
			b.echo = echo
			r := start(t, host, NewCoinAcceptor, map[string]any{"coins": "4=5", "currency": "EUR"}, b.answer)
			time.Sleep(2 * time.Second)
			for _, n := range []byte{1, 2, 4, 5} {
				if !b.coin(n) {
					t.Errorf("coin %d came back", n)
				}
			}
			time.Sleep(time.Second)
			if want := []string{"reset/0//0", "accepted/1/1.00 EUR/0", "accepted/2/0.20 EUR/0", "accepted/4/0.05 EUR/0", "accepted/5//0"}; !slices.Equal(host.said(), want) {
				t.Errorf("records = %q, want %q", host.said(), want)
			}
			r.stop()
			if host.online == 0 {
				t.Error("never online")
			}
			if b.coin(1) {
				t.Error("a coin was taken after the agent had ended")
			}
		})
	}
}

func TestWithoutACurrencyOnlyEurosHaveAValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, b := &memoryHost{}, newBench()
		r := start(t, host, NewCoinAcceptor, nil, b.answer)
		time.Sleep(2 * time.Second)
		b.coin(1)
		b.coin(3)
		time.Sleep(time.Second)
		r.stop()
		if want := []string{"reset/0//0", "accepted/1/1.00 EUR/0", "accepted/3//0"}; !slices.Equal(host.said(), want) {
			t.Errorf("records = %q, want %q", host.said(), want)
		}
	})
}

// After power-up an acceptor takes no coins until it is told again.
func TestAnAcceptorThatWasSwitchedOffTakesCoinsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, b := &memoryHost{}, newBench()
		r := start(t, host, NewCoinAcceptor, nil, b.answer)
		time.Sleep(2 * time.Second)
		b.coin(1)
		time.Sleep(time.Second)
		b.power()
		if b.coin(1) {
			t.Fatal("taken right after power-up")
		}
		time.Sleep(time.Second)
		if !b.coin(2) {
			t.Error("not taken a second later")
		}
		time.Sleep(time.Second)
		b.power() // before anything was counted
		time.Sleep(time.Second)
		b.power()
		time.Sleep(coinRefresh + time.Second)
		if !b.coin(2) {
			t.Error("not taken after a reset that nobody could see")
		}
		r.stop()
		if want := []string{"reset/0//0", "accepted/1/1.00 EUR/0", "reset/0//0", "accepted/2/0.20 EUR/0", "reset/0//0"}; !slices.Equal(host.said()[:5], want) {
			t.Errorf("records = %q, want %q", host.said(), want)
		}
	})
}

func TestNoCoinsAreTakenWhileTheDiskIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, b := &memoryHost{}, newBench()
		r := start(t, host, NewCoinAcceptor, nil, b.answer)
		time.Sleep(2 * time.Second)
		host.setRefuse(true)
		b.coin(1)
		time.Sleep(time.Second)
		if b.coin(1) {
			t.Error("a coin was taken that cannot be written down")
		}
		host.setRefuse(false)
		time.Sleep(3 * time.Second)
		if !b.coin(2) {
			t.Error("not taken after the disk had room again")
		}
		time.Sleep(time.Second)
		r.stop()
		if want := []string{"reset/0//0", "accepted/1/1.00 EUR/0", "accepted/2/0.20 EUR/0"}; !slices.Equal(host.said(), want) {
			t.Errorf("records = %q, want %q", host.said(), want)
		}
	})
}

// The agent dies with a coin read and not on the disk: the next start reads it again.
func TestACrashLosesNoCoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, b := &memoryHost{}, newBench()
		r := start(t, host, NewCoinAcceptor, nil, b.answer)
		time.Sleep(2 * time.Second)
		b.coin(1)
		time.Sleep(time.Second)
		host.setRefuse(true)
		b.coin(2)
		time.Sleep(time.Second)
		r.hangUp() // and the driver is gone with what it held
		host.setRefuse(false)
		r = start(t, host, NewCoinAcceptor, nil, b.answer)
		time.Sleep(2 * time.Second)
		r.stop()
		if want := []string{"reset/0//0", "accepted/1/1.00 EUR/0", "accepted/2/0.20 EUR/0"}; !slices.Equal(host.said(), want) {
			t.Errorf("records = %q, want %q", host.said(), want)
		}
	})
}

func TestASilentAcceptorEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		b.silent = true
		host := &memoryHost{}
		r := start(t, host, NewCoinAcceptor, nil, b.answer)
		err := <-r.done
		var fault *drivers.Fault
		if !errors.Is(err, ErrSilent) || !errors.As(err, &fault) || fault.Hint == "" || host.online != 0 {
			t.Errorf("Run = %v with %d signs of life, want ErrSilent with a hint", err, host.online)
		}
		r.device.Close()
		<-r.read
	})
}

// Some acceptors take no coins when a second goes by without a question.
func TestThePollsAreNeverASecondApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench()
		r := start(t, &memoryHost{}, NewCoinAcceptor, nil, b.answer)
		time.Sleep(5 * time.Second)
		for range 60 {
			time.Sleep(time.Second)
			b.mu.Lock()
			if gap := time.Since(b.last); gap >= 900*time.Millisecond {
				t.Errorf("%s since the last question", gap)
			}
			b.mu.Unlock()
		}
		r.stop()
	})
}

func TestNoiseIsNotACoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, b := &memoryHost{}, newBench()
		hit := 0
		r := start(t, host, NewCoinAcceptor, nil, func(sent []byte) []byte {
			said := b.answer(sent)
			if hit++; len(said) > 0 && hit%3 == 0 {
				said[len(said)-1] ^= 0x10 // a bad checksum
			}
			return append(bytes.Repeat([]byte{1}, hit%4), said...)
		})
		time.Sleep(10 * time.Second)
		b.coin(1)
		time.Sleep(2 * time.Second)
		r.stop()
		if want := []string{"reset/0//0", "accepted/1/1.00 EUR/0"}; !slices.Equal(host.said(), want) {
			t.Errorf("records = %q, want %q", host.said(), want)
		}
		if host.noted("unreadable answer") == 0 {
			t.Error("no note of unreadable answers")
		}
	})
}

func TestCoinSettingsAreChecked(t *testing.T) {
	for field, settings := range map[string]map[string]any{
		"settings.coins":    {"coins": "1=0", "currency": "EUR"},
		"settings.currency": {"coins": "1=10"},
		"settings.address":  {"address": 1},
	} {
		_, err := NewCoinAcceptor(drivers.Spec{ID: "s", Port: "COM1", Settings: settings}, nil)
		expectFault(t, err, field)
	}
	_, err := NewCoinAcceptor(drivers.Spec{ID: "s", Port: "COM1", Settings: map[string]any{"currency": "KRO"}}, nil)
	expectFault(t, err, "settings.currency")
}
