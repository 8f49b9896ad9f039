package nbdtest

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/bttnbd/bttnbd/nbd"
)

// extendedCases are for transmission with extended headers.
var extendedCases = []formCase{
	{"write-without-payload-len", func(x *session) error {
		// The flag must be set, but qemu's client (10.0) sends a payload without.
		r := Write(1, 4096, fill(4, 512))
		if err := x.Send(r); err != nil {
			return err
		}
		switch a, err := x.Answer(r); {
		case err != nil:
			return err
		case a.Err != 0:
			return fmt.Errorf("a WRITE without the flag: %v", a.Err)
		}
		return x.holds(4096, r.Data)
	}},
	{"unexpected-payload", func(x *session) error {
		for _, cmd := range []uint16{nbd.NBD_CMD_READ, nbd.NBD_CMD_FLUSH, nbd.NBD_CMD_TRIM, 4711} {
			x.want(withPayload(cmd, 0, fill(1, 600)), fmt.Sprintf("command %d with a payload", cmd), nbd.NBD_EINVAL)
		}
		return x.inStep()
	}},
	{"payload-beyond-maximum-drops", func(x *session) error {
		r := Command(nbd.NBD_CMD_WRITE, 1, 0, 1<<33).Extend()
		if err := x.Send(r); err != nil {
			return err
		}
		x.wantClosed("a payload of 8 GiB")
		return nil
	}},
	{"length-of-64-bits", func(x *session) error {
		x.want(Command(nbd.NBD_CMD_WRITE_ZEROES, 1, 0, 1<<32), "zeroes of 4 GiB", nbd.NBD_ENOSPC)
		x.want(Command(nbd.NBD_CMD_TRIM, 2, 512, math.MaxUint64), "trim of 2^64-1 bytes", nbd.NBD_EINVAL)
		x.want(Command(nbd.NBD_CMD_READ, 3, 0, 1<<32+512), "read of 4 GiB", nbd.NBD_EINVAL, nbd.NBD_EOVERFLOW)
		return x.inStep()
	}},
	{"export-name-drops", func(x *session) error {
		c, err := x.suite.negotiating(extended)
		if err != nil {
			return err
		}
		c.Write(Option(nbd.NBD_OPT_EXPORT_NAME, []byte(x.suite.Export)))
		return closed(c, "EXPORT_NAME")
	}},
	{"status-payload-advertised", func(x *session) error {
		if len(x.ids) > 0 && !x.offers(nbd.NBD_FLAG_BLOCK_STATUS_PAYLOAD) {
			return notOffered("a payload of BLOCK_STATUS")
		}
		y, err := x.suite.enter(extended, x.suite.Export)
		if err == nil && y.offers(nbd.NBD_FLAG_BLOCK_STATUS_PAYLOAD) {
			err = fmt.Errorf("NBD_FLAG_BLOCK_STATUS_PAYLOAD without contexts")
		}
		return err
	}},
	{"status-payload", func(x *session) error {
		return x.filtered(func(id uint32) []byte { return filter(64*kib, id) }, 0)
	}},
	{"status-payload-of-unknown-id", func(x *session) error {
		return x.filtered(func(id uint32) []byte { return filter(64*kib, id+1000) }, nbd.NBD_EINVAL)
	}},
	{"status-payload-of-one-id-twice", func(x *session) error {
		return x.filtered(func(id uint32) []byte { return filter(64*kib, id, id) }, nbd.NBD_EINVAL)
	}},
	{"status-payload-too-short", func(x *session) error {
		return x.filtered(func(uint32) []byte { return []byte{0, 0, 0, 1} }, nbd.NBD_EINVAL)
	}},
	{"status-payload-of-odd-length", func(x *session) error {
		return x.filtered(func(id uint32) []byte { return append(filter(64*kib, id), 0) }, nbd.NBD_EINVAL)
	}},
	{"status-payload-too-long", func(x *session) error {
		return x.filtered(func(id uint32) []byte { return filter(64*kib, make([]uint32, 5000)...) }, nbd.NBD_EINVAL)
	}},
	{"status-payload-past-the-end", func(x *session) error {
		return x.filtered(func(id uint32) []byte { return filter(x.info.Size+512, id) }, nbd.NBD_EINVAL)
	}},
}

// withPayload makes a request with NBD_CMD_FLAG_PAYLOAD_LEN.
func withPayload(cmd uint16, off uint64, p []byte) Request {
	return Request{Flags: nbd.NBD_CMD_FLAG_PAYLOAD_LEN, Cmd: cmd, Cookie: 5, Offset: off, Length: uint64(len(p)), Data: p}
}

// filter is the payload of a BLOCK_STATUS.
func filter(length uint64, ids ...uint32) []byte {
	b := be.AppendUint64(nil, length)
	for _, id := range ids {
		b = be.AppendUint32(b, id)
	}
	return b
}

// filtered asks for a block status of one of the contexts with a payload.
func (x *session) filtered(payload func(id uint32) []byte, want nbd.Errno) error {
	c, err := x.suite.negotiating(extended)
	if err != nil {
		return err
	}
	listed, err := c.MetaContexts(list, x.suite.Export)
	if err != nil {
		return unsupported(err)
	}
	y, err := x.suite.enter(extended, x.suite.Export, slices.Collect(maps.Keys(listed))...)
	if err != nil {
		return err
	}
	if !y.offers(nbd.NBD_FLAG_BLOCK_STATUS_PAYLOAD) {
		return notOffered("a payload of BLOCK_STATUS")
	}
	id := y.ids[allocation]
	a := y.want(withPayload(nbd.NBD_CMD_BLOCK_STATUS, 0, payload(id)), "block status", want)
	if y.err == nil && want == 0 && (len(a.Status) != 1 || len(a.Status[id]) == 0) {
		return fmt.Errorf("statuses of %d contexts, want that of %d alone", len(a.Status), id)
	}
	y.inStep()
	return y.err
}
