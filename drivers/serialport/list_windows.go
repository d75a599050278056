package serialport

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.bug.st/serial/enumerator"
	"golang.org/x/sys/windows"
)

// list asks the set-up API, which opens no port.
func list() ([]Info, error) {
	details, err := enumerator.GetDetailedPortsList()
	if err != nil {
		return nil, fmt.Errorf("list serial ports: %w", err)
	}
	var infos []Info
	for _, d := range details {
		if d.Name == "" {
			continue
		}
		infos = append(infos, Info{Path: d.Name, VID: strings.ToUpper(d.VID), PID: strings.ToUpper(d.PID), Serial: d.SerialNumber, Product: d.Product})
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.Path, b.Path) })
	return infos, nil
}

func resolveByID(name string) (string, error) {
	return "", fmt.Errorf("%w: by-id:%s is for Linux; here COM3 or usb:VID:PID[:SERIAL]", ErrName, name)
}

func noLines(err error) bool { return errors.Is(err, windows.ERROR_INVALID_FUNCTION) }
