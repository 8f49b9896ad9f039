package attach

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/internal/socket"
)

// A stream reads and writes a socket for one goroutine, with bare calls.
type stream struct {
	raw   syscall.RawConn
	calls socket.Calls

	rest []byte // of the call under way: where the bytes go, or which are to be sent
	n    int
	err  error

	tryRead, tryWrite func(fd uintptr) bool // readNow and writeNow, made once
}

func (s *stream) init(raw syscall.RawConn) {
	s.raw, s.tryRead, s.tryWrite = raw, s.readNow, s.writeNow
}

// Read is that of the socket: its deadlines and its Close end it.
func (s *stream) Read(p []byte) (int, error) {
	s.rest, s.n, s.err = p, 0, nil
	return s.outcome(s.raw.Read(s.tryRead))
}

// Write is that of the socket.
func (s *stream) Write(p []byte) (int, error) {
	s.rest, s.n, s.err = p, 0, nil
	return s.outcome(s.raw.Write(s.tryWrite))
}

// outcome is what a call came to, of which the wait ended with err.
func (s *stream) outcome(err error) (int, error) {
	if err == nil {
		err = s.err
	}
	s.rest = nil
	return s.n, err
}

// readNow returns false when there is nothing.
func (s *stream) readNow(fd uintptr) bool {
	n, err := s.calls.Receive(fd, s.rest)
	switch {
	case err == unix.EAGAIN:
		s.calls.BeforeWait()
		return false
	case err != nil:
		s.err = os.NewSyscallError("recvfrom", err)
	case n == 0:
		s.err = io.EOF
	}
	s.n = n
	return true
}

// writeNow returns false when the socket takes no more.
func (s *stream) writeNow(fd uintptr) bool {
	for len(s.rest) > 0 {
		n, err := s.calls.Send(fd, s.rest)
		if err == unix.EAGAIN {
			s.calls.BeforeWait()
			return false
		}
		if err != nil {
			s.err = os.NewSyscallError("sendto", err)
			return true
		}
		s.rest, s.n = s.rest[n:], s.n+n
	}
	return true
}
