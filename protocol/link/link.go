// Package link is reliable, ordered delivery of an agent's streams to a relay over a line
// that loses, doubles and delays. Sender (the agent's half) is a state machine: it is told
// the time and what arrived, and answers with what to send and when to be asked again, so
// that a test can drive it from a seed. Receiver is the relay's half. Only what the relay's
// own answer says is committed leaves the agent's send queue; a PUBACK is flow control.
//
// The contract is docs/protocol.md.
package link

import (
	"context"
	"errors"

	"github.com/storelay/storelay/protocol"
)

// ErrFork means that a mark of the relay is not of this agent's own records: the disk was
// cloned or rolled back.
var ErrFork = errors.New("the relay's hash is not ours: the disk was cloned or rolled back")

// ErrFull is a Replica's answer when its disk has no room for a page: the page is asked for
// again when the feed is next due.
var ErrFull = errors.New("disk is nearly full")

// A Source is the agent's durable stream; agent/journal is one. Its methods are safe for
// concurrent use and never wait for the network.
type Source interface {
	// Heads gives the oldest record without an ack and the newest durable one. Both are
	// zero when everything is acknowledged and nothing is held; oldest alone is zero when
	// everything durable is acknowledged.
	Heads() (oldest, newest protocol.Position)
	// Read returns durable records of from's epoch in order, beginning with from: at most
	// maxRecords, and as many as stay within maxBytes of JSON (at least one). An empty batch
	// and a nil error mean that nothing durable is there yet. When the records from from on are
	// not held any more, the batch begins with a Skip over them.
	Read(from protocol.Position, maxRecords, maxBytes int) (protocol.Batch, error)
	// Next is the position that follows p in the agent's order: the next seq of its epoch,
	// or seq 1 of the epoch after when p is the last record of a closed epoch, or beyond it. It
	// may not be durable yet.
	Next(p protocol.Position) protocol.Position
	// Acked takes every record of mark.Epoch up to mark.Through off the send queue, and
	// remembers mark and incarnation, if the agent's own record there has mark.Hash;
	// otherwise ErrFork and nothing changes. An old or repeated mark is fine.
	Acked(mark protocol.Mark, incarnation int64) error
	// LastAck is the newest mark taken and the highest incarnation seen; nil and 0 when none.
	LastAck() (*protocol.Mark, int64)
	// Fork closes the epoch that is written to and appends every unacknowledged record of all
	// epochs once more to a new one, with the position where it was first accepted; the new
	// epoch's seal says forked. It returns when that is durable, or can be gone on with after a
	// restart. Reason is shown and logged.
	Fork(reason string) error
	// Epochs lists at most n epochs of the agent in order, beginning behind after ("" = from the
	// oldest): all that ever had a durable record.
	Epochs(after protocol.Epoch, n int) []protocol.Epoch
	// Rewind takes the marks of a ledger whose incarnation has risen: what stands beyond them
	// goes on the send queue again, held or as a skip, and the incarnation counts as seen. All
	// in one durable step. A mark that is not of the agent's own records is left out. What a
	// fork has moved goes on the queue in its first place too, or the agent's order would be
	// lost; the relay knows the later one by its was.
	Rewind(marks []protocol.Mark, incarnation int64) error
	// Wake receives a value when records have become durable since the last receive.
	Wake() <-chan struct{}
}

// A Replica is what the agent keeps of the relay's feeds; agent/journal is one.
type Replica interface {
	// Cursor is the version through which the feed is applied; 0 when never.
	Cursor(feed string) (int64, error)
	// Apply applies a page and moves the cursor to page.To in one durable step. A page whose
	// From is not the cursor is ignored, unless Reset.
	Apply(page protocol.FeedPage) error // ErrFull: not now
}

// A Conn is one connection of an agent to a relay. It is used by one sender and one
// receiver at a time; any error means that the connection is dead.
type Conn interface {
	// ID is the connection's client id: messages down that name another are not for it.
	ID() string
	// Publish hands a payload to the line on the agent's record or ask topic and returns
	// when the line has taken it (flow control), not when it has arrived.
	Publish(ctx context.Context, topic Topic, payload []byte) error
	// Receive waits for the next payload from the relay.
	Receive(ctx context.Context) (Topic, []byte, error)
	Close() error
}

// A Topic is one of the four kinds of topic.
type Topic int

// The topics of an agent's connection.
const (
	TopicRecords Topic = iota // up: batches
	TopicAsk                  // up: hello, feed requests
	TopicDown                 // down: answers to this agent
	TopicNews                 // down: hints to the whole chain
)

// A Sink is where the relay puts what agents send; relay/ledger is one. An error of any
// method means that nothing is known to be stored: no answer is given, and the connection
// is closed so that the agent goes elsewhere or comes again.
type Sink interface {
	// Commit stores a batch and answers it. Ack only after the commit is durable.
	Commit(ctx context.Context, from protocol.Origin, batch protocol.Batch) (protocol.Answer, error)
	// Welcome answers a hello with the marks of the epochs that it names.
	Welcome(ctx context.Context, from protocol.Origin, hello protocol.Hello) (protocol.Welcome, error)
	// Marks tells how far epochs of the agent are known.
	Marks(ctx context.Context, from protocol.Origin, ask protocol.MarksAsk) (protocol.Marks, error)
	// FeedPage gives the next page of a feed after the agent's cursor.
	FeedPage(ctx context.Context, from protocol.Origin, ask protocol.FeedAsk) (protocol.FeedPage, error)
}
