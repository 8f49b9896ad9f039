package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// serveStdio serves the one client that is on stdin and stdout. Both are taken from
// the rest of the program, so that nothing else is ever read or written there.
func (s *service) serveStdio(ctx context.Context) error {
	conn, restore, err := takeStdio()
	if err != nil {
		return err
	}
	defer restore()
	defer conn.Close()
	if err := s.givePIDFile(); err != nil {
		return err
	}
	if err := s.dropRights(); err != nil {
		return err
	}
	defer s.serveMetrics()()
	if err := s.server.ServeConn(ctx, conn); err != nil {
		return fmt.Errorf("--single: %w", err)
	}
	return s.stop(ctx)
}

// takeStdio is stdin and stdout as a connection; null devices take their places. What
// they are may be shared with whoever started us, as a terminal is with its shell, and
// must not stay non-blocking for them: restore, when conn is closed, sees to that.
func takeStdio() (conn net.Conn, restore func(), err error) {
	in, restoreIn, err := moveAway(0)
	if err != nil {
		return nil, nil, fmt.Errorf("--single: stdin: %w", err)
	}
	out, restoreOut, err := moveAway(1)
	if err != nil {
		return nil, nil, fmt.Errorf("--single: stdout: %w", err)
	}
	restore = func() { restoreIn(); restoreOut() }
	var a, b unix.Stat_t
	if unix.Fstat(in, &a) == nil && unix.Fstat(out, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev && a.Mode&unix.S_IFMT == unix.S_IFSOCK {
		f := os.NewFile(uintptr(in), "stdin")
		defer f.Close()
		unix.Close(out)
		conn, err = net.FileConn(f)
		return conn, restore, err
	}
	for _, fd := range []int{in, out} {
		// So that a deadline can end a read or write of a pipe.
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, nil, fmt.Errorf("--single: %w", err)
		}
	}
	return &pipes{os.NewFile(uintptr(in), "stdin"), os.NewFile(uintptr(out), "stdout")}, restore, nil
}

// moveAway gives the descriptor another number, and puts the null device in its place.
// restore gives what it stands for its flags back.
func moveAway(fd int) (moved int, restore func(), err error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return -1, nil, err
	}
	if moved, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
		return -1, nil, err
	}
	kept, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, nil, err
	}
	restore = func() {
		_ = unix.SetNonblock(kept, flags&unix.O_NONBLOCK != 0)
		unix.Close(kept)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	defer unix.Close(null)
	return moved, restore, unix.Dup3(null, fd, 0)
}

// pipes is a connection of two pipes.
type pipes struct{ in, out *os.File }

var _ net.Conn = (*pipes)(nil)

// Read fails as a socket does: io.EOF at the end.
func (p *pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipes) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipes) Close() error                { return errors.Join(p.in.Close(), p.out.Close()) }

func (p *pipes) LocalAddr() net.Addr  { return stdioAddr{} }
func (p *pipes) RemoteAddr() net.Addr { return stdioAddr{} }

func (p *pipes) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p *pipes) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }
func (p *pipes) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

// ReadFrom would hide that there is none for a pipe.
var _ io.Writer = (*pipes)(nil)

type stdioAddr struct{}

func (stdioAddr) Network() string { return "pipe" }
func (stdioAddr) String() string  { return "stdin and stdout" }
