package check

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/bttnbd/bttnbd/layout"
)

// chunkEntries is how many map entries are read at once: 256 KiB, which stays in
// the cache.
const chunkEntries = 64 << 10

// mapScan goes through the map of one arena.
type mapScan struct {
	*reader
	c      *collector
	a      *Arena
	owners *owners
	count  [4]uint64 // by layout.EntryState
}

// eachChunk reads the map piece by piece and hands each to fn as bytes. It stops
// when ctx is done.
func (s *mapScan) eachChunk(ctx context.Context, fn func(first layout.PremapLBA, b []byte)) error {
	n := s.a.Info.ExternalNLBA
	buf := make([]byte, 4*min(n, chunkEntries))
	for first := uint32(0); first < n; first += min(chunkEntries, n-first) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := buf[:4*min(chunkEntries, n-first)]
		s.region.Read(b, s.a.mapEntry(layout.PremapLBA(first)))
		fn(layout.PremapLBA(first), b)
	}
	return nil
}

// examine claims the blocks of the entries in b, counts the entries, and reports
// the odd ones. A map that was never written is zeros, so those go by the run.
func (s *mapScan) examine(first layout.PremapLBA, b []byte) {
	n := uint32(len(b) / 4)
	limit := layout.PostmapLBA(s.a.Info.InternalNLBA)
	for i := uint32(0); i < n; i++ {
		e := layout.MapEntry(binary.LittleEndian.Uint32(b[4*i:]))
		if e == 0 {
			run := zeros(b[4*i:])
			s.count[layout.Initial] += uint64(run)
			s.owners.claimRange(layout.PostmapLBA(first)+layout.PostmapLBA(i), run)
			i += run - 1
			continue
		}
		lba := first + layout.PremapLBA(i)
		state := e.State()
		s.count[state]++
		if state == layout.Error || state == layout.Initial {
			s.odd(lba, e)
		}
		if block := e.Owned(lba); block < limit {
			s.owners.claim(block)
		} else {
			s.outOfRange(lba, e)
		}
	}
}

// zeros is the number of entries that are 0 at the beginning of b.
func zeros(b []byte) (n uint32) {
	for len(b) >= 8 && binary.LittleEndian.Uint64(b) == 0 {
		b, n = b[8:], n+2
	}
	for len(b) >= 4 && binary.LittleEndian.Uint32(b) == 0 {
		b, n = b[4:], n+1
	}
	return n
}

// odd reports error entries, and initial ones with a block number that is not
// their own: nobody writes those, but a normal entry that has lost its flags
// looks like one.
func (s *mapScan) odd(lba layout.PremapLBA, e layout.MapEntry) {
	switch {
	case e.State() == layout.Error && s.c.room(MapError, Info):
		s.c.put(Finding{
			Kind: MapError, Severity: Info, Offset: s.a.mapEntry(lba), LBA: s.a.lba(lba),
			Message: fmt.Sprintf("lba %d is marked as an error: reads of it fail until it is written", *s.a.lba(lba)),
		})
	case e.State() == layout.Initial && uint32(e) != uint32(lba) && s.c.room(MapInitial, Warning):
		s.c.put(Finding{
			Kind: MapInitial, Severity: Warning, Offset: s.a.mapEntry(lba), LBA: s.a.lba(lba),
			Message: fmt.Sprintf("lba %d: its map entry is %#x, which counts as never written, but nobody writes a block number without flags", *s.a.lba(lba), uint32(e)),
		})
	}
}

func (s *mapScan) outOfRange(lba layout.PremapLBA, e layout.MapEntry) {
	if !s.c.room(MapRange, Error) {
		return
	}
	s.c.put(Finding{
		Kind: MapRange, Severity: Error, Offset: s.a.mapEntry(lba), LBA: s.a.lba(lba),
		Message: fmt.Sprintf("lba %d: its map entry names internal block %d of %d; its data cannot be read", *s.a.lba(lba), e.Block(), s.a.Info.InternalNLBA),
		Repair:  "point it at a block that nobody owns, marked as an error",
	})
}

// nameHolders goes through lanes and map once more, to find out who owns the
// blocks with more than one owner, and returns those blocks in their order. It
// sees lanes and map as the next open leaves them.
func (s *mapScan) nameHolders(ctx context.Context, lanes []laneState, rolled entries) ([]layout.PostmapLBA, error) {
	shared := s.owners.shared
	if len(shared) == 0 {
		return nil, nil
	}
	for i := range lanes {
		if h := shared[lanes[i].record.Old.Block()]; h != nil {
			h.addLane(lanes[i].lane)
		}
	}
	for _, lba := range slices.Sorted(maps.Keys(rolled)) {
		if h := shared[rolled[lba]]; h != nil {
			h.addLBA(lba)
		}
	}
	// Most entries have nothing to do with it: keep them away from the Go map.
	var maybe [1 << 12]bool
	for b := range shared {
		maybe[b%layout.PostmapLBA(len(maybe))] = true
	}
	err := s.eachChunk(ctx, func(first layout.PremapLBA, b []byte) {
		for i := 0; i < len(b); i += 4 {
			lba := first + layout.PremapLBA(i/4)
			block := layout.MapEntry(binary.LittleEndian.Uint32(b[i:])).Owned(lba)
			if !maybe[block%layout.PostmapLBA(len(maybe))] {
				continue
			}
			if h := shared[block]; h != nil {
				if _, changes := rolled[lba]; !changes {
					h.addLBA(lba)
				}
			}
		}
	})
	return slices.Sorted(maps.Keys(shared)), err
}
