// Package ledgertest runs a private PostgreSQL server for tests.
package ledgertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Server is a PostgreSQL server of its own, on loopback and a port that was free, with
// fsync on. Its files are in a temporary folder.
type Server struct {
	dir, data, bin string
	port           int
	as             *syscall.Credential // who runs it; nil = we do
	guard          *exec.Cmd           // stops the server should this process die before Remove
	alive          io.Closer           // the guard's input, open as long as this process lives

	mu        sync.Mutex // guards databases
	databases int
}

const limit = time.Minute // bounds each step

// Start makes a server and starts it. The caller stops it with Remove.
func Start(ctx context.Context) (*Server, error) {
	bin, err := findBin()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		if s.as, err = credentialOf("postgres"); err != nil {
			return nil, err
		}
	}
	if s.dir, err = os.MkdirTemp("", "storelay-postgres-"); err != nil {
		return nil, err
	}
	s.data = filepath.Join(s.dir, "data")
	if s.as != nil {
		if err := os.Chown(s.dir, int(s.as.Uid), int(s.as.Gid)); err != nil {
			return nil, errors.Join(err, s.Remove(ctx))
		}
	}
	if err := s.run(ctx, "initdb", "-D", s.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
		return nil, errors.Join(err, s.Remove(ctx))
	}
	if s.port, err = freePort(); err != nil {
		return nil, errors.Join(err, s.Remove(ctx))
	}
	if err := s.watch(); err != nil {
		return nil, errors.Join(err, s.Remove(ctx))
	}
	if err := s.Restart(ctx); err != nil {
		return nil, errors.Join(err, s.Remove(ctx))
	}
	return s, nil
}

// watch starts the guard: a shell that reads until this process is gone, in whatever way,
// and then stops the server and removes its files.
func (s *Server) watch() error {
	s.guard = exec.Command("/bin/sh", "-c", `cat >/dev/null; "$0" stop -w -m immediate -D "$1" >/dev/null 2>&1; rm -rf "$2"`, filepath.Join(s.bin, "pg_ctl"), s.data, s.dir)
	s.guard.Dir = "/"
	s.guard.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Setpgid: true}
	var err error
	if s.alive, err = s.guard.StdinPipe(); err != nil {
		return err
	}
	return s.guard.Start()
}

// Restart starts the server after Crash, on the same port.
func (s *Server) Restart(ctx context.Context) error {
	options := fmt.Sprintf("-h 127.0.0.1 -p %d -k '' -c fsync=on -c max_connections=200", s.port)
	return s.run(ctx, "pg_ctl", "start", "-w", "-D", s.data, "-l", filepath.Join(s.dir, "log"), "-o", options)
}

// Crash stops the server without a checkpoint, as a power cut would.
func (s *Server) Crash(ctx context.Context) error {
	return s.run(ctx, "pg_ctl", "stop", "-w", "-m", "immediate", "-D", s.data)
}

// Remove stops the server, if it runs, and removes its files.
func (s *Server) Remove(ctx context.Context) error {
	var err error
	if _, running := os.Stat(filepath.Join(s.data, "postmaster.pid")); running == nil {
		err = s.Crash(ctx)
	}
	if s.alive != nil {
		err = errors.Join(err, s.alive.Close(), s.guard.Wait())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Database makes an empty database and gives its URL.
func (s *Server) Database(ctx context.Context) (url string, err error) {
	s.mu.Lock()
	s.databases++
	name := "test" + strconv.Itoa(s.databases)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+name)
	return s.url(name), errors.Join(err, conn.Close(ctx))
}

func (s *Server) url(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
}

// run runs one of PostgreSQL's programs to its end.
func (s *Server) run(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	if s.as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	}
	// To a file and not a pipe: the server that pg_ctl leaves behind holds it open.
	out, err := os.CreateTemp("", "storelay-postgres-out-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer func() { _ = out.Close() }() // the program writes, through its own
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		logged, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		return fmt.Errorf("%s: %w: %s %s", program, err, bytes.TrimSpace(said), bytes.TrimSpace(logged))
	}
	return nil
}

// findBin gives the folder of initdb, pg_ctl and postgres: of PATH, or Debian's newest.
func findBin() (string, error) {
	complete := func(dir string) bool {
		for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
			if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
				return false
			}
		}
		return true
	}
	debian, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	version := func(dir string) int { n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir))); return n }
	slices.SortFunc(debian, func(a, b string) int { return version(b) - version(a) })
	dirs := debian
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			dirs = append([]string{filepath.Dir(real)}, dirs...)
		}
	}
	for _, dir := range dirs {
		if complete(dir) {
			return dir, nil
		}
	}
	return "", errors.New("initdb, pg_ctl and postgres are neither in PATH nor in /usr/lib/postgresql/*/bin (apt-get install postgresql)")
}

func credentialOf(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root: %w (apt-get install postgresql makes the user)", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// shared is the server that all tests of one binary use; its owner is Main.
type shared struct {
	once   sync.Once
	server *Server
	err    error
}

var binary shared

// Main runs a package's tests and stops the server that Postgres may have started. TestMain
// is: func TestMain(m *testing.M) { os.Exit(ledgertest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	binary.once.Do(func() { binary.err = errors.New("the tests are over") })
	if binary.server != nil {
		if err := binary.server.Remove(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "stop PostgreSQL:", err)
			return max(code, 1)
		}
	}
	return code
}

// Postgres gives the URL of an empty database. The first call starts a server for the whole
// test binary, which ends with Main, or else shortly after the binary.
func Postgres(t testing.TB) (url string) {
	t.Helper()
	binary.once.Do(func() { binary.server, binary.err = Start(context.Background()) })
	if binary.err != nil {
		t.Fatalf("start PostgreSQL: %v", binary.err)
	}
	url, err := binary.server.Database(t.Context())
	if err != nil {
		t.Fatalf("make a database: %v", err)
	}
	return url
}

// Private starts a server for one test, which may crash it.
func Private(t testing.TB) *Server {
	t.Helper()
	s, err := Start(t.Context())
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Remove(context.Background()); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return s
}
