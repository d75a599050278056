package serialport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.bug.st/serial"
)

// openPTY gives an open port and the device's end of the line.
func openPTY(t *testing.T) (Port, *os.File) {
	t.Helper()
	device, line, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	line.Close()
	t.Cleanup(func() { device.Close() })
	p, err := Open(t.Context(), Config{Name: line.Name(), Baud: 115200})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, device
}

func TestReadGivesTheDevicesBytes(t *testing.T) {
	p, device := openPTY(t)
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	if _, err := device.Write(all); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for buf := make([]byte, 100); len(got) < len(all); {
		n, err := p.Read(t.Context(), buf)
		if err != nil || n == 0 {
			t.Fatalf("Read = %d, %v", n, err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, all) {
		t.Errorf("read %x, want every byte as it is", got)
	}
}

func TestReadEndsWithItsContextAndGoesOn(t *testing.T) {
	p, device := openPTY(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if n, err := p.Read(ctx, make([]byte, 8)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Read = %d, %v, want DeadlineExceeded", n, err)
	}
	device.Write([]byte("x"))
	if n, err := p.Read(t.Context(), make([]byte, 8)); n != 1 || err != nil {
		t.Errorf("Read after a timeout = %d, %v, want 1 byte", n, err)
	}
}

func TestWriteReachesTheDevice(t *testing.T) {
	p, device := openPTY(t)
	if err := p.Write(t.Context(), []byte("R\r\n")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(device, got); err != nil || string(got) != "R\r\n" {
		t.Errorf("device got %q, %v", got, err)
	}
}

func TestCloseEndsARead(t *testing.T) {
	p, _ := openPTY(t)
	done := make(chan error)
	go func() {
		_, err := p.Read(context.Background(), make([]byte, 8))
		done <- err
	}()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read = %v, want ErrClosed", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if err := p.Write(t.Context(), []byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close = %v, want ErrClosed", err)
	}
}

func TestUnpluggingIsErrLost(t *testing.T) {
	p, device := openPTY(t)
	device.Close()
	_, err := p.Read(t.Context(), make([]byte, 8))
	var e *Error
	if !errors.Is(err, ErrLost) || !errors.As(err, &e) || e.Advice() == "" {
		t.Errorf("Read = %v, want ErrLost with a hint", err)
	}
	if err := p.Write(t.Context(), []byte("x")); !errors.Is(err, ErrLost) {
		t.Errorf("Write = %v, want ErrLost", err)
	}
}

// Nobody reads at the device's end: the system's buffer fills, and the write is given up.
// It writes no more once the port is closed.
func TestAStuckWriteEndsWithItsContext(t *testing.T) {
	p, device := openPTY(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := p.Write(ctx, make([]byte, 1<<20))
	if !errors.Is(err, ErrLost) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Write = %v, want ErrLost and DeadlineExceeded", err)
	}
	if err := p.Write(t.Context(), []byte("x")); !errors.Is(err, ErrLost) {
		t.Errorf("Write after a stuck one = %v, want ErrLost", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	device.Close()
	if err := <-p.(*port).writing; err == nil {
		t.Error("the stuck write went on after Close")
	}
}

func TestAPTYHasNoModemLines(t *testing.T) {
	p, _ := openPTY(t)
	if _, err := p.ModemLines(); !errors.Is(err, ErrNoLines) {
		t.Errorf("ModemLines = %v, want ErrNoLines", err)
	}
}

func TestOpenErrorsCanBeToldApart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		config Config
		want   error
	}{
		{"no such port", Config{Name: "/dev/ttyUSB99"}, fs.ErrNotExist},
		{"no such id", Config{Name: "by-id:usb-none"}, fs.ErrNotExist},
		{"an id that climbs", Config{Name: "by-id:../../x"}, ErrName},
		{"no such USB device", Config{Name: "usb:FFFF:FFFF"}, fs.ErrNotExist},
		{"a malformed USB id", Config{Name: "usb:12"}, ErrName},
		{"no name", Config{}, ErrName},
		{"a file", Config{Name: file}, ErrSetting},
		{"no such parity", Config{Name: file, Parity: "both"}, ErrSetting},
		{"no such stop bits", Config{Name: file, StopBits: "3"}, ErrSetting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Open(t.Context(), tt.config)
			if !errors.Is(err, tt.want) {
				t.Errorf("Open = %v, %v, want %v", p, err, tt.want)
			}
		})
	}
}

func TestLibraryErrorsAreExplained(t *testing.T) {
	if err := explain("COM3", fs.ErrPermission); err.Hint == "" || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("permission = %v, want a hint", err)
	}
	busy := explain("COM3", &serial.PortError{}) // the zero code is PortBusy
	if busy.Hint == "" || !errors.Is(busy, ErrBusy) {
		t.Errorf("busy = %v, want ErrBusy with a hint", busy)
	}
}

// tree makes a root with a USB port, a soldered one, an empty slot and a console.
func tree(t *testing.T) system {
	t.Helper()
	root := t.TempDir()
	put := func(path, text string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, path string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	put("sys/devices/usb1/1-1/idVendor", "0403")
	put("sys/devices/usb1/1-1/idProduct", "6001")
	put("sys/devices/usb1/1-1/serial", "A50285BI")
	put("sys/devices/usb1/1-1/product", "FT232R USB UART")
	put("sys/devices/usb1/1-1/1-1:1.0/ttyUSB0/dev", "188:0")
	put("sys/devices/pnp/00:01/dev", "x")
	link("../../../devices/usb1/1-1/1-1:1.0/ttyUSB0", "sys/class/tty/ttyUSB0/device")
	link("../../../devices/pnp/00:01", "sys/class/tty/ttyS0/device")
	put("sys/class/tty/ttyS0/type", "4")
	link("../../../devices/pnp/00:01", "sys/class/tty/ttyS1/device")
	put("sys/class/tty/ttyS1/type", "0")
	put("sys/class/tty/tty0/dev", "4:0")
	put("dev/ttyUSB0", "")
	link("../../ttyUSB0", "dev/serial/by-id/usb-FTDI_A50285BI-if00-port0")
	return system{root}
}

func TestListReadsSysfsAlone(t *testing.T) {
	s := tree(t)
	got, err := s.list()
	if err != nil {
		t.Fatal(err)
	}
	want := []Info{
		{Path: filepath.Join(s.root, "dev/ttyS0")},
		{Path: filepath.Join(s.root, "dev/ttyUSB0"), ByID: "usb-FTDI_A50285BI-if00-port0", VID: "0403", PID: "6001", Serial: "A50285BI", Product: "FT232R USB UART"},
	}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("list = %+v, want %+v", got, want)
	}
	if path, err := s.byID("usb-FTDI_A50285BI-if00-port0"); err != nil || filepath.Base(path) != "usb-FTDI_A50285BI-if00-port0" {
		t.Errorf("byID = %q, %v", path, err)
	}
}

func TestAUSBIDNamesOnePort(t *testing.T) {
	infos := []Info{{Path: "/dev/a", VID: "0403", PID: "6001", Serial: "1"}, {Path: "/dev/b", VID: "0403", PID: "6001", Serial: "2"}, {Path: "/dev/c", VID: "1A86", PID: "7523"}}
	for _, tt := range []struct {
		id, want string
		err      error
	}{
		{"1a86:7523", "/dev/c", nil}, {"0403:6001:2", "/dev/b", nil}, {"0403:6001", "", ErrName}, {"0403:6001:3", "", fs.ErrNotExist},
	} {
		id, err := parseUSB(tt.id)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := id.pick(infos); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("pick(%s) = %q, %v, want %q, %v", tt.id, got, err, tt.want, tt.err)
		}
	}
}
