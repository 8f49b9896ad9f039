package nbd

import "math/bits"

// report logs that the backend failed a request, which the client learns as a bare
// number: the operator wants to know what and where. A client can make the same
// request fail for ever, so each connection logs its first failure, its second, its
// fourth, its eighth and so on.
func (c *conn) report(req *request, e Errno, err error) {
	if e != NBD_EIO && e != NBD_ENOSPC && e != NBD_ENOMEM {
		return // the client's own mistake
	}
	if c.failures++; bits.OnesCount64(c.failures) != 1 {
		return
	}
	c.s.o.Log.Error().Err(err).Str("export", c.exp.Name).Str("command", CommandName(int(req.cmd))).
		Uint64("offset", req.offset).Uint64("length", req.length).Str("answer", e.String()).
		Uint64("failures", c.failures).Msg("request failed")
}
