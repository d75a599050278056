package protocol

import (
	"encoding/json"
	"fmt"
	"strings"
)

// An Origin is who an agent is: read from its certificate, never from what it says.
type Origin struct {
	Chain string `json:"chain"`
	Store string `json:"store"`
	Agent string `json:"agent"`
}

func (o Origin) String() string { return o.Chain + "/" + o.Store + "/" + o.Agent }

// ValidID says whether s may name a chain, store, agent, workstation or device: 1 to 64 of
// letters, digits, _ and -.
func ValidID(s string) bool {
	return len(s) >= 1 && len(s) <= 64 &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// The four topics, see docs/protocol.md.
func (o Origin) RecordTopic() string { return "sl/1/up/" + o.String() + "/rec" }
func (o Origin) AskTopic() string    { return "sl/1/up/" + o.String() + "/ask" }
func (o Origin) DownTopic() string   { return "sl/1/down/" + o.String() + "/rx" }
func NewsTopic(chain string) string  { return "sl/1/down/" + chain + "/news" }

// A Batch is a run of records of one epoch, in order and without holes. It may begin with a
// skip over records that the agent does not hold any more.
type Batch struct {
	Epoch   Epoch    `json:"epoch"`
	First   uint64   `json:"first"`          // Skip.From when there is a skip, else the seq of Records[0]
	Prev    Hash     `json:"prev"`           // hash of record First-1, or the genesis hash; unknown (zero) is allowed before a skip
	Skip    *Skip    `json:"skip,omitempty"` // Records begin behind it, and may be none
	Records []Record `json:"records"`
	// Raw is one record's JSON that the relay could not read, instead of Records. Skip stands
	// for it, with its hash, should that not be read either: nothing may block a store.
	Raw []byte `json:"raw,omitempty"`
	// Of names the agent whose records these are when another agent of its chain delivers
	// them on its behalf (drain): they are quarantined, whatever stands in the ledger.
	Of *Origin `json:"of,omitempty"`
}

// A Skip stands for records that were accepted once and that the agent does not hold any
// more: the relay commits a named hole, raises an alarm and goes on behind it.
type Skip struct {
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`             // >= From
	Hash   Hash   `json:"hash"`           // of record To
	Reason string `json:"reason"`         // damaged, trimmed
	Seal   *Seal  `json:"seal,omitempty"` // a skip over seq 1 carries the lost seal; null = it is not known either
}

// The reasons of a Skip.
const (
	SkipDamaged = "damaged" // the disk lost them
	SkipTrimmed = "trimmed" // retention dropped them: they had been acknowledged once
	SkipUnread  = "unread"  // the relay cannot read the record: it is kept as it came, in quarantine
)

// Encode writes the batch with every body as its exact bytes.
func (b *Batch) Encode() []byte {
	size := 256
	for i := range b.Records {
		size += len(b.Records[i].Body) + 160
	}
	out := make([]byte, 0, size)
	out = append(out, `{"epoch":`...)
	out = appendString(out, string(b.Epoch))
	out = fmt.Appendf(out, `,"first":%d,"prev":"%s"`, b.First, b.Prev)
	if b.Skip != nil {
		skip, _ := json.Marshal(b.Skip) // strings, numbers and hashes always encode
		out = append(append(out, `,"skip":`...), skip...)
	}
	if b.Of != nil {
		of, _ := json.Marshal(b.Of)
		out = append(append(out, `,"of":`...), of...)
	}
	out = append(out, `,"records":[`...)
	for i := range b.Records {
		if i > 0 {
			out = append(out, ',')
		}
		out = b.Records[i].AppendJSON(out)
	}
	out = append(out, ']')
	if b.Raw != nil {
		raw, _ := json.Marshal(b.Raw)
		out = append(append(out, `,"raw":`...), raw...)
	}
	return append(out, '}')
}

// DecodeBatch reads a batch and checks its form: a valid epoch, first >= 1, consecutive
// seqs, at most MaxRecords. Errors are Faults.
func DecodeBatch(data []byte) (Batch, error) {
	var b Batch
	if err := json.Unmarshal(data, &b); err != nil {
		return Batch{}, typeFault(err)
	}
	var faults Faults
	if !b.Epoch.Valid() {
		faults.Add("epoch", "", "want 32 hex digits, got %q", b.Epoch)
	}
	if b.First == 0 {
		faults.Add("first", "", "want 1 or more")
	}
	if len(b.Records) > MaxRecords {
		faults.Add("records", "", "%d records, at most %d", len(b.Records), MaxRecords)
	}
	switch {
	case b.Skip == nil && (len(b.Records) == 0) == (b.Raw == nil):
		faults.Add("records", "", "want records or raw, and not both")
	case b.Skip != nil && b.Raw != nil && (len(b.Records) > 0 || b.Skip.To != b.Skip.From):
		faults.Add("raw", "", "a raw record stands alone, and its skip is over it alone")
	case b.Skip != nil && (b.Skip.From != b.First || b.Skip.To < b.Skip.From || b.Skip.To > 1<<62):
		faults.Add("skip", "", "%d to %d is no stretch that begins at first, %d", b.Skip.From, b.Skip.To, b.First)
	case b.Skip != nil && b.Skip.Seal != nil && b.Skip.Seal.Before != nil && !b.Skip.Seal.Before.Epoch.Valid():
		faults.Add("skip.seal.before.epoch", "", "want 32 hex digits, got %q", b.Skip.Seal.Before.Epoch)
	}
	if b.Of != nil && (!ValidID(b.Of.Chain) || !ValidID(b.Of.Store) || !ValidID(b.Of.Agent)) {
		faults.Add("of", "", "want three ids, got %q", b.Of)
	}
	for i := range b.Records {
		if len(b.Records[i].Body) == 0 {
			faults.Add(fmt.Sprintf("records[%d].body", i), "", "missing")
			break
		}
		if want := b.Begin() + uint64(i); b.Records[i].Seq != want {
			faults.Add(fmt.Sprintf("records[%d].seq", i), "", "want %d, got %d", want, b.Records[i].Seq)
			break
		}
	}
	return b, faults.Err()
}

// Begin is the seq of Records[0]: First, or what follows the skip.
func (b *Batch) Begin() uint64 {
	if b.Skip != nil {
		return b.Skip.To + 1
	}
	return b.First
}

// Last is the seq of the last record, or of the skip when no record follows it; First-1 for
// an empty batch.
func (b *Batch) Last() uint64 { return b.Begin() + uint64(len(b.Records)) - 1 }

// A Mark says how far a stream is known: the hash is that of record Through.
type Mark struct {
	Epoch   Epoch  `json:"epoch"`
	Through uint64 `json:"through"`
	Hash    Hash   `json:"hash"`
}

// An Ask is what an agent sends on its ask topic: exactly one member is set.
type Ask struct {
	Hello *Hello    `json:"hello,omitempty"`
	Feed  *FeedAsk  `json:"feed,omitempty"`
	Marks *MarksAsk `json:"marks,omitempty"`
}

// MaxEpochs is how many epochs one MarksAsk may name.
const MaxEpochs = 500

// MarksAsk asks how far the ledger knows epochs of the agent, in pages: after the ledger's
// incarnation has risen, everything that the agent still holds beyond them is sent again.
type MarksAsk struct {
	Epochs []Epoch `json:"epochs"`
}

// Marks answers a MarksAsk: one mark for each epoch asked for, in order; an epoch that is not
// known stands at 0 with its genesis hash.
type Marks struct {
	Incarnation int64  `json:"incarnation"`
	Marks       []Mark `json:"marks"`
}

// Hello opens a connection: where the agent's stream stands. Positions are zero when the
// agent holds nothing.
type Hello struct {
	Oldest      Position `json:"oldest"`            // oldest record without an ack
	Newest      Position `json:"newest"`            // newest durable record
	Incarnation int64    `json:"incarnation"`       // highest incarnation of a ledger that the agent has seen; 0 = none
	LastAck     *Mark    `json:"lastAck,omitempty"` // the newest ack that was taken
	Version     string   `json:"version"`           // of the agent's program
	Time        string   `json:"time,omitempty"`    // the PC's clock, RFC 3339 with offset
}

// FeedAsk asks for the changes of a feed after the agent's own cursor.
type FeedAsk struct {
	Feed  string `json:"feed"`
	After int64  `json:"after"` // version; 0 = from the beginning
}

// The feeds down to the agents.
const (
	FeedItems     = "items"
	FeedPrices    = "prices"
	FeedStock     = "stock"
	FeedCustomers = "customers"
	FeedGiftCards = "giftcards"
	FeedOrders    = "orders"
	FeedConfig    = "config"
)

// A Change is one key of a feed at its newest version; Body is absent when the key is gone.
type Change struct {
	Key     string          `json:"key"`
	Version int64           `json:"version"`
	Body    json.RawMessage `json:"body,omitempty"`
}

// A FeedPage carries the changes in (From, To]. A page whose From is not the agent's cursor
// is dropped, unless Reset says that it begins a snapshot that replaces what the agent has.
type FeedPage struct {
	Feed    string   `json:"feed"`
	From    int64    `json:"from"`
	To      int64    `json:"to"`
	More    bool     `json:"more,omitempty"`
	Reset   bool     `json:"reset,omitempty"`
	Changes []Change `json:"changes"`

	// Incarnation of the ledger, so that an agent that has nothing to send hears of a raise
	// too; 0 = not told.
	Incarnation int64 `json:"incarnation,omitempty"`
}

// Verdict is how a relay answers a batch.
type Verdict string

// The verdicts.
const (
	VerdictAck        Verdict = "ack"        // committed through Through, whose hash is Hash
	VerdictGap        Verdict = "gap"        // send from Through+1
	VerdictTooBig     Verdict = "too_big"    // halve the batches
	VerdictUnreadable Verdict = "unreadable" // halve; send a single record again as raw
	VerdictBusy       Verdict = "busy"       // slow down
	VerdictFork       Verdict = "fork"       // the same seq with another hash is committed
	VerdictRefused    Verdict = "refused"    // keep everything, show Reason, try again later
)

// An Answer is the relay's word on a batch.
type Answer struct {
	Verdict     Verdict `json:"verdict"`
	Incarnation int64   `json:"incarnation"`
	Epoch       Epoch   `json:"epoch"`
	Through     uint64  `json:"through"`
	Hash        Hash    `json:"hash"`
	Reason      string  `json:"reason,omitempty"`
}

// Welcome answers a hello: the ledger's incarnation, its time, and how far it knows the
// epochs that the hello named.
type Welcome struct {
	Incarnation int64  `json:"incarnation"`
	Time        string `json:"time"` // RFC 3339
	Marks       []Mark `json:"marks"`
}

// A Down is a message from the relay to one connection of an agent. To is the MQTT client
// id that it is for (others ignore it); exactly one other member is set.
type Down struct {
	To      string    `json:"to"`
	Answer  *Answer   `json:"answer,omitempty"`
	Welcome *Welcome  `json:"welcome,omitempty"`
	Marks   *Marks    `json:"marks,omitempty"`
	Page    *FeedPage `json:"page,omitempty"`
}

// News is the hint on the chain's news topic that a feed has moved.
type News struct {
	Feed    string `json:"feed"`
	Version int64  `json:"version"`
}
