//go:build !linux

package journal

import "os"

// dataSync makes what was written to f durable (FlushFileBuffers on Windows).
func dataSync(f *os.File) error { return f.Sync() }

// preallocate gives f its size on the disk, so that later writes find their blocks.
func preallocate(f *os.File, size int64) error { return writeZeros(f, size) }
