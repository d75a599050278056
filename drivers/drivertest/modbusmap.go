package drivertest

import (
	"context"
	"io"
	"sync"
	"time"
)

// A ModbusMap names the registers of a product.
type ModbusMap string

// The maps that a ModbusCounter knows.
const (
	// MapMCM8 is the Wiren Board WB-MCM8 (template config-wb-mcm8 of wb-mqtt-serial): discrete
	// inputs 0..7; input registers 60+2n the counter n, 40+2n its frequency, 104 the uptime in
	// seconds, 121 the supply in mV, 200..206 "WBMCM8", 250 firmware, 270 serial number;
	// holding 20+n debounce in ms, 100 reset of all counters, 110..112 line, 128 address. 32
	// bits, high word first.
	MapMCM8 ModbusMap = "wb-mcm8"
	// MapDX80 is a Banner SureCross DX80 gateway: holding registers, 1-based, of node N: 3+16N
	// and 4+16N count 1 (high word first), 5+16N and 6+16N count 2, 8+16N device message,
	// 11+16N and 13+16N clear them when 1 is written.
	MapDX80 ModbusMap = "dx80"
	// MapADAM4080 is the Advantech ADAM-4080: holding 0..3 are two counters of 32 bits; coil 32
	// starts and stops counter 0, coil 33 clears it. Word order is not documented.
	MapADAM4080 ModbusMap = "adam-4080"
	// MapIOLogik is the Moxa ioLogik R1212: 8 counters of 32 bits, high word first; coils 0..7
	// start and stop them. Their place, input register 16, is a guess.
	MapIOLogik ModbusMap = "iologik"
	// MapFree is whatever Free says.
	MapFree ModbusMap = "free"
)

// A ModbusFree is a map of one's own.
type ModbusFree struct {
	Holding bool   // the counters are holding registers; else input registers
	In, Out uint16 // their first registers
	Bits    int    // 16 or 32; 0 = 32
	Reset   uint16 // holding register that clears both when it is written; 0 = none
	Uptime  uint16 // holding register pair with the uptime in seconds; 0 = none
}

// ModbusCounterOptions shape a ModbusCounter; the zero value is a WB-MCM8 at address 1.
type ModbusCounterOptions struct {
	Unit         byte          // address on the bus; 0 = 1
	Map          ModbusMap     // "" = MapMCM8
	Node         int           // of MapDX80; 0 = 1
	Free         ModbusFree    // of MapFree
	LowWordFirst bool          // of all counters
	Retain       bool          // totals outlive the power
	Uptime       time.Duration // when it is made; 0 = a day
}

// A modbusBank is a kind of register; the number is the function that reads it.
type modbusBank byte

const (
	modbusCoil     modbusBank = 1
	modbusDiscrete modbusBank = 2
	modbusHolding  modbusBank = 3
	modbusInput    modbusBank = 4
)

type modbusPlace struct {
	bank modbusBank
	at   uint16
}

// A modbusCell is one register; write nil = read only.
type modbusCell struct {
	read  func() uint16
	write func(uint16) bool // false: a value out of range
}

// A ModbusCounter simulates one Modbus RTU slave that counts the pulses of two light
// barriers: people in on its first input, people out on its second.
type ModbusCounter struct {
	opts ModbusCounterOptions
	bus  *ModbusBus // of its own Run

	mu      sync.Mutex // guards the fields below
	cells   map[modbusPlace]modbusCell
	bits    int
	count   [8]uint64 // the registers; 0 in, 1 out
	stopped [8]bool
	truth   Passages
	booted  time.Time
	message uint16 // device message of MapDX80
	trouble ModbusTrouble
	asked   int
}

// NewModbusCounter makes a counter whose totals are zero.
func NewModbusCounter(opts ModbusCounterOptions) *ModbusCounter {
	if opts.Unit == 0 {
		opts.Unit = 1
	}
	if opts.Map == "" {
		opts.Map = MapMCM8
	}
	if opts.Node == 0 {
		opts.Node = 1
	}
	if opts.Uptime == 0 {
		opts.Uptime = 24 * time.Hour
	}
	u := &ModbusCounter{opts: opts, bits: 32, booted: time.Now().Add(-opts.Uptime), cells: map[modbusPlace]modbusCell{}}
	u.bus = NewModbusBus(0, u)
	switch opts.Map {
	case MapMCM8:
		u.layMCM8()
	case MapDX80:
		u.layDX80()
	case MapADAM4080:
		for n := range 2 {
			u.pair(modbusHolding, uint16(2*n), u.register(n))
		}
		u.cells[modbusPlace{modbusCoil, 32}] = u.start(0)
		u.cells[modbusPlace{modbusCoil, 33}] = u.clear(0)
	case MapIOLogik:
		for n := range 8 {
			u.pair(modbusInput, uint16(16+2*n), u.register(n))
			u.cells[modbusPlace{modbusCoil, uint16(n)}] = u.start(n)
		}
	case MapFree:
		u.layFree()
	}
	return u
}

func (u *ModbusCounter) layMCM8() {
	for n := range 8 {
		u.pair(modbusInput, uint16(60+2*n), u.register(n))
		u.pair(modbusInput, uint16(40+2*n), func() uint32 { return 0 })
		u.cells[modbusPlace{modbusDiscrete, uint16(n)}] = modbusCell{read: func() uint16 { return 0 }}
		debounce := uint16(50)
		u.cells[modbusPlace{modbusHolding, uint16(20 + n)}] = modbusCell{
			read: func() uint16 { return debounce },
			write: func(v uint16) bool {
				if v > 2000 {
					return false
				}
				debounce = v
				return true
			},
		}
	}
	u.pair(modbusInput, 104, u.uptime)
	u.cells[modbusPlace{modbusInput, 121}] = modbusCell{read: func() uint16 { return 12000 }}
	u.text(200, "WBMCM8\x00")
	u.text(250, "1.2.3\x00")
	u.pair(modbusInput, 270, func() uint32 { return 0x00C0FFEE })
	u.cells[modbusPlace{modbusHolding, 100}] = modbusCell{
		read:  func() uint16 { return 0 },
		write: func(uint16) bool { u.count = [8]uint64{}; return true },
	}
	for at, value := range map[uint16]uint16{110: 96, 111: 0, 112: 2, 128: uint16(u.opts.Unit)} {
		u.cells[modbusPlace{modbusHolding, at}] = modbusCell{read: func() uint16 { return value }}
	}
}

func (u *ModbusCounter) layDX80() {
	for at := range uint16(16 * 48) { // registers of other nodes read as zero
		u.cells[modbusPlace{modbusHolding, at}] = modbusCell{read: func() uint16 { return 0 }, write: func(uint16) bool { return true }}
	}
	at := uint16(16*u.opts.Node) - 1 // of register 0+16N in a request
	u.pair(modbusHolding, at+3, u.register(0))
	u.pair(modbusHolding, at+5, u.register(1))
	u.cells[modbusPlace{modbusHolding, at + 8}] = modbusCell{read: func() uint16 { return u.message }}
	u.cells[modbusPlace{modbusHolding, at + 11}] = u.clear(0)
	u.cells[modbusPlace{modbusHolding, at + 13}] = u.clear(1)
}

func (u *ModbusCounter) layFree() {
	free, bank := u.opts.Free, modbusInput
	if free.Holding {
		bank = modbusHolding
	}
	if free.Bits == 16 {
		u.bits = 16
	}
	for n, at := range []uint16{free.In, free.Out} {
		if read := u.register(n); u.bits == 32 {
			u.pair(bank, at, read)
		} else {
			u.cells[modbusPlace{bank, at}] = modbusCell{read: func() uint16 { return uint16(read()) }}
		}
	}
	if free.Reset != 0 {
		u.cells[modbusPlace{modbusHolding, free.Reset}] = modbusCell{
			read:  func() uint16 { return 0 },
			write: func(uint16) bool { u.count = [8]uint64{}; return true },
		}
	}
	if free.Uptime != 0 {
		u.pair(modbusHolding, free.Uptime, u.uptime)
	}
}

// pair lays a value of 32 bits into two registers.
func (u *ModbusCounter) pair(bank modbusBank, at uint16, value func() uint32) {
	high := modbusCell{read: func() uint16 { return uint16(value() >> 16) }}
	low := modbusCell{read: func() uint16 { return uint16(value()) }}
	if u.opts.LowWordFirst {
		high, low = low, high
	}
	u.cells[modbusPlace{bank, at}], u.cells[modbusPlace{bank, at + 1}] = high, low
}

// text lays one character into each input register.
func (u *ModbusCounter) text(at uint16, s string) {
	for i := range len(s) {
		u.cells[modbusPlace{modbusInput, at + uint16(i)}] = modbusCell{read: func() uint16 { return uint16(s[i]) }}
	}
}

func (u *ModbusCounter) register(n int) func() uint32 {
	return func() uint32 { return uint32(u.count[n] & (1<<u.bits - 1)) }
}

func (u *ModbusCounter) uptime() uint32 { return uint32(time.Since(u.booted) / time.Second) }

func (u *ModbusCounter) start(n int) modbusCell {
	return modbusCell{
		read:  func() uint16 { return uint16(bit(!u.stopped[n], 0)) },
		write: func(v uint16) bool { u.stopped[n] = v == 0; return true },
	}
}

func (u *ModbusCounter) clear(n int) modbusCell {
	return modbusCell{
		read: func() uint16 { return 0 },
		write: func(v uint16) bool {
			if v == 1 {
				u.count[n] = 0
			}
			return true
		},
	}
}

func (u *ModbusCounter) read(bank modbusBank, at uint16) (uint16, bool) {
	cell, ok := u.cells[modbusPlace{bank, at}]
	if !ok {
		return 0, false
	}
	return cell.read(), true
}

func (u *ModbusCounter) write(bank modbusBank, at, value uint16) byte {
	cell, ok := u.cells[modbusPlace{bank, at}]
	switch {
	case !ok || cell.write == nil:
		return illegalAddress
	case !cell.write(value):
		return illegalValue
	}
	return 0
}

// Run speaks on a line of its own until ctx ends or the line is lost.
func (u *ModbusCounter) Run(ctx context.Context, line io.ReadWriter) error {
	return u.bus.Run(ctx, line)
}

// Walk lets people pass. A counter that is stopped does not see them.
func (u *ModbusCounter) Walk(in, out int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.truth.In += int64(in)
	u.truth.Out += int64(out)
	for n, more := range []int{in, out} {
		if !u.stopped[n] {
			u.count[n] += uint64(more)
		}
	}
}

// PowerCycle takes the power away and gives it back: the uptime is zero, and the totals too
// unless they are retained.
func (u *ModbusCounter) PowerCycle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.booted = time.Now()
	if !u.opts.Retain {
		u.count = [8]uint64{}
	}
}

// NearWrap sets the registers so that they roll over after so many people.
func (u *ModbusCounter) NearWrap(in, out int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count[0], u.count[1] = 1<<u.bits-uint64(in), 1<<u.bits-uint64(out)
}

// SetMessage sets the device message of MapDX80.
func (u *ModbusCounter) SetMessage(message uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.message = message
}

// SetTrouble makes the unit misbehave; the zero ModbusTrouble ends it.
func (u *ModbusCounter) SetTrouble(t ModbusTrouble) { u.mu.Lock(); defer u.mu.Unlock(); u.trouble = t }

// Asked is how many requests the unit has had.
func (u *ModbusCounter) Asked() int { u.mu.Lock(); defer u.mu.Unlock(); return u.asked }

// Totals are the registers as the unit would say them.
func (u *ModbusCounter) Totals() Passages {
	u.mu.Lock()
	defer u.mu.Unlock()
	return Passages{int64(u.register(0)()), int64(u.register(1)())}
}

// Truth is everyone who ever passed; no reset touches it.
func (u *ModbusCounter) Truth() Passages { u.mu.Lock(); defer u.mu.Unlock(); return u.truth }
