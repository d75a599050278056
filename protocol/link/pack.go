package link

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/storelay/storelay/protocol"
)

// ErrTooBig means that a payload is beyond the limits of the wire contract.
var ErrTooBig = errors.New("payload is too big")

// packFrom is the size from which compressing is tried, in bytes.
const packFrom = 1 << 10

// zstdMagic begins every zstd frame (RFC 8878, 3.1.1); no JSON begins so.
const zstdMagic = "\x28\xb5\x2f\xfd"

// A packer packs and unpacks for one owner; it keeps its buffers between calls. The zero
// value is ready. It is safe for concurrent use.
type packer struct {
	once sync.Once
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	err  error
}

func (p *packer) ready() error {
	p.once.Do(func() {
		p.enc, p.err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(128<<10))
		if p.err == nil {
			p.dec, p.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxMemory(protocol.MaxUnpacked), zstd.WithDecoderMaxWindow(protocol.MaxUnpacked))
		}
	})
	return p.err
}

// pack compresses a payload when that makes it smaller.
func (p *packer) pack(payload []byte) ([]byte, error) {
	if len(payload) < packFrom {
		return payload, nil
	}
	if err := p.ready(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if packed := p.enc.EncodeAll(payload, make([]byte, 0, len(payload)/4)); len(packed) < len(payload) {
		return packed, nil
	}
	return payload, nil
}

// unpack is the inverse of pack. ErrTooBig when the payload or what it unpacks to is beyond
// protocol.MaxWire or protocol.MaxUnpacked; no more memory than that is used.
func (p *packer) unpack(payload []byte) ([]byte, error) {
	if len(payload) > protocol.MaxWire {
		return nil, fmt.Errorf("%w: %d bytes on the wire, at most %d", ErrTooBig, len(payload), protocol.MaxWire)
	}
	if !bytes.HasPrefix(payload, []byte(zstdMagic)) {
		return payload, nil
	}
	if err := p.ready(); err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	out, err := p.dec.DecodeAll(payload, nil)
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, fmt.Errorf("%w: more than %d bytes unpacked", ErrTooBig, protocol.MaxUnpacked)
	case err != nil:
		return nil, fmt.Errorf("unpack: %w", err)
	}
	return out, nil
}
