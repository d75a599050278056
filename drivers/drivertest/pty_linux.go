package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// A Pty is a pseudo-terminal in raw mode: the client opens Path as a serial port, the
// simulator reads and writes the Pty. It can be hung up, as when a cable is pulled, and come
// back at the same path.
type Pty struct {
	path string

	mu      sync.Mutex    // guards the fields below
	master  *os.File      // nil while hung up
	slave   *os.File      // held open, so that the master can be read while no client is there
	changed chan struct{} // closed at each hang-up and return
}

// OpenPty makes a pseudo-terminal and a symbolic link to it at path, in whose folder it may
// write. The caller closes it.
func OpenPty(path string) (*Pty, error) {
	p := &Pty{path: path, changed: make(chan struct{})}
	if err := p.Return(); err != nil {
		return nil, err
	}
	return p, nil
}

// Path is what the client opens; it stays the same over hang-ups.
func (p *Pty) Path() string { return p.path }

// Return brings the line back after HangUp, at the same path; it does nothing when the line
// is up.
func (p *Pty) Return() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master != nil {
		return nil
	}
	master, slave, err := pty.Open()
	if err != nil {
		return fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	master, err = interruptible(master)
	if err == nil {
		err = raw(slave)
	}
	if err == nil {
		fresh := p.path + ".new"
		os.Remove(fresh)
		if err = os.Symlink(slave.Name(), fresh); err == nil {
			err = os.Rename(fresh, p.path)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("link a pseudo-terminal at %s: %w", p.path, err), master.Close(), slave.Close())
	}
	p.master, p.slave = master, slave
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}

// interruptible returns f with a descriptor that Go's poller watches: the pty package leaves
// it blocking, and then neither Close nor a deadline would end a read.
func interruptible(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return f, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return f, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), f.Close()
}

// raw makes the terminal transparent for all bytes, without echo (termios(3), cfmakeraw).
func raw(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			failed = err
			return
		}
		t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		failed = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
	return errors.Join(err, failed)
}

// HangUp closes the line as a pulled plug does: the client's reads and writes fail, and the
// path is gone until Return.
func (p *Pty) HangUp() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master == nil {
		return nil
	}
	err := errors.Join(os.Remove(p.path), p.master.Close(), p.slave.Close())
	p.master, p.slave = nil, nil
	close(p.changed)
	p.changed = make(chan struct{})
	return err
}

// Close hangs up for good.
func (p *Pty) Close() error { return p.HangUp() }

func (p *Pty) line() (*os.File, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.master, p.changed
}

// lost says whether an error is that of a hang-up: the master is closed, or it is about to be
// and its slave is gone.
func lost(err error) bool {
	return errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EIO) || errors.Is(err, io.EOF)
}

// Read reads what the client wrote; ErrHungUp while hung up.
func (p *Pty) Read(b []byte) (int, error) {
	master, _ := p.line()
	if master == nil {
		return 0, ErrHungUp
	}
	n, err := master.Read(b)
	if lost(err) {
		err = ErrHungUp
	}
	return n, err
}

// writeWait is how long a write waits for a client that does not read before the bytes are
// lost, as on a line without flow control.
const writeWait = 200 * time.Millisecond

// Write sends to the client; ErrHungUp while hung up. What does not fit into the terminal's
// buffer within 200 ms is lost without an error.
func (p *Pty) Write(b []byte) (int, error) {
	master, _ := p.line()
	if master == nil {
		return 0, ErrHungUp
	}
	if err := master.SetWriteDeadline(time.Now().Add(writeWait)); err != nil && !errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	n, err := master.Write(b)
	switch {
	case lost(err):
		return n, ErrHungUp
	case errors.Is(err, os.ErrDeadlineExceeded):
		return len(b), nil
	}
	return n, err
}

// SetDeadline bounds the reads of the present connection; the zero time lifts the bound.
func (p *Pty) SetDeadline(t time.Time) error {
	master, _ := p.line()
	if master == nil {
		return nil // reads and writes fail at once
	}
	if err := master.SetReadDeadline(t); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Serve calls run each time the line is up, again after every hang-up, until ctx ends or run
// fails with another error than ErrHungUp.
func (p *Pty) Serve(ctx context.Context, run func() error) error {
	for {
		master, changed := p.line()
		if master == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		err := run()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, ErrHungUp) {
			return err
		}
	}
}
