package serialport

import (
	"fmt"
	"io/fs"
	"strings"
)

// Info is what is known of a port without opening it.
type Info struct {
	Path    string // what Open takes
	ByID    string // name for by-id:, "" when it has none
	VID     string // four hex digits, upper case; "" when it is not USB
	PID     string
	Serial  string // of the USB device
	Product string
}

// List gives the ports of this machine, sorted by path. It opens none of them.
func List() ([]Info, error) { return list() }

// Resolve gives the path that a configured name stands for now. The error is
// fs.ErrNotExist when there is no such port, ErrName when the name is malformed or fits
// more than one.
func Resolve(name string) (string, error) {
	scheme, rest, ok := strings.Cut(name, ":")
	switch {
	case name == "":
		return "", fmt.Errorf("%w: empty", ErrName)
	case ok && scheme == "by-id":
		return resolveByID(rest)
	case ok && scheme == "usb":
		want, err := parseUSB(rest)
		if err != nil {
			return "", err
		}
		infos, err := List()
		if err != nil {
			return "", err
		}
		return want.pick(infos)
	}
	return name, nil
}

// A usbID is VID:PID[:SERIAL].
type usbID struct{ vid, pid, serial string }

func parseUSB(s string) (usbID, error) {
	parts := strings.SplitN(s, ":", 3)
	if len(parts) < 2 || !fourHex(parts[0]) || !fourHex(parts[1]) {
		return usbID{}, fmt.Errorf("%w: want usb:VID:PID[:SERIAL] with four hex digits each, got %q", ErrName, s)
	}
	id := usbID{vid: strings.ToUpper(parts[0]), pid: strings.ToUpper(parts[1])}
	if len(parts) == 3 {
		id.serial = parts[2]
	}
	return id, nil
}

func fourHex(s string) bool {
	return len(s) == 4 && strings.Trim(strings.ToUpper(s), "0123456789ABCDEF") == ""
}

// pick finds the one port of the USB device.
func (id usbID) pick(infos []Info) (string, error) {
	var found []string
	for _, i := range infos {
		if i.VID == id.vid && i.PID == id.pid && (id.serial == "" || i.Serial == id.serial) {
			found = append(found, i.Path)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%w: no port of USB device %s:%s %s", fs.ErrNotExist, id.vid, id.pid, id.serial)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%w: USB device %s:%s is at %s", ErrName, id.vid, id.pid, strings.Join(found, " and "))
}
