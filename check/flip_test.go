package check

import (
	"fmt"
	"slices"
	"testing"

	"github.com/bttnbd/bttnbd/layout"
)

func TestFlippedInfoBits(t *testing.T) {
	// Goal: every flipped bit of every info block is found, in both flavours.
	// Method: flip them all, one at a time. The checksum covers reserved bytes too.
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		im := used(t, params{flavour: f, arenas: 2})
		for arena := range im.starts {
			for _, off := range []uint64{im.primary(arena), im.backup(arena)} {
				for word := uint64(0); word < layout.InfoSize; word += 4 {
					old := im.region.Load32(off + word)
					for bit := range 32 {
						if bit%4 != int(word/4)%4 && word >= 128 && word < 4088 {
							continue // of reserved words every fourth bit, to save time
						}
						im.region.Store32(off+word, old^1<<bit)
						if rep := im.run(); rep.Clean() {
							t.Fatalf("%s, arena %d, info block at %d: bit %d of the word at %d flipped unnoticed", f.Name, arena, off, bit, word)
						}
					}
					im.region.Store32(off+word, old)
				}
			}
		}
	}
}

// harmless says why a flipped bit that was not found does no damage, or none that
// anybody could know of from the metadata.
type harmless string

const (
	// The flipped bits are not part of any state: of the older record of a lane, of
	// the lba or the new block of a write that is complete, flags in a record, the
	// low bits of an entry that was never written, and what lies behind the last
	// lane and the last entry.
	noMeaning harmless = "the BTT means the same as before"
	// Normal and zero entries differ in one flag, and an initial entry may become a
	// zero one that owns the same block. Both are legitimate.
	otherState harmless = "one lba has another state, and the same block as before"
	// The record of an interrupted write looks older than the one before it. That is
	// how things stood before the write, of which nobody was told that it was done.
	notBegun harmless = "an interrupted write counts as not begun"
	found    harmless = ""
)

func TestFlippedMetadataBits(t *testing.T) {
	// Goal: every flipped bit of flog and map is found, or harmless for a reason that
	// is proved here. Method: flip them all, one at a time, in a fresh image, a used
	// one, one with interrupted writes, in both paddings; work out what the BTT means
	// by other code than the check's, before and after.
	seen := map[harmless]int{}
	for _, p := range []params{{}, {padding: layout.PaddingOld}, {sector: 4096, arena: 65536}} {
		interrupted := used(t, p)
		interrupted.interrupt(0, 0, 5)
		interrupted.interrupt(0, 2, 3)
		for name, im := range map[string]*image{"fresh": build(t, p), "used": used(t, p), "interrupted": interrupted} {
			t.Run(fmt.Sprintf("%s, padding %v, sector %d", name, im.padding, im.sector), func(t *testing.T) {
				for why, n := range flipAll(t, im) {
					seen[why] += n
				}
			})
		}
	}
	for _, why := range []harmless{found, noMeaning, otherState, notBegun} {
		if seen[why] == 0 {
			t.Errorf("no bit was of the class %q", why)
		}
	}
}

// flipAll flips the bits of map and flog, and of 64 bytes behind each, which
// nobody reads. It returns how many were of which class.
func flipAll(t *testing.T, im *image) map[harmless]int {
	t.Helper()
	entries, free, bad := meaning(im, 0)
	if bad != "" {
		t.Fatalf("the image to begin with: %s", bad)
	}
	before := kinds(im.run())
	count := map[harmless]int{}
	for off := im.entryAt(0, 0); off < im.groupAt(0, layout.Lane(im.nfree+1)); off += 4 {
		if off == im.entryAt(0, layout.PremapLBA(im.geo.ExternalNLBA+16)) {
			off = im.groupAt(0, 0)
		}
		old := im.region.Load32(off)
		for bit := range 32 {
			im.region.Store32(off, old^1<<bit)
			rep := im.run()
			why := found
			if rep.Clean() && slices.Equal(kinds(rep), before) {
				if why = innocent(im, entries, free); why == found {
					t.Errorf("bit %d of the word at %d (map at %d, flog at %d): not found", bit, off, im.entryAt(0, 0), im.groupAt(0, 0))
				}
			}
			count[why]++
		}
		im.region.Store32(off, old)
	}
	t.Logf("of each class: %v", count)
	return count
}

func innocent(im *image, entries []layout.MapEntry, free []layout.PostmapLBA) harmless {
	now, nowFree, bad := meaning(im, 0)
	lbas, lanes := differing(now, entries), differing(nowFree, free)
	switch {
	case bad != "":
	case len(lbas) == 0 && len(lanes) == 0:
		return noMeaning
	case len(lbas) == 1 && len(lanes) == 0:
		if e := now[lbas[0]]; e.Block() == entries[lbas[0]].Block() && e.State() != layout.Error {
			return otherState
		}
	case len(lbas) == 1 && len(lanes) == 1:
		if now[lbas[0]].Block() == free[lanes[0]] && nowFree[lanes[0]] == entries[lbas[0]].Block() {
			return notBegun
		}
	}
	return found
}

// differing are the indices at which a and b, of equal length, differ.
func differing[T comparable](a, b []T) (at []int) {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			at = append(at, i)
		}
	}
	return at
}
