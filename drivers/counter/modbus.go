package counter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The frames of Modbus RTU: "Modbus over Serial Line" V1.02, section 2.5.1, and "Modbus
// Application Protocol" V1.1b3, sections 6.3 to 6.12 and 7. Registers are numbered from 0,
// as on the wire.
//
//	unit function body crc(2, low byte first)      at most 256 bytes
//	read registers (3 holding, 4 input): register(2) count(2) -> bytes(1) values(2 each)
//	write one (5 coil, 6 register):      register(2) value(2) -> the same
//	write several (16):                  register(2) count(2) bytes(1) values -> register(2) count(2)
//	refusal:                             function|80 code(1)
const (
	modbusReadHolding   = 3
	modbusReadInput     = 4
	modbusWriteCoil     = 5
	modbusWriteRegister = 6
	modbusWriteSeveral  = 16
	modbusRefusal       = 0x80
	modbusMostRead      = 125 // registers of one request
	modbusMaxFrame      = 256 // bytes
)

// A ModbusRefusal is the code of an exception.
type ModbusRefusal byte

func (r ModbusRefusal) Error() string {
	names := []string{1: "illegal function", 2: "illegal register", 3: "illegal value", 4: "device failure", 5: "accepted, not done yet", 6: "busy", 10: "gateway has no path", 11: "gateway's device does not answer"}
	if int(r) < len(names) && names[r] != "" {
		return fmt.Sprintf("the unit refuses: %s (exception %d)", names[r], byte(r))
	}
	return fmt.Sprintf("the unit refuses: exception %d", byte(r))
}

// A ModbusRequest is one request to one unit.
type ModbusRequest struct {
	Unit     byte
	Function byte   // 3, 4: read; 5, 6, 16: write
	Register uint16 // first; of 5 the coil
	Count    uint16 // 3, 4: registers to read
	Value    uint16 // 5: 0 is off, anything else on; 6: the value; 16: of the one register written
}

// Frame is the request as it is sent.
func (r ModbusRequest) Frame() []byte {
	b := []byte{r.Unit, r.Function}
	b = binary.BigEndian.AppendUint16(b, r.Register)
	switch r.Function {
	case modbusReadHolding, modbusReadInput:
		b = binary.BigEndian.AppendUint16(b, r.Count)
	case modbusWriteCoil:
		on := uint16(0)
		if r.Value != 0 {
			on = 0xFF00
		}
		b = binary.BigEndian.AppendUint16(b, on)
	case modbusWriteSeveral:
		b = append(b, 0, 1, 2)
		b = binary.BigEndian.AppendUint16(b, r.Value)
	default:
		b = binary.BigEndian.AppendUint16(b, r.Value)
	}
	return modbusSeal(b)
}

// modbusSeal appends the checksum.
func modbusSeal(b []byte) []byte { return binary.LittleEndian.AppendUint16(b, crc16(b)) }

func modbusSealed(b []byte) bool {
	return binary.LittleEndian.Uint16(b[len(b)-2:]) == crc16(b[:len(b)-2])
}

// A ModbusReply looks for the reply to a request in what comes: noise, the echo of the
// request on a two-wire line and frames of other units are passed over. There are no other
// marks in a frame than its checksum, so it is looked for at every byte.
type ModbusReply struct {
	Request ModbusRequest
	Values  []uint16 // of a read, once whole
	Err     error    // ModbusRefusal, once whole
	Noise   int      // bytes before the reply

	buf []byte
}

// Push takes bytes and says whether the reply is whole; what comes after it is dropped.
func (r *ModbusReply) Push(data []byte) bool {
	r.buf = append(r.buf, data...)
	for at := range r.buf {
		if b := r.buf[at:]; r.frame(b) {
			r.Noise += at
			return true
		}
	}
	if over := len(r.buf) - modbusMaxFrame; over > 0 {
		r.Noise += over
		r.buf = slices.Delete(r.buf, 0, over)
	}
	return false
}

// frame reads the reply at the start of b.
func (r *ModbusReply) frame(b []byte) bool {
	q := r.Request
	if len(b) < 5 || b[0] != q.Unit {
		return false
	}
	if b[1] == q.Function|modbusRefusal && modbusSealed(b[:5]) {
		r.Err = ModbusRefusal(b[2])
		return true
	}
	if b[1] != q.Function {
		return false
	}
	switch q.Function {
	case modbusReadHolding, modbusReadInput:
		n := 2 * int(q.Count)
		if int(b[2]) != n || len(b) < n+5 || !modbusSealed(b[:n+5]) {
			return false
		}
		for v := range slices.Chunk(b[3:3+n], 2) {
			r.Values = append(r.Values, binary.BigEndian.Uint16(v))
		}
		return true
	default:
		// The echo of 5 and 6 is the reply, byte for byte; whether the write was done is seen
		// in the next reading.
		return len(b) >= 8 && slices.Equal(b[:6], q.Frame()[:6]) && modbusSealed(b[:8])
	}
}

// errNegative is a total below zero in a signed register.
var errNegative = errors.New("negative total")

// modbusTotal puts the registers of one total together.
func modbusTotal(values []uint16, lowFirst, signed bool) (uint64, error) {
	var total uint64
	for i := range values {
		v := values[i]
		if lowFirst {
			v = values[len(values)-1-i]
		}
		total = total<<16 | uint64(v)
	}
	if signed && total>>(16*len(values)-1) != 0 {
		return 0, errNegative
	}
	return total, nil
}
