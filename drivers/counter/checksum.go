package counter

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// The check that a line ends with, as upper- or lower-case hex digits behind a mark.
const (
	checkNone  = "none"
	checkXOR   = "xor"   // of all bytes before the mark, 2 digits (as in NMEA 0183, without its $)
	checkSum8  = "sum8"  // sum of all bytes before the mark modulo 256, 2 digits
	checkCRC16 = "crc16" // CRC-16/MODBUS (0xA001, begins at FFFF) of all bytes before the mark, 4 digits, high byte first
)

var (
	errNoCheck  = errors.New("no checksum")
	errBadCheck = errors.New("bad checksum")
)

// checksum is the check of a text as it stands in a line.
func checksum(kind, text string) string {
	switch kind {
	case checkXOR:
		var x byte
		for i := range len(text) {
			x ^= text[i]
		}
		return fmt.Sprintf("%02X", x)
	case checkSum8:
		var sum byte
		for i := range len(text) {
			sum += text[i]
		}
		return fmt.Sprintf("%02X", sum)
	case checkCRC16:
		return fmt.Sprintf("%04X", crc16([]byte(text)))
	}
	return ""
}

// crc16 is CRC-16/MODBUS: polynomial 0xA001 (reflected), begins at FFFF.
func crc16(data []byte) uint16 {
	crc := uint16(0xFFFF)
	for _, b := range data {
		crc ^= uint16(b)
		for range 8 {
			low := crc&1 != 0
			crc >>= 1
			if low {
				crc ^= 0xA001
			}
		}
	}
	return crc
}

// unseal takes the check off a line and gives the text before it. An empty mark means that
// the digits follow the text at once.
func unseal(kind, mark, line string) (string, error) {
	if kind == checkNone {
		return line, nil
	}
	digits := len(checksum(kind, ""))
	cut := len(line) - digits - len(mark)
	if cut < 0 || line[cut:cut+len(mark)] != mark {
		return "", errNoCheck
	}
	text, given := line[:cut], line[cut+len(mark):]
	if _, err := hex.DecodeString(given); err != nil {
		return "", errNoCheck
	}
	if !strings.EqualFold(given, checksum(kind, text)) {
		return "", errBadCheck
	}
	return text, nil
}
