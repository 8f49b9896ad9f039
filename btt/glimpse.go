package btt

import (
	"sync/atomic"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// glimpse copies as many whole pieces of the range as it can without telling
// anybody, and returns their length in bytes. It stores nothing, so that readers
// share every line, and it is short: what a read waits for is memory, and the fewer
// instructions there are between two reads, the more of them wait together.
//
//	1  s := swings of the map lock
//	2  e := map[lba]; not a block with data: stop
//	3  copy its block
//	4  map[lba] is no longer e, or swings no longer s: stop
//
// Who stops is served by [arena.read], which announces itself, has writers wait, and
// thereby ends; what has been copied is overwritten by it.
//
// A block can only have been stored to during 3 if it was free at some moment of it.
// Then its entry was swung away, and, as step 4 finds it there, back: two swings, with
// a count before each. The count before the second comes between 1 and 4. (To look at
// swings alone would not do: the count before the first may come before 1, and there
// may be no second.) All this takes loads in the order above: 1 and 2 are atomic, and
// [pmem.Region.ReadRacing] sees to 4. It also takes that who sees a store to the block
// sees the swings: there were drains between them.
//
// A fault is no answer either: the block may be another's by now. arena.read tells.
func (d *Device) glimpse(p []byte, off int64) (n int) {
	if !d.inRange(off, int64(len(p))) {
		return 0
	}
	were, over := pmem.SetFaults(true), false
	defer func() { // instead of CatchFault, which is longer than all the rest
		if over {
			return
		}
		pmem.SetFaults(were)
		if v := recover(); !pmem.IsFault(v) {
			panic(v)
		}
	}()
	lba, in := d.split(off)
	done, blocks := 0, uint64(0)
	for done < len(p) {
		a, pre := d.locate(lba)
		swings := &a.locks[lockOf(pre)].swings
		before := atomic.LoadUint64(swings)
		at := a.mapOff(pre)
		e := layout.MapEntry(a.reg.Load32(at))
		if e.State() != layout.Normal || uint32(e.Block()) >= a.geo.InternalNLBA {
			break
		}
		piece := p[done:min(len(p), done+int(d.sector)-in)]
		if !a.reg.ReadRacing(piece, a.dataOff(e.Block())+uint64(in)) ||
			layout.MapEntry(a.reg.Load32(at)) != e || atomic.LoadUint64(swings) != before {
			break
		}
		done += len(piece)
		lba, in = lba+1, 0
		blocks++
	}
	d.arenas[0].counters.at(pmem.StackHint()).blocksRead.Add(blocks)
	pmem.SetFaults(were)
	over = true
	return done
}
