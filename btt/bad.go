package btt

import (
	"errors"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// markIfBad notes in the map that the block at byte off is bad memory, if that is
// what a read has failed of, as Linux does (btt_read_pg): other programs then know
// before they touch it, and a block that is replaced is filled with zeros before
// it is used again. The read has failed in any case; here nothing can.
//
// Data must not be given up for a fault that may pass. So it has to be persistent
// memory, not a disk whose cable is loose; the fault must be the memory's; and it
// must come again, under the map lock, which keeps writers from replacing the
// block meanwhile. (Linux takes no lock here and can bring a freed block back.)
func (d *Device) markIfBad(off int64, failed error) {
	if !isBadMemory(failed) || d.reg.Durability() != pmem.DAX {
		return
	}
	var ignored error
	defer d.reg.CatchFault(&ignored)
	defer pmem.ArmFaults()()
	scratch := d.scratch.Get().(*[]byte)
	defer d.scratch.Put(scratch)
	lba, _ := d.split(off)
	a, pre := d.locate(lba)
	a.markIfBad(pre, (*scratch)[:d.sector])
}

func (a *arena) markIfBad(lba layout.PremapLBA, p []byte) {
	var locks lockSet
	locks.add(lockOf(lba))
	a.lock(&locks)
	defer a.unlock(&locks)
	if !a.failed() && a.badMemory(lba, p) {
		_ = a.markLocked(&locks, lba, 1, layout.ErrorEntry) // stops the arena if it fails
	}
}

// badMemory reports whether the data of a block is bad memory.
func (a *arena) badMemory(lba layout.PremapLBA, p []byte) bool {
	e := a.entry(lba)
	if s := e.State(); s == layout.Zero || s == layout.Error || uint32(e.Owned(lba)) >= a.geo.InternalNLBA {
		return false
	}
	return isBadMemory(a.tryRead(p, a.dataOff(e.Owned(lba))))
}

func (a *arena) tryRead(p []byte, off uint64) (err error) {
	defer a.reg.CatchFault(&err)
	a.reg.Read(p, off)
	return nil
}

func isBadMemory(err error) bool {
	var fault *pmem.FaultError
	return errors.As(err, &fault) && fault.Medium
}
