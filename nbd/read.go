package nbd

import (
	"fmt"
	"io"
)

// read answers a READ. Without chunks, and in one chunk if the client wants it
// so (NBD_CMD_FLAG_DF), the reply is one header and all the data. It goes
// straight into the reply buffer if it fits.
func (c *conn) read(req *request) error {
	if c.agreed.chunks() && req.flags&NBD_CMD_FLAG_DF == 0 {
		return c.readChunks(req)
	}
	head := c.readHeadSize()
	size := head + int(req.length)
	if size > cap(c.out) {
		return c.readLarge(req)
	}
	if err := c.room(size); err != nil {
		return err
	}
	at := len(c.out)
	b := c.out[at : at+size]
	if n, err := c.readAt(b[head:], int64(req.offset)); err != nil {
		return c.failRead(req, err, int64(req.offset)+int64(n))
	}
	c.putReadHead(b, req, NBD_REPLY_FLAG_DONE, req.offset, int(req.length))
	c.out = c.out[:at+size]
	c.n.success(req)
	return c.early(size)
}

// earlyReplies is how many bytes of small replies are worth a system call while more of
// them are to come: what a unix socket passes on as one packet.
const earlyReplies = 32 << 10

// early sends the replies to small READs, of which the last has some size bytes, before
// the batch is over, where there is a processor on which the client can go on with them.
func (c *conn) early(size int) error {
	if size < earlyReplies && len(c.out) >= earlyReplies && c.wire.poll.alone() {
		return c.flush()
	}
	return nil
}

// readLarge answers a READ in one header and data that are longer than the reply
// buffer, a buffer at a time. It cannot be held back until its last byte is read,
// and a reply that has begun so cannot turn into an error: so the backend is asked
// beforehand, and if it was wrong the connection has to go.
func (c *conn) readLarge(req *request) error {
	if err := c.flush(); err != nil {
		return err
	}
	off, rest := int64(req.offset), int(req.length)
	if err := c.exp.Backend.Readable(off, int64(rest)); err != nil {
		return c.finish(req, err)
	}
	for head := c.readHeadSize(); rest > 0; head = 0 {
		n := piece(off, rest, c.ws.piece)
		b := c.out[:head+n]
		switch got, err := c.readAt(b[head:], off); {
		case err != nil && head == 0:
			return fmt.Errorf("read of %d bytes at %d, at %d after its header was sent: %w", req.length, req.offset, off, err)
		case err != nil:
			return c.failRead(req, err, off+int64(got))
		}
		if head != 0 {
			c.putReadHead(b, req, NBD_REPLY_FLAG_DONE, req.offset, int(req.length))
		}
		if err := c.send(b); err != nil {
			return err
		}
		off, rest = off+int64(n), rest-n
	}
	c.n.success(req)
	return nil
}

// readChunks answers a READ with a chunk for each run of data and each hole. An
// error ends the reply where it is met; what was sent before stands.
func (c *conn) readChunks(req *request) error {
	b, l := c.exp.Backend, c.extents
	off, end := int64(req.offset), int64(req.offset+req.length)
	for off < end {
		if end-off < minHole || l.ask(b, off, end-off) != nil { // reading will tell
			l.list = append(l.list[:0], extent{end - off, 0})
		}
		l.forRead()
		for _, e := range l.list {
			var over bool
			var err error
			switch e.state {
			case StateError:
				return c.failAt(req, NBD_EIO, markedBad, off)
			case StateZero:
				err = c.hole(req, off, e.length, end)
			default:
				over, err = c.data(req, off, e.length, end)
			}
			if over || err != nil {
				return err
			}
			off += e.length
		}
	}
	c.n.success(req)
	return c.early(int(req.length))
}

// markedBad is the reason of an error that Extents has told of.
const markedBad = "this place is marked as unreadable; writing it makes it good again"

// hole appends the chunk of a hole of n bytes at off.
func (c *conn) hole(req *request, off, n, end int64) error {
	if err := c.room(maxHeadSize + holeSize); err != nil {
		return err
	}
	c.chunk(req, doneAt(off+n, end), NBD_REPLY_TYPE_OFFSET_HOLE, holeSize)
	c.out = be.AppendUint64(c.out, uint64(off))
	c.out = be.AppendUint32(c.out, uint32(n))
	return nil
}

// data answers with a run of n bytes of data at off, in pieces if it is long.
// over says that the reply has ended here, with an error of the backend.
func (c *conn) data(req *request, off, n, end int64) (over bool, err error) {
	for n > 0 && !over && err == nil {
		m := piece(off, int(n), c.ws.piece)
		over, err = c.dataChunk(req, off, m, end)
		off, n = off+int64(m), n-int64(m)
	}
	return over, err
}

// dataChunk appends the chunk of n bytes of data at off, at most a piece.
func (c *conn) dataChunk(req *request, off int64, n int, end int64) (over bool, err error) {
	head := c.readHeadSize()
	if err := c.room(head + n); err != nil {
		return true, err
	}
	b := c.out[len(c.out) : len(c.out)+head+n]
	if got, err := c.readAt(b[head:], off); err != nil {
		return true, c.failRead(req, err, off+int64(got))
	}
	c.putReadHead(b, req, doneAt(off+int64(n), end), uint64(off), n)
	c.out = c.out[:len(c.out)+head+n]
	return false, nil
}

// doneAt is the flag of a chunk that ends at off.
func doneAt(off, end int64) uint16 {
	if off == end {
		return NBD_REPLY_FLAG_DONE
	}
	return 0
}

// readHeadSize is the size of what stands before the data of a READ.
func (c *conn) readHeadSize() int {
	if c.agreed.chunks() {
		return c.agreed.headSize() + 8
	}
	return simpleReplySize
}

// putReadHead writes what stands before n bytes of data at off.
func (c *conn) putReadHead(b []byte, req *request, flags uint16, off uint64, n int) {
	if !c.agreed.chunks() {
		putSimpleReply(b, req.cookie, 0)
		return
	}
	c.putChunk(b, req, flags, NBD_REPLY_TYPE_OFFSET_DATA, n+8)
	be.PutUint64(b[c.agreed.headSize():], off)
}

// failRead answers a READ that the backend could not go on with at off.
func (c *conn) failRead(req *request, err error, off int64) error {
	e := errnoFor(err, req)
	c.report(req, e, err)
	return c.failAt(req, e, e.explain(), off)
}

// readAt is Backend.ReadAt with a short read as an error. With an error, n is
// less than len(p).
func (c *conn) readAt(p []byte, off int64) (n int, err error) {
	n, err = c.exp.Backend.ReadAt(p, off)
	switch {
	case err != nil && err != io.EOF:
		return min(max(n, 0), len(p)-1), err
	case n < len(p):
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}
