package counter

import (
	"embed"
	"strconv"
	"strings"

	"github.com/storelay/storelay/config"
	"github.com/storelay/storelay/drivers"
	"github.com/storelay/storelay/protocol"
)

// modbusProfiles are the files of units that are known, one each. Everything in them can be
// said otherwise in a device's settings, since much of it was never seen on hardware.
//
//go:embed profiles/*.yaml
var modbusProfiles embed.FS

const freeProfile = "free"

// A modbusProfile says where a kind of unit keeps its totals. Channels are numbered from 1,
// registers from 0.
type modbusProfile struct {
	Serves      string       `yaml:"serves"`
	Baud        int          `yaml:"baud"`      // 0: the setting's default
	StopBits    string       `yaml:"stop_bits"` // "": the setting's default
	Channels    int          `yaml:"channels"`
	PerGroup    int          `yaml:"per_group"` // channels of a group; 0: all are one group
	Function    int          `yaml:"function"`  // that reads: 3 or 4
	Register    int          `yaml:"register"`  // of channel 1
	Stride      int          `yaml:"stride"`    // registers from one channel to the next
	GroupStride int          `yaml:"group_stride"`
	Width       int          `yaml:"width"` // bits
	WordOrder   string       `yaml:"word_order"`
	Signed      bool         `yaml:"signed"`
	KeepsTotals bool         `yaml:"keeps_totals"` // over a loss of power
	Uptime      modbusUptime `yaml:"uptime"`
	Reset       modbusReset  `yaml:"reset"`
}

// A modbusUptime is where the seconds since power-up are; function 0: nowhere.
type modbusUptime struct {
	Function int `yaml:"function"`
	Register int `yaml:"register"`
	Width    int `yaml:"width"`
}

// A modbusReset is the write that sets a channel's total to zero; function 0: there is none.
type modbusReset struct {
	Function    int `yaml:"function"`
	Register    int `yaml:"register"` // of channel 1
	Stride      int `yaml:"stride"`   // 0: one write for all channels
	GroupStride int `yaml:"group_stride"`
	Value       int `yaml:"value"`
}

// modbusProfileNames are the names of the files, sorted.
func modbusProfileNames() []string {
	files, err := modbusProfiles.ReadDir("profiles")
	if err != nil {
		panic("counter: " + err.Error()) // embedded
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(f.Name(), ".yaml"))
	}
	return names
}

// readModbusProfile reads one file; the faults are mistakes in it.
func readModbusProfile(name string) (p modbusProfile, faults protocol.Faults) {
	text, err := modbusProfiles.ReadFile("profiles/" + name + ".yaml")
	if err != nil {
		panic("counter: " + err.Error()) // name is one of modbusProfileNames
	}
	faults = config.Parse(text, &p)
	return p, faults
}

// at is the register of a channel.
func (p modbusProfile) at(channel, register, stride, groupStride int) int {
	c, group := channel-1, 0
	if p.PerGroup > 0 {
		c, group = c%p.PerGroup, c/p.PerGroup
	}
	return register + group*groupStride + c*stride
}

// A modbusMap is where one device's totals are: a profile with the device's settings.
type modbusMap struct {
	function byte
	in, out  int // first registers; -1: none
	words    int // of a total
	lowFirst bool
	signed   bool
	keeps    bool

	uptimeFunction byte // 0: none
	uptime         uint16
	uptimeWords    int

	resets []ModbusRequest // without unit
}

// width is the number of bits in which a total wraps.
func (m modbusMap) width() int {
	if m.signed {
		return 16*m.words - 1
	}
	return 16 * m.words
}

// byProfile is the value of a number that is left to the profile.
const byProfile = -1

// noRegister is the value of a register that the unit does not have.
const noRegister = -2

// modbusMapSettings are the settings that a modbusMap is made from.
func modbusMapSettings() []drivers.Setting {
	register := func(name, help string) drivers.Setting {
		return drivers.Setting{Name: name, Type: drivers.TypeInt, Default: byProfile, Min: noRegister, Max: 65535, Help: help + ", from 0; -1: the profile's, -2: none"}
	}
	choice := func(name, help string, choices ...string) drivers.Setting {
		return drivers.Setting{Name: name, Type: drivers.TypeChoice, Default: "", Choices: append([]string{""}, choices...), Help: help + "; unset: as in the profile"}
	}
	return []drivers.Setting{
		{Name: "profile", Type: drivers.TypeChoice, Default: freeProfile, Choices: modbusProfileNames(), Help: "kind of unit; it also says baud and stop_bits where they are not set"},
		{Name: "in_channel", Type: drivers.TypeInt, Default: 1, Min: 1, Max: 1000, Help: "input that counts people in, from 1"},
		{Name: "out_channel", Type: drivers.TypeInt, Default: 0, Min: 0, Max: 1000, Help: "input that counts people out, from 1; 0: none"},
		register("in_register", "register of the total in"),
		register("out_register", "register of the total out"),
		choice("function", "reads totals: 3 from holding registers, 4 from input registers", "3", "4"),
		choice("width", "bits of a total, which wraps there", "16", "32", "48", "64"),
		choice("word_order", "which 16 bits of a total come first", "high-first", "low-first"),
		choice("signed", "a total is signed: it wraps at half of its range, and a negative one is a misread", "yes", "no"),
		register("uptime_register", "register of the seconds since power-up, which tell a reset from a wrap"),
		choice("uptime_function", "reads the uptime", "3", "4"),
		choice("uptime_width", "bits of the uptime", "16", "32"),
		choice("keeps_totals", "the unit keeps its totals without power, so that a low uptime is no reset", "yes", "no"),
		{Name: "reset", Type: drivers.TypeChoice, Default: resetNever, Choices: []string{resetNever, resetWrite}, Help: "write: set a total to zero by a write when it has passed reset_above, for units that stop at their highest number instead of wrapping; who passes between the last reading and the write is lost"},
		{Name: "reset_above", Type: drivers.TypeInt, Default: 0, Min: 0, Max: 1 << 62, Help: "0: three quarters of the total's range"},
		choice("reset_function", "writes the reset: 5 a coil, 6 a register, 16 a register", "5", "6", "16"),
		register("reset_in_register", "register or coil that clears the total in"),
		register("reset_out_register", "register or coil that clears the total out"),
		{Name: "reset_value", Type: drivers.TypeInt, Default: byProfile, Min: byProfile, Max: 65535, Help: "what the reset writes; -1: the profile's"},
	}
}

// When a total is set to zero.
const (
	resetNever = "never"
	resetWrite = "write"
)

// readModbusMap makes the map; faults are added under settings.
func readModbusMap(p modbusProfile, v drivers.Values, faults *protocol.Faults) modbusMap {
	number := func(name string, profile int) int {
		if text := v.Text(name); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil {
				panic("counter: " + name + ": " + err.Error()) // a choice of digits
			}
			return n
		}
		return profile
	}
	yes := func(name string, profile bool) bool {
		if text := v.Text(name); text != "" {
			return text == "yes"
		}
		return profile
	}
	word := v.Text("word_order")
	if word == "" {
		word = p.WordOrder
	}
	m := modbusMap{
		function: byte(number("function", p.Function)), words: number("width", p.Width) / 16,
		lowFirst: word == "low-first", signed: yes("signed", p.Signed), keeps: yes("keeps_totals", p.KeepsTotals),
		uptimeFunction: byte(number("uptime_function", p.Uptime.Function)),
	}
	m.in = register(p, v, "in", p.Register, p.Stride, p.GroupStride, faults)
	m.out = register(p, v, "out", p.Register, p.Stride, p.GroupStride, faults)
	if m.in < 0 {
		faults.Add("settings.in_register", "with one beam, that one's total", "there is always a total in")
	}
	for _, at := range []int{m.in, m.out} {
		if at+m.words > 1<<16 {
			faults.Add("settings.in_register", "", "the total ends beyond register 65535")
		}
	}
	m.readUptime(p, v, faults)
	if v.Text("reset") == resetWrite {
		m.readResets(p, v, faults)
	}
	return m
}

// register is that of the total in or out; -1 when there is none.
func register(p modbusProfile, v drivers.Values, direction string, first, stride, groupStride int, faults *protocol.Faults) int {
	switch at := v.Int(direction + "_register"); {
	case at == noRegister:
		return -1
	case at >= 0:
		return at
	}
	channel := v.Int(direction + "_channel")
	switch {
	case channel == 0:
		return -1
	case channel > p.Channels:
		faults.Add("settings."+direction+"_channel", "", "the unit has %d channels, got %d", p.Channels, channel)
	}
	return p.at(channel, first, stride, groupStride)
}

func (m *modbusMap) readUptime(p modbusProfile, v drivers.Values, faults *protocol.Faults) {
	m.uptimeWords = p.Uptime.Width / 16
	if text := v.Text("uptime_width"); text != "" {
		m.uptimeWords = map[string]int{"16": 1, "32": 2}[text]
	}
	switch at := v.Int("uptime_register"); {
	case at == noRegister:
		m.uptimeFunction = 0
	case at >= 0:
		m.uptime = uint16(at)
		if m.uptimeFunction == 0 {
			m.uptimeFunction = m.function
		}
		if m.uptimeWords == 0 {
			m.uptimeWords = 2
		}
	case p.Uptime.Function == 0:
		m.uptimeFunction = 0
	default:
		m.uptime = uint16(p.Uptime.Register)
	}
	if m.uptimeFunction != 0 && int(m.uptime)+m.uptimeWords > 1<<16 {
		faults.Add("settings.uptime_register", "", "the uptime ends beyond register 65535")
	}
}

// readResets makes the writes that set the totals to zero.
func (m *modbusMap) readResets(p modbusProfile, v drivers.Values, faults *protocol.Faults) {
	function, value := p.Reset.Function, p.Reset.Value
	if text := v.Text("reset_function"); text != "" {
		function = map[string]int{"5": modbusWriteCoil, "6": modbusWriteRegister, "16": modbusWriteSeveral}[text]
	}
	if given := v.Int("reset_value"); given >= 0 {
		value = given
	} else if p.Reset.Function == 0 {
		value = 1
	}
	if function == 0 {
		faults.Add("settings.reset_function", "the unit's manual says how a total is cleared", "this profile knows no reset")
		return
	}
	for _, direction := range []string{"in", "out"} {
		name := "reset_" + direction + "_register"
		at := v.Int(name)
		switch {
		case at == noRegister:
			continue
		case at >= 0:
		case direction == "out" && m.out < 0:
			continue
		case p.Reset.Function == 0 || v.Int(direction+"_register") >= 0:
			faults.Add("settings."+name, "-2 when one write clears both", "missing: the profile does not say what clears this total")
			continue
		default:
			at = p.at(v.Int(direction+"_channel"), p.Reset.Register, p.Reset.Stride, p.Reset.GroupStride)
		}
		write := ModbusRequest{Function: byte(function), Register: uint16(at), Value: uint16(value)}
		if len(m.resets) == 0 || m.resets[0] != write {
			m.resets = append(m.resets, write)
		}
	}
	if len(m.resets) == 0 {
		faults.Add("settings.reset_in_register", "", "nothing to write")
	}
}
