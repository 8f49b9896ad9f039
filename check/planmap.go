package check

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/bttnbd/bttnbd/layout"
)

// The repair of flog and map gives every internal block one owner again, without
// knowing whose data is in a block that two claim or none does:
//
//   - an entry that shares its block becomes an error entry, and so does every other
//     that does. No record on media proves one of them right: that of a lane may be
//     older than the damage. The first keeps the block; its data stays where it is,
//     for those who want to look at it.
//   - an entry out of range, or without flags, becomes an error entry.
//   - a lane that shares its block with an entry, or has none, gets one that nobody
//     owns. What its record names is tried first, because it probably is that one.
//   - the remaining blocks without an owner go to the error entries without a block.
//
// All in the order of lanes and entries, so that a repair that was interrupted and
// begins anew comes to the same end.

// badEntry is a map entry to be changed.
type badEntry struct {
	lba    layout.PremapLBA
	raw    layout.MapEntry   // on media
	block  layout.PostmapLBA // as the next open leaves it
	kind   Kind
	refers bool // block is in range
}

// errTooMany ends a scan for bad entries.
var errTooMany = errors.New("too many")

// planArena plans flog and map of one arena.
func (p *planner) planArena(ctx context.Context, s *arenaState) error {
	if len(s.lanes) == 0 {
		return nil
	}
	bad, err := s.badEntries(ctx)
	if errors.Is(err, errTooMany) {
		p.plan.Refused = append(p.plan.Refused, Refusal{
			Arena: s.a.Index, Kind: MapRange, Offset: s.a.mapEntry(0),
			Why: fmt.Sprintf("more than %d map entries are bad: this is not damage to a map but something else in its place", maxSteps),
		})
		return nil
	}
	if err != nil {
		return err
	}
	steps := len(p.plan.Steps)
	p.planRolled(s, bad)
	kept, homeless := p.planMarks(s, bad)
	lanes := s.lanesWithout(kept)
	blocks, ok := s.distribute(lanes, len(homeless))
	if !ok {
		p.plan.Steps = p.plan.Steps[:steps]
		p.plan.Refused = append(p.plan.Refused, Refusal{
			Arena: s.a.Index, Kind: BlockOrphan, Offset: s.a.mapEntry(0),
			Why: fmt.Sprintf("%d lanes and %d map entries need a block, but fewer belong to nobody", len(lanes), len(homeless)),
		})
		return nil
	}
	p.planMoves(s, homeless, blocks)
	p.planLanes(s)
	return nil
}

// badEntries are the entries that cannot stay as they are, in their order.
func (s *arenaState) badEntries(ctx context.Context) (bad []badEntry, err error) {
	torn := s.tornLBAs()
	if s.owners.twice == nil && s.n[MapRange] == 0 && s.n[MapInitial] == 0 && len(torn) == 0 {
		return nil, nil
	}
	err = s.eachChunk(ctx, func(first layout.PremapLBA, b []byte) error {
		for i := 0; i < len(b); i += 4 {
			raw := layout.MapEntry(binary.LittleEndian.Uint32(b[i:]))
			lba := first + layout.PremapLBA(i/4)
			e := badEntry{lba: lba, raw: raw, block: raw.Owned(lba), kind: noKind}
			rolled, changes := s.rolled[lba]
			if changes {
				e.block = rolled
			}
			e.refers = uint32(e.block) < s.owners.n
			switch {
			case !e.refers:
				e.kind = MapRange
			case s.owners.shared(e.block) || torn[lba]:
				e.kind = BlockDuplicate
			case !changes && strange(lba, raw):
				e.kind = MapInitial
			default:
				continue
			}
			if len(bad) == maxSteps {
				return errTooMany
			}
			bad = append(bad, e)
		}
		return nil
	})
	return bad, err
}

// tornLBAs are those that two lanes have a move of under way, both from the same
// block: which of the two the user wrote last is not known.
func (s *arenaState) tornLBAs() map[layout.PremapLBA]bool {
	torn := map[layout.PremapLBA]bool{}
	if s.owners.twice == nil {
		return torn
	}
	lanes := map[layout.PostmapLBA]int{} // owners of a shared block
	for i := range s.lanes {
		if l := &s.lanes[i]; l.owns && s.owners.shared(l.block) {
			lanes[l.block]++
		}
	}
	for i := range s.lanes {
		if l := &s.lanes[i]; l.inFlight && lanes[l.block] > 1 {
			torn[l.record.LBA] = true
		}
	}
	return torn
}

// planRolled completes interrupted writes, except of entries that are bad.
func (p *planner) planRolled(s *arenaState, bad []badEntry) {
	isBad := map[layout.PremapLBA]bool{}
	for i := range bad {
		isBad[bad[i].lba] = true
	}
	for i := range s.lanes {
		l := &s.lanes[i]
		lba := l.record.LBA
		if !l.inFlight || isBad[lba] || s.rolled[lba] != l.record.New.Block() {
			continue // the last lane in a chain of moves says where it ends
		}
		p.entryStep(s, StageMark, FlogInFlight, lba, s.entry(lba), layout.NormalEntry(s.rolled[lba]),
			fmt.Sprintf("completes the write to lba %d that lane %d has logged", *s.a.lba(lba), l.lane), false)
	}
}

func (s *arenaState) entry(lba layout.PremapLBA) layout.MapEntry {
	return layout.MapEntry(s.region.Load32(s.a.mapEntry(lba)))
}

// planMarks makes the bad entries error entries, all of them before any is moved:
// as long as one is not, its partners must show that it shares a block. It returns
// the shared blocks that an entry keeps, and the entries that still need a block.
func (p *planner) planMarks(s *arenaState, bad []badEntry) (kept map[layout.PostmapLBA]bool, homeless []badEntry) {
	kept = map[layout.PostmapLBA]bool{}
	for _, e := range bad {
		if !e.refers {
			homeless = append(homeless, e)
			continue
		}
		why := fmt.Sprintf("lba %d has a block number without flags: marks it as an error", *s.a.lba(e.lba))
		if e.kind == BlockDuplicate {
			why = fmt.Sprintf("lba %d is not the only owner of internal block %d, and whose data that holds is not known: marks it as an error", *s.a.lba(e.lba), e.block)
		}
		p.entryStep(s, StageMark, e.kind, e.lba, e.raw, layout.ErrorEntry(e.block), why, e.raw.State() != layout.Error)
		if kept[e.block] {
			e.raw = layout.ErrorEntry(e.block)
			homeless = append(homeless, e)
		}
		kept[e.block] = true
	}
	return kept, homeless
}

// lanesWithout are the lanes that have no block, or share one with an entry or with
// a lane before.
func (s *arenaState) lanesWithout(kept map[layout.PostmapLBA]bool) (lanes []*laneState) {
	for i := range s.lanes {
		l := &s.lanes[i]
		if l.owns && s.owners.shared(l.block) {
			if kept[l.block] {
				l.owns = false
				l.needs(BlockDuplicate)
			}
			kept[l.block] = true
		}
		if !l.owns {
			lanes = append(lanes, l)
		}
	}
	return lanes
}

// distribute gives the lanes their blocks and returns n more that nobody owns. ok
// is false if there are not so many.
func (s *arenaState) distribute(lanes []*laneState, n int) (blocks []layout.PostmapLBA, ok bool) {
	for _, l := range lanes {
		for _, r := range []layout.FlogRecord{l.group[0], l.group[l.padding]} {
			for _, b := range []layout.PostmapLBA{r.Old.Block(), r.New.Block()} {
				if !l.owns && uint32(b) < s.owners.n && !s.owners.owned(b) {
					l.owns, l.block = true, b
					s.owners.claim(b)
				}
			}
		}
	}
	for _, l := range lanes {
		if !l.owns {
			n++
		}
	}
	s.owners.eachOrphan(func(first layout.PostmapLBA, count uint32) {
		for i := uint32(0); i < count && len(blocks) < n; i++ {
			blocks = append(blocks, first+layout.PostmapLBA(i))
		}
	})
	if len(blocks) < n {
		return nil, false
	}
	for _, l := range lanes {
		if !l.owns {
			l.owns, l.block, blocks = true, blocks[0], blocks[1:]
		}
	}
	return blocks, true
}

// planMoves gives the error entries without a block one that nobody owns.
func (p *planner) planMoves(s *arenaState, homeless []badEntry, blocks []layout.PostmapLBA) {
	for i, e := range homeless {
		why := fmt.Sprintf("gives lba %d internal block %d, which nobody owns", *s.a.lba(e.lba), blocks[i])
		if !e.refers {
			why = fmt.Sprintf("lba %d names internal block %d of %d: marks it as an error and gives it block %d, which nobody owns", *s.a.lba(e.lba), e.block, s.owners.n, blocks[i])
		}
		p.entryStep(s, StageMove, e.kind, e.lba, e.raw, layout.ErrorEntry(blocks[i]), why, !e.refers && e.raw.State() != layout.Error)
	}
}

func (p *planner) entryStep(s *arenaState, stage Stage, k Kind, lba layout.PremapLBA, before, after layout.MapEntry, why string, lost bool) {
	step := Step{
		Arena: s.a.Index, Kind: k, Stage: stage, Offset: s.a.mapEntry(lba),
		Before: entryBytes(before), After: entryBytes(after), Why: why,
	}
	if lost {
		step.Lost = []uint64{*s.a.lba(lba)}
	}
	p.add(step)
}

// planLanes writes fresh records for the lanes that need one.
func (p *planner) planLanes(s *arenaState) {
	for i := range s.lanes {
		l := &s.lanes[i]
		if l.rewrite == noKind {
			continue
		}
		lba := layout.PremapLBA(l.lane)
		if uint32(lba) >= s.a.Info.ExternalNLBA {
			lba = 0
		}
		fresh := p.flavour.LoneFlogGroup(lba, l.block)
		if l.current >= 0 && l.record.Old.State() == layout.Error && l.record.Old.Block() == l.block {
			fresh[0].Old |= layout.EntryError // known to be bad: its next owner fills it first
		}
		before, after := make([]byte, layout.FlogGroupSize), make([]byte, layout.FlogGroupSize)
		l.group.Encode(before)
		fresh.Encode(after)
		p.add(Step{
			Arena: s.a.Index, Kind: l.rewrite, Stage: StageLane, Offset: l.offset, Before: before, After: after,
			Why:    fmt.Sprintf("gives lane %d a fresh record with the free block %d", l.lane, l.block),
			stores: l.stores(fresh[0]),
		})
	}
}

// stores are the stores of 8 bytes that make the record fresh the only one of the
// lane. They reach the lane's cache line in this order, and a crash between any two
// leaves a lane as good or bad as before, or one whose free block is the new one:
//
//  1. the other record says the same as fresh, with its old sequence number,
//  2. then the current one does: from its first word on the lane has the new block,
//  3. what stands in neither place is zeroed,
//  4. since both say the same, it does not matter which counts while the sequence
//     numbers become 1 and 0.
func (l *laneState) stores(fresh layout.FlogRecord) (list []wordStore) {
	put := func(record, word int, v uint64) {
		list = append(list, wordStore{l.offset + uint64(record)*layout.FlogRecordSize + 8*uint64(word), v})
	}
	cur := max(l.current, 0)
	for _, i := range []int{int(l.padding) - cur, cur} {
		r := fresh
		r.Seq = l.group[i].Seq
		lbaOld, newSeq := r.Words()
		put(i, 0, lbaOld)
		put(i, 1, newSeq)
	}
	for i := 1; i < len(l.group); i++ {
		if i != int(l.padding) {
			put(i, 0, 0)
			put(i, 1, 0)
		}
	}
	lbaOld, newSeq := fresh.Words()
	put(0, 0, lbaOld)
	put(0, 1, newSeq)
	put(int(l.padding), 1, 0)
	put(int(l.padding), 0, 0)
	return list
}
