//go:build linux && powercut

package powercut

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// insideEnv tells the test program that it runs where its mounts end with it.
const insideEnv = "STORELAY_POWERCUT_INSIDE"

// enter runs this program once more in mount and process namespaces of its own: whatever way
// the tests end, their mounts, loop devices and processes end with them.
func enter() (code int, done bool) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "powercut: it mounts file systems, which only root may: run `sudo make powercut`, with go in root's PATH")
		return 1, true
	}
	if os.Getenv(insideEnv) != "" {
		if err := alone(); err != nil {
			fmt.Fprintln(os.Stderr, "powercut:", err)
			return 1, true
		}
		return 0, false
	}
	runtime.LockOSThread() // Pdeathsig is about this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return max(1, exit.ExitCode()), true
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "powercut: begin namespaces:", err)
		return 1, true
	}
	return 0, true
}

// alone keeps the mounts in this namespace and shows it its own processes.
func alone() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts apart: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}
