package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/storelay/storelay/protocol"
)

// maxSkew is how far a PC's clock may be from the relay's without an alarm. A clock that is
// set over the network is right to a second, and a hello may wait some seconds on a slow line;
// five minutes are beyond both, and put few receipts on the wrong day.
const maxSkew = 5 * time.Minute

// Welcome answers a hello: the incarnation, the relay's time, and a mark for each epoch that
// the hello names; an epoch that is not known stands at 0 with its genesis hash. A hello
// that shows an ack of this incarnation above the mark, or of another record, says that the
// ledger went back in time: its incarnation is raised first, unless the agent is not believed
// (raiseFor). A revoked agent gets ErrRevoked. How far the agent's clock is from the relay's is
// noted; nothing is ordered by either.
func (l *Ledger) Welcome(ctx context.Context, from protocol.Origin, hello protocol.Hello) (protocol.Welcome, error) {
	if err := checkOrigin(from); err != nil {
		return protocol.Welcome{}, fmt.Errorf("welcome: %w", err)
	}
	id, err := l.chainID(ctx, from.Chain, true)
	if err != nil {
		return protocol.Welcome{}, fmt.Errorf("welcome %s: %w", from, err)
	}
	for {
		w, shows, err := l.welcome(ctx, id, from, hello)
		again := false
		if err == nil && shows == ackForeign {
			err = l.doubt(ctx, id, from, w.Incarnation, "its epoch is another agent's")
		} else if err == nil && shows == ackLost {
			if err = l.raiseFor(ctx, id, from, w.Incarnation); errors.Is(err, errTooSoon) {
				err = l.doubt(ctx, id, from, w.Incarnation, "its hello has raised the incarnation less than an hour before")
			} else {
				again = true
			}
		}
		if err != nil {
			return protocol.Welcome{}, fmt.Errorf("welcome %s: %w", from, err)
		}
		if !again {
			return w, nil
		}
	}
}

// What the ack in a hello says of the ledger.
type shownAck int

const (
	ackKnown   shownAck = iota // the ledger has given it, or none is shown that it would have to know
	ackLost                    // the ledger does not know it, or has another record there
	ackForeign                 // the agent cannot have had it
)

func (l *Ledger) welcome(ctx context.Context, id int64, from protocol.Origin, hello protocol.Hello) (w protocol.Welcome, shows shownAck, err error) {
	now := l.now()
	w.Time = now.UTC().Format(time.RFC3339)
	asked := newRows("ittt")
	marks := map[protocol.Epoch]protocol.Mark{}
	var order []protocol.Epoch
	name := func(epoch protocol.Epoch) {
		if _, ok := marks[epoch]; !ok && epoch.Valid() {
			marks[epoch] = protocol.Mark{Epoch: epoch, Hash: protocol.Genesis(from.Chain, from.Store, from.Agent, epoch)}
			order = append(order, epoch)
			asked.add(id, from.Store, from.Agent, string(epoch))
		}
	}
	name(hello.Oldest.Epoch)
	name(hello.Newest.Epoch)
	if hello.LastAck != nil {
		name(hello.LastAck.Epoch)
	}
	state, known := AgentActive, false
	agent := []any{id, from.Store, from.Agent}
	alarms := newRows("itttti")
	var skew any // seconds; nil = the hello does not say
	if at, err := time.Parse(time.RFC3339Nano, hello.Time); err == nil {
		ahead := at.Sub(now).Round(time.Second)
		skew = int64(ahead / time.Second)
		if ahead.Abs() > maxSkew {
			alarms.add(id, from.Store, from.Agent, AlarmClock, clockDetail(ahead), now.UnixMicro())
		}
	}
	err = l.db.within(ctx, func(t tx) error {
		if err := t.run(ctx, false,
			statement{
				text: `UPDATE agents SET last_seen = $4, version = CASE WHEN $5 = '' THEN version ELSE $5 END, skew = coalesce(CAST($6 AS bigint), skew)
					WHERE chain = $1 AND store = $2 AND agent = $3 RETURNING state`,
				args: append(agent, now.UnixMicro(), storable(hello.Version), skew),
				scan: func(row scanner) error { known = true; return row.Scan(&state) },
			},
			statement{text: "SELECT incarnation FROM ledger", scan: func(row scanner) error { return row.Scan(&w.Incarnation) }},
			markStatement(asked, func(m protocol.Mark) { marks[m.Epoch] = m })); err != nil {
			return err
		}
		if hello.Incarnation > w.Incarnation {
			detail := olderDetail(hello.Incarnation, w.Incarnation)
			alarms.add(id, from.Store, from.Agent, AlarmOlderLedger, detail, now.UnixMicro())
			// One at a time: an agent that invents numbers must not fill the table.
			if err := t.run(ctx, false, statement{
				text: "DELETE FROM alarms WHERE chain = $1 AND store = $2 AND agent = $3 AND kind = $4 AND detail <> $5",
				args: append(agent[:len(agent):len(agent)], AlarmOlderLedger, detail),
			}); err != nil {
				return err
			}
		}
		if known {
			return t.run(ctx, true, statement{rows: alarms, text: alarmInsert})
		}
		alarms.add(id, from.Store, from.Agent, AlarmUnknownAgent, unknownAgentDetail, now.UnixMicro())
		return t.run(ctx, true,
			statement{
				text: "INSERT INTO agents (chain, store, agent, state, last_seen, version, skew) VALUES ($1, $2, $3, $4, $5, $6, coalesce(CAST($7 AS bigint), 0)) ON CONFLICT DO NOTHING",
				args: append(agent, AgentActive, now.UnixMicro(), storable(hello.Version), skew),
			},
			statement{rows: alarms, text: alarmInsert})
	})
	if err != nil {
		return w, ackKnown, err
	}
	if state == AgentRevoked {
		return w, ackKnown, ErrRevoked
	}
	for _, epoch := range order {
		w.Marks = append(w.Marks, marks[epoch])
	}
	ack := hello.LastAck
	if ack == nil || hello.Incarnation != w.Incarnation || !ack.Epoch.Valid() {
		return w, ackKnown, nil
	}
	if ack.Through <= marks[ack.Epoch].Through { // another branch may have filled it up again
		hash, found, err := l.hashAt(ctx, id, from, ack.Epoch, ack.Through)
		if found && hash != ack.Hash {
			shows = ackLost
		}
		return w, shows, err
	}
	// An epoch that the ledger does not know may have begun after the backup, and one that was
	// sealed before may have gone on in a clone: both are believed. Another agent's epoch is not
	// this one's. (Where it is known that far, this agent delivers the other's records.)
	var others, through int64
	err = l.db.read().QueryRowContext(ctx, "SELECT count(*), coalesce(max(through), 0) FROM streams WHERE chain = $1 AND epoch = $2 AND NOT (store = $3 AND agent = $4)",
		id, string(ack.Epoch), from.Store, from.Agent).Scan(&others, &through)
	switch {
	case others == 0:
		shows = ackLost
	case uint64(through) < ack.Through:
		shows = ackForeign
	}
	return w, shows, err
}

// hashAt is the hash of a stream through one of its records; not found where there is a hole.
func (l *Ledger) hashAt(ctx context.Context, id int64, from protocol.Origin, epoch protocol.Epoch, seq uint64) (hash protocol.Hash, found bool, err error) {
	var stored []byte
	err = l.db.read().QueryRowContext(ctx, `SELECT r.hash FROM streams s JOIN records r ON r.chain = s.chain AND r.stream = s.id
			WHERE s.chain = $1 AND s.store = $2 AND s.agent = $3 AND s.epoch = $4 AND r.seq = $5
		UNION ALL SELECT d.hash FROM streams s JOIN duplicates d ON d.chain = s.chain AND d.stream = s.id
			WHERE s.chain = $1 AND s.store = $2 AND s.agent = $3 AND s.epoch = $4 AND d.seq = $5
		UNION ALL SELECT q.hash FROM quarantined q
			WHERE q.chain = $1 AND q.store = $2 AND q.agent = $3 AND q.epoch = $4 AND q.seq = $5 AND q.stream <> 0`,
		id, from.Store, from.Agent, string(epoch), int64(min(seq, math.MaxInt64))).Scan(&stored)
	if errors.Is(err, sql.ErrNoRows) {
		return hash, false, nil
	}
	copy(hash[:], stored)
	return hash, err == nil, err
}

// clockDetail is coarse, so that a clock that drifts does not raise an alarm a minute.
func clockDetail(ahead time.Duration) string {
	way := "ahead of"
	if ahead < 0 {
		way = "behind"
	}
	size := "five minutes"
	switch abs := ahead.Abs(); {
	case abs > 30*24*time.Hour:
		size = "thirty days"
	case abs > 24*time.Hour:
		size = "a day"
	case abs > time.Hour:
		size = "an hour"
	}
	return "the PC's clock is more than " + size + " " + way + " the relay's"
}

// Marks tells how far the ledger knows epochs of an agent, one mark for each, in order; one
// that is not known stands at 0 with its genesis hash.
func (l *Ledger) Marks(ctx context.Context, from protocol.Origin, ask protocol.MarksAsk) (protocol.Marks, error) {
	var m protocol.Marks
	if err := checkOrigin(from); err != nil {
		return m, fmt.Errorf("marks: %w", err)
	}
	if len(ask.Epochs) > protocol.MaxEpochs {
		return m, fmt.Errorf("marks %s: %d epochs asked for, at most %d", from, len(ask.Epochs), protocol.MaxEpochs)
	}
	id, err := l.chainID(ctx, from.Chain, true)
	if err != nil {
		return m, fmt.Errorf("marks %s: %w", from, err)
	}
	asked := newRows("ittt")
	place := map[protocol.Epoch]int{}
	for i, epoch := range ask.Epochs {
		place[epoch] = i
		m.Marks = append(m.Marks, protocol.Mark{Epoch: epoch, Hash: protocol.Genesis(from.Chain, from.Store, from.Agent, epoch)})
		if epoch.Valid() {
			asked.add(id, from.Store, from.Agent, string(epoch))
		}
	}
	err = l.db.within(ctx, func(t tx) error {
		return t.run(ctx, true,
			statement{text: "SELECT incarnation FROM ledger", scan: func(row scanner) error { return row.Scan(&m.Incarnation) }},
			markStatement(asked, func(mark protocol.Mark) { m.Marks[place[mark.Epoch]] = mark }))
	})
	if err != nil {
		return protocol.Marks{}, fmt.Errorf("marks %s: %w", from, err)
	}
	return m, nil
}

// markStatement reads the marks of streams; rows are chain, store, agent, epoch.
func markStatement(asked *rows, found func(protocol.Mark)) statement {
	return statement{
		text: keyed("chain, store, agent, epoch", `SELECT s.epoch, s.through, s.hash
			FROM k JOIN streams s ON s.chain = k.chain AND s.store = k.store AND s.agent = k.agent AND s.epoch = k.epoch`),
		rows: asked,
		scan: func(row scanner) error {
			var m protocol.Mark
			var through int64
			var hash []byte
			err := row.Scan((*string)(&m.Epoch), &through, &hash)
			m.Through = uint64(through)
			copy(m.Hash[:], hash)
			found(m)
			return err
		},
	}
}

// olderDetail says what to do about an agent that has seen a later incarnation.
func olderDetail(seen, present int64) string {
	if seen >= mostIncarnation {
		return fmt.Sprintf("says that it has seen an incarnation which no ledger can have had, and waits; this one stands at %d: the agent is not to be trusted", present)
	}
	return fmt.Sprintf(
		"has seen incarnation %[1]d of this ledger, which stands at %[2]d: it was restored without `storelay-relay restore`, and the agent waits; run `storelay-relay restore -raise -above %[1]d`",
		seen, present)
}
