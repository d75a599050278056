//go:build unix

package chain

import "syscall"

// ownGroup keeps a Ctrl-C at the terminal from reaching the program: whoever started it
// stops it, in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
