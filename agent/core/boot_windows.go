package core

import (
	"time"

	"golang.org/x/sys/windows"
)

// boot gives the id of the operating system's run, here the second it booted, and a clock of
// the time since then (GetTickCount64).
func boot() (string, func() time.Duration) {
	since := windows.DurationSinceBoot
	return time.Now().Add(-since()).UTC().Format("boot-20060102T150405Z"), since
}
