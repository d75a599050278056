package drivertest

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// A toyContacts is a small driver of contacts with a line for each way, right unless a flaw
// is named.
type toyContacts struct {
	spec drivers.Spec
	open serialport.OpenFunc
	flaw string
	in   int64 // heard and not emitted
	out  int64
}

func (d *toyContacts) Run(ctx context.Context, host drivers.Host) error {
	port, err := d.open(ctx, serialport.Config{Name: d.spec.Port})
	if err != nil {
		return err
	}
	defer port.Close()
	const every, settled = 5 * time.Millisecond, 6
	last, err := port.ModemLines()
	if err != nil {
		return err
	}
	level := [2]bool{last.CTS, last.DSR}
	var differs [2]int
	from, ticks := host.Now(), 0
	if d.flaw == "ghost" {
		d.in++ // takes the opening for a person
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		lines, err := port.ModemLines()
		if err != nil {
			return err
		}
		for i, now := range []bool{lines.CTS, lines.DSR} {
			if now == level[i] {
				differs[i] = 0
				continue
			}
			if differs[i]++; differs[i] < settled && d.flaw != "jumpy" {
				continue
			}
			level[i], differs[i] = now, 0
			if now && i == 0 {
				d.in++
			} else if now {
				d.out++
			}
		}
		if ticks++; ticks%20 != 0 || d.in+d.out == 0 {
			continue
		}
		count := protocol.FootfallCount{Counter: d.spec.ID, From: from, To: host.Now(), In: d.in, Out: d.out, Quality: protocol.QualityOK}
		if err := host.Emit(ctx, protocol.KindFootfall, count, nil); err != nil && d.flaw != "lossy" {
			continue
		}
		from, d.in, d.out = count.To, 0, 0
	}
}

func toyContactsSuite(flaw string) CounterSuite {
	return CounterSuite{
		On: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
			return &toyContacts{spec: spec, open: open, flaw: flaw}, nil
		},
		Device: func(seed uint64) CounterDevice {
			return NewContacts(ContactsOptions{Bounce: 3, Glitch: 30, Seed: seed})
		},
		Forgets: true,
		Wait:    6 * time.Second,
	}
}

func TestForgetfulCounterSuitePassesARightDriver(t *testing.T) {
	CounterConformance(t, toyContactsSuite(""))
}

func TestForgetfulCounterSuiteCatchesWrongDrivers(t *testing.T) {
	for _, tt := range []struct{ flaw, check, complaint string }{
		{"jumpy", "clean line", "emitted {In:"},
		{"ghost", "restart", "emitted {In:"},
		{"lossy", "disk full", "after a full disk"},
	} {
		t.Run(tt.flaw, func(t *testing.T) {
			if said := virtualComplaints(t, toyContactsSuite(tt.flaw).checks(), tt.check); !strings.Contains(said, tt.complaint) {
				t.Errorf("check %q of a %s driver says %q, want %q", tt.check, tt.flaw, said, tt.complaint)
			}
		})
	}
}

// A toyMaster is a small driver of one WB-MCM8 at address 1, right unless a flaw is named.
type toyMaster struct {
	spec drivers.Spec
	open serialport.OpenFunc
	flaw string
}

func (d *toyMaster) Run(ctx context.Context, host drivers.Host) error {
	port, err := d.open(ctx, serialport.Config{Name: d.spec.Port})
	if err != nil {
		return err
	}
	defer port.Close()
	request := []byte{0x01, 0x04, 0x00, 0x3C, 0x00, 0x04, 0x31, 0xC5}
	var from time.Time
	var in, out uint32
	if state, err := host.State(); err != nil {
		return err
	} else if len(state) == 8 {
		from = host.Now()
		in, out = binary.BigEndian.Uint32(state), binary.BigEndian.Uint32(state[4:])
	}
	for ctx.Err() == nil {
		if err := port.Write(ctx, request); err != nil {
			return err
		}
		answer, err := d.answer(ctx, port)
		if err != nil {
			return err
		}
		if answer == nil {
			host.Note("no answer")
			continue
		}
		host.Online()
		now, left := binary.BigEndian.Uint32(answer[3:]), binary.BigEndian.Uint32(answer[7:])
		if from.IsZero() {
			from, in, out = host.Now(), now, left
		}
		count := protocol.FootfallCount{Counter: d.spec.ID, From: from, To: host.Now(), RawIn: int64(now), RawOut: int64(left),
			In: int64(now - in), Out: int64(left - out), Quality: protocol.QualityOK}
		if now < in && in < 1<<31 { // no wrap
			count.In, count.Out, count.Quality = int64(now), int64(left), protocol.QualityReset
		}
		if host.Emit(ctx, protocol.KindFootfall, count, answer[3:11]) == nil {
			from, in, out = count.To, now, left
		}
	}
	return ctx.Err()
}

// answer waits a little for an answer to the request; nil = none came.
func (d *toyMaster) answer(ctx context.Context, port serialport.Port) ([]byte, error) {
	wait, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	var all, answer []byte
	buf := make([]byte, 256)
	for {
		n, err := port.Read(wait, buf)
		all = append(all, buf[:n]...)
		for i := 0; answer == nil && i+13 <= len(all); i++ {
			frame := all[i : i+13]
			if frame[2] == 8 && modbusCRC(frame[:11]) == binary.LittleEndian.Uint16(frame[11:]) &&
				(frame[0] == 1 && frame[1] == 4 || d.flaw == "trusting") {
				answer = frame
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case wait.Err() != nil: // the bus was quiet; late bytes are thrown away
			return answer, nil
		case err != nil:
			return nil, err
		}
	}
}

func toyMasterSuite(flaw string) CounterSuite {
	trouble := func(name string, what ModbusTrouble) Trouble[CounterDevice] {
		return Trouble[CounterDevice]{name, func(device CounterDevice, on bool) {
			now := ModbusTrouble{}
			if on {
				now = what
			}
			device.(interface{ SetTrouble(ModbusTrouble) }).SetTrouble(now)
		}}
	}
	return CounterSuite{
		On: func(spec drivers.Spec, open serialport.OpenFunc) (drivers.Driver, error) {
			return &toyMaster{spec, open, flaw}, nil
		},
		Device: func(uint64) CounterDevice {
			one, two := NewModbusCounter(ModbusCounterOptions{}), NewModbusCounter(ModbusCounterOptions{Unit: 2})
			return NewModbusBus(0, one, two).Counter(one)
		},
		Troubles: []Trouble[CounterDevice]{
			trouble("wrong unit answers", ModbusTrouble{As: 2, Every: 2}),
			trouble("wrong function", ModbusTrouble{Function: 3, Every: 2}),
			trouble("short answers", ModbusTrouble{Short: true, Every: 2}),
			trouble("exceptions", ModbusTrouble{Exception: 6}),
			trouble("dead", ModbusTrouble{Dead: true}),
		},
		Wait: 5 * time.Second,
	}
}

func TestModbusSuitePassesARightDriver(t *testing.T) {
	CounterConformance(t, toyMasterSuite(""))
}

func TestModbusSuiteCatchesADriverThatTrustsAnyUnit(t *testing.T) {
	for _, check := range []string{"wrong unit answers", "wrong function"} {
		t.Run(check, func(t *testing.T) {
			if said := virtualComplaints(t, toyMasterSuite("trusting").checks(), check); !strings.Contains(said, "emitted {In:") {
				t.Errorf("check %q of a trusting driver says %q", check, said)
			}
		})
	}
}
