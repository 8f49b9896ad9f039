package nbd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"testing"
)

// Goal: every system error number goes out as exactly the number the protocol
// wants, and ENOTSUP only in answer to FAST_ZERO.
func TestErrnoForEverySystemErrno(t *testing.T) {
	want := map[syscall.Errno]Errno{
		syscall.EPERM: NBD_EPERM, syscall.EACCES: NBD_EPERM, syscall.EROFS: NBD_EPERM,
		syscall.ENOSPC: NBD_ENOSPC, syscall.EDQUOT: NBD_ENOSPC, syscall.EFBIG: NBD_ENOSPC,
		syscall.ENOMEM: NBD_ENOMEM, syscall.EINVAL: NBD_EINVAL, syscall.ESHUTDOWN: NBD_ESHUTDOWN,
		syscall.EOVERFLOW: NBD_EINVAL, syscall.ENOTSUP: NBD_EINVAL,
	}
	plain := &request{cmd: NBD_CMD_WRITE_ZEROES, flags: NBD_CMD_FLAG_FUA}
	fast := &request{cmd: NBD_CMD_WRITE_ZEROES, flags: NBD_CMD_FLAG_FAST_ZERO}
	for e := syscall.Errno(1); e < 140; e++ {
		w, ok := want[e]
		if !ok {
			w = NBD_EIO
		}
		if got := errnoFor(e, plain); got != w {
			t.Errorf("%v goes out as %v, want %v", e, got, w)
		}
		if e == syscall.ENOTSUP {
			w = NBD_ENOTSUP
		}
		if got := errnoFor(e, fast); got != w {
			t.Errorf("%v after FAST_ZERO goes out as %v, want %v", e, got, w)
		}
	}
}

// isErrno is an error that is an errno through an Is method alone.
type isErrno struct{ is syscall.Errno }

func (isErrno) Error() string          { return "special" }
func (e isErrno) Is(target error) bool { return target == e.is }

// Goal: the errno is found however it is wrapped, and what has none is EIO.
func TestErrnoForWrapped(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want Errno
	}{
		{nil, 0},
		{errors.New("no idea"), NBD_EIO},
		{io.ErrUnexpectedEOF, NBD_EIO},
		{io.EOF, NBD_EIO},
		{fmt.Errorf("arena 1: %w", syscall.ENOSPC), NBD_ENOSPC},
		{&fs.PathError{Op: "msync", Path: "x", Err: syscall.EDQUOT}, NBD_ENOSPC},
		{isErrno{syscall.EROFS}, NBD_EPERM},
		{errors.Join(syscall.EINVAL, syscall.EIO), NBD_EIO},
		{errors.Join(errors.New("a"), syscall.ENOMEM), NBD_ENOMEM},
	} {
		if got := errnoFor(tc.err, &request{}); got != tc.want {
			t.Errorf("%v goes out as %v, want %v", tc.err, got, tc.want)
		}
	}
}

// Goal: each number of the protocol has its value in the document and a name
// of its own.
func TestErrnoNumbers(t *testing.T) {
	want := map[Errno]string{1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW", 95: "ENOTSUP", 108: "ESHUTDOWN"}
	if len(errnos) != len(want) {
		t.Fatalf("%d numbers, want %d", len(errnos), len(want))
	}
	for _, e := range errnos {
		if e.String() != want[e] {
			t.Errorf("%d is called %q, want %q", uint32(e), e, want[e])
		}
	}
	if got := Errno(3).String(); got != "errno 3" {
		t.Errorf("an unknown number is called %q", got)
	}
}
