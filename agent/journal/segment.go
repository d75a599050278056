package journal

import (
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
	formatVersion = 1
	headerRoom    = 512 // bytes before a segment's first group
	spare         = 64  // bytes that stay unused, so that an open segment is longer than its data
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
	room    int64         // size of the file until it is closed
	pred    uint64        // the segment before; those between are void. 0 = none
	predEnd int64         // where that one ends; what lies beyond is void
}

// A before seals an epoch's predecessor.
type before struct {
	ord  uint64
	mark protocol.Mark
}

func (h *header) encode() []byte {
	b := binary.AppendUvarint(nil, h.version)
	for _, s := range []string{h.origin.Chain, h.origin.Store, h.origin.Agent} {
		b = putText(b, s)
	}
	b = binary.AppendUvarint(b, h.ord)
	b = append(b, encodeEpoch(h.epoch, h.id, h.before)...)
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
		return nil, fmt.Errorf("format %d, this program knows %d: install the newer agent again", h.version, formatVersion)
	}
	h.origin = protocol.Origin{Chain: d.text(), Store: d.text(), Agent: d.text()}
	h.ord = d.uvarint()
	h.epoch, h.id, h.before = d.epoch()
	h.first = d.uvarint()
	h.prev = d.hash()
	h.room = d.varint()
	h.pred = d.uvarint()
	h.predEnd = d.varint()
	return h, d.err()
}

func encodeEpoch(ord uint64, id protocol.Epoch, bef *before) []byte {
	b := putText(binary.AppendUvarint(nil, ord), string(id))
	if bef == nil {
		return append(b, 0)
	}
	return putMark(binary.AppendUvarint(append(b, 1), bef.ord), bef.mark)
}

func (d *decoder) epoch() (uint64, protocol.Epoch, *before) {
	ord, id := d.uvarint(), protocol.Epoch(d.text())
	if d.byte() == 0 {
		return ord, id, nil
	}
	return ord, id, &before{ord: d.uvarint(), mark: d.mark()}
}

// A segment is what the journal knows of one segment file.
type segment struct {
	header
	next   uint64 // seq behind its last record
	end    int64  // bytes that count
	size   int64  // on disk
	packed bool   // compressed: every record is acknowledged
	since  time.Time
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
// The caller holds files.
func (j *Journal) readSegment(ord uint64, packed bool, limit int64) ([]byte, error) {
	f, err := j.opt.Disk.Open(j.segmentPath(ord, packed))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if packed {
		z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	}
	if limit >= 0 {
		r = io.LimitReader(r, limit)
	}
	data, err := io.ReadAll(r)
	if packed && err != nil && len(data) > 0 {
		err = nil // a damaged end: what could be unpacked is told apart by the frames' checksums
	}
	return data, err
}

// headerOf reads the header out of the first bytes of a segment.
func headerOf(data []byte) (*header, error) {
	f, ok := frameAt(data, 0)
	if !ok || f.typ != typeHeader {
		return nil, errBadFrame
	}
	return decodeHeader(f.payload)
}

// create makes a new segment file of the given room with its header, not yet synced.
func (j *Journal) create(h *header, room int64) (File, error) {
	path := j.segmentPath(h.ord, false)
	f, err := j.opt.Disk.Create(path, room)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(appendFrame(nil, typeHeader, 0, h.encode()), 0); err != nil {
		return nil, errors.Join(err, f.Close(), j.opt.Disk.Remove(path))
	}
	return f, nil
}

// writeZeros gives f its size by writing every block, where the system cannot allocate.
func writeZeros(f *os.File, size int64) error {
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return nil
}
