package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/storelay/storelay/protocol"
)

// The states of an agent.
const (
	AgentActive   = "active"
	AgentRetiring = "retiring" // delivers, and gets neither feeds nor commands
	AgentRevoked  = "revoked"  // nothing of it is taken
)

// ErrRevoked is the answer to a revoked agent's hello.
var ErrRevoked = errors.New("agent is revoked")

// RegisterAgent makes an agent's row, active. An agent that has one is ErrExists.
func (l *Ledger) RegisterAgent(ctx context.Context, o protocol.Origin) error {
	if err := checkOrigin(o); err != nil {
		return fmt.Errorf("register agent: %w", err)
	}
	id, err := l.chainID(ctx, o.Chain, true)
	if err != nil {
		return fmt.Errorf("register agent %s: %w", o, err)
	}
	made := false
	err = l.exec(ctx, statement{
		text: "INSERT INTO agents (chain, store, agent, state, last_seen, version, registered) VALUES ($1, $2, $3, $4, 0, '', $5) ON CONFLICT DO NOTHING RETURNING 1",
		args: []any{id, o.Store, o.Agent, AgentActive, l.now().UnixMicro()},
		scan: func(scanner) error { made = true; return nil },
	})
	if err == nil && !made {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("register agent %s: %w", o, err)
	}
	return nil
}

// SetAgentState makes an agent active, retiring or revoked; ErrNotFound without a row. A
// revoked agent stays revoked (ErrRevoked): it goes on under a new id.
func (l *Ledger) SetAgentState(ctx context.Context, o protocol.Origin, state string) error {
	switch state {
	case AgentActive, AgentRetiring, AgentRevoked:
	default:
		return fmt.Errorf("agent %s: want active, retiring or revoked, got %q", o, state)
	}
	id, err := l.chainID(ctx, o.Chain, false)
	if err != nil {
		return fmt.Errorf("agent %s: %w", o, err)
	}
	var is string
	err = l.exec(ctx, statement{
		text: "UPDATE agents SET state = CASE WHEN state = $5 THEN state ELSE $4 END WHERE chain = $1 AND store = $2 AND agent = $3 RETURNING state",
		args: []any{id, o.Store, o.Agent, state, AgentRevoked},
		scan: func(row scanner) error { return row.Scan(&is) },
	})
	switch {
	case err != nil:
	case is == "":
		err = ErrNotFound
	case is != state:
		err = ErrRevoked
	}
	if err != nil {
		return fmt.Errorf("agent %s: %w", o, err)
	}
	return nil
}

// Revoke revokes agents, also those that have no row: a ledger that was restored may not
// know them.
func (l *Ledger) Revoke(ctx context.Context, agents ...protocol.Origin) error {
	for _, o := range agents {
		if err := l.RegisterAgent(ctx, o); err != nil && !errors.Is(err, ErrExists) {
			return fmt.Errorf("revoke: %w", err)
		}
		if err := l.SetAgentState(ctx, o, AgentRevoked); err != nil {
			return fmt.Errorf("revoke: %w", err)
		}
	}
	return nil
}

// AgentState is active, retiring or revoked; ErrNotFound without a row.
func (l *Ledger) AgentState(ctx context.Context, o protocol.Origin) (string, error) {
	id, err := l.chainID(ctx, o.Chain, false)
	if err != nil {
		return "", fmt.Errorf("agent %s: %w", o, err)
	}
	var state string
	err = l.db.read().QueryRowContext(ctx, "SELECT state FROM agents WHERE chain = $1 AND store = $2 AND agent = $3", id, o.Store, o.Agent).Scan(&state)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return "", fmt.Errorf("agent %s: %w", o, err)
	}
	return state, nil
}

// Agents lists the chain's agents by store and name. LastSeen is the newest hello or commit.
func (l *Ledger) Agents(ctx context.Context, chain string) ([]AgentRow, error) {
	return list(ctx, l, chain, "agents", `SELECT a.store, a.agent, a.state, a.version, a.skew,
			CASE WHEN coalesce(max(s.at), 0) > a.last_seen THEN max(s.at) ELSE a.last_seen END
		FROM agents a LEFT JOIN streams s ON s.chain = a.chain AND s.store = a.store AND s.agent = a.agent
		WHERE a.chain = $1 GROUP BY a.store, a.agent, a.state, a.version, a.skew, a.last_seen ORDER BY a.store, a.agent`, nil,
		func(row scanner, a *AgentRow) error {
			var seen int64
			err := row.Scan(&a.Store, &a.Agent, &a.State, &a.Version, &a.Skew, &seen)
			a.LastSeen = micros(seen)
			return err
		})
}

// The kinds of alarms: a cloned or rolled-back disk, records that are lost, an agent nobody
// registered, a clock that is wrong, a ledger that was restored.
const (
	AlarmFork         = "fork"         // one position with two contents, or a seal that says so
	AlarmSecondFirst  = "secondFirst"  // a second epoch says that it is the first
	AlarmSealBelow    = "sealBelow"    // a seal below what has come
	AlarmSealDiffers  = "sealDiffers"  // a seal with another hash
	AlarmSealedTwice  = "sealedTwice"  // two epochs follow one
	AlarmBeyondSeal   = "beyondSeal"   // records behind a seal
	AlarmUnknownAgent = "unknownAgent" // a valid certificate without a row
	AlarmHole         = "hole"         // records that were accepted are lost
	AlarmClock        = "clock"        // the PC's clock is far from the relay's
	AlarmOlderLedger  = "olderLedger"  // the agent has seen a later incarnation of this ledger
	AlarmUnknownAck   = "unknownAck"   // the agent shows an ack that the ledger does not know
	AlarmRestored     = "restored"     // the ledger's incarnation was raised; of the whole chain, without store and agent
)

// An Alarm is something about an agent, or about the whole chain, that a person must look at.
// All records are taken all the same.
type Alarm struct {
	Store  string    `json:"store"` // "" = the whole chain
	Agent  string    `json:"agent"` // "" = the whole chain
	Kind   string    `json:"kind"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"` // first time
}

// Alarms lists the chain's alarms, newest first.
func (l *Ledger) Alarms(ctx context.Context, chain string) ([]Alarm, error) {
	return list(ctx, l, chain, "alarms", "SELECT store, agent, kind, detail, at FROM alarms WHERE chain = $1 ORDER BY at DESC, store, agent, kind, detail", nil,
		func(row scanner, a *Alarm) error {
			var at int64
			err := row.Scan(&a.Store, &a.Agent, &a.Kind, &a.Detail, &at)
			a.At = micros(at)
			return err
		})
}

const unknownAgentDetail = "came with a valid certificate and was not registered"

var alarmInsert = insert("alarms", "chain, store, agent, kind, detail, at", "ON CONFLICT DO NOTHING")

func (g *group) alarm(from protocol.Origin, kind, detail string) {
	g.changes.alarms.add(g.id, from.Store, from.Agent, kind, detail, g.at0)
}
