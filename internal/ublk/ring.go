package ublk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A ring is an io_uring (include/uapi/linux/io_uring.h): a queue of submissions that we
// fill and one of completions that the kernel fills, in memory that both see.
//
//	 one mapping (IORING_FEAT_SINGLE_MMAP)                a second mapping
//	+----------------------+------------------------+    +-----+-----+-----+
//	| SQ: head tail mask … | CQ: head tail … CQEs   |    | SQE | SQE |  …  |
//	+----------------------+------------------------+    +-----+-----+-----+
//	   |         |             |       |
//	   kernel    we            we      kernel  move it on
//
// Who moves an index on has done with what lies behind it: the store of the index
// releases, the load of the other side's acquires. sync/atomic does both.
//
// A ring belongs to the thread that made it.
type ring struct {
	fd      int
	indices []byte // the first mapping
	sqes    []byte // the second one
	sqeSize int

	sqHead, sqTail, cqHead, cqTail *uint32
	sqMask, cqMask                 uint32
	cqes                           int    // offset in indices
	tail                           uint32 // of what we have filled; the kernel learns of it at enter
}

// What of struct io_uring_params matters. Offsets of what is in a mapping are the kernel's
// answer.
//
//	0          4          8       20         40             80             120
//	+----------+----------+-------+----------+--------------+--------------+
//	| SQ size  | CQ size  | flags | features | SQ offsets   | CQ offsets   |
//	+----------+----------+-------+----------+--------------+--------------+
const (
	paramsSize     = 120
	paramsFlags    = 8
	paramsFeatures = 20
	paramsSQ       = 40 // head, tail, mask, entries, flags, dropped, array
	paramsCQ       = 80 // head, tail, mask, entries, overflow, cqes

	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	featSingleMmap    = 1 << 0

	offSQRing = 0
	offSQEs   = 0x10000000

	enterGetEvents = 1 << 0
)

// The part of struct io_uring_sqe that all operations of ours share, and struct
// io_uring_cqe.
//
//	0    1       4    8        12      28       32          40      48
//	+----+-------+----+--------+-------+--------+-----------+-------+-------------------+
//	| op | …     | fd | cmd_op | …     | events | user_data | …     | cmd: 16, or 80 of |
//	+----+-------+----+--------+-------+--------+-----------+-------+ a long SQE -------+
//
//	+-----------+-----+-------+
//	| user_data | res | flags |
//	+-----------+-----+-------+
//	0           8     12      16
const (
	sqeSize, longSQE = 64, 128
	sqeFD            = 4
	sqeCmdOp         = 8
	sqeEvents        = 28
	sqeUserData      = 32
	sqeCmd           = 48
	cqeSize          = 16

	opPollAdd  = 6
	opUringCmd = 46
)

var ne = binary.NativeEndian

// newRing makes a ring for so many submissions at a time.
func newRing(entries, flags uint32) (*ring, error) {
	var params [paramsSize]byte
	ne.PutUint32(params[paramsFlags:], flags)
	fd, errno := setup(entries, &params)
	if errno != 0 {
		return nil, ringError(errno)
	}
	r := &ring{fd: fd, sqeSize: sqeSize}
	if flags&setupSQE128 != 0 {
		r.sqeSize = longSQE
	}
	if err := r.mmap(params[:]); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// ringError says why there are no rings.
func ringError(errno syscall.Errno) error {
	switch errno {
	case unix.ENOSYS, unix.EPERM:
		return fmt.Errorf("io_uring: %w: it is not in this kernel, or forbidden (sysctl kernel.io_uring_disabled, or a container)", errno)
	case unix.EINVAL:
		return fmt.Errorf("io_uring: %w: this kernel is too old, it takes Linux 6.1", errno)
	}
	return fmt.Errorf("io_uring: %w", errno)
}

// mmap maps what params, as the kernel has answered them, tell of.
func (r *ring) mmap(params []byte) (err error) {
	if ne.Uint32(params[paramsFeatures:])&featSingleMmap == 0 {
		return errors.New("io_uring: this kernel is too old, it takes Linux 6.1")
	}
	field := func(at, i int) int { return int(ne.Uint32(params[at+4*i:])) }
	entries, cqEntries := field(0, 0), field(0, 1)
	array, cqes := field(paramsSQ, 6), field(paramsCQ, 5)
	size := max(array+4*entries, cqes+cqeSize*cqEntries)
	const mode, how = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.indices, err = unix.Mmap(r.fd, offSQRing, size, mode, how); err != nil {
		return fmt.Errorf("io_uring: mapping the queues: %w", err)
	}
	if r.sqes, err = unix.Mmap(r.fd, offSQEs, entries*r.sqeSize, mode, how); err != nil {
		return fmt.Errorf("io_uring: mapping the submissions: %w", err)
	}
	index := func(at, i int) *uint32 { return word(r.indices, field(at, i)) }
	r.sqHead, r.sqTail, r.sqMask = index(paramsSQ, 0), index(paramsSQ, 1), *index(paramsSQ, 2)
	r.cqHead, r.cqTail, r.cqMask, r.cqes = index(paramsCQ, 0), index(paramsCQ, 1), *index(paramsCQ, 2), cqes
	for i := range entries { // SQEs are used in the order in which they lie
		ne.PutUint32(r.indices[array+4*i:], uint32(i))
	}
	return nil
}

func (r *ring) close() error {
	var errs []error
	for _, m := range [][]byte{r.indices, r.sqes} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	return errors.Join(append(errs, unix.Close(r.fd))...)
}

// next returns a zeroed SQE with an operation, to be filled. There is room: the
// caller has no more on its way than the ring was made for.
func (r *ring) next(op byte, fd int, userData uint64) []byte {
	at := int(r.tail&r.sqMask) * r.sqeSize
	sqe := r.sqes[at : at+r.sqeSize : at+r.sqeSize]
	clear(sqe)
	r.tail++
	sqe[0] = op
	ne.PutUint32(sqe[sqeFD:], uint32(fd))
	ne.PutUint64(sqe[sqeUserData:], userData)
	return sqe
}

// command is next for an IORING_OP_URING_CMD.
func (r *ring) command(op uint32, fd int, userData uint64) (cmd []byte) {
	sqe := r.next(opUringCmd, fd, userData)
	ne.PutUint32(sqe[sqeCmdOp:], op)
	return sqe[sqeCmd:]
}

// enter submits what was filled, and returns when there are so many completions. What
// has completed is in the queue only once somebody has entered, as the ring has its work
// done by its own thread (IORING_SETUP_DEFER_TASKRUN).
func (r *ring) enter(completions uint32) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	for {
		waiting := r.tail - atomic.LoadUint32(r.sqHead)
		if waiting == 0 && r.ready() >= completions {
			return nil
		}
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(waiting), uintptr(completions), enterGetEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR && errno != unix.EAGAIN {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
	}
}

// ready is how many completions there are.
func (r *ring) ready() uint32 { return atomic.LoadUint32(r.cqTail) - *r.cqHead }

// completion takes the next one.
func (r *ring) completion() (userData uint64, res int32, ok bool) {
	head := *r.cqHead // only we write it
	if head == atomic.LoadUint32(r.cqTail) {
		return 0, 0, false
	}
	cqe := r.indices[r.cqes+int(head&r.cqMask)*cqeSize:]
	userData, res = ne.Uint64(cqe), int32(ne.Uint32(cqe[8:]))
	atomic.StoreUint32(r.cqHead, head+1)
	return userData, res, true
}
