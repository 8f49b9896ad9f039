package check

import (
	"fmt"
	"slices"

	"github.com/bttnbd/bttnbd/layout"
)

// sectors are the external block sizes that Linux knows, some with room for
// integrity metadata.
var sectors = []uint32{512, 520, 528, 4096, 4104, 4160, 4224}

// arenas follows nextoff from the first arena and reports what is wrong with the
// info block of each. It ends at the last one, or at one that cannot be read:
// behind that, no LBA is known.
func (x *reader) arenas(c *collector, f layout.Flavour) (arenas []Arena) {
	start := f.Start
	var lba layout.ExternalLBA
	var lanes uint64
	for i := 0; ; i++ {
		c.begin(i, start)
		if i == maxArenas {
			c.add(Finding{Kind: ArenaChain, Severity: Error, Offset: start, Message: fmt.Sprintf("more than %d arenas: the chain is not followed further", maxArenas)})
			return arenas
		}
		if start > x.size-min(x.size, layout.InfoSize) {
			c.add(Finding{
				Kind: ArenaTruncated, Severity: Error, Offset: start,
				Message: fmt.Sprintf("the file ends at offset %d, but an arena begins at %d; the blocks from lba %d on are lost, unless a whole copy of the file can be found", x.size, start, lba),
			})
			return arenas
		}
		a := x.arena(f, start)
		a.Index, a.FirstLBA = i, lba
		if !a.sound() {
			x.reportLost(c, &a, f.Pool)
			return arenas
		}
		if lanes += uint64(a.Info.Nfree); lanes > maxLanes {
			c.add(Finding{Kind: ArenaChain, Severity: Error, Offset: start, Message: fmt.Sprintf("more than %d lanes in all arenas up to here: the chain is not followed further", maxLanes)})
			return arenas
		}
		arenas = append(arenas, a)
		x.judge(c, f, &arenas[0], &arenas[i])
		if a.Info.NextOff == 0 {
			return arenas
		}
		start = addSaturated(start, a.Info.NextOff)
		lba += layout.ExternalLBA(a.Info.ExternalNLBA)
	}
}

// reportLost: neither info block can be believed.
func (x *reader) reportLost(c *collector, a *Arena, pool bool) {
	x.lost = a
	a.reportCopies(c, pool)
	c.add(Finding{
		Kind: ArenaLost, Severity: Error, Offset: a.Offset,
		Message: fmt.Sprintf("neither info block of the arena at offset %d is sound; the blocks from lba %d on cannot be reached", a.Offset, a.FirstLBA),
		Repair:  "bttcheck --dry-run tells whether it can be computed anew",
	})
}

// judge reports what is wrong with an arena one of whose info blocks is sound.
func (x *reader) judge(c *collector, f layout.Flavour, first, a *Arena) {
	in := &a.Info
	a.reportCopies(c, f.Pool)
	if in.Flags&layout.FlagError != 0 {
		c.add(Finding{
			Kind: ArenaError, Severity: Error, Offset: a.Offset,
			Message: "the arena's error flag is set: an earlier user found damage or could not write; its blocks can be read but not written",
			Repair:  "clear the flag in both info blocks, once nothing else is wrong",
		})
	}
	if in.Flags&^layout.FlagError != 0 {
		c.add(Finding{Kind: InfoFlags, Severity: Warning, Offset: a.Offset, Message: fmt.Sprintf("flags are %#x: only bit 0 has a meaning", in.Flags)})
	}
	if end := a.end(); end > x.size {
		a.Missing = end - x.size
		c.add(Finding{
			Kind: ArenaTruncated, Severity: Error, Offset: a.Offset,
			Message: fmt.Sprintf("the file ends %d bytes before the arena does: flog and map cannot be checked; look for a whole copy of the file", a.Missing),
		})
	} else {
		a.Padding = x.padding(a)
	}
	a.judgeGeometry(c, f)
	x.judgeChain(c, first, a)
	x.judgeParent(c, a, f)
	if a != first {
		a.judgeKinship(c, first)
	} else if !f.Pool {
		a.judgeLimits(c)
	}
}

// judgeGeometry finds the alignments of internal blocks that explain the offsets.
func (a *Arena) judgeGeometry(c *collector, f layout.Flavour) {
	if a.Aligns = explain(&a.Info, f); len(a.Aligns) > 0 {
		return
	}
	c.add(Finding{
		Kind: ArenaGeometry, Severity: Warning, Offset: a.Offset,
		Message: "the areas are in order, but not where Linux, UEFI or PMDK would put them",
	})
}

// explain are the alignments of internal blocks with which somebody's formulas give
// the geometry in; none: nobody's do.
func explain(in *layout.Info, f layout.Flavour) (aligns []uint32) {
	for _, align := range []uint32{64, 256} {
		p := layout.Params{ExternalLBASize: in.ExternalLBASize, Nfree: in.Nfree, Align: align}
		for _, p.MinBlock = range []uint32{0, f.MinBlock} {
			if g, err := layout.NewGeometry(in.InfoOff+layout.InfoSize, p); err == nil && g == in.Geometry() {
				aligns = append(aligns, align)
				break
			}
		}
	}
	return aligns
}

// judgeChain compares the arena's place and size with the grid of arenas.
//
// An image that has grown has arenas of any size, each right behind the one before.
func (x *reader) judgeChain(c *collector, first, a *Arena) {
	in := &a.Info
	if in.NextOff == 0 {
		if end := a.end(); end < x.size && x.size-end >= layout.MinArenaSize {
			c.add(Finding{Kind: SpaceUnused, Severity: Info, Offset: end, Message: fmt.Sprintf("%d bytes behind the last arena are not used: the file has grown, and bttnbd grow makes an arena of them, or something else is kept there", x.size-end)})
		}
		return
	}
	grown := !x.flavour.Pool && a.packed()
	if in.NextOff != x.maxArena && !grown {
		c.add(Finding{Kind: ArenaChain, Severity: Warning, Offset: a.Offset, Message: fmt.Sprintf("nextoff is %d, but arenas stand every %d bytes; Linux follows it all the same", in.NextOff, x.maxArena)})
	}
	if in.ExternalNLBA != first.Info.ExternalNLBA && (!grown || in.NextOff == first.Info.NextOff) {
		c.add(Finding{Kind: ArenaMismatch, Severity: Warning, Offset: a.Offset, Message: fmt.Sprintf("external_nlba is %d, but %d in arena 0; arenas of one size should not differ", in.ExternalNLBA, first.Info.ExternalNLBA)})
	}
}

// judgeKinship: all arenas of a BTT have the same identity and block size.
func (a *Arena) judgeKinship(c *collector, first *Arena) {
	differs := func(field string, got, want any) {
		c.add(Finding{
			Kind: ArenaMismatch, Severity: Error, Offset: a.Offset,
			Message: fmt.Sprintf("%s is %v, but %v in arena 0: this arena is part of another BTT", field, got, want),
		})
	}
	in, of := &a.Info, &first.Info
	if in.UUID != of.UUID {
		differs("uuid", in.UUID, of.UUID)
	}
	if in.ParentUUID != of.ParentUUID {
		differs("parent_uuid", in.ParentUUID, of.ParentUUID)
	}
	if in.ExternalLBASize != of.ExternalLBASize {
		differs("external_lbasize", in.ExternalLBASize, of.ExternalLBASize)
	}
}

// judgeLimits says what Linux would not do with a BTT that is sound.
func (a *Arena) judgeLimits(c *collector) {
	if n := a.Info.Nfree; n < layout.DefaultNfree {
		c.add(Finding{Kind: ArenaLimits, Severity: Info, Offset: a.Offset, Message: fmt.Sprintf("nfree is %d: Linux attaches no BTT with fewer than %d", n, layout.DefaultNfree)})
	}
	if n := a.Info.ExternalLBASize; !slices.Contains(sectors, n) {
		c.add(Finding{Kind: ArenaLimits, Severity: Info, Offset: a.Offset, Message: fmt.Sprintf("external_lbasize is %d: Linux would show a disk of the wrong size and hang", n)})
	}
}
