//go:build !windows

package filedrop

import (
	"errors"
	"syscall"
)

// isFull says whether a disk, or a quota, is full.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
