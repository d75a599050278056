//go:build !linux && !windows

package serialport

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// list gives paths only; USB ids are read on Linux and Windows.
func list() ([]Info, error) {
	paths, err := filepath.Glob("/dev/cu.*")
	if err != nil {
		return nil, err
	}
	infos := make([]Info, len(paths))
	for i, path := range paths {
		infos[i].Path = path
	}
	return infos, nil
}

func resolveByID(name string) (string, error) {
	return "", fmt.Errorf("%w: by-id:%s is for Linux; here a path", ErrName, name)
}

func noLines(err error) bool { return errors.Is(err, unix.ENOTTY) }
