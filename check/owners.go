package check

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/bttnbd/bttnbd/layout"
)

// owners is one bit for each internal block of an arena: somebody owns it.
type owners struct {
	bits   []uint64
	n      uint32
	shared map[layout.PostmapLBA]*holders // the first blocks found with a second owner
	more   uint64                         // claims to a block that is taken, not in shared
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
		bits: make([]uint64, (uint64(internalNLBA)+63)/64), n: internalNLBA,
		shared: make(map[layout.PostmapLBA]*holders),
	}
}

// claim takes a block for one more owner.
func (o *owners) claim(b layout.PostmapLBA) {
	word, bit := &o.bits[b/64], uint64(1)<<(b%64)
	if *word&bit != 0 {
		o.taken(b)
	}
	*word |= bit
}

// claimRange takes n blocks, each for the entry of its own number.
func (o *owners) claimRange(first layout.PostmapLBA, n uint32) {
	for n > 0 {
		shift := uint32(first % 64)
		run := min(n, 64-shift)
		mask := ^uint64(0) >> (64 - run) << shift
		word := &o.bits[first/64]
		for both := *word & mask; both != 0; both &= both - 1 {
			o.taken(first - layout.PostmapLBA(shift) + layout.PostmapLBA(bits.TrailingZeros64(both)))
		}
		*word |= mask
		first, n = first+layout.PostmapLBA(run), n-run
	}
}

func (o *owners) taken(b layout.PostmapLBA) {
	if _, known := o.shared[b]; known {
		return
	}
	if len(o.shared) < maxFindings {
		o.shared[b] = new(holders)
		return
	}
	o.more++
}

// eachOrphan calls fn for every run of blocks that nobody owns.
func (o *owners) eachOrphan(fn func(first layout.PostmapLBA, n uint32)) {
	start := uint32(0) // of the run of orphans that b may belong to
	for b := uint32(0); b < o.n; {
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

// reportShared reports the blocks in o.shared, whose holders are known by now.
func (o *owners) reportShared(c *collector, a *Arena, order []layout.PostmapLBA) {
	for _, b := range order {
		h := o.shared[b]
		f := Finding{
			Kind: BlockDuplicate, Severity: Error, Offset: a.block(b),
			Message: fmt.Sprintf("internal block %d belongs to %s; %s", b, h.names(a), h.consequence(a)),
			Repair:  "point all but one of its owners at blocks that nobody owns; LBAs so moved are marked as errors",
		}
		if len(h.lbas) > 0 {
			f.LBA = a.lba(h.lbas[0])
		}
		c.add(f)
	}
	c.omit(BlockDuplicate, Error, o.more)
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
