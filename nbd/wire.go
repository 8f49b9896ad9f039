package nbd

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/bttnbd/bttnbd/internal/socket"
)

// wire is the socket of a connection. It reads and writes at once where that
// is possible, and where it is not, says so before it waits: memory that is not
// needed meanwhile is given back then, and deadlines are set then and not for
// every request.
//
// Over a net.Conn that is no plain socket (a pipe, somebody's wrapper, whose Read
// must not be passed by) it always says so, and never knows whether it really waits.
type wire struct {
	net.Conn
	raw syscall.RawConn // nil when that is no plain socket

	calls socket.Calls
	poll  poller

	// A read under way.
	to  sink
	n   int
	err error

	timed   bool          // arrived is kept
	arrived time.Duration // when the last bytes did, by clock

	// A write under way.
	rest   []byte
	wErr   error
	stall  time.Duration // bounds the waits between two settle; 0 or less does not
	hurry  bool          // do not wait at all
	waited bool          // a write deadline is set

	tryRead, tryWrite func(fd uintptr) bool // readNow and writeNow, made once
}

// unixBuffer is what a Unix socket is to hold of replies. It is too small for a full
// reply buffer otherwise, and the two sides take turns; larger, it would not stay in the
// cache. TCP finds out what it needs by itself.
const unixBuffer = 416 << 10

// sink is where a read goes.
type sink interface {
	space() []byte // the buffer, not empty; asked right before each attempt
	park()         // called before the goroutine waits; the buffer may change
}

func (w *wire) init(nc net.Conn) {
	w.Conn = nc
	switch nc := nc.(type) {
	case *net.TCPConn:
		w.raw, _ = nc.SyscallConn()
	case *net.UnixConn:
		w.raw, _ = nc.SyscallConn()
		nc.SetWriteBuffer(unixBuffer) // as much of it as the system allows
	}
	w.tryRead, w.tryWrite = w.readNow, w.writeNow
}

// receive reads once into to: at least one byte, or an error.
func (w *wire) receive(to sink) (int, error) {
	if w.raw == nil {
		to.park()
		n, err := w.Conn.Read(to.space())
		w.stamp()
		return n, err
	}
	w.to, w.n, w.err = to, 0, nil
	if err := w.raw.Read(w.tryRead); err != nil {
		return 0, err
	}
	w.stamp()
	return w.n, w.err
}

func (w *wire) stamp() {
	if w.timed {
		w.arrived = clock()
	}
}

// readNow reads what is there. It returns false when the runtime is to wait.
func (w *wire) readNow(fd uintptr) bool {
	p := w.to.space()
	for {
		n, err := w.calls.Receive(fd, p)
		if err == syscall.EAGAIN && w.poll.all != nil {
			n, err = w.lookAgain(fd, p)
		}
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			w.to.park()
			w.calls.BeforeWait()
			return false
		case err != nil:
			w.err = os.NewSyscallError("recvfrom", err)
		case n == 0:
			w.err = io.EOF
		default:
			w.n = n
		}
		if w.poll.began != 0 {
			w.poll.end(clock())
		}
		return true
	}
}

// lookAgain reads for as long as there is nothing and it is worth it to poll.
func (w *wire) lookAgain(fd uintptr, p []byte) (n int, err error) {
	now := clock()
	w.poll.begin(now)
	for err = syscall.EAGAIN; err == syscall.EAGAIN && w.poll.again(now); now = clock() {
		socket.Pause()
		n, err = socket.Again(fd, p)
	}
	return n, err
}

// Write sends all of p.
func (w *wire) Write(p []byte) (int, error) {
	if w.raw == nil {
		w.beforeWait()
		return w.Conn.Write(p)
	}
	w.rest, w.wErr = p, nil
	err := w.raw.Write(w.tryWrite)
	if err == nil {
		err = w.wErr
	}
	n := len(p) - len(w.rest)
	w.rest = nil
	return n, err
}

// writeNow sends what the socket takes. It returns false when the runtime is to
// wait.
func (w *wire) writeNow(fd uintptr) bool {
	for len(w.rest) > 0 {
		n, err := w.calls.Send(fd, w.rest)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN && !w.hurry:
			w.beforeWait()
			w.calls.BeforeWait()
			return false
		case err != nil:
			w.wErr = os.NewSyscallError("sendto", err)
			return true
		default:
			w.rest = w.rest[n:]
		}
	}
	return true
}

func (w *wire) beforeWait() {
	if w.stall > 0 && !w.waited {
		w.waited = true
		w.Conn.SetWriteDeadline(time.Now().Add(w.stall))
	}
}

// settle ends the time that stall allows.
func (w *wire) settle() {
	if w.waited {
		w.waited = false
		w.Conn.SetWriteDeadline(time.Time{})
	}
}
