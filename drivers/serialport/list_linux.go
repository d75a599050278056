package serialport

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func list() ([]Info, error)                   { return system{"/"}.list() }
func resolveByID(name string) (string, error) { return system{"/"}.byID(name) }

func noLines(err error) bool { return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) }

// A system is a root with sys and dev below it.
type system struct{ root string }

// list reads sysfs, where looking has no side effects: opening a port resets its line
// settings and raises DTR, which opens some drawers.
func (s system) list() ([]Info, error) {
	class := filepath.Join(s.root, "sys/class/tty")
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list serial ports: %w", err)
	}
	names := s.byIDNames()
	var infos []Info
	for _, entry := range entries {
		dir := filepath.Join(class, entry.Name())
		device, err := filepath.EvalSymlinks(filepath.Join(dir, "device"))
		if err != nil {
			continue // a console or a pty: no hardware behind it
		}
		if strings.TrimSpace(read(filepath.Join(dir, "type"))) == "0" {
			continue // PORT_UNKNOWN: an 8250 slot without a chip
		}
		info := Info{Path: filepath.Join(s.root, "dev", entry.Name()), ByID: names[entry.Name()]}
		top := filepath.Clean(s.root)
		for at := device; len(at) > len(top); at = filepath.Dir(at) {
			if vid := read(filepath.Join(at, "idVendor")); vid != "" {
				info.VID, info.PID = strings.ToUpper(vid), strings.ToUpper(read(filepath.Join(at, "idProduct")))
				info.Serial, info.Product = read(filepath.Join(at, "serial")), read(filepath.Join(at, "product"))
				break
			}
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.Path, b.Path) })
	return infos, nil
}

// read is a file's text without white space around it; "" when it cannot be read.
func read(path string) string {
	data, _ := os.ReadFile(path)
	return strings.TrimSpace(string(data))
}

// byIDNames maps a tty's name to its name in /dev/serial/by-id.
func (s system) byIDNames() map[string]string {
	names := map[string]string{}
	dir := filepath.Join(s.root, "dev/serial/by-id")
	entries, _ := os.ReadDir(dir) // absent without a USB port
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			names[filepath.Base(target)] = entry.Name()
		}
	}
	return names
}

// byID is the path of a name in /dev/serial/by-id.
func (s system) byID(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, '/') || name == ".." || name == "." {
		return "", fmt.Errorf("%w: want by-id:NAME, a name in /dev/serial/by-id, got %q", ErrName, name)
	}
	path := filepath.Join(s.root, "dev/serial/by-id", name)
	if _, err := os.Stat(path); err != nil {
		return "", err
	}
	return path, nil
}
