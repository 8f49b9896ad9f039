package layout

import "fmt"

// Flavour is a way of putting a BTT into a container: where the first arena
// begins, which version its info blocks carry, and what its makers do besides.
// What is found on media is kept in its own flavour.
type Flavour struct {
	Name         string
	Start        uint64 // offset of arena 0 in the container, in bytes
	Major, Minor uint16
	Align        uint32 // internal block sizes are rounded up to this
	MinBlock     uint32 // smallest internal block in bytes; 0: no limit

	// Pool: the container begins with a pool header, see [PoolHeader], and the
	// parent uuid is that of its pool set. In a namespace it may be any.
	Pool bool
	// FullFlog: flog records hold whole map entries, and whole entries are compared
	// in recovery. Otherwise they hold block numbers, and in old the error flag.
	FullFlog bool
	// InitialZero: an initial entry reads as zeros. Otherwise as what is on media.
	InitialZero bool
}

// The flavours, in the order in which an image is probed for them.
var (
	// PMEMBLK is version 1.1 in a pool of PMDK's libpmemblk.
	PMEMBLK = Flavour{Name: "pmemblk", Start: PoolDataOff, Major: 1, Minor: 1, Align: 256, MinBlock: 512, Pool: true, FullFlog: true, InitialZero: true}
	// Kernel is version 1.1 behind an unused first page: namespaces without a
	// label, which is what Linux and QEMU use by default.
	Kernel = Flavour{Name: "kernel", Start: 4096, Major: 1, Minor: 1, Align: 64}
	// UEFI is version 2.0 at the start of the container: UEFI, Windows, and Linux
	// on labelled namespaces.
	UEFI = Flavour{Name: "uefi", Start: 0, Major: 2, Minor: 0, Align: 64}
)

// Flavours lists all flavours in the order in which an image is probed.
func Flavours() []Flavour { return []Flavour{PMEMBLK, Kernel, UEFI} }

// FlavourByName finds a flavour by the name used on the command line.
func FlavourByName(name string) (Flavour, error) {
	for _, f := range Flavours() {
		if f.Name == name {
			return f, nil
		}
	}
	return Flavour{}, fmt.Errorf("unknown format %q: choose kernel, uefi or pmemblk", name)
}

// Geometry lays out one arena of size bytes as the makers of the flavour do.
func (f Flavour) Geometry(size uint64, sector, nfree uint32) (Geometry, error) {
	return NewGeometry(size, Params{ExternalLBASize: sector, Nfree: nfree, Align: f.Align, MinBlock: f.MinBlock})
}

// SectorSize is the size in bytes of a sector of the disk that blocks of
// externalLBASize make. Linux puts integrity metadata behind the sector in blocks
// of 520, 528, 4104, 4160 and 4224 bytes, and shows the sector alone (nd_btt's
// btt_lbasize_supported). Blocks of any other size are sectors as they are.
func (f Flavour) SectorSize(externalLBASize uint32) uint32 {
	if f.Pool {
		return externalLBASize
	}
	switch externalLBASize {
	case 520, 528:
		return 512
	case 4104, 4160, 4224:
		return 4096
	}
	return externalLBASize
}

// ZeroEntriesSafe reports whether zero entries may be made. Linux shows blocks of
// 512 to 4095 bytes as sectors of 512, and on those its btt_read_pg ends a whole
// request at the first zero entry as if the rest had been read (seen on 6.1).
// Such images get real zeros instead. Linux never looks into a pool.
func (f Flavour) ZeroEntriesSafe(externalLBASize uint32) bool {
	return f.Pool || externalLBASize < 512 || externalLBASize >= 4096
}

// LoggedOld is how the flavour notes in the flog the entry that a write to lba
// replaces. A namespace notes the block alone, and that it was known to be bad
// (Linux btt_write_pg). A pool notes the whole entry, with an initial one made
// normal, because PMDK compares it with the map (libpmemblk map_lock, flog_update).
func (f Flavour) LoggedOld(old MapEntry, lba PremapLBA) MapEntry {
	switch {
	case f.FullFlog && old.State() == Initial:
		return NormalEntry(PostmapLBA(lba))
	case f.FullFlog:
		return old
	case old.State() == Error:
		return ErrorEntry(old.Block())
	}
	return MapEntry(old.Owned(lba))
}

// LoggedNew is how the flavour notes in the flog the block that a write has filled.
func (f Flavour) LoggedNew(block PostmapLBA) MapEntry {
	if f.FullFlog {
		return NormalEntry(block)
	}
	return MapEntry(block)
}

// LoneFlogGroup is what a lane with the free block free looks like when nothing
// more is to be said: one record that moves nothing. It must stand first and have
// sequence number 1, because Linux takes any other lone record for the older one.
// PMDK marks such a block as zero.
func (f Flavour) LoneFlogGroup(lba PremapLBA, free PostmapLBA) (g FlogGroup) {
	e := MapEntry(free)
	if f.FullFlog {
		e = ZeroEntry(free)
	}
	g[0] = FlogRecord{LBA: lba, Old: e, New: e, Seq: 1}
	return g
}
