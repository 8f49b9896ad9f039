package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// server is a running NBD server on a unix socket.
type server struct {
	socket string
	cmd    *exec.Cmd
}

// start runs a command that serves on socket, and waits until it does.
func start(socket, name string, args ...string) (*server, error) {
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "PMEM_IS_PMEM_FORCE=1")
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		if nc, err := net.Dial("unix", socket); err == nil {
			nc.Close()
			return &server{socket, c}, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.Process.Kill()
	c.Wait()
	return nil, fmt.Errorf("%s did not come up on %s", name, socket)
}

// serve returns the server of that name, started if it does not run, with an image
// on tmpfs in which every block has data: what was never written is quicker to read.
func (b *bench) serve(name string) (*server, error) {
	if s := b.servers[name]; s != nil {
		return s, nil
	}
	image := b.dir + "/" + strings.ReplaceAll(name, " ", "-")
	socket := image + ".sock"
	command := []string{b.bttnbd, "serve", "--log-level=error", "--listen=unix:" + socket, image}
	switch name {
	case "ours", "another build":
		os.Remove(image)
		if err := makeImage(image, 4096, 0); err != nil {
			return nil, err
		}
		if name != "ours" {
			command[0] = b.old + "/bttnbd"
		}
	case "nbdkit memory":
		command = []string{"nbdkit", "-f", "-U", socket, "memory", "1G"}
	case "nbdkit libpmemblk":
		os.Remove(image)
		command = []string{"nbdkit", "-f", "-U", socket, b.plugin, "pool=" + image, fmt.Sprintf("bytes=%d", imageSize)}
	}
	s, err := start(socket, command[0], command[1:]...)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, "nbdkit") {
		if err := fill(socket); err != nil {
			s.stop()
			return nil, fmt.Errorf("filling %s: %w", name, err)
		}
	}
	b.servers[name] = s
	return s, nil
}

func (b *bench) stopServers() {
	for _, s := range b.servers {
		s.stop()
	}
	clear(b.servers)
}

func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
	os.Remove(s.socket)
}

// cpu is the CPU time of the server in seconds, threads that have ended included.
// Its clock counts in nanoseconds, where /proc counts in hundredths of a second.
func (s *server) cpu() (float64, error) {
	var t unix.Timespec
	clock := int32(^s.cmd.Process.Pid<<3 | 2) // what clock_getcpuclockid(3) returns
	err := unix.ClockGettime(clock, &t)
	return float64(t.Nano()) / 1e9, err
}

// side measures a load on the server.
func (s *server) side(l load) side {
	l.socket = s.socket
	return func(d time.Duration) (m measurement, err error) {
		before, err := s.cpu()
		if err != nil {
			return m, fmt.Errorf("%s is gone: %w", s.cmd.Path, err)
		}
		n, elapsed, err := l.run(d)
		if err != nil {
			return m, err
		}
		after, err := s.cpu()
		m = measurement{Rate: float64(n) / elapsed.Seconds(), CPU: (after - before) / float64(n)}
		if l.block > 4096 {
			m.Rate *= float64(l.block)
			m.CPU /= float64(l.block)
		}
		return m, err
	}
}
