package fuzz

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/bttnbd/bttnbd/layout"
)

// Goal: after a crash at any moment of any short sequence of operations, every
// block is wholly old or wholly new, what was acknowledged or read is there, and
// the device goes on. Method: all sequences up to a length over the alphabet, a
// crash before each drain and after each acknowledgement of the last operation
// (earlier ones are the end of a shorter sequence), every image of each crash,
// and on each image crashes in recovery and after it.
func TestSequences(t *testing.T) {
	t.Parallel()
	parent := t
	for _, c := range []struct {
		flavour                layout.Flavour
		length, depth          int
		images, nested, states int // what was seen when this was written, less a little
	}{
		{layout.UEFI, 3, 1, 80_000, 80_000, 130},
		{layout.Kernel, 1, 2, 800, 1_300, 10},
		{pmemblk, 3, 1, 26_000, 37_000, 130},
		{oldPadding, 2, 1, 9_000, 8_500, 40},
	} {
		if testing.Short() {
			c.length, c.images, c.nested, c.states = min(c.length, 2), 0, 0, 0
		}
		t.Run(fmt.Sprintf("%s/%d", c.flavour.Name, c.length), func(t *testing.T) {
			if !beside(t, parent) {
				return
			}
			e := &explorer{flavour: c.flavour}
			e.sequences(t, c.length, c.depth)
			e.atLeast(t, c.images, c.nested, c.states)
		})
	}
}

// sequences runs all sequences up to a length.
func (e *explorer) sequences(t *testing.T, length, depth int) {
	t.Helper()
	start := time.Now()
	sequences := 0
	forEachSequence(length, func(ops []op) {
		sequences++
		if err := e.run(ops, depth); err != nil {
			t.Fatalf("%v: %v", ops, err)
		}
	})
	took := time.Since(start)
	t.Logf("%d sequences, %d images (%d after a kill, %d points of nested crashes), %d lines decided, %d distinct states, %.1f s, %.0f images/s; of %d the use is another's",
		sequences, e.images, e.kills, e.nested, e.choices, len(e.states), took.Seconds(), float64(e.images)/took.Seconds(), e.skipped)
}

func (e *explorer) atLeast(t *testing.T, images, nested, states int) {
	t.Helper()
	atLeast(t, "images", e.images, images)
	atLeast(t, "points of nested crashes", e.nested, nested)
	atLeast(t, "distinct states", len(e.states), states)
}

// Goal: the simulator can tell what the order of stores to one line is worth. On
// arm64 that order is there only because every store of package pmem is a release;
// with stores that are none, a record of one drain can become current with the lba
// and the block of the one before. Method: single writes with stores out of order
// must be found to break a promise.
func TestStoresOutOfOrder(t *testing.T) {
	if !model().exhaustive() {
		return // weaker models lose no store of its own
	}
	for _, f := range flavours {
		broken := 0
		for lba := range lbas {
			w := newWorld(f)
			w.m.Unordered = true
			e := &explorer{flavour: f}
			o := op{opWrite, lba, lowLanes}
			during, _ := w.during(o)
			onCrash(w.m, func() error { return e.crash(w.m, w, during, 0) })
			if err := w.do(o); err != nil {
				t.Logf("%s: %v", f.Name, err)
				broken++
			}
		}
		if broken == 0 {
			t.Errorf("%s: no promise was broken", f.Name)
		}
	}
}

// atLeast fails a campaign that explores less than it used to: a test that looks
// at nothing finds nothing. Whoever means to explore less lowers the number.
func atLeast(t *testing.T, what string, got, want int) {
	t.Helper()
	if got < want {
		t.Errorf("%d %s, there used to be %d and more", got, what, want)
	}
}

// wholeCampaign reports whether a test runs as a whole, so that its sums can be
// compared with what they used to be.
func wholeCampaign() bool {
	return !testing.Short() && flag.Lookup("test.run").Value.String() == ""
}

// forEachSequence calls f with every sequence of 1 to length operations.
func forEachSequence(length int, f func([]op)) {
	var extend func(prefix []op)
	extend = func(prefix []op) {
		for _, o := range alphabet {
			seq := append(prefix[:len(prefix):len(prefix)], o)
			f(seq)
			if len(seq) < length {
				extend(seq)
			}
		}
	}
	extend(nil)
}
