package btt

import (
	"github.com/bttnbd/bttnbd/layout"
)

// writePart replaces len(p) bytes at byte off of a block and keeps the rest. It
// is atomic against every other writer: the old block is read, and stays mapped,
// under the map lock that the commit also needs. scratch is one block long.
func (a *arena) writePart(lba layout.PremapLBA, off int, p, scratch []byte) error {
	if a.failed.Load() {
		return errArena
	}
	hint := a.reg.Hint()
	word, set := a.takeLanes(1, hint)
	defer a.pool.put(word, set)
	group := [1]blockWrite{{lba: lba, data: scratch, lane: a.pool.lane(word, set)}}
	free := a.lanes[group[0].lane].free
	a.waitForReaders(free, hint)

	var locks lockSet
	locks.add(lockOf(lba))
	a.lock(&locks)
	defer a.unlock(&locks)

	switch e := a.entry(lba); e.State() {
	case layout.Error:
		return errBadBlock
	case layout.Zero:
		clear(scratch)
	default:
		a.reg.Read(scratch, a.dataOff(e.Owned(lba)))
	}
	copy(scratch[off:], p)
	a.reg.Write(a.dataOff(free), scratch)
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
