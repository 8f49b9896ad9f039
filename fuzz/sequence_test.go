package fuzz

import (
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
	for _, c := range []struct {
		flavour        layout.Flavour
		length, depth  int
		images, states int // what was seen when this was written, less a little
	}{
		{layout.UEFI, 3, 1, 80_000, 130},
		{layout.Kernel, 1, 2, 800, 10},
		{pmemblk, 3, 1, 26_000, 130},
		{oldPadding, 2, 1, 9_000, 40},
	} {
		if testing.Short() {
			c.length, c.images, c.states = min(c.length, 2), 0, 0
		}
		t.Run(fmt.Sprintf("%s/%d", c.flavour.Name, c.length), func(t *testing.T) {
			e := &explorer{flavour: c.flavour}
			start := time.Now()
			sequences := 0
			forEachSequence(c.length, func(ops []op) {
				sequences++
				if err := e.run(ops, c.depth); err != nil {
					t.Fatalf("%v: %v", ops, err)
				}
			})
			took := time.Since(start)
			t.Logf("%d sequences, %d images (%d after a kill, %d points of nested crashes), %d lines decided, %d distinct states, %.1f s, %.0f images/s",
				sequences, e.images, e.kills, e.nested, e.choices, len(e.states), took.Seconds(), float64(e.images)/took.Seconds())
			atLeast(t, "images", e.images, c.images)
			atLeast(t, "distinct states", len(e.states), c.states)
		})
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
