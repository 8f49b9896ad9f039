package btt

import (
	"math/bits"

	"github.com/bttnbd/bttnbd/layout"
)

// maxGroup is how many blocks are committed under one set of three drains. It is
// limited by the 64 lanes of a laneWord, and by what is worth holding locks for.
const maxGroup = 32

// blockWrite is one block of a group.
type blockWrite struct {
	lba  layout.PremapLBA
	data []byte // one sector
	req  int    // index of the request that the block belongs to

	lane uint32          // owned while the write is under way
	old  layout.MapEntry // the entry that the write replaces
}

// writeSome commits as many blocks of the group as there are lanes to be had.
func (a *arena) writeSome(group []blockWrite) (n int, err error) {
	hint := a.reg.Hint()
	word, set := a.takeLanes(min(len(group), maxGroup), hint)
	defer a.pool.put(word, set)
	if a.failed.Load() { // with the lanes in hand: see commitLocked
		return 0, errArena
	}
	group = group[:bits.OnesCount64(set)]
	for i := range group {
		group[i].lane = a.pool.lane(word, set)
		set &= set - 1
	}

	if err := a.fill(group, hint); err != nil {
		return 0, err
	}
	c := a.counters.at(hint)
	c.blocksWritten.Add(uint64(len(group)))
	c.groups.Add(1)
	return len(group), a.commit(group)
}

// fill is step 1: the data goes into the lanes' free blocks. Nothing names them
// yet, so a fault or a crash in here changes nothing.
func (a *arena) fill(group []blockWrite, hint uint32) error {
	if err := a.mend(group, hint); err != nil {
		return err
	}
	for i := range group {
		w := &group[i]
		free := a.lanes[w.lane].free
		a.waitForReaders(free, hint)
		a.reg.Write(a.dataOff(free), w.data)
		if a.metadata > 0 {
			a.reg.Zero(a.dataOff(free)+uint64(len(w.data)), a.metadata)
		}
		a.reg.Touch(a.mapOff(w.lba))
	}
	return a.reg.Drain()
}

// mend fills free blocks that were known to be bad with zeros, as Linux does
// (arena_clear_freelist_error): whole lines are stored, which is what makes bad
// memory good, and nothing of a bad block is left beside the new data.
func (a *arena) mend(group []blockWrite, hint uint32) error {
	mended := false
	for i := range group {
		l := &a.lanes[group[i].lane]
		if !l.bad {
			continue
		}
		a.waitForReaders(l.free, hint)
		a.reg.Zero(a.dataOff(l.free), uint64(a.geo.InternalLBASize))
		mended = true
	}
	if !mended {
		return nil
	}
	if err := a.reg.Drain(); err != nil {
		return err
	}
	for i := range group {
		a.lanes[group[i].lane].bad = false
	}
	return nil
}

// commit is steps 2 and 3 for a group whose data is durable in its lanes' free
// blocks.
func (a *arena) commit(group []blockWrite) error {
	var locks lockSet
	for i := range group {
		locks.add(lockOf(group[i].lba))
	}
	a.lock(&locks)
	defer a.unlock(&locks)
	return a.commitLocked(group)
}

// commitLocked is [arena.commit] for a caller who holds the map locks. When it
// fails or faults half way, what is in memory may be ahead of what is on media:
// the arena then takes no more writes. That is known before its lanes and its map
// locks are given back, so whoever gets one of them looks: the block that such a
// lane calls free may be mapped by the next recovery, and the entries that such a
// lock guards may be about to move.
func (a *arena) commitLocked(group []blockWrite) error {
	if a.failed.Load() {
		return errArena // since we waited for the lock: its holder has left a record half way
	}
	for i := range group {
		if lba := group[i].lba; uint32(a.entry(lba).Owned(lba)) >= a.geo.InternalNLBA {
			return errBadEntry // the lane would take that block over
		}
	}
	done := false
	defer func() {
		if !done {
			a.failed.Store(true)
		}
	}()
	a.logMoves(group)
	if err := a.reg.Drain(); err != nil {
		return err
	}
	a.swing(group)
	if err := a.reg.Drain(); err != nil {
		return err
	}
	a.recycle(group)
	done = true
	return nil
}

// logMoves is step 2: each lane's older flog record becomes the new one. It
// counts from the moment that the second word is there.
func (a *arena) logMoves(group []blockWrite) {
	for i := range group {
		w := &group[i]
		l := &a.lanes[w.lane]
		w.old = a.entry(w.lba)
		lbaOld, newSeq := layout.FlogRecord{
			LBA: w.lba,
			Old: a.flavour.LoggedOld(w.old, w.lba),
			New: a.flavour.LoggedNew(l.free),
			Seq: l.seq,
		}.Words()
		off := a.flogOff(w.lane) + uint64(l.slot)*layout.FlogRecordSize
		a.reg.Store64(off, lbaOld)
		a.reg.Store64(off+8, newSeq)
		a.reg.Flush(off, layout.FlogRecordSize)
	}
}

// swing is step 3: the map entries move to the new blocks. A line that several
// neighbours share is flushed once, behind the last of them.
func (a *arena) swing(group []blockWrite) {
	for i := range group {
		w := &group[i]
		off := a.mapOff(w.lba)
		a.reg.Store32(off, uint32(layout.NormalEntry(a.lanes[w.lane].free)))
		if i+1 == len(group) || group[i+1].lba/entriesPerLine != w.lba/entriesPerLine {
			a.reg.Flush(off, entrySize)
		}
	}
}

// recycle gives each lane the block that its write has replaced.
func (a *arena) recycle(group []blockWrite) {
	for i := range group {
		w := &group[i]
		l := &a.lanes[w.lane]
		l.free = w.old.Owned(w.lba)
		l.bad = w.old.State() == layout.Error
		l.seq = layout.NextSeq(l.seq)
		l.slot = uint32(a.padding) - l.slot // 0 ↔ the second record
	}
}
