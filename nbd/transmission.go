package nbd

import "fmt"

// The data path, in execution order.
//
//	transmission   takes the next request out of the read buffer, waiting for
//	               the client (and sending all replies before) if there is none;
//	               busypoll.go: whether to sleep for it
//	execute        validate.go judges it; its handler runs it
//	read           (read.go) Backend.ReadAt straight into the reply buffer, behind
//	               its header
//	  readLarge    … in pieces, when it does not fit
//	  readChunks   … with holes for what Backend.Extents tells to be zeros
//	write          as many WRITEs as are complete in the read buffer, straight
//	               from there, as one Backend.WriteGroup
//	  writeLarge   … in pieces, when it does not fit
//	flush, trim, cache, writeZeroes
//	blockStatus    (status.go) Backend.Extents
//	finish, fail   (reply.go) append the reply
//
// Requests are executed in the order in which they arrive, one at a time. So a
// READ sees the WRITEs in front of it, and no handler needs to look for
// conflicts. Nothing here allocates or logs, and nobody reads a clock unless asked to
// (latency.go).

// transmission serves requests until the client disconnects (nil), hangs up
// (io.EOF) or cannot be followed any more.
func (c *conn) transmission() error {
	var req request
	size := c.agreed.requestSize()
	c.wire.poll.all = c.s.busyPoll // not for who may yet turn out to be nobody
	for {
		if err := c.next(size); err != nil {
			return err
		}
		if !c.decode(&req) {
			return fmt.Errorf("request: %w", errMagic)
		}
		c.r += size
		c.n.request(req.cmd)
		if req.cmd == NBD_CMD_DISC {
			return nil
		}
		if err := c.execute(&req); err != nil {
			return err
		}
	}
}

// decode reads the request at the front of the read buffer, which holds a whole
// header. It returns false when that has another magic than was agreed.
func (c *conn) decode(req *request) bool {
	if c.agreed.extended {
		return req.decodeExtended(c.in[c.r:])
	}
	return req.decode(c.in[c.r:])
}

// execute runs one request and answers it. An error ends the connection.
func (c *conn) execute(req *request) error {
	why := c.exp.validate(req, &c.agreed)
	if l := c.exp.limits.Load(); l != nil {
		if err := c.pace(l, req, why == nil); err != nil {
			return err
		}
	}
	if why != nil || c.leaving {
		return c.reject(req, why)
	}
	switch {
	case req.cmd == NBD_CMD_FLUSH:
		return c.finish(req, c.exp.Backend.Flush())
	case req.length == 0 && req.cmd != NBD_CMD_BLOCK_STATUS:
		return c.finish(req, nil) // the backend knows no empty ranges
	}
	switch req.cmd {
	case NBD_CMD_READ:
		return c.read(req)
	case NBD_CMD_WRITE:
		return c.write(req)
	case NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES:
		return c.clear(req)
	case NBD_CMD_CACHE:
		return c.finish(req, nil) // a hint of which no backend has use
	case NBD_CMD_BLOCK_STATUS:
		return c.blockStatus(req)
	}
	panic("nbd: validate let an unknown command pass")
}

// reject answers a request that the backend is not to see. Its payload is on its
// way all the same.
func (c *conn) reject(req *request, why *refusal) error {
	if n := c.agreed.payload(req); n > 0 {
		if n > c.agreed.maxRefused(c.exp) {
			return fmt.Errorf("command %d with a payload of %d bytes, far beyond the maximum payload %d", req.cmd, n, c.exp.MaxPayload)
		}
		if err := c.discard(int(n)); err != nil {
			return err
		}
	}
	if c.leaving {
		why = &shuttingDown
	}
	return c.fail(req, why.errno, why.text)
}

// group is a run of WRITE requests on its way to the backend.
type group struct {
	n    int
	reqs []request
	offs []int64
	data [][]byte // in the read buffer
	errs []error
}

// newGroup returns a group for at most size requests.
func newGroup(size int) group {
	return group{reqs: make([]request, size), offs: make([]int64, size), data: make([][]byte, size), errs: make([]error, size)}
}

// write commits the WRITE req and those that are complete behind it.
func (c *conn) write(req *request) error {
	if int(req.length) > len(c.in) {
		return c.writeLarge(req)
	}
	if err := c.need(int(req.length)); err != nil {
		return midway(err)
	}
	g := c.group
	g.n = 0
	c.join(req)
	for g.n < len(g.reqs) && c.nextWrite(req) {
		c.join(req)
	}
	c.n.commit(g.n)
	c.exp.Backend.WriteGroup(g.offs[:g.n], g.data[:g.n], g.errs[:g.n])
	for i := range g.n {
		if err := c.finish(&g.reqs[i], g.errs[i]); err != nil {
			return err
		}
	}
	return nil
}

// join adds req, whose payload is next in the read buffer, to the group.
func (c *conn) join(req *request) {
	g, n := c.group, int(req.length)
	g.reqs[g.n] = *req
	g.offs[g.n] = int64(req.offset)
	g.data[g.n] = c.in[c.r : c.r+n : c.r+n]
	g.errs[g.n] = nil
	g.n++
	c.r += n
}

// nextWrite takes the next request, if it is a WRITE that is valid and
// complete in the read buffer. Everything else is left to transmission.
func (c *conn) nextWrite(req *request) bool {
	size := c.agreed.requestSize()
	have := c.w - c.r - size
	if have < 0 || !c.decode(req) || req.cmd != NBD_CMD_WRITE {
		return false
	}
	if req.length == 0 || req.length > uint64(have) || c.exp.validate(req, &c.agreed) != nil || c.exp.limits.Load() != nil {
		return false
	}
	c.r += size
	c.n.request(req.cmd)
	return true
}

// writeLarge commits a WRITE that does not fit the read buffer, piece by piece
// as it arrives: large ones in a buffer of their own, or where memory is short as
// much at a time as the read buffer holds. After an error the rest is skipped.
func (c *conn) writeLarge(req *request) error {
	size := c.ws.piece
	var buf []byte
	if size == largePiece && c.s.take(pieceSize, false) {
		defer c.s.give(pieceSize)
		b := piecePool.Get().(*[pieceSize]byte)
		defer piecePool.Put(b)
		size, buf = pieceSize, b[:]
	}
	off, rest := int64(req.offset), int(req.length)
	for rest > 0 {
		n := piece(off, rest, size)
		p, err := c.payload(buf, n)
		if err != nil {
			return err
		}
		off, rest = off+int64(n), rest-n
		if err := c.writeOne(p, off-int64(n)); err != nil {
			if err := c.discard(rest); err != nil {
				return err
			}
			return c.finish(req, err)
		}
	}
	return c.finish(req, nil)
}

// payload consumes n bytes of the stream, and returns them in buf, or in the read
// buffer if there is none.
func (c *conn) payload(buf []byte, n int) ([]byte, error) {
	if buf != nil {
		return buf[:n], c.readFull(buf[:n])
	}
	if err := c.need(n); err != nil {
		return nil, midway(err)
	}
	p := c.in[c.r : c.r+n : c.r+n]
	c.r += n
	return p, nil
}

// writeOne commits p at off as a group of its own.
func (c *conn) writeOne(p []byte, off int64) error {
	g := c.group
	g.offs[0], g.data[0], g.errs[0] = off, p, nil
	c.n.commit(1)
	c.exp.Backend.WriteGroup(g.offs[:1], g.data[:1], g.errs[:1])
	g.data[0] = nil // p goes back to the pool
	return g.errs[0]
}

// piece returns how much of rest bytes at off to move at once: all if it fits
// a piece of that size, a power of two, else up to its next multiple.
func piece(off int64, rest, size int) int {
	if rest <= size {
		return rest
	}
	return size - int(off)&(size-1)
}

// clear executes TRIM and WRITE_ZEROES. Both can take long, and the client may have
// gone meanwhile: a server that is to end does not finish one that has slices left.
//
// ZeroAt is durable on return, so FUA asks for nothing more, and keeps the space,
// so neither does NO_HOLE. TrimAt need not be durable unless FUA asks for it.
func (c *conn) clear(req *request) (err error) {
	c.wire.calls.Announce() // a slice may be much work, and no system call
	off, rest := int64(req.offset), int64(req.length)
	for rest > 0 && err == nil {
		n := min(rest, sliceSize-off%sliceSize)
		if req.cmd == NBD_CMD_TRIM {
			err = c.exp.Backend.TrimAt(off, n)
		} else {
			err = c.exp.Backend.ZeroAt(off, n)
		}
		off, rest = off+n, rest-n
		if rest > 0 && err == nil && c.isClosing() {
			return c.fail(req, shuttingDown.errno, shuttingDown.text)
		}
	}
	if err == nil && req.cmd == NBD_CMD_TRIM && req.flags&NBD_CMD_FLAG_FUA != 0 {
		err = c.exp.Backend.Flush()
	}
	return c.finish(req, err)
}

// pace waits until the limits of the export let req pass. What moves many bytes
// pays for them a piece at a time, so that others come between.
func (c *conn) pace(l *limits, req *request, valid bool) error {
	if err := c.pay(l.ops, 1); err != nil {
		return err
	}
	if !valid || req.cmd != NBD_CMD_READ && req.cmd != NBD_CMD_WRITE {
		return nil
	}
	for rest := int(req.length); rest > 0; rest -= paySize {
		if err := c.pay(l.bytes, min(rest, paySize)); err != nil {
			return err
		}
	}
	return nil
}
