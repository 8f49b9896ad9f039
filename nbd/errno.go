package nbd

import (
	"errors"
	"strconv"
	"syscall"
)

// Errno is the error field of a reply: 0, or one of the NBD_E… numbers. They
// are the protocol's, whatever the numbers of the system are.
type Errno uint32

// errnos lists every error number of the protocol.
var errnos = [...]Errno{NBD_EPERM, NBD_EIO, NBD_ENOMEM, NBD_EINVAL, NBD_ENOSPC, NBD_EOVERFLOW, NBD_ENOTSUP, NBD_ESHUTDOWN}

// String returns the symbol without the document's NBD_ in front.
func (e Errno) String() string {
	switch e {
	case 0:
		return "OK"
	case NBD_EPERM:
		return "EPERM"
	case NBD_EIO:
		return "EIO"
	case NBD_ENOMEM:
		return "ENOMEM"
	case NBD_EINVAL:
		return "EINVAL"
	case NBD_ENOSPC:
		return "ENOSPC"
	case NBD_EOVERFLOW:
		return "EOVERFLOW"
	case NBD_ENOTSUP:
		return "ENOTSUP"
	case NBD_ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return "errno " + strconv.FormatUint(uint64(e), 10)
}

// errnoTable is the one place where errors of a backend become numbers of the
// protocol. The first row that the error is (errors.Is) decides, so an error
// that joins several is an I/O error if any of them is.
var errnoTable = [...]struct {
	is   syscall.Errno
	wire Errno
}{
	{syscall.EIO, NBD_EIO},
	{syscall.EROFS, NBD_EPERM},
	{syscall.EPERM, NBD_EPERM},
	{syscall.EACCES, NBD_EPERM},
	{syscall.ENOSPC, NBD_ENOSPC},
	{syscall.EDQUOT, NBD_ENOSPC},
	{syscall.EFBIG, NBD_ENOSPC},
	{syscall.ENOMEM, NBD_ENOMEM},
	{syscall.ESHUTDOWN, NBD_ESHUTDOWN},
	{syscall.ENOTSUP, NBD_ENOTSUP},
	{syscall.EOPNOTSUPP, NBD_ENOTSUP},
	{syscall.EOVERFLOW, NBD_EINVAL}, // the wire's EOVERFLOW is for NBD_CMD_FLAG_DF alone
	{syscall.EINVAL, NBD_EINVAL},
}

// errnoFor returns the error number with which to answer the request req on
// which the backend returned err. What no row knows is an I/O error: EINVAL
// would blame the client.
func errnoFor(err error, req *request) Errno {
	if err == nil {
		return 0
	}
	for _, row := range errnoTable {
		if errors.Is(err, row.is) {
			return row.wire.allowedFor(req)
		}
	}
	return NBD_EIO
}

// explain returns what to tell a client's user about an error of the backend. The
// backend's own words stay here: they may name files of this machine.
func (e Errno) explain() string {
	switch e {
	case NBD_EIO:
		return "input/output error of the storage behind the export"
	case NBD_EPERM:
		return "the storage behind the export cannot be changed"
	case NBD_ENOSPC:
		return "no space left on the storage behind the export"
	case NBD_ENOMEM:
		return "the server is out of memory"
	case NBD_ENOTSUP:
		return "zeroing here is no faster than writing"
	case NBD_ESHUTDOWN:
		return shuttingDown.text
	}
	return "the storage behind the export refuses the request"
}

// allowedFor returns e, or EINVAL for an ENOTSUP that the document keeps for
// the answer to NBD_CMD_FLAG_FAST_ZERO.
func (e Errno) allowedFor(req *request) Errno {
	if e == NBD_ENOTSUP && req.flags&NBD_CMD_FLAG_FAST_ZERO == 0 {
		return NBD_EINVAL
	}
	return e
}
