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

// preallocate gives f its size on the disk, so that later writes find their blocks.
func preallocate(f *os.File, size int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), 0, 0, size); err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return writeZeros(f, size)
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
