package btt

import (
	"strings"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Goal: groups are counted by the blocks in them, with all their drains; and marking
// has drains of its own.
func TestGroupSizes(t *testing.T) {
	params := testParams(layout.UEFI)
	params.Nfree, params.MaxArena = 64, 1<<20 // lanes for the largest group
	r := pmem.NewHeap(params.Flavour.Start + params.MaxArena)
	if err := Format(r, params); err != nil {
		t.Fatal(err)
	}
	d, err := Open(r, Options{MaxArena: params.MaxArena})
	if err != nil {
		t.Fatal(err)
	}
	for _, blocks := range []int{1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32} {
		mustWrite(t, d, 0, fill(1, blocks*testSector))
	}
	mustWrite(t, d, 1, fill(1, 1)) // a part
	if err := d.SetError(0); err != nil {
		t.Fatal(err)
	}
	s := d.Stats()
	if want := [GroupSizes]uint64{2, 1, 2, 2, 2, 3}; s.GroupSizes != want || s.Groups != 12 {
		t.Errorf("sizes %v of %d groups, want %v", s.GroupSizes, s.Groups, want)
	}
	if s.Drains != 3*12+1 {
		t.Errorf("%d drains, want %d", s.Drains, 3*12+1)
	}
}

// Goal: who takes no writes says so, with the arena and what to do, and nobody else does.
func TestFailures(t *testing.T) {
	d, _ := newDevice(t, layout.UEFI, 2)
	if f := d.Failures(); len(f) != 0 {
		t.Errorf("a new device: %q", f)
	}
	if err := d.SetArenaError(1, true); err != nil {
		t.Fatal(err)
	}
	if f := d.Failures(); len(f) != 1 || !strings.HasPrefix(f[0], "arena 1 takes no writes: its error flag is set") {
		t.Errorf("an arena in error: %q", f)
	}
	d.arenas[0].failures.Or(failedHalfway | failedMemory)
	if f := d.Failures(); len(f) != 3 || !strings.Contains(f[0], "half way") || !strings.Contains(f[1], "arena 0") || !strings.Contains(f[2], "arena 1") {
		t.Errorf("everything: %q", f)
	}
}
