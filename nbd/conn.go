package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// conn is one connection. All but interrupt and cut belongs to the goroutine
// that serves it.
type conn struct {
	s     *Server
	id    uint64    // rises with time
	from  string    // the peer, as MaxConnectionsPerPeer counts it; "" for none
	since time.Time // when it was accepted
	wire  wire
	tls   *tls.Conn // over wire; nil until STARTTLS
	stage stage     // between the two
	exp   *export   // what the client chose; nil until then

	ws   *workspace // nil while the connection waits for the next message
	in   []byte     // its read buffer; in[r:w] is received and not yet consumed
	r, w int
	out  []byte // replies not yet sent; its capacity never grows
	dst  []byte // where the next bytes go instead, if not nil

	between  bool // the next byte begins a message
	deadline byte // the read deadline that is set: noDeadline …

	option uint32 // under negotiation
	agreed terms

	group   *group      // of the workspace
	extents *extentList // of the workspace
	n       counters

	chosen  atomic.Pointer[export] // exp, from the moment SetExports has to wait for c
	serving atomic.Pointer[export] // exp, for Stats

	failures uint64 // requests that the backend failed; see report

	refusedPlain bool // an option was refused for want of TLS

	leaving bool // all requests from here on are refused

	mu      sync.Mutex    // guards closing, and the read deadline of wire against it
	closing bool          // answer what is received, then end
	stop    chan struct{} // closed with closing
}

// newConn returns a connection over nc.
func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, since: time.Now(), stop: make(chan struct{})}
	c.wire.init(nc)
	c.stage.c = c
	c.attach()
	return c
}

// release gives all memory back.
func (c *conn) release() {
	c.detach()
	c.stage.detach()
}

// close closes the socket, with TLS after telling the client that this is the
// end and no attack.
func (c *conn) close() {
	if c.tls != nil {
		c.wire.hurry = true
		c.tls.Close()
	}
	c.wire.Close()
}

// interrupt makes c end as soon as it has answered what it has received. Any
// goroutine may call it.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.closing = true
		close(c.stop)
	}
	c.wire.SetReadDeadline(time.Unix(1, 0)) // wakes a read that is waiting
}

// cut ends c as it is. Any goroutine may call it.
func (c *conn) cut() { c.wire.Close() }

func (c *conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// setReadDeadline bounds all further reads, unless interrupt has done so.
func (c *conn) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.wire.SetReadDeadline(t)
	}
}

// end sends what is still to be sent, and returns err as ServeConn reports it.
func (c *conn) end(err error) error {
	flushErr := c.flush()
	if c.refusedPlain && c.tls == nil { // its user may only see that it fails
		c.s.complain(nil, c.wire.Conn, "client refused: it does not use TLS")
	}
	switch {
	case c.isClosing(), err == errAborted, err == io.EOF:
		return nil
	case err == nil:
		err = flushErr
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = c.tooSlow()
	}
	if err == nil {
		return nil
	}
	if c.exp == nil {
		return fmt.Errorf("handshake: %w", err)
	}
	return fmt.Errorf("export %.80q: %w", c.exp.Name, err)
}

// tooSlow says which deadline has passed.
func (c *conn) tooSlow() error {
	switch {
	case c.exp == nil:
		return fmt.Errorf("not finished within %v", c.s.o.HandshakeTimeout)
	case c.deadline == idleDeadline:
		return fmt.Errorf("no request within %v", c.s.o.IdleTimeout)
	}
	return fmt.Errorf("the client did not go on with a message within %v", c.s.o.WriteTimeout)
}

// next is need between two messages. Here alone an idle client waits, and
// holds nothing.
func (c *conn) next(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	c.between = c.r == c.w
	err := c.fill(n)
	c.between = false
	return err
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

// fill is need where the buffer holds less.
func (c *conn) fill(n int) error {
	if err := c.beforeRead(); err != nil {
		return err
	}
	if c.between && c.exp != nil && c.ws != nil && c.ws.piece != largePiece && len(c.out) == 0 {
		c.detach() // there may be room for a large one again
	}
	if c.r+n > len(c.in) || c.w-c.r < smallMove {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		m, err := c.receive()
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
	c.settle()
	return nil
}

// beforeRead sends all replies. It comes before every read that may have to
// wait for the client; with TLS the stage calls it, since bytes may be there
// already.
func (c *conn) beforeRead() error {
	if c.tls != nil {
		return nil
	}
	return c.flush()
}

// receive reads once, into dst or into the read buffer.
func (c *conn) receive() (int, error) {
	if c.tls != nil {
		return c.receiveTLS()
	}
	return c.wire.receive(c)
}

// space is where a read goes.
func (c *conn) space() []byte {
	if c.dst != nil {
		return c.dst
	}
	c.attach()
	return c.in[c.w:]
}

// Read deadlines of transmission. That of the handshake is set from outside.
const (
	noDeadline = iota
	idleDeadline
	stallDeadline
)

// park is called before a read waits. A connection that owes nothing and is owed
// nothing lets its workspace go; one in the middle of a message gets a deadline.
func (c *conn) park() {
	idle := c.between && c.r == c.w && c.dst == nil
	if idle && c.wire.raw != nil {
		c.detach()
	}
	if c.exp == nil {
		return
	}
	kind, d := byte(stallDeadline), c.s.o.WriteTimeout
	if idle {
		kind, d = idleDeadline, c.s.o.IdleTimeout
	}
	if d > 0 && c.deadline != kind {
		c.deadline = kind
		c.setReadDeadline(time.Now().Add(d))
	}
}

// settle lifts the deadline of a read that is over.
func (c *conn) settle() {
	if c.deadline != noDeadline {
		c.setReadDeadline(time.Time{})
		c.deadline = noDeadline
	}
}

// lastCall is asked when err has ended a read. If that was an interrupt it
// returns true, once: what a client has sent already gets its answer, a refusal,
// instead of a closed connection. The client has until the next deadline.
func (c *conn) lastCall(err error) bool {
	if c.leaving || !errors.Is(err, os.ErrDeadlineExceeded) || !c.isClosing() {
		return false
	}
	c.leaving = true
	c.wire.SetReadDeadline(time.Now().Add(leaveTime))
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
	if err := c.beforeRead(); err != nil {
		return err
	}
	defer func() { c.dst = nil }()
	for n < len(p) {
		c.dst = p[n:]
		m, err := c.receive()
		n += m
		if err != nil && n < len(p) {
			return midway(err)
		}
	}
	c.settle()
	return nil
}

// discard consumes n bytes of the stream.
func (c *conn) discard(n int) error {
	for n > 0 {
		m := min(n, len(c.in))
		if err := c.need(m); err != nil {
			return midway(err)
		}
		c.r += m
		n -= m
	}
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
	c.replied()
	if len(c.out) == 0 {
		return nil
	}
	err := c.send(c.out)
	c.out = c.out[:0]
	return err
}

// send sends p, which the client has WriteTimeout to take.
func (c *conn) send(p []byte) (err error) {
	if c.tls != nil {
		_, err = c.tls.Write(p)
	} else {
		_, err = c.wire.Write(p)
	}
	c.wire.settle()
	return err
}
