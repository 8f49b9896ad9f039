package clienttest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
)

// NBD on the wire, as little of it as the crash tests need: fixed newstyle
// handshake, NBD_OPT_GO, simple replies. Numbers from the protocol's proto.md.
const (
	nbdMagic      = 0x4e42444d41474943 // "NBDMAGIC"
	optMagic      = 0x49484156454f5054 // "IHAVEOPT"
	optReplyMagic = 0x0003e889045565a9
	requestMagic  = 0x25609513
	replyMagic    = 0x67446698

	clientFlags = 1 | 2 // fixed newstyle, no zeroes
	optGo       = 7
	repAck      = 1
	repInfo     = 3
	infoExport  = 0

	cmdRead  = 0
	cmdWrite = 1
)

// A client is one connection. Requests may be outstanding in any number; it is
// for one goroutine.
type client struct {
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
	size int64
}

// dial connects to the default export on a unix socket.
func dial(socket string) (*client, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, in: bufio.NewReader(conn), out: bufio.NewWriter(conn)}
	if err := c.handshake(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return c, nil
}

func (c *client) handshake() error {
	var hello struct {
		Magic, Options uint64
		Flags          uint16
	}
	if err := c.get(&hello); err != nil {
		return err
	}
	if hello.Magic != nbdMagic || hello.Options != optMagic || hello.Flags&1 == 0 {
		return fmt.Errorf("no fixed newstyle server: %+v", hello)
	}
	// the option's data: a name of no bytes, no information requests
	c.put(uint32(clientFlags), uint64(optMagic), uint32(optGo), uint32(6), uint32(0), uint16(0))
	if err := c.out.Flush(); err != nil {
		return err
	}
	for {
		var reply struct {
			Magic          uint64
			Option, Type   uint32
			PayloadInBytes uint32
		}
		if err := c.get(&reply); err != nil {
			return err
		}
		payload := make([]byte, reply.PayloadInBytes)
		if _, err := io.ReadFull(c.in, payload); err != nil {
			return err
		}
		switch {
		case reply.Magic != optReplyMagic || reply.Option != optGo:
			return fmt.Errorf("no reply to NBD_OPT_GO: %+v", reply)
		case reply.Type == repAck:
			return nil
		case reply.Type != repInfo:
			return fmt.Errorf("NBD_OPT_GO refused: type %#x %q", reply.Type, payload)
		case binary.BigEndian.Uint16(payload) == infoExport:
			c.size = int64(binary.BigEndian.Uint64(payload[2:]))
		}
	}
}

func (c *client) get(v any) error { return binary.Read(c.in, binary.BigEndian, v) }

// put buffers fields; an error of the connection shows in the next Flush.
func (c *client) put(fields ...any) {
	for _, f := range fields {
		binary.Write(c.out, binary.BigEndian, f)
	}
}

func (c *client) request(command uint16, cookie uint64, off int64, n int) {
	c.put(uint32(requestMagic), uint16(0), command, cookie, uint64(off), uint32(n))
}

// write buffers a write request.
func (c *client) write(cookie uint64, off int64, p []byte) {
	c.request(cmdWrite, cookie, off, len(p))
	c.out.Write(p)
}

// reply waits for the next reply, which must be a success.
func (c *client) reply() (cookie uint64, err error) {
	var r struct {
		Magic, Error uint32
		Cookie       uint64
	}
	if err := c.get(&r); err != nil {
		return 0, err
	}
	if r.Magic != replyMagic || r.Error != 0 {
		return 0, fmt.Errorf("reply %+v", r)
	}
	return r.Cookie, nil
}

// read fills p from off, with no other request outstanding.
func (c *client) read(p []byte, off int64) error {
	c.request(cmdRead, 0, off, len(p))
	if err := c.out.Flush(); err != nil {
		return err
	}
	if _, err := c.reply(); err != nil {
		return err
	}
	_, err := io.ReadFull(c.in, p)
	return err
}
