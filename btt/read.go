package btt

import "github.com/bttnbd/bttnbd/layout"

// read copies len(p) bytes at byte off of a block. It takes no lock, and what it
// copies is the content of the block at one moment.
func (a *arena) read(lba layout.PremapLBA, off int, p []byte, hint uint32) error {
	e := a.entry(lba)
	for {
		switch e.State() {
		case layout.Zero:
			clear(p)
			return a.settle(lba)
		case layout.Error:
			if err := a.settle(lba); err != nil {
				return err
			}
			return errBadBlock
		}
		block := e.Owned(lba)
		if a.reg.Traced() {
			a.reg.Await(nil)
		}
		slot := a.rtt.publish(block, hint)
		again := a.entry(lba)
		if again == e {
			a.copyOut(slot, p, a.dataOff(block)+uint64(off))
			return nil
		}
		a.rtt.clear(slot)
		e = again
	}
}

// copyOut copies from an announced block and clears the announcement, also when
// the copy faults.
func (a *arena) copyOut(slot *rttSlot, p []byte, off uint64) {
	defer a.rtt.clear(slot)
	a.reg.Read(p, off)
}
