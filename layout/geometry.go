package layout

import (
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// Limits of the format. [Split] uses the first two unless told otherwise; the
// rest of the package does not care, so that tests can have arenas of a few KiB.
const (
	MinArenaSize = 1 << 24 // 16 MiB
	MaxArenaSize = 1 << 39 // 512 GiB
	DefaultNfree = 256     // Linux refuses fewer

	// MaxInternalNLBA is what the 30 bits of a map entry can name.
	MaxInternalNLBA = 1 << 30

	page = 4096 // alignment of the map, the flog and the info blocks
)

// Params are the choices that a geometry follows from.
type Params struct {
	ExternalLBASize uint32 // bytes
	Nfree           uint32 // lanes
	Align           uint32 // internal block size is rounded up to this, in bytes
	MinBlock        uint32 // and is at least this, in bytes; 0: no limit
}

// Geometry is where everything is in one arena, relative to its start.
type Geometry struct {
	Size            uint64 // bytes from the primary info block to the end of the backup
	ExternalLBASize uint32
	ExternalNLBA    uint32
	InternalLBASize uint32
	InternalNLBA    uint32
	Nfree           uint32
	DataOff         uint64
	MapOff          uint64
	FlogOff         uint64
	InfoOff         uint64
}

// Split divides a container of rawSize bytes (counted from where arena 0 begins)
// into arenas: as many of maxArena bytes as fit, then one smaller, rounded down
// to 4096, if at least minArena is left. It returns the size of each.
func Split(rawSize, minArena, maxArena uint64) []uint64 {
	var sizes []uint64
	for rawSize >= minArena && rawSize > 0 {
		size := min(rawSize, maxArena)
		rawSize -= size
		sizes = append(sizes, size/page*page)
	}
	return sizes
}

// NewGeometry lays out one arena of size bytes. Kernel, PMDK and UEFI use the
// same formulas; only Align differs. It fails when not even one block fits.
func NewGeometry(size uint64, p Params) (Geometry, error) {
	if p.ExternalLBASize == 0 || p.Nfree == 0 || p.Align == 0 {
		return Geometry{}, fmt.Errorf("sector size %d, nfree %d, alignment %d: none may be 0", p.ExternalLBASize, p.Nfree, p.Align)
	}
	size = size / page * page
	internal := roundUp(uint64(max(p.ExternalLBASize, p.MinBlock)), uint64(p.Align))
	flogSize := roundUp(uint64(p.Nfree)*FlogGroupSize, page)
	fixed := 2*InfoSize + flogSize + page // the last page: room to round the map up
	if size <= fixed {
		return Geometry{}, fmt.Errorf("arena of %d bytes is too small: info blocks and flog alone take %d", size, fixed)
	}
	nlba := (size - fixed) / (internal + 4)
	if nlba <= uint64(p.Nfree) {
		return Geometry{}, fmt.Errorf("arena of %d bytes is too small: it holds %d blocks of %d bytes, and %d of them are lanes' free blocks", size, nlba, internal, p.Nfree)
	}
	if nlba > MaxInternalNLBA || internal > 1<<31 {
		return Geometry{}, fmt.Errorf("arena of %d bytes with blocks of %d bytes: %d blocks are more than a map entry can name", size, internal, nlba)
	}
	external := nlba - uint64(p.Nfree)
	mapSize := roundUp(external*4, page)
	g := Geometry{
		Size:            size,
		ExternalLBASize: p.ExternalLBASize,
		ExternalNLBA:    uint32(external),
		InternalLBASize: uint32(internal),
		InternalNLBA:    uint32(nlba),
		Nfree:           p.Nfree,
		DataOff:         InfoSize,
		InfoOff:         size - InfoSize,
	}
	g.FlogOff = g.InfoOff - flogSize
	g.MapOff = g.FlogOff - mapSize
	return g, nil
}

// Info is the info block of an arena of this geometry. next is the distance to
// the next arena in bytes, 0 for the last one.
func (g Geometry) Info(f Flavour, id, parent uuid.UUID, next uint64) Info {
	return Info{
		UUID: id, ParentUUID: parent, Major: f.Major, Minor: f.Minor,
		ExternalLBASize: g.ExternalLBASize, ExternalNLBA: g.ExternalNLBA,
		InternalLBASize: g.InternalLBASize, InternalNLBA: g.InternalNLBA,
		Nfree: g.Nfree, InfoSize: InfoSize, NextOff: next,
		DataOff: g.DataOff, MapOff: g.MapOff, FlogOff: g.FlogOff, InfoOff: g.InfoOff,
	}
}

// Geometry reads the geometry out of an info block; see [Info.Validate].
func (in *Info) Geometry() Geometry {
	return Geometry{
		Size:            in.InfoOff + InfoSize,
		ExternalLBASize: in.ExternalLBASize, ExternalNLBA: in.ExternalNLBA,
		InternalLBASize: in.InternalLBASize, InternalNLBA: in.InternalNLBA,
		Nfree: in.Nfree, DataOff: in.DataOff, MapOff: in.MapOff, FlogOff: in.FlogOff, InfoOff: in.InfoOff,
	}
}

// Validate judges the fields of a decoded info block of an arena of which avail
// bytes exist: every area must lie inside, in order, without overlap, and be
// large enough. It does not ask for the very geometry that [NewGeometry] gives,
// since UEFI leaves the internal block size and slack free. The first wrong
// field is returned as a [*FieldError].
func (in *Info) Validate(avail uint64) error {
	checks := []struct {
		ok    bool
		field string
		value uint64
		want  string
	}{
		{in.InfoSize == InfoSize, "infosize", uint64(in.InfoSize), "4096"},
		{in.ExternalLBASize > 0, "external_lbasize", 0, "at least 1"},
		{in.Nfree > 0, "nfree", 0, "at least 1"},
		{in.ExternalNLBA > 0, "external_nlba", 0, "at least 1"},
		{uint64(in.InternalNLBA) == uint64(in.ExternalNLBA)+uint64(in.Nfree), "internal_nlba", uint64(in.InternalNLBA), "external_nlba + nfree"},
		{in.InternalNLBA <= MaxInternalNLBA, "internal_nlba", uint64(in.InternalNLBA), "at most 2^30"},
		{in.InternalLBASize >= in.ExternalLBASize, "internal_lbasize", uint64(in.InternalLBASize), "at least external_lbasize"},
		{in.InternalLBASize%8 == 0, "internal_lbasize", uint64(in.InternalLBASize), "a multiple of 8"},
		{in.InternalLBASize <= 1<<31, "internal_lbasize", uint64(in.InternalLBASize), "at most 2^31"},
		{in.DataOff >= InfoSize && in.DataOff%8 == 0, "dataoff", in.DataOff, "a multiple of 8 behind the info block"},
		{aligned(in.MapOff) && fits(in.DataOff, uint64(in.InternalNLBA)*uint64(in.InternalLBASize), in.MapOff), "mapoff", in.MapOff, "a multiple of 4096 behind the data"},
		{aligned(in.FlogOff) && fits(in.MapOff, uint64(in.ExternalNLBA)*4, in.FlogOff), "flogoff", in.FlogOff, "a multiple of 4096 behind the map"},
		{aligned(in.InfoOff) && fits(in.FlogOff, uint64(in.Nfree)*FlogGroupSize, in.InfoOff), "infooff", in.InfoOff, "a multiple of 4096 behind the flog"},
		{fits(in.InfoOff, InfoSize, avail), "infooff", in.InfoOff, "inside the arena's %d bytes"},
		{in.NextOff == 0 || aligned(in.NextOff) && fits(in.InfoOff, InfoSize, in.NextOff), "nextoff", in.NextOff, "0, or a multiple of 4096 behind the backup info block"},
		{in.NextOff == 0 || fits(in.NextOff, InfoSize, avail), "nextoff", in.NextOff, "inside the container's %d bytes"},
	}
	for _, c := range checks {
		if !c.ok {
			if strings.Contains(c.want, "%d") { // made here only: nearly all that is judged is right
				c.want = fmt.Sprintf(c.want, avail)
			}
			return &FieldError{Field: c.field, Value: c.value, Want: c.want}
		}
	}
	return nil
}

func aligned(off uint64) bool { return off%page == 0 }

// fits reports whether n bytes at off end at or before end, without overflow.
func fits(off, n, end uint64) bool { return off <= end && n <= end-off }

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }
