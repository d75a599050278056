package journal

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dataSync makes what was written to a preallocated file durable.
func dataSync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// preallocate takes f's blocks in one piece where the file system can; what it cannot is left
// to the zeros that are written next.
func preallocate(f *os.File, size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), 0, 0, size); err {
		case unix.EINTR:
		case nil, unix.EOPNOTSUPP, unix.ENOSYS:
			return nil
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
}

// sinceBoot is the time since the PC booted, suspended time included.
func sinceBoot(start time.Time) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Since(start)
	}
	return time.Duration(ts.Nano())
}
