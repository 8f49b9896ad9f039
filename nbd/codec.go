package nbd

import "encoding/binary"

// be is the byte order of the protocol.
var be = binary.BigEndian

// request is a decoded request header. With compact headers:
//
//	0      4      6     8            16           24      28
//	+------+------+-----+------------+------------+-------+----------------+
//	| magic| flags| type|   cookie   |   offset   | length| payload, if    |
//	|      |      |     |            |            |       | type is WRITE  |
//	+------+------+-----+------------+------------+-------+----------------+
//
// With extended headers:
//
//	0      4      6     8            16           24           32
//	+------+------+-----+------------+------------+------------+----------------+
//	| magic| flags| type|   cookie   |   offset   |   length   | payload, if    |
//	|      |      |     |            |            |            | WRITE, or flag |
//	|      |      |     |            |            |            | PAYLOAD_LEN    |
//	+------+------+-----+------------+------------+------------+----------------+
type request struct {
	flags  uint16 // NBD_CMD_FLAG_…
	cmd    uint16 // NBD_CMD_…, the document's "type"
	cookie uint64 // the client's name for the request, echoed
	offset uint64
	length uint64
}

// decode reads the first requestSize bytes of b. It returns false, and r is
// undefined, when they do not begin with the magic.
func (r *request) decode(b []byte) bool {
	_ = b[requestSize-1]
	r.flags = be.Uint16(b[4:])
	r.cmd = be.Uint16(b[6:])
	r.cookie = be.Uint64(b[8:])
	r.offset = be.Uint64(b[16:])
	r.length = uint64(be.Uint32(b[24:]))
	return be.Uint32(b) == NBD_REQUEST_MAGIC
}

// decodeExtended is decode of the first extendedRequestSize bytes of b.
func (r *request) decodeExtended(b []byte) bool {
	_ = b[extendedRequestSize-1]
	r.flags = be.Uint16(b[4:])
	r.cmd = be.Uint16(b[6:])
	r.cookie = be.Uint64(b[8:])
	r.offset = be.Uint64(b[16:])
	r.length = be.Uint64(b[24:])
	return be.Uint32(b) == NBD_EXTENDED_REQUEST_MAGIC
}

// putSimpleReply writes a reply header to the first simpleReplySize bytes of b.
//
//	0      4      8            16
//	+------+------+------------+-------------------------+
//	| magic| error|   cookie   | data, of a READ without |
//	|      |      |            | error                   |
//	+------+------+------------+-------------------------+
func putSimpleReply(b []byte, cookie uint64, e Errno) {
	_ = b[simpleReplySize-1]
	be.PutUint32(b, NBD_SIMPLE_REPLY_MAGIC)
	be.PutUint32(b[4:], uint32(e))
	be.PutUint64(b[8:], cookie)
}

// putStructuredHead writes the head of a reply chunk to the first
// structuredHeadSize bytes of b.
//
//	0      4      6     8            16      20
//	+------+------+-----+------------+-------+---------+
//	| magic| flags| type|   cookie   | length| payload |
//	+------+------+-----+------------+-------+---------+
func putStructuredHead(b []byte, flags, kind uint16, cookie uint64, payload int) {
	_ = b[structuredHeadSize-1]
	be.PutUint32(b, NBD_STRUCTURED_REPLY_MAGIC)
	be.PutUint16(b[4:], flags)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], cookie)
	be.PutUint32(b[16:], uint32(payload))
}

// putExtendedHead writes the head of a reply chunk to the first
// extendedHeadSize bytes of b. The offset is the request's, in every chunk.
//
//	0      4      6     8            16           24           32
//	+------+------+-----+------------+------------+------------+---------+
//	| magic| flags| type|   cookie   |   offset   |   length   | payload |
//	+------+------+-----+------------+------------+------------+---------+
func putExtendedHead(b []byte, flags, kind uint16, req *request, payload int) {
	_ = b[extendedHeadSize-1]
	be.PutUint32(b, NBD_EXTENDED_REPLY_MAGIC)
	be.PutUint16(b[4:], flags)
	be.PutUint16(b[6:], kind)
	be.PutUint64(b[8:], req.cookie)
	be.PutUint64(b[16:], req.offset)
	be.PutUint64(b[24:], uint64(payload))
}

// reader takes the fields of option data one after the other. Past the end it
// returns zeros and stays bad, which is asked once, after the last field.
type reader struct {
	b   []byte
	bad bool
}

// bytes returns the next n bytes, nil past the end.
func (r *reader) bytes(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) uint16() uint16 {
	if p := r.bytes(2); p != nil {
		return be.Uint16(p)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if p := r.bytes(4); p != nil {
		return be.Uint32(p)
	}
	return 0
}

// done says whether the data held what was asked for, and no more.
func (r *reader) done() bool { return !r.bad && len(r.b) == 0 }
