package btt

import (
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Options of [Open]. The zero value is right outside tests.
type Options struct {
	// MaxArena is the size at which arenas follow each other, in bytes.
	// 0: 512 GiB, as the format says.
	MaxArena uint64
}

// Device is an open BTT. Its methods may be called from any number of goroutines
// at once, except Close, which must be the last.
type Device struct {
	reg       *pmem.Region
	flavour   layout.Flavour
	id        uuid.UUID
	parent    uuid.UUID
	sector    uint32 // bytes of a block as the user sees it
	nlba      uint64
	arenas    []*arena
	recovered uint64
	warnings  []string
	scratch   scratchPool
}

// Open reads the info blocks, completes the writes that a crash has interrupted
// (at most one a lane), and returns the device. It lays nothing out and mends
// nothing else: what is damaged is reported as an error that names the place.
// With a read-only region the completed writes stay private to this process.
//
// Errors: [ErrNoBTT], [ErrNoLayout], [ErrReadOnlyPool], [ErrAmbiguous],
// [*layout.PoolFieldError], [*CorruptError], or a [*pmem.FaultError].
// The region is the device's from now on if Open succeeds, and the caller's if
// it fails.
func Open(r *pmem.Region, o Options) (d *Device, err error) {
	defer func() {
		if err != nil { // a fault finds d half made
			d = nil
		}
	}()
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	if o.MaxArena == 0 {
		o.MaxArena = layout.MaxArenaSize
	}
	d = &Device{reg: r}
	pool, isPool, err := probePool(r)
	if isPool {
		d.flavour = layout.PMEMBLK
		if err == nil {
			err = poolInfo(r, &pool, o.MaxArena)
		}
	} else {
		d.flavour, err = probe(r, o.MaxArena, err)
	}
	if err != nil {
		return nil, err
	}
	if err := d.loadArenas(o.MaxArena); err != nil {
		return nil, err
	}
	if isPool {
		if err := d.checkPool(&pool); err != nil {
			return nil, err
		}
		r.Flush(0, layout.PoolDataOff) // as with what recover reads; it also drains
	}
	for _, a := range d.arenas {
		n, err := a.recover()
		if err != nil {
			return nil, err
		}
		d.recovered += n
	}
	d.scratch.init((int(d.sector) + 7) / 8 * 8)
	return d, nil
}

// candidate is a flavour of which the first arena has a sound info block.
type candidate struct {
	flavour layout.Flavour
	info    layout.Info
	copies  []uint64 // offsets of its sound info blocks
}

// probe finds out which flavour an image that is no pool is. why is what is known
// to be damaged so far: it is reported if nothing sound is found.
//
// Two can look right at once. The user of a uefi image can write what he likes to
// its first data block, which stands where a kernel image has its info block; and
// the first page, which a kernel image does not use, can hold a left-over. So the
// copies count first that the other's user cannot have written, then all copies.
// A lone primary in the first page can be a left-over even so, and decides nothing
// against another lone copy.
func probe(r *pmem.Region, maxArena uint64, why error) (layout.Flavour, error) {
	var found []candidate
	for _, f := range []layout.Flavour{layout.Kernel, layout.UEFI} {
		in, st, err := findInfo(r, f.Start, maxArena, f)
		switch {
		case err == nil:
			found = append(found, newCandidate(r, f, in, st))
		case !errors.Is(err, layout.ErrNoSignature) && holdsInfo(r, f.Start):
			why = errors.Join(why, &CorruptError{Offset: f.Start, What: f.Name + " info block", Err: err})
		}
	}
	switch {
	case len(found) == 0 && why != nil:
		return layout.Flavour{}, why
	case len(found) == 0:
		return layout.Flavour{}, ErrNoBTT
	case len(found) == 1:
		return found[0].flavour, nil
	}
	a, b := &found[0], &found[1]
	mine, theirs := a.outside(r, b), b.outside(r, a)
	if mine == theirs {
		mine, theirs = len(a.copies), len(b.copies)
	}
	switch {
	case len(a.copies) == 1 && len(b.copies) == 1 && b.copies[0] == b.flavour.Start:
	case mine > theirs:
		return a.flavour, nil
	case mine < theirs:
		return b.flavour, nil
	}
	return layout.Flavour{}, fmt.Errorf("%w: one of format %s at offset %d and one of format %s at offset %d",
		ErrAmbiguous, a.flavour.Name, a.flavour.Start, b.flavour.Name, b.flavour.Start)
}

func newCandidate(r *pmem.Region, f layout.Flavour, in layout.Info, st *infoState) candidate {
	backup := f.Start + in.InfoOff
	if st.fromBackup {
		return candidate{f, in, []uint64{backup}}
	}
	c := candidate{f, in, []uint64{f.Start}}
	var raw [layout.InfoSize]byte
	other, err := readInfo(r, backup, &raw)
	if err == nil && other.UUID == in.UUID && other.InfoOff == in.InfoOff {
		c.copies = append(c.copies, backup) // and not somebody else's info block
	}
	return c
}

// outside counts the copies that are not in the data area of an arena of other.
func (c *candidate) outside(r *pmem.Region, other *candidate) (n int) {
	for _, off := range c.copies {
		if !other.isData(r, off) {
			n++
		}
	}
	return n
}

// isData reports whether off is in the data area of an arena of c. An arena whose
// info block is bad counts as one like that before it.
func (c *candidate) isData(r *pmem.Region, off uint64) bool {
	var raw [layout.InfoSize]byte
	base, in := c.flavour.Start, c.info
	for i := 0; i < maxArenas && in.NextOff > 0 && off >= base && off-base >= in.NextOff; i++ {
		base += in.NextOff
		if !holdsInfo(r, base) {
			return false
		}
		if next, err := readInfo(r, base, &raw); err == nil {
			in = next
		}
	}
	return off >= base && off-base >= in.DataOff && off-base < in.MapOff
}

// loadArenas reads the chain of info blocks into d.arenas.
func (d *Device) loadArenas(maxArena uint64) error {
	base := d.flavour.Start
	var first layout.Info
	var lanes uint64
	for i := 0; ; i++ {
		in, st, err := findInfo(d.reg, base, maxArena, d.flavour)
		if err == nil && i == maxArenas {
			err = fmt.Errorf("more than %d arenas", maxArenas)
		}
		if lanes += uint64(in.Nfree); err == nil && lanes > maxLanes {
			err = &layout.FieldError{Field: "nfree", Value: uint64(in.Nfree), Want: fmt.Sprintf("at most %d in all arenas together", maxLanes)}
		}
		if err != nil {
			return &CorruptError{Arena: i, Offset: base, What: "info block", Err: err}
		}
		if i == 0 {
			first = in
			d.id, d.parent = in.UUID, in.ParentUUID
			d.sector = d.flavour.SectorSize(in.ExternalLBASize)
		}
		if err := belongs(&in, &first); err != nil {
			return &CorruptError{Arena: i, Offset: base, What: "info block", Err: err}
		}
		if st.fromBackup {
			d.warnings = append(d.warnings, fmt.Sprintf("arena %d: primary info block at offset %d is bad, using the backup at %d; run bttcheck", i, base, base+in.InfoOff))
		}
		d.arenas = append(d.arenas, d.newArena(i, base, &in, st))
		d.nlba += uint64(in.ExternalNLBA)
		if in.NextOff == 0 {
			return nil
		}
		// A namespace that has grown has arenas of any size, see Grow.
		if in.ExternalNLBA != first.ExternalNLBA && (d.flavour.Pool || in.NextOff == first.NextOff) {
			return &CorruptError{Arena: i, Offset: base, What: "info block", Err: fmt.Errorf("external_nlba %d, but arena 0, which is as large, has %d", in.ExternalNLBA, first.ExternalNLBA)}
		}
		base += in.NextOff
	}
}

// checkPool checks that the BTT is the one of the pool that it lies in.
func (d *Device) checkPool(h *layout.PoolHeader) error {
	first := d.arenas[0]
	in := layout.Info{ParentUUID: d.parent, ExternalLBASize: first.geo.ExternalLBASize}
	if err := belongsToPool(&in, h); err != nil {
		return &CorruptError{Offset: first.base, What: "info block", Err: err}
	}
	d.warnings = append(d.warnings, poolWarnings(h)...)
	return nil
}

// belongs reports why an arena's info block cannot be of the same BTT as the first.
func belongs(in, first *layout.Info) error {
	if in.UUID != first.UUID || in.ParentUUID != first.ParentUUID {
		return fmt.Errorf("uuid %v parent %v, but arena 0 has %v and %v: this arena belongs to another BTT", in.UUID, in.ParentUUID, first.UUID, first.ParentUUID)
	}
	if in.ExternalLBASize != first.ExternalLBASize {
		return fmt.Errorf("external_lbasize %d, but arena 0 has %d", in.ExternalLBASize, first.ExternalLBASize)
	}
	return nil
}

func (d *Device) newArena(index int, base uint64, in *layout.Info, st *infoState) *arena {
	a := &arena{reg: d.reg, flavour: d.flavour, index: index, base: base, geo: in.Geometry(), first: d.nlba}
	a.metadata = uint64(in.ExternalLBASize - d.sector)
	a.info.raw, a.info.fromBackup = st.raw, st.fromBackup
	a.lanes = make([]lane, in.Nfree)
	a.pool.init(in.Nfree)
	a.rtt.init()
	a.inherited.init(a)
	a.pages.init(a)
	if in.Flags&layout.FlagError != 0 {
		a.failures.Or(failedFlag)
		d.warnings = append(d.warnings, fmt.Sprintf("arena %d: its error flag is set, it takes no writes; run bttcheck", index))
	}
	return a
}
