//go:build unix && !linux

package journal

import "time"

// sinceBoot is the time since this process started, where the system's own is not asked.
func sinceBoot(start time.Time) time.Duration { return time.Since(start) }
