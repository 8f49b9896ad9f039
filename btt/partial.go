package btt

import (
	"github.com/bttnbd/bttnbd/layout"
)

// writePart replaces len(p) bytes at byte off of a block and keeps the rest. It
// is atomic against every other writer: the old block is read, and stays mapped,
// under the map lock that the commit also needs. A whole sector comes this way if
// its length is no multiple of 8, which is what memory is written in; scratch is
// one sector long, rounded up to that.
func (a *arena) writePart(lba layout.PremapLBA, off int, p, scratch []byte) error {
	sector := int(uint64(a.geo.ExternalLBASize) - a.metadata)
	hint := a.reg.Hint()
	word, set := a.takeLanes(1, hint)
	defer a.pool.put(word, set)
	if a.failed.Load() { // with the lane in hand: see commitLocked
		return errArena
	}
	group := [1]blockWrite{{lba: lba, data: scratch, lane: a.pool.lane(word, set)}}
	if err := a.mend(group[:], hint); err != nil {
		return err
	}
	free := a.lanes[group[0].lane].free
	a.waitForReaders(free, hint)

	var locks lockSet
	locks.add(lockOf(lba))
	a.lock(&locks)
	defer a.unlock(&locks)

	if err := a.readOld(lba, sector-len(p), scratch[:sector]); err != nil {
		return err
	}
	copy(scratch[off:], p)
	clear(scratch[sector:])
	a.reg.Write(a.dataOff(free), scratch)
	if a.metadata > 0 {
		a.reg.Zero(a.dataOff(free)+uint64(len(scratch)), a.metadata)
	}
	a.reg.Touch(a.mapOff(lba))
	if err := a.reg.Drain(); err != nil {
		return err
	}
	c := a.counters.at(hint)
	c.blocksWritten.Add(1)
	c.partWrites.Add(1)
	c.groups.Add(1)
	return a.commitLocked(group[:])
}

// readOld reads the sector of which a write keeps some bytes, for a caller who
// holds its map lock. It fails if that sector cannot be read.
func (a *arena) readOld(lba layout.PremapLBA, kept int, p []byte) error {
	if kept == 0 {
		return nil
	}
	e := a.entry(lba)
	state := e.State()
	switch {
	case state == layout.Error:
		return errBadBlock
	case state == layout.Zero, state == layout.Initial && a.flavour.InitialZero:
		clear(p)
	case uint32(e.Owned(lba)) >= a.geo.InternalNLBA:
		return errBadEntry
	default:
		a.reg.Read(p, a.dataOff(e.Owned(lba)))
	}
	return nil
}
