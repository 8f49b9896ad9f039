package btt

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// FormatParams say what [Format] lays out.
type FormatParams struct {
	Flavour    layout.Flavour
	SectorSize uint32    // external_lbasize in bytes, integrity metadata included
	Nfree      uint32    // lanes; 0: 256
	UUID       uuid.UUID // of the new BTT
	ParentUUID uuid.UUID // of the namespace, zero: none; of the pool set, zero: UUID
	Created    time.Time // of a pool; zero: now
	// Zeroed says that the whole region is known to read as zeros. If it is not,
	// Format makes sure that the new device does.
	Zeroed bool
	// MinArena and MaxArena are the limits of an arena's size in bytes.
	// 0: 16 MiB and 512 GiB, as the format says.
	MinArena, MaxArena uint64
	// Progress, if set, is told now and then how many bytes of those that must be
	// zeroed are zeros, durably. An error of it ends Format, which returns it: then
	// there is neither the old BTT nor a new one.
	Progress func(done, total uint64) error

	done, total uint64 // bytes zeroed, and to be zeroed
	failed      error  // of Progress, or of a drain on the way
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
	p.total = p.toZero(plan)
	if !p.Zeroed {
		p.zero(r, 0, p.Flavour.Start) // what no BTT uses must not look like another format
	}
	if p.Flavour.Pool {
		writePoolDescriptor(r, &p)
	}
	for _, a := range plan {
		layOut(r, a, &p)
	}
	if err := r.Drain(); err != nil {
		return err
	}
	if p.failed != nil {
		return p.failed
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
	if p.Flavour.Pool {
		return writePoolHeader(r, &p)
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
	if p.Flavour.Pool && p.ParentUUID == uuid.Nil {
		p.ParentUUID = p.UUID
	}
	if p.Created.IsZero() {
		p.Created = time.Now()
	}
	start := p.Flavour.Start
	if r.Size() < start+p.MinArena {
		return nil, fmt.Errorf("%d bytes are too small for a BTT of format %s: at least %d are needed", r.Size(), p.Flavour.Name, start+p.MinArena)
	}
	sizes := layout.Split(r.Size()-start, p.MinArena, p.MaxArena)
	plan := make([]plannedArena, len(sizes))
	for i, size := range sizes {
		geo, err := p.Flavour.Geometry(size, p.SectorSize, p.Nfree)
		if err == nil && p.Flavour.Pool && geo.InternalNLBA/2 < p.Nfree {
			err = fmt.Errorf("%d blocks of %d bytes: PMDK wants at least twice as many as there are lanes, %d", geo.InternalNLBA, geo.InternalLBASize, p.Nfree)
		}
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

// wipeSignatures destroys that of a pool, and that of every info block in a place where
// [Open] or Linux could find one: where flavours begin, along the chain of arenas
// of what was there, and where the new info blocks will be. Backups are found
// through their primaries, so each primary goes before its backup only in the
// sense of program order; one drain covers them, because a survivor among them
// still belongs to the old BTT, whose map and flog are untouched as yet.
func wipeSignatures(r *pmem.Region, p *FormatParams, plan []plannedArena) {
	var places []uint64
	flavours := []layout.Flavour{layout.Kernel, layout.UEFI}
	if isPool(r) {
		r.Store64(0, 0)
		r.Flush(0, 8)
		flavours = layout.Flavours()
	}
	for _, f := range flavours {
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

func isPool(r *pmem.Region) bool {
	var sig [8]byte
	r.Read(sig[:min(uint64(len(sig)), r.Size())], 0)
	return layout.HasPoolSignature(sig[:])
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
		switch {
		case p.Flavour.InitialZero:
			p.zero(r, a.base+a.geo.MapOff, a.geo.FlogOff-a.geo.MapOff)
		case p.Flavour.ZeroEntriesSafe(p.SectorSize):
			writeZeroMap(r, a, p)
		default:
			p.zero(r, a.base+a.geo.DataOff, uint64(a.geo.InternalNLBA)*uint64(a.geo.InternalLBASize))
			p.zero(r, a.base+a.geo.MapOff, a.geo.FlogOff-a.geo.MapOff)
		}
	}
	var group [layout.FlogGroupSize]byte
	for lane := range a.geo.Nfree {
		free := layout.PostmapLBA(a.geo.ExternalNLBA) + layout.PostmapLBA(lane)
		p.Flavour.LoneFlogGroup(layout.PremapLBA(lane%a.geo.ExternalNLBA), free).Encode(group[:])
		r.Write(a.base+a.geo.FlogOff+uint64(lane)*layout.FlogGroupSize, group[:])
	}
}

// writeZeroMap makes every block read as zeros without touching any data.
func writeZeroMap(r *pmem.Region, a plannedArena, p *FormatParams) {
	var chunk [4096]byte
	lba := uint32(0)
	for off := a.geo.MapOff; off < a.geo.FlogOff && p.failed == nil; off += uint64(len(chunk)) {
		clear(chunk[:])
		for i := 0; i < len(chunk) && lba < a.geo.ExternalNLBA; i += entrySize {
			binary.LittleEndian.PutUint32(chunk[i:], uint32(layout.ZeroEntry(layout.PostmapLBA(lba))))
			lba++
		}
		r.Write(a.base+off, chunk[:min(uint64(len(chunk)), a.geo.FlogOff-off)])
		p.report(r, min(uint64(len(chunk)), a.geo.FlogOff-off))
	}
}

// zeroPiece is how many bytes are zeroed between two reports. Each piece is drained,
// so that the rate is that of the medium and not that of the page cache.
const zeroPiece = 64 << 20

// toZero is how many bytes a Format that is not told Zeroed makes zeros.
func (p *FormatParams) toZero(plan []plannedArena) (n uint64) {
	if p.Zeroed {
		return 0
	}
	n = p.Flavour.Start
	for _, a := range plan {
		n += a.geo.FlogOff - a.geo.MapOff
		if !p.Flavour.InitialZero && !p.Flavour.ZeroEntriesSafe(p.SectorSize) {
			n += uint64(a.geo.InternalNLBA) * uint64(a.geo.InternalLBASize)
		}
	}
	return n
}

// zero is [pmem.Region.Zero] in pieces, as far as Progress lets it.
func (p *FormatParams) zero(r *pmem.Region, off, n uint64) {
	for n > 0 && p.failed == nil {
		piece := min(n, zeroPiece)
		r.Zero(off, piece)
		off, n = off+piece, n-piece
		p.report(r, piece)
	}
}

// report counts n zeroed bytes, and at the end of each piece makes them durable and says so.
func (p *FormatParams) report(r *pmem.Region, n uint64) {
	before := p.done
	if p.done += n; p.Progress == nil || p.done/zeroPiece == before/zeroPiece && p.done < p.total {
		return
	}
	if p.failed = r.Drain(); p.failed == nil {
		p.failed = p.Progress(p.done, p.total)
	}
}
