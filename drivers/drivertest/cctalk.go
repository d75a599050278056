package drivertest

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"
)

// CoinAcceptorOptions shape a CoinAcceptor.
type CoinAcceptorOptions struct {
	Address  byte           // 0 = 2
	Coins    map[int]string // by channel, 1 to 16: six characters each; nil = euro coins from 5 cent to 2 euro
	Path     byte           // the sorter path of all coins; 0 = it has no sorter
	Echo     bool           // the adapter gives the host its own bytes back
	Patience time.Duration  // takes no coins when it was not asked for credits so long; 0 = never tires
	Answers  time.Duration  // from the request to the answer; 0 = 2 ms
	Inhibits bool           // the master inhibit stands after power-up too, not only each coin's
}

// A CoinAcceptor simulates a ccTalk coin acceptor (generic specification; Azkoyen X6 manual,
// pages 37 to 42): destination, length, source, header, data, and a byte that makes the sum of
// all 0. It knows
//
//	254 simple poll; 245 "Coin Acceptor"; 246, 244, 242 who it is; 1 reset
//	229 event counter and the last five events, newest first: channel and sorter path, or 0
//	    and an error code; the counter is 0 after power-up and then 1 to 255, and 1 again
//	231, 230 which coins it takes, none after power-up; 228, 227 whether it takes any
//	184 the name of a coin
//
// and does not answer a frame with a wrong sum, or for another address.
type CoinAcceptor struct {
	opts CoinAcceptorOptions
	out  *outbox

	mu      sync.Mutex // guards the fields below
	pending []byte
	heard   time.Time
	counter byte
	events  [10]byte
	taken   uint16 // the coins that are not inhibited
	enabled bool   // the master inhibit does not stand
	polled  time.Time
	polls   int
	truth   []int
	given   int
	bad     int
}

// NewCoinAcceptor makes an acceptor that has just been switched on.
func NewCoinAcceptor(opts CoinAcceptorOptions) *CoinAcceptor {
	if opts.Address == 0 {
		opts.Address = 2
	}
	if opts.Coins == nil {
		opts.Coins = map[int]string{1: "EU005A", 2: "EU010A", 3: "EU020A", 4: "EU050A", 5: "EU100A", 6: "EU200A"}
	}
	if opts.Answers == 0 {
		opts.Answers = 2 * time.Millisecond
	}
	return &CoinAcceptor{opts: opts, out: newOutbox(), enabled: !opts.Inhibits}
}

// Run speaks on the line until ctx ends or the line is lost.
func (a *CoinAcceptor) Run(ctx context.Context, line io.ReadWriter) error {
	return a.out.serve(ctx, line, a.feed, nil)
}

// Insert throws a coin in, and says whether it was kept.
func (a *CoinAcceptor) Insert(channel int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.takes(channel) {
		a.given++
		return false
	}
	a.truth = append(a.truth, channel)
	a.event(byte(channel), a.opts.Path)
	return true
}

// takes says whether the acceptor keeps a coin; a.mu is held.
func (a *CoinAcceptor) takes(channel int) bool {
	tired := a.opts.Patience > 0 && time.Since(a.polled) > a.opts.Patience
	return a.enabled && a.opts.Coins[channel] != "" && a.taken>>(channel-1)&1 != 0 && !tired
}

// Takes says whether the acceptor would keep a coin.
func (a *CoinAcceptor) Takes(channel int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.takes(channel)
}

// Trouble adds an error to the events: 1 rejected coin, 2 inhibited coin, and more.
func (a *CoinAcceptor) Trouble(code byte) { a.mu.Lock(); defer a.mu.Unlock(); a.event(0, code) }

func (a *CoinAcceptor) event(first, second byte) {
	copy(a.events[2:], a.events[:8])
	a.events[0], a.events[1] = first, second
	if a.counter++; a.counter == 0 {
		a.counter = 1
	}
}

// PowerCycle switches the acceptor off and on: counter, events and what the host has set are
// gone.
func (a *CoinAcceptor) PowerCycle() { a.mu.Lock(); defer a.mu.Unlock(); a.reset() }

func (a *CoinAcceptor) reset() {
	a.counter, a.events, a.taken, a.enabled, a.pending = 0, [10]byte{}, 0, !a.opts.Inhibits, nil
}

// Preset sets the event counter, to bring it near its end.
func (a *CoinAcceptor) Preset(counter byte) { a.mu.Lock(); defer a.mu.Unlock(); a.counter = counter }

// Counter is the event counter.
func (a *CoinAcceptor) Counter() byte { a.mu.Lock(); defer a.mu.Unlock(); return a.counter }

// Polls is how often the events were asked for.
func (a *CoinAcceptor) Polls() int { a.mu.Lock(); defer a.mu.Unlock(); return a.polls }

// Returned is how many coins were given back.
func (a *CoinAcceptor) Returned() int { a.mu.Lock(); defer a.mu.Unlock(); return a.given }

// Bad is how many frames had a wrong sum.
func (a *CoinAcceptor) Bad() int { a.mu.Lock(); defer a.mu.Unlock(); return a.bad }

// Truth lists the channels of all coins that were kept.
func (a *CoinAcceptor) Truth() []int { a.mu.Lock(); defer a.mu.Unlock(); return slices.Clone(a.truth) }

// ccTalkQuiet ends a frame that is not complete: 50 ms between bytes by the specification, and
// something for a pseudo-terminal.
const ccTalkQuiet = 100 * time.Millisecond

func (a *CoinAcceptor) feed(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.opts.Echo {
		a.out.send(slices.Clone(p))
	}
	now := time.Now()
	if now.Sub(a.heard) > ccTalkQuiet {
		a.pending = nil
	}
	a.heard = now
	a.pending = append(a.pending, p...)
	for len(a.pending) >= 5 {
		size := 5 + int(a.pending[1])
		if len(a.pending) < size {
			return
		}
		var sum byte
		for _, b := range a.pending[:size] {
			sum += b
		}
		if sum != 0 {
			a.bad++
			a.pending = a.pending[1:]
			continue
		}
		frame := a.pending[:size]
		a.pending = a.pending[size:]
		if frame[0] == a.opts.Address {
			a.obey(frame[2], frame[3], frame[4:size-1])
		}
	}
}

// obey does what a frame asks for and answers; a.mu is held.
func (a *CoinAcceptor) obey(host, header byte, data []byte) {
	answer := []byte{}
	switch {
	case header == 254:
	case header == 1:
		a.reset()
	case header == 246:
		answer = []byte("SIM")
	case header == 245:
		answer = []byte("Coin Acceptor")
	case header == 244:
		answer = []byte("CA-1")
	case header == 242:
		answer = []byte{0x39, 0x30, 0x00}
	case header == 229:
		a.polls++
		a.polled = time.Now()
		answer = append([]byte{a.counter}, a.events[:]...)
	case header == 231 && len(data) == 2:
		a.taken = uint16(data[0]) | uint16(data[1])<<8
	case header == 230:
		answer = []byte{byte(a.taken), byte(a.taken >> 8)}
	case header == 228 && len(data) == 1:
		a.enabled = data[0]&1 != 0
	case header == 227:
		answer = []byte{bit(a.enabled, 0)}
	case header == 184 && len(data) == 1:
		answer = []byte("......")
		if name := a.opts.Coins[int(data[0])]; name != "" {
			answer = []byte(name)
		}
	default:
		return // an unknown header is not answered
	}
	frame := append([]byte{host, byte(len(answer)), a.opts.Address, 0}, answer...)
	var sum byte
	for _, b := range frame {
		sum += b
	}
	frame = append(frame, -sum)
	time.AfterFunc(a.opts.Answers, func() { a.out.send(frame) })
}
