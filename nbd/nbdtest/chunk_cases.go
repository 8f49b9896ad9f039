package nbdtest

import (
	"errors"
	"fmt"
	"math"

	"github.com/bttnbd/bttnbd/nbd"
)

// chunkCases are for transmission with replies in chunks.
var chunkCases = []formCase{
	{"error-with-message", func(x *session) error {
		for _, r := range x.everyCommand(x.info.Size, 512) {
			a := x.ask(r, "past the end")
			if x.err == nil && (a.Simple || a.Message == "") {
				return fmt.Errorf("command %d: an error without a message (simple reply: %v)", r.Cmd, a.Simple)
			}
		}
		return nil
	}},
	{"read-error-in-a-chunk", func(x *session) error {
		r := Read(1, 0, 512)
		r.Flags = 1 << 12
		x.want(r, "read with flag 12", nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"df-advertised", func(x *session) error {
		if !x.offers(nbd.NBD_FLAG_SEND_DF) {
			return notOffered("DF")
		}
		return nil
	}},
	{"df", func(x *session) error {
		if !x.offers(nbd.NBD_FLAG_SEND_DF) {
			return notOffered("DF")
		}
		p := x.halfZero(64 * kib)
		r := Read(1, 0, 64*kib)
		r.Flags = nbd.NBD_CMD_FLAG_DF
		if a := x.ok(r, "read with DF"); x.err == nil && string(a.Data) != string(p) {
			return errors.New("other data")
		}
		r.Length = min(8<<20, uint64(x.payload()))
		x.want(r, "long read with DF", 0, nbd.NBD_EOVERFLOW)
		return x.inStep()
	}},
	{"df-on-write", func(x *session) error {
		r := Write(1, 0, fill(1, 512))
		r.Flags = nbd.NBD_CMD_FLAG_DF
		x.want(r, "write with DF", nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"read-holes", func(x *session) error {
		p := x.halfZero(64 * kib)
		a := x.ok(Read(1, 0, 64*kib), "read")
		if x.err == nil && string(a.Data) != string(p) {
			return errors.New("other data")
		}
		if x.err == nil && a.Holes == 0 {
			return notOffered("holes in answer to a read of zeros")
		}
		return nil
	}},
	{"long-read-in-pieces", func(x *session) error {
		n := int(min(6<<20, uint64(x.payload())))
		p := fill(3, n)
		x.ok(Write(1, 3584, p), "write")
		return x.holds(3584, p)
	}},
	{"block-status", func(x *session) error {
		x.halfZero(64 * kib)
		all, err := x.status(0, 64*kib, 0)
		if err != nil {
			return err
		}
		if all[0].Flags&nbd.NBD_STATE_ZERO != 0 {
			return fmt.Errorf("data is told to be zero: %v", all)
		}
		if len(all) < 2 || all[1].Flags&nbd.NBD_STATE_ZERO == 0 {
			return notOffered(fmt.Sprintf("zeros in answer to a block status: %v", all))
		}
		return nil
	}},
	{"block-status-of-one", func(x *session) error {
		x.halfZero(64 * kib)
		all, err := x.status(512, 40*kib, nbd.NBD_CMD_FLAG_REQ_ONE)
		if err == nil && len(all) != 1 {
			err = fmt.Errorf("%d extents", len(all))
		}
		return err
	}},
	{"block-status-covers-all", func(x *session) error {
		for off := uint64(0); off < x.info.Size; {
			all, err := x.status(off, min(x.info.Size-off, 1<<30), 0)
			if err != nil {
				return err
			}
			for _, e := range all {
				off += e.Length
			}
			if off > x.info.Size {
				return fmt.Errorf("extents end at %d of %d", off, x.info.Size)
			}
		}
		return nil
	}},
	{"block-status-of-nothing", func(x *session) error {
		if _, err := x.status(0, 4096, 0); err != nil {
			return err
		}
		x.ask(Command(nbd.NBD_CMD_BLOCK_STATUS, 1, 0, 0), "block status of no bytes")
		return x.inStep()
	}},
	{"block-status-past-the-end", func(x *session) error {
		if _, err := x.status(0, 4096, 0); err != nil {
			return err
		}
		x.want(Command(nbd.NBD_CMD_BLOCK_STATUS, 1, x.info.Size-512, 1024), "block status", nbd.NBD_EINVAL)
		x.want(Command(nbd.NBD_CMD_BLOCK_STATUS, 1, math.MaxUint64-511, 1024), "block status", nbd.NBD_EINVAL)
		return x.inStep()
	}},
	{"every-listed-context", (*session).everyContext},
}

// halfZero makes the first n bytes data, and then zeros from the middle on, with
// WRITE_ZEROES where there is that. It returns what they are.
func (x *session) halfZero(n int) []byte {
	p := fill(2, n)
	x.ok(Write(1, 0, p), "write")
	clear(p[n/2:])
	if x.offers(nbd.NBD_FLAG_SEND_WRITE_ZEROES) {
		x.ok(Command(nbd.NBD_CMD_WRITE_ZEROES, 2, uint64(n/2), uint64(n/2)), "zeroes")
	} else {
		x.ok(Write(3, uint64(n/2), p[n/2:]), "write of zeros")
	}
	return p
}

// status returns what base:allocation says about a range.
func (x *session) status(off, n uint64, flags uint16) ([]Extent, error) {
	if len(x.ids) == 0 {
		return nil, notOffered("metadata contexts")
	}
	r := Command(nbd.NBD_CMD_BLOCK_STATUS, 1, off, n)
	r.Flags = flags
	a := x.ok(r, "block status")
	all := a.Status[x.ids[allocation]]
	if x.err == nil && (len(a.Status) != len(x.ids) || len(all) == 0) {
		x.err = fmt.Errorf("statuses of %d contexts, of %d selected", len(a.Status), len(x.ids))
	}
	return all, x.err
}

// everyContext selects all that LIST tells of; each must have an id of its own and
// be told of.
func (x *session) everyContext() error {
	if len(x.ids) == 0 {
		return notOffered("metadata contexts")
	}
	c, err := x.suite.negotiating(x.form)
	if err != nil {
		return err
	}
	listed, err := c.MetaContexts(list, x.suite.Export)
	if err != nil {
		return err
	}
	var names []string
	for name := range listed {
		names = append(names, name)
	}
	y, err := x.suite.enter(x.form, x.suite.Export, names...)
	if err != nil {
		return err
	}
	seen := make(map[uint32]bool)
	for name, id := range y.ids {
		if seen[id] {
			return fmt.Errorf("%s has the id %d of another", name, id)
		}
		seen[id] = true
	}
	_, err = y.status(0, 1<<20, 0)
	return err
}
