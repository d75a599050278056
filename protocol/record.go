package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Limits of the wire contract, in bytes.
const (
	MaxRecord   = 128 << 10 // one record's JSON; checked before it is accepted
	MaxWire     = 256 << 10 // one MQTT payload
	MaxUnpacked = 4 << 20   // one payload after decompression
	MaxRecords  = 1000      // records in a batch
)

// Kind says what a record's body is. Kinds that a relay does not know are quarantined, not
// lost, and applied by the first relay that knows them.
type Kind string

// The kinds of records.
const (
	KindSeal        Kind = "seal"          // body Seal: the first record of every epoch
	KindDayMark     Kind = "dayMark"       // the roll-over of the business day
	KindTransaction Kind = "transaction"   // body Transaction
	KindFootfall    Kind = "footfallCount" // body FootfallCount
	KindDrawer      Kind = "drawerEvent"   // body DrawerEvent
	KindCashIn      Kind = "cashIn"        // body CashIn
	KindDevice      Kind = "deviceState"   // body DeviceState
	KindLoss        Kind = "loss"          // body Loss: records that a forked epoch held, and the disk has lost
)

// An Epoch names one run of an agent: 128 random bits as 32 lower-case hex digits.
type Epoch string

// Valid says whether e has the form of an epoch.
func (e Epoch) Valid() bool {
	b, err := hex.DecodeString(string(e))
	return err == nil && len(b) == 16 && hex.EncodeToString(b) == string(e)
}

// A Hash is SHA-256 over a record and all before it in its epoch; hex in JSON.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes hex.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 hex digits.
func (h *Hash) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(h) {
		return fmt.Errorf("hash has %d digits, want %d", len(text), 2*len(h))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// A Position is a place in an agent's stream. The zero Position is "none".
type Position struct {
	Epoch Epoch  `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

func (p Position) String() string { return string(p.Epoch) + "/" + strconv.FormatUint(p.Seq, 10) }

// Was names the position at which a re-appended record was first accepted.
type Was struct {
	Epoch  Epoch  `json:"epoch"`
	Seq    uint64 `json:"seq"`
	SHA256 Hash   `json:"sha256"` // Record.ContentHash at that position
}

// A Record is what the agent accepted, at one position of one epoch. Body is the agent's
// exact bytes: it is hashed, stored and passed on as it is, never re-encoded.
type Record struct {
	Seq  uint64
	Kind Kind
	At   string // wall time of the agent, RFC 3339 with offset; kept as text, it is hashed
	Mono int64  // ms since the PC booted
	Day  Day
	Body []byte // compact JSON
	Was  *Was
	Key  []byte // opens the body's sealed personal fields; travels beside the record, outside the hash
}

// Time reads At; the zero time when it is not RFC 3339.
func (r *Record) Time() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, r.At)
	return t
}

// Genesis is the hash before the first record of an epoch.
func Genesis(chain, store, agent string, epoch Epoch) Hash {
	h := sha256.New()
	var buf []byte
	for _, s := range []string{chain, store, agent, string(epoch)} {
		buf = appendPrefixed(buf, []byte(s))
	}
	h.Write(buf)
	return Hash(h.Sum(nil))
}

// Hash chains the record to the one before it: SHA-256 over prev, seq, kind, at, mono, day,
// body and was, each prefixed with its length as 4 bytes, big endian. Numbers are 8 bytes,
// big endian; was is epoch text, seq and hash one after the other, or empty.
func (r *Record) Hash(prev Hash) Hash {
	buf := make([]byte, 0, 256+len(r.Body))
	buf = appendPrefixed(buf, prev[:])
	buf = appendPrefixed(buf, binary.BigEndian.AppendUint64(nil, r.Seq))
	buf = r.appendContent(buf)
	var was []byte
	if r.Was != nil {
		was = append(was, r.Was.Epoch...)
		was = binary.BigEndian.AppendUint64(was, r.Was.Seq)
		was = append(was, r.Was.SHA256[:]...)
	}
	return sha256.Sum256(appendPrefixed(buf, was))
}

// ContentHash is SHA-256 over kind, at, mono, day and body: what stays the same when the
// record is appended again to a later epoch.
func (r *Record) ContentHash() Hash { return sha256.Sum256(r.appendContent(nil)) }

func (r *Record) appendContent(buf []byte) []byte {
	buf = appendPrefixed(buf, []byte(r.Kind))
	buf = appendPrefixed(buf, []byte(r.At))
	buf = appendPrefixed(buf, binary.BigEndian.AppendUint64(nil, uint64(r.Mono)))
	buf = appendPrefixed(buf, []byte(r.Day.String()))
	return appendPrefixed(buf, r.Body)
}

func appendPrefixed(buf, field []byte) []byte {
	return append(binary.BigEndian.AppendUint32(buf, uint32(len(field))), field...)
}

// AppendJSON appends the record as JSON with the body copied byte by byte, which
// encoding/json would not promise.
func (r *Record) AppendJSON(b []byte) []byte {
	b = append(b, `{"seq":`...)
	b = strconv.AppendUint(b, r.Seq, 10)
	b = append(b, `,"kind":`...)
	b = appendString(b, string(r.Kind))
	b = append(b, `,"at":`...)
	b = appendString(b, r.At)
	b = append(b, `,"mono":`...)
	b = strconv.AppendInt(b, r.Mono, 10)
	b = append(b, `,"day":"`...)
	b = append(b, r.Day.String()...)
	b = append(b, `","body":`...)
	b = append(b, r.Body...)
	if r.Was != nil {
		b = append(b, `,"was":{"epoch":`...)
		b = appendString(b, string(r.Was.Epoch))
		b = append(b, `,"seq":`...)
		b = strconv.AppendUint(b, r.Was.Seq, 10)
		b = append(b, `,"sha256":"`...)
		b = append(b, r.Was.SHA256.String()...)
		b = append(b, `"}`...)
	}
	if len(r.Key) > 0 {
		key, _ := json.Marshal(r.Key) // bytes always encode
		b = append(b, `,"key":`...)
		b = append(b, key...)
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	quoted, _ := json.Marshal(s) // strings always encode
	return append(b, quoted...)
}

// MarshalJSON is AppendJSON. Inside another value encoding/json compacts the result, which
// leaves a compact body as it is except for <, >, & and the line separators; use AppendJSON
// where the hash matters.
func (r *Record) MarshalJSON() ([]byte, error) { return r.AppendJSON(nil), nil }

// UnmarshalJSON reads a record; the body's bytes are kept as they stand in data.
func (r *Record) UnmarshalJSON(data []byte) error {
	var v struct {
		Seq  uint64          `json:"seq"`
		Kind Kind            `json:"kind"`
		At   string          `json:"at"`
		Mono int64           `json:"mono"`
		Day  Day             `json:"day"`
		Body json.RawMessage `json:"body"`
		Was  *Was            `json:"was"`
		Key  []byte          `json:"key"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return typeFault(err)
	}
	*r = Record{Seq: v.Seq, Kind: v.Kind, At: v.At, Mono: v.Mono, Day: v.Day, Body: bytes.TrimSpace(v.Body), Was: v.Was, Key: v.Key}
	return nil
}
