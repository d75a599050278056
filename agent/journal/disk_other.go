//go:build !linux

package journal

import "os"

// dataSync makes what was written to f durable (FlushFileBuffers on Windows).
func dataSync(f *os.File) error { return f.Sync() }

// preallocate does nothing: the zeros that are written next take the blocks.
func preallocate(*os.File, int64) error { return nil }
