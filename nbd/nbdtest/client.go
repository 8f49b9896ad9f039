package nbdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/bttnbd/bttnbd/nbd"
)

var be = binary.BigEndian

// Client is one side of an NBD session, at the level of single messages. It
// checks what the server sends and nothing of what it is told to send itself.
// It is not safe for concurrent use, but one goroutine may send while another
// receives.
type Client struct {
	net.Conn
	Structured bool // chunks were agreed on; [Client.UseStructured] sets it
	Extended   bool // extended headers were; [Client.UseExtended] sets it
}

// Dial connects, exchanges the greeting and enters transmission with the named
// export by NBD_OPT_GO.
func Dial(network, addr, export string) (*Client, Info, error) {
	nc, err := net.Dial(network, addr)
	if err != nil {
		return nil, Info{}, err
	}
	c := &Client{Conn: nc}
	info, err := c.Open(export)
	if err != nil {
		nc.Close()
		return nil, Info{}, err
	}
	return c, info, nil
}

// Open is the greeting with both flags and Go.
func (c *Client) Open(export string) (Info, error) {
	if _, err := c.Greet(nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES); err != nil {
		return Info{}, err
	}
	return c.Go(export)
}

// Greet receives the greeting, answers with flags, and returns the server's.
func (c *Client) Greet(flags uint32) (uint16, error) {
	b := make([]byte, 18)
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, fmt.Errorf("greeting: %w", err)
	}
	if be.Uint64(b) != nbd.NBDMAGIC || be.Uint64(b[8:]) != nbd.IHAVEOPT {
		return 0, fmt.Errorf("greeting % x", b)
	}
	_, err := c.Write(be.AppendUint32(nil, flags))
	return be.Uint16(b[16:]), err
}

// Option encodes an option.
func Option(option uint32, data []byte) []byte {
	b := be.AppendUint64(nil, nbd.IHAVEOPT)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// InfoData encodes the data of NBD_OPT_INFO and NBD_OPT_GO.
func InfoData(export string, wishes ...uint16) []byte {
	b := be.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = be.AppendUint16(b, uint16(len(wishes)))
	for _, w := range wishes {
		b = be.AppendUint16(b, w)
	}
	return b
}

// OptionReply is one reply to an option.
type OptionReply struct {
	Option, Type uint32
	Data         []byte
}

// IsError says whether it is one of the NBD_REP_ERR_ replies.
func (r OptionReply) IsError() bool { return r.Type&nbd.NBD_REP_FLAG_ERROR != 0 }

// RecvOption receives one reply to an option.
func (c *Client) RecvOption() (OptionReply, error) {
	b := make([]byte, 20)
	if _, err := io.ReadFull(c, b); err != nil {
		return OptionReply{}, err
	}
	if be.Uint64(b) != nbd.NBD_OPTION_REPLY {
		return OptionReply{}, fmt.Errorf("option reply % x", b)
	}
	r := OptionReply{Option: be.Uint32(b[8:]), Type: be.Uint32(b[12:])}
	n := be.Uint32(b[16:])
	if n > 1<<20 {
		return r, fmt.Errorf("option reply of %d bytes", n)
	}
	r.Data = make([]byte, n)
	_, err := io.ReadFull(c, r.Data)
	return r, err
}

// Haggle sends an option and returns all replies up to the ACK or error that
// ends them, which is the last.
func (c *Client) Haggle(option uint32, data []byte) ([]OptionReply, error) {
	if _, err := c.Write(Option(option, data)); err != nil {
		return nil, err
	}
	var all []OptionReply
	for {
		r, err := c.RecvOption()
		if err != nil {
			return all, err
		}
		if r.Option != option {
			return all, fmt.Errorf("reply to option %d after option %d", r.Option, option)
		}
		all = append(all, r)
		if r.Type == nbd.NBD_REP_ACK || r.IsError() {
			return all, nil
		}
	}
}

// Info is what a server tells about an export.
type Info struct {
	Size                            uint64
	Flags                           uint16
	Name, Description               string
	MinBlock, Preferred, MaxPayload uint32
}

// Go enters transmission with the named export, asking for all there is to know.
func (c *Client) Go(export string) (Info, error) {
	data := InfoData(export, nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, nbd.NBD_INFO_BLOCK_SIZE)
	all, err := c.Haggle(nbd.NBD_OPT_GO, data)
	if err != nil {
		return Info{}, err
	}
	return ParseInfo(all)
}

// ParseInfo gathers the replies to INFO or GO.
func ParseInfo(all []OptionReply) (Info, error) {
	var info Info
	sized := false
	for _, r := range all {
		if r.IsError() {
			return info, &OptionError{r.Type, string(r.Data)}
		}
		if r.Type != nbd.NBD_REP_INFO {
			continue
		}
		if len(r.Data) < 2 {
			return info, fmt.Errorf("information reply % x", r.Data)
		}
		p := r.Data[2:]
		switch t := be.Uint16(r.Data); {
		case t == nbd.NBD_INFO_EXPORT && len(p) == 10:
			info.Size, info.Flags = be.Uint64(p), be.Uint16(p[8:])
			sized = true
		case t == nbd.NBD_INFO_NAME:
			info.Name = string(p)
		case t == nbd.NBD_INFO_DESCRIPTION:
			info.Description = string(p)
		case t == nbd.NBD_INFO_BLOCK_SIZE && len(p) == 12:
			info.MinBlock, info.Preferred, info.MaxPayload = be.Uint32(p), be.Uint32(p[4:]), be.Uint32(p[8:])
		default:
			return info, fmt.Errorf("information reply % x", r.Data)
		}
	}
	if !sized {
		return info, errors.New("no NBD_INFO_EXPORT")
	}
	return info, nil
}

// OptionError is an NBD_REP_ERR_ reply.
type OptionError struct {
	Type    uint32
	Message string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("option refused with %#x: %s", e.Type, e.Message)
}

// Request is a request in transmission.
type Request struct {
	Flags, Cmd uint16
	Cookie     uint64
	Offset     uint64
	Length     uint64 // with compact headers its lower 32 bits
	Data       []byte // payload; Length is not derived from it
}

// AppendExtended encodes r with an extended header behind b.
func (r Request) AppendExtended(b []byte) []byte {
	b = be.AppendUint32(b, nbd.NBD_EXTENDED_REQUEST_MAGIC)
	b = be.AppendUint16(b, r.Flags)
	b = be.AppendUint16(b, r.Cmd)
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	b = be.AppendUint64(b, r.Length)
	return append(b, r.Data...)
}

// Append encodes r with a compact header behind b.
func (r Request) Append(b []byte) []byte {
	b = be.AppendUint32(b, nbd.NBD_REQUEST_MAGIC)
	b = be.AppendUint16(b, r.Flags)
	b = be.AppendUint16(b, r.Cmd)
	b = be.AppendUint64(b, r.Cookie)
	b = be.AppendUint64(b, r.Offset)
	b = be.AppendUint32(b, uint32(r.Length))
	return append(b, r.Data...)
}

// Read makes a READ of n bytes.
func Read(cookie, off uint64, n uint32) Request {
	return Request{Cmd: nbd.NBD_CMD_READ, Cookie: cookie, Offset: off, Length: uint64(n)}
}

// Write makes a WRITE of data. With extended headers it needs
// NBD_CMD_FLAG_PAYLOAD_LEN, see [Request.Extend].
func Write(cookie, off uint64, data []byte) Request {
	return Request{Cmd: nbd.NBD_CMD_WRITE, Cookie: cookie, Offset: off, Length: uint64(len(data)), Data: data}
}

// Command makes a request without payload in either direction.
func Command(cmd uint16, cookie, off, n uint64) Request {
	return Request{Cmd: cmd, Cookie: cookie, Offset: off, Length: n}
}

// Send sends requests in one write.
func (c *Client) Send(requests ...Request) error {
	var b []byte
	for _, r := range requests {
		if c.Extended {
			b = r.AppendExtended(b)
		} else {
			b = r.Append(b)
		}
	}
	_, err := c.Write(b)
	return err
}

// Reply is a simple reply.
type Reply struct {
	Cookie uint64
	Err    nbd.Errno
	Data   []byte
}

// Recv receives a simple reply. read is how many bytes it carries if it is without
// error: the length of a READ, 0 for all else.
func (c *Client) Recv(read uint32) (Reply, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(c, b); err != nil {
		return Reply{}, err
	}
	if be.Uint32(b) != nbd.NBD_SIMPLE_REPLY_MAGIC {
		return Reply{}, fmt.Errorf("reply % x", b)
	}
	r := Reply{Cookie: be.Uint64(b[8:]), Err: nbd.Errno(be.Uint32(b[4:]))}
	if r.Err != 0 || read == 0 {
		return r, nil
	}
	r.Data = make([]byte, read)
	_, err := io.ReadFull(c, r.Data)
	return r, err
}

// Do sends one request and receives its reply, a simple one.
func (c *Client) Do(r Request) (Reply, error) {
	if err := c.Send(r); err != nil {
		return Reply{}, err
	}
	var read uint32
	if r.Cmd == nbd.NBD_CMD_READ {
		read = uint32(r.Length)
	}
	reply, err := c.Recv(read)
	if err == nil && reply.Cookie != r.Cookie {
		err = fmt.Errorf("reply to cookie %#x after a request of cookie %#x", reply.Cookie, r.Cookie)
	}
	return reply, err
}

// Disconnect sends NBD_CMD_DISC and waits for the server to close.
func (c *Client) Disconnect() error {
	defer c.Close()
	if err := c.Send(Command(nbd.NBD_CMD_DISC, 0, 0, 0)); err != nil {
		return err
	}
	switch n, err := c.Read(make([]byte, 1)); {
	case n > 0:
		return errors.New("data after NBD_CMD_DISC")
	case err != io.EOF:
		return err
	}
	return nil
}
