package check

import (
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
)

// Goal: what each goroutine has claimed is among the owners in the end, also when one
// of them comes to nearly all the work, as chance may have it in a scan.
func TestClaimsOfAllGoroutines(t *testing.T) {
	const n = 1 << 16
	s := &mapScan{owners: newOwners(n)}
	want := newOwners(n)
	w := s.ownBits(3)
	for i, c := range w.list {
		c.begin()
		first := layout.PostmapLBA(i * n / 3)
		c.run(first, 100)
		c.one(first + 200)
		c.end()
		for b := first; b < first+100; b++ {
			want.bits[b/64] |= 1 << (b % 64)
		}
		want.bits[(first+200)/64] |= 1 << ((first + 200) % 64)
	}
	w.join()
	if !slices.Equal(s.owners.bits, want.bits) {
		t.Error("blocks that a goroutine has claimed have no owner")
	}
}
