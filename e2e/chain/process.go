package chain

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A Process is one of our programs, started again as often as a story wants, with its log in
// a file. Its methods are for one goroutine at a time.
type Process struct {
	Name string
	path string
	args []string
	log  string

	mu   sync.Mutex // guards what follows
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // of Wait, after done
}

// NewProcess prepares a program; log is the folder of its log file.
func NewProcess(name, log, path string, args ...string) *Process {
	return &Process{Name: name, path: path, args: args, log: filepath.Join(log, name+".log")}
}

// Start runs the program, once more after it has ended.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return fmt.Errorf("start %s: runs already", p.Name)
	}
	file, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer func() { _ = file.Close() }() // the program has its own
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = ownGroup()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// running needs p.mu.
func (p *Process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID is the process that runs, or ran last.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Running says whether the program runs.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// Kill ends the program at once, as kill -9 does, and waits until it is gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL, 10*time.Second) }

// Stop asks the program to end, waits, and returns an error if it does not end well.
func (p *Process) Stop() error {
	if err := p.end(syscall.SIGTERM, 20*time.Second); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("stop %s: %w (its log: %s)", p.Name, p.err, p.log)
	}
	return nil
}

func (p *Process) end(signal os.Signal, limit time.Duration) error {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	running := p.running()
	p.mu.Unlock()
	if !running {
		return nil
	}
	if err := cmd.Process.Signal(signal); err != nil {
		return fmt.Errorf("end %s: %w", p.Name, err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(limit):
		if err := cmd.Process.Kill(); err != nil {
			return fmt.Errorf("end %s: %w", p.Name, err)
		}
		<-done
		return fmt.Errorf("end %s: still running after %s (its log: %s)", p.Name, limit, p.log)
	}
}

// until asks again every 20 ms until ready says yes, the program ends or ctx does.
func (p *Process) until(ctx context.Context, ready func() bool) error {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (its log: %s)", p.Name, ctx.Err(), p.log)
		case <-done:
			return fmt.Errorf("wait for %s: it ended%s", p.Name, tail(p.log))
		case <-tick.C:
		}
	}
	return nil
}

// tail quotes the end of a log file.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return "; the end of its log:\n" + string(text[max(0, len(text)-1500):])
}

// FreeAddress finds a free loopback address.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
