package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/storelay/storelay/protocol"
)

const (
	formatVersion = 3
	headerCopy    = 4096 // the header stands here once more, on a page of its own
	headerRoom    = 8192 // bytes before a segment's first group
	spare         = 64   // bytes that stay unused, so that an open segment is longer than its data
)

// A header begins a segment.
type header struct {
	version uint64
	origin  protocol.Origin
	ord     uint64 // the segment's own number
	epoch   uint64 // ordinal of the epoch
	id      protocol.Epoch
	first   uint64        // seq of the first record in it
	prev    protocol.Hash // hash before that record
	before  *before       // end of the epoch before; nil = this epoch is the agent's first
	fork    *fork         // what the seal of an epoch says that a fork began; nil = it says before
	room    int64         // size of the file until it is closed
	pred    uint64        // the segment before; those between are void. 0 = none
	predEnd int64         // where that one ends; what lies beyond is void
}

// A before seals an epoch's predecessor.
type before struct {
	ord  uint64
	mark protocol.Mark
}

// A fork begins an epoch that holds once more what was not acknowledged in those before.
type fork struct {
	acked *protocol.Mark // the last position acknowledged with an equal hash; nil = none
}

func (h *header) encode() []byte {
	b := binary.AppendUvarint(nil, h.version)
	for _, s := range []string{h.origin.Chain, h.origin.Store, h.origin.Agent} {
		b = putText(b, s)
	}
	b = binary.AppendUvarint(b, h.ord)
	b = append(b, encodeEpoch(h.epoch, h.id, h.before, h.fork)...)
	b = binary.AppendUvarint(b, h.first)
	b = append(b, h.prev[:]...)
	b = binary.AppendVarint(b, h.room)
	b = binary.AppendUvarint(b, h.pred)
	return binary.AppendVarint(b, h.predEnd)
}

func decodeHeader(b []byte) (*header, error) {
	d := decoder{b: b}
	h := &header{version: d.uvarint()}
	if h.version != formatVersion && !d.bad {
		return nil, fmt.Errorf("format %d, this program knows %d: install the agent again that wrote it", h.version, formatVersion)
	}
	h.origin = protocol.Origin{Chain: d.text(), Store: d.text(), Agent: d.text()}
	h.ord = d.uvarint()
	h.epoch, h.id, h.before, h.fork = d.epoch()
	h.first = d.uvarint()
	h.prev = d.hash()
	h.room = d.varint()
	h.pred = d.uvarint()
	h.predEnd = d.varint()
	return h, d.err()
}

// What an encoded epoch has.
const (
	hasBefore byte = 1 << iota
	hasFork
	hasForkMark
)

func encodeEpoch(ord uint64, id protocol.Epoch, bef *before, f *fork) []byte {
	b := putText(binary.AppendUvarint(nil, ord), string(id))
	at := len(b)
	b = append(b, 0)
	if bef != nil {
		b[at] |= hasBefore
		b = putMark(binary.AppendUvarint(b, bef.ord), bef.mark)
	}
	if f != nil {
		b[at] |= hasFork
		if f.acked != nil {
			b[at] |= hasForkMark
			b = putMark(b, *f.acked)
		}
	}
	return b
}

func (d *decoder) epoch() (ord uint64, id protocol.Epoch, bef *before, f *fork) {
	ord, id = d.uvarint(), protocol.Epoch(d.text())
	has := d.byte()
	if has&hasBefore != 0 {
		bef = &before{ord: d.uvarint(), mark: d.mark()}
	}
	if has&hasFork != 0 {
		f = &fork{}
		if has&hasForkMark != 0 {
			mark := d.mark()
			f.acked = &mark
		}
	}
	return ord, id, bef, f
}

// A segment is what the journal knows of one segment file.
type segment struct {
	header
	next   uint64        // seq behind its last record
	end    int64         // bytes that count
	size   int64         // on disk
	packed bool          // compressed: every record is acknowledged
	since  time.Duration // age of the journal when it was packed
}

func (j *Journal) segmentPath(ord uint64, packed bool) string {
	name := fmt.Sprintf("%012d.seg", ord)
	if packed {
		name += ".zst"
	}
	return filepath.Join(j.opt.Dir, name)
}

// parseSegmentName reads the number of a segment out of its file's name.
func parseSegmentName(name string) (ord uint64, packed, ok bool) {
	base, packed := strings.CutSuffix(name, ".zst")
	base, ok = strings.CutSuffix(base, ".seg")
	if !ok {
		return 0, false, false
	}
	ord, err := strconv.ParseUint(base, 10, 64)
	return ord, packed, err == nil && ord > 0
}

// readSegment reads the first limit bytes of a segment, unpacked; all of it for limit < 0.
// Of a packed one that is damaged it gives what can be unpacked, which may be nothing: the
// frames' checksums and the numbers that are missed tell. The caller holds files.
func (j *Journal) readSegment(ord uint64, packed bool, limit int64) ([]byte, error) {
	if packed {
		return j.unpackSegment(ord, limit)
	}
	f, err := j.opt.Disk.Open(j.segmentPath(ord, false))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(limited(f, limit))
}

func (j *Journal) unpackSegment(ord uint64, limit int64) ([]byte, error) {
	file, err := readFile(j.opt.Disk, j.segmentPath(ord, true))
	if err != nil {
		return nil, err
	}
	return unpack(file, limit)
}

// packer compresses what is about so many bytes. Its window holds them all, up to those of a
// segment, since it takes memory for several of it.
func packer(w io.Writer, bytes int64) (*zstd.Encoder, error) {
	window := zstd.MinWindowSize
	for int64(window) < bytes && window < 4<<20 {
		window *= 2
	}
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(window))
}

// unpack gives what is readable of a packed file.
func unpack(file []byte, limit int64) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(file), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data, _ := io.ReadAll(limited(z, limit)) // an error is damage: the file itself was read
	return data, nil
}

func limited(r io.Reader, limit int64) io.Reader {
	if limit < 0 {
		return r
	}
	return io.LimitReader(r, limit)
}

// headerOf reads the header out of the first bytes of a segment: where it stands first, or
// its copy.
func headerOf(data []byte) (*header, error) {
	for _, at := range []int64{0, headerCopy} {
		if f, ok := frameAt(data, at); ok && f.typ == typeHeader {
			return decodeHeader(f.payload)
		}
	}
	return nil, errBadFrame
}

// encodeHead is what a segment begins with.
func encodeHead(h *header) []byte {
	b := make([]byte, headerRoom)
	for _, at := range []int64{0, headerCopy} {
		copy(b[at:], appendFrame(nil, typeHeader, at, h.encode()))
	}
	return b
}

// create makes a new segment file of the given room with its header, not yet synced.
func (j *Journal) create(h *header, room int64) (File, error) {
	path := j.segmentPath(h.ord, false)
	f, err := j.opt.Disk.Create(path, room)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(encodeHead(h), 0); err != nil {
		return nil, errors.Join(err, f.Close(), j.opt.Disk.Remove(path))
	}
	return f, nil
}

// writeZeros gives f its size by writing every block.
func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}
