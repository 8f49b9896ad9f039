package btt

import (
	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Size is the capacity in bytes.
func (d *Device) Size() uint64 { return d.nlba * uint64(d.sector) }

// SectorSize is the size in bytes of a block: what is atomic. It is less than
// external_lbasize where Linux keeps integrity metadata, see
// [layout.Flavour.SectorSize].
func (d *Device) SectorSize() uint32 { return d.sector }

// ReadOnly reports whether all writes are refused.
func (d *Device) ReadOnly() bool { return d.reg.ReadOnly() }

// Flavour is the format that the image was found to have.
func (d *Device) Flavour() layout.Flavour { return d.flavour }

// UUID is the uuid in the info blocks, the bytes as they stand on media.
func (d *Device) UUID() uuid.UUID { return d.id }

// ParentUUID is the uuid of the namespace or pool set that the BTT was made for,
// the bytes as they stand on media; zero: none. In a namespace it may be any.
func (d *Device) ParentUUID() uuid.UUID { return d.parent }

// ArenaInfo is one arena of an open device.
type ArenaInfo struct {
	Offset     uint64 // in the region, in bytes
	Geometry   layout.Geometry
	Padding    layout.Padding
	FromBackup bool // its primary info block is bad
}

// Arenas says where the arenas are and how they are laid out.
func (d *Device) Arenas() []ArenaInfo {
	all := make([]ArenaInfo, len(d.arenas))
	for i, a := range d.arenas {
		all[i] = ArenaInfo{Offset: a.base, Geometry: a.geo, Padding: a.padding, FromBackup: a.info.fromBackup}
	}
	return all
}

// Warnings are lines for the operator about what Open found to be bad but could
// do without.
func (d *Device) Warnings() []string { return d.warnings }

// ZerosFast reports whether zeroing changes only map entries. On namespace images
// with sectors of 512 bytes zeros are written as data, see
// [layout.Flavour.ZeroEntriesSafe].
func (d *Device) ZerosFast() bool {
	return d.flavour.ZeroEntriesSafe(d.arenas[0].geo.ExternalLBASize)
}

// Close ends the use of the device and closes its region. No other method may be
// running or be called afterwards. There is nothing to write back: a device that
// is not closed is in the same state.
func (d *Device) Close() error { return d.reg.Close() }

// SetArenaError sets or clears the error flag in both info blocks of the arena
// and refuses or allows writes to it. It is durable on return. Writes that were
// refused because one has failed half way are not allowed that way: what is in
// memory may be ahead of the medium, and only another open makes it even.
func (d *Device) SetArenaError(arena int, inError bool) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if d.ReadOnly() {
		return errReadOnly
	}
	a := d.arenas[arena]
	if inError {
		a.failures.Or(failedFlag)
		return a.setFlags(layout.FlagError)
	}
	if a.failures.Load()&^failedFlag != 0 {
		return errReopen
	}
	if err := a.setFlags(0); err != nil {
		return err
	}
	a.failures.And(^uint32(failedFlag))
	return nil
}

// SetError marks the block as bad: reads fail with EIO until it is written or
// zeroed. It is durable on return.
func (d *Device) SetError(lba layout.ExternalLBA) (err error) {
	defer d.reg.CatchFault(&err)
	defer pmem.ArmFaults()()
	if d.ReadOnly() {
		return errReadOnly
	}
	if uint64(lba) >= d.nlba {
		return errWriteRange
	}
	a, pre := d.locate(uint64(lba))
	return a.mark(pre, 1, layout.ErrorEntry)
}

// locate finds the arena of an external block. Arenas of an image that has grown are
// of any size, see [Grow].
func (d *Device) locate(lba uint64) (*arena, layout.PremapLBA) {
	arenas := d.arenas
	for len(arenas) > 1 {
		if half := len(arenas) / 2; lba < arenas[half].first {
			arenas = arenas[:half]
		} else {
			arenas = arenas[half:]
		}
	}
	return arenas[0], layout.PremapLBA(lba - arenas[0].first)
}
