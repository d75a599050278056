package counter

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// A modbusLine is a line with units that the test plays: registers by function and number,
// and what else becomes of a request.
type modbusLine struct {
	mu        sync.Mutex // guards what follows
	registers map[[2]int]uint16
	refuse    byte                         // code of the refusal of all reads
	dead      map[byte]bool                // units that do not answer
	written   func(register, value uint16) // nil: writes are answered and do nothing
	hook      func(reply []byte) []byte    // sees each reply; nil is silence
	device    net.Conn
	opened    int
	requests  int
}

func newModbusLine() *modbusLine { return &modbusLine{registers: map[[2]int]uint16{}} }

// totals sets 32-bit totals in holding registers 0 and 2.
func (l *modbusLine) totals(in, out uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setTotals(in, out)
}

func (l *modbusLine) setTotals(in, out uint32) {
	for i, v := range []uint32{in, out} {
		l.registers[[2]int{3, 2 * i}], l.registers[[2]int{3, 2*i + 1}] = uint16(v>>16), uint16(v)
	}
}

func (l *modbusLine) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *modbusLine) open(context.Context, serialport.Config) (serialport.Port, error) {
	ours, theirs := net.Pipe()
	l.set(func() { l.device = theirs; l.opened++ })
	go func() {
		for buf := make([]byte, 64); ; {
			n, err := theirs.Read(buf)
			if err != nil {
				return
			}
			if reply := l.answer(buf[:n]); reply != nil {
				theirs.Write(reply)
			}
		}
	}()
	return pipePort{ours}, nil
}

func (l *modbusLine) answer(q []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	if l.dead[q[0]] {
		return nil
	}
	register, n := int(binary.BigEndian.Uint16(q[2:])), int(binary.BigEndian.Uint16(q[4:]))
	reply := append([]byte(nil), q[:6]...)
	switch {
	case l.refuse != 0:
		reply = []byte{q[0], q[1] | 0x80, l.refuse}
	case q[1] == 3 || q[1] == 4:
		reply = []byte{q[0], q[1], byte(2 * n)}
		for i := range n {
			reply = binary.BigEndian.AppendUint16(reply, l.registers[[2]int{int(q[1]), register + i}])
		}
	case l.written != nil:
		l.written(uint16(register), uint16(n))
	}
	reply = modbusSeal(reply)
	if l.hook != nil {
		return l.hook(reply)
	}
	return reply
}

// modbus makes a device; both totals are at registers 0 and 2.
func modbus(t testing.TB, buses *serialport.Buses, id string, settings map[string]any) func(serialport.OpenFunc) drivers.Driver {
	all := map[string]any{"out_channel": 2, "interval": "10s"}
	for k, v := range settings {
		all[k] = v
	}
	return func(open serialport.OpenFunc) drivers.Driver {
		d, err := NewModbus(drivers.Spec{ID: id, Driver: "modbus", Port: "COM3", Settings: all}, open, buses)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// startModbus runs a device on the line.
func startModbus(t *testing.T, l *modbusLine, host *memoryHost, settings map[string]any) *rig {
	ctx, cancel := context.WithCancel(t.Context())
	r := &rig{t: t, host: host, cancel: cancel, done: make(chan error, 1)}
	d := modbus(t, &serialport.Buses{}, "door", settings)(l.open)
	go func() { r.done <- d.Run(ctx, host) }()
	return r
}

// pass lets virtual time pass.
func pass(d time.Duration) {
	time.Sleep(d) // virtual
	synctest.Wait()
}

func TestModbusCountsWhatPassesBetweenReadings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		l.totals(70000, 69950)
		r := startModbus(t, l, host, nil)
		pass(15 * time.Second)
		l.totals(70003, 69951)
		pass(20 * time.Second)
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 3 || out != 1 || len(counts) < 3 {
			t.Errorf("%d in and %d out in %d counts, want 3 and 1", in, out, len(counts))
		}
		if c := counts[len(counts)-1]; c.RawIn != 70003 || c.RawOut != 69951 || c.Undirect || c.Quality != protocol.QualityOK {
			t.Errorf("last count = %+v", c)
		}
	})
}

func TestModbusResetIsToldByItsUptime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		uptime := func(s uint32) {
			l.set(func() { l.registers[[2]int{4, 104}], l.registers[[2]int{4, 105}] = uint16(s>>16), uint16(s) })
		}
		settings := map[string]any{"uptime_register": 104, "uptime_function": 4}
		l.totals(10, 5)
		uptime(86400)
		r := startModbus(t, l, host, settings)
		pass(12 * time.Second)
		l.totals(12, 5) // more than before, and yet counted from zero
		uptime(3)
		pass(12 * time.Second)
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 12 || out != 5 {
			t.Errorf("%d in and %d out after a reset, want 12 and 5", in, out)
		}
		worst := protocol.QualityOK
		for _, c := range counts {
			worst = worse(worst, c.Quality)
		}
		if worst != protocol.QualityReset {
			t.Errorf("quality = %s, want reset", worst)
		}

		// The same unit, said to keep its totals: two more in, nobody out.
		host, l = &memoryHost{}, newModbusLine()
		settings["keeps_totals"] = "yes"
		l.totals(10, 5)
		uptime(86400)
		r = startModbus(t, l, host, settings)
		pass(12 * time.Second)
		l.totals(12, 5)
		uptime(3)
		pass(12 * time.Second)
		r.stop()
		if in, out := sum(host.taken()); in != 2 || out != 0 {
			t.Errorf("%d in and %d out of a unit that keeps its totals, want 2 and 0", in, out)
		}
	})
}

// The uptime costs a request of its own, so it is read when something asks for it.
func TestModbusUptimeIsReadWhenItMatters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		l.registers[[2]int{4, 104}] = 1
		l.totals(5000, 3)
		r := startModbus(t, l, host, map[string]any{"uptime_register": 104, "uptime_function": 4, "poll_interval": "100ms"})
		pass(61 * time.Second)
		if l.requests > 650 {
			t.Errorf("%d requests for 600 polls in a minute", l.requests)
		}
		l.set(func() { l.setTotals(40, 9); l.registers[[2]int{4, 104}] = 0 }) // began again; out has passed its old total
		pass(12 * time.Second)
		r.stop()
		if in, out := sum(host.taken()); in != 40 || out != 9 {
			t.Errorf("%d in and %d out after a reset, want 40 and 9", in, out)
		}
	})
}

// A reply that belongs to another request, or was made up by noise, has totals that nobody
// has walked.
func TestModbusDoesNotBelieveOneOddReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, odd := range map[string][2]uint32{"that fell": {3, 950}, "that jumped": {1000000, 950}} {
			host, l := &memoryHost{}, newModbusLine()
			l.totals(1000, 950)
			r := startModbus(t, l, host, nil)
			pass(5500 * time.Millisecond)
			l.set(func() {
				l.setTotals(odd[0], odd[1])
				l.hook = func(reply []byte) []byte {
					l.setTotals(1002, 950)
					l.hook = nil
					return reply
				}
			})
			pass(15 * time.Second)
			r.stop()
			for _, c := range host.taken() {
				if c.Quality != protocol.QualityOK {
					t.Errorf("a reading %s: %+v", name, c)
				}
			}
			if in, out := sum(host.taken()); in != 2 || out != 0 {
				t.Errorf("a reading %s: %d in and %d out, want 2 and 0", name, in, out)
			}
		}
	})
}

func TestModbusFaultsSayWhatToLookAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			name string
			set  func(l *modbusLine)
			err  error
			hint string
		}{
			{"a dead unit", func(l *modbusLine) { l.dead = map[byte]bool{1: true} }, ErrSilent, "unit 1"},
			{"a unit that refuses", func(l *modbusLine) { l.refuse = 2 }, ModbusRefusal(2), "registers"},
			{"totals below zero", func(l *modbusLine) { l.setTotals(1<<31+5, 0) }, errNegative, "signed"},
		} {
			host, l := &memoryHost{}, newModbusLine()
			l.totals(1, 1)
			r := startModbus(t, l, host, map[string]any{"signed": "yes"})
			pass(5 * time.Second)
			l.set(func() { tt.set(l) })
			began := time.Now()
			err := <-r.done
			var fault *drivers.Fault
			if !errors.Is(err, tt.err) || !errors.As(err, &fault) || !strings.Contains(fault.Hint, tt.hint) {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.err)
			}
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("%s: noticed after %s", tt.name, took)
			}
		}
	})
}

func TestModbusIsAskedAgainSoonWherePollsAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		r := startModbus(t, l, host, map[string]any{"poll_interval": "10m", "interval": "10m"})
		pass(15 * time.Minute)
		l.set(func() { l.dead = map[byte]bool{1: true} })
		began := time.Now()
		if err := <-r.done; !errors.Is(err, ErrSilent) {
			t.Errorf("err = %v, want ErrSilent", err)
		}
		if took := time.Since(began); took > 5*time.Minute+5*time.Second {
			t.Errorf("noticed after %s, want a few seconds after the poll in 5 minutes", took)
		}
	})
}

func TestModbusOneMissedReplyIsNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		l.totals(1, 1)
		r := startModbus(t, l, host, nil)
		for range 5 {
			pass(3 * time.Second)
			l.set(func() { l.hook = func([]byte) []byte { l.hook = nil; return nil } })
		}
		l.totals(4, 2)
		pass(12 * time.Second)
		r.stop()
		if in, out := sum(host.taken()); in != 3 || out != 1 || host.notes[serialport.ErrNoReply.Error()] != 5 {
			t.Errorf("%d in, %d out, notes %v", in, out, host.notes)
		}
	})
}

// Four units and two dead ones behind one owner of the port: each living one is read at its
// pace, and each device says for itself that it is offline.
func TestModbusDeadUnitsDoNotStarveTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, buses := newModbusLine(), &serialport.Buses{}
		l.dead = map[byte]bool{3: true, 4: true}
		hosts := map[int]*memoryHost{}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for unit := 1; unit <= 6; unit++ {
			host := &memoryHost{}
			hosts[unit] = host
			driver := modbus(t, buses, "door"+string(rune('0'+unit)), map[string]any{"unit": unit})(l.open)
			all.Go(func() {
				drivers.Supervise(ctx, "door"+string(rune('0'+unit)), driver, host, drivers.Options{Driver: "modbus", Class: drivers.ClassCounter})
			})
		}
		pass(time.Minute)
		l.totals(5, 6)
		pass(30 * time.Second)
		cancel()
		all.Wait()
		for unit, host := range hosts {
			in, out := sum(host.taken())
			if unit == 3 || unit == 4 {
				if host.online > 0 || len(host.states) == 0 || host.states[0].State != protocol.DeviceOffline {
					t.Errorf("dead unit %d: online %d, states %+v", unit, host.online, host.states)
				}
				continue
			}
			if in != 5 || out != 6 || host.online < 80 {
				t.Errorf("unit %d: %d in, %d out, %d readings in 90 s", unit, in, out, host.online)
			}
			if len(host.states) != 1 {
				t.Errorf("unit %d: states %+v, want online once", unit, host.states)
			}
		}
		if l.opened != 1 {
			t.Errorf("the port was opened %d times", l.opened)
		}
	})
}

func TestModbusResetsByAWriteWhenAllIsOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		l.written = func(register, value uint16) {
			if register == 100 && value == 7 {
				l.setTotals(0, 0)
			}
		}
		l.totals(995, 100)
		r := startModbus(t, l, host, map[string]any{"reset": "write", "reset_above": 1000, "reset_function": 6, "reset_in_register": 100, "reset_out_register": -2, "reset_value": 7})
		pass(3 * time.Second)
		host.setRefuse(true)
		l.totals(1001, 102)
		pass(5 * time.Second)
		if l.registers[[2]int{3, 1}] != 1001 {
			t.Error("totals were cleared that are not on disk")
		}
		host.setRefuse(false)
		pass(3 * time.Second)
		if l.registers[[2]int{3, 1}] != 0 {
			t.Error("totals were not cleared")
		}
		l.totals(2, 1)
		pass(20 * time.Second)
		r.stop()
		if in, out := sum(host.taken()); in != 6+2 || out != 2+1 {
			t.Errorf("%d in and %d out, want 8 and 3", in, out)
		}
	})
}

func TestModbusOneBeamIsUndirected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, l := &memoryHost{}, newModbusLine()
		l.totals(5, 99)
		r := startModbus(t, l, host, map[string]any{"out_channel": 0})
		pass(3 * time.Second)
		l.totals(9, 200)
		pass(20 * time.Second)
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 4 || out != 0 || !counts[0].Undirect {
			t.Errorf("counts = %+v, want 4 passages, undirected", counts)
		}
	})
}
