package socket

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls makes the calls of one goroutine. The zero value is ready.
type Calls struct {
	bare int // calls since the last that was not, or had to wait
}

// maxBare is how many calls in a row the scheduler is not told of. A client that sends
// one batch at a time takes three: its requests, the answer, and finding nothing more.
const maxBare = 16

// Receive reads what is there, without waiting: 0 at the end of the stream, and
// [unix.EAGAIN] if there is nothing.
func (c *Calls) Receive(fd uintptr, p []byte) (int, error) {
	var n uintptr
	var e unix.Errno
	if c.isBare() {
		n, _, e = unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	} else {
		n, _, e = unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	}
	received(fd)
	return outcome(n, e)
}

// Again is [Calls.Receive] for those who have found nothing and look once more: bare, and
// not counted.
func Again(fd uintptr, p []byte) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
	received(fd)
	return outcome(n, e)
}

// Send writes what the socket takes, without waiting and without SIGPIPE:
// [unix.EAGAIN] if it takes nothing.
func (c *Calls) Send(fd uintptr, p []byte) (int, error) {
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	var n uintptr
	var e unix.Errno
	sending(fd)
	if c.isBare() {
		n, _, e = unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
	} else {
		n, _, e = unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
	}
	return outcome(n, e)
}

// Poll is [unix.Poll] without waiting: it fills Revents in, and returns how many are
// not empty.
func Poll(fds []unix.PollFd) (int, error) {
	var now unix.Timespec
	n, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// Announce wakes the monitor. It comes before what may keep a processor for long
// without a system call.
func (c *Calls) Announce() {
	unix.Syscall(unix.SYS_GETPID, 0, 0, 0)
	c.bare = 0
}

// BeforeWait comes before the goroutine waits, which the scheduler sees.
func (c *Calls) BeforeWait() { c.bare = 0 }

func (c *Calls) isBare() bool {
	if c.bare++; c.bare <= maxBare {
		return true
	}
	c.bare = 0
	return false
}

func outcome(n uintptr, e unix.Errno) (int, error) {
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
