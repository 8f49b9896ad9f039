package check

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
)

// pool is the header of a pmemblk pool, if there is one.
type pool struct {
	is     bool // it has the signature
	header layout.PoolHeader
	err    error // why the header cannot be believed
	raw    []byte
}

// readPool looks for a pool header at the start of the image.
func (x *reader) readPool() {
	if x.size < layout.PoolDataOff {
		return
	}
	b := make([]byte, layout.PoolDataOff)
	x.region.Read(b, 0)
	for _, off := range []uint64{0, layout.PoolHeaderSize} {
		copy(b[off:], x.overlay[off])
	}
	x.pool.raw = b
	x.pool.header, x.pool.err = layout.DecodePoolHeader(b)
	x.pool.is = layout.HasPoolSignature(b)
}

// usable reports whether the fields of the header can be compared with the BTT's.
func (p *pool) usable() bool { return p.is && p.err == nil }

// judgePool reports what is wrong with the header of a pool whose BTT was found.
func (x *reader) judgePool(c *collector, im *Image) {
	p := &x.pool
	add := func(s Severity, repair, format string, args ...any) {
		c.add(Finding{Kind: PoolHeader, Severity: s, Message: "pool header: " + fmt.Sprintf(format, args...), Repair: repair})
	}
	const together = "put it together again, if its checksum or all else in it proves that right"
	switch {
	case !p.is:
		add(Error, together, "no signature at offset 0, but the BTT of a pool at offset %d; no program takes this for a pool", layout.PoolDataOff)
		return
	case p.err != nil:
		add(Error, together, "%v; PMDK refuses the pool", p.err)
	default:
		if err := p.header.Validate(); err != nil {
			add(Error, "", "%v", err)
		}
		if p.header.ReadOnly() {
			add(Warning, "", "ro_compat features %#x are unknown: the pool may be read, not written", p.header.ROCompat)
		}
	}
	if len(im.Arenas) > 0 && p.header.BlockSize != im.Arenas[0].Info.ExternalLBASize {
		add(Error, "write what the BTT says", "bsize is %d, but external_lbasize of the BTT is %d; PMDK refuses the pool", p.header.BlockSize, im.Arenas[0].Info.ExternalLBASize)
	}
}

// parent is the parent_uuid that the BTT must have, if that is known: a pool says
// it itself, of a namespace only the caller can know.
func (x *reader) parent(f layout.Flavour) (uuid.UUID, bool) {
	switch {
	case f.Pool && x.pool.usable():
		return x.pool.header.Poolset, true
	case !f.Pool && x.wantParent != nil:
		return *x.wantParent, true
	}
	return uuid.UUID{}, false
}

// judgeParent compares the arena's parent_uuid with the one that is known.
func (x *reader) judgeParent(c *collector, a *Arena, f layout.Flavour) {
	want, known := x.parent(f)
	if !known || a.Info.ParentUUID == want {
		return
	}
	finding := Finding{
		Kind: ArenaParent, Severity: Warning, Offset: a.Offset,
		Message: fmt.Sprintf("parent_uuid is %v, not %v as asked for", a.Info.ParentUUID, want),
		Repair:  "write the right one to both info blocks",
	}
	if f.Pool {
		finding.Severity = Error
		finding.Message = fmt.Sprintf("parent_uuid is %s, but the pool set has %s (as PMDK prints them); PMDK takes the pool for empty and would write over it",
			layout.GUIDText(a.Info.ParentUUID), layout.GUIDText(want))
	}
	c.add(finding)
}

// unwritten reports whether the pool has been created but no BTT laid out in it,
// which PMDK does with the first write. A pool whose info blocks were destroyed
// still has a flog: that one is damaged, whatever PMDK's own check says.
func (x *reader) unwritten(f layout.Flavour, a *Arena) bool {
	if !f.Pool || !x.pool.usable() || x.pool.header.Validate() != nil || !isZero(a.Primary.raw) {
		return false
	}
	size := min(x.size-f.Start, x.maxArena) / page * page
	geo, err := f.Geometry(size, x.pool.header.BlockSize, layout.DefaultNfree)
	if err != nil {
		return false
	}
	b := make([]byte, size-geo.FlogOff) // the flog and the backup info block
	x.region.Read(b, f.Start+geo.FlogOff)
	return isZero(b)
}

func isZero(b []byte) bool { return zeros(b) == uint32(len(b)/4) && len(b) > 0 }

// reportUnwritten: PMDK reads zeros from such a pool.
func reportUnwritten(c *collector, f layout.Flavour) {
	c.add(Finding{
		Kind: PoolEmpty, Severity: Info, Offset: f.Start,
		Message: "the pool was created, but no BTT has been laid out in it: it reads as zeros, and the first write by PMDK lays one out",
	})
}
