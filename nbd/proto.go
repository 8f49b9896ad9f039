package nbd

// The numbers of the protocol, under the names that proto.md gives them, so
// that a search for a name finds both. All integers on the wire are big endian.

// Handshake.
const (
	NBDMAGIC         = 0x4e42444d41474943 // the greeting's first 8 bytes, "NBDMAGIC"
	IHAVEOPT         = 0x49484156454f5054 // its second 8 bytes, and the head of every option
	NBD_OPTION_REPLY = 0x0003e889045565a9 // head of every option reply

	// Handshake flags, 16 bits from the server.
	NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
	NBD_FLAG_NO_ZEROES      = 1 << 1

	// Client flags, 32 bits from the client.
	NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
	NBD_FLAG_C_NO_ZEROES      = 1 << 1
)

// Options.
const (
	NBD_OPT_EXPORT_NAME       = 1
	NBD_OPT_ABORT             = 2
	NBD_OPT_LIST              = 3
	NBD_OPT_PEEK_EXPORT       = 4
	NBD_OPT_STARTTLS          = 5
	NBD_OPT_INFO              = 6
	NBD_OPT_GO                = 7
	NBD_OPT_STRUCTURED_REPLY  = 8
	NBD_OPT_LIST_META_CONTEXT = 9
	NBD_OPT_SET_META_CONTEXT  = 10
	NBD_OPT_EXTENDED_HEADERS  = 11
)

// Option reply types.
const (
	NBD_REP_ACK          = 1
	NBD_REP_SERVER       = 2
	NBD_REP_INFO         = 3
	NBD_REP_META_CONTEXT = 4

	NBD_REP_FLAG_ERROR          = 1 << 31
	NBD_REP_ERR_UNSUP           = NBD_REP_FLAG_ERROR | 1
	NBD_REP_ERR_POLICY          = NBD_REP_FLAG_ERROR | 2
	NBD_REP_ERR_INVALID         = NBD_REP_FLAG_ERROR | 3
	NBD_REP_ERR_PLATFORM        = NBD_REP_FLAG_ERROR | 4
	NBD_REP_ERR_TLS_REQD        = NBD_REP_FLAG_ERROR | 5
	NBD_REP_ERR_UNKNOWN         = NBD_REP_FLAG_ERROR | 6
	NBD_REP_ERR_SHUTDOWN        = NBD_REP_FLAG_ERROR | 7
	NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_FLAG_ERROR | 8
	NBD_REP_ERR_TOO_BIG         = NBD_REP_FLAG_ERROR | 9
	NBD_REP_ERR_EXT_HEADER_REQD = NBD_REP_FLAG_ERROR | 10
)

// Information types, 16 bits in INFO and GO and in their replies.
const (
	NBD_INFO_EXPORT      uint16 = 0
	NBD_INFO_NAME        uint16 = 1
	NBD_INFO_DESCRIPTION uint16 = 2
	NBD_INFO_BLOCK_SIZE  uint16 = 3
)

// Transmission flags, 16 bits in the answer to GO, INFO and EXPORT_NAME.
const (
	NBD_FLAG_HAS_FLAGS         = 1 << 0
	NBD_FLAG_READ_ONLY         = 1 << 1
	NBD_FLAG_SEND_FLUSH        = 1 << 2
	NBD_FLAG_SEND_FUA          = 1 << 3
	NBD_FLAG_ROTATIONAL        = 1 << 4
	NBD_FLAG_SEND_TRIM         = 1 << 5
	NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
	NBD_FLAG_SEND_DF           = 1 << 7
	NBD_FLAG_CAN_MULTI_CONN    = 1 << 8
	NBD_FLAG_SEND_RESIZE       = 1 << 9
	NBD_FLAG_SEND_CACHE        = 1 << 10
	NBD_FLAG_SEND_FAST_ZERO    = 1 << 11

	NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12
)

// Transmission.
const (
	NBD_REQUEST_MAGIC          = 0x25609513
	NBD_SIMPLE_REPLY_MAGIC     = 0x67446698
	NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef
	NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71
	NBD_EXTENDED_REPLY_MAGIC   = 0x6e8a278c

	NBD_CMD_READ         = 0
	NBD_CMD_WRITE        = 1
	NBD_CMD_DISC         = 2
	NBD_CMD_FLUSH        = 3
	NBD_CMD_TRIM         = 4
	NBD_CMD_CACHE        = 5
	NBD_CMD_WRITE_ZEROES = 6
	NBD_CMD_BLOCK_STATUS = 7

	NBD_CMD_FLAG_FUA       = 1 << 0
	NBD_CMD_FLAG_NO_HOLE   = 1 << 1
	NBD_CMD_FLAG_DF        = 1 << 2
	NBD_CMD_FLAG_REQ_ONE   = 1 << 3
	NBD_CMD_FLAG_FAST_ZERO = 1 << 4

	NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5
)

// Reply chunks: the flag of the last one, and the types.
const (
	NBD_REPLY_FLAG_DONE = 1 << 0

	NBD_REPLY_TYPE_NONE             = 0
	NBD_REPLY_TYPE_OFFSET_DATA      = 1
	NBD_REPLY_TYPE_OFFSET_HOLE      = 2
	NBD_REPLY_TYPE_BLOCK_STATUS     = 5
	NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
	NBD_REPLY_TYPE_ERROR            = 1<<15 | 1
	NBD_REPLY_TYPE_ERROR_OFFSET     = 1<<15 | 2
)

// Status flags of the metadata context base:allocation.
const (
	NBD_STATE_HOLE = 1 << 0
	NBD_STATE_ZERO = 1 << 1
)

// The error numbers of a reply. 0 is success.
const (
	NBD_EPERM     Errno = 1
	NBD_EIO       Errno = 5
	NBD_ENOMEM    Errno = 12
	NBD_EINVAL    Errno = 22
	NBD_ENOSPC    Errno = 28
	NBD_EOVERFLOW Errno = 75
	NBD_ENOTSUP   Errno = 95
	NBD_ESHUTDOWN Errno = 108
)

// Sizes on the wire, in bytes.
const (
	greetingSize     = 18 // NBDMAGIC, IHAVEOPT, flags
	clientFlagsSize  = 4
	optionSize       = 16  // IHAVEOPT, option, length
	optionReplySize  = 20  // magic, option, reply type, length
	exportReplySize  = 10  // size, transmission flags
	exportReplyZeros = 124 // after them, unless NO_ZEROES was agreed
	requestSize      = 28
	simpleReplySize  = 16

	extendedRequestSize = 32
	structuredHeadSize  = 20                   // of a chunk: magic, flags, type, cookie, length
	extendedHeadSize    = 32                   // … with the request's offset, and a length of 64 bits
	maxHeadSize         = extendedHeadSize + 8 // … and the offset of data

	holeSize         = 12 // payload of OFFSET_HOLE: offset, length
	errorSize        = 6  // payload of ERROR before the message: number, length
	extentSize       = 8  // of BLOCK_STATUS: length, flags
	extendedExtent   = 16 // the same in BLOCK_STATUS_EXT
	statusFilterHead = 8  // of BLOCK_STATUS with a payload: effect length
)

// Limits of the document.
const (
	maxString = 4096 // bytes of a name, description, message or query
)

// Limits of this server.
const (
	// maxOptionData is the most option data that is looked at: an INFO or GO
	// with the longest name and every information type there can be. Longer
	// data is skipped, and the option refused.
	maxOptionData = 4 + maxString + 2 + 2*0xffff

	// maxLongOptions is how many options with more data than fits a small buffer
	// are received at a time, over all connections. No client seen sends one.
	maxLongOptions = 8

	// maxDiscard is the longest payload, of an option or a WRITE that is
	// refused, that is read only to be thrown away. A longer one costs the
	// connection. The document wants no less than 32 MiB.
	maxDiscard = 64 << 20

	// A READ or WRITE that does not fit a buffer is moved in pieces that end at
	// multiples of their size, so that no backend block that divides it is ever
	// cut in two: largePiece and smallPiece are those of the two workspaces, and
	// pieceSize that of the buffer which a WRITE gets for itself, since every
	// piece costs an msync on some backends.
	largePiece = 256 << 10
	smallPiece = 8 << 10
	pieceSize  = 1 << 20

	// bufferSize and smallBuffer are those of the read and reply buffers of the
	// two workspaces. What is left beside a piece is for headers: 64 requests of
	// 4 KiB fit into the one, and the longest option reply into the other.
	bufferSize  = largePiece + 4<<10
	smallBuffer = smallPiece + 1<<10

	// largeStage and smallStage are the sizes of what TLS reads from: four
	// records, and part of one.
	largeStage = 64<<10 + 4<<10
	smallStage = 4 << 10

	// maxGroup and smallGroup are the numbers of WRITE requests handed to the
	// backend at once.
	maxGroup   = 256
	smallGroup = 8

	// sliceSize is how much of a TRIM or WRITE_ZEROES is handed to the backend
	// at once.
	sliceSize = 64 << 20

	// minHole is the least run of zeros, in bytes, that is not sent as data in
	// answer to a READ in chunks. What is shorter costs the client more as a
	// chunk of its own than as data.
	minHole = 4096

	// maxExtents and smallExtents are the numbers of extents that one
	// BLOCK_STATUS tells of.
	maxExtents   = 4096
	smallExtents = 64

	// maxMessage is the length in bytes of an error message in transmission.
	maxMessage = 256
)
