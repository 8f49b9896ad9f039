package check

import (
	"errors"
	"math"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// ErrNoBTT means that nothing in the image says that there is, or was, a BTT. An
// image with a damaged one is not an error but a report with findings.
var ErrNoBTT = errors.New("no BTT here: no info block at offset 4096 (version 1.1), at offset 0 (version 2.0) or in a pmemblk pool, and no backup at the end of an arena that begins there")

const (
	page = 4096

	// maxLanes and maxArenas are where a number that a damaged or hostile image
	// gives stops being plausible. Everybody uses 256 lanes; 4096 arenas are 2 PiB, and
	// have 2^20 lanes, which is the most for all arenas together, too.
	maxLanes  = 1 << 20
	maxArenas = 4096
)

// Options of [Inspect] and [Run]. The zero value is right outside tests.
type Options struct {
	// MaxArena is the size at which arenas follow each other, in bytes.
	// 0: 512 GiB, as the format says.
	MaxArena uint64
	// ParentUUID, if set, is what parent_uuid must be: that of the namespace. A pool
	// knows its own.
	ParentUUID *uuid.UUID
	// Progress, if set, is told now and then how many of the image's map entries
	// have been examined. It is called on the goroutine of Run.
	Progress func(done, total uint64)
}

// Image is what the info blocks of an image say.
type Image struct {
	Path     string
	Size     uint64         // in bytes
	Flavour  layout.Flavour // Start is where arena 0 really begins
	Arenas   []Arena        // those of which an info block is sound; none: see Findings
	Lost     *Arena         // the one behind them of which none is; nil: none is missing
	Pool     *PoolInfo      // nil: the image does not begin like a pool
	Findings []Finding      // about the info blocks only
}

// Arena is what is known of one arena.
type Arena struct {
	Index      int
	Offset     uint64 // in the image, in bytes
	Primary    InfoCopy
	Backup     InfoCopy
	Info       layout.Info        // of the copy that is believed: the primary, if it is sound
	FromBackup bool               // the primary is not
	Aligns     []uint32           // alignments that explain the geometry: of 64 (Linux, UEFI) and 256 (PMDK)
	Padding    layout.Padding     // of the flog; 0 if the arena is truncated
	FirstLBA   layout.ExternalLBA // number of its first block on the whole device
	Missing    uint64             // bytes of it that lie behind the end of the file
}

// PoolInfo is the header of a pmemblk pool.
type PoolInfo struct {
	layout.PoolHeader       // as it stands, sound or not
	Err               error // why it cannot be believed; nil: it is sound
}

// InfoCopy is one of the two info blocks of an arena.
type InfoCopy struct {
	Offset uint64      // in the image, in bytes
	Info   layout.Info // as it stands, sound or not; zero if it lies outside the file
	Err    error       // why it cannot be believed; nil: it is sound
	raw    []byte
}

// sound reports whether one of the copies can be believed.
func (a *Arena) sound() bool { return a.Primary.Err == nil || a.Backup.Err == nil }

// end is the offset in the image behind the arena, or as large as it gets.
func (a *Arena) end() uint64 {
	return addSaturated(a.Offset, a.Info.InfoOff+layout.InfoSize)
}

// packed reports whether the next arena is to begin right behind this one.
func (a *Arena) packed() bool { return a.Info.NextOff == a.Info.InfoOff+layout.InfoSize }

func addSaturated(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// lba is the device-wide number of a block of the arena, as findings want it.
func (a *Arena) lba(premap layout.PremapLBA) *uint64 {
	n := uint64(a.FirstLBA) + uint64(premap)
	return &n
}

// mapEntry is the offset of a map entry in the image.
func (a *Arena) mapEntry(lba layout.PremapLBA) uint64 {
	return a.Offset + a.Info.MapOff + 4*uint64(lba)
}

// block is the offset of an internal block in the image.
func (a *Arena) block(b layout.PostmapLBA) uint64 {
	return a.Offset + a.Info.DataOff + uint64(b)*uint64(a.Info.InternalLBASize)
}

// reader reads an image. It has no method that writes.
type reader struct {
	region     *pmem.Region
	size       uint64
	maxArena   uint64
	wantParent *uuid.UUID
	pool       pool
	flavour    layout.Flavour    // found
	lost       *Arena            // see Image
	overlay    map[uint64][]byte // info blocks as a repair will leave them, by offset
}

func newReader(r *pmem.Region, o Options) *reader {
	x := &reader{region: r, size: r.Size(), maxArena: o.MaxArena, wantParent: o.ParentUUID}
	if x.maxArena == 0 {
		x.maxArena = layout.MaxArenaSize
	}
	return x
}

// Inspect reads the info blocks and finds out the flavour, the arenas and the
// padding of their flogs. It changes nothing and runs no recovery. Damage to info
// blocks is in Image.Findings; the error is [ErrNoBTT] or a [*pmem.FaultError].
func Inspect(r *pmem.Region, o Options) (im *Image, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	c := &collector{arena: WholeImage}
	im, err = newReader(r, o).inspect(c)
	if err != nil {
		return nil, err
	}
	c.end()
	im.Findings = c.list
	return im, nil
}

func (x *reader) inspect(c *collector) (*Image, error) {
	im := &Image{Path: x.region.Path(), Size: x.size}
	x.readPool()
	x.lost = nil
	flavour, found, err := x.locate(c)
	if err != nil {
		return nil, err
	}
	im.Flavour, x.flavour = flavour, flavour
	if found {
		im.Arenas = x.arenas(c, flavour)
	}
	im.Lost = x.lost
	if x.pool.is {
		im.Pool = &PoolInfo{x.pool.header, x.pool.err}
	}
	if flavour.Pool {
		c.begin(WholeImage, 0)
		x.judgePool(c, im)
	}
	return im, nil
}
