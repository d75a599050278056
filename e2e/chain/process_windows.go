package chain

import "syscall"

// ownGroup keeps a Ctrl-C at the terminal from reaching the program: whoever started it
// stops it, in order.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
