package btt

import (
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// FormatParams say what [Format] lays out.
type FormatParams struct {
	Flavour    layout.Flavour
	SectorSize uint32    // external block size in bytes
	Nfree      uint32    // lanes; 0: 256
	UUID       uuid.UUID // of the new BTT
	ParentUUID uuid.UUID // of the namespace; zero: none
	// Zeroed says that the whole region is known to read as zeros. If it is not,
	// Format makes sure that the new device does.
	Zeroed bool
	// MinArena and MaxArena are the limits of an arena's size in bytes.
	// 0: 16 MiB and 512 GiB, as the format says.
	MinArena, MaxArena uint64
}

// ZeroEntriesSafe reports whether zero entries may be made on an image of this
// block size. Linux shows blocks of 512 to 4095 bytes as sectors of 512, and on
// those its btt_read_pg ends a whole request at the first zero entry as if the
// rest had been read (seen on 6.1). Such images get real zeros instead.
func ZeroEntriesSafe(externalLBASize uint32) bool {
	return externalLBASize < 512 || externalLBASize >= 4096
}

// Format lays a new BTT out over the whole region. Whatever was there is lost;
// that this may be is the caller's decision. All blocks then read as zeros.
//
// A power cut at any moment leaves the old BTT, or none, or the new one: first
// every old signature is destroyed, then map and flog are made, then the info
// blocks, from the last arena to the first and the backup before the primary
// (UEFI 6.3.4). It is durable on return.
func Format(r *pmem.Region, p FormatParams) (err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	plan, err := planFormat(r, &p)
	if err != nil {
		return err
	}
	wipeSignatures(r, &p, plan)
	if err := r.Drain(); err != nil {
		return err
	}
	for _, a := range plan {
		layOut(r, a, &p)
	}
	if err := r.Drain(); err != nil {
		return err
	}
	for i := len(plan) - 1; i >= 0; i-- {
		var raw [layout.InfoSize]byte
		plan[i].info.Encode(raw[:])
		for _, off := range [...]uint64{plan[i].base + plan[i].geo.InfoOff, plan[i].base} {
			r.Write(off, raw[:])
			if err := r.Drain(); err != nil {
				return err
			}
		}
	}
	return nil
}

// plannedArena is an arena that is going to be laid out.
type plannedArena struct {
	base uint64
	geo  layout.Geometry
	info layout.Info
}

// planFormat settles the geometry of all arenas, and touches nothing.
func planFormat(r *pmem.Region, p *FormatParams) ([]plannedArena, error) {
	if p.Nfree == 0 {
		p.Nfree = layout.DefaultNfree
	}
	if p.MinArena == 0 {
		p.MinArena = layout.MinArenaSize
	}
	if p.MaxArena == 0 {
		p.MaxArena = layout.MaxArenaSize
	}
	start := p.Flavour.Start
	if r.Size() < start+p.MinArena {
		return nil, fmt.Errorf("%d bytes are too small for a BTT of format %s: at least %d are needed", r.Size(), p.Flavour.Name, start+p.MinArena)
	}
	sizes := layout.Split(r.Size()-start, p.MinArena, p.MaxArena)
	plan := make([]plannedArena, len(sizes))
	for i, size := range sizes {
		geo, err := layout.NewGeometry(size, layout.Params{ExternalLBASize: p.SectorSize, Nfree: p.Nfree, Align: p.Flavour.Align})
		if err != nil {
			return nil, fmt.Errorf("arena %d: %w", i, err)
		}
		next := uint64(0)
		if i+1 < len(sizes) {
			next = size
		}
		plan[i] = plannedArena{start + uint64(i)*p.MaxArena, geo, geo.Info(p.Flavour, p.UUID, p.ParentUUID, next)}
	}
	return plan, nil
}

// wipeSignatures destroys the signature of every info block in a place where
// [Open] or Linux could find one: where flavours begin, along the chain of arenas
// of what was there, and where the new info blocks will be. Backups are found
// through their primaries, so each primary goes before its backup only in the
// sense of program order; one drain covers them, because a survivor among them
// still belongs to the old BTT, whose map and flog are untouched as yet.
func wipeSignatures(r *pmem.Region, p *FormatParams, plan []plannedArena) {
	var places []uint64
	for _, f := range layout.Flavours() {
		places = append(places, oldInfoPlaces(r, f.Start, p.MaxArena)...)
	}
	for _, a := range plan {
		places = append(places, a.base, a.base+a.geo.InfoOff)
	}
	var sig [16]byte
	for _, off := range places {
		if r.Read(sig[:], off); layout.HasSignature(sig[:]) {
			r.Store64(off, 0)
			r.Flush(off, 8)
		}
	}
}

// oldInfoPlaces are the offsets of the info blocks of a BTT that may begin at
// base, primaries and backups.
func oldInfoPlaces(r *pmem.Region, base, maxArena uint64) (places []uint64) {
	var raw [layout.InfoSize]byte
	for holdsInfo(r, base) {
		places = append(places, base)
		places = append(places, backupPlaces(r, base, maxArena)...)
		in, err := readInfo(r, base, &raw)
		if err == nil && in.InfoOff < r.Size() && holdsInfo(r, base+in.InfoOff) {
			places = append(places, base+in.InfoOff)
		}
		if err != nil || in.NextOff == 0 || in.NextOff >= r.Size() {
			break
		}
		base += in.NextOff
	}
	return places
}

// layOut writes everything of an arena but its info blocks. On a region known to
// be zero only the flog needs storing, and a sparse file stays sparse.
func layOut(r *pmem.Region, a plannedArena, p *FormatParams) {
	if !p.Zeroed {
		r.Zero(0, p.Flavour.Start) // what no BTT uses must not look like another format
		switch {
		case ZeroEntriesSafe(p.SectorSize):
			writeZeroMap(r, a)
		default:
			r.Zero(a.base+a.geo.DataOff, uint64(a.geo.InternalNLBA)*uint64(a.geo.InternalLBASize))
			r.Zero(a.base+a.geo.MapOff, a.geo.FlogOff-a.geo.MapOff)
		}
	}
	var group [layout.FlogGroupSize]byte
	for lane := range a.geo.Nfree {
		layout.InitialFlogGroup(layout.Lane(lane), a.geo.ExternalNLBA).Encode(group[:])
		r.Write(a.base+a.geo.FlogOff+uint64(lane)*layout.FlogGroupSize, group[:])
	}
}

// writeZeroMap makes every block read as zeros without touching any data.
func writeZeroMap(r *pmem.Region, a plannedArena) {
	var chunk [4096]byte
	lba := uint32(0)
	for off := a.geo.MapOff; off < a.geo.FlogOff; off += uint64(len(chunk)) {
		clear(chunk[:])
		for i := 0; i < len(chunk) && lba < a.geo.ExternalNLBA; i += entrySize {
			binary.LittleEndian.PutUint32(chunk[i:], uint32(layout.ZeroEntry(layout.PostmapLBA(lba))))
			lba++
		}
		r.Write(a.base+off, chunk[:min(uint64(len(chunk)), a.geo.FlogOff-off)])
	}
}
