package ledger

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// holdFile takes the file's lock, which dies with the process: together with others, or
// alone. errHeld when it cannot be had now.
func holdFile(path string, alone bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if alone {
		how |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	if err := windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, new(windows.Overlapped)); err != nil {
		f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, errHeld
		}
		return nil, os.NewSyscallError("LockFileEx", err)
	}
	return f, nil
}

// syncDir does nothing: names are durable with their file.
func syncDir(string) error { return nil }
