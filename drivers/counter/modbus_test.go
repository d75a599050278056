package counter

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// The requests of the manuals and of telegraf's log (#9253), byte for byte.
func TestModbusRequests(t *testing.T) {
	for _, tt := range []struct {
		name string
		q    ModbusRequest
		want string
	}{
		{"ten holding registers", ModbusRequest{Unit: 1, Function: 3, Count: 10}, "01 03 00 00 00 0A C5 CD"},
		{"unit 10", ModbusRequest{Unit: 10, Function: 3, Register: 0x1004, Count: 2}, "0A 03 10 04 00 02 80 71"},
		{"WB-MCM8, totals 1 and 2", ModbusRequest{Unit: 1, Function: 4, Register: 60, Count: 4}, "01 04 00 3C 00 04 31 C5"},
		{"WB-MCM8, reset", ModbusRequest{Unit: 1, Function: 6, Register: 100, Value: 1}, "01 06 00 64 00 01 09 D5"},
		{"DX80, node 1", ModbusRequest{Unit: 1, Function: 3, Register: 0x12, Count: 4}, "01 03 00 12 00 04 E4 0C"},
		// Modbus Application Protocol V1.1b3, 6.5 and 6.12; its examples have no unit and checksum.
		{"a coil", ModbusRequest{Unit: 1, Function: 5, Register: 0xAC, Value: 1}, "01 05 00 AC FF 00 4C 1B"},
		{"several registers", ModbusRequest{Unit: 1, Function: 16, Register: 1, Value: 10}, "01 10 00 01 00 01 02 00 0A 27 86"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.q.Frame(); !bytes.Equal(got, unhex(t, tt.want)) {
				t.Errorf("frame = % X, want %s", got, tt.want)
			}
		})
	}
}

const (
	modbusTwoTotals = "01 04 08 00 01 11 70 00 01 11 3E AA 07" // 70000 and 69950
	modbusNoSuch    = "01 84 02 C2 C1"                         // exception 2
)

var readTwoTotals = ModbusRequest{Unit: 1, Function: 4, Register: 60, Count: 4}

func TestModbusReplies(t *testing.T) {
	write := ModbusRequest{Unit: 1, Function: 6, Register: 100, Value: 1}
	for _, tt := range []struct {
		name, bytes string
		q           ModbusRequest
		want        []uint16
		err         error
		noise       int
	}{
		{"totals", modbusTwoTotals, readTwoTotals, []uint16{1, 0x1170, 1, 0x113E}, nil, 0},
		{"after the echo of the request", "01 04 00 3C 00 04 31 C5" + modbusTwoTotals, readTwoTotals, []uint16{1, 0x1170, 1, 0x113E}, nil, 8},
		{"after noise that looks like one", "01 04 08" + modbusTwoTotals, readTwoTotals, []uint16{1, 0x1170, 1, 0x113E}, nil, 3},
		{"a refusal", modbusNoSuch, readTwoTotals, nil, ModbusRefusal(2), 0},
		{"a write", "01 06 00 64 00 01 09 D5", write, nil, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size < 30; size++ {
				r := ModbusReply{Request: tt.q}
				whole := false
				for part := range slices.Chunk(unhex(t, tt.bytes), size) {
					whole = whole || r.Push(part)
				}
				if !whole || !slices.Equal(r.Values, tt.want) || !errors.Is(r.Err, tt.err) || r.Noise != tt.noise {
					t.Fatalf("in pieces of %d: %t, %+v; want %v, %v, noise %d", size, whole, r, tt.want, tt.err, tt.noise)
				}
			}
		})
	}
}

func TestModbusRepliesThatAreNotOurs(t *testing.T) {
	for name, frame := range map[string]string{
		"another unit":      "02 04 08 00 01 11 70 00 01 11 3E A5 43",
		"another function":  "01 03 08 00 01 11 70 00 01 11 3E 1B DD",
		"another length":    "01 04 04 00 01 11 70 A7 F0",
		"a bad checksum":    "01 04 08 00 01 11 70 00 01 11 3E AA 08",
		"a bad byte":        "01 04 08 00 01 11 71 00 01 11 3E AA 07",
		"the request alone": "01 04 00 3C 00 04 31 C5",
	} {
		r := ModbusReply{Request: readTwoTotals}
		if r.Push(unhex(t, frame)) {
			t.Errorf("%s is taken for the reply: %+v", name, r)
		}
	}
}

func TestModbusTotals(t *testing.T) {
	for _, tt := range []struct {
		name             string
		values           []uint16
		lowFirst, signed bool
		want             uint64
		err              error
	}{
		{"32 bits, high word first", []uint16{1, 0x1170}, false, false, 70000, nil},
		{"32 bits, low word first", []uint16{0x1170, 1}, true, false, 70000, nil},
		{"16 bits", []uint16{65535}, false, false, 65535, nil},
		{"48 bits", []uint16{1, 0, 2}, false, false, 1<<32 + 2, nil},
		{"signed", []uint16{0x7FFF, 0xFFFF}, false, true, 1<<31 - 1, nil},
		{"signed and negative", []uint16{0xFFFF, 0xFFFF}, false, true, 0, errNegative},
	} {
		got, err := modbusTotal(tt.values, tt.lowFirst, tt.signed)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: %d, %v; want %d, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

func FuzzModbusReply(f *testing.F) {
	f.Add(byte(1), byte(4), []byte{0, 1, 0x11, 0x70, 0, 1, 0x11, 0x3E}, []byte{1, 4, 0, 60, 0, 4, 0x31, 0xC5}, uint8(3))
	f.Add(byte(1), byte(6), []byte{0, 100, 0, 1}, []byte{}, uint8(9))
	f.Add(byte(7), byte(0x84), []byte{2}, []byte{7, 4, 2}, uint8(1))
	f.Fuzz(func(t *testing.T, unit, function byte, body, noise []byte, cut uint8) {
		q := ModbusRequest{Unit: unit, Function: function &^ modbusRefusal, Register: 100, Value: 1, Count: uint16(min(len(body)/2, modbusMostRead))}
		frame := []byte{unit, function}
		if function == modbusReadHolding || function == modbusReadInput {
			frame = append(frame, byte(len(body)))
		}
		frame = modbusSeal(append(frame, body...)) // behind the checksum
		stream := slices.Concat(noise, frame)
		at := min(int(cut), len(stream))
		parts := ModbusReply{Request: q}
		whole := parts.Push(stream[:at]) || parts.Push(stream[at:])
		if len(parts.buf) > modbusMaxFrame+len(stream) {
			t.Fatalf("buffer grew to %d", len(parts.buf))
		}
		if whole && parts.Err == nil && (q.Function == modbusReadHolding || q.Function == modbusReadInput) && len(parts.Values) != int(q.Count) {
			t.Errorf("%d values of %d", len(parts.Values), q.Count)
		}
		reads := function == modbusReadHolding || function == modbusReadInput
		if reads && len(body)%2 == 0 && len(body) <= 2*modbusMostRead && len(stream) <= modbusMaxFrame && !whole {
			t.Errorf("no reply in % X after % X", frame, noise)
		}
		if len(noise) == 0 && reads && whole && parts.Err == nil {
			for i, v := range parts.Values {
				if v != uint16(body[2*i])<<8|uint16(body[2*i+1]) {
					t.Errorf("value %d = %04X of % X", i, v, body)
				}
			}
		}
	})
}

func TestModbusProfilesAreWhole(t *testing.T) {
	names := modbusProfileNames()
	if !slices.Contains(names, "wb-mcm8") || !slices.Contains(names, freeProfile) || len(names) != 5 {
		t.Errorf("profiles = %q", names)
	}
	for _, name := range names {
		p, faults := readModbusProfile(name)
		if len(faults) > 0 {
			t.Errorf("%s: %v", name, faults)
		}
		if p.Serves == "" || p.Channels < 1 || p.Function != 3 && p.Function != 4 || p.Width%16 != 0 || p.Width == 0 || p.Stride*16 < p.Width ||
			p.WordOrder != "high-first" && p.WordOrder != "low-first" || p.Uptime.Function != 0 && p.Uptime.Width == 0 {
			t.Errorf("%s is not whole: %+v", name, p)
		}
	}
}

// mapOf is what a device's settings come to.
func mapOf(t *testing.T, settings map[string]any) (modbusMap, serialport.Config, error) {
	t.Helper()
	d, err := NewModbus(drivers.Spec{ID: "door", Driver: "modbus", Port: "COM3", Settings: settings}, nil, &serialport.Buses{})
	if err != nil {
		return modbusMap{}, serialport.Config{}, err
	}
	m := d.(*Modbus)
	return m.m, m.config, nil
}

func TestModbusProfiles(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings map[string]any
		in, out  int
		resets   []ModbusRequest
		uptime   int // -1: none
		port     string
	}{
		{"WB-MCM8", map[string]any{"profile": "wb-mcm8", "in_channel": 3, "out_channel": 8, "reset": "write"}, 64, 74,
			[]ModbusRequest{{Function: 6, Register: 100, Value: 1}}, 104, "9600 none 2"},
		{"DX80, node 1", map[string]any{"profile": "banner-dx80", "in_channel": 1, "out_channel": 2, "reset": "write"}, 18, 20,
			[]ModbusRequest{{Function: 6, Register: 26, Value: 1}, {Function: 6, Register: 28, Value: 1}}, -1, "19200 none 1"},
		{"DX80, node 3, slower line", map[string]any{"profile": "banner-dx80", "in_channel": 6, "baud": 9600}, 52, -1, nil, -1, "9600 none 1"},
		{"ADAM-4080", map[string]any{"profile": "adam-4080", "out_channel": 2}, 0, 2, nil, -1, "9600 none 1"},
		{"ioLogik", map[string]any{"profile": "moxa-iologik", "in_channel": 2, "out_channel": 3, "reset": "write"}, 18, 20,
			[]ModbusRequest{{Function: 5, Register: 33, Value: 1}, {Function: 5, Register: 34, Value: 1}}, -1, "9600 none 1"},
		{"free registers", map[string]any{"in_register": 84, "out_register": 90, "word_order": "low-first", "width": 16, "function": "4",
			"uptime_register": 7, "uptime_width": 16, "reset": "write", "reset_function": 16, "reset_in_register": 5, "reset_out_register": -2, "reset_value": 9}, 84, 90,
			[]ModbusRequest{{Function: 16, Register: 5, Value: 9}}, 7, "9600 none 1"},
		{"a profile without its uptime", map[string]any{"profile": "wb-mcm8", "uptime_register": -2}, 60, -1, nil, -1, "9600 none 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, c, err := mapOf(t, tt.settings)
			if err != nil {
				t.Fatal(err)
			}
			uptime := -1
			if m.uptimeFunction != 0 {
				uptime = int(m.uptime)
			}
			if m.in != tt.in || m.out != tt.out || uptime != tt.uptime || !slices.Equal(m.resets, tt.resets) {
				t.Errorf("map = %+v", m)
			}
			if port := strings.Join([]string{strconv.Itoa(c.Baud), c.Parity, c.StopBits}, " "); port != tt.port {
				t.Errorf("port = %s, want %s", port, tt.port)
			}
		})
	}
}

func TestModbusSettingsThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		settings map[string]any
		field    string
	}{
		{map[string]any{"profile": "wb-mcm8", "in_channel": 9}, "settings.in_channel"},
		{map[string]any{"in_register": -2}, "settings.in_register"},
		{map[string]any{"in_register": 65535}, "settings.in_register"},
		{map[string]any{"uptime_register": 65535}, "settings.uptime_register"},
		{map[string]any{"profile": "adam-4080", "reset": "write"}, "settings.reset_function"},
		{map[string]any{"profile": "wb-mcm8", "in_register": 10, "reset": "write"}, "settings.reset_in_register"},
		{map[string]any{"unit": 0}, "settings.unit"},
		{map[string]any{"poll_interval": "61s"}, "settings.poll_interval"},
		{map[string]any{"profile": "wb-mcm9"}, "settings.profile"},
	} {
		_, _, err := mapOf(t, tt.settings)
		var faults protocol.Faults
		if !errors.As(err, &faults) || faults[0].Field != tt.field {
			t.Errorf("%v: %v, want a fault of %s", tt.settings, err, tt.field)
		}
	}
}

func BenchmarkModbusReply(b *testing.B) {
	frame := unhex(b, "01 04 00 3C 00 04 31 C5"+modbusTwoTotals) // behind its request's echo
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		r := ModbusReply{Request: readTwoTotals}
		if !r.Push(frame) {
			b.Fatal("no reply")
		}
	}
}
