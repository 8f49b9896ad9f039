package btt

import (
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// arena is one arena of an open device.
type arena struct {
	// Set at open, never changed.
	reg     *pmem.Region
	flavour layout.Flavour
	index   int
	base    uint64 // of the arena in the region
	geo     layout.Geometry
	first   uint64 // external LBA of pre-map block 0
	padding layout.Padding
	// metadata is how many bytes follow a sector in its block: 0, or what Linux
	// keeps integrity data in. Nobody gives us any, so they are written as zeros.
	metadata uint64
	info     infoState

	lanes []lane   // each guarded by its token in pool
	pool  lanePool // which lanes nobody owns
	rtt   rtt
	locks [mapLocks]mapLock

	// failures are the reasons why the arena takes no writes, a bit each, see
	// failedHalfway; reads go on.
	failures atomic.Uint32
	retired  atomic.Uint32 // lanes taken out of use: their free blocks cannot be stored to

	inherited inheritedPages
	pages     touchedPages
	counters  counters
}

const (
	// failedHalfway: metadata could not be stored half way through a commit. Only
	// another open helps, which recovers as after a crash.
	failedHalfway = 1 << iota
	// failedFlag: the info block says so.
	failedFlag
	// failedMemory: there is no lane left whose free block can be stored to.
	failedMemory
)

func (a *arena) failed() bool { return a.failures.Load() != 0 }

// mapOff, flogOff and dataOff are where things of this arena are in the region.
func (a *arena) mapOff(lba layout.PremapLBA) uint64 {
	return a.base + a.geo.MapOff + uint64(lba)*entrySize
}

func (a *arena) flogOff(lane uint32) uint64 {
	return a.base + a.geo.FlogOff + uint64(lane)*layout.FlogGroupSize
}

func (a *arena) dataOff(block layout.PostmapLBA) uint64 {
	return a.base + a.geo.DataOff + uint64(block)*uint64(a.geo.InternalLBASize)
}

func (a *arena) entry(lba layout.PremapLBA) layout.MapEntry {
	return layout.MapEntry(a.reg.Load32(a.mapOff(lba)))
}

// takeLanes takes between 1 and n lanes, waiting for the first if none is free.
func (a *arena) takeLanes(n int, hint uint32) (word int, set uint64) {
	if a.reg.Traced() {
		a.reg.Await(a.pool.anyFree)
	}
	if word, set = a.pool.tryTake(n, hint); set != 0 {
		return word, set
	}
	return a.parkForLanes(n, hint)
}

// parkForLanes is apart from takeLanes because its closure costs an allocation.
func (a *arena) parkForLanes(n int, hint uint32) (word int, set uint64) {
	a.counters.at(hint).laneWaits.Add(1)
	a.pool.park(func() bool {
		word, set = a.pool.tryTake(n, hint)
		return set != 0
	})
	return word, set
}

// waitForReaders returns when nobody reads block, which the caller owns.
func (a *arena) waitForReaders(block layout.PostmapLBA, hint uint32) {
	if a.reg.Traced() {
		a.reg.Await(func() bool { return !a.rtt.reading(block) })
	}
	if a.rtt.reading(block) {
		a.counters.at(hint).rttWaits.Add(1)
		a.rtt.wait(block)
	}
}

// lock takes the locks of the set in ascending order.
func (a *arena) lock(s *lockSet) {
	for i := s.next(0); i < mapLocks; i = s.next(i + 1) {
		if a.reg.Traced() {
			a.awaitLock(&a.locks[i])
		}
		a.locks[i].mu.Lock()
	}
}

// awaitLock lets the simulator run others until the lock is free.
func (a *arena) awaitLock(l *mapLock) {
	a.reg.Await(func() bool {
		if !l.mu.TryLock() {
			return false
		}
		l.mu.Unlock()
		return true
	})
}

func (a *arena) unlock(s *lockSet) {
	for i := s.next(0); i < mapLocks; i = s.next(i + 1) {
		a.locks[i].mu.Unlock()
	}
}
