package nbd

// refusal is why a request does not get to the backend: the error number of its
// reply, and the reason for humans.
type refusal struct {
	errno Errno
	text  string
}

// Every refusal there is.
var (
	unknownCommand = refusal{NBD_EINVAL, "unknown command"}
	illegalFlag    = refusal{NBD_EINVAL, "a flag that this command does not have here"}
	notOffered     = refusal{NBD_EINVAL, "the export does not offer this command"}
	noFastZero     = refusal{NBD_EINVAL, "the export does not offer NBD_CMD_FLAG_FAST_ZERO"}
	noContexts     = refusal{NBD_EINVAL, "no metadata context is selected for this export"}
	badFilter      = refusal{NBD_EINVAL, "malformed payload, or a metadata context that is unknown or named twice"}
	emptyStatus    = refusal{NBD_EINVAL, "block status of no bytes"}
	readOnly       = refusal{NBD_EPERM, "the export is read-only"}
	noSpace        = refusal{NBD_ENOSPC, "the range ends past the end of the export"}
	outside        = refusal{NBD_EINVAL, "the range ends past the end of the export"}
	unaligned      = refusal{NBD_EINVAL, "offset or length is not a multiple of the minimum block"}
	tooMuch        = refusal{NBD_EINVAL, "length beyond the maximum payload"}
	shuttingDown   = refusal{NBD_ESHUTDOWN, "the server is shutting down"}
)

// legalFlags returns, by command, the flags that a request may carry under t. FUA
// all commands may.
func (t *terms) legalFlags() (legal [knownCommands]uint16) {
	for cmd := range legal {
		legal[cmd] = NBD_CMD_FLAG_FUA
	}
	legal[NBD_CMD_WRITE_ZEROES] |= NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO
	legal[NBD_CMD_BLOCK_STATUS] |= NBD_CMD_FLAG_REQ_ONE
	if t.chunks() {
		legal[NBD_CMD_READ] |= NBD_CMD_FLAG_DF
	}
	if t.extended {
		legal[NBD_CMD_WRITE] |= NBD_CMD_FLAG_PAYLOAD_LEN
		legal[NBD_CMD_BLOCK_STATUS] |= NBD_CMD_FLAG_PAYLOAD_LEN
	}
	return legal
}

// knownCommands is the number of commands, which are numbered from 0.
const knownCommands = NBD_CMD_BLOCK_STATUS + 1

// validate decides whether a request may go to the backend: nil, or why not. All
// checks are here, and what follows relies on them: the command is known and
// offered, its flags are legal, and its range lies inside the export. The range
// may be empty. Of a BLOCK_STATUS whose range is in its payload the range is
// left to inside.
func (e *export) validate(req *request, t *terms) *refusal {
	switch {
	case req.cmd >= knownCommands:
		return &unknownCommand
	case req.flags&^t.legal[req.cmd] != 0:
		return &illegalFlag
	}
	changes := false
	switch req.cmd {
	case NBD_CMD_FLUSH, NBD_CMD_DISC:
		return nil // offset and length must be zero, but servers take what clients send
	case NBD_CMD_WRITE:
		changes = true
	case NBD_CMD_TRIM:
		changes = true
		if !e.Trim && !e.ReadOnly {
			return &notOffered
		}
	case NBD_CMD_WRITE_ZEROES:
		changes = true
		if !e.Zero && !e.ReadOnly {
			return &notOffered
		}
		if !e.FastZero && req.flags&NBD_CMD_FLAG_FAST_ZERO != 0 {
			return &noFastZero
		}
	case NBD_CMD_BLOCK_STATUS:
		if t.contexts == 0 {
			return &noContexts
		}
		if req.flags&NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
			return nil
		}
	}
	if changes && e.ReadOnly {
		return &readOnly
	}
	return e.inside(req)
}

// inside checks the range of a request.
func (e *export) inside(req *request) *refusal {
	if size := e.size.Load(); req.offset > size || req.length > size-req.offset {
		if req.cmd == NBD_CMD_WRITE || req.cmd == NBD_CMD_WRITE_ZEROES {
			return &noSpace
		}
		return &outside
	}
	if (req.offset|req.length)&(uint64(e.MinBlock)-1) != 0 {
		return &unaligned
	}
	if (req.cmd == NBD_CMD_READ || req.cmd == NBD_CMD_WRITE) && req.length > uint64(e.MaxPayload) {
		return &tooMuch
	}
	if req.cmd == NBD_CMD_BLOCK_STATUS && req.length == 0 {
		return &emptyStatus
	}
	return nil
}
