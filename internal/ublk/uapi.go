package ublk

// What the driver and its servers say to each other, include/uapi/linux/ublk_cmd.h of
// Linux 6.12. Numbers are in the byte order of the machine.

// Commands are numbers of ioctl(2) (UBLK_F_CMD_IOCTL_ENCODE, since Linux 6.4): direction,
// size of the argument, 'u', number.
func command(direction, size, nr uint32) uint32 { return direction<<30 | size<<16 | 'u'<<8 | nr }

const (
	ioRead, ioReadWrite = 2, 3 // _IOR, _IOWR

	controlSize = 32 // struct ublksrv_ctrl_cmd
	ioSize      = 16 // struct ublksrv_io_cmd
)

var (
	cmdInfo          = command(ioRead, controlSize, 0x02)
	cmdAdd           = command(ioReadWrite, controlSize, 0x04)
	cmdDelete        = command(ioReadWrite, controlSize, 0x05)
	cmdStart         = command(ioReadWrite, controlSize, 0x06)
	cmdStop          = command(ioReadWrite, controlSize, 0x07)
	cmdSetParams     = command(ioReadWrite, controlSize, 0x08)
	cmdStartRecovery = command(ioReadWrite, controlSize, 0x10)
	cmdEndRecovery   = command(ioReadWrite, controlSize, 0x11)
	cmdDeleteAsync   = command(ioRead, controlSize, 0x14)

	cmdFetch  = command(ioReadWrite, ioSize, 0x20)
	cmdCommit = command(ioReadWrite, ioSize, 0x21) // and fetch
)

// Flags of a device.
const (
	flagRecovery        = 1 << 3 // UBLK_F_USER_RECOVERY: requests wait while there is no server
	flagRecoveryReissue = 1 << 4 // …_REISSUE: and those under way are sent again
	flagIoctl           = 1 << 6 // UBLK_F_CMD_IOCTL_ENCODE
)

// State is that of a device.
type State uint16

// The states of a device, UBLK_S_DEV_….
const (
	Dead     State = iota // made, or stopped: there is no disk
	Live                  // has a server
	Quiesced              // its server is gone, requests wait
)

// Info is struct ublksrv_ctrl_dev_info.
//
//	0        2       4       6   8         12       16    20  24      32       40      64
//	+--------+-------+-------+---+---------+--------+-----+---+-------+--------+-------+
//	| queues | depth | state | - | max I/O | number | pid | - | flags | cookie | …     |
//	+--------+-------+-------+---+---------+--------+-----+---+-------+--------+-------+
//
// The header calls the cookie ublksrv_flags: the driver keeps it for its servers, and
// does not look at it.
type Info struct {
	Queues, Depth uint16
	State         State
	MaxIO         uint32 // bytes of a request
	Index         uint32 // N of /dev/ublkbN
	PID           int32  // of the server; -1 if the device was never started
	Flags         uint64
	Cookie        uint64
}

const infoSize = 64

func (in *Info) encode(b []byte) {
	clear(b[:infoSize])
	ne.PutUint16(b[0:], in.Queues)
	ne.PutUint16(b[2:], in.Depth)
	ne.PutUint16(b[4:], uint16(in.State))
	ne.PutUint32(b[8:], in.MaxIO)
	ne.PutUint32(b[12:], in.Index)
	ne.PutUint32(b[16:], uint32(in.PID))
	ne.PutUint64(b[24:], in.Flags)
	ne.PutUint64(b[32:], in.Cookie)
}

func decodeInfo(b []byte) Info {
	return Info{
		Queues: ne.Uint16(b[0:]), Depth: ne.Uint16(b[2:]), State: State(ne.Uint16(b[4:])),
		MaxIO: ne.Uint32(b[8:]), Index: ne.Uint32(b[12:]), PID: int32(ne.Uint32(b[16:])),
		Flags: ne.Uint64(b[24:]), Cookie: ne.Uint64(b[32:]),
	}
}

// control is struct ublksrv_ctrl_cmd: which device, and a buffer or a number.
//
//	0        4       6      8      16     24              32
//	+--------+-------+------+------+------+---------------+
//	| device | queue | size | addr | data | (a path) …    |
//	+--------+-------+------+------+------+---------------+
type control struct {
	index uint32
	size  uint16
	addr  uint64
	data  uint64
}

const noQueue, anyIndex = 0xffff, 0xffffffff

func (c *control) encode(b []byte) {
	ne.PutUint32(b[0:], c.index)
	ne.PutUint16(b[4:], noQueue)
	ne.PutUint16(b[6:], c.size)
	ne.PutUint64(b[8:], c.addr)
	ne.PutUint64(b[16:], c.data)
}

// params is struct ublk_params with its first two parts, basic and discard. Sizes with a
// shift are powers of two, a sector is 512 bytes.
//
//	0     4       8       12      13       14      15      16       20      24
//	+-----+-------+-------+-------+--------+-------+-------+--------+-------+
//	| len | types | attrs | log.  | phys.  | opt.  | min.  | max    | chunk |
//	|     |       |       | shift | shift  | shift | shift | sectors|       |
//	+-----+-------+-------+-------+--------+-------+-------+--------+-------+
//	24        32         40            44            48        52          56         58  60
//	+---------+----------+-------------+-------------+---------+-----------+----------+---+
//	| sectors | boundary | discard:    | granularity | max     | max write | segments | - |
//	|         |          | alignment   |             | sectors | zeroes    |          |   |
//	+---------+----------+-------------+-------------+---------+-----------+----------+---+
type params struct {
	attrs                      uint32
	logicalShift               byte
	physicalShift              byte
	maxSectors                 uint32
	sectors                    uint64
	granularity                uint32
	maxDiscard, maxWriteZeroes uint32 // sectors
}

const (
	paramsLen               = 60
	typeBasic               = 1 << 0
	typeDiscard             = 1 << 1
	attrReadOnly            = 1 << 0
	attrVolatileCache       = 1 << 2
	attrFUA                 = 1 << 3
	sectorShift             = 9
	discardSegments         = 1
	maxClear          int64 = 64 << 20 // bytes of a discard or write zeroes
)

func (p *params) encode(b []byte) {
	clear(b[:paramsLen])
	ne.PutUint32(b[0:], paramsLen)
	ne.PutUint32(b[4:], typeBasic|typeDiscard)
	ne.PutUint32(b[8:], p.attrs)
	b[12], b[13], b[14], b[15] = p.logicalShift, p.physicalShift, p.physicalShift, p.physicalShift
	ne.PutUint32(b[16:], p.maxSectors)
	ne.PutUint64(b[24:], p.sectors)
	ne.PutUint32(b[44:], p.granularity)
	ne.PutUint32(b[48:], p.maxDiscard)
	ne.PutUint32(b[52:], p.maxWriteZeroes)
	if p.maxDiscard > 0 {
		ne.PutUint16(b[56:], discardSegments)
	}
}

// desc is struct ublksrv_io_desc, a request, in memory that the driver writes.
//
//	0        4         8              16     24
//	+--------+---------+--------------+------+
//	| op and | sectors | first sector | addr |
//	| flags  |         |              |      |
//	+--------+---------+--------------+------+
type desc struct {
	op   byte
	fua  bool
	off  int64 // bytes
	size int64 // bytes
}

const (
	descSize = 24

	opRead        = 0
	opWrite       = 1
	opFlush       = 2
	opDiscard     = 3
	opWriteZeroes = 5
	ioFUA         = 1 << 13
)

func decodeDesc(b []byte) desc {
	flags := ne.Uint32(b[0:])
	return desc{
		op: byte(flags), fua: flags&ioFUA != 0,
		off: int64(ne.Uint64(b[8:]) << sectorShift), size: int64(ne.Uint32(b[4:])) << sectorShift,
	}
}

// encodeIO fills struct ublksrv_io_cmd in: what has become of the request, and the
// buffer for the next one.
//
//	0       2     4        8      16
//	+-------+-----+--------+------+
//	| queue | tag | result | addr |
//	+-------+-----+--------+------+
func encodeIO(b []byte, queue, tag uint16, result int32, addr uint64) {
	ne.PutUint16(b[0:], queue)
	ne.PutUint16(b[2:], tag)
	ne.PutUint32(b[4:], uint32(result))
	ne.PutUint64(b[8:], addr)
}

// Each queue's descriptors are at a multiple of this in the character device: those of
// the largest queue (UBLK_MAX_QUEUE_DEPTH), in whole pages.
const maxQueueDepth = 4096

func descsOffset(queue int) int64 { return int64(queue) * int64(pages(maxQueueDepth*descSize)) }

func descsSize(depth uint16) int { return pages(int(depth) * descSize) }
