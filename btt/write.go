package btt

import (
	"math/bits"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// maxGroup is how many blocks are committed under one set of three drains. It is
// limited by the 64 lanes of a laneWord, and by what is worth holding locks for.
const maxGroup = 32

// blockWrite is one block of a group.
type blockWrite struct {
	lba  layout.PremapLBA
	data []byte // one sector
	req  int    // index of the request that the block belongs to

	lane    uint32 // owned while the write is under way
	storing bool   // into the lane's free block, at this moment

	// Drafted by draft, made certain by commitLocked.
	old            layout.MapEntry // the entry that the write replaces
	lbaOld, newSeq uint64          // the flog record
}

// writeSome commits as many blocks of the group as there are lanes to be had. It
// may be none without an error: a lane was lost, and others are to be tried.
func (a *arena) writeSome(group []blockWrite) (n int, err error) {
	hint := a.reg.Hint()
	word, set := a.takeLanes(min(len(group), maxGroup), hint)
	defer func() { a.pool.put(word, set) }()
	if a.failed() { // with the lanes in hand: see commitLocked
		return 0, errArena
	}
	group = group[:bits.OnesCount64(set)]
	rest := set
	for i := range group {
		group[i].lane = a.pool.lane(word, rest)
		rest &= rest - 1
	}

	if err := a.fill(group, hint); err != nil {
		lost, err := a.retire(group, err)
		set &^= lost
		return 0, err
	}
	if err := a.commit(group); err != nil {
		return len(group), err
	}
	a.counters.at(hint).group(len(group))
	return len(group), nil
}

// fill is step 1: the data goes into the lanes' free blocks. Nothing names them
// yet, so a fault or a crash in here changes nothing. The blocks whose lanes have
// met a fault are marked.
func (a *arena) fill(group []blockWrite, hint uint32) (err error) {
	defer a.reg.CatchFault(&err)
	if err := a.mend(group, hint); err != nil {
		return err
	}
	for i := range group {
		// Neighbours share a line of the map, and so a page.
		if i == 0 || group[i].lba/entriesPerLine != group[i-1].lba/entriesPerLine {
			a.pages.touch(a, group[i].lba)
		}
	}
	if a.reg.Traced() || a.rtt.busy() {
		for i := range group {
			a.waitForReaders(a.lanes[group[i].lane].free, hint)
		}
	}
	// Apart from the first passes, whose locked operations would wait each time for
	// the block before to get to memory.
	for i := range group {
		w := &group[i]
		free := a.lanes[w.lane].free
		w.storing = true
		a.reg.Write(a.dataOff(free), w.data)
		if a.metadata > 0 {
			a.reg.Zero(a.dataOff(free)+uint64(len(w.data)), a.metadata)
		}
		w.storing = false
	}
	a.draft(group)
	return a.reg.Drain()
}

// draft prepares step 2 while the data is on its way to memory. Until the map is locked
// others may move its entries; commitLocked looks again.
func (a *arena) draft(group []blockWrite) {
	for i := range group {
		w := &group[i]
		w.old = a.entry(w.lba)
		w.lbaOld, w.newSeq = a.record(w)
	}
}

// record is what goes into the flog for a write that replaces w.old.
func (a *arena) record(w *blockWrite) (lbaOld, newSeq uint64) {
	l := &a.lanes[w.lane]
	return layout.FlogRecord{
		LBA: w.lba,
		Old: a.flavour.LoggedOld(w.old, w.lba),
		New: a.flavour.LoggedNew(l.free),
		Seq: l.seq,
	}.Words()
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
		group[i].storing = true
		a.reg.Zero(a.dataOff(l.free), uint64(a.geo.InternalLBASize))
		group[i].storing = false
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

// retire says what becomes of a group that could not be filled because of err. If
// the memory of a lane's free block is bad, the lane is taken out of use: it must
// not be put back, and the error is gone, because any other lane will do. Nothing
// of that is noted on media; the next open tries the block again. The last lane
// stays, for those who wait for one: the arena then takes no more writes.
func (a *arena) retire(group []blockWrite, err error) (lost uint64, _ error) {
	if !isBadMemory(err) {
		return 0, err
	}
	for i := range group {
		if !group[i].storing {
			continue
		}
		group[i].storing = false
		if a.retired.Add(1) < a.geo.Nfree {
			return 1 << (group[i].lane % a.pool.perWord), nil
		}
		a.failures.Or(failedMemory)
	}
	return 0, err
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
	if a.failed() {
		return errArena // since we waited for the lock: its holder has left a record half way
	}
	for i := range group {
		w := &group[i]
		if e := a.entry(w.lba); e != w.old {
			w.old = e
			w.lbaOld, w.newSeq = a.record(w)
		}
		if uint32(w.old.Owned(w.lba)) >= a.geo.InternalNLBA {
			return errBadEntry // the lane would take that block over
		}
	}
	done := false
	defer func() {
		if !done {
			a.failures.Or(failedHalfway)
		}
	}()
	a.logMoves(group)
	if err := a.reg.Drain(); err != nil {
		return err
	}
	a.swing(group)
	// While the write-backs are under way. The lanes are ours until after the drain; if
	// that fails, nobody gets to use them.
	a.recycle(group)
	if err := a.reg.Drain(); err != nil {
		return err
	}
	done = true
	return nil
}

// logMoves is step 2: each lane's older flog record becomes the new one. It
// counts from the moment that the second word is there. All are stored before any
// is flushed, here and in swing, so that their cache misses are under way together.
func (a *arena) logMoves(group []blockWrite) {
	for i := range group {
		w := &group[i]
		off := a.recordOff(w.lane)
		a.reg.Store64(off, w.lbaOld)
		a.reg.Store64(off+8, w.newSeq)
	}
	// Lanes follow one another most of the time, and so do their lines.
	for len(group) > 0 {
		first, n := group[0].lane, uint32(1)
		for int(n) < len(group) && group[n].lane == first+n {
			n++
		}
		a.reg.Flush(a.flogOff(first), uint64(n)*layout.FlogGroupSize)
		group = group[n:]
	}
}

// recordOff is where the next flog record of a lane goes.
func (a *arena) recordOff(lane uint32) uint64 {
	return a.flogOff(lane) + uint64(a.lanes[lane].slot)*layout.FlogRecordSize
}

// swing is step 3: the map entries move to the new blocks. A line that several
// neighbours share is flushed once, behind the last of them.
func (a *arena) swing(group []blockWrite) {
	for i := range group {
		w := &group[i]
		swings := &a.locks[lockOf(w.lba)].swings
		pmem.StoreRelease64(swings, *swings+1)
		a.reg.Store32(a.mapOff(w.lba), uint32(layout.NormalEntry(a.lanes[w.lane].free)))
	}
	for i := range group {
		lba := group[i].lba
		if i+1 == len(group) || group[i+1].lba/entriesPerLine != lba/entriesPerLine {
			a.reg.Flush(a.mapOff(lba), entrySize)
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
		// The next write stores to it past the cache, and would have to wait for its page to
		// be looked up. Now we wait anyway.
		if !l.bad {
			a.reg.Prefetch(a.dataOff(l.free), 1)
		}
	}
}
