package fuzz

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/bttnbd/bttnbd/btt"
	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Goal: requests of a group take effect in their order, whatever their bounds and
// however they overlap. Method: random groups of whole blocks and parts, in few
// blocks on both sides of the border of two arenas, beside a plain byte slice.
func TestGroups(t *testing.T) {
	r := pmem.NewHeap(layout.UEFI.Start + 2*arena)
	if err := btt.Format(r, formatParams(layout.UEFI)); err != nil {
		t.Fatal(err)
	}
	d, err := btt.Open(r, btt.Options{MaxArena: arena})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 6
	start := int64(d.Size())/2 - blocks/2*sector
	want, got := make([]byte, blocks*sector), make([]byte, blocks*sector)
	rng := rand.New(rand.NewPCG(7, 8))
	for i := range 3000 {
		var offs []int64
		var data [][]byte
		for range 1 + rng.IntN(5) {
			off, n := rng.Int64N(blocks)*sector, int64(sector)*(1+rng.Int64N(2))
			if rng.IntN(3) == 0 {
				off, n = off+rng.Int64N(sector), 1+rng.Int64N(2*sector)
			}
			n = min(n, int64(len(want))-off)
			p := bytes.Repeat([]byte{byte(rng.Uint32())}, int(n))
			copy(want[off:], p)
			offs, data = append(offs, start+off), append(data, p)
		}
		errs := make([]error, len(offs))
		d.WriteGroup(offs, data, errs)
		for k, err := range errs {
			if err != nil {
				t.Fatalf("group %d, request %d: %v", i, k, err)
			}
		}
		if _, err := d.ReadAt(got, start); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("group %d: requests at %v are not in order (%v)", i, offs, err)
		}
	}
}
