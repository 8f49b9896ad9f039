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

// Goal: users' data that looks like the backup of the arena before, or makes the backup
// look like another arena's primary, is not taken for what it is not: whether a byte of
// the primary is bad or all of it, the arenas are those that there are, and a repair
// brings back every byte. With a rest behind the last arena, by which the backups cannot
// be followed, a primary of which something is left says itself where its backup is.
func TestGrownForgedBackup(t *testing.T) {
	sizes := []uint64{24576, 57344, 20480}
	o := Options{MaxArena: 65536}
	for name, damage := range map[string]func(r *pmem.Region){
		"a byte":       func(r *pmem.Region) { r.Store64(600, 1) },
		"signature":    func(r *pmem.Region) { r.Store64(0, 0) },
		"whole, zeros": func(r *pmem.Region) { r.Zero(0, layout.InfoSize) },
	} {
		for _, tail := range []uint64{0, 8192} {
			if tail > 0 && name == "whole, zeros" {
				continue // nothing says then where the backup is
			}
			r, starts := grown(t, layout.UEFI, sizes, tail)
			var backup, forged [layout.InfoSize]byte
			r.Read(backup[:], 0)
			geo, err := layout.NewGeometry(o.MaxArena, layout.Params{ExternalLBASize: 128, Nfree: 3, Align: 64})
			if err != nil {
				t.Fatal(err)
			}
			in := geo.Info(layout.UEFI, testUUID, testParent, 0)
			in.Encode(forged[:])
			r.Write(o.MaxArena-layout.InfoSize, forged[:])
			if tail == 0 {
				r.Write(2*(sizes[0]-layout.InfoSize), backup[:]) // as if an arena began at the backup
			}
			before := contentsOf(r)
			damage(r)
			im, err := Inspect(r, o)
			if err != nil || len(im.Arenas) != len(sizes) || im.Arenas[1].Offset != starts[1] {
				t.Errorf("%s bad, %d behind: %v, %+v", name, tail, err, im)
				continue
			}
			if rep, err := Repair(t.Context(), r, RepairOptions{Options: o}); err != nil || !bytes.Equal(contentsOf(r), before) {
				t.Errorf("%s bad, %d behind: repaired to something else: %v, %v", name, tail, err, rep)
			}
		}
	}
}

// Goal: lanes are counted over all arenas, and no more looked at than can be.
func TestGrownLanes(t *testing.T) {
	const arena = 72 << 20
	geo, err := layout.NewGeometry(arena, layout.Params{ExternalLBASize: 64, Nfree: maxLanes / 2, Align: 64})
	if err != nil {
		t.Fatal(err)
	}
	r := pmem.NewHeap(3 * arena)
	for i := range uint64(3) {
		in := geo.Info(layout.UEFI, testUUID, testParent, (2-i+1)/2*arena)
		var raw [layout.InfoSize]byte
		in.Encode(raw[:])
		r.Write(i*arena, raw[:])
	}
	im, err := Inspect(r, Options{MaxArena: arena})
	if err != nil || len(im.Arenas) != 2 || !slices.ContainsFunc(im.Findings, func(f Finding) bool { return f.Kind == ArenaChain && f.Severity == Error }) {
		t.Errorf("%v, %d arenas: %v", err, len(im.Arenas), im.Findings)
	}
}

func contentsOf(r *pmem.Region) []byte {
	b := make([]byte, r.Size())
	r.Read(b, 0)
	return b
}
