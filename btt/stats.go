package btt

import "sync/atomic"

// Stats counts what a device has done since it was opened. Blocks are external
// blocks; a block of which only a part was asked for counts in full.
type Stats struct {
	BlocksRead     uint64
	BlocksWritten  uint64
	BlocksMarked   uint64 // made zero or error entries
	PartWrites     uint64 // blocks of BlocksWritten that took a read-modify-write
	Groups         uint64 // commits, of three drains each
	LaneWaits      uint64 // writers that found no lane free
	RTTWaits       uint64 // writers that found their free block being read
	LanesRecovered uint64 // writes that the open completed
	LanesRetired   int    // lanes out of use until the next open: their free blocks are bad memory
	ArenasFailed   int    // arenas that take no writes
}

// counters are spread over cache lines so that counting does not slow callers
// down; callers choose one by their hint.
type counters [8]counterLine

type counterLine struct {
	blocksRead, blocksWritten, blocksMarked, partWrites, groups, laneWaits, rttWaits atomic.Uint64
	_                                                                                [8]byte
}

func (c *counters) at(hint uint32) *counterLine { return &c[hint%uint32(len(c))] }

// Stats adds the counters of all arenas up. It may be called at any time.
func (d *Device) Stats() Stats {
	s := Stats{LanesRecovered: d.recovered}
	for _, a := range d.arenas {
		for i := range a.counters {
			c := &a.counters[i]
			s.BlocksRead += c.blocksRead.Load()
			s.BlocksWritten += c.blocksWritten.Load()
			s.BlocksMarked += c.blocksMarked.Load()
			s.PartWrites += c.partWrites.Load()
			s.Groups += c.groups.Load()
			s.LaneWaits += c.laneWaits.Load()
			s.RTTWaits += c.rttWaits.Load()
		}
		s.LanesRetired += int(a.retired.Load())
		if a.failed() {
			s.ArenasFailed++
		}
	}
	return s
}
