package btt

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// lane is what a writer owns while it writes: a free block, and the place of the
// next flog record. Only the owner of the lane's token looks at it.
type lane struct {
	free layout.PostmapLBA
	seq  uint32 // of the next record
	slot uint32 // record of the flog group that the next write fills: 0, 1 or 2
	bad  bool   // free was known to be bad: it is filled with zeros before it is used
}

// lanePool hands out the lanes of an arena as tokens: a set bit is a free lane.
// A token is owned until it is put back, wherever the scheduler moves its owner.
// (Linux derived lanes from the CPU and lost data when tasks became preemptible:
// CVE-2026-74365.) One compare-and-swap takes the lanes of a whole group.
type lanePool struct {
	words   []laneWord
	perWord uint32
	waiters atomic.Int32
	mu      sync.Mutex
	freed   sync.Cond
}

// laneWord is up to 64 lanes, on a cache line of its own. In words of more than 32 the
// half that was not put back to last comes first: the pages of the free blocks that the
// others have got are still being looked up (see [arena.recycle]).
type laneWord struct {
	free atomic.Uint64
	from uint32 // where to begin, a hint: 0, or 32
	_    [52]byte
}

// init makes a pool of n free lanes, in two words at least if there are that many.
func (p *lanePool) init(n uint32) {
	p.perWord = min(64, (n+1)/2)
	p.words = make([]laneWord, (n+p.perWord-1)/p.perWord)
	for i := range n {
		p.words[i/p.perWord].free.Or(1 << (i % p.perWord))
	}
	p.freed.L = &p.mu
}

// lane is the number of the lowest lane of a set of one word.
func (p *lanePool) lane(word int, set uint64) uint32 {
	return uint32(word)*p.perWord + uint32(bits.TrailingZeros64(set))
}

// tryTake takes up to n lanes of one word, n in 1…64, and returns the index of
// the word and the set taken; the set is empty when no lane is free. hint says
// where to look first, so that writers keep out of each other's cache lines.
func (p *lanePool) tryTake(n int, hint uint32) (word int, set uint64) {
	for i := range p.words {
		word = (int(hint) + i) % len(p.words)
		w := &p.words[word]
		for free := w.free.Load(); free != 0; free = w.free.Load() {
			from := int(atomic.LoadUint32(&w.from))
			set = bits.RotateLeft64(lowestBits(bits.RotateLeft64(free, -from), n), from)
			if w.free.CompareAndSwap(free, free&^set) {
				return word, set
			}
		}
	}
	return 0, 0
}

// park blocks until lanes have been put back since the caller last looked.
// retry is called with the lock held, after this waiter is known to putters.
func (p *lanePool) park(retry func() bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiters.Add(1)
	for !retry() {
		p.freed.Wait()
	}
	p.waiters.Add(-1)
}

// put gives lanes back.
func (p *lanePool) put(word int, set uint64) {
	w := &p.words[word]
	from := uint32(0)
	if set<<32 != 0 {
		from = 32
	}
	pmem.StoreRelease32(&w.from, from)
	w.free.Or(set)
	if p.waiters.Load() != 0 {
		p.mu.Lock()
		p.freed.Broadcast()
		p.mu.Unlock()
	}
}

// lowestBits keeps the n lowest set bits of set.
func lowestBits(set uint64, n int) uint64 {
	if n >= bits.OnesCount64(set) {
		return set
	}
	rest := set
	for range n {
		rest &= rest - 1
	}
	return set &^ rest
}

func (p *lanePool) anyFree() bool {
	for i := range p.words {
		if p.words[i].free.Load() != 0 {
			return true
		}
	}
	return false
}
