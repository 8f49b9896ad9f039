package btt

import (
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// mark turns the map entries of n blocks from lba into what change makes of the
// blocks that they own: zero or error entries. It is durable on return. Each
// block changes at one moment of its own; the range as a whole is not atomic.
func (a *arena) mark(lba layout.PremapLBA, n uint32, change func(layout.PostmapLBA) layout.MapEntry) error {
	for n > 0 {
		// One pass takes a run of map lines whose locks ascend.
		pass := min(n, mapLocks*entriesPerLine-uint32(lba)%(mapLocks*entriesPerLine))
		if err := a.markPass(lba, pass, change); err != nil {
			return err
		}
		lba, n = lba+layout.PremapLBA(pass), n-pass
	}
	return nil
}

func (a *arena) markPass(lba layout.PremapLBA, n uint32, change func(layout.PostmapLBA) layout.MapEntry) error {
	if a.failed() {
		return errArena
	}
	var locks lockSet
	for l := lba / entriesPerLine; l <= (lba+layout.PremapLBA(n)-1)/entriesPerLine; l++ {
		locks.add(uint32(l) % mapLocks)
	}
	a.lock(&locks)
	defer a.unlock(&locks)
	if a.failed() { // with the locks in hand: see commitLocked
		return errArena
	}
	for i := range layout.PremapLBA(n) {
		if uint32(a.entry(lba+i).Owned(lba+i)) >= a.geo.InternalNLBA {
			return errBadEntry // a flag would hide that from those who read it
		}
	}
	return a.markLocked(&locks, lba, n, change)
}

// markLocked is [arena.markPass] for a caller who holds the map locks.
func (a *arena) markLocked(locks *lockSet, lba layout.PremapLBA, n uint32, change func(layout.PostmapLBA) layout.MapEntry) error {
	a.unsettled(locks, 1)
	// When a store faults or a drain fails the entries stay unsettled: readers
	// then go on persisting them before they answer.
	changed := false
	for i := layout.PremapLBA(0); i < layout.PremapLBA(n); {
		if run := a.markRun(lba+i, n-uint32(i), change); run > 0 {
			a.reg.Flush(a.mapOff(lba+i), uint64(run)*entrySize)
			changed = true
			i += layout.PremapLBA(run)
		} else {
			i++
		}
	}
	if !changed {
		a.unsettled(locks, -1)
		return nil
	}
	if err := a.reg.Drain(); err != nil {
		a.failures.Or(failedHalfway)
		return err
	}
	a.unsettled(locks, -1)
	c := a.counters.at(a.reg.Hint())
	c.blocksMarked.Add(uint64(n))
	c.marks.Add(1)
	return nil
}

// markRun changes the entries from lba on, n at most, up to one that is as wanted
// without: an initial one that reads as zeros. It returns how many it changed.
func (a *arena) markRun(lba layout.PremapLBA, n uint32, change func(layout.PostmapLBA) layout.MapEntry) (run uint32) {
	for ; run < n; run++ {
		at := lba + layout.PremapLBA(run)
		off := a.mapOff(at)
		e := layout.MapEntry(a.reg.Load32(off))
		now := change(e.Owned(at))
		if e.State() == layout.Initial && a.flavour.InitialZero && now.State() == layout.Zero {
			break
		}
		a.reg.Store32(off, uint32(now))
	}
	return run
}

func (a *arena) unsettled(s *lockSet, n int32) {
	for i := s.next(0); i < mapLocks; i = s.next(i + 1) {
		a.locks[i].unsettled.Add(n)
	}
}

// settle makes sure that the zero or error entry which a reader has just seen is
// durable before the reader answers (I8). Normal entries need no such care: their
// flog record is durable before they are visible, and recovery replays it. There
// are two ways for a visible entry not to be durable:
//
//   - mark has stored it and is about to drain: unsettled says so. The count is
//     raised before the store and lowered after the drain, so that who saw the
//     entry and then a count of 0 saw a durable entry.
//   - a predecessor was killed between its store and its drain, and the entry is
//     still in a CPU cache: inherited says so, a page of the map at a time.
func (a *arena) settle(lba layout.PremapLBA) error {
	if a.locks[lockOf(lba)].unsettled.Load() != 0 {
		if err := a.reg.Persist(a.mapOff(lba), entrySize); err != nil {
			return err
		}
	}
	return a.inherited.settle(a, lba)
}

// inheritedPages knows which pages of the map may hold stores that a killed
// predecessor never flushed. It is empty where that cannot be: opening a file
// behind the page cache syncs it, and tmpfs promises nothing about power.
type inheritedPages struct {
	unknown []atomic.Uint64 // a bit for each 4 KiB of the map
}

const entriesPerPage = 4096 / entrySize

func (i *inheritedPages) init(a *arena) {
	if a.reg.Durability() != pmem.DAX || a.reg.ReadOnly() {
		return
	}
	pages := (a.geo.ExternalNLBA + entriesPerPage - 1) / entriesPerPage
	i.unknown = make([]atomic.Uint64, (pages+63)/64)
	for p := range pages {
		i.unknown[p/64].Or(1 << (p % 64))
	}
}

// settle persists the map page of lba unless that has been done since the open.
func (i *inheritedPages) settle(a *arena, lba layout.PremapLBA) error {
	if i.unknown == nil {
		return nil
	}
	page := uint32(lba) / entriesPerPage
	word, bit := &i.unknown[page/64], uint64(1)<<(page%64)
	if word.Load()&bit == 0 {
		return nil
	}
	first := page * entriesPerPage
	n := min(entriesPerPage, a.geo.ExternalNLBA-first)
	if err := a.reg.Persist(a.mapOff(layout.PremapLBA(first)), uint64(n)*entrySize); err != nil {
		return err
	}
	word.And(^bit) // only ever cleared, and only after the drain
	return nil
}
