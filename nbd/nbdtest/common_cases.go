package nbdtest

import (
	"bytes"
	"fmt"
	"math"

	"github.com/bttnbd/bttnbd/nbd"
)

// formCase is a behaviour in transmission, whatever its form.
type formCase struct {
	name string
	run  func(*session) error
}

const kib = 1 << 10

// commonCases have names without the form.
var commonCases = []formCase{
	{"write-then-read", func(x *session) error {
		p := fill(1, 64*kib)
		x.ok(Write(1, 8192, p), "write")
		return x.holds(8192, p)
	}},
	{"cookie-of-all-bits", func(x *session) error {
		x.ok(Read(math.MaxUint64, 0, 512), "read")
		x.ok(Write(0, 0, fill(2, 512)), "write")
		return nil
	}},
	{"fua-on-every-command", func(x *session) error {
		if !x.offers(nbd.NBD_FLAG_SEND_FUA) {
			return notOffered("FUA")
		}
		for _, r := range []Request{Read(1, 0, 512), Write(2, 0, fill(3, 512)), Command(nbd.NBD_CMD_FLUSH, 3, 0, 0)} {
			r.Flags |= nbd.NBD_CMD_FLAG_FUA
			x.ok(r, fmt.Sprintf("command %d", r.Cmd))
		}
		return nil
	}},
	{"flush", func(x *session) error {
		if !x.offers(nbd.NBD_FLAG_SEND_FLUSH) {
			return notOffered("FLUSH")
		}
		x.ok(Command(nbd.NBD_CMD_FLUSH, 1, 0, 0), "flush")
		return nil
	}},
	{"flush-with-offset-and-length", func(x *session) error {
		x.want(Command(nbd.NBD_CMD_FLUSH, 1, 4096, 4096), "flush", 0, nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"trim", func(x *session) error { return x.optional(nbd.NBD_FLAG_SEND_TRIM, nbd.NBD_CMD_TRIM, 0) }},
	{"cache", func(x *session) error { return x.optional(nbd.NBD_FLAG_SEND_CACHE, nbd.NBD_CMD_CACHE, 0) }},
	{"write-zeroes", func(x *session) error { return x.zeroes(0) }},
	{"write-zeroes-no-hole", func(x *session) error { return x.zeroes(nbd.NBD_CMD_FLAG_NO_HOLE) }},
	{"fast-zero", func(x *session) error {
		if !x.offers(nbd.NBD_FLAG_SEND_FAST_ZERO) {
			return notOffered("FAST_ZERO")
		}
		return x.optional(nbd.NBD_FLAG_SEND_WRITE_ZEROES, nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_FLAG_FAST_ZERO, nbd.NBD_ENOTSUP)
	}},
	{"fast-zero-unadvertised", func(x *session) error {
		if x.offers(nbd.NBD_FLAG_SEND_FAST_ZERO) || !x.offers(nbd.NBD_FLAG_SEND_WRITE_ZEROES) {
			return nil
		}
		r := Command(nbd.NBD_CMD_WRITE_ZEROES, 1, 0, 4096)
		r.Flags = nbd.NBD_CMD_FLAG_FAST_ZERO
		x.want(r, "fast zero", nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"empty-requests", func(x *session) error {
		for _, r := range x.everyCommand(0, 0) {
			x.ok(r, fmt.Sprintf("command %d of no bytes", r.Cmd))
		}
		return x.inStep()
	}},
	{"past-the-end", func(x *session) error { return x.outside(x.info.Size-512, 1024) }},
	{"far-past-the-end", func(x *session) error { return x.outside(1<<62, 512) }},
	{"wrap-around", func(x *session) error { return x.outside(math.MaxUint64-511, 1024) }},
	{"last-bytes", func(x *session) error {
		p := fill(4, 512)
		x.ok(Write(1, x.info.Size-512, p), "write")
		return x.holds(x.info.Size-512, p)
	}},
	{"unknown-command", func(x *session) error {
		x.want(Command(4711, 1, 0, 0), "command 4711", nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"unknown-flag", func(x *session) error {
		for _, r := range []Request{Read(1, 0, 512), Write(2, 0, fill(5, 512))} {
			r.Flags |= 1 << 12
			x.want(r, fmt.Sprintf("command %d with flag 12", r.Cmd), nbd.NBD_EINVAL)
		}
		return x.inStep()
	}},
	{"misplaced-flag", func(x *session) error {
		w := Write(2, 0, fill(5, 512))
		w.Flags |= nbd.NBD_CMD_FLAG_NO_HOLE
		x.want(w, "write with NO_HOLE", nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"unaligned", func(x *session) error {
		if x.info.MinBlock > 1 {
			x.want(Read(1, 1, 512), "read at 1", nbd.NBD_EINVAL)
			return x.inStep()
		}
		p := fill(6, 5001)
		x.ok(Write(1, 4095, p), "write at 4095")
		return x.holds(4095, p)
	}},
	{"maximum-payload", func(x *session) error {
		n := int(min(uint64(x.payload()), x.info.Size))
		p := fill(7, n)
		x.ok(Write(1, 0, p), "write")
		return x.holds(0, p)
	}},
	{"read-beyond-maximum-payload", func(x *session) error {
		n := uint64(x.payload()) + 4096
		if n > x.info.Size {
			return nil
		}
		x.ask(Read(1, 0, uint32(n)), "read") // an error or all of it, but an answer
		return x.inStep()
	}},
	{"many-in-flight", (*session).manyInFlight},
	{"read-only", (*session).readOnly},
	{"block-status-without-contexts", func(x *session) error {
		y, err := x.suite.enter(x.form, x.suite.Export)
		if err != nil {
			return err
		}
		y.want(Command(nbd.NBD_CMD_BLOCK_STATUS, 1, 0, 4096), "block status", nbd.NBD_EINVAL)
		y.inStep()
		return y.err
	}},
	{"df-only-in-chunks", func(x *session) error {
		if x.offers(nbd.NBD_FLAG_SEND_DF) && x.form == simple {
			return fmt.Errorf("NBD_FLAG_SEND_DF without chunks")
		}
		return nil
	}},
	{"flags", func(x *session) error {
		f := x.info.Flags
		switch {
		case f&nbd.NBD_FLAG_HAS_FLAGS == 0:
			return fmt.Errorf("no NBD_FLAG_HAS_FLAGS in %#x", f)
		case f&nbd.NBD_FLAG_SEND_FAST_ZERO != 0 && f&nbd.NBD_FLAG_SEND_WRITE_ZEROES == 0:
			return fmt.Errorf("fast zero without zero in %#x", f)
		case f&nbd.NBD_FLAG_BLOCK_STATUS_PAYLOAD != 0 && x.form != extended:
			return fmt.Errorf("NBD_FLAG_BLOCK_STATUS_PAYLOAD without extended headers in %#x", f)
		}
		return nil
	}},
	{"bad-magic-drops", func(x *session) error {
		if _, err := x.Conn.Write(make([]byte, 64)); err != nil {
			return err
		}
		x.wantClosed("a request without its magic")
		return nil
	}},
	{"disconnect-answers-first", (*session).disconnect},
}

// payload is the most that one READ or WRITE moves.
func (x *session) payload() uint32 {
	if x.info.MaxPayload == 0 {
		return nbd.DefaultMaxPayload
	}
	return min(x.info.MaxPayload, nbd.DefaultMaxPayload)
}

// holds fails unless the export holds p at off, and all is in step.
func (x *session) holds(off uint64, p []byte) error {
	a := x.ok(Read(77, off, uint32(len(p))), "read")
	if x.err == nil && !bytes.Equal(a.Data, p) {
		return fmt.Errorf("%d bytes at %d read otherwise than they were written", len(p), off)
	}
	return nil
}

// inStep fails unless the connection goes on as it should.
func (x *session) inStep() error {
	p := fill(99, 1024)
	x.ok(Write(0xfeed, 1<<20, p), "write afterwards")
	return x.holds(1<<20, p)
}

// optional sends a command that an export need not offer. Its end is success, or
// one of errnos.
func (x *session) optional(flag, cmd, flags uint16, errnos ...nbd.Errno) error {
	if !x.offers(flag) {
		return notOffered(fmt.Sprintf("command %d", cmd))
	}
	r := Command(cmd, 1, 4096, 64*kib)
	r.Flags = flags
	x.want(r, fmt.Sprintf("command %d", cmd), append(errnos, 0)...)
	return x.inStep()
}

// zeroes fails unless WRITE_ZEROES makes zeros of its range alone.
func (x *session) zeroes(flags uint16) error {
	if !x.offers(nbd.NBD_FLAG_SEND_WRITE_ZEROES) {
		return notOffered("WRITE_ZEROES")
	}
	p := fill(8, 64*kib)
	x.ok(Write(1, 0, p), "write")
	r := Command(nbd.NBD_CMD_WRITE_ZEROES, 2, 4096, 32*kib)
	r.Flags = flags
	x.ok(r, "zeroes")
	clear(p[4096:][:32*kib])
	return x.holds(0, p)
}

// everyCommand is each offered command with a range.
func (x *session) everyCommand(off, n uint64) []Request {
	all := []Request{Read(1, off, uint32(n)), Write(2, off, fill(9, int(n)))}
	if x.offers(nbd.NBD_FLAG_SEND_TRIM) {
		all = append(all, Command(nbd.NBD_CMD_TRIM, 3, off, n))
	}
	if x.offers(nbd.NBD_FLAG_SEND_WRITE_ZEROES) {
		all = append(all, Command(nbd.NBD_CMD_WRITE_ZEROES, 4, off, n))
	}
	return all
}

// outside fails unless every command on a range past the end is refused.
func (x *session) outside(off, n uint64) error {
	for _, r := range x.everyCommand(off, n) {
		want := nbd.NBD_EINVAL
		if r.Cmd == nbd.NBD_CMD_WRITE || r.Cmd == nbd.NBD_CMD_WRITE_ZEROES {
			want = nbd.NBD_ENOSPC
		}
		x.want(r, fmt.Sprintf("command %d", r.Cmd), want)
	}
	return x.inStep()
}

// manyInFlight sends reads whose answers may come in any order, but not mixed up.
func (x *session) manyInFlight() error {
	const n = 64
	x.ok(Write(1, 0, fill(10, n*512)), "write")
	if x.err != nil {
		return nil
	}
	var requests []Request
	for i := range uint64(n) {
		requests = append(requests, Read(1000+i, i*512, 512))
	}
	if err := x.Send(requests...); err != nil {
		return err
	}
	answers, err := x.AnswerAll(requests)
	if err != nil {
		return err
	}
	want := fill(10, n*512)
	for i, a := range answers {
		if a.Err != 0 || !bytes.Equal(a.Data, want[i*512:][:512]) {
			return fmt.Errorf("read %d of %d in flight: %v, or other data", i, n, a.Err)
		}
	}
	return nil
}

func (x *session) readOnly() error {
	if x.suite.ReadOnly == "" {
		return nil
	}
	y, err := x.suite.enter(x.form, x.suite.ReadOnly)
	if err != nil {
		return err
	}
	if !y.offers(nbd.NBD_FLAG_READ_ONLY) {
		return fmt.Errorf("no NBD_FLAG_READ_ONLY in %#x", y.info.Flags)
	}
	y.want(Write(1, 0, fill(11, 512)), "write", nbd.NBD_EPERM)
	y.want(Command(nbd.NBD_CMD_WRITE_ZEROES, 2, 0, 512), "zeroes", nbd.NBD_EPERM, nbd.NBD_EINVAL)
	y.want(Command(nbd.NBD_CMD_TRIM, 3, 0, 512), "trim", nbd.NBD_EPERM, nbd.NBD_EINVAL)
	y.ok(Read(4, 0, 512), "read")
	return y.err
}

// disconnect fails unless what was sent before NBD_CMD_DISC is answered.
func (x *session) disconnect() error {
	r := Read(1, 0, 512)
	if err := x.Send(r, Command(nbd.NBD_CMD_DISC, 2, 0, 0)); err != nil {
		return err
	}
	switch a, err := x.Answer(r); {
	case err != nil:
		return fmt.Errorf("read before the disconnect: %w", err)
	case a.Err != 0:
		return fmt.Errorf("read before the disconnect: %v", a.Err)
	}
	x.wantClosed("disconnect")
	return nil
}
