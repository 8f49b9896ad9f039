package btt

import (
	"math/bits"
	"testing"
)

// Goal: in a large word a lane that was just put back is not the next one; no lane is
// handed out twice, and every one is when all are wanted, wherever the search begins.
func TestLanesRest(t *testing.T) {
	var p lanePool
	p.init(256)
	var last uint64
	for _, n := range []int{1, 1, 1, 32, 32, 7, 32, 1, 1} {
		_, set := p.tryTake(n, 0)
		if bits.OnesCount64(set) != n || set&last != 0 {
			t.Errorf("%d lanes after %#x: %#x", n, last, set)
		}
		p.put(0, set)
		last = set
	}
	var all uint64
	for _, n := range []int{20, 20, 20, 20} {
		word, set := p.tryTake(n, 0)
		if word != 0 || set == 0 || set&all != 0 {
			t.Errorf("beside %#x: %#x of word %d", all, set, word)
		}
		all |= set
	}
	if all != 1<<64-1 {
		t.Errorf("taken: %#x", all)
	}
}
