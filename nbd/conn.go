package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one connection. All but interrupt belongs to the goroutine that
// serves it.
type conn struct {
	s   *Server
	nc  net.Conn
	exp *export // what the client chose; nil until then

	in   []byte // the read buffer; in[r:w] is received and not yet consumed
	r, w int
	out  []byte // replies not yet sent; its capacity never grows

	option uint32 // under negotiation
	agreed terms

	group   group
	extents *extentList // nil without chunks
	n       counters

	serving atomic.Pointer[export] // exp, for Stats

	failures uint64 // requests that the backend failed; see report

	leaving bool // all requests from here on are refused

	mu      sync.Mutex // guards closing, and the deadlines of nc against it
	closing bool       // answer what is received, then end
}

func newConn(s *Server, nc net.Conn) *conn {
	return &conn{
		s:   s,
		nc:  nc,
		in:  s.buffers.Get().(*[bufferSize]byte)[:],
		out: s.buffers.Get().(*[bufferSize]byte)[:0],
	}
}

// close closes the socket and gives the buffers back.
func (c *conn) close() {
	c.nc.Close()
	c.s.buffers.Put((*[bufferSize]byte)(c.in))
	c.s.buffers.Put((*[bufferSize]byte)(c.out[:bufferSize]))
	c.in, c.out = nil, nil
}

// interrupt makes c end as soon as it has answered what it has received. Any
// goroutine may call it.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes a read that is waiting
}

func (c *conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// setDeadline bounds all further reads and writes, unless interrupt has done so.
func (c *conn) setDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.nc.SetDeadline(t)
	}
}

// end sends what is still to be sent, and returns err as ServeConn reports it.
func (c *conn) end(err error) error {
	flushErr := c.flush()
	switch {
	case c.isClosing(), err == errAborted, err == io.EOF:
		return nil
	case err == nil:
		err = flushErr
	case c.exp == nil && errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("not finished within %v", c.s.o.HandshakeTimeout)
	}
	if err == nil {
		return nil
	}
	if c.exp == nil {
		return fmt.Errorf("handshake: %w", err)
	}
	return fmt.Errorf("export %.80q: %w", c.exp.Name, err)
}

// need returns when the next n bytes of the stream are in the read buffer, of
// which n must not exceed the size. At the end of the stream the error is
// io.EOF if there is nothing left in the buffer, else io.ErrUnexpectedEOF.
func (c *conn) need(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	return c.fill(n)
}

// fill is need where the buffer holds less. Here alone, and in readFull and
// discard, the server waits for the client; so here all replies are sent.
func (c *conn) fill(n int) error {
	if err := c.flush(); err != nil {
		return err
	}
	if c.r+n > len(c.in) || c.w-c.r < smallMove {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		m, err := c.nc.Read(c.in[c.w:])
		c.w += m
		if err != nil && c.w-c.r < n {
			if c.lastCall(err) {
				continue
			}
			if err == io.EOF && c.w > c.r {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// lastCall is asked when err has ended a read. If that was an interrupt it
// returns true, once: what a client has sent already gets its answer, a refusal,
// instead of a closed connection. The client has until the next deadline.
func (c *conn) lastCall(err error) bool {
	if c.leaving || !errors.Is(err, os.ErrDeadlineExceeded) || !c.isClosing() {
		return false
	}
	c.leaving = true
	c.nc.SetReadDeadline(time.Now().Add(leaveTime))
	return true
}

// leaveTime is for how long a connection answers refusals before it ends.
const leaveTime = 50 * time.Millisecond

// smallMove is how many bytes are moved to the front of the read buffer to
// make room even when there is enough.
const smallMove = 1024

// readFull consumes len(p) bytes of the stream into p, past the buffer where
// it holds less.
func (c *conn) readFull(p []byte) error {
	n := copy(p, c.in[c.r:c.w])
	c.r += n
	if n == len(p) {
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	_, err := io.ReadFull(c.nc, p[n:])
	return midway(err)
}

// discard consumes n bytes of the stream.
func (c *conn) discard(n int) error {
	if buffered := c.w - c.r; n > buffered {
		n -= buffered
		c.r, c.w = 0, 0
		if err := c.flush(); err != nil {
			return err
		}
		for n > 0 {
			m, err := c.nc.Read(c.in[:min(n, len(c.in))])
			n -= m
			if err != nil && n > 0 {
				return midway(err)
			}
		}
		return nil
	}
	c.r += n
	return nil
}

// midway returns err, an end of stream as the unexpected one that it is inside
// a message.
func midway(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// room makes sure that n more bytes, at most the buffer's size, can be
// appended to out.
func (c *conn) room(n int) error {
	if len(c.out)+n <= cap(c.out) {
		return nil
	}
	return c.flush()
}

// flush sends the replies that have gathered. After an error they are gone.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err
}
