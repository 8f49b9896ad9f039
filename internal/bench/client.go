package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// load is a closed loop on an NBD server: on each connection, depth requests are
// always under way. It is light: a thread for each connection that sleeps in the
// kernel and not in Go's poller, and requests for all replies that have come leave
// in one write.
type load struct {
	socket      string
	connections int
	depth       int
	block       int
	write       bool
	sequential  bool
	each        int64 // requests on each connection; 0: until the time is over
}

// name is that of a row or line for l.
func (l load) name() string {
	what := "read"
	if l.write {
		what = "write"
	}
	return fmt.Sprintf("NBD %d KiB %s, %d x depth %d", l.block>>10, what, l.connections, l.depth)
}

// unit is what the rate of l counts: see server.side.
func (l load) unit() string {
	if l.block > 4096 {
		return "B/s"
	}
	return "op/s"
}

// fill writes an export of imageSize once. What is last of it may be smaller than
// what is written at once, and is written by nobody.
func fill(socket string) error {
	const block = 1 << 20
	l := load{socket: socket, connections: 1, depth: 4, block: block, write: true, sequential: true, each: imageSize/block - 1}
	_, _, err := l.run(0)
	return err
}

// run returns how many requests were answered, and in what time.
func (l load) run(d time.Duration) (n int64, elapsed time.Duration, err error) {
	var stop atomic.Bool
	var total atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, l.connections)
	var conns []*nbdConn
	for range l.connections {
		c, err := dial(l.socket)
		if err != nil {
			return 0, 0, err
		}
		defer c.close()
		conns = append(conns, c)
	}
	start := time.Now()
	for i, c := range conns {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var n int64
			n, errs[i] = l.drive(c, uint64(i), &stop)
			total.Add(n)
		})
	}
	if l.each == 0 {
		time.Sleep(d)
		stop.Store(true)
	}
	wg.Wait()
	return total.Load(), time.Since(start), errors.Join(errs...)
}

func (l load) drive(c *nbdConn, seed uint64, stop *atomic.Bool) (answered int64, err error) {
	rng := rand.New(rand.NewPCG(seed, 7))
	size := 28
	if l.write {
		size += l.block
	}
	batch := make([]byte, 0, size*l.depth)
	for i := range batch[:cap(batch)] {
		batch[:cap(batch)][i] = byte(rng.Uint32()) // the headers are overwritten
	}
	blocks := c.size / int64(l.block)
	next := int64(seed) * blocks / int64(l.connections)
	request := func() {
		off := rng.Int64N(blocks)
		if l.sequential {
			off = next % blocks
			next++
		}
		at := len(batch)
		batch = batch[:at+size]
		b := batch[at:]
		binary.BigEndian.PutUint32(b, 0x25609513)
		binary.BigEndian.PutUint32(b[4:], 0) // flags, type
		if l.write {
			b[7] = 1
		}
		binary.BigEndian.PutUint64(b[16:], uint64(off*int64(l.block)))
		binary.BigEndian.PutUint32(b[24:], uint32(l.block))
	}
	sent := int64(0)
	for range l.depth {
		request()
		sent++
	}
	reply := 16
	if !l.write {
		reply += l.block
	}
	for under := 0; ; {
		if err := c.send(batch); err != nil {
			return answered, err
		}
		under += len(batch) / size
		batch = batch[:0]
		for first := true; first || c.w-c.r >= reply; first = false {
			if err := c.reply(reply); err != nil {
				return answered, err
			}
			answered++
			under--
			if !stop.Load() && (l.each == 0 || sent < l.each) {
				request()
				sent++
			}
		}
		if under == 0 && len(batch) == 0 {
			return answered, nil
		}
	}
}

// nbdConn is a connection in transmission, over a socket that blocks.
type nbdConn struct {
	fd   int
	in   []byte // in[r:w] has come
	r, w int
	size int64
}

func (c *nbdConn) close() { syscall.Close(c.fd) }

func (c *nbdConn) send(p []byte) error {
	for len(p) > 0 {
		n, err := syscall.Write(c.fd, p)
		if err != nil && err != syscall.EINTR {
			return os.NewSyscallError("write", err)
		}
		p = p[max(n, 0):]
	}
	return nil
}

// need returns the next n bytes, which stay to be read.
func (c *nbdConn) need(n int) ([]byte, error) {
	if c.r+n > len(c.in) {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		m, err := syscall.Read(c.fd, c.in[c.w:])
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return nil, os.NewSyscallError("read", err)
		case m == 0:
			return nil, io.ErrUnexpectedEOF
		}
		c.w += max(m, 0)
	}
	return c.in[c.r : c.r+n], nil
}

// reply consumes a reply of n bytes.
func (c *nbdConn) reply(n int) error {
	head, err := c.need(16)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head) != 0x67446698 || binary.BigEndian.Uint32(head[4:]) != 0 {
		return fmt.Errorf("reply % x", head)
	}
	return c.skip(n)
}

// skip consumes n bytes. Nobody looks at them, so they are not gathered: what comes
// goes to the front of the buffer, which is in the cache.
func (c *nbdConn) skip(n int) error {
	for {
		if c.w-c.r >= n {
			c.r += n
			return nil
		}
		n -= c.w - c.r
		c.r, c.w = 0, 0
		if _, err := c.need(1); err != nil {
			return err
		}
	}
}

// dial connects to the default export, by the oldest way that all servers know.
func dial(socket string) (*nbdConn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	c := &nbdConn{fd: fd, in: make([]byte, 1<<20)}
	if err := c.greet(socket); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *nbdConn) greet(socket string) error {
	if err := syscall.Connect(c.fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if _, err := c.need(18); err != nil {
		return err
	}
	c.r += 18
	msg := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	msg = append(msg, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	if err := c.send(msg); err != nil {
		return err
	}
	export, err := c.need(10)
	if err != nil {
		return err
	}
	c.size = int64(binary.BigEndian.Uint64(export))
	c.r += 10
	return nil
}
