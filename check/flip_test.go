package check

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
)

// leftOut tells which bits to leave out where time is short: seven of eight.
func leftOut(off uint64, bit int) bool { return testing.Short() && bit%8 != int(off/4)%8 }

func TestFlippedInfoBits(t *testing.T) {
	// Goal: every flipped bit of every info block is found, in both flavours, and put back
	// by a repair. Method: flip them all, one at a time. The checksum covers reserved
	// bytes too.
	found, repaired := 0, 0
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		im := used(t, params{flavour: f, arenas: 2})
		good := im.bytes()
		for arena := range im.starts {
			for _, off := range []uint64{im.primary(arena), im.backup(arena)} {
				for word := uint64(0); word < layout.InfoSize; word += 4 {
					old := im.region.Load32(off + word)
					reserved := word >= 128 && word < 4088
					for bit := range 32 {
						if bit%4 != int(word/4)%4 && reserved {
							continue // of reserved words every fourth bit, to save time
						}
						im.region.Store32(off+word, old^1<<bit)
						if rep := im.run(); rep.Clean() {
							t.Fatalf("%s, arena %d, info block at %d: bit %d of the word at %d flipped unnoticed", f.Name, arena, off, bit, word)
						}
						found++
						if reserved && bit != 5 || leftOut(word, bit) {
							continue
						}
						if im.repair(RepairOptions{}); !slices.Equal(im.bytes(), good) {
							t.Fatalf("%s, arena %d, info block at %d: bit %d of the word at %d flipped: not put back", f.Name, arena, off, bit, word)
						}
						repaired++
					}
					im.region.Store32(off+word, old)
				}
			}
		}
	}
	t.Logf("found all of %d, put back all of %d that were tried", found, repaired)
}

func TestFlippedFieldBits(t *testing.T) {
	// Goal: every flipped bit of every field of an info block whose checksum is right all
	// the same is found, in either copy and in both at once, or says nothing that anybody
	// could know to be wrong; a repair leaves the image clean, or says what it leaves, and
	// writes no data. Method: flip them all, of every arena.
	var tried, found, repaired, left int
	arbitrary := 0 // both copies: the uuid and parent of a BTT of one arena can be any
	for _, p := range []params{{}, two, uefi} {
		im := used(t, p)
		im.mark()
		good, data := im.bytes(), im.dataAreas()
		for arena := range im.starts {
			for _, offs := range [][]uint64{{im.primary(arena)}, {im.backup(arena)}, {im.primary(arena), im.backup(arena)}} {
				for byteOff := uint64(16); byteOff < 120; byteOff++ {
					for bit := range 8 {
						if leftOut(4*byteOff, bit) {
							continue
						}
						for _, off := range offs {
							b := slices.Clone(good[off:][:layout.InfoSize])
							b[byteOff] ^= 1 << bit
							flags := b[48:52]
							layout.PatchFlags(b, uint32(flags[0])|uint32(flags[1])<<8|uint32(flags[2])<<16|uint32(flags[3])<<24)
							im.region.Write(off, b)
						}
						tried++
						rep := im.run()
						switch {
						case !rep.Clean():
							found++
						case len(offs) == 2 && im.arenas == 1 && byteOff < 48:
							arbitrary++
						default:
							t.Fatalf("%s, arena %d, copies at %v: bit %d of byte %d flipped unnoticed", im.flavour.Name, arena, offs, bit, byteOff)
						}
						rep = im.repair(RepairOptions{})
						switch {
						case !slices.Equal(im.dataAreas(), data):
							t.Fatalf("%s, arena %d, copies at %v: bit %d of byte %d flipped: the repair has written data", im.flavour.Name, arena, offs, bit, byteOff)
						case rep.After != nil && rep.After.Clean():
							repaired++
						case len(rep.Plan.Refused) > 0:
							left++
						case !rep.Clean():
							t.Fatalf("%s, arena %d, copies at %v: bit %d of byte %d flipped: not repaired, and nothing said: %+v", im.flavour.Name, arena, offs, bit, byteOff, rep.Findings)
						}
						im.region.Write(0, good)
					}
				}
			}
		}
	}
	t.Logf("tried %d: found %d, not to be known %d; repaired %d, left and said so %d", tried, found, arbitrary, repaired, left)
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
	// by other code than the check's, before and after. What is found is repaired.
	seen := map[harmless]int{}
	pool := params{flavour: layout.PMEMBLK, sector: 512, arena: 49152, pmdkFlog: true}
	for _, p := range []params{{}, {padding: layout.PaddingOld}, {sector: 4096, arena: 65536}, pool} {
		interrupted := used(t, p)
		interrupted.interrupt(0, 0, 5)
		interrupted.interrupt(0, 2, 3)
		for name, im := range map[string]*image{"fresh": build(t, p), "used": used(t, p), "interrupted": interrupted} {
			t.Run(fmt.Sprintf("%s, %s, padding %v, sector %d", name, im.flavour.Name, im.padding, im.sector), func(t *testing.T) {
				if im.flavour.Pool {
					im.putHeader(im.sector)
				}
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
	before, good := kinds(im.run()), im.bytes()
	count, repaired := map[harmless]int{}, 0
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
			} else if !rep.Clean() && !leftOut(off, bit) {
				if rep := im.repair(RepairOptions{}); rep.After == nil || !rep.After.Clean() {
					t.Errorf("bit %d of the word at %d (map at %d, flog at %d): not repaired: %+v", bit, off, im.entryAt(0, 0), im.groupAt(0, 0), rep.Plan)
				}
				repaired++
				im.region.Write(0, good)
			}
			count[why]++
		}
		im.region.Store32(off, old)
	}
	t.Logf("of each class: %v; repaired %d", count, repaired)
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

func TestFlippedPoolBits(t *testing.T) {
	// Goal: every flipped bit of a pool's header is found, or stands where no program
	// looks; and a repair puts back what there was. Only the time of creation cannot be
	// known: then the header is whole again with the time that is there.
	// Method: flip them all, one at a time, with both kinds of checksum.
	const created, checksum, runtime = 120, 4088, 4100
	for _, incompat := range []uint32{0, layout.PoolCksum2K | layout.PoolSDS} {
		im := poolOf(t, 512)
		h := layout.NewPoolHeader(testParent, uuid.UUID{5}, 1<<30, layout.MachineAMD64, 512)
		h.Incompat = incompat
		b := make([]byte, layout.PoolDataOff)
		h.Encode(b, im.region.Size())
		im.region.Write(0, b)
		good := im.bytes()
		found, same := 0, 0
		for off := uint64(0); off < layout.PoolDataOff; off += 4 {
			for bit := range 32 {
				if bit%8 != int(off/4)%8 && off >= 144 && off < checksum || bit%8 != int(off/4)%8 && off >= runtime {
					continue // of reserved words every eighth bit, to save time
				}
				if leftOut(off, bit) {
					continue
				}
				im.region.Store32(off, im.region.Load32(off)^1<<bit)
				clean := im.run().Clean()
				covered := off < 2048 || incompat == 0 && off < checksum || off >= checksum && off < runtime
				if clean == covered {
					t.Fatalf("incompat %#x: bit %d of the word at %d flipped: clean %v", incompat, bit, off, clean)
				}
				if !clean {
					found++
					rep := im.repair(RepairOptions{})
					if rep.After == nil || !rep.After.Clean() {
						t.Fatalf("incompat %#x: bit %d of the word at %d flipped: not repaired: %+v", incompat, bit, off, rep.Plan)
					}
					if slices.Equal(im.bytes(), good) {
						same++
					} else if off != created && off != created+4 {
						t.Fatalf("incompat %#x: bit %d of the word at %d flipped: not put back", incompat, bit, off)
					}
				}
				im.region.Write(0, good)
			}
		}
		t.Logf("incompat %#x: found %d, put back exactly %d", incompat, found, same)
	}
}
