package counter

import (
	"encoding/binary"
	"encoding/hex"
)

// The packets of Point Six wireless sensors as the Point Host receiver sends them: manual of
// the IR Point Sensor, pages 2 and 3 (manualshive 1570774), and of the Point Host, page 2. A
// packet is 14 bytes as 28 hex digits and CR; many sensors, one way, nobody asks.
//
//	kind(1) serial(4) total(3, low byte first) fringe(1) blocked s(2, low byte first) crc(2) sum(1)
//
// The low two bits of serial are flags: 1 the beam is seen, 2 it is not; neither: blocked for
// more than 6.5 s. The receiver has checked crc, whose polynomial is not printed. The sum is of
// the bytes before it by the newer manual, of their characters by the older; either is taken.
const (
	pointSixDigits  = 28
	pointSixCounter = 0x11 // an object counter
	pointSixService = 0x10 // the same in service mode
	pointSixWidth   = 24   // bits of the total
	pointSixLock    = 3    // packets with one way of summing after which only that is taken
)

// A PointSixFrame is one good packet of an object counter.
type PointSixFrame struct {
	Serial  uint32 // 30 bits
	Total   uint32 // objects through the beam since the sensor's zero
	Service bool   // service mode
	Blocked bool
	Fringe  bool // the beam only just arrives: the sensor is misaligned
	Other   bool // of another kind of sensor: the rest is not set
}

// A PointSixCodec finds packets in a stream of bytes. The zero value is ready.
type PointSixCodec struct {
	LittleSerial bool // byte order of serial, which is not printed
	Noise        int  // lines that were no packet

	buf                   []byte
	binary, ascii         int // packets whose sum fits in one way alone
	binaryOnly, asciiOnly bool
}

// Push takes bytes and gives the packets that they complete.
func (c *PointSixCodec) Push(data []byte) (frames []PointSixFrame) {
	for _, b := range data {
		if b != '\r' && b != '\n' {
			if c.buf = append(c.buf, b); len(c.buf) > 2*pointSixDigits {
				c.buf = append(c.buf[:0], c.buf[len(c.buf)-pointSixDigits:]...)
			}
			continue
		}
		if len(c.buf) == 0 {
			continue
		}
		if f, ok := c.parse(c.buf); ok {
			frames = append(frames, f)
		} else {
			c.Noise++
		}
		c.buf = c.buf[:0]
	}
	return frames
}

// parse reads the packet at the end of a line; what is before it is noise.
func (c *PointSixCodec) parse(line []byte) (PointSixFrame, bool) {
	if len(line) < pointSixDigits {
		return PointSixFrame{}, false
	}
	line = line[len(line)-pointSixDigits:]
	var b [pointSixDigits / 2]byte
	if _, err := hex.Decode(b[:], line); err != nil || !c.summed(b[:], line) {
		return PointSixFrame{}, false
	}
	if b[0] != pointSixCounter && b[0] != pointSixService {
		return PointSixFrame{Other: true}, true
	}
	var order binary.ByteOrder = binary.BigEndian
	if c.LittleSerial {
		order = binary.LittleEndian
	}
	serial := order.Uint32(b[1:])
	return PointSixFrame{
		Serial: serial >> 2, Blocked: serial&3 == 0, Service: b[0] == pointSixService,
		Total: uint32(b[5]) | uint32(b[6])<<8 | uint32(b[7])<<16, Fringe: b[8] != 0,
	}, true
}

// summed checks the sum in the way of the sensor, once that is known.
func (c *PointSixCodec) summed(b, digits []byte) bool {
	last := len(b) - 1
	isBinary, isASCII := sum8(b[:last]) == b[last], sum8(digits[:2*last]) == b[last]
	switch {
	case c.binaryOnly:
		return isBinary
	case c.asciiOnly:
		return isASCII
	case isBinary && !isASCII:
		c.binary++
		c.binaryOnly = c.binary >= pointSixLock
	case isASCII && !isBinary:
		c.ascii++
		c.asciiOnly = c.ascii >= pointSixLock
	}
	return isBinary || isASCII
}

func sum8(data []byte) (sum byte) {
	for _, b := range data {
		sum += b
	}
	return sum
}
