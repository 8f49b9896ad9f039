package nbd

import (
	"fmt"
	"io"
)

// The data path, in execution order.
//
//	transmission   takes the next request out of the read buffer, waiting for
//	               the client (and sending all replies before) if there is none
//	execute        validate.go judges it; its handler runs it
//	read           Backend.ReadAt straight into the reply buffer, behind its header
//	  readLarge    … in pieces, when it does not fit
//	write          as many WRITEs as are complete in the read buffer, straight
//	               from there, as one Backend.WriteGroup
//	  writeLarge   … in pieces, when it does not fit
//	flush, trim, cache, writeZeroes
//	finish, answer append the reply
//
// Requests are executed in the order in which they arrive, one at a time. So a
// READ sees the WRITEs in front of it, and no handler needs to look for
// conflicts. Nothing here allocates, logs, or reads a clock.

// transmission serves requests until the client disconnects (nil), hangs up
// (io.EOF) or cannot be followed any more.
func (c *conn) transmission() error {
	var req request
	for {
		if err := c.need(requestSize); err != nil {
			return err
		}
		if !req.decode(c.in[c.r:]) {
			return fmt.Errorf("request: %w", errMagic)
		}
		c.r += requestSize
		c.n.request(req.cmd)
		if req.cmd == NBD_CMD_DISC {
			return nil
		}
		if err := c.execute(&req); err != nil {
			return err
		}
	}
}

// execute runs one request and answers it. An error ends the connection.
func (c *conn) execute(req *request) error {
	if e := c.exp.validate(req); e != 0 {
		return c.reject(req, e)
	}
	switch {
	case req.cmd == NBD_CMD_FLUSH:
		return c.finish(req, c.exp.Backend.Flush())
	case req.length == 0:
		return c.finish(req, nil) // the backend knows no empty ranges
	}
	switch req.cmd {
	case NBD_CMD_READ:
		return c.read(req)
	case NBD_CMD_WRITE:
		return c.write(req)
	case NBD_CMD_TRIM:
		return c.trim(req)
	case NBD_CMD_CACHE:
		return c.finish(req, nil) // a hint of which no backend has use
	case NBD_CMD_WRITE_ZEROES:
		// Durable on return, so FUA asks for nothing more; and ZeroAt keeps
		// the space, so neither does NO_HOLE.
		return c.finish(req, c.exp.Backend.ZeroAt(int64(req.offset), int64(req.length)))
	}
	panic("nbd: validate let an unknown command pass")
}

// reject answers a request that the backend is not to see. The payload of a
// WRITE is on its way all the same.
func (c *conn) reject(req *request, e Errno) error {
	if req.cmd == NBD_CMD_WRITE {
		if req.length > maxDiscard {
			return fmt.Errorf("write of %d bytes, far beyond the maximum payload %d", req.length, c.exp.MaxPayload)
		}
		if err := c.discard(int(req.length)); err != nil {
			return err
		}
	}
	return c.answer(req, e)
}

// read answers a READ whose reply fits the reply buffer.
func (c *conn) read(req *request) error {
	size := simpleReplySize + int(req.length)
	if size > cap(c.out) {
		return c.readLarge(req)
	}
	if err := c.room(size); err != nil {
		return err
	}
	at := len(c.out)
	b := c.out[at : at+size]
	if err := c.readAt(b[simpleReplySize:], int64(req.offset)); err != nil {
		return c.finish(req, err)
	}
	putSimpleReply(b, req.cookie, 0)
	c.out = c.out[:at+size]
	c.n.success(req)
	return nil
}

// readLarge answers a READ through a borrowed buffer, in one piece up to
// pieceSize. A longer one cannot be held back until its last byte is read, and
// a simple reply that has begun cannot turn into an error: so the backend is
// asked beforehand, and if it was wrong the connection has to go.
func (c *conn) readLarge(req *request) error {
	if err := c.flush(); err != nil {
		return err
	}
	off, rest := int64(req.offset), int(req.length)
	if rest > pieceSize {
		if err := c.exp.Backend.Readable(off, int64(rest)); err != nil {
			return c.finish(req, err)
		}
	}
	buf := c.s.pieces.Get().(*[simpleReplySize + pieceSize]byte)
	defer c.s.pieces.Put(buf)

	for head := simpleReplySize; rest > 0; head = 0 {
		n := piece(off, rest)
		b := buf[:head+n]
		switch err := c.readAt(b[head:], off); {
		case err != nil && head == 0:
			return fmt.Errorf("read of %d bytes at %d, at %d after its header was sent: %w", req.length, req.offset, off, err)
		case err != nil:
			return c.finish(req, err)
		}
		if head != 0 {
			putSimpleReply(b, req.cookie, 0)
		}
		if _, err := c.nc.Write(b); err != nil {
			return err
		}
		off, rest = off+int64(n), rest-n
	}
	c.n.success(req)
	return nil
}

// readAt is Backend.ReadAt with a short read as an error.
func (c *conn) readAt(p []byte, off int64) error {
	n, err := c.exp.Backend.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return err
	}
	if n < len(p) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// group is a run of WRITE requests on its way to the backend.
type group struct {
	n    int
	reqs [maxGroup]request
	offs [maxGroup]int64
	data [maxGroup][]byte // in the read buffer
	errs [maxGroup]error
}

// write commits the WRITE req and those that are complete behind it.
func (c *conn) write(req *request) error {
	if int(req.length) > len(c.in) {
		return c.writeLarge(req)
	}
	if err := c.need(int(req.length)); err != nil {
		return midway(err)
	}
	g := &c.group
	g.n = 0
	c.join(req)
	for g.n < maxGroup && c.nextWrite(req) {
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
	g, n := &c.group, int(req.length)
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
	have := c.w - c.r - requestSize
	if have < 0 || !req.decode(c.in[c.r:]) || req.cmd != NBD_CMD_WRITE {
		return false
	}
	if req.length == 0 || uint64(req.length) > uint64(have) || c.exp.validate(req) != 0 {
		return false
	}
	c.r += requestSize
	c.n.request(req.cmd)
	return true
}

// writeLarge commits a WRITE that does not fit the read buffer, piece by piece
// as it arrives. After an error the rest is skipped.
func (c *conn) writeLarge(req *request) error {
	buf := c.s.pieces.Get().(*[simpleReplySize + pieceSize]byte)
	defer c.s.pieces.Put(buf)

	off, rest := int64(req.offset), int(req.length)
	for rest > 0 {
		n := piece(off, rest)
		if err := c.readFull(buf[:n]); err != nil {
			return err
		}
		off, rest = off+int64(n), rest-n
		if err := c.writeOne(buf[:n], off-int64(n)); err != nil {
			if err := c.discard(rest); err != nil {
				return err
			}
			return c.finish(req, err)
		}
	}
	return c.finish(req, nil)
}

// writeOne commits p at off as a group of its own.
func (c *conn) writeOne(p []byte, off int64) error {
	g := &c.group
	g.offs[0], g.data[0], g.errs[0] = off, p, nil
	c.n.commit(1)
	c.exp.Backend.WriteGroup(g.offs[:1], g.data[:1], g.errs[:1])
	g.data[0] = nil // p goes back to the pool
	return g.errs[0]
}

// piece returns how much of rest bytes at off to move at once: all if it fits
// a piece, else up to the next multiple of pieceSize.
func piece(off int64, rest int) int {
	if rest <= pieceSize {
		return rest
	}
	return pieceSize - int(off%pieceSize)
}

// trim tells the backend, which is free not to make that durable unless FUA
// asks for it.
func (c *conn) trim(req *request) error {
	err := c.exp.Backend.TrimAt(int64(req.offset), int64(req.length))
	if err == nil && req.flags&NBD_CMD_FLAG_FUA != 0 {
		err = c.exp.Backend.Flush()
	}
	return c.finish(req, err)
}

// finish answers req with what came of it.
func (c *conn) finish(req *request, err error) error {
	if err != nil {
		return c.answer(req, errnoFor(err, req))
	}
	c.n.success(req)
	return c.answer(req, 0)
}

// answer appends a reply without data.
func (c *conn) answer(req *request, e Errno) error {
	if err := c.room(simpleReplySize); err != nil {
		return err
	}
	if e != 0 {
		c.n.failure(e)
	}
	at := len(c.out)
	c.out = c.out[:at+simpleReplySize]
	putSimpleReply(c.out[at:], req.cookie, e)
	return nil
}
