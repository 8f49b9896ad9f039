package nbd

// blockStatus answers a BLOCK_STATUS: a chunk for each selected context, or for
// each that the client names in a payload. It tells of as much of the range as
// one call of Backend.Extents does.
//
//	BLOCK_STATUS                        BLOCK_STATUS_EXT
//	0    4        8       12            0    4       8        16      24
//	+----+--------+-------+-----        +----+-------+--------+-------+-----
//	| id | length | flags | …           | id | count | length | flags | …
//	+----+--------+-------+-----        +----+-------+--------+-------+-----
func (c *conn) blockStatus(req *request) error {
	wanted, effect := c.agreed.contexts, *req
	if req.flags&NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
		n := req.length
		if n <= statusFilterHead || n > statusFilterHead+4*uint64(len(contextTable)) {
			return c.reject(req, &badFilter)
		}
		if err := c.need(int(n)); err != nil {
			return midway(err)
		}
		effect.length, wanted = c.statusFilter(c.in[c.r : c.r+int(n)])
		c.r += int(n)
		if wanted == 0 {
			return c.fail(req, badFilter.errno, badFilter.text)
		}
		if why := c.exp.inside(&effect); why != nil {
			return c.fail(req, why.errno, why.text)
		}
	}
	if err := c.extents.ask(c.exp.Backend, int64(effect.offset), int64(effect.length)); err != nil {
		return c.finish(req, err)
	}
	for i := range contextTable {
		if wanted&(1<<i) == 0 {
			continue
		}
		wanted &^= 1 << i
		flags := uint16(0)
		if wanted == 0 {
			flags = NBD_REPLY_FLAG_DONE
		}
		if err := c.statusChunk(req, flags, i); err != nil {
			return err
		}
	}
	c.n.success(&effect)
	return nil
}

// statusFilter decodes the payload of a BLOCK_STATUS. It returns no contexts
// when it is malformed, or names one twice or that is not selected.
//
//	0               8    12   16
//	+---------------+----+----+---
//	| effect length | id | id | …
//	+---------------+----+----+---
func (c *conn) statusFilter(b []byte) (length uint64, wanted contexts) {
	length, b = be.Uint64(b), b[statusFilterHead:]
	for ; len(b) >= 4; b = b[4:] {
		id := be.Uint32(b)
		if id == 0 || id > uint32(len(contextTable)) {
			return 0, 0
		}
		bit := contexts(1) << (id - 1)
		if c.agreed.contexts&bit == 0 || wanted&bit != 0 {
			return 0, 0
		}
		wanted |= bit
	}
	if len(b) != 0 {
		return 0, 0
	}
	return length, wanted
}

// statusChunk appends the chunk of one context. Neighbours that are the same to
// it are merged; with NBD_CMD_FLAG_REQ_ONE there is one extent.
func (c *conn) statusChunk(req *request, flags uint16, context int) error {
	head, size := c.agreed.headSize(), extentSize
	if c.agreed.extended {
		head, size = head+4, extendedExtent
	}
	head += 4
	if err := c.room(head + size*len(c.extents.list)); err != nil {
		return err
	}
	at := len(c.out)
	c.out = c.out[:at+head]
	count := 0
	for i := 0; i < len(c.extents.list); count++ {
		if count == 1 && req.flags&NBD_CMD_FLAG_REQ_ONE != 0 {
			break
		}
		e := c.extents.list[i]
		state := contextTable[context].flags(e.state)
		for i++; i < len(c.extents.list) && contextTable[context].flags(c.extents.list[i].state) == state; i++ {
			e.length += c.extents.list[i].length
		}
		if c.agreed.extended {
			c.out = be.AppendUint64(c.out, uint64(e.length))
			c.out = be.AppendUint64(c.out, uint64(state))
		} else {
			c.out = be.AppendUint32(c.out, uint32(e.length))
			c.out = be.AppendUint32(c.out, state)
		}
	}
	b := c.out[at:]
	payload := len(b) - c.agreed.headSize()
	be.PutUint32(b[c.agreed.headSize():], uint32(context)+1)
	kind := uint16(NBD_REPLY_TYPE_BLOCK_STATUS)
	if c.agreed.extended {
		be.PutUint32(b[c.agreed.headSize()+4:], uint32(count))
		kind = NBD_REPLY_TYPE_BLOCK_STATUS_EXT
	}
	c.putChunk(b, req, flags, kind, payload)
	return nil
}
