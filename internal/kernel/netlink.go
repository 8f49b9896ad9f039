package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Generic netlink, family "nbd" (include/uapi/linux/nbd-netlink.h), under the
// kernel's names.
const (
	nbdCmdConnect     = 1
	nbdCmdDisconnect  = 2
	nbdCmdReconfigure = 3

	nbdAttrIndex             = 1  // u32
	nbdAttrSizeBytes         = 2  // u64
	nbdAttrBlockSizeBytes    = 3  // u64
	nbdAttrTimeout           = 4  // u64, seconds
	nbdAttrServerFlags       = 5  // u64
	nbdAttrSockets           = 7  // nest of items
	nbdAttrDeadConnTimeout   = 8  // u64, seconds
	nbdAttrBackendIdentifier = 10 // string, since Linux 5.14

	nbdSockItem = 1 // nest
	nbdSockFD   = 1 // u32
)

// AnyIndex asks the kernel to choose a device that is free, or to make one.
const AnyIndex = -1

// A Setup is what the kernel is told of a device.
type Setup struct {
	Index     int    // N of /dev/nbdN, or AnyIndex
	Size      uint64 // bytes, a multiple of BlockSize
	BlockSize uint32 // logical block size, a power of two from 512 to the page size
	Flags     uint16 // transmission flags of the server, NBD_FLAG_…
	Backend   string // identifies what is behind the device; "" for nothing
	Sockets   []int  // descriptors of connections that are in transmission

	// Timeout is after which time without an answer the kernel gives up a
	// connection and sends the request on another one. Whole seconds.
	Timeout time.Duration
	// DeadTimeout is how long requests wait for a new connection when there is
	// none before they fail. Whole seconds.
	DeadTimeout time.Duration
}

// Connect makes a device of the sockets and returns its index. The error matches
// unix.EBUSY if the device with that index is connected already.
func Connect(s Setup) (index int, err error) {
	index = -1
	err = command(nbdCmdConnect, 0, func(ae *netlink.AttributeEncoder) {
		if s.Index != AnyIndex {
			ae.Uint32(nbdAttrIndex, uint32(s.Index))
		}
		ae.Uint64(nbdAttrSizeBytes, s.Size)
		ae.Uint64(nbdAttrBlockSizeBytes, uint64(s.BlockSize))
		ae.Uint64(nbdAttrServerFlags, uint64(s.Flags))
		s.encode(ae)
	}, func(ad *netlink.AttributeDecoder) {
		if ad.Type() == nbdAttrIndex {
			index = int(ad.Uint32())
		}
	})
	if err == nil && index < 0 {
		err = errors.New("no index in the answer")
	}
	if err != nil {
		return 0, fmt.Errorf("NBD_CMD_CONNECT: %w", err)
	}
	return index, nil
}

// Reconfigure gives the device new sockets in place of dead ones; those for which
// there is no dead one are dropped without an error. The backend must be the one
// that the device was connected with, else the error is unix.EINVAL.
func Reconfigure(s Setup) error {
	err := command(nbdCmdReconfigure, netlink.Acknowledge, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(nbdAttrIndex, uint32(s.Index))
		s.encode(ae)
	}, nil)
	if err != nil {
		return fmt.Errorf("NBD_CMD_RECONFIGURE of nbd%d: %w", s.Index, err)
	}
	return nil
}

// Resize gives the device the size of s, also while it is in use. A filesystem on it is
// told nothing; who looks sees the new size.
func Resize(s Setup) error {
	err := command(nbdCmdReconfigure, netlink.Acknowledge, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(nbdAttrIndex, uint32(s.Index))
		ae.Uint64(nbdAttrSizeBytes, s.Size)
		if s.Backend != "" {
			ae.String(nbdAttrBackendIdentifier, s.Backend)
		}
	}, nil)
	if err != nil {
		return fmt.Errorf("NBD_CMD_RECONFIGURE of nbd%d to %d bytes: %w", s.Index, s.Size, err)
	}
	return nil
}

// Disconnect ends the device: its connections get NBD_CMD_DISC, and requests that
// are under way or waiting fail. It is gone once nobody has it open.
func Disconnect(index int) error {
	err := command(nbdCmdDisconnect, netlink.Acknowledge, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(nbdAttrIndex, uint32(index))
	}, nil)
	if err != nil {
		return fmt.Errorf("NBD_CMD_DISCONNECT of nbd%d: %w", index, err)
	}
	return nil
}

// encode adds what CONNECT and RECONFIGURE have in common.
func (s *Setup) encode(ae *netlink.AttributeEncoder) {
	ae.Uint64(nbdAttrTimeout, seconds(s.Timeout))
	ae.Uint64(nbdAttrDeadConnTimeout, seconds(s.DeadTimeout))
	if s.Backend != "" {
		ae.String(nbdAttrBackendIdentifier, s.Backend)
	}
	ae.Nested(nbdAttrSockets, func(list *netlink.AttributeEncoder) error {
		for _, fd := range s.Sockets {
			list.Nested(nbdSockItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(nbdSockFD, uint32(fd))
				return nil
			})
		}
		return nil
	})
}

// seconds rounds up: what is short must not become 0, which is "none".
func seconds(d time.Duration) uint64 {
	return uint64(math.Ceil(d.Seconds()))
}

// command sends one command and decodes the attributes of the answer, if there is one.
func command(cmd uint8, flags netlink.HeaderFlags, encode func(*netlink.AttributeEncoder), decode func(*netlink.AttributeDecoder)) error {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	family, err := c.GetFamily("nbd")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the kernel has no netlink family nbd: %w", err)
	}
	if err != nil {
		return err
	}
	ae := netlink.NewAttributeEncoder()
	encode(ae)
	data, err := ae.Encode()
	if err != nil {
		return err
	}
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: family.Version}, Data: data}
	answers, err := c.Execute(m, family.ID, netlink.Request|flags)
	if err != nil {
		return plain(err)
	}
	for _, a := range answers {
		if decode == nil {
			break
		}
		ad, err := netlink.NewAttributeDecoder(a.Data)
		if err != nil {
			return err
		}
		for ad.Next() {
			decode(ad)
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	return nil
}

// plain is the kernel's own error, without the words of the netlink package around it.
func plain(err error) error {
	var op *netlink.OpError
	if !errors.As(err, &op) {
		return err
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: run as root", op.Err)
	}
	if op.Message != "" {
		return fmt.Errorf("%w (%s)", op.Err, op.Message)
	}
	return op.Err
}
