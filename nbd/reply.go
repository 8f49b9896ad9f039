package nbd

// How a request is answered depends on what was agreed in the handshake:
//
//	agreed          READ           others      others, error   BLOCK_STATUS
//	nothing         simple reply   simple      simple          -
//	structured      chunks         simple      error chunk     chunks
//	extended        chunks         chunk       error chunk     chunks
//
// Chunks of one reply stand one behind the other; the last has
// NBD_REPLY_FLAG_DONE.

// finish answers req, which has no data to return, with what came of it.
func (c *conn) finish(req *request, err error) error {
	if err != nil {
		e := errnoFor(err, req)
		c.report(req, e, err)
		return c.fail(req, e, e.explain())
	}
	c.n.success(req)
	if c.agreed.extended || c.agreed.structured && req.cmd == NBD_CMD_READ {
		if err := c.room(maxHeadSize); err != nil {
			return err
		}
		c.chunk(req, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0)
		return nil
	}
	return c.simple(req, 0)
}

// fail answers req with an error, and with its reason where replies have room
// for one.
func (c *conn) fail(req *request, e Errno, reason string) error {
	if !c.agreed.chunks() {
		c.n.failure(req, e)
		return c.simple(req, e)
	}
	return c.errorChunk(req, e, reason, NBD_REPLY_TYPE_ERROR, 0)
}

// failAt is fail of a READ that met the error at off.
func (c *conn) failAt(req *request, e Errno, reason string, off int64) error {
	if !c.agreed.chunks() {
		return c.fail(req, e, reason)
	}
	return c.errorChunk(req, e, reason, NBD_REPLY_TYPE_ERROR_OFFSET, off)
}

// errorChunk appends the chunk that ends a reply with an error.
//
//	0       4        6         6+n
//	+-------+--------+---------+--------------------------+
//	| error | length | message | offset, if the type is   |
//	|       |        |         | ERROR_OFFSET             |
//	+-------+--------+---------+--------------------------+
func (c *conn) errorChunk(req *request, e Errno, reason string, kind uint16, off int64) error {
	c.n.failure(req, e)
	reason = reason[:min(len(reason), maxMessage)]
	if err := c.room(maxHeadSize + errorSize + maxMessage + 8); err != nil {
		return err
	}
	payload := errorSize + len(reason)
	if kind == NBD_REPLY_TYPE_ERROR_OFFSET {
		payload += 8
	}
	c.chunk(req, NBD_REPLY_FLAG_DONE, kind, payload)
	c.out = be.AppendUint32(c.out, uint32(e))
	c.out = be.AppendUint16(c.out, uint16(len(reason)))
	c.out = append(c.out, reason...)
	if kind == NBD_REPLY_TYPE_ERROR_OFFSET {
		c.out = be.AppendUint64(c.out, uint64(off))
	}
	return nil
}

// simple appends a simple reply without data.
func (c *conn) simple(req *request, e Errno) error {
	if err := c.room(simpleReplySize); err != nil {
		return err
	}
	at := len(c.out)
	c.out = c.out[:at+simpleReplySize]
	putSimpleReply(c.out[at:], req.cookie, e)
	return nil
}

// chunk appends the head of a chunk, for which there is room. The payload is the
// caller's to append.
func (c *conn) chunk(req *request, flags, kind uint16, payload int) {
	at := len(c.out)
	c.out = c.out[:at+c.agreed.headSize()]
	c.putChunk(c.out[at:], req, flags, kind, payload)
}

// putChunk writes the head of a chunk to the front of b.
func (c *conn) putChunk(b []byte, req *request, flags, kind uint16, payload int) {
	if c.agreed.extended {
		putExtendedHead(b, flags, kind, req, payload)
	} else {
		putStructuredHead(b, flags, kind, req.cookie, payload)
	}
}
