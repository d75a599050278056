package journal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/storelay/storelay/protocol"
)

// A frame is 4 bytes length of the payload, 4 bytes CRC-32C of all that follows and of the
// length, 1 byte type, 4 bytes offset of the group's first frame, payload. All little endian.
const frameHead = 4 + 4 + 1 + 4

// Types of frames. In segments: header, record, page, ack, rewind. In snapshots: header, pair,
// end.
const (
	typeHeader byte = 1 + iota
	typeRecord
	typePage
	typeAck
	typePair
	typeEnd
	typeRewind // in segments
)

var (
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	errBadFrame = errors.New("damaged frame")
)

type frame struct {
	typ     byte
	group   int64 // offset at which the frame's group began
	payload []byte
	end     int64 // offset behind the frame
}

func appendFrame(b []byte, typ byte, group int64, payload []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, 0, 0, 0, 0, typ)
	b = binary.LittleEndian.AppendUint32(b, uint32(group))
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[at+4:], frameSum(b[at:]))
	return b
}

func frameSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:4], castagnoli), castagnoli, b[8:])
}

// frameAt reads the frame at an offset of data; false when none stands there.
func frameAt(data []byte, at int64) (frame, bool) {
	if at < 0 || at+frameHead > int64(len(data)) {
		return frame{}, false
	}
	b := data[at:]
	size := int64(binary.LittleEndian.Uint32(b))
	group := int64(binary.LittleEndian.Uint32(b[9:]))
	if typ := b[8]; typ < typeHeader || typ > typeRewind || group > at || size > int64(len(b))-frameHead {
		return frame{}, false
	}
	b = b[:frameHead+size]
	if frameSum(b) != binary.LittleEndian.Uint32(b[4:]) {
		return frame{}, false
	}
	return frame{typ: b[8], group: group, payload: b[frameHead:], end: at + int64(len(b))}, true
}

// A span is a stretch of a file, [from, to).
type span struct{ from, to int64 }

// scan walks the frames from an offset on. It returns where the intact part ends and the
// damaged stretches before that: those that a later, synced group stands behind.
func scan(data []byte, from int64, visit func(frame) error) (end int64, damage []span, err error) {
	for at := from; ; {
		f, ok := frameAt(data, at)
		if !ok {
			next, found := resync(data, at)
			if !found {
				return at, damage, nil
			}
			damage = append(damage, span{at, next})
			at = next
			continue
		}
		if err := visit(f); err != nil {
			return at, damage, err
		}
		at = f.end
	}
}

// resync finds the first intact frame behind a bad one, provided that some frame behind it
// belongs to a group that began after the bad one: then the bad one was synced.
func resync(data []byte, bad int64) (int64, bool) {
	end := int64(len(data))
	for end > bad && data[end-1] == 0 {
		end--
	}
	first := int64(-1)
	for at := bad + 1; at+frameHead <= end; {
		f, ok := frameAt(data, at)
		if !ok {
			at++
			continue
		}
		if first < 0 {
			first = at
		}
		if f.group > bad {
			return first, true
		}
		at = f.end
	}
	return 0, false
}

// A stored record is what a record's frame holds.
type stored struct {
	ord      uint64 // ordinal of the epoch in the agent's life
	rec      protocol.Record
	prev     protocol.Hash // hash of the record before, or the genesis hash
	keys     []string
	digest   [32]byte
	stateKey string
	state    []byte
}

func (s *stored) encode() []byte {
	b := make([]byte, 0, len(s.rec.Body)+len(s.state)+256)
	b = binary.AppendUvarint(b, s.ord)
	b = binary.AppendUvarint(b, s.rec.Seq)
	b = append(b, s.prev[:]...)
	b = putText(b, string(s.rec.Kind))
	b = putText(b, s.rec.At)
	b = binary.AppendVarint(b, s.rec.Mono)
	b = putText(b, s.rec.Day.String())
	b = putBytes(b, s.rec.Body)
	b = putBytes(b, s.rec.Key)
	if w := s.rec.Was; w != nil {
		b = append(b, 1)
		b = putText(b, string(w.Epoch))
		b = binary.AppendUvarint(b, w.Seq)
		b = append(b, w.SHA256[:]...)
	} else {
		b = append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(s.keys)))
	for _, k := range s.keys {
		b = putText(b, k)
	}
	if len(s.keys) > 0 {
		b = append(b, s.digest[:]...)
	}
	b = putText(b, s.stateKey)
	return putBytes(b, s.state)
}

// decodeStored reads a record's payload; it keeps slices of b.
func decodeStored(b []byte) (*stored, error) {
	d := decoder{b: b}
	s := &stored{ord: d.uvarint()}
	s.rec.Seq = d.uvarint()
	s.prev = d.hash()
	s.rec.Kind = protocol.Kind(d.text())
	s.rec.At = d.text()
	s.rec.Mono = d.varint()
	if day := d.text(); day != "" {
		v, err := protocol.ParseDay(day)
		if err != nil {
			return nil, errBadFrame
		}
		s.rec.Day = v
	}
	s.rec.Body = d.bytes()
	s.rec.Key = d.bytes()
	if d.byte() == 1 {
		s.rec.Was = &protocol.Was{Epoch: protocol.Epoch(d.text()), Seq: d.uvarint(), SHA256: d.hash()}
	}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		s.keys = append(s.keys, d.text())
	}
	if len(s.keys) > 0 {
		s.digest = d.hash()
	}
	s.stateKey = d.text()
	s.state = d.bytes()
	return s, d.err()
}

func encodePage(p *protocol.FeedPage) []byte {
	b := putText(nil, p.Feed)
	b = binary.AppendVarint(b, p.From)
	b = binary.AppendVarint(b, p.To)
	b = putBool(putBool(b, p.More), p.Reset)
	b = binary.AppendUvarint(b, uint64(len(p.Changes)))
	for i := range p.Changes {
		b = putText(b, p.Changes[i].Key)
		b = append(b, encodeChange(&p.Changes[i])...)
	}
	return b
}

func decodePage(b []byte) (*protocol.FeedPage, error) {
	d := decoder{b: b}
	p := &protocol.FeedPage{Feed: d.text(), From: d.varint(), To: d.varint(), More: d.byte() == 1, Reset: d.byte() == 1}
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		p.Changes = append(p.Changes, d.change(d.text()))
	}
	return p, d.err()
}

// encodeChange writes a change without its key: version, whether there is a body, body.
func encodeChange(c *protocol.Change) []byte {
	b := binary.AppendVarint(nil, c.Version)
	return putBytes(putBool(b, c.Body != nil), c.Body)
}

// An ack is how far one epoch is acknowledged, and the newest ack of all.
type ack struct {
	ord     uint64
	through uint64
	hash    protocol.Hash
	last    lastAck
}

type lastAck struct {
	ord         uint64
	mark        protocol.Mark
	incarnation int64
}

func (a *ack) encode() []byte {
	b := binary.AppendUvarint(nil, a.ord)
	b = binary.AppendUvarint(b, a.through)
	b = append(b, a.hash[:]...)
	return append(b, a.last.encode()...)
}

func (l *lastAck) encode() []byte {
	b := binary.AppendUvarint(nil, l.ord)
	b = binary.AppendVarint(b, l.incarnation)
	return putMark(b, l.mark)
}

func decodeAck(b []byte) (*ack, error) {
	d := decoder{b: b}
	a := &ack{ord: d.uvarint(), through: d.uvarint(), hash: d.hash(), last: d.lastAck()}
	return a, d.err()
}

func putText(b []byte, s string) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
func putBytes(b []byte, v []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func putMark(b []byte, m protocol.Mark) []byte {
	b = putText(b, string(m.Epoch))
	b = binary.AppendUvarint(b, m.Through)
	return append(b, m.Hash[:]...)
}

// A decoder reads what the put functions wrote. After the first fault every read is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) err() error {
	if d.bad {
		return errBadFrame
	}
	return nil
}

func (d *decoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) byte() byte {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (d *decoder) text() string { return string(d.take(d.uvarint())) }

// bytes is nil when empty.
func (d *decoder) bytes() []byte {
	if v := d.take(d.uvarint()); len(v) > 0 {
		return v
	}
	return nil
}

func (d *decoder) hash() (h [32]byte) {
	copy(h[:], d.take(32))
	return h
}

func (d *decoder) mark() protocol.Mark {
	return protocol.Mark{Epoch: protocol.Epoch(d.text()), Through: d.uvarint(), Hash: d.hash()}
}

func (d *decoder) lastAck() lastAck {
	return lastAck{ord: d.uvarint(), incarnation: d.varint(), mark: d.mark()}
}

func (d *decoder) change(key string) protocol.Change {
	c := protocol.Change{Key: key, Version: d.varint()}
	if has := d.byte() == 1; has {
		c.Body = d.bytes()
	} else {
		d.bytes()
	}
	return c
}

// ordinal reads 8 bytes, big endian, as keys of the index have them.
func (d *decoder) ordinal() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}
