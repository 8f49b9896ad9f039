package clienttest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	mib        = 1 << 20
	tmpfsMagic = 0x01021994 // statfs(2)
)

// An image is a BTT in a file.
type image struct {
	path   string
	sector int
}

// tmpfs returns a directory in memory, where a drain is a fence.
func tmpfs(t *testing.T) string { return directory(t, "/dev/shm", true) }

// disk returns a directory on an ordinary filesystem, where a drain is msync.
func disk(t *testing.T) string { return directory(t, "/var/tmp", false) }

func directory(t *testing.T, parent string, inMemory bool) string {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(parent, &fs); err != nil {
		t.Fatal(err)
	}
	if (fs.Type == tmpfsMagic) != inMemory {
		t.Fatalf("%s: tmpfs is %v, the test needs %v", parent, !inMemory, inMemory)
	}
	dir, err := os.MkdirTemp(parent, "bttnbd-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// onEveryImage runs the test on both media and with both sector sizes; with -short
// on one of each.
func onEveryImage(t *testing.T, size int64, test func(*testing.T, image)) {
	for _, c := range []struct {
		name   string
		dir    func(*testing.T) string
		sector int
		always bool
	}{
		{"tmpfs/4096", tmpfs, 4096, true},
		{"tmpfs/512", tmpfs, 512, false},
		{"disk/4096", disk, 4096, false},
		{"disk/512", disk, 512, true},
	} {
		if testing.Short() && !c.always {
			continue
		}
		t.Run(c.name, func(t *testing.T) { test(t, create(t, c.dir(t), size, c.sector)) })
	}
}

// create makes an image in a file of size bytes.
func create(t *testing.T, dir string, size int64, sector int, flags ...string) image {
	t.Helper()
	img := image{filepath.Join(dir, "image.btt"), sector}
	args := append([]string{"create", "--size", strconv.FormatInt(size, 10), "--sector-size", strconv.Itoa(sector)}, flags...)
	run(t, bttnbd, append(args, img.path)...)
	return img
}

// check fails the test unless bttcheck finds the image clean.
func (img image) check(t *testing.T) {
	t.Helper()
	if o := try(t, bttcheck, "--progress", "never", img.path); o.status != 0 {
		t.Fatalf("bttcheck: exit status %d\n%s%s", o.status, o.stdout, o.stderr)
	}
}

// A server is one run of `bttnbd serve`.
type server struct {
	uri    string // of the default export
	socket string // its unix socket, if that is what it listens on
	cmd    *exec.Cmd
	stderr *lockedBuffer
	rest   chan string // what it wrote to stdout after its first line, once that ended
	ended  bool
}

// serve starts a server on a unix socket of its own. It is stopped, and must stop
// well, at the end of the test.
func serve(t *testing.T, img image, flags ...string) *server {
	t.Helper()
	socket := filepath.Join(socketDir(t), "nbd.sock")
	s := serveOn(t, "unix:"+socket, img, flags...)
	s.socket = socket
	return s
}

// socketDir returns a directory with a short name: the path of a unix socket has at
// most 107 bytes, and t.TempDir holds the name of the test.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bttnbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// serveOn starts a server and waits for the URI, which says that it is ready.
func serveOn(t *testing.T, address string, img image, flags ...string) *server {
	t.Helper()
	args := append([]string{"serve", "--listen", address}, flags...)
	s := &server{
		cmd:    exec.Command(bttnbd, append(args, img.path)...),
		stderr: new(lockedBuffer),
		rest:   make(chan string, 1),
	}
	s.cmd.Stderr = s.stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(t) })

	watchdog := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
	defer watchdog.Stop()
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatalf("%v printed no URI: %v\n%s", s.cmd, err, s.stderr)
	}
	s.uri = strings.TrimSpace(line)
	go func() {
		rest, _ := io.ReadAll(lines) // ends with the process
		s.rest <- string(rest)
	}()
	return s
}

// stop asks the server to end, as systemd and a person's Ctrl-C would, and fails
// the test unless it does so with status 0.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.ended {
		return
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	watchdog := time.AfterFunc(patience, func() { s.cmd.Process.Kill() })
	err := s.wait()
	watchdog.Stop()
	if err != nil {
		t.Errorf("%v after SIGTERM: %v\n%s", s.cmd, err, s.stderr)
	}
	if t.Failed() {
		t.Logf("the server said:\n%s", s.stderr)
	}
}

// kill is the crash: the server gets no chance to do anything.
func (s *server) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("%v ended with %v before it was killed\n%s", s.cmd, err, s.stderr)
	}
}

func (s *server) wait() error {
	s.ended = true
	select {
	case <-s.rest: // Wait closes the pipe, so read it to its end before
	case <-time.After(patience):
		return fmt.Errorf("stdout still open after %v", patience)
	}
	return s.cmd.Wait()
}

// lockedBuffer collects the output of a running process.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
