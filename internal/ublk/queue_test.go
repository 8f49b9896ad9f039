package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bttnbd/bttnbd/nbd"
	"github.com/bttnbd/bttnbd/nbd/nbdtest"
)

// A driver is the other side of a queue in memory: what ublk_drv writes, and what it reads.
type driver struct {
	*queue
	seen uint32 // SQEs
}

const testDepth, testSize = 8, 1 << 20

// newDriver makes a queue without a kernel.
func newDriver(b nbd.Backend) *driver {
	const entries = 2 * testDepth
	zero := func() *uint32 { return new(uint32) }
	q := &queue{
		depth: testDepth, live: testDepth, export: &nbd.Export{Size: testSize, Backend: b},
		descs: make([]byte, testDepth*descSize), bufs: make([]byte, testDepth*maxIO),
		group:  group{0, make([]uint16, testDepth), make([]int64, testDepth), make([][]byte, testDepth), make([]error, testDepth)},
		others: make([]request, 0, testDepth),
		ring: &ring{
			fd: -1, sqeSize: sqeSize, sqes: make([]byte, entries*sqeSize), sqMask: entries - 1,
			indices: make([]byte, 2*entries*cqeSize), cqMask: 2*entries - 1,
			sqHead: zero(), sqTail: zero(), cqHead: zero(), cqTail: zero(),
		},
	}
	return &driver{queue: q}
}

// completes lets a command complete.
func (d *driver) completes(data uint64, res int32) {
	cqe := d.ring.indices[int(*d.ring.cqTail&d.ring.cqMask)*cqeSize:]
	ne.PutUint64(cqe, data)
	ne.PutUint32(cqe[8:], uint32(res))
	*d.ring.cqTail++
}

// sends gives a request to the queue.
func (d *driver) sends(tag uint16, op uint32, sector uint64, sectors uint32, data []byte) {
	b := d.descs[int(tag)*descSize:]
	ne.PutUint32(b, op)
	ne.PutUint32(b[4:], sectors)
	ne.PutUint64(b[8:], sector)
	copy(d.buffer(tag, maxIO), data)
	d.completes(uint64(tag), 0)
}

// round executes what was sent, and returns the results by tag.
func (d *driver) round(t *testing.T) map[uint16]int32 {
	t.Helper()
	if err := d.collect(); err != nil {
		t.Fatal(err)
	}
	d.write()
	for i := range d.others {
		d.execute(&d.others[i])
	}
	results := map[uint16]int32{}
	for ; d.seen != d.ring.tail; d.seen++ {
		sqe := d.ring.sqes[int(d.seen&d.ring.sqMask)*sqeSize:]
		tag := ne.Uint16(sqe[sqeCmd+2:])
		if sqe[0] != opUringCmd || ne.Uint32(sqe[sqeCmdOp:]) != cmdCommit || ne.Uint64(sqe[sqeUserData:]) != uint64(tag) ||
			ne.Uint64(sqe[sqeCmd+8:]) != address(d.buffer(tag, maxIO)) {
			t.Errorf("a command of tag %d: %x", tag, sqe[:sqeSize])
		}
		if _, twice := results[tag]; twice {
			t.Errorf("tag %d is answered twice", tag)
		}
		results[tag] = int32(ne.Uint32(sqe[sqeCmd+4:]))
	}
	return results
}

func want(t *testing.T, what string, got, want map[uint16]int32) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: results by tag %v, want %v", what, got, want)
	}
}

// Goal: requests that come together are answered together, each once: those that write
// are one group, reads get the bytes of their place into their own buffer, and zeroing,
// discarding and flushing reach the backend.
func TestRound(t *testing.T) {
	m := nbdtest.NewMemory(testSize)
	d := newDriver(m)
	one, two := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 8192)
	d.sends(3, opWrite, 8, 8, one)
	d.sends(0, opFlush, 0, 0, nil)
	d.sends(5, opWrite|ioFUA, 16, 16, two)
	want(t, "writes", d.round(t), map[uint16]int32{3: 4096, 5: 8192, 0: 0})
	if !slices.Equal(m.Groups(), []int{2}) || m.Calls().Flush != 1 {
		t.Errorf("groups of %v, %d flushes", m.Groups(), m.Calls().Flush)
	}
	d.sends(1, opRead, 15, 2, nil)
	d.sends(2, opRead, 0, 1, bytes.Repeat([]byte{9}, 512))
	want(t, "reads", d.round(t), map[uint16]int32{1: 1024, 2: 512})
	if got := d.buffer(1, 1024); !bytes.Equal(got, append(bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)...)) {
		t.Errorf("read %x", got)
	}
	if got := d.buffer(2, 512); !bytes.Equal(got, make([]byte, 512)) {
		t.Errorf("read %x", got)
	}
	d.sends(4, opWriteZeroes, 16, 8, nil)
	d.sends(6, opDiscard, 24, 8, nil)
	d.sends(7, opDiscard|ioFUA, 0, 2048, nil)
	want(t, "zeroes", d.round(t), map[uint16]int32{4: 0, 6: 0, 7: 0})
	if c := m.Calls(); c.Zero != 1 || c.Trim != 2 || c.Flush != 2 {
		t.Errorf("calls: %+v", c)
	}
	if got, want := d.stats, (Stats{Reads: 2, Writes: 2, Flushes: 1, Discards: 2, WriteZeroes: 1, FUA: 2}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// Goal: an error of the backend is that of its own request, with the number that the
// block layer knows; and what cannot be is refused and reaches no backend.
func TestRoundWithErrors(t *testing.T) {
	m := nbdtest.NewMemory(testSize)
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{
		{syscall.EIO, syscall.EIO},
		{fmt.Errorf("arena 0: %w", syscall.ENOSPC), syscall.ENOSPC},
		{syscall.EOPNOTSUPP, syscall.EOPNOTSUPP},
		{errors.Join(syscall.ENOSPC, syscall.EIO), syscall.EIO},
		{syscall.EINVAL, syscall.EIO},
		{errors.New("something"), syscall.EIO},
	} {
		d := newDriver(&nbdtest.Faulty{Backend: m, Fault: func(_ nbdtest.Op, off, _ int64) error {
			if off == 0 {
				return tc.err
			}
			return nil
		}})
		d.sends(0, opWrite, 0, 1, nil)
		d.sends(1, opWrite, 8, 1, nil)
		d.sends(2, opRead, 0, 1, nil)
		d.sends(3, opRead, 8, 1, nil)
		d.sends(4, opDiscard, 0, 1, nil)
		d.sends(5, opWriteZeroes, 0, 1, nil)
		bad := -int32(tc.want)
		want(t, tc.err.Error(), d.round(t), map[uint16]int32{0: bad, 1: 512, 2: bad, 3: 512, 4: bad, 5: bad})
		if d.stats.Failures != 4 {
			t.Errorf("%d failures counted", d.stats.Failures)
		}
	}
	d := newDriver(m)
	before := m.Calls()
	d.sends(0, opWrite, testSize/512, 1, nil)
	d.sends(1, opRead, testSize/512-1, 2, nil)
	d.sends(2, opRead, 0, maxIO/512+1, nil)
	d.sends(3, opDiscard, testSize/512, 1, nil)
	d.sends(4, opWriteZeroes, 1<<54, 1, nil) // the offset in bytes is negative
	d.sends(5, 13, 0, 1, nil)
	bad := -int32(syscall.EIO)
	want(t, "nonsense", d.round(t), map[uint16]int32{0: bad, 1: bad, 2: bad, 3: bad, 4: bad, 5: bad})
	if m.Calls() != before {
		t.Errorf("the backend was asked: %+v", m.Calls())
	}
}

// Goal: a queue ends when all its commands are taken away, or when it is told to, and
// then executes no more; and what it does not understand is an error.
func TestQueueEnds(t *testing.T) {
	m := nbdtest.NewMemory(testSize)
	d := newDriver(m)
	for tag := range uint64(testDepth) {
		d.completes(tag, -int32(unix.ENODEV))
	}
	want(t, "aborted", d.round(t), nil)
	if d.live != 0 || d.leaving {
		t.Errorf("%d commands left, leaving %v", d.live, d.leaving)
	}
	d = newDriver(m)
	d.completes(wakeData, unix.POLLIN)
	want(t, "told to leave", d.round(t), nil)
	if !d.leaving || d.live != testDepth {
		t.Errorf("%d commands left, leaving %v", d.live, d.leaving)
	}
	d = newDriver(m)
	d.completes(2, -int32(unix.EINVAL))
	if err := d.collect(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a command that is refused: %v", err)
	}
}

// Goal: a backend on mapped memory can turn a fault of it into an error: Go would end the
// process else.
func TestFaultsAreTheBackends(t *testing.T) {
	armed := false
	d := newDriver(&nbdtest.Faulty{Backend: nbdtest.NewMemory(testSize), Fault: func(nbdtest.Op, int64, int64) error {
		armed = debug.SetPanicOnFault(true)
		return nil
	}})
	d.sends(0, opRead, 0, 1, nil)
	d.completes(wakeData, unix.POLLIN)
	if err := d.serve(); !errors.Is(err, unix.EBADF) { // there is no ring to tell the result to
		t.Fatal(err)
	}
	if !armed || debug.SetPanicOnFault(false) {
		t.Errorf("a fault would end the process: %v", !armed)
	}
}

// Goal: the data path makes no garbage: a server for the machine's own memory must not
// want any.
func TestRoundAllocatesNothing(t *testing.T) {
	d := newDriver(quiet{})
	n := testing.AllocsPerRun(100, func() {
		for tag := range uint16(testDepth) {
			op := []uint32{opWrite, opRead, opFlush, opDiscard}[tag%4]
			d.sends(tag, op, uint64(tag), 1, nil)
		}
		if d.collect() != nil {
			panic("collect")
		}
		d.write()
		for i := range d.others {
			d.execute(&d.others[i])
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// quiet is a backend that does nothing.
type quiet struct{ nbd.Backend }

func (quiet) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (quiet) WriteGroup([]int64, [][]byte, []error) {}
func (quiet) TrimAt(_, _ int64) error               { return nil }
func (quiet) Flush() error                          { return nil }
