package serialport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrNoReply is the end of an exchange whose reply did not come in time. The bus is as good
// as before.
var ErrNoReply = errors.New("no reply")

// Buses lets several drivers ask over one port in turn, as units on an RS-485 line are
// asked. The port has one owner at any time: whose turn it is. The zero Buses has none;
// there is one Buses for all devices of an agent. It is safe for concurrent use.
type Buses struct {
	mu    sync.Mutex // guards lines
	lines map[string]*busLine
}

// A busLine is one port and those who share it. What is below turn belongs to whoever has
// put a token into it; those who wait come in the order in which they began to wait.
type busLine struct {
	turn chan struct{} // cap 1

	port   Port // nil: not open
	config Config
	seats  int // of port
}

// A Seat is one driver's place at a bus. It is good for one port: when that is lost, take
// another.
type Seat struct {
	line *busLine
	port Port
	once sync.Once
}

// An Exchange is one request and its reply.
type Exchange struct {
	Request []byte
	Quiet   time.Duration // the line has been quiet for so long before the request; what came before is dropped
	Timeout time.Duration // from the request to the end of the reply
	// Reply is given what comes, in pieces, and says when the reply is whole.
	Reply func(piece []byte) (whole bool)
}

// Take gives a seat at the bus on config's port, which the first to come opens. All seats
// of one bus agree on the line settings; ErrSetting when they do not.
func (b *Buses) Take(ctx context.Context, config Config, open OpenFunc) (*Seat, error) {
	l := b.line(config.Name)
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	defer l.pass()
	if l.port == nil {
		port, err := open(ctx, config)
		if err != nil {
			return nil, err
		}
		l.port, l.config, l.seats = port, config, 0
	} else if l.config != config {
		return nil, &Error{Op: "share", Port: config.Name, Err: fmt.Errorf("%w: another device has it open with other line settings", ErrSetting),
			Hint: "give all devices on one bus the same baud, data_bits, parity, stop_bits, dtr and rts"}
	}
	l.seats++
	return &Seat{line: l, port: l.port}, nil
}

func (b *Buses) line(name string) *busLine {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines == nil {
		b.lines = map[string]*busLine{}
	}
	l, ok := b.lines[name]
	if !ok {
		l = &busLine{turn: make(chan struct{}, 1)}
		b.lines[name] = l
	}
	return l
}

// take waits for the turn.
func (l *busLine) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *busLine) pass() { <-l.turn }

// Do waits for its turn, sends the request and reads until the reply is whole. It holds the
// bus for a few Timeouts at most, whatever is on the line. Errors: ctx's, ErrNoReply, or the
// port's, after which the port is closed for all seats.
func (s *Seat) Do(ctx context.Context, e Exchange) error {
	if err := s.line.take(ctx); err != nil {
		return err
	}
	defer s.line.pass()
	if s.line.port != s.port {
		return &Error{Op: "use", Port: s.line.config.Name, Err: fmt.Errorf("%w: noticed by another device on it", ErrLost)}
	}
	err := s.exchange(ctx, e)
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrNoReply) {
		s.port.Close()
		s.line.port = nil
	}
	return err
}

func (s *Seat) exchange(ctx context.Context, e Exchange) error {
	if err := s.settle(ctx, e.Quiet, e.Timeout); err != nil {
		return err
	}
	// A write that is cut off costs everybody the port, so it does not end with ctx.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(e.Timeout, time.Second))
	defer cancel()
	if err := s.port.Write(wctx, e.Request); err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, e.Timeout)
	defer cancel()
	for buf := make([]byte, 512); ; {
		n, err := s.port.Read(rctx, buf)
		if n > 0 && e.Reply(buf[:n]) {
			return nil
		}
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return ErrNoReply
		default:
			return err
		}
	}
}

// settle drops what comes until the line has been quiet, so that a late reply to another
// request is not taken for ours. On a line that is never quiet it gives up after most.
func (s *Seat) settle(ctx context.Context, quiet, most time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, max(quiet, most))
	defer cancel()
	for buf := make([]byte, 512); ; {
		qctx, cancel := context.WithTimeout(bounded, max(quiet, time.Millisecond))
		_, err := s.port.Read(qctx, buf)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			return nil
		default:
			return err
		}
	}
}

// Leave gives the seat back; the last one closes the port. More than one call is as good as
// one.
func (s *Seat) Leave() {
	s.once.Do(func() {
		s.line.turn <- struct{}{} // an exchange under way has its own end
		defer s.line.pass()
		if s.line.port != s.port {
			return
		}
		if s.line.seats--; s.line.seats == 0 {
			s.port.Close()
			s.line.port = nil
		}
	})
}
