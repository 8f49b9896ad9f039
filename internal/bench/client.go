package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// load is a closed loop on an NBD server: on each connection, depth requests are
// always under way. It is light: one goroutine a connection, requests for all
// replies that have come leave in one write.
type load struct {
	socket      string
	connections int
	depth       int
	block       int
	write       bool
	sequential  bool
}

// run returns requests answered a second.
func (l load) run(d time.Duration) (perSecond float64, err error) {
	var stop atomic.Bool
	var total atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, l.connections)
	var conns []*nbdConn
	for range l.connections {
		c, err := dial(l.socket)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	start := time.Now()
	for i, c := range conns {
		wg.Go(func() {
			var n int64
			n, errs[i] = l.drive(c, uint64(i), &stop)
			total.Add(n)
		})
	}
	time.Sleep(d)
	stop.Store(true)
	wg.Wait()
	return float64(total.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}

func (l load) drive(c *nbdConn, seed uint64, stop *atomic.Bool) (answered int64, err error) {
	rng := rand.New(rand.NewPCG(seed, 7))
	size := 28
	if l.write {
		size += l.block
	}
	batch := make([]byte, 0, size*l.depth)
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
		binary.BigEndian.PutUint16(b[6:], 0)
		if l.write {
			binary.BigEndian.PutUint16(b[6:], 1)
		}
		binary.BigEndian.PutUint64(b[16:], uint64(off*int64(l.block)))
		binary.BigEndian.PutUint32(b[24:], uint32(l.block))
	}
	for range l.depth {
		request()
	}
	reply := 16
	if !l.write {
		reply += l.block
	}
	for under := 0; ; {
		if _, err := c.Write(batch); err != nil {
			return answered, err
		}
		under += len(batch) / size
		batch = batch[:0]
		for first := true; first || c.in.Buffered() >= reply; first = false {
			if err := c.reply(reply); err != nil {
				return answered, err
			}
			answered++
			under--
			if !stop.Load() {
				request()
			}
		}
		if under == 0 && len(batch) == 0 {
			return answered, nil
		}
	}
}

// nbdConn is a connection in transmission.
type nbdConn struct {
	net.Conn
	in   *bufio.Reader
	size int64
}

func (c *nbdConn) reply(n int) error {
	head, err := c.in.Peek(16)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head) != 0x67446698 || binary.BigEndian.Uint32(head[4:]) != 0 {
		return fmt.Errorf("reply % x", head)
	}
	_, err = c.in.Discard(n)
	return err
}

// dial connects to the default export, by the oldest way that all servers know.
func dial(socket string) (*nbdConn, error) {
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &nbdConn{Conn: nc, in: bufio.NewReaderSize(nc, 1<<20)}
	var hello [18]byte
	if _, err := io.ReadFull(c.in, hello[:]); err != nil {
		return nil, err
	}
	msg := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	msg = append(msg, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	var export [10]byte
	if _, err := io.ReadFull(c.in, export[:]); err != nil {
		return nil, err
	}
	c.size = int64(binary.BigEndian.Uint64(export[:]))
	return c, nil
}
