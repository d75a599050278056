package core

import (
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/agent/journal"
	"github.com/storelay/storelay/protocol"
)

const (
	// dayKey is where the journal keeps the newest day that is marked.
	dayKey = "day"
	// maxMissed is the longest stretch of days that get a mark each; of a longer one, such as
	// after a year in a drawer, the last day's mark speaks for all.
	maxMissed = 400
	dayRetry  = time.Minute // after a mark that the journal did not take
)

// A signer makes the agent's day marks with the key of its certificate.
type signer struct {
	origin protocol.Origin
	cert   []byte // DER
	key    crypto.Signer
}

func newSigner(origin protocol.Origin, settings *tls.Config) (*signer, error) {
	pair := settings.Certificates[0]
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the identity's key cannot sign")
	}
	return &signer{origin, pair.Certificate[0], key}, nil
}

// mark is the body of a day's mark behind head.
func (s *signer) mark(day protocol.Day, head protocol.Mark) ([]byte, error) {
	m, err := protocol.SignDayMark(s.origin, day, head, s.cert, s.key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

// remark signs a mark anew that was appended again after a fork.
func (s *signer) remark(old protocol.DayMark, head protocol.Mark) ([]byte, error) {
	return s.mark(old.Day, head)
}

// RollOver marks the business days that have ended since the last mark, and says when the
// day under way ends. The first mark of an agent's life is that of the day before its first.
// While the PC's clock is in doubt no day is taken to have ended.
func (a *Agent) RollOver(ctx context.Context) (next time.Time, err error) {
	now, rule := a.now(), a.settings.Load().rule
	today := rule.Day(now)
	if skew := a.clock.Skew(); skew != 0 {
		return now.Add(dayRetry), nil
	}
	state, err := a.journal.State(dayKey)
	if err != nil {
		return now.Add(dayRetry), err
	}
	yesterday := today.AddDays(-1)
	day := yesterday
	if len(state) > 0 {
		marked, err := protocol.ParseDay(string(state))
		if err != nil {
			return now.Add(dayRetry), fmt.Errorf("state of the day marks: %w", err)
		}
		if !marked.Before(yesterday) {
			return rule.Start(today.AddDays(1)), nil
		}
		if first := marked.AddDays(1); yesterday.AddDays(-maxMissed).Before(first) {
			day = first
		}
	}
	for ; day.Before(today); day = day.AddDays(1) {
		_, err := a.journal.Append(ctx, journal.Entry{
			Kind: protocol.KindDayMark, Day: day, StateKey: dayKey, State: []byte(day.String()),
			Make: func(head protocol.Mark) ([]byte, error) { return a.signer.mark(day, head) },
		})
		if err != nil {
			return now.Add(dayRetry), fmt.Errorf("mark day %s: %w", day, err)
		}
		a.log.Info("business day has ended", "day", day.String())
	}
	return rule.Start(today.AddDays(1)), nil
}

// keepDays marks each day when it ends, until ctx does. It looks at the clock every minute,
// since that may be set and the store's cut-off may be changed.
func (a *Agent) keepDays(ctx context.Context) error {
	tick := time.NewTicker(dayRetry)
	defer tick.Stop()
	for {
		if _, err := a.RollOver(ctx); err != nil && ctx.Err() == nil {
			a.log.Error("day is not marked, will be tried again", "err", err)
		}
		for _, d := range a.devices {
			d.tellFlaps(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
