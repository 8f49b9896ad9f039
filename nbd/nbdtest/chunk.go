package nbdtest

import (
	"errors"
	"fmt"
	"io"

	"github.com/bttnbd/bttnbd/nbd"
)

// use asks for an option that takes no data and changes how replies look, and
// returns an [OptionError] when the server refuses it.
func (c *Client) use(option uint32) error {
	all, err := c.Haggle(option, nil)
	if err != nil {
		return err
	}
	if last := all[len(all)-1]; last.IsError() {
		return &OptionError{last.Type, string(last.Data)}
	}
	return nil
}

// UseStructured agrees on structured replies.
func (c *Client) UseStructured() error {
	err := c.use(nbd.NBD_OPT_STRUCTURED_REPLY)
	c.Structured = c.Structured || err == nil
	return err
}

// UseExtended agrees on extended headers.
func (c *Client) UseExtended() error {
	err := c.use(nbd.NBD_OPT_EXTENDED_HEADERS)
	c.Extended = c.Extended || err == nil
	return err
}

// MetaData encodes the data of NBD_OPT_LIST_META_CONTEXT and SET_META_CONTEXT.
func MetaData(export string, queries ...string) []byte {
	b := be.AppendUint32(nil, uint32(len(export)))
	b = append(b, export...)
	b = be.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = be.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// MetaContexts lists or selects metadata contexts, and returns the ids of those
// that the server tells of, by name.
func (c *Client) MetaContexts(option uint32, export string, queries ...string) (map[string]uint32, error) {
	all, err := c.Haggle(option, MetaData(export, queries...))
	if err != nil {
		return nil, err
	}
	ids := make(map[string]uint32)
	for _, r := range all {
		switch {
		case r.IsError():
			return nil, &OptionError{r.Type, string(r.Data)}
		case r.Type == nbd.NBD_REP_ACK:
		case r.Type != nbd.NBD_REP_META_CONTEXT || len(r.Data) < 5:
			return nil, fmt.Errorf("reply %d of %d bytes to a metadata option", r.Type, len(r.Data))
		default:
			ids[string(r.Data[4:])] = be.Uint32(r.Data)
		}
	}
	return ids, nil
}

// Extend returns r as it has to look with extended headers: with
// NBD_CMD_FLAG_PAYLOAD_LEN if it is a WRITE.
func (r Request) Extend() Request {
	if r.Cmd == nbd.NBD_CMD_WRITE {
		r.Flags |= nbd.NBD_CMD_FLAG_PAYLOAD_LEN
	}
	return r
}

// Chunk is one chunk of a reply.
type Chunk struct {
	Flags, Type uint16
	Cookie      uint64
	Offset      uint64 // with extended headers
	Payload     []byte
}

// Extent is what BLOCK_STATUS tells of a run of bytes.
type Extent struct{ Length, Flags uint64 }

// Answer is all that came in reply to one request.
type Answer struct {
	Err     nbd.Errno
	Message string              // of the error, if it came in a chunk
	Simple  bool                // it was a simple reply
	Data    []byte              // of a READ; where holes were told, zeros
	Holes   uint64              // bytes of Data that were told to be holes
	Content int                 // chunks of data or holes
	Status  map[uint32][]Extent // of a BLOCK_STATUS, by context id
}

// Ask sends one request and receives the answer, in whatever form was agreed on.
// It checks the form: whatever the document forbids a server is an error.
func (c *Client) Ask(r Request) (Answer, error) {
	if err := c.Send(r); err != nil {
		return Answer{}, err
	}
	return c.Answer(r)
}

// Answer is Ask without the sending: r has been sent, and everything before it
// has been answered.
func (c *Client) Answer(r Request) (Answer, error) {
	all, err := c.AnswerAll([]Request{r})
	return all[0], err
}

// AnswerAll receives the answers to requests of different cookies that have been
// sent, in whatever order they come, chunks of different answers mixed.
func (c *Client) AnswerAll(requests []Request) ([]Answer, error) {
	all := make([]Answer, len(requests))
	open := make(map[uint64]*answering, len(requests))
	for i, r := range requests {
		open[r.Cookie] = &answering{req: r, Answer: &all[i]}
		all[i].Status = make(map[uint32][]Extent)
	}
	for len(open) > 0 {
		magic, err := c.peekMagic()
		if err != nil {
			return all, err
		}
		var cookie uint64
		var done bool
		if magic == nbd.NBD_SIMPLE_REPLY_MAGIC {
			cookie, err = c.simpleAnswer(open)
			done = true
		} else {
			cookie, done, err = c.chunkAnswer(magic, open)
		}
		if err != nil {
			return all, err
		}
		if done {
			delete(open, cookie)
		}
	}
	return all, nil
}

// chunkAnswer receives a chunk of one of the open answers.
func (c *Client) chunkAnswer(magic uint32, open map[uint64]*answering) (cookie uint64, done bool, err error) {
	chunk, err := c.recvChunk(magic)
	if err != nil {
		return 0, false, err
	}
	a := open[chunk.Cookie]
	if a == nil {
		return 0, false, fmt.Errorf("chunk of type %#x for cookie %#x, which is not in flight", chunk.Type, chunk.Cookie)
	}
	if err := a.take(c, chunk); err != nil {
		return 0, false, fmt.Errorf("chunk of type %#x: %w", chunk.Type, err)
	}
	if chunk.Flags&nbd.NBD_REPLY_FLAG_DONE != 0 {
		return chunk.Cookie, true, a.complete()
	}
	return chunk.Cookie, false, nil
}

// peekMagic receives the first 4 bytes of a reply.
func (c *Client) peekMagic() (uint32, error) {
	b := make([]byte, 4)
	_, err := io.ReadFull(c, b)
	return be.Uint32(b), err
}

func (c *Client) simpleAnswer(open map[uint64]*answering) (cookie uint64, err error) {
	b := make([]byte, 12)
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, err
	}
	cookie = be.Uint64(b[4:])
	a := open[cookie]
	if a == nil {
		return cookie, fmt.Errorf("reply to cookie %#x, which is not in flight", cookie)
	}
	a.Simple, a.Err = true, nbd.Errno(be.Uint32(b))
	switch {
	case c.Extended:
		return cookie, errors.New("simple reply with extended headers")
	case a.chunks > 0:
		return cookie, errors.New("simple reply behind chunks")
	case c.Structured && a.req.Cmd == nbd.NBD_CMD_READ:
		return cookie, fmt.Errorf("simple reply (%v) to a READ with structured replies", a.Err)
	case a.req.Cmd == nbd.NBD_CMD_BLOCK_STATUS && a.Err == 0:
		return cookie, errors.New("simple reply to BLOCK_STATUS without an error")
	case a.req.Cmd == nbd.NBD_CMD_READ && a.Err == 0:
		a.Data = make([]byte, a.req.Length)
		_, err = io.ReadFull(c, a.Data)
	}
	return cookie, err
}

// recvChunk receives the rest of a chunk of that magic.
func (c *Client) recvChunk(magic uint32) (Chunk, error) {
	size := map[uint32]int{nbd.NBD_STRUCTURED_REPLY_MAGIC: 16, nbd.NBD_EXTENDED_REPLY_MAGIC: 28}[magic]
	if size == 0 || c.Extended != (size == 28) || !c.Extended && !c.Structured {
		return Chunk{}, fmt.Errorf("reply magic %#x with structured %v, extended %v", magic, c.Structured, c.Extended)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(c, b); err != nil {
		return Chunk{}, err
	}
	chunk := Chunk{Flags: be.Uint16(b), Type: be.Uint16(b[2:]), Cookie: be.Uint64(b[4:])}
	length := uint64(be.Uint32(b[12:]))
	if c.Extended {
		chunk.Offset, length = be.Uint64(b[12:]), be.Uint64(b[20:])
	}
	if length > 65<<20 {
		return chunk, fmt.Errorf("chunk of %d bytes", length)
	}
	chunk.Payload = make([]byte, length)
	_, err := io.ReadFull(c, chunk.Payload)
	return chunk, err
}

// RecvChunk receives one chunk.
func (c *Client) RecvChunk() (Chunk, error) {
	magic, err := c.peekMagic()
	if err != nil {
		return Chunk{}, err
	}
	return c.recvChunk(magic)
}

// answering is an Answer as its chunks come in.
type answering struct {
	*Answer
	req    Request
	chunks int
	seen   []span // parts of a READ that came
}

type span struct{ off, end uint64 }

// take checks a chunk and adds it to the answer.
func (a *answering) take(c *Client, chunk Chunk) error {
	a.chunks++
	switch {
	case c.Extended && chunk.Offset != a.req.Offset:
		return fmt.Errorf("offset %d in the reply to a request at %d", chunk.Offset, a.req.Offset)
	case chunk.Flags&^nbd.NBD_REPLY_FLAG_DONE != 0:
		return fmt.Errorf("unknown flags %#x", chunk.Flags)
	}
	switch chunk.Type {
	case nbd.NBD_REPLY_TYPE_NONE:
		if chunk.Flags&nbd.NBD_REPLY_FLAG_DONE == 0 || len(chunk.Payload) != 0 {
			return errors.New("not the last, or with a payload")
		}
		return nil
	case nbd.NBD_REPLY_TYPE_OFFSET_DATA, nbd.NBD_REPLY_TYPE_OFFSET_HOLE:
		return a.content(chunk)
	case nbd.NBD_REPLY_TYPE_BLOCK_STATUS, nbd.NBD_REPLY_TYPE_BLOCK_STATUS_EXT:
		if c.Extended != (chunk.Type == nbd.NBD_REPLY_TYPE_BLOCK_STATUS_EXT) {
			return errors.New("of the other header style")
		}
		return a.status(chunk)
	case nbd.NBD_REPLY_TYPE_ERROR, nbd.NBD_REPLY_TYPE_ERROR_OFFSET:
		return a.fault(chunk)
	}
	return errors.New("unknown type")
}

// content takes a chunk of data or a hole.
func (a *answering) content(chunk Chunk) error {
	p := chunk.Payload
	hole := chunk.Type == nbd.NBD_REPLY_TYPE_OFFSET_HOLE
	if len(p) < 9 || hole && len(p) != 12 || a.req.Cmd != nbd.NBD_CMD_READ {
		return fmt.Errorf("payload of %d bytes to command %d", len(p), a.req.Cmd)
	}
	s := span{off: be.Uint64(p)}
	s.end = s.off + uint64(len(p)-8)
	if hole {
		s.end = s.off + uint64(be.Uint32(p[8:]))
	}
	if s.off < a.req.Offset || s.end > a.req.Offset+a.req.Length || s.end <= s.off {
		return fmt.Errorf("range %d to %d of a read of %d bytes at %d", s.off, s.end, a.req.Length, a.req.Offset)
	}
	for _, other := range a.seen {
		if s.off < other.end && other.off < s.end {
			return fmt.Errorf("range %d to %d overlaps %d to %d", s.off, s.end, other.off, other.end)
		}
	}
	a.seen = append(a.seen, s)
	a.Content++
	if a.Data == nil {
		a.Data = make([]byte, a.req.Length)
	}
	if hole {
		a.Holes += s.end - s.off
	} else {
		copy(a.Data[s.off-a.req.Offset:], p[8:])
	}
	if a.Content > 1 && a.req.Flags&nbd.NBD_CMD_FLAG_DF != 0 {
		return errors.New("a second one with NBD_CMD_FLAG_DF")
	}
	return nil
}

// status takes a chunk of extents.
func (a *answering) status(chunk Chunk) error {
	p, head, size := chunk.Payload, 4, 8
	if chunk.Type == nbd.NBD_REPLY_TYPE_BLOCK_STATUS_EXT {
		head, size = 8, 16
	}
	n := (len(p) - head) / size
	if n < 1 || len(p) != head+n*size || size == 16 && be.Uint32(p[4:]) != uint32(n) || a.req.Cmd != nbd.NBD_CMD_BLOCK_STATUS {
		return fmt.Errorf("payload of %d bytes to command %d", len(p), a.req.Cmd)
	}
	id := be.Uint32(p)
	if a.Status[id] != nil {
		return fmt.Errorf("a second one for context %d", id)
	}
	length := a.req.Length
	if a.req.Flags&nbd.NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
		length = be.Uint64(a.req.Data)
	}
	one := a.req.Flags&nbd.NBD_CMD_FLAG_REQ_ONE != 0
	var sum uint64
	for p = p[head:]; len(p) > 0; p = p[size:] {
		e := Extent{uint64(be.Uint32(p)), uint64(be.Uint32(p[4:]))}
		if size == 16 {
			e = Extent{be.Uint64(p), be.Uint64(p[8:])}
		}
		if e.Length == 0 || sum >= length || one && (sum > 0 || e.Length > length) {
			return fmt.Errorf("extent of %d bytes behind %d, of %d that were asked for", e.Length, sum, length)
		}
		sum += e.Length
		a.Status[id] = append(a.Status[id], e)
	}
	return nil
}

// fault takes an error chunk.
func (a *answering) fault(chunk Chunk) error {
	p, tail := chunk.Payload, 0
	if chunk.Type == nbd.NBD_REPLY_TYPE_ERROR_OFFSET {
		tail = 8
	}
	if len(p) < 6 || len(p) != 6+int(be.Uint16(p[4:]))+tail {
		return fmt.Errorf("payload of %d bytes", len(p))
	}
	if a.Err == 0 {
		a.Err, a.Message = nbd.Errno(be.Uint32(p)), string(p[6:len(p)-tail])
	}
	if a.Err == 0 {
		return errors.New("an error of number 0")
	}
	if tail > 0 {
		if off := be.Uint64(p[len(p)-8:]); off < a.req.Offset || off >= a.req.Offset+a.req.Length {
			return fmt.Errorf("an error at %d of %d bytes at %d", off, a.req.Length, a.req.Offset)
		}
	}
	return nil
}

// complete checks an answer that has ended.
func (a *answering) complete() error {
	if a.Err != 0 {
		return nil
	}
	switch a.req.Cmd {
	case nbd.NBD_CMD_READ:
		var sum uint64
		for _, s := range a.seen {
			sum += s.end - s.off
		}
		if sum != a.req.Length {
			return fmt.Errorf("%d bytes in chunks, of %d", sum, a.req.Length)
		}
	case nbd.NBD_CMD_BLOCK_STATUS:
		if len(a.Status) == 0 {
			return errors.New("a block status without one")
		}
	}
	return nil
}
