package check

import (
	"fmt"
	"math/bits"
	"strings"
	"sync"

	"github.com/bttnbd/bttnbd/layout"
)

// sliceBlocks is how many blocks a slice of the bitmap stands for: 256 KiB of it,
// which stay in the cache of one core while that fills it.
const sliceBlocks = 1 << 21

// owners is one bit for each internal block of an arena: somebody owns it.
type owners struct {
	bits  []uint64
	n     uint32
	locks []sync.Mutex // one for each slice of bits, held by who changes it

	mu    sync.Mutex
	twice []uint64 // blocks with more than one owner; nil: there is none
}

// holders are the owners of a block that has too many.
type holders struct {
	lanes []layout.Lane      // at most maxHolders
	lbas  []layout.PremapLBA // at most maxHolders
	count int                // of all
}

// maxHolders is how many lanes and LBAs a finding about a shared block names.
const maxHolders = 8

func newOwners(internalNLBA uint32) *owners {
	return &owners{
		bits: newBits(internalNLBA), n: internalNLBA,
		locks: make([]sync.Mutex, (uint64(internalNLBA)+sliceBlocks-1)/sliceBlocks),
	}
}

func newBits(n uint32) []uint64 { return make([]uint64, (uint64(n)+63)/64) }

func has(set []uint64, b layout.PostmapLBA) bool { return set[b/64]&(1<<(b%64)) != 0 }

// owned reports whether somebody has claimed the block.
func (o *owners) owned(b layout.PostmapLBA) bool { return has(o.bits, b) }

// shared reports whether two have.
func (o *owners) shared(b layout.PostmapLBA) bool {
	return o.twice != nil && uint32(b) < o.n && has(o.twice, b)
}

// claim takes a block for one more owner.
func (o *owners) claim(b layout.PostmapLBA) {
	o.claimAll(b/sliceBlocks, []layout.PostmapLBA{b})
}

// claimAll takes blocks of one slice.
func (o *owners) claimAll(slice layout.PostmapLBA, blocks []layout.PostmapLBA) {
	o.locks[slice].Lock()
	defer o.locks[slice].Unlock()
	set := o.bits
	for _, b := range blocks {
		word, bit := &set[b/64], uint64(1)<<(b%64)
		if *word&bit != 0 {
			o.again(b/64, bit)
		}
		*word |= bit
	}
}

// claimRange takes n blocks, each for the entry of its own number.
func (o *owners) claimRange(first layout.PostmapLBA, n uint32) {
	for n > 0 {
		slice := first / sliceBlocks
		run := min(n, sliceBlocks-uint32(first%sliceBlocks))
		o.locks[slice].Lock()
		eachWord(first, run, o.claimWord)
		o.locks[slice].Unlock()
		first, n = first+layout.PostmapLBA(run), n-run
	}
}

// join takes the blocks of other bitmaps, a part of them on each goroutine: it is
// memory that costs the time, which another CPU has written.
func (o *owners) join(others []*ownBits) {
	parts := len(others) + 1
	var wg sync.WaitGroup
	for part := range parts {
		from, to := part*len(o.bits)/parts, (part+1)*len(o.bits)/parts
		wg.Go(func() {
			for _, other := range others {
				for i, mask := range other.set[from:to] {
					o.claimWord(layout.PostmapLBA(from+i), mask)
				}
			}
		})
	}
	wg.Wait()
}

func (o *owners) claimWord(word layout.PostmapLBA, mask uint64) {
	if both := o.bits[word] & mask; both != 0 {
		o.again(word, both)
	}
	o.bits[word] |= mask
}

// eachWord calls fn for the words of a bitmap in which n blocks from first on have
// their bits.
func eachWord(first layout.PostmapLBA, n uint32, fn func(word layout.PostmapLBA, mask uint64)) {
	for n > 0 {
		shift := uint32(first % 64)
		run := min(n, 64-shift)
		fn(first/64, ^uint64(0)>>(64-run)<<shift)
		first, n = first+layout.PostmapLBA(run), n-run
	}
}

// again notes that the blocks of mask in a word have more than one owner. Damage
// is rare, so the set of them is made when it is needed.
func (o *owners) again(word layout.PostmapLBA, mask uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.twice == nil {
		o.twice = newBits(o.n)
	}
	o.twice[word] |= mask
}

// listShared is the first blocks with more than one owner, in order, and how many
// more there are.
func (o *owners) listShared() (list []layout.PostmapLBA, more uint64) {
	for i, w := range o.twice {
		for ; w != 0; w &= w - 1 {
			if len(list) == maxFindings {
				more += uint64(bits.OnesCount64(w))
				break
			}
			list = append(list, layout.PostmapLBA(i*64+bits.TrailingZeros64(w)))
		}
	}
	return list, more
}

// eachOrphan calls fn for every run of blocks that nobody owns.
func (o *owners) eachOrphan(fn func(first layout.PostmapLBA, n uint32)) {
	start := uint32(0) // of the run of orphans that b may belong to
	for b := uint32(0); b < o.n; {
		if b%64 == 0 && start == b && o.bits[b/64] == ^uint64(0) {
			b += 64
			start = b
			continue
		}
		word := o.bits[b/64] >> (b % 64)
		if run := uint32(bits.TrailingZeros64(word)); run > 0 { // free from b on
			b += min(run, 64-b%64, o.n-b)
			continue
		}
		if start < b {
			fn(layout.PostmapLBA(start), b-start)
		}
		b += uint32(bits.TrailingZeros64(^word))
		start = b
	}
	if start < o.n {
		fn(layout.PostmapLBA(start), o.n-start)
	}
}

// reportOrphans reports the blocks that nobody owns, a run of them at a time.
func (o *owners) reportOrphans(c *collector, a *Arena) {
	o.eachOrphan(func(first layout.PostmapLBA, n uint32) {
		if !c.room(BlockOrphan, Error) {
			return
		}
		what := fmt.Sprintf("internal block %d belongs", first)
		if n > 1 {
			what = fmt.Sprintf("internal blocks %d to %d belong", first, uint32(first)+n-1)
		}
		c.put(Finding{
			Kind: BlockOrphan, Severity: Error, Offset: a.block(first),
			Message: what + " to no map entry and to no lane: a map entry or a lane has lost track of it, and what it holds",
			Repair:  "give it to a lane or a map entry that is left without a block",
		})
	})
}

// reportShared reports blocks with more than one owner, whose holders are known.
func reportShared(c *collector, a *Arena, list []layout.PostmapLBA, shared map[layout.PostmapLBA]*holders) {
	for _, b := range list {
		h := shared[b]
		f := Finding{
			Kind: BlockDuplicate, Severity: Error, Offset: a.block(b),
			Message: fmt.Sprintf("internal block %d belongs to %s; %s", b, h.names(a), h.consequence(a)),
			Repair:  "mark its LBAs as errors, since it cannot be told whose data it holds, and give all owners but one blocks that nobody owns",
		}
		if len(h.lbas) > 0 {
			f.LBA = a.lba(h.lbas[0])
		}
		c.add(f)
	}
}

func (h *holders) addLane(lane layout.Lane) {
	if len(h.lanes) < maxHolders {
		h.lanes = append(h.lanes, lane)
	}
	h.count++
}

func (h *holders) addLBA(lba layout.PremapLBA) {
	if len(h.lbas) < maxHolders {
		h.lbas = append(h.lbas, lba)
	}
	h.count++
}

func (h *holders) names(a *Arena) string {
	var names []string
	for _, lba := range h.lbas {
		names = append(names, fmt.Sprintf("lba %d", *a.lba(lba)))
	}
	for _, lane := range h.lanes {
		names = append(names, fmt.Sprintf("lane %d", lane))
	}
	if n := h.count - len(names); n > 0 {
		names = append(names, fmt.Sprintf("%d more", n))
	}
	return strings.Join(names, " and ")
}

func (h *holders) consequence(a *Arena) string {
	switch {
	case len(h.lbas) > 0 && len(h.lanes) > 0:
		return fmt.Sprintf("a write in lane %d overwrites what lba %d holds", h.lanes[0], *a.lba(h.lbas[0]))
	case len(h.lbas) > 0:
		return "they read the same data, which is right for one of them at most"
	}
	return "two writes at once would mix their data"
}
