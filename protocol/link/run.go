package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Run drives a sender over one connection until ctx ends or the connection is dead. The
// connection is closed when it returns.
func Run(ctx context.Context, conn Conn, s *Sender) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	type message struct {
		topic   Topic
		payload []byte
	}
	in := make(chan message)
	ended := make(chan error, 1)
	go func() {
		for {
			topic, payload, err := conn.Receive(ctx)
			if err != nil {
				ended <- err
				return
			}
			select {
			case in <- message{topic, payload}:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	read := false // the reader has ended
	defer func() {
		cancel()
		closing := conn.Close()
		if !read {
			<-ended //nolint:errcheck // it was told to end
		}
		s.Lost(err)
		if err == nil {
			err = closing
		}
	}()
	s.Connected(time.Now(), conn.ID())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		outs, wake, err := s.Step(time.Now())
		if err != nil {
			return err
		}
		for _, out := range outs {
			if err := conn.Publish(ctx, out.Topic, out.Payload); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
		}
		if !wake.IsZero() {
			timer.Reset(time.Until(wake))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			read = true
			return fmt.Errorf("receive: %w", err)
		case m := <-in:
			if err := s.Received(time.Now(), m.topic, m.payload); err != nil {
				return err
			}
		case <-s.source.Wake():
		case <-timer.C:
		}
	}
}

// KeepOptions of Keep.
type KeepOptions struct {
	Log      *slog.Logger
	MinPause time.Duration // between two connections; 500 ms, doubling
	MaxPause time.Duration // 30 s
}

// Keep connects to one of the relays, runs the sender over the connection, and connects again
// to the next relay of the list, with growing pauses that a minute of connection ends, until
// ctx ends. It begins anywhere in the list, so that agents spread over the relays.
func Keep(ctx context.Context, dial func(ctx context.Context, relay string) (Conn, error), relays []string, s *Sender, o KeepOptions) error {
	if len(relays) == 0 {
		return errors.New("keep the link: no relays")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MinPause == 0 {
		o.MinPause = 500 * time.Millisecond
	}
	if o.MaxPause == 0 {
		o.MaxPause = 30 * time.Second
	}
	pause := o.MinPause
	for i := rand.IntN(len(relays)); ; i++ {
		relay := relays[i%len(relays)]
		s.note(func(st *Status) { st.Relay = relay })
		began := time.Now()
		conn, err := dial(ctx, relay)
		if err == nil {
			o.Log.Info("connected", "relay", relay)
			err = Run(ctx, conn, s)
		} else {
			s.Lost(err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		o.Log.Warn("not connected", "relay", relay, "err", err)
		if time.Since(began) > time.Minute {
			pause = o.MinPause
		}
		// Every relay of the list is tried once before the pauses grow.
		wait := o.MinPause/2 + time.Duration(rand.Int64N(int64(o.MinPause)))
		if (i+1)%len(relays) == 0 {
			wait = pause/2 + time.Duration(rand.Int64N(int64(pause)))
			pause = min(2*pause, o.MaxPause)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}
