package check

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bttnbd/bttnbd/layout"
)

// candidate is a flavour with what stands in its places.
type candidate struct {
	flavour layout.Flavour
	arena   Arena // the first one
}

// locate finds out which flavour the image is and where arena 0 begins. found is
// false if there was a BTT but no info block of its first arena is sound; then
// that has been reported. The error is ErrNoBTT.
func (x *reader) locate(c *collector) (f layout.Flavour, found bool, err error) {
	var all, sound []candidate
	for _, f := range layout.Flavours() {
		if f.Pool && !x.pool.is {
			continue // a user's data may stand in the place
		}
		k := candidate{f, x.arena(f, f.Start)}
		all = append(all, k)
		if k.arena.sound() {
			sound = append(sound, k)
		}
	}
	if len(sound) == 0 {
		return x.locateDamaged(c, all)
	}
	best := 0
	for i := range sound {
		if i != best && x.outweighs(&sound[i], &sound[best]) {
			best = i
		}
	}
	for i := range sound {
		if i != best {
			x.reportSecond(c, &sound[best], &sound[i])
		}
	}
	if len(sound) == 1 {
		reportLeftover(c, all, sound[0])
	}
	return sound[best].flavour, true, nil
}

// outweighs decides between two candidates of which info blocks are sound. One is
// either left over from an earlier format, or part of the data of the other: the
// user of a 2.0 image can write what he likes to its block 0, which stands at 4096,
// where a 1.1 info block would. So copies count first that the other's user cannot
// have written, then all copies. The probe order decides between equals.
func (x *reader) outweighs(k, other *candidate) bool {
	mine, theirs := x.copies(k, other), x.copies(other, k)
	if mine != theirs {
		return mine > theirs
	}
	return x.copies(k, nil) > x.copies(other, nil)
}

// copies counts the sound info blocks, without those in the data area of other.
func (x *reader) copies(k, other *candidate) (n int) {
	primary, backup := &k.arena.Primary, &k.arena.Backup
	for _, copy := range []*InfoCopy{primary, backup} {
		if copy.Err != nil || other != nil && x.isData(other, copy.Offset) {
			continue
		}
		if copy == backup && primary.Err == nil && (backup.Info.UUID != primary.Info.UUID || backup.Info.InfoOff != primary.Info.InfoOff) {
			continue // somebody else's info block, which a forged one can point at
		}
		n++
	}
	return n
}

// isData reports whether off is in the data area of an arena of k. An arena whose
// primary is bad counts as one like that before it.
func (x *reader) isData(k *candidate, off uint64) bool {
	start, in := k.arena.Offset, k.arena.Info
	for i := 0; i < maxArenas && in.NextOff > 0 && off >= start && off-start >= in.NextOff; i++ {
		start += in.NextOff
		if next := x.copyAt(start, start, k.flavour); next.Err == nil {
			in = next.Info
		}
	}
	return off >= start && off-start >= in.DataOff && off-start < in.MapOff
}

// reportSecond: best and other both have a sound info block.
func (x *reader) reportSecond(c *collector, best, other *candidate) {
	f := Finding{
		Kind: InfoSecond, Severity: Warning, Offset: other.arena.Primary.Offset,
		Message: fmt.Sprintf("besides the BTT of format %s at offset %d there is one of format %s at offset %d, left over or part of the data; other systems may take it for the real one",
			best.flavour.Name, best.flavour.Start, other.flavour.Name, other.flavour.Start),
	}
	if x.copies(best, nil) == 1 && x.copies(other, nil) == 1 {
		f.Severity = Error
		f.Message = fmt.Sprintf("info blocks of format %s at offset %d and of format %s at offset %d, and no second copy of either: which is the real BTT is a guess, the first is checked",
			best.flavour.Name, best.flavour.Start, other.flavour.Name, other.flavour.Start)
	}
	c.add(f)
}

// reportLeftover: a whole info block in the first page, which the flavour found
// does not use. One that stands in the data area is no business of ours.
func reportLeftover(c *collector, all []candidate, best candidate) {
	for _, k := range all {
		var version *versionError
		if k.flavour.Start < best.flavour.Start && errors.As(k.arena.Primary.Err, &version) {
			c.add(Finding{
				Kind: InfoSecond, Severity: Warning, Offset: k.flavour.Start,
				Message: fmt.Sprintf("besides the BTT at offset %d there is an info block of version %d.%d at offset %d, where nothing belongs; it is not used", best.flavour.Start, version.got.Major, version.got.Minor, k.flavour.Start),
				Repair:  "wipe it",
			})
		}
	}
}

// locateDamaged looks for a BTT that nobody would find: one in the place of the
// other version, or one of which no info block is sound.
func (x *reader) locateDamaged(c *collector, all []candidate) (layout.Flavour, bool, error) {
	for _, k := range all {
		for _, f := range layout.Flavours() {
			f.Start = k.flavour.Start
			if f.Pool != k.flavour.Pool {
				continue
			}
			if a := x.arena(f, f.Start); a.sound() {
				c.add(Finding{
					Kind: InfoVersion, Severity: Error, Offset: f.Start,
					Message: fmt.Sprintf("a BTT of version %d.%d begins at offset %d, where only version %d.%d is looked for; no system will find it", f.Major, f.Minor, f.Start, k.flavour.Major, k.flavour.Minor),
				})
				return f, true, nil
			}
		}
	}
	if f, ok := x.headless(); ok {
		return f, true, nil // judgePool says what is missing
	}
	for _, pick := range []func(*Arena) *InfoCopy{
		func(a *Arena) *InfoCopy { return &a.Primary },
		func(a *Arena) *InfoCopy { return &a.Backup },
	} {
		for _, k := range all {
			if layout.HasSignature(pick(&k.arena).raw) {
				c.begin(0, k.arena.Offset)
				x.reportLost(c, &k.arena, k.flavour.Pool)
				return k.flavour, false, nil
			}
		}
	}
	for _, k := range all {
		switch {
		case x.unwritten(k.flavour, &k.arena):
			reportUnwritten(c, k.flavour)
			return k.flavour, false, nil
		case k.flavour.Pool || x.laterArena(k.flavour) != nil:
			c.begin(0, k.arena.Offset)
			x.reportLost(c, &k.arena, k.flavour.Pool)
			return k.flavour, false, nil
		}
	}
	path := x.region.Path()
	if path == "" {
		return layout.Flavour{}, false, ErrNoBTT
	}
	return layout.Flavour{}, false, fmt.Errorf("%s: %w", path, ErrNoBTT)
}

// headless finds the BTT of a pool without a header. It must end where the file
// or a whole arena does: one that a user has written into his own blocks does not.
func (x *reader) headless() (layout.Flavour, bool) {
	for _, f := range layout.Flavours() {
		if !f.Pool || x.pool.is {
			continue
		}
		a := x.arena(f, f.Start)
		end := min(x.size/page*page, f.Start+x.maxArena)
		if a.Primary.Err == nil && a.Backup.Err == nil && a.end() == end {
			return f, true
		}
	}
	return layout.Flavour{}, false
}

// laterArena is the first sound arena behind arena 0 of a BTT of this flavour, at
// the places where arenas stand, or where the backups lead; nil if there is none.
func (x *reader) laterArena(f layout.Flavour) *Arena {
	for _, c := range slices.Backward(x.chain()) {
		if c.start <= f.Start {
			continue
		}
		if a := x.arena(f, c.start); a.sound() {
			return &a
		}
	}
	start := f.Start
	for i := 1; i < maxArenas; i++ {
		start = addSaturated(start, x.maxArena)
		if start >= x.size {
			return nil
		}
		if a := x.arena(f, start); a.sound() {
			return &a
		}
	}
	return nil
}
