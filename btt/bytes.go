package btt

import (
	"sync"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// This file is the device as an array of bytes: it cuts byte ranges into blocks.
// Whole blocks go in groups, the parts at the ends by read-modify-write.

// ReadAt fills p from byte off. Each block is read at one moment; different
// blocks at different ones. n is len(p), or what was read before the error.
func (d *Device) ReadAt(p []byte, off int64) (n int, err error) {
	if n = d.glimpse(p, off); n > 0 && n == len(p) {
		return n, nil
	}
	more, err := d.readAt(p[n:], off+int64(n))
	if n += more; err != nil {
		d.markIfBad(off+int64(n), err)
	}
	return n, err
}

// readAt is ReadAt for whatever glimpse has left.
func (d *Device) readAt(p []byte, off int64) (n int, err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if !d.inRange(off, int64(len(p))) {
		return 0, errReadRange
	}
	lba, in := d.split(off)
	hint := d.reg.Hint()
	blocks := 0
	for n < len(p) {
		piece := p[n:min(len(p), n+int(d.sector)-in)]
		a, pre := d.locate(lba)
		if err := a.read(pre, in, piece, hint); err != nil {
			return n, err
		}
		n += len(piece)
		lba, in = lba+1, 0
		blocks++
	}
	d.arenas[0].counters.at(hint).blocksRead.Add(uint64(blocks))
	return n, nil
}

// Readable returns the error that a read of the range would meet, as far as the
// map tells. It moves no data.
func (d *Device) Readable(off, n int64) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if !d.inRange(off, n) {
		return errReadRange
	}
	if n == 0 {
		return nil
	}
	last := uint64(off+n-1) / uint64(d.sector)
	for lba, _ := d.split(off); lba <= last; lba++ {
		if a, pre := d.locate(lba); a.entry(pre).State() == layout.Error {
			return errBadBlock
		}
	}
	return nil
}

// WriteAt writes p at byte off; see [Device.WriteGroup].
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	var errs [1]error
	d.WriteGroup([]int64{off}, [][]byte{p}, errs[:])
	if errs[0] != nil {
		return 0, errs[0]
	}
	return len(p), nil
}

// WriteGroup writes data[i] at byte offs[i], in order, and puts what became of
// each request into errs[i]. As many whole blocks as possible share one set of
// three drains. On return everything without an error is durable, and every block,
// with an error or without, is wholly old or wholly new.
func (d *Device) WriteGroup(offs []int64, data [][]byte, errs []error) {
	if len(offs) == 1 && d.isBlock(offs[0], len(data[0])) {
		errs[0] = d.writeBlock(offs[0], data[0])
		return
	}
	w := writer{d: d}
	for i := range offs {
		errs[i] = nil
		switch {
		case d.ReadOnly():
			errs[i] = errReadOnly
		case !d.inRange(offs[i], int64(len(data[i]))):
			errs[i] = errWriteRange
		default:
			w.request(errs, i, offs[i], data[i])
		}
	}
	w.flush(errs)
}

// isBlock reports whether n bytes at off are one block that can be written as it is.
func (d *Device) isBlock(off int64, n int) bool {
	return n == int(d.sector) && n%8 == 0 && uint64(off)%uint64(n) == 0 && d.inRange(off, int64(n)) && !d.ReadOnly()
}

// writeBlock writes one block, without a writer, which is large and has to be
// cleared.
func (d *Device) writeBlock(off int64, p []byte) error {
	lba, _ := d.split(off)
	a, pre := d.locate(lba)
	group := [1]blockWrite{{lba: pre, data: p}}
	_, err := d.write(a, group[:])
	return err
}

// writer gathers whole blocks into groups of one arena. The outcomes of the
// requests are passed down to it, not kept in it, so that they stay on the stack.
type writer struct {
	d     *Device
	arena *arena // of the group
	seen  uint64 // a bit for each lba mod 64 in the group
	n     int
	group [maxGroup]blockWrite
}

// request cuts one request into blocks.
func (w *writer) request(errs []error, req int, off int64, p []byte) {
	sector := int(w.d.sector)
	lba, in := w.d.split(off)
	for len(p) > 0 {
		n := min(len(p), sector-in)
		a, pre := w.d.locate(lba)
		if n == sector && sector%8 == 0 {
			// In place: a copy of a struct just stored waits until the stores are over.
			b := w.place(errs, a, pre)
			b.lba, b.data, b.req, b.storing = pre, p[:n], req, false
		} else {
			w.flush(errs) // keep the order of what may overlap
			fail(errs, req, w.d.writePart(a, pre, in, p[:n]))
		}
		p = p[n:]
		lba, in = lba+1, 0
	}
}

// place makes room for a block of the group.
func (w *writer) place(errs []error, a *arena, lba layout.PremapLBA) *blockWrite {
	bit := uint64(1) << (lba % 64)
	if w.n == maxGroup || a != w.arena || w.seen&bit != 0 {
		w.part(errs, a, lba)
	}
	w.seen |= bit
	w.n++
	return &w.group[w.n-1]
}

// part commits what cannot be in one group with a block: another arena's, the same
// block again, or simply a full group.
func (w *writer) part(errs []error, a *arena, lba layout.PremapLBA) {
	if w.n == maxGroup || a != w.arena || w.has(lba) {
		w.flush(errs)
	}
	w.arena = a
}

func (w *writer) has(lba layout.PremapLBA) bool {
	for i := range w.group[:w.n] {
		if w.group[i].lba == lba {
			return true
		}
	}
	return false
}

// flush commits the group. If that fails, each block that was not committed is tried
// by itself, so that one bad page costs only the request it belongs to. What was
// committed is not written again: somebody else may have written there since.
func (w *writer) flush(errs []error) {
	group := w.group[:w.n]
	w.n, w.seen = 0, 0
	if len(group) == 0 {
		return
	}
	committed, err := w.d.write(w.arena, group)
	left := group[committed:]
	for i := range left {
		if err != nil && len(group) > 1 && !w.arena.failed() {
			_, alone := w.d.write(w.arena, left[i:i+1])
			fail(errs, left[i].req, alone)
		} else {
			fail(errs, left[i].req, err)
		}
	}
}

// fail notes the first error of a request.
func fail(errs []error, req int, err error) {
	if err != nil && errs[req] == nil {
		errs[req] = err
	}
}

// write commits a group of blocks with distinct numbers, as many at once as there
// are lanes for, and tells how many are committed and durable. Those are the first;
// each of the others is old or new if there is an error.
func (d *Device) write(a *arena, group []blockWrite) (committed int, err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	for committed < len(group) {
		n, err := a.writeSome(group[committed:])
		if err != nil {
			return committed, err
		}
		committed += n
	}
	return committed, nil
}

// writePart is [arena.writePart] with faults turned into errors.
func (d *Device) writePart(a *arena, lba layout.PremapLBA, in int, p []byte) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	scratch := d.scratch.Get().(*[]byte)
	defer d.scratch.Put(scratch)
	for committed := 0; committed == 0 && err == nil; {
		committed, err = a.writePart(lba, in, p, *scratch)
	}
	return err
}

// ZeroAt makes n bytes at off read as zeros, durably on return. Whole blocks
// become zero entries of the map where [Device.ZerosFast] says so.
func (d *Device) ZeroAt(off, n int64) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if d.ReadOnly() {
		return errReadOnly
	}
	if !d.inRange(off, n) {
		return errWriteRange
	}
	sector := int64(d.sector)
	if !d.ZerosFast() {
		return d.writeZeros(off, n)
	}
	if head := min(n, (sector-off%sector)%sector); head > 0 {
		if err := d.writeZeros(off, head); err != nil {
			return err
		}
		off, n = off+head, n-head
	}
	if err := d.markZero(uint64(off/sector), uint64(n/sector)); err != nil {
		return err
	}
	return d.writeZeros(off+n/sector*sector, n%sector)
}

// TrimAt says that nobody needs the bytes any more. Whole blocks then read as
// zeros, durably; the parts of blocks at the ends are left alone. Where zeroing
// would mean writing, nothing is done at all.
func (d *Device) TrimAt(off, n int64) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if d.ReadOnly() {
		return errReadOnly
	}
	if !d.inRange(off, n) {
		return errReadRange
	}
	sector := int64(d.sector)
	first, end := (off+sector-1)/sector, (off+n)/sector
	if !d.ZerosFast() || first >= end {
		return nil
	}
	return d.markZero(uint64(first), uint64(end-first))
}

// markZero turns n blocks from lba into zero entries.
func (d *Device) markZero(lba, n uint64) error {
	for n > 0 {
		a, pre := d.locate(lba)
		here := min(n, uint64(a.geo.ExternalNLBA)-uint64(pre))
		if err := a.mark(pre, uint32(here), layout.ZeroEntry); err != nil {
			return err
		}
		lba, n = lba+here, n-here
	}
	return nil
}

// zeros is what writeZeros writes from.
var zeros [maxGroup * 4096]byte

// writeZeros writes n zero bytes at off as data.
func (d *Device) writeZeros(off, n int64) error {
	whole := max(int64(len(zeros))/int64(d.sector)*int64(d.sector), 1)
	for n > 0 {
		// Pieces end on multiples of their size, so that blocks stay whole.
		piece := min(n, int64(len(zeros)), whole-off%whole)
		if _, err := d.WriteAt(zeros[:piece], off); err != nil {
			return err
		}
		off, n = off+piece, n-piece
	}
	return nil
}

// Flush has nothing to do: a write is durable when it returns.
func (d *Device) Flush() error { return nil }

// inRange reports whether n bytes at off lie within the device.
func (d *Device) inRange(off, n int64) bool {
	return off >= 0 && n >= 0 && uint64(off) <= d.Size() && uint64(n) <= d.Size()-uint64(off)
}

// split is the block of a byte offset and the place within it.
func (d *Device) split(off int64) (lba uint64, in int) {
	return uint64(off) / uint64(d.sector), int(uint64(off) % uint64(d.sector))
}

// scratchPool holds blocks for read-modify-write.
type scratchPool struct{ sync.Pool }

func (p *scratchPool) init(size int) {
	p.New = func() any {
		b := make([]byte, size)
		return &b
	}
}
