package nbd

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// handshake greets the client and answers its options until one of them has
// chosen an export. An error ends the connection.
func (c *conn) handshake() error {
	if t := c.s.o.HandshakeTimeout; t > 0 {
		c.setHandshakeDeadline(time.Now().Add(t))
	}
	if err := c.greet(); err != nil {
		return err
	}
	for c.exp == nil {
		if err := c.negotiate(); err != nil {
			return err
		}
	}
	if c.agreed.contextsFor != c.exp.Name {
		c.agreed.contexts = 0
	}
	c.agreed.legal = c.agreed.legalFlags()
	c.setHandshakeDeadline(time.Time{})
	c.wire.stall = c.s.o.WriteTimeout
	c.grow(c.exp.MinBlock > smallPiece) // what is received already is work
	c.measure()
	c.serving.Store(c.exp)
	return nil
}

// setHandshakeDeadline bounds all reads and writes.
func (c *conn) setHandshakeDeadline(t time.Time) {
	c.setReadDeadline(t)
	c.wire.SetWriteDeadline(t)
}

// Ways for a handshake to end that are not errors of the socket.
var (
	errAborted = errors.New("client sent NBD_OPT_ABORT")
	errMagic   = errors.New("bad magic")
)

// greet exchanges the greeting for the client's flags.
//
//	0            8            16      18          client:  0       4
//	+------------+------------+-------+                    +-------+
//	|  NBDMAGIC  |  IHAVEOPT  | flags |                    | flags |
//	+------------+------------+-------+                    +-------+
func (c *conn) greet() error {
	const flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES
	c.out = be.AppendUint64(c.out, NBDMAGIC)
	c.out = be.AppendUint64(c.out, IHAVEOPT)
	c.out = be.AppendUint16(c.out, flags)
	if err := c.next(clientFlagsSize); err != nil {
		return err
	}
	answer := be.Uint32(c.in[c.r:])
	c.r += clientFlagsSize
	if answer&^(NBD_FLAG_C_FIXED_NEWSTYLE|NBD_FLAG_C_NO_ZEROES) != 0 {
		return fmt.Errorf("unknown client flags %#x", answer)
	}
	c.agreed.noZeroes = answer&NBD_FLAG_C_NO_ZEROES != 0
	return nil
}

// negotiate receives one option and answers it.
//
//	0            8        12       16
//	+------------+--------+--------+------+
//	|  IHAVEOPT  | option | length | data |
//	+------------+--------+--------+------+
func (c *conn) negotiate() error {
	if err := c.next(optionSize); err != nil {
		return err
	}
	head := c.in[c.r:]
	if be.Uint64(head) != IHAVEOPT {
		return fmt.Errorf("option: %w", errMagic)
	}
	c.option = be.Uint32(head[8:])
	length := be.Uint32(head[12:])
	c.r += optionSize
	if length > maxDiscard {
		return fmt.Errorf("option %d with %d bytes of data", c.option, length)
	}
	if int(length) > len(c.in) {
		return c.negotiateLong(int(length))
	}
	if err := c.need(int(length)); err != nil {
		return midway(err)
	}
	data := c.in[c.r : c.r+int(length)]
	c.r += int(length)
	return c.dispatch(data)
}

// negotiateLong is negotiate where the data does not fit the buffer. It gets memory
// of its own, for few options at a time: what peers that nobody knows yet leave
// unfinished is not to take the memory of those in transmission.
func (c *conn) negotiateLong(length int) error {
	stranger := c.s.o.TLSRequired && c.tls == nil
	if stranger || length > maxOptionData || !c.s.takeOption() {
		return c.tooLong(length)
	}
	defer c.s.giveOption()
	data := make([]byte, length)
	if err := c.readFull(data); err != nil {
		return err
	}
	return c.dispatch(data)
}

// dispatch hands the current option to its handler.
func (c *conn) dispatch(data []byte) error {
	switch {
	case c.option == NBD_OPT_ABORT:
		return c.optAbort()
	case c.option == NBD_OPT_EXPORT_NAME:
		return c.optExportName(data)
	case c.needsTLS():
		return c.refusePlain()
	case c.isClosing():
		return c.refuse(NBD_REP_ERR_SHUTDOWN, "the server is shutting down")
	}
	switch c.option {
	case NBD_OPT_STARTTLS:
		return c.optStartTLS(data)
	case NBD_OPT_LIST:
		return c.optList(data)
	case NBD_OPT_INFO, NBD_OPT_GO:
		return c.optInfo(data)
	case NBD_OPT_STRUCTURED_REPLY, NBD_OPT_EXTENDED_HEADERS:
		return c.optReplies(data)
	case NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT:
		return c.optMetaContext(data)
	}
	return c.refuse(NBD_REP_ERR_UNSUP, "option not supported")
}

// refusePlain refuses an option for want of TLS, which the client may still turn on.
func (c *conn) refusePlain() error {
	c.refusedPlain = true
	return c.refuse(NBD_REP_ERR_TLS_REQD, "this server wants TLS first")
}

// tooLong skips and refuses an option whose data is too long to be looked at, or
// longer than what there is memory for.
func (c *conn) tooLong(length int) error {
	if err := c.discard(length); err != nil {
		return err
	}
	switch c.option {
	case NBD_OPT_ABORT:
		return c.optAbort()
	case NBD_OPT_EXPORT_NAME:
		return fmt.Errorf("export name of %d bytes", length)
	}
	if c.needsTLS() {
		return c.refusePlain()
	}
	switch c.option {
	case NBD_OPT_INFO, NBD_OPT_GO:
		if length <= maxOptionData {
			return c.refuse(NBD_REP_ERR_TOO_BIG, "the server is short of memory")
		}
	}
	switch c.option {
	case NBD_OPT_LIST, NBD_OPT_STARTTLS, NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_EXTENDED_HEADERS:
		return c.refuse(NBD_REP_ERR_INVALID, "option data too long")
	case NBD_OPT_SET_META_CONTEXT:
		c.agreed.contexts, c.agreed.contextsFor = 0, ""
		return c.refuse(NBD_REP_ERR_TOO_BIG, "too many queries")
	case NBD_OPT_LIST_META_CONTEXT:
		return c.refuse(NBD_REP_ERR_TOO_BIG, "too many queries")
	}
	return c.refuse(NBD_REP_ERR_UNSUP, "option not supported")
}

// optAbort ends the handshake at the client's wish.
func (c *conn) optAbort() error {
	if err := c.optReply(NBD_REP_ACK, nil); err != nil {
		return err
	}
	return errAborted
}

// optExportName enters transmission the old way, which knows no errors: what
// cannot be served is answered by hanging up.
//
//	0            8       10                 134
//	+------------+-------+--------------------+
//	|    size    | flags | zeros, unless      |
//	|            |       | NO_ZEROES          |
//	+------------+-------+--------------------+
func (c *conn) optExportName(data []byte) error {
	if c.isClosing() {
		return errors.New("the server is shutting down")
	}
	if c.needsTLS() {
		return errors.New("NBD_OPT_EXPORT_NAME without TLS, which is required")
	}
	if c.agreed.extended {
		return errors.New("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS")
	}
	if !validName(data) {
		return errors.New("malformed export name")
	}
	e := c.s.choose(c, data)
	if e == nil {
		return fmt.Errorf("no export %.80q", data)
	}
	if err := c.room(exportReplySize + exportReplyZeros); err != nil {
		return err
	}
	c.out = be.AppendUint64(c.out, e.Size)
	c.out = be.AppendUint16(c.out, e.flags(&c.agreed))
	if !c.agreed.noZeroes {
		c.out = append(c.out, make([]byte, exportReplyZeros)...)
	}
	c.exp = e
	return nil
}

// optReplies agrees on another form of replies. Extended headers take precedence,
// and there is no way back from them; asking again changes nothing.
func (c *conn) optReplies(data []byte) error {
	switch {
	case len(data) != 0:
		return c.refuse(NBD_REP_ERR_INVALID, "this option takes no data")
	case c.option == NBD_OPT_EXTENDED_HEADERS:
		c.agreed.extended = true
	case c.agreed.extended:
		return c.refuse(NBD_REP_ERR_EXT_HEADER_REQD, "extended headers have been agreed on")
	default:
		c.agreed.structured = true
	}
	return c.optReply(NBD_REP_ACK, nil)
}

// optList names all exports, each in a reply of its own.
//
//	0             4
//	+-------------+------+-------------+
//	| name length | name | description |
//	+-------------+------+-------------+
func (c *conn) optList(data []byte) error {
	if len(data) != 0 {
		return c.refuse(NBD_REP_ERR_INVALID, "NBD_OPT_LIST takes no data")
	}
	cat := c.s.catalog.Load()
	for _, name := range cat.names {
		if !c.admitted(name) {
			continue
		}
		b := be.AppendUint32(nil, uint32(len(name)))
		b = append(b, name...)
		b = append(b, cat.byName[name].Description...)
		if err := c.optReply(NBD_REP_SERVER, b); err != nil {
			return err
		}
	}
	return c.optReply(NBD_REP_ACK, nil)
}

// optInfo describes an export, and for GO enters transmission with it.
//
//	0             4      4+n                 6+n
//	+-------------+------+-------------------+------------------------+
//	| name length | name | number of wishes  | wishes, 16 bits each:  |
//	|             |      |                   | NBD_INFO_…             |
//	+-------------+------+-------------------+------------------------+
func (c *conn) optInfo(data []byte) error {
	r := reader{b: data}
	name := r.bytes(r.uint32())
	wishes := make([]uint16, r.uint16())
	for i := range wishes {
		wishes[i] = r.uint16()
	}
	if !r.done() || !validName(name) {
		return c.refuse(NBD_REP_ERR_INVALID, "malformed option data")
	}
	e := c.s.lookup(c, name)
	if c.option == NBD_OPT_GO {
		e = c.s.choose(c, name)
	}
	if e == nil {
		return c.refuse(NBD_REP_ERR_UNKNOWN, fmt.Sprintf("no export %.80q", name))
	}
	if err := c.describe(e, wishes); err != nil {
		return err
	}
	if err := c.optReply(NBD_REP_ACK, nil); err != nil {
		return err
	}
	if c.option == NBD_OPT_GO {
		c.exp = e
	}
	return nil
}

// describe sends what is to be known about e: size, flags and block sizes
// always, name and description to those who asked. Unknown wishes are ignored.
func (c *conn) describe(e *export, wishes []uint16) error {
	b := be.AppendUint16(nil, NBD_INFO_EXPORT)
	b = be.AppendUint64(b, e.Size)
	b = be.AppendUint16(b, e.flags(&c.agreed))
	if err := c.optReply(NBD_REP_INFO, b); err != nil {
		return err
	}
	if slices.Contains(wishes, NBD_INFO_NAME) {
		b = append(be.AppendUint16(nil, NBD_INFO_NAME), e.Name...)
		if err := c.optReply(NBD_REP_INFO, b); err != nil {
			return err
		}
	}
	if slices.Contains(wishes, NBD_INFO_DESCRIPTION) && e.Description != "" {
		b = append(be.AppendUint16(nil, NBD_INFO_DESCRIPTION), e.Description...)
		if err := c.optReply(NBD_REP_INFO, b); err != nil {
			return err
		}
	}
	b = be.AppendUint16(nil, NBD_INFO_BLOCK_SIZE)
	b = be.AppendUint32(b, e.MinBlock)
	b = be.AppendUint32(b, e.PreferredBlock)
	b = be.AppendUint32(b, e.MaxPayload)
	return c.optReply(NBD_REP_INFO, b)
}

// validName says whether b may be the name of an export.
func validName(b []byte) bool {
	return len(b) <= maxString && utf8.Valid(b) && !slices.Contains(b, 0)
}

// refuse answers the current option with an error and a message for humans.
func (c *conn) refuse(reply uint32, message string) error { return c.optReply(reply, []byte(message)) }

// optReply appends a reply to the current option.
//
//	0         8        12      16       20
//	+---------+--------+-------+--------+------+
//	|  magic  | option | reply | length | data |
//	+---------+--------+-------+--------+------+
func (c *conn) optReply(reply uint32, data []byte) error {
	if err := c.room(optionReplySize + len(data)); err != nil {
		return err
	}
	c.out = be.AppendUint64(c.out, NBD_OPTION_REPLY)
	c.out = be.AppendUint32(c.out, c.option)
	c.out = be.AppendUint32(c.out, reply)
	c.out = be.AppendUint32(c.out, uint32(len(data)))
	c.out = append(c.out, data...)
	return nil
}
