package ublk

import (
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/nbd"
)

// The data path of a queue, in execution order.
//
//	serve        commits what was done, and waits for requests
//	collect      takes all that have come
//	write        those that write, as one group of the backend
//	execute      the others, in the order in which they came
//	complete     fills the command that tells the result and asks for the next request
//
// The driver copies what is to be written into the buffer of the tag before it completes
// the command, and what was read out of it when it gets the result. Requests that are under
// way at the same time have no order: what depends on another one is sent when that is
// done. Nothing here allocates or logs.

// A queue is one of a device.
type queue struct {
	id     int
	depth  int
	char   int // descriptor of the character device
	wake   int // an eventfd: readable when the queue is to be left
	ring   *ring
	descs  []byte // requests by tag, written by the driver
	bufs   []byte // maxIO for each tag
	export *nbd.Export

	live    int  // tags that were not taken away
	leaving bool // no more requests are to be executed
	group   group
	others  []request
	stats   Stats
}

// Stats counts requests since the server has begun, and those of them that failed.
type Stats struct {
	Reads, Writes, Flushes, Discards, WriteZeroes uint64
	FUA                                           uint64 // of any kind
	Failures                                      uint64
}

func (s *Stats) add(o *Stats) {
	s.Reads += o.Reads
	s.Writes += o.Writes
	s.Flushes += o.Flushes
	s.Discards += o.Discards
	s.WriteZeroes += o.WriteZeroes
	s.FUA += o.FUA
	s.Failures += o.Failures
}

func (s *Stats) count(d *desc) {
	switch d.op {
	case opRead:
		s.Reads++
	case opWrite:
		s.Writes++
	case opFlush:
		s.Flushes++
	case opDiscard:
		s.Discards++
	case opWriteZeroes:
		s.WriteZeroes++
	}
	if d.fua {
		s.FUA++
	}
}

// request is one that is no write.
type request struct {
	tag uint16
	desc
}

// group is all that write of those that have come at a time.
type group struct {
	n    int
	tags []uint16
	offs []int64
	data [][]byte // buffers of the tags
	errs []error
}

// newQueue gets all that the queue needs. The thread that calls it must be the one that
// serves.
func newQueue(id, char, wake int, in Info, e *nbd.Export) (q *queue, err error) {
	n := int(in.Depth)
	q = &queue{id: id, depth: n, char: char, wake: wake, export: e}
	q.group = group{0, make([]uint16, n), make([]int64, n), make([][]byte, n), make([]error, n)}
	q.others = make([]request, 0, n)
	defer func() {
		if err != nil {
			err = errors.Join(err, q.close())
		}
	}()
	if q.descs, err = unix.Mmap(char, descsOffset(id), descsSize(in.Depth), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return q, fmt.Errorf("mapping the requests of a queue: %w", err)
	}
	if q.bufs, err = anonymous(n * maxIO); err != nil {
		return q, err
	}
	q.ring, err = newRing(uint32(2*n), setupSingleIssuer|setupDeferTaskrun) // and one for wake
	return q, err
}

// close lets go of what the driver does not use any more.
func (q *queue) close() error {
	var errs []error
	if q.ring != nil {
		errs = append(errs, q.ring.close())
	}
	for _, m := range [][]byte{q.descs, q.bufs} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	return errors.Join(errs...)
}

// wakeData is the user data of what is no request.
const wakeData = ^uint64(0)

// fetch asks for requests. From the first one on the driver takes the thread for the
// server of this queue.
func (q *queue) fetch() error {
	ne.PutUint32(q.ring.next(opPollAdd, q.wake, wakeData)[sqeEvents:], unix.POLLIN)
	for tag := range q.depth {
		q.submit(cmdFetch, uint16(tag), 0)
	}
	q.live = q.depth
	return q.ring.enter(0)
}

func (q *queue) submit(op uint32, tag uint16, result int32) {
	cmd := q.ring.command(op, q.char, uint64(tag))
	encodeIO(cmd, uint16(q.id), tag, result, address(q.buffer(tag, maxIO)))
}

// buffer is the first n bytes of that of a tag.
func (q *queue) buffer(tag uint16, n int64) []byte {
	at := int64(tag) * maxIO
	return q.bufs[at : at+n : at+n]
}

// serve returns when the device is stopped, or the queue is to be left: then everything
// that was executed has been told. Backends may lie on mapped memory and turn its faults
// into errors.
func (q *queue) serve() error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for q.live > 0 && !q.leaving {
		if err := q.ring.enter(1); err != nil {
			return err
		}
		if err := q.collect(); err != nil {
			return err
		}
		q.write()
		for i := range q.others {
			q.execute(&q.others[i])
		}
	}
	return q.ring.enter(0)
}

// aborted is what a command ends with when the device is stopped, UBLK_IO_RES_ABORT.
const aborted = -int32(unix.ENODEV)

// collect sorts what has come.
func (q *queue) collect() error {
	q.others, q.group.n = q.others[:0], 0
	for {
		data, res, ok := q.ring.completion()
		switch {
		case !ok:
			return nil
		case data == wakeData:
			q.leaving = true
		case res == aborted:
			q.live--
		case res != 0:
			return fmt.Errorf("queue %d: the driver refuses a command: %w", q.id, syscall.Errno(-res))
		default:
			q.take(uint16(data))
		}
	}
}

// take adds the request of a tag to those that write, or to the others.
func (q *queue) take(tag uint16) {
	d := decodeDesc(q.descs[int(tag)*descSize:])
	q.stats.count(&d)
	if d.op != opWrite || !q.fits(&d) {
		q.others = append(q.others, request{tag, d})
		return
	}
	g := &q.group
	g.tags[g.n], g.offs[g.n], g.data[g.n], g.errs[g.n] = tag, d.off, q.buffer(tag, d.size), nil
	g.n++
}

// inside reports whether the export has the range.
func (q *queue) inside(d *desc) bool {
	end := int64(q.export.Size)
	return d.off >= 0 && d.off <= end && d.size <= end-d.off
}

// fits is inside for what has a buffer.
func (q *queue) fits(d *desc) bool { return d.size <= maxIO && q.inside(d) }

// write executes all that write. A write is durable when it is done, so FUA asks for
// nothing more.
func (q *queue) write() {
	g := &q.group
	if g.n == 0 {
		return
	}
	q.export.Backend.WriteGroup(g.offs[:g.n], g.data[:g.n], g.errs[:g.n])
	for i := range g.n {
		q.complete(g.tags[i], len(g.data[i]), g.errs[i])
	}
}

// errBad is what a request gets that the driver should not have sent.
var errBad error = syscall.EIO

// execute executes what is no write. ZeroAt is durable on return, and keeps the space;
// TrimAt need not be durable unless FUA asks for it.
func (q *queue) execute(r *request) {
	n, err := 0, errBad
	switch b := q.export.Backend; {
	case r.op == opRead && q.fits(&r.desc):
		n, err = b.ReadAt(q.buffer(r.tag, r.size), r.off)
	case r.op == opFlush:
		err = b.Flush()
	case r.op == opDiscard && q.inside(&r.desc):
		if err = b.TrimAt(r.off, r.size); err == nil && r.fua {
			err = b.Flush()
		}
	case r.op == opWriteZeroes && q.inside(&r.desc):
		err = b.ZeroAt(r.off, r.size)
	}
	q.complete(r.tag, n, err)
}

// complete tells what has become of a request, of n bytes if it moves any.
func (q *queue) complete(tag uint16, n int, err error) {
	result := int32(n)
	if err != nil {
		result = -int32(errnoFor(err))
		q.stats.Failures++
	}
	q.submit(cmdCommit, tag, result)
}

// errnoFor is the error number for the block layer. It tells these from I/O errors.
func errnoFor(err error) syscall.Errno {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EOPNOTSUPP} {
		if errors.Is(err, errno) {
			return errno
		}
	}
	return syscall.EIO
}
