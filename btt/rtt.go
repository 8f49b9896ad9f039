package btt

import (
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
)

// The read tracking table tells writers which internal blocks are being read, by
// readers for whom [Device.glimpse] has not done.
//
//	reader                              writer, before it fills free block b
//	1  e := map[lba]                    1  (b became free: map[…] was swung away)
//	2  slot := block of e               2  any slot == b ?  wait
//	3  e' := map[lba]; e' != e: again   3  store into b
//	4  copy; slot := empty
//
// If the reader's step 3 still saw b, then its step 2 came before the map was
// swung away, hence before the writer's step 2, which sees it. This needs steps
// 2 and 3 in this order on every machine; sync/atomic gives it. The writer's step 1
// is a store that a later load might overtake ([pmem.StoreRelease32]), but not here:
// between its two steps the map lock was released and the lane, with b, was put back
// and taken, all of them locked operations.
//
// Slots are not lanes: readers take one by filling it, and a writer looks only
// at those that were ever in use. The hints of readers keep to the first few, one
// for each goroutine as long as they do not meet.
const rttSlots = 256

type rtt struct {
	used    [rttSlots / 64]atomic.Uint64 // a bit for each slot that was ever filled
	window  uint32                       // slots that readers try first
	waiters atomic.Int32                 // parked writers
	mu      sync.Mutex
	cleared sync.Cond
	slots   [rttSlots]rttSlot
}

// rttSlot holds block+1, or 0 when empty, on a cache line of its own.
type rttSlot struct {
	block atomic.Uint32
	_     [60]byte
}

func (t *rtt) init() {
	t.cleared.L = &t.mu
	t.window = min(rttSlots, max(16, 4*uint32(runtime.GOMAXPROCS(0))))
}

// publish announces that block is going to be read and returns the slot, which
// the caller must clear on every path. hint spreads readers over the slots.
func (t *rtt) publish(block layout.PostmapLBA, hint uint32) *rttSlot {
	for {
		for i := uint32(0); i < rttSlots; i++ {
			n := (hint%t.window + i) % rttSlots
			// The slot is marked before it is filled: a writer that does not see
			// the mark has looked before the announcement, see above.
			if used, bit := &t.used[n/64], uint64(1)<<(n%64); used.Load()&bit == 0 {
				used.Or(bit)
			}
			if s := &t.slots[n]; s.block.Load() == 0 && s.block.CompareAndSwap(0, uint32(block)+1) {
				return s
			}
		}
		runtime.Gosched() // more readers than slots, all in the middle of a copy
	}
}

// clear ends an announcement and wakes the writers that may wait for it.
func (t *rtt) clear(s *rttSlot) {
	s.block.Store(0)
	if t.waiters.Load() != 0 {
		t.mu.Lock()
		t.cleared.Broadcast()
		t.mu.Unlock()
	}
}

// reading reports whether anybody has announced block.
func (t *rtt) reading(block layout.PostmapLBA) bool {
	for w := range t.used {
		for set := t.used[w].Load(); set != 0; set &= set - 1 {
			if t.slots[w*64+bits.TrailingZeros64(set)].block.Load() == uint32(block)+1 {
				return true
			}
		}
	}
	return false
}

// busy reports whether anybody has announced any block.
func (t *rtt) busy() bool {
	for w := range t.used {
		for set := t.used[w].Load(); set != 0; set &= set - 1 {
			if t.slots[w*64+bits.TrailingZeros64(set)].block.Load() != 0 {
				return true
			}
		}
	}
	return false
}

// wait returns when nobody reads block. A reader is done within a copy of one
// block, so it spins for about that long, and then parks.
func (t *rtt) wait(block layout.PostmapLBA) {
	const spins = 64
	for i := range spins {
		if !t.reading(block) {
			return
		}
		if i > spins/2 {
			runtime.Gosched() // the reader may need this very CPU
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiters.Add(1)
	for t.reading(block) {
		t.cleared.Wait()
	}
	t.waiters.Add(-1)
}
