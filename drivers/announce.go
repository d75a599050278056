package drivers

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/storelay/storelay/protocol"
)

// A device that flaps must not fill the disk: after StateBurst records at once there is one
// per StatePause.
const (
	StateBurst = 5
	StatePause = time.Minute
	maxReason  = 300              // bytes
	emitRetry  = 10 * time.Second // after a state that the host did not accept
)

// A report is what a state record says, without its time.
type report struct{ state, reason, hint string }

// An announcer decides which changes of one device's state become records.
type announcer struct {
	record protocol.DeviceState // device, driver and class of every record
	wake   chan struct{}        // cap 1

	mu      sync.Mutex // guards what follows
	want    report     // newest
	at      time.Time  // of the newest
	changes int        // since the last record
	tokens  float64
	filled  time.Time // when tokens was last brought up to date
}

func newAnnouncer(record protocol.DeviceState) *announcer {
	return &announcer{record: record, wake: make(chan struct{}, 1), tokens: StateBurst}
}

// observe notes a state. The same one again is nothing new.
func (a *announcer) observe(r report, now time.Time) {
	if len(r.reason) > maxReason {
		r.reason = strings.ToValidUTF8(r.reason[:maxReason], "")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r == a.want {
		return
	}
	a.want, a.at = r, now
	a.changes++
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// next is the record that is due, with the number of changes that it stands for; 0 = none,
// ask again after wait or at the next wake.
func (a *announcer) next(now time.Time) (record protocol.DeviceState, changes int, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if gone := now.Sub(a.filled); gone > 0 && !a.filled.IsZero() {
		a.tokens = min(StateBurst, a.tokens+float64(gone)/float64(StatePause))
	}
	a.filled = now
	if a.changes == 0 {
		return record, 0, time.Hour
	}
	if a.tokens < 1-1e-9 {
		return record, 0, max(time.Duration((1-a.tokens)*float64(StatePause)), time.Millisecond)
	}
	record = a.record
	record.State, record.Reason, record.Hint, record.At = a.want.state, a.want.reason, a.want.hint, a.at.UTC()
	if a.changes > 1 {
		if record.Reason != "" {
			record.Reason += " "
		}
		record.Reason += fmt.Sprintf("(%d changes before this one were not recorded)", a.changes-1)
	}
	return record, a.changes, 0
}

// done notes that a record which stands for so many changes is on disk.
func (a *announcer) done(changes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changes -= changes
	a.tokens--
}

// report emits what is due until ctx ends.
func (a *announcer) report(ctx context.Context, host Host, log *slog.Logger) {
	for {
		record, changes, wait := a.next(host.Now())
		if changes > 0 {
			err := host.Emit(ctx, protocol.KindDevice, record, nil)
			if err == nil {
				log.Info("device is "+record.State, "reason", record.Reason, "hint", record.Hint)
				a.done(changes)
				continue
			}
			if ctx.Err() != nil {
				return
			}
			log.Warn("device state not accepted", "state", record.State, "err", err)
			wait = emitRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}
