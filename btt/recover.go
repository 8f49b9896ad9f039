package btt

import (
	"fmt"

	"github.com/bttnbd/bttnbd/layout"
)

// recover brings an arena from what is on media to a state in which every lane
// owns its free block, and completes interrupted writes. It may itself be
// interrupted at any point and run again: it stores nothing but map entries that
// a durable flog record asks for.
//
// What it reads may not be durable: a predecessor that was killed, with the power
// on, can have left stores in the CPU caches. So everything that a decision rests
// on is made durable before anything is stored because of it: first the info blocks
// and all flog lines, then the map entries that they name.
func (a *arena) recover() (completed uint64, err error) {
	groups, err := a.readFlog()
	if err != nil {
		return 0, err
	}
	a.reg.Flush(a.base, layout.InfoSize)
	a.reg.Flush(a.base+a.geo.InfoOff, layout.InfoSize)
	a.reg.Flush(a.flogOff(0), uint64(a.geo.Nfree)*layout.FlogGroupSize)
	if err := a.reg.Drain(); err != nil {
		return 0, err
	}
	owners := make(map[layout.PostmapLBA]int, len(a.lanes))
	for i := range a.lanes {
		rec, err := a.recoverLane(i, &groups[i])
		if err != nil {
			return 0, a.flogError(i, err)
		}
		if other, dup := owners[rec.Old.Block()]; dup {
			return 0, a.flogError(i, fmt.Errorf("free block %d is claimed by lane %d as well", rec.Old.Block(), other))
		}
		owners[rec.Old.Block()] = i
	}
	for i := range a.lanes {
		if a.replay(&groups[i]) {
			completed++
		}
	}
	return completed, a.reg.Drain()
}

// readFlog reads the flog and finds the padding scheme of the arena.
func (a *arena) readFlog() ([]layout.FlogGroup, error) {
	groups := make([]layout.FlogGroup, a.geo.Nfree)
	var padding layout.PaddingDetector
	var b [layout.FlogGroupSize]byte
	for i := range groups {
		a.reg.Read(b[:], a.flogOff(uint32(i)))
		groups[i] = layout.DecodeFlogGroup(b[:])
		if err := padding.Add(&groups[i]); err != nil {
			return nil, a.flogError(i, err)
		}
	}
	a.padding = padding.Padding()
	return groups, nil
}

// recoverLane takes the lane's state from its current record: the lane's free
// block is always the record's old one, whether or not the write went through.
func (a *arena) recoverLane(i int, g *layout.FlogGroup) (layout.FlogRecord, error) {
	cur, err := g.Current(a.padding)
	if err != nil {
		return layout.FlogRecord{}, err
	}
	rec := g[cur]
	if !rec.Moves() && int(rec.LBA) == i {
		rec.LBA = 0 // a format numbers its records by lane, however few blocks there are
	}
	switch {
	case uint32(rec.LBA) >= a.geo.ExternalNLBA:
		return rec, fmt.Errorf("lba %d, but the arena has %d blocks", rec.LBA, a.geo.ExternalNLBA)
	case uint32(rec.Old.Block()) >= a.geo.InternalNLBA:
		return rec, fmt.Errorf("old block %d, but the arena has %d", rec.Old.Block(), a.geo.InternalNLBA)
	case uint32(rec.New.Block()) >= a.geo.InternalNLBA:
		return rec, fmt.Errorf("new block %d, but the arena has %d", rec.New.Block(), a.geo.InternalNLBA)
	}
	a.lanes[i] = lane{
		free: rec.Old.Block(),
		seq:  layout.NextSeq(rec.Seq),
		slot: uint32(a.padding) - uint32(cur),
		bad:  rec.Old.State() == layout.Error,
	}
	return rec, nil
}

// replay swings the map entry over if the lane's last write did not get so far,
// and reports whether it did. Blocks are compared, not words: writers differ in
// the flags that they log. An entry that names neither block was changed later,
// through another lane.
func (a *arena) replay(g *layout.FlogGroup) bool {
	cur, _ := g.Current(a.padding)
	rec := g[cur]
	if !rec.Moves() {
		return false
	}
	off := a.mapOff(rec.LBA)
	owned := a.entry(rec.LBA).Owned(rec.LBA)
	interrupted := owned == rec.Old.Block()
	if interrupted {
		a.reg.Store32(off, uint32(layout.NormalEntry(rec.New.Block())))
	}
	if interrupted || owned == rec.New.Block() {
		a.reg.Flush(off, entrySize)
	}
	return interrupted
}

func (a *arena) flogError(lane int, err error) error {
	return &CorruptError{Arena: a.index, Offset: a.flogOff(uint32(lane)), What: fmt.Sprintf("flog of lane %d", lane), Err: err}
}
