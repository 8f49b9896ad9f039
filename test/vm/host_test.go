package vmtest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/internal/vm"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
	"github.com/bttnbd/bttnbd/test/vm/workload"
)

const (
	mib       = 1 << 20
	labelSize = 128 << 10 // the least that QEMU takes
)

// file makes a sparse file.
func file(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// create makes an image with bttnbd.
func create(t *testing.T, name string, size int64, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	args := append([]string{"create", "--size", strconv.FormatInt(size, 10)}, flags...)
	run(t, bttnbd, append(args, path)...)
	return path
}

// nvdimm is a file without a label area.
func nvdimm(path string) vm.NVDIMM { return vm.NVDIMM{Path: path} }

// run runs a program that must succeed, and returns what it printed.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	watchdog := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// check fails the test unless bttcheck finds the image clean. It returns how many
// writes a crash has interrupted, which is a note and no damage.
func check(t *testing.T, image string) (interrupted int) {
	t.Helper()
	out := run(t, bttcheck, "--progress", "never", image)
	if strings.Contains(out, "error: ") || strings.Contains(out, "warning: ") {
		t.Fatalf("bttcheck: %s", out)
	}
	return strings.Count(out, "interrupted")
}

// A server is one run of `bttnbd serve` on this host.
type server struct {
	cmd    *exec.Cmd
	uri    string
	socket string
	stderr bytes.Buffer
}

func serve(t *testing.T, image string) *server {
	t.Helper()
	dir, err := os.MkdirTemp("", "bttnbd") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &server{socket: filepath.Join(dir, "s")}
	s.cmd = exec.Command(bttnbd, "serve", "--listen", "unix:"+s.socket, image)
	s.cmd.Stderr = &s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		s.cmd.Wait()
		t.Fatalf("%v printed no URI: %v\n%s", s.cmd, err, &s.stderr)
	}
	s.uri = strings.TrimSpace(line)
	return s
}

// stop ends the server in order.
func (s *server) stop(t *testing.T) {
	t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", s.cmd, err, &s.stderr)
	}
}

// kill ends it as a crash would.
func (s *server) kill(t *testing.T) {
	t.Helper()
	s.cmd.Process.Kill()
	if err := s.cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("%v ended with %v before it was killed\n%s", s.cmd, err, &s.stderr)
	}
}

// deviceSize is what the server offers.
func (s *server) deviceSize(t *testing.T) int64 {
	t.Helper()
	c := s.dial(t)
	defer c.Close()
	return c.size
}

// writePattern fills the whole device through the server, with nbdcopy.
func writePattern(t *testing.T, image string, seed uint64) {
	t.Helper()
	s := serve(t, image)
	pattern := io.LimitReader(workload.Pattern(seed), s.deviceSize(t))
	cmd := exec.Command("nbdcopy", "--connections=4", "-", s.uri)
	cmd.Stdin = pattern
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, &s.stderr)
	}
	s.stop(t)
}

// comparePattern reads the whole device through the server, with nbdcopy.
func comparePattern(t *testing.T, image string, seed uint64) {
	t.Helper()
	s := serve(t, image)
	copied := filepath.Join(t.TempDir(), "copy")
	defer os.Remove(copied)
	run(t, "nbdcopy", s.uri, copied)
	f, err := os.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := workload.ComparePattern(f, seed, s.deviceSize(t)); err != nil {
		t.Errorf("%s: %v", image, err)
	}
	s.stop(t)
}

// A connection reads and writes at offsets; it is for one goroutine.
type connection struct {
	*nbdtest.Client
	size int64
}

func (s *server) dial(t *testing.T) *connection {
	t.Helper()
	c, info, err := nbdtest.Dial("unix", s.socket, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, &s.stderr)
	}
	t.Cleanup(func() { c.Close() })
	return &connection{c, int64(info.Size)}
}

var errRefused = errors.New("error reply")

func (c *connection) WriteAt(p []byte, off int64) (int, error) {
	reply, err := c.Do(nbdtest.Write(1, uint64(off), p))
	if err == nil && reply.Err != 0 {
		err = fmt.Errorf("%w: %v", errRefused, reply.Err)
	}
	return len(p), err
}

func (c *connection) ReadAt(p []byte, off int64) (int, error) {
	reply, err := c.Do(nbdtest.Read(1, uint64(off), uint32(len(p))))
	if err == nil && reply.Err != 0 {
		err = fmt.Errorf("%w: %v", errRefused, reply.Err)
	}
	return copy(p, reply.Data), err
}

// counters are those of the command `guest log`: a page for each log.
type counters []byte

// mapCounters shows the counters that a guest writes to an NVDIMM, as it writes them.
func mapCounters(t *testing.T, path string, n int) counters {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := syscall.Mmap(int(f.Fd()), 0, n*4096, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(mem) })
	return mem
}

func (c counters) at(i int) uint64 { return binary.LittleEndian.Uint64(c[i*4096:]) }

// total is their sum, and 0 as long as one of them is.
func (c counters) total() (sum uint64) {
	for i := range len(c) / 4096 {
		if c.at(i) == 0 {
			return 0
		}
		sum += c.at(i)
	}
	return sum
}

// verify reads the logs through a server, to which the recovery of the image falls.
func (c counters) verify(t *testing.T, image string, sector int, seed uint64) {
	t.Helper()
	s := serve(t, image)
	conn := s.dial(t)
	for i, l := range workload.Split(seed, sector, conn.size, len(c)/4096) {
		if err := l.Verify(conn, c.at(i)); err != nil {
			t.Errorf("%s, log %d: %v", image, i, err)
		}
	}
	conn.Close()
	s.stop(t)
}

// interruptWrite leaves the image at an offset of a file as a crash does that comes
// between the flog record and the map entry of the first write ever.
func interruptWrite(t *testing.T, path string, offset int64) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := copyFrom(image, path, offset); err != nil {
		t.Fatal(err)
	}
	s := serve(t, image)
	conn := s.dial(t)
	if _, err := conn.WriteAt(bytes.Repeat([]byte{1}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	s.stop(t)

	var info struct {
		Arenas []struct {
			Offset int64
			MapOff int64
		}
	}
	if err := json.Unmarshal([]byte(run(t, bttnbd, "info", "--json", image)), &info); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err == nil {
		// The entry of block 0 as it was, "initial": mapped to the block of its own number.
		_, err = f.WriteAt(make([]byte, 4), info.Arenas[0].Offset+info.Arenas[0].MapOff)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	replace(t, path, image, offset)
}

// replace writes an image over a part of a file.
func replace(t *testing.T, path, image string, offset int64) {
	t.Helper()
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(content, offset)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
