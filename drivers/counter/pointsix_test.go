package counter

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/drivers/serialport"
	"github.com/storelay/storelay/protocol"
)

// 12345 objects, sensor 30864, 16 s blocked in all, beam seen; the sum is of the bytes.
const objects12345 = "110001E241393000001000CB940D"

func TestPointSixPackets(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		want       PointSixFrame
	}{
		{"objects", objects12345, PointSixFrame{Serial: 30864, Total: 12345}},
		{"behind noise", "7\x00G" + objects12345, PointSixFrame{Serial: 30864, Total: 12345}},
		{"in small letters", strings.ToLower(objects12345), PointSixFrame{Serial: 30864, Total: 12345}},
		// The same packet by the older manual: the sum of its 26 characters is 1345, 0x541.
		{"sum of the characters", "110001E241393000001000CB94" + "41", PointSixFrame{Serial: 30864, Total: 12345}},
		{"blocked", "110001E240393000001000CB940C", PointSixFrame{Serial: 30864, Total: 12345, Blocked: true}},
		{"misaligned", "110001E241393000021000CB940F", PointSixFrame{Serial: 30864, Total: 12345, Fringe: true}},
		{"service mode", "100001E241393000001000CB940C", PointSixFrame{Serial: 30864, Total: 12345, Service: true}},
		{"a temperature", "610001E241393000001000CB945D", PointSixFrame{Other: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var c PointSixCodec
			got := c.Push([]byte(tt.line + "\r\n"))
			if len(got) != 1 || got[0] != tt.want || c.Noise != 0 {
				t.Errorf("frames = %+v with %d bad lines, want %+v", got, c.Noise, tt.want)
			}
		})
	}
	for name, line := range map[string]string{
		"a wrong sum": "110001E241393000001000CB940E", "a wrong digit": "110001E241393100001000CB940D",
		"no hex": "110001E2413930000010 0CB940D", "too short": objects12345[2:],
	} {
		var c PointSixCodec
		if got := c.Push([]byte(line + "\r")); len(got) != 0 || c.Noise != 1 {
			t.Errorf("%s: frames = %+v, %d bad lines", name, got, c.Noise)
		}
	}
}

func TestPointSixWayOfSummingIsLocked(t *testing.T) {
	var c PointSixCodec
	for range pointSixLock {
		c.Push([]byte(objects12345 + "\r"))
	}
	if got := c.Push([]byte("110001E241393000001000CB9441\r")); len(got) != 0 {
		t.Errorf("the other sum is still taken: %+v", got)
	}
}

func FuzzPointSix(f *testing.F) {
	f.Add([]byte{0, 1, 0xE2, 0x41, 0x39, 0x30, 0, 0, 0x10, 0, 0xCB, 0x94}, []byte("noise"), uint8(7), false)
	f.Fuzz(func(t *testing.T, body, noise []byte, cut uint8, ascii bool) {
		packet := []byte{pointSixCounter}
		packet = append(packet, append(body, make([]byte, 12)...)[:12]...)
		line := strings.ToUpper(hex.EncodeToString(packet))
		sum := sum8(packet)
		if ascii {
			sum = sum8([]byte(line))
		}
		line += fmt.Sprintf("%02X", sum) // behind the checksum
		stream := slices.Concat(noise, []byte(line), []byte("\r"), noise, []byte("\r"))
		var whole, parts PointSixCodec
		want := whole.Push(stream)
		at := min(int(cut), len(stream))
		got := append(parts.Push(stream[:at]), parts.Push(stream[at:])...)
		if !slices.Equal(got, want) || whole.Noise != parts.Noise || len(parts.buf) != 0 {
			t.Errorf("cut at %d: %+v, want %+v", at, got, want)
		}
		total := uint32(packet[5]) | uint32(packet[6])<<8 | uint32(packet[7])<<16
		if !slices.ContainsFunc(want, func(f PointSixFrame) bool { return f.Total == total }) {
			t.Errorf("no packet of %d objects in %q", total, stream)
		}
	})
}

func pointSix(t testing.TB, settings map[string]any) func(serialport.OpenFunc) drivers.Driver {
	return func(open serialport.OpenFunc) drivers.Driver {
		d, err := NewPointSix(drivers.Spec{ID: "beams", Driver: "pointsix", Port: "COM3", Settings: settings}, open)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

// packet is a sensor's packet; flags 1 is a good beam, 0 a blocked one.
func packet(serial, total uint32, flags byte) []byte {
	s := serial<<2 | uint32(flags)
	b := []byte{0x11, byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s), byte(total), byte(total >> 8), byte(total >> 16), 0, 0, 0, 0, 0}
	return []byte(strings.ToUpper(hex.EncodeToString(append(b, sum8(b)))) + "\r")
}

// hear sends a packet every 10 s for a time.
func (r *rig) hear(d time.Duration, packets ...[]byte) {
	for range d / (10 * time.Second) {
		for _, p := range packets {
			r.send(p)
		}
		pass(10 * time.Second)
	}
}

func TestPointSixCountsPassagesOfOneSensor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, pointSix(t, nil))
		r.hear(time.Minute, packet(7, 1<<24-3, 1))
		r.hear(time.Minute, packet(7, 4, 1)) // wrapped
		r.stop()
		r = start(t, host, pointSix(t, nil)) // later
		r.hear(time.Minute, packet(7, 9, 1))
		r.stop()
		counts := host.taken()
		if in, out := sum(counts); in != 7+5 || out != 0 {
			t.Errorf("%d in and %d out, want 12 and 0: %+v", in, out, counts)
		}
		if c := counts[0]; !c.Undirect || c.Counter != "beams" {
			t.Errorf("count = %+v", c)
		}
	})
}

func TestPointSixDoesNotMixSensors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, pointSix(t, nil))
		r.hear(time.Minute, packet(7, 100, 1))
		r.send(packet(8, 5, 1))
		var fault *drivers.Fault
		if err := <-r.done; !errors.As(err, &fault) || !strings.Contains(fault.Hint, "7=front, 8=yard") {
			t.Errorf("err = %v, want a hint with both serials", err)
		}
		r = start(t, host, pointSix(t, nil)) // knows which sensor it counted
		r.send(packet(8, 5, 1))
		if err := <-r.done; !errors.As(err, &fault) || !strings.Contains(fault.Hint, "7=front, 8=yard") {
			t.Errorf("err = %v, want a hint with both serials", err)
		}
	})
}

func TestPointSixSeveralSensorsBehindOneReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		settings := map[string]any{"sensors": "7=front, 8=yard"}
		r := start(t, host, pointSix(t, settings))
		r.hear(2*time.Minute, packet(7, 100, 1), packet(8, 50, 1), packet(9, 1, 1))
		r.hear(2*time.Minute, packet(7, 103, 1), packet(8, 51, 1))
		r.stop()
		r = start(t, host, pointSix(t, settings))
		r.hear(2*time.Minute, packet(7, 104, 1), packet(8, 60, 1))
		r.stop()
		people := map[string]int64{}
		for _, c := range host.taken() {
			people[c.Counter] += c.In
		}
		if len(people) != 2 || people["beams-front"] != 4 || people["beams-yard"] != 10 {
			t.Errorf("people = %v, want 4 at beams-front and 10 at beams-yard", people)
		}
		if host.notes["sensor 9 is not in the settings"] == 0 {
			t.Errorf("notes = %v", host.notes)
		}
	})
}

func TestPointSixSaysWhatIsWrongWithASensorOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, pointSix(t, map[string]any{"sensors": "7=front, 8=yard", "silence": "5m"}))
		r.hear(time.Minute, packet(7, 1, 1), packet(8, 1, 1))
		online := host.online
		r.hear(time.Minute, packet(7, 1, 1), packet(8, 1, 0))
		if len(host.states) != 1 || host.states[0].State != protocol.DeviceFault || !strings.Contains(host.states[0].Reason, "yard") {
			t.Errorf("states = %+v, want one fault of yard", host.states)
		}
		if host.online > online+1 {
			t.Errorf("online %d times while a beam is blocked", host.online-online)
		}
		r.hear(time.Minute, packet(7, 2, 1), packet(8, 1, 1))
		if host.online == online {
			t.Error("not online again")
		}
		r.hear(10*time.Minute, packet(7, 3, 1)) // yard's battery is empty
		var last protocol.FootfallCount
		for _, c := range host.taken() {
			if c.Counter == "beams-yard" {
				last = c
			}
		}
		if len(host.states) != 2 || !strings.Contains(host.states[1].Reason, "yard is silent") || time.Since(last.To) < 4*time.Minute {
			t.Errorf("states = %+v, last count of yard %+v", host.states, last)
		}
		began := time.Now()
		if err := <-r.done; !errors.Is(err, ErrSilent) || time.Since(began) > 5*time.Minute {
			t.Errorf("err = %v after %s, want ErrSilent after 5 minutes", err, time.Since(began))
		}
	})
}

func TestPointSixReportsASensorThatWasNeverHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := &memoryHost{}
		r := start(t, host, pointSix(t, map[string]any{"sensors": "7=front, 8=yard"}))
		r.hear(12*time.Minute, packet(7, 1, 1))
		r.stop()
		if len(host.states) != 1 || !strings.Contains(host.states[0].Reason, "yard is silent") {
			t.Errorf("states = %+v, want yard silent", host.states)
		}
	})
}

func TestPointSixSettingsThatCannotBe(t *testing.T) {
	for _, sensors := range []string{"front", "x=front", "7=front, 8=front", "7=a, 7=b", "7=", "7=a b", "4294967295=a"} {
		_, err := NewPointSix(drivers.Spec{ID: "beams", Driver: "pointsix", Port: "COM3", Settings: map[string]any{"sensors": sensors}}, nil)
		var faults protocol.Faults
		if !errors.As(err, &faults) || faults[0].Field != "settings.sensors" {
			t.Errorf("%q: %v, want a fault of settings.sensors", sensors, err)
		}
	}
}
