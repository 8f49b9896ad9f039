package nbd

// Flags that a command may carry besides FUA, which all may. A command that is
// not here is unknown; one that an export does not offer is refused below.
var commandFlags = [...]uint16{
	NBD_CMD_READ:         NBD_CMD_FLAG_FUA,
	NBD_CMD_WRITE:        NBD_CMD_FLAG_FUA,
	NBD_CMD_DISC:         NBD_CMD_FLAG_FUA,
	NBD_CMD_FLUSH:        NBD_CMD_FLAG_FUA,
	NBD_CMD_TRIM:         NBD_CMD_FLAG_FUA,
	NBD_CMD_CACHE:        NBD_CMD_FLAG_FUA,
	NBD_CMD_WRITE_ZEROES: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
}

// validate decides whether a request may go to the backend: 0, or the error
// number of its reply. All checks are here, and what follows relies on them:
// the command is known and offered, its flags are legal, and its range lies
// inside the export. The range may be empty.
func (e *export) validate(req *request) Errno {
	if int(req.cmd) >= len(commandFlags) || req.flags&^commandFlags[req.cmd] != 0 {
		return NBD_EINVAL
	}
	changes := false
	switch req.cmd {
	case NBD_CMD_FLUSH, NBD_CMD_DISC:
		return 0 // offset and length must be zero, but servers take what clients send
	case NBD_CMD_WRITE:
		changes = true
	case NBD_CMD_TRIM:
		changes = true
		if !e.Trim && !e.ReadOnly {
			return NBD_EINVAL
		}
	case NBD_CMD_WRITE_ZEROES:
		changes = true
		if !e.Zero && !e.ReadOnly || !e.FastZero && req.flags&NBD_CMD_FLAG_FAST_ZERO != 0 {
			return NBD_EINVAL
		}
	}
	if changes && e.ReadOnly {
		return NBD_EPERM
	}
	if req.offset > e.Size || uint64(req.length) > e.Size-req.offset {
		return pastEnd(req.cmd)
	}
	mask := uint64(e.MinBlock) - 1
	if (req.offset|uint64(req.length))&mask != 0 {
		return NBD_EINVAL
	}
	if (req.cmd == NBD_CMD_READ || req.cmd == NBD_CMD_WRITE) && req.length > e.MaxPayload {
		return NBD_EINVAL
	}
	return 0
}

// pastEnd is the error number of a range beyond the end of the export: no
// space for what would fill it, otherwise a mistake.
func pastEnd(cmd uint16) Errno {
	if cmd == NBD_CMD_WRITE || cmd == NBD_CMD_WRITE_ZEROES {
		return NBD_ENOSPC
	}
	return NBD_EINVAL
}
