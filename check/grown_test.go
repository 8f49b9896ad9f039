package check

import (
	"bytes"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// grownSizes are those of the arenas of an image that has grown twice. The second is as
// large as the most that there can be, and the first a page less, so that the primary of
// the second stands where the backup of the first would, were that as large, too.
var grownSizes = []uint64{20480, 24576, 20480}

const grownMax = 24576

// grown is an image with arenas of different sizes, tail bytes behind them, and where
// they begin.
func grown(t *testing.T, f layout.Flavour, sizes []uint64, tail uint64) (r *pmem.Region, starts []uint64) {
	t.Helper()
	size := f.Start + tail
	for _, n := range sizes {
		starts = append(starts, size-tail)
		size += n
	}
	r = pmem.NewHeap(size)
	for i, n := range sizes {
		geo, err := layout.NewGeometry(n, layout.Params{ExternalLBASize: 128, Nfree: 3, Align: f.Align})
		if err != nil {
			t.Fatal(err)
		}
		next := n
		if i == len(sizes)-1 {
			next = 0
		}
		var raw [layout.InfoSize]byte
		info := geo.Info(f, testUUID, testParent, next)
		info.Encode(raw[:])
		r.Write(starts[i], raw[:])
		r.Write(starts[i]+geo.InfoOff, raw[:])
		for lane := range layout.Lane(3) {
			var b [layout.FlogGroupSize]byte
			layout.InitialFlogGroup(lane, geo.ExternalNLBA).Encode(b[:])
			r.Write(starts[i]+geo.FlogOff+uint64(lane)*layout.FlogGroupSize, b[:])
		}
	}
	return r, starts
}

// serious are the kinds of the findings that are more than notes.
func serious(rep *Report) (kinds []string) {
	for _, f := range rep.Findings {
		if f.Severity > Info {
			kinds = append(kinds, f.Kind.String())
		}
	}
	return kinds
}

// Goal: an image that has grown is clean; each info block of it that is lost is restored
// from its copy; and an arena that has lost both is computed anew, the first, one in the
// middle and the last. Every byte is then as it was.
func TestGrown(t *testing.T) {
	o := Options{MaxArena: grownMax}
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		r, starts := grown(t, f, grownSizes, 0)
		before := contentsOf(r)
		rep, err := Run(t.Context(), r, o)
		if err != nil || len(serious(rep)) > 0 || len(rep.Arenas) != len(grownSizes) {
			t.Fatalf("%v, %v", err, rep.Findings)
		}
		for i, start := range starts {
			backup := start + grownSizes[i] - layout.InfoSize
			for name, lost := range map[string][]uint64{"primary": {start}, "backup": {backup}, "both": {start, backup}} {
				for _, off := range lost {
					r.Zero(off, layout.InfoSize)
				}
				rep, err := Repair(t.Context(), r, RepairOptions{Options: o})
				if err != nil || rep.After == nil || rep.After.Damaged() {
					t.Errorf("%s: %s of arena %d lost: %v, %v", f.Name, name, i, err, rep)
				}
				if !bytes.Equal(contentsOf(r), before) {
					t.Errorf("%s: %s of arena %d lost: repaired to something else", f.Name, name, i)
					r.Write(0, before)
				}
			}
		}
	}
}

// Goal: with a rest behind the last arena, from which the backups cannot be followed,
// the primary of an arena is not taken for the backup of the one before.
func TestGrownPrimaryIsNoBackup(t *testing.T) {
	r, starts := grown(t, layout.UEFI, grownSizes, 8192)
	r.Zero(starts[0], layout.InfoSize)
	rep, err := Run(t.Context(), r, Options{MaxArena: grownMax})
	if err == nil && !slices.Contains(serious(rep), "arena-lost") {
		t.Errorf("found %v", rep.Findings)
	}
}

func contentsOf(r *pmem.Region) []byte {
	b := make([]byte, r.Size())
	r.Read(b, 0)
	return b
}
