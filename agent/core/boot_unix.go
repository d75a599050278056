//go:build unix

package core

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// boot gives the id of the operating system's run, "" when it has none, and a clock of the
// time since it booted.
func boot() (string, func() time.Duration) {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // Linux only; without it a reboot is not told from a restart
	return strings.TrimSpace(string(id)), func() time.Duration {
		var t unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
			return 0
		}
		return time.Duration(t.Nano())
	}
}
