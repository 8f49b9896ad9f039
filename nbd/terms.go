package nbd

// terms are what client and server have agreed on in the handshake.
type terms struct {
	noZeroes   bool // no exportReplyZeros
	structured bool // replies with data, and errors, are chunks
	extended   bool // headers are extended; every reply is a chunk

	contexts    contexts // selected …
	contextsFor string   // … for the export of this name

	legal [knownCommands]uint16 // legalFlags, once the handshake is over
}

// chunks says whether a READ is answered in chunks.
func (t *terms) chunks() bool { return t.structured || t.extended }

// requestSize is the size of a request header.
func (t *terms) requestSize() int {
	if t.extended {
		return extendedRequestSize
	}
	return requestSize
}

// headSize is the size of the head of a chunk.
func (t *terms) headSize() int {
	if t.extended {
		return extendedHeadSize
	}
	return structuredHeadSize
}

// payload is the number of bytes that follow the header of req. With extended
// headers a WRITE has to say that it has a payload. qemu (seen with 10.0) does not
// say so, and sends it; its server takes that, and so does this one.
func (t *terms) payload(req *request) uint64 {
	if req.cmd == NBD_CMD_WRITE || t.extended && req.flags&NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
		return req.length
	}
	return 0
}

// maxRefused is the longest payload that is skipped when its request is refused.
// With extended headers the document wants the connection to end at what was
// advertised; before, servers were known for accepting more than they said.
func (t *terms) maxRefused(e *export) uint64 {
	if t.extended {
		return uint64(e.MaxPayload)
	}
	return maxDiscard
}

// contexts is a set of metadata contexts: bit i stands for contextTable[i].
type contexts uint8

// contextTable lists the metadata contexts that every export has. The id of one
// on the wire is its index plus 1.
var contextTable = [...]struct {
	namespace, leaf string
	flags           func(state uint8) uint32 // what BLOCK_STATUS tells of a state
}{
	{"base:", "allocation", allocationFlags},
	{"x-btt:", "error", errorFlags},
}

// allocationFlags are the status flags of base:allocation.
func allocationFlags(state uint8) uint32 {
	var flags uint32
	if state&StateHole != 0 {
		flags |= NBD_STATE_HOLE
	}
	if state&StateZero != 0 {
		flags |= NBD_STATE_ZERO
	}
	return flags
}

// errorFlags are the status flags of x-btt:error: bit 0 is set where a READ
// fails with EIO until the place is written. The other bits are zero.
func errorFlags(state uint8) uint32 {
	if state&StateError != 0 {
		return 1
	}
	return 0
}
