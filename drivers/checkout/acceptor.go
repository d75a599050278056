package checkout

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

const (
	coinRefresh    = 10 * time.Second // the coins that are taken are said again: a reset forgets them
	coinUnanswered = 10               // polls in a row after which the acceptor is offline
	coinGoodbye    = 500 * time.Millisecond
	emitRetry      = time.Second
)

// A CoinAcceptor is the driver "cctalk": a coin acceptor on a ccTalk line. Every coin is one
// record. While records cannot be written, and when the agent ends, it takes no coins: it
// remembers five events only.
type CoinAcceptor struct {
	spec    drivers.Spec
	open    serialport.OpenFunc
	config  serialport.Config
	address byte
	mask    uint16
	master  bool
	poll    time.Duration
	timeout time.Duration
	scale   int64
	money   string // currency; "" = by the coin's name

	purse  purse // owned by Run
	loaded bool  // owned by Run
}

// CoinSettings are the keys of the driver.
func CoinSettings() []drivers.Setting {
	return append([]drivers.Setting{
		{Name: "address", Type: drivers.TypeInt, Default: 2, Min: 2, Max: 255, Help: "of the acceptor on the line"},
		{Name: "channels", Type: drivers.TypeInt, Default: 0xFFFF, Min: 0, Max: 0xFFFF, Help: "coins that are taken: the sum of 1 for coin 1, 2 for coin 2, 4 for coin 3 ...; 65535: all"},
		{Name: "coins", Type: drivers.TypeText, Default: "", Help: "values of coins that the acceptor does not name itself, in minor units: 1=10, 2=20, 3=50"},
		{Name: "currency", Type: drivers.TypeText, Default: "", Help: "ISO 4217 code of the coins; empty: EUR for coins named EU"},
		{Name: "coin_scale", Type: drivers.TypeInt, Default: 1, Min: 1, Max: 100_000, Help: "minor units for 1 in the acceptor's own names of coins, which are read as cents"},
		{Name: "master", Type: drivers.TypeBool, Default: true, Help: "also tell the acceptor as a whole to take coins; one that does not know that is not asked again"},
		{Name: "poll", Type: drivers.TypeDuration, Default: 200 * time.Millisecond, Min: int64(20 * time.Millisecond), Max: int64(900 * time.Millisecond), Help: "between two questions; some acceptors take no coins after a second without one"},
		{Name: "timeout", Type: drivers.TypeDuration, Default: 200 * time.Millisecond, Min: int64(20 * time.Millisecond), Max: int64(5 * time.Second), Help: "for one answer"},
	}, drivers.SerialSettings(9600)...)
}

// NewCoinAcceptor makes the driver; errors are protocol.Faults.
func NewCoinAcceptor(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
	v, faults := drivers.ReadSettings(spec, CoinSettings())
	d := &CoinAcceptor{
		spec: spec, open: open, config: portConfig(spec, v), address: byte(v.Int("address")), mask: uint16(v.Int("channels")), master: v.Bool("master"),
		poll: v.Duration("poll"), timeout: v.Duration("timeout"), scale: int64(v.Int("coin_scale")), money: v.Text("currency"),
		purse: purse{id: spec.ID, coins: map[byte]coin{}},
	}
	if _, ok := protocol.CurrencyExponent(d.money); !ok && d.money != "" {
		faults.Add("settings.currency", "an ISO 4217 code such as SEK", "unknown currency %q", d.money)
	}
	for part := range strings.SplitSeq(v.Text("coins"), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		number, value, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(strings.TrimSpace(number))
		minor, err2 := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		if err != nil || err2 != nil || n < 1 || n > 255 || minor < 1 || minor > 1_000_000 {
			faults.Add("settings.coins", "1=10, 2=20, 3=50", "not a coin's number and value: %q", part)
			continue
		}
		if d.money == "" {
			faults.Add("settings.currency", "an ISO 4217 code such as SEK", "missing: coins are given")
			break
		}
		d.purse.coins[byte(n)] = coin{asked: true, amount: &protocol.Money{Minor: minor, Currency: d.money}}
	}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	return d, nil
}

// load reads the stored state at the first Run; later the purse is ahead of it.
func (d *CoinAcceptor) load(host drivers.Host) error {
	if d.loaded {
		return nil
	}
	if err := drivers.LoadState(host, &d.purse.state, "stored state is unreadable"); err != nil {
		return err
	}
	d.loaded = true
	return nil
}

// Run implements drivers.Driver.
func (d *CoinAcceptor) Run(ctx context.Context, host drivers.Host) error {
	if err := d.load(host); err != nil {
		return err
	}
	port, err := d.open(ctx, d.config)
	if err != nil {
		return fmt.Errorf("open coin acceptor: %w", err)
	}
	defer port.Close()
	r := &accepting{d: d, host: host, port: port, buf: make([]byte, 512)}
	d.purse.doubt = nil
	err = r.serve(ctx)

	last, done := context.WithTimeout(context.WithoutCancel(ctx), coinGoodbye)
	defer done()
	if ctx.Err() != nil { // the line is good, the agent ends
		_, _, _ = r.ask(last, ccMessage(d.address, ccInhibits, 0, 0), 0) // it may be gone
	}
	d.purse.tell(host.Now())
	r.retry = time.Time{}
	r.deliver(last)
	return err
}

// accepting is one Run.
type accepting struct {
	d          *CoinAcceptor
	host       drivers.Host
	port       serialport.Port
	buf        []byte
	unanswered int
	taking     bool // coins, as the acceptor was last told
	told       time.Time
	retry      time.Time // of a record that the disk did not take
}

func (r *accepting) serve(ctx context.Context) error {
	p := &r.d.purse
	if err := r.names(ctx); err != nil {
		return err
	}
	for {
		answer, ok, err := r.ask(ctx, ccMessage(r.d.address, ccCredits), 1+2*ccBuffer)
		if err != nil {
			return err
		}
		now := r.host.Now()
		switch {
		case !ok:
			if r.unanswered++; r.unanswered >= coinUnanswered {
				return &drivers.Fault{Device: r.d.spec.ID, Err: ErrSilent, Hint: "acceptor off, another address, or no way back on the line"}
			}
		case answer.refused:
			r.host.Note("the acceptor refuses to tell its events")
		default:
			reading, resets := ccRead(answer.data), p.resets
			for _, e := range reading.events { // a coin is told with its value
				if c := p.coins[e.A]; e.A != 0 && !c.asked {
					if err := r.name(ctx, e.A); err != nil {
						return err
					}
					c = p.coins[e.A]
					c.asked = true
					p.coins[e.A] = c
				}
			}
			p.read(reading, now)
			if p.doubt != nil {
				continue // at once: coins may be falling
			}
			r.host.Online()
			if p.resets > resets {
				r.told = time.Time{} // it takes no coins now
			}
		}
		p.tick(now)
		r.deliver(ctx)
		if err := r.allow(ctx, len(p.out) == 0); err != nil {
			return err
		}
		if err := r.rest(ctx); err != nil {
			return err
		}
	}
}

// rest waits for the next poll; what comes meanwhile answers nothing.
func (r *accepting) rest(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, r.d.poll)
	defer cancel()
	for limited.Err() == nil {
		n, err := readUntil(ctx, limited, r.port, r.buf)
		if err != nil {
			return err
		}
		if n > 0 {
			r.host.Note("an answer came too late, or noise")
		}
	}
	return ctx.Err()
}

// allow tells the acceptor which coins it may take: none while records wait for the disk.
func (r *accepting) allow(ctx context.Context, take bool) error {
	now := r.host.Now()
	if take == r.taking && !r.told.IsZero() && now.Sub(r.told).Abs() < coinRefresh {
		return nil
	}
	var mask uint16
	if take {
		mask = r.d.mask
	}
	answer, ok, err := r.ask(ctx, ccMessage(r.d.address, ccInhibits, byte(mask), byte(mask>>8)), 0)
	if err != nil {
		return err
	}
	if !ok || answer.refused {
		r.host.Note("the acceptor was told which coins to take, and did not say yes")
		return nil // again at the next poll
	}
	r.taking, r.told = take, now
	if !take || !r.d.master {
		return nil
	}
	answer, ok, err = r.ask(ctx, ccMessage(r.d.address, ccMaster, 1), 0)
	if err != nil {
		return err
	}
	if !ok || answer.refused {
		r.host.Note("the acceptor does not know the master inhibit")
		r.d.master = false
	}
	return nil
}

// names asks for the coins that are not configured. An acceptor that does not answer the
// first of them does not tell.
func (r *accepting) names(ctx context.Context) error {
	for n := byte(1); n <= ccCoins; n++ {
		if err := r.name(ctx, n); err != nil {
			return err
		}
		if !r.d.purse.coins[1].asked {
			return nil
		}
	}
	return nil
}

// name asks for a coin, three times at most.
func (r *accepting) name(ctx context.Context, n byte) error {
	for range 3 {
		if r.d.purse.coins[n].asked {
			return nil
		}
		answer, ok, err := r.ask(ctx, ccMessage(r.d.address, ccCoinID, n), ccCoinNames)
		switch {
		case err != nil:
			return err
		case ok && answer.refused:
			r.d.purse.coins[n] = coin{asked: true}
		case ok:
			r.d.purse.coins[n] = r.d.coin(answer.data)
		}
	}
	return nil
}

// coin reads a name such as EU100A: country, value, revision.
func (d *CoinAcceptor) coin(name []byte) coin {
	c := coin{asked: true, name: strings.TrimRight(strings.ToValidUTF8(string(name), ""), " .\x00")}
	currency := d.money
	if currency == "" && strings.HasPrefix(c.name, "EU") {
		currency = "EUR"
	}
	if len(c.name) < 5 || currency == "" {
		return c
	}
	value, err := strconv.ParseUint(c.name[2:5], 10, 16)
	if err != nil || value == 0 {
		return c
	}
	c.amount = &protocol.Money{Minor: int64(value) * d.scale, Currency: currency}
	return c
}

// ask sends a message and waits for its answer; ok is false when none came. An error means
// that the port is lost.
func (r *accepting) ask(ctx context.Context, message []byte, length int) (answer ccAnswer, ok bool, err error) {
	if err := write(ctx, r.port, message); err != nil {
		return answer, false, err
	}
	limited, cancel := context.WithTimeout(ctx, r.d.timeout)
	defer cancel()
	var got []byte
	for {
		n, err := readUntil(ctx, limited, r.port, r.buf)
		if err != nil {
			return answer, false, err
		}
		if n == 0 {
			if len(got) > len(message) { // more than our echo
				r.host.Note("unreadable answer")
			}
			return answer, false, nil
		}
		got = append(got, r.buf[:n]...)
		if answer, ok = ccFind(got, r.d.address, length); ok {
			r.unanswered = 0
			return answer, true, nil
		}
	}
}

// deliver emits in order. What the host refuses is tried again in a second; no coins are
// taken meanwhile, so few wait.
func (r *accepting) deliver(ctx context.Context) {
	p := &r.d.purse
	if r.host.Now().Before(r.retry) {
		return
	}
	for len(p.out) > 0 {
		next := p.out[0]
		state, err := json.Marshal(next.state)
		if err != nil {
			panic("checkout: state does not encode: " + err.Error()) // numbers only
		}
		if err := r.host.Emit(ctx, protocol.KindCashIn, next.record, state); err != nil {
			r.host.Note("coin record not accepted, kept")
			r.retry = r.host.Now().Add(emitRetry)
			return
		}
		p.out = p.out[1:]
	}
}
