package btt

import (
	"github.com/bttnbd/bttnbd/layout"
)

// writePart replaces len(p) bytes at byte off of a block and keeps the rest. It
// is atomic against every other writer: the old block is read, and stays mapped,
// under the map lock that the commit also needs. A whole sector comes this way if
// its length is no multiple of 8, which is what memory is written in; scratch is
// one sector long, rounded up to that.
// Like [arena.writeSome] it may lose its lane and do nothing.
func (a *arena) writePart(lba layout.PremapLBA, off int, p, scratch []byte) (n int, err error) {
	hint := a.reg.Hint()
	word, set := a.takeLanes(1, hint)
	defer func() { a.pool.put(word, set) }()
	if a.failed() { // with the lane in hand: see commitLocked
		return 0, errArena
	}
	group := [1]blockWrite{{lba: lba, data: scratch, lane: a.pool.lane(word, set)}}

	var locks lockSet
	locks.add(lockOf(lba))
	a.lock(&locks)
	defer a.unlock(&locks)

	sector := a.sector()
	if err := a.readOld(lba, sector-len(p), scratch[:sector]); err != nil {
		return 0, err
	}
	copy(scratch[off:], p)
	clear(scratch[sector:])
	if err := a.fill(group[:], hint); err != nil {
		lost, err := a.retire(group[:], err)
		set &^= lost
		return 0, err
	}
	if err := a.commitLocked(group[:]); err != nil {
		return 1, err
	}
	c := a.counters.at(hint)
	c.partWrites.Add(1)
	c.group(1)
	return 1, nil
}

// sector is the size in bytes of a block as the user sees it.
func (a *arena) sector() int { return int(uint64(a.geo.ExternalLBASize) - a.metadata) }

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
