package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
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

func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Wait()
	os.Remove(s.socket)
}

// cpu is the CPU time of the server in seconds, threads that have ended included.
func (s *server) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The second field, in brackets, may hold spaces; utime and stime are 14 and 15.
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux
	user, _ := strconv.ParseFloat(fields[14-3], 64)
	system, _ := strconv.ParseFloat(fields[15-3], 64)
	return (user + system) / ticksPerSecond
}

// side measures a load on the server.
func (s *server) side(l load) side {
	l.socket = s.socket
	return func(d time.Duration) (measurement, error) {
		before := s.cpu()
		perSecond, err := l.run(d)
		requests := perSecond * d.Seconds()
		m := measurement{Rate: perSecond, CPU: (s.cpu() - before) / max(requests, 1)}
		if l.block > 4096 {
			m.Rate *= float64(l.block)
		}
		return m, err
	}
}
