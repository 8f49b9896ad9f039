package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/bttnbd/bttnbd/nbd"
)

// An Export is what a server tells of one.
type Export struct {
	Size      uint64 // bytes
	Flags     uint16 // transmission flags, NBD_FLAG_…
	MinBlock  uint32 // bytes; 1 if the server does not say
	Preferred uint32 // bytes; 4096 if the server does not say
}

// ErrNoExport says that the server has no export of that name.
var ErrNoExport = errors.New("no such export")

var be = binary.BigEndian

// Negotiate is the client's half of the fixed newstyle handshake, up to
// transmission. It asks for nothing that the kernel does not speak: no structured
// replies, no extended headers.
//
//	client                                server
//	  |  <-- NBDMAGIC IHAVEOPT flags --------|
//	  |  --- flags ------------------------->|
//	  |  --- NBD_OPT_GO name, BLOCK_SIZE --->|
//	  |  <-- NBD_REP_INFO … NBD_REP_ACK -----|
func Negotiate(c io.ReadWriter, name string) (Export, error) {
	if err := greet(c); err != nil {
		return Export{}, fmt.Errorf("handshake: %w", err)
	}
	e, err := goOption(c, name)
	if err != nil {
		return Export{}, fmt.Errorf("handshake: export %.80q: %w", name, err)
	}
	return e, nil
}

func greet(c io.ReadWriter) error {
	var greeting [18]byte
	if _, err := io.ReadFull(c, greeting[:]); err != nil {
		return err
	}
	flags := be.Uint16(greeting[16:])
	switch {
	case be.Uint64(greeting[:]) != nbd.NBDMAGIC:
		return errors.New("this is no NBD server")
	case be.Uint64(greeting[8:]) != nbd.IHAVEOPT, flags&nbd.NBD_FLAG_FIXED_NEWSTYLE == 0:
		return errors.New("the server does not speak the fixed newstyle handshake")
	}
	_, err := c.Write(be.AppendUint32(nil, uint32(flags)&(nbd.NBD_FLAG_C_FIXED_NEWSTYLE|nbd.NBD_FLAG_C_NO_ZEROES)))
	return err
}

// goOption chooses the export and reads the answers.
func goOption(c io.ReadWriter, name string) (Export, error) {
	data := be.AppendUint32(nil, uint32(len(name)))
	data = append(data, name...)
	data = be.AppendUint16(data, 1)
	data = be.AppendUint16(data, nbd.NBD_INFO_BLOCK_SIZE)
	option := be.AppendUint64(nil, nbd.IHAVEOPT)
	option = be.AppendUint32(option, nbd.NBD_OPT_GO)
	option = be.AppendUint32(option, uint32(len(data)))
	if _, err := c.Write(append(option, data...)); err != nil {
		return Export{}, err
	}
	e := Export{MinBlock: nbd.DefaultMinBlock, Preferred: nbd.DefaultPreferredBlock}
	described := false
	for {
		reply, data, err := readReply(c)
		switch {
		case err != nil:
			return e, err
		case reply == nbd.NBD_REP_ACK && described:
			return e, nil
		case reply == nbd.NBD_REP_INFO && len(data) >= 2:
			described = e.learn(data) || described
		case reply&nbd.NBD_REP_FLAG_ERROR != 0:
			return e, refusal(reply, string(data))
		default:
			return e, fmt.Errorf("reply %#x makes no sense", reply)
		}
	}
}

// maxReply is far above every reply that an honest server sends.
const maxReply = 64 << 10

// readReply reads one option reply: magic, option, reply, length, data.
func readReply(r io.Reader) (reply uint32, data []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := be.Uint32(head[16:])
	if be.Uint64(head[:]) != nbd.NBD_OPTION_REPLY || be.Uint32(head[8:]) != nbd.NBD_OPT_GO || n > maxReply {
		return 0, nil, errors.New("no reply to NBD_OPT_GO")
	}
	data = make([]byte, n)
	_, err = io.ReadFull(r, data)
	return be.Uint32(head[12:]), data, err
}

// learn takes one NBD_REP_INFO, and reports whether it is NBD_INFO_EXPORT.
func (e *Export) learn(data []byte) bool {
	switch info := be.Uint16(data); {
	case info == nbd.NBD_INFO_EXPORT && len(data) == 12:
		e.Size, e.Flags = be.Uint64(data[2:]), be.Uint16(data[10:])
		return true
	case info == nbd.NBD_INFO_BLOCK_SIZE && len(data) == 14:
		e.MinBlock, e.Preferred = be.Uint32(data[2:]), be.Uint32(data[6:])
	}
	return false
}

// refusal is an error reply in words.
func refusal(reply uint32, message string) error {
	message = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, message)
	switch reply {
	case nbd.NBD_REP_ERR_UNKNOWN:
		return fmt.Errorf("%w: %.200s", ErrNoExport, message)
	case nbd.NBD_REP_ERR_TLS_REQD:
		return errors.New("the server wants TLS, which the kernel's client does not speak: serve on a unix socket, or put a TLS proxy in between")
	case nbd.NBD_REP_ERR_UNSUP:
		return errors.New("the server does not know NBD_OPT_GO")
	}
	return fmt.Errorf("refused with error %#x: %.200s", reply, message)
}
