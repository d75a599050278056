// Package ledger is everything durable in a relay, over SQL: the records in one order per
// chain, and the projections (transactions, footfall, drawers, devices, KPIs), cursors,
// feeds, tokens and quarantine that change in the same commit. SQLite by default,
// PostgreSQL by a URL; one set of queries serves both.
package ledger

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/storelay/storelay/protocol"
)

// Errors that callers decide on.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists already")
)

// A StoredRecord is a record at its position in the chain's order.
type StoredRecord struct {
	Pos      int64           `json:"pos"` // without gaps within an incarnation
	Store    string          `json:"store"`
	Agent    string          `json:"agent"`
	Epoch    protocol.Epoch  `json:"epoch"`
	Seq      uint64          `json:"seq"`
	Kind     protocol.Kind   `json:"kind"`
	At       string          `json:"at"`
	Day      protocol.Day    `json:"day"`
	Number   int64           `json:"number,omitempty"` // transactions: per store and type, without gaps
	Received time.Time       `json:"received"`
	Was      *protocol.Was   `json:"was,omitempty"` // where it was accepted first, when it was appended again
	Body     json.RawMessage `json:"body"`          // the agent's exact bytes
}

// A TransactionRow is a transaction as the ledger knows it: what the till said (Body), and
// what the ledger says of it.
type TransactionRow struct {
	Pos         int64
	Number      int64 // per store and type, without gaps within an incarnation
	Store       string
	Workstation string
	Day         protocol.Day
	Sequence    int64
	Type        protocol.TransactionType
	Begin, End  time.Time
	Currency    string
	Total       int64 // as the till said
	Customer    string
	Channel     string
	Flags       []string // protocol.Transaction.Check, plus voided when a later void undid it
	Voided      bool
	Received    time.Time
	Body        json.RawMessage
}

// A TransactionQuery selects transactions of a chain. Zero members select all.
type TransactionQuery struct {
	Chain string
	Store string
	Type  protocol.TransactionType
	Day   protocol.Day
	// From is the first number (inclusive) when Store and Type are given; the first position
	// otherwise. Rows come in that order.
	From  int64
	Limit int // 1..1000; 0 = 100
}

// A KPIRow holds the sums of one store, business day and currency; ratios are made from
// them, never stored. Amounts are minor units. Definitions: docs/kpi.md.
type KPIRow struct {
	Store              string
	Day                protocol.Day
	Currency           string // "" on the row that has only footfall
	Version            int64  // position of the last record that changed the row
	Customers          int64  // transactions with a merchandise line sold
	SalesTransactions  int64
	ReturnTransactions int64 // transactions with a return line
	UnitsSold          int64
	UnitsReturned      int64
	ReturnLines        int64
	GrossSales         int64 // before discounts
	Discounts          int64
	ReturnsAmount      int64
	TurnoverIncl       int64 // net of returns
	TurnoverEx         int64
	DrawerOpens        int64
	PassagesIn         int64
	PassagesOut        int64
	PassagesUndirected int64
	FootfallCounts     int64 // number of counts behind the passages; 0 = no counter, visitors unknown
	FootfallDoubtful   int64 // of which quality is not ok or wrap
}

// A TenderSum is what one kind of tender took on a day.
type TenderSum struct {
	Store    string
	Day      protocol.Day
	Currency string
	Type     string
	Count    int64
	Amount   int64
}

// A Store is a shop of the chain. Zone and CutOff give its business day.
type Store = protocol.Store

// An AgentRow is what the relay knows of an agent.
type AgentRow struct {
	Store    string    `json:"store"`
	Agent    string    `json:"agent"`
	State    string    `json:"state"` // active, retiring, revoked
	LastSeen time.Time `json:"lastSeen"`
	Version  string    `json:"version"`
	Skew     int64     `json:"skew"` // seconds that the PC's clock is ahead of the relay's, at its newest hello
}

// A DeviceRow is the newest state of a device.
type DeviceRow struct {
	Store  string    `json:"store"`
	Device string    `json:"device"`
	Driver string    `json:"driver"`
	Class  string    `json:"class"`
	State  string    `json:"state"`  // online, offline, fault
	Drawer string    `json:"drawer"` // open, closed; "" = not a drawer or unknown
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	Hint   string    `json:"hint,omitempty"`
}

// A QuarantinedRecord was received and not applied.
type QuarantinedRecord struct {
	ID       int64          `json:"id"`
	Store    string         `json:"store"`
	Agent    string         `json:"agent"`
	Epoch    protocol.Epoch `json:"epoch"`
	Seq      uint64         `json:"seq"`
	Kind     protocol.Kind  `json:"kind"`
	Reason   string         `json:"reason"` // names the field, the clash or the unknown kind
	Received time.Time      `json:"received"`
	Record   []byte         `json:"record"` // as it came
}

// A Token lets a client use the API. The secret itself is never stored.
type Token struct {
	ID      string    `json:"id"`
	Chain   string    `json:"chain"`
	Name    string    `json:"name"`
	Scopes  []string  `json:"scopes"`
	Stores  []string  `json:"stores,omitempty"` // empty = all
	Created time.Time `json:"created"`
}

// A Cursor is how far a connector has delivered.
type Cursor struct {
	Incarnation int64
	Pos         int64
}

// A DeadLetter is a record that a connector could not deliver.
type DeadLetter struct {
	Connector string    `json:"connector"`
	Pos       int64     `json:"pos"`
	Attempts  int       `json:"attempts"`
	Reason    string    `json:"reason"`
	At        time.Time `json:"at"`
}
