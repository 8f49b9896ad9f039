package check

import (
	"encoding/binary"
	"math/bits"

	"github.com/bttnbd/bttnbd/layout"
)

const (
	// claimBudget is how many bytes the claims of all goroutines take together.
	claimBudget = 24 << 20

	// maxOwnBits is how large a bitmap, in bytes, can be of which each goroutine has
	// its own: it stays in the cache, or nearly.
	maxOwnBits = 4 << 20

	maxBucket = 64 << 10 // entries
	minBucket = 1 << 10
)

// claims is where a goroutine keeps the blocks to which it has found owners.
//
// To go straight to one bitmap for all costs an atomic operation for each entry,
// and waits for memory as often. There are two ways around it:
//
//   - ownBits, for bitmaps that fit the cache: one for each goroutine, and nothing
//     looked at on the way. Whether all blocks were distinct, the number of bits
//     tells in the end.
//   - buckets, for large ones: blocks are sorted, each sort for a slice of the common
//     bitmap. A bucket is emptied into its slice when it is full, so that most
//     claims find their word in the cache.
type claims interface {
	begin()
	// normal claims the blocks of the normal entries, in range, that b begins with.
	// It returns how many those are.
	normal(b []byte) int
	one(block layout.PostmapLBA)
	// run claims n blocks from first on.
	run(first layout.PostmapLBA, n uint32)
	// end is called when there is no more to claim. It reports whether it is known
	// of which blocks there are several owners.
	end() bool
}

// way is a way to keep the claims of all goroutines.
type way struct {
	list []claims // one for each; nil: they only count
	join func()   // what is left to do when all have come to their end
}

// flags are those of a normal entry. Without them its number is left; any other
// entry then has a number that is out of range.
const flags = uint32(layout.EntryZero | layout.EntryError)

// ownBits is a bitmap of one goroutine. The first has that of the owners itself.
type ownBits struct {
	owners *owners
	set    []uint64
	claims uint64
}

// ownBits are bitmaps for count goroutines.
func (s *mapScan) ownBits(count int) way {
	all := make([]*ownBits, count)
	list := make([]claims, count)
	for i := range all {
		all[i] = &ownBits{owners: s.owners}
		list[i] = all[i]
	}
	all[0].set = s.owners.bits
	return way{list, func() { s.owners.join(all[1:]) }}
}

// begin makes the bitmap. A store to each of its pages has the kernel make them all
// at once; a load first would fault, and then the store again.
func (o *ownBits) begin() {
	if o.set == nil {
		o.set = newBits(o.owners.n)
	}
	for i := 0; i < len(o.set); i += page / 8 {
		o.set[i] = 0
	}
}

// normal takes four entries at a time. Their claims wait for each other only if they
// are in the same word; four in a row, as a file leaves them that was written in
// order, are one claim.
func (o *ownBits) normal(b []byte) int {
	set, limit, all := o.set, o.owners.n, len(b)
	for ; len(b) >= 16; b = b[16:] {
		e0 := binary.LittleEndian.Uint32(b) ^ flags
		e1 := binary.LittleEndian.Uint32(b[4:]) ^ flags
		e2 := binary.LittleEndian.Uint32(b[8:]) ^ flags
		e3 := binary.LittleEndian.Uint32(b[12:]) ^ flags
		if max(e0, e1, e2, e3) >= limit {
			break
		}
		if e3 == e0+3 && e2 == e0+2 && e1 == e0+1 && e0%64 <= 60 {
			set[e0/64] |= 15 << (e0 % 64)
			continue
		}
		set[e0/64] |= 1 << (e0 % 64)
		set[e1/64] |= 1 << (e1 % 64)
		set[e2/64] |= 1 << (e2 % 64)
		set[e3/64] |= 1 << (e3 % 64)
	}
	for ; len(b) >= 4; b = b[4:] {
		e := binary.LittleEndian.Uint32(b) ^ flags
		if e >= limit {
			break
		}
		set[e/64] |= 1 << (e % 64)
	}
	n := (all - len(b)) / 4
	o.claims += uint64(n)
	return n
}

func (o *ownBits) one(block layout.PostmapLBA) {
	o.set[block/64] |= 1 << (block % 64)
	o.claims++
}

func (o *ownBits) run(first layout.PostmapLBA, n uint32) {
	eachWord(first, n, func(word layout.PostmapLBA, mask uint64) { o.set[word] |= mask })
	o.claims += uint64(n)
}

func (o *ownBits) end() bool {
	n := uint64(0)
	for _, w := range o.set {
		n += uint64(bits.OnesCount64(w))
	}
	return n == o.claims
}

// buckets are one for each slice of the bitmap of the arena's owners.
type buckets struct {
	owners *owners
	blocks []layout.PostmapLBA // size of them for each slice
	fill   []int               // how many are in each
	size   int
}

// buckets are such for count goroutines.
func (s *mapScan) buckets(count int) way {
	slices := len(s.owners.locks)
	size := min(max(claimBudget/4/count/slices, minBucket), maxBucket, int(s.a.Info.ExternalNLBA))
	list := make([]claims, count)
	for i := range list {
		list[i] = &buckets{owners: s.owners, size: size}
	}
	return way{list, func() {}}
}

func (b *buckets) begin() {
	b.fill = make([]int, len(b.owners.locks))
	b.blocks = make([]layout.PostmapLBA, len(b.fill)*b.size)
}

func (b *buckets) normal(entries []byte) (n int) {
	blocks, fill, size, limit := b.blocks, b.fill, b.size, b.owners.n
	for ; len(entries) >= 4; entries = entries[4:] {
		e := binary.LittleEndian.Uint32(entries) ^ flags
		if e >= limit {
			break
		}
		slice := e / sliceBlocks
		k := fill[slice]
		blocks[int(slice)*size+k] = layout.PostmapLBA(e)
		if fill[slice] = k + 1; k+1 == size {
			b.empty(layout.PostmapLBA(slice))
		}
		n++
	}
	return n
}

func (b *buckets) one(block layout.PostmapLBA) {
	slice := block / sliceBlocks
	b.blocks[int(slice)*b.size+b.fill[slice]] = block
	if b.fill[slice]++; b.fill[slice] == b.size {
		b.empty(slice)
	}
}

func (b *buckets) run(first layout.PostmapLBA, n uint32) { b.owners.claimRange(first, n) }

// empty claims what is in a bucket.
func (b *buckets) empty(slice layout.PostmapLBA) {
	from := int(slice) * b.size
	b.owners.claimAll(slice, b.blocks[from:from+b.fill[slice]])
	b.fill[slice] = 0
}

func (b *buckets) end() bool {
	for slice := range b.fill {
		b.empty(layout.PostmapLBA(slice))
	}
	return true
}
