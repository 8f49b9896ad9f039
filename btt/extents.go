package btt

import (
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// State bits that [Device.Extents] tells. They are those of package nbd, whose
// third, a hole, no BTT has: every block owns storage, zero entries included.
// None is data, which stands for initial entries as well, where the format does
// not make zeros of them: they show what the medium held when the BTT was laid
// out, and nobody noted what that was.
const (
	ExtentZero  uint8 = 1 << 1 // reads as zeros: zero entries, in a pool initial ones too
	ExtentError uint8 = 1 << 2 // reads fail with EIO: error entries
)

// maxExtentWork is how many map entries one call of Extents looks at.
const maxExtentWork = 1 << 18

// Extents calls emit for one extent after the other from byte off on, with its
// length in bytes and its state, until they cover n bytes, emit returns false, or
// maxExtentWork blocks have been looked at. Neighbours differ in state. It moves
// no data. Each block was in its state at one moment of the call, and a state that
// is told is durable (I8).
func (d *Device) Extents(off, n int64, emit func(length int64, state uint8) bool) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if n == 0 || !d.inRange(off, n) {
		return errReadRange
	}
	sector := int64(d.sector)
	lba, in := d.split(off)
	last := min(uint64(off+n-1)/uint64(sector), lba+maxExtentWork-1)
	start, end, state := off, off, uint8(0)
	for ; lba <= last; lba++ {
		s, err := d.extentState(lba)
		if err != nil {
			return err
		}
		if end > start && s != state {
			if !emit(end-start, state) {
				return nil
			}
			start = end
		}
		state = s
		end = min(off+n, end+sector-int64(in))
		in = 0
	}
	emit(end-start, state)
	return nil
}

// extentState is the state of one block.
func (d *Device) extentState(lba uint64) (uint8, error) {
	a, pre := d.locate(lba)
	switch state := a.entry(pre).State(); {
	case state == layout.Zero:
		return ExtentZero, a.settle(pre)
	case state == layout.Error:
		return ExtentError, a.settle(pre)
	case state == layout.Initial && a.flavour.InitialZero:
		return ExtentZero, nil
	}
	return 0, nil
}
