package drivertest

import (
	"context"
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// A ModbusBus is a line with several Modbus RTU slaves (Modbus over serial line V1.02): a
// request is unit, function, data, CRC-16 with its low byte first. A request whose CRC is bad,
// or that is for no unit of the bus, is not answered; one for unit 0 is obeyed by all and
// answered by none.
type ModbusBus struct {
	out   *outbox
	pause time.Duration
	units []*ModbusCounter

	mu       sync.Mutex // guards the fields below
	pending  []byte
	heard    time.Time // the last bytes
	answered time.Time // the last answer
	early    int
	bad      int
}

// modbusQuiet ends a request that is not complete: a slave forgets it at a pause of 3.5
// characters (1.75 ms above 19200 baud); a pseudo-terminal is not so punctual.
const modbusQuiet = 100 * time.Millisecond

// NewModbusBus puts units on one line. Requests that begin sooner than pause after the last
// answer are not heard, as slow slaves have it.
func NewModbusBus(pause time.Duration, units ...*ModbusCounter) *ModbusBus {
	return &ModbusBus{out: newOutbox(), pause: pause, units: units}
}

// Run speaks on the line until ctx ends or the line is lost.
func (b *ModbusBus) Run(ctx context.Context, line io.ReadWriter) error {
	return b.out.serve(ctx, line, b.feed, nil)
}

// Counter is one unit of the bus, for a suite: its Run is that of the whole bus.
func (b *ModbusBus) Counter(unit *ModbusCounter) CounterDevice { return modbusSeat{unit, b} }

type modbusSeat struct {
	*ModbusCounter
	bus *ModbusBus
}

func (s modbusSeat) Run(ctx context.Context, line io.ReadWriter) error { return s.bus.Run(ctx, line) }

// Unheard is how many requests came too early after an answer.
func (b *ModbusBus) Unheard() int { b.mu.Lock(); defer b.mu.Unlock(); return b.early }

// Bad is how many bytes belonged to no request.
func (b *ModbusBus) Bad() int { b.mu.Lock(); defer b.mu.Unlock(); return b.bad }

func (b *ModbusBus) feed(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if len(b.pending) > 0 && now.Sub(b.heard) > modbusQuiet {
		b.bad += len(b.pending)
		b.pending = nil
	}
	b.heard = now
	b.pending = append(b.pending, p...)
	for len(b.pending) >= 8 {
		size := 8
		if b.pending[1] == 15 || b.pending[1] == 16 {
			size = 9 + int(b.pending[6])
		}
		if len(b.pending) < size {
			return
		}
		request := b.pending[:size]
		if modbusCRC(request[:size-2]) != binary.LittleEndian.Uint16(request[size-2:]) {
			b.bad++
			b.pending = b.pending[1:]
			continue
		}
		b.pending = b.pending[size:]
		if now.Sub(b.answered) < b.pause {
			b.early++
			continue
		}
		for _, u := range b.units {
			if request[0] != 0 && request[0] != u.opts.Unit {
				continue
			}
			answer, after := u.serve(request[1 : size-2])
			if answer == nil || request[0] == 0 {
				continue
			}
			answer = binary.LittleEndian.AppendUint16(answer, modbusCRC(answer))
			if after > 0 {
				time.AfterFunc(after, func() { b.out.send(answer) })
				continue
			}
			b.answered = now
			b.out.send(answer)
		}
	}
}

// modbusCRC has the polynomial 0xA001 (reflected) and begins at 0xFFFF.
func modbusCRC(p []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, c := range p {
		crc ^= uint16(c)
		for range 8 {
			odd := crc&1 != 0
			crc >>= 1
			if odd {
				crc ^= 0xA001
			}
		}
	}
	return crc
}

// A ModbusTrouble is what a unit does wrong. Its frames have a good CRC all the same.
type ModbusTrouble struct {
	Dead      bool          // does not answer
	Slow      time.Duration // answers so late, whatever was asked meanwhile
	As        byte          // not 0: the answer is said to be of this unit, and its data are wrong
	Function  byte          // not 0: the answer is said to be to this function, and its data are wrong
	Short     bool          // the answer has one register less than was asked for
	Exception byte          // not 0: answers with this exception: 4 failure, 6 busy
	Every     int           // strikes at each n-th request only; 0 = at all
}

// The exceptions of Modbus (application protocol V1.1b3, section 7).
const (
	illegalFunction = 1
	illegalAddress  = 2
	illegalValue    = 3
)

// serve obeys one request without unit and CRC, and returns the answer without CRC and how
// long it takes; nil = none.
func (u *ModbusCounter) serve(request []byte) ([]byte, time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked++
	trouble := u.trouble
	if trouble.Every > 1 && u.asked%trouble.Every != 0 {
		trouble = ModbusTrouble{}
	}
	if trouble.Dead {
		return nil, 0
	}
	function := request[0]
	data, exception := u.obey(function, request[1:])
	if trouble.Exception != 0 {
		exception = trouble.Exception
	}
	if exception != 0 {
		return []byte{u.opts.Unit, function | 0x80, exception}, trouble.Slow
	}
	answer := append([]byte{u.opts.Unit, function}, data...)
	if trouble.Short && function <= 4 && answer[2] >= 2 {
		answer = answer[:len(answer)-2]
		answer[2] -= 2
	}
	if trouble.As != 0 || trouble.Function != 0 {
		for i := range answer[min(3, len(answer)):] {
			answer[3+i] ^= 0x5A
		}
	}
	if trouble.As != 0 {
		answer[0] = trouble.As
	}
	if trouble.Function != 0 {
		answer[1] = trouble.Function
	}
	return answer, trouble.Slow
}

// obey does what a request asks for, and returns the answer's data or an exception; u.mu is
// held.
func (u *ModbusCounter) obey(function byte, p []byte) ([]byte, byte) {
	first, n := binary.BigEndian.Uint16(p), int(binary.BigEndian.Uint16(p[2:]))
	switch function {
	case 1, 2:
		if n < 1 || n > 2000 {
			return nil, illegalValue
		}
		data := make([]byte, 1+(n+7)/8)
		data[0] = byte(len(data) - 1)
		for i := range n {
			value, ok := u.read(modbusBank(function), first+uint16(i))
			if !ok {
				return nil, illegalAddress
			}
			data[1+i/8] |= bit(value != 0, i%8)
		}
		return data, 0
	case 3, 4:
		if n < 1 || n > 125 {
			return nil, illegalValue
		}
		data := []byte{byte(2 * n)}
		for i := range n {
			value, ok := u.read(modbusBank(function), first+uint16(i))
			if !ok {
				return nil, illegalAddress
			}
			data = binary.BigEndian.AppendUint16(data, value)
		}
		return data, 0
	case 5:
		if n != 0 && n != 0xFF00 {
			return nil, illegalValue
		}
		return p, u.write(modbusCoil, first, uint16(n>>8&1))
	case 6:
		return p, u.write(modbusHolding, first, uint16(n))
	case 15, 16:
		values := p[5:]
		if function == 15 && (n < 1 || len(values) != (n+7)/8) || function == 16 && (n < 1 || len(values) != 2*n) {
			return nil, illegalValue
		}
		for i := range n {
			bank, value := modbusCoil, uint16(values[i/8]>>(i%8)&1)
			if function == 16 {
				bank, value = modbusHolding, binary.BigEndian.Uint16(values[2*i:])
			}
			if exception := u.write(bank, first+uint16(i), value); exception != 0 {
				return nil, exception
			}
		}
		return p[:4], 0
	}
	return nil, illegalFunction
}
