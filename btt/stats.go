package btt

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/bttnbd/bttnbd/pmem"
)

// Stats counts what a device has done since it was opened. Blocks are external
// blocks; a block of which only a part was asked for counts in full.
type Stats struct {
	BlocksRead     uint64
	BlocksWritten  uint64
	BlocksMarked   uint64             // made zero or error entries
	PartWrites     uint64             // blocks of BlocksWritten that took a read-modify-write
	Groups         uint64             // commits, of three drains each
	GroupSizes     [GroupSizes]uint64 // of them, those of at most 1, 2, 4, … blocks, and more than the one before
	Drains         uint64             // of commits and of marking
	LaneWaits      uint64             // writers that found no lane free
	RTTWaits       uint64             // writers that found their free block being read
	LanesRecovered uint64             // writes that the open completed
	LanesRetired   int                // lanes out of use until the next open: their free blocks are bad memory
	ArenasFailed   int                // arenas that take no writes
	Medium         pmem.Stats         // what became of the drains of a file behind the page cache
}

// GroupSizes is the length of the array in [Stats].
const GroupSizes = 6 // 1 … maxGroup

// counters are spread over cache lines so that counting does not slow callers
// down; callers choose one by their hint.
type counters [8]counterLine

type counterLine struct {
	blocksRead, blocksGrouped, blocksMarked, partWrites, marks, laneWaits, rttWaits atomic.Uint64
	groups                                                                          [GroupSizes]atomic.Uint64
	_                                                                               [24]byte
}

// group counts a commit of n blocks. One block is counted by its group alone: a locked
// operation less.
func (c *counterLine) group(n int) {
	c.groups[bits.Len(uint(n-1))].Add(1)
	if n > 1 {
		c.blocksGrouped.Add(uint64(n))
	}
}

func (c *counters) at(hint uint32) *counterLine { return &c[hint%uint32(len(c))] }

// Stats adds the counters of all arenas up. It may be called at any time.
func (d *Device) Stats() Stats {
	s := Stats{LanesRecovered: d.recovered, Medium: d.reg.Stats()}
	for _, a := range d.arenas {
		for i := range a.counters {
			c := &a.counters[i]
			s.BlocksRead += c.blocksRead.Load()
			s.BlocksWritten += c.blocksGrouped.Load() + c.groups[0].Load()
			s.BlocksMarked += c.blocksMarked.Load()
			s.PartWrites += c.partWrites.Load()
			for size := range c.groups {
				n := c.groups[size].Load()
				s.GroupSizes[size] += n
				s.Groups += n
			}
			s.Drains += c.marks.Load()
			s.LaneWaits += c.laneWaits.Load()
			s.RTTWaits += c.rttWaits.Load()
		}
		s.LanesRetired += int(a.retired.Load())
		if a.failed() {
			s.ArenasFailed++
		}
	}
	s.Drains += 3 * s.Groups
	return s
}

// Failures are lines for the operator about arenas that take no writes: which, why,
// and what to do. Reads go on there. It may be called at any time.
func (d *Device) Failures() (lines []string) {
	if err := d.reg.Stats().Err; err != nil {
		lines = append(lines, fmt.Sprintf("all writes fail: %v: open the image again", err))
	}
	for _, a := range d.arenas {
		for _, f := range failureTexts {
			if a.failures.Load()&f.bit != 0 {
				lines = append(lines, fmt.Sprintf("arena %d takes no writes: %s", a.index, f.text))
			}
		}
	}
	return lines
}

var failureTexts = []struct {
	bit  uint32
	text string
}{
	{failedHalfway, "one has failed half way: see the log for the reason, and open the image again"},
	{failedFlag, "its error flag is set: check the image"},
	{failedMemory, "no free block is left whose memory is good: copy the image to another device"},
}
