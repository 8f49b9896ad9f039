package btt

import "github.com/bttnbd/bttnbd/layout"

// fetchAhead is how much of a block is asked for before it is announced, in bytes.
// The processor fetches the rest by itself once it sees the copy.
const fetchAhead = 1024

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
		case layout.Initial:
			// Entries never become initial, so this one is durable.
			if a.flavour.InitialZero {
				clear(p)
				return nil
			}
		}
		block := e.Owned(lba)
		if uint32(block) >= a.geo.InternalNLBA {
			return errBadEntry
		}
		// The announcement is a barrier; memory may as well come closer meanwhile.
		a.reg.Prefetch(a.dataOff(block)+uint64(off), uint64(min(len(p), fetchAhead)))
		if a.reg.Traced() {
			a.reg.Await(nil)
		}
		slot := a.rtt.publish(block, hint)
		again := a.copyIfStill(e, slot, lba, p, a.dataOff(block)+uint64(off))
		if again == e {
			return nil
		}
		e = again
	}
}

// copyIfStill looks at the entry again, now that its block is announced, copies if
// it still is e, and clears the announcement, also when memory faults.
func (a *arena) copyIfStill(e layout.MapEntry, slot *rttSlot, lba layout.PremapLBA, p []byte, off uint64) layout.MapEntry {
	defer a.rtt.clear(slot)
	again := a.entry(lba)
	if again == e {
		a.reg.Read(p, off)
	}
	return again
}
