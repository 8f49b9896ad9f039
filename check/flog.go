package check

import (
	"fmt"

	"github.com/bttnbd/bttnbd/layout"
)

// eachLane calls fn for every flog group of the arena, with its offset in the image.
func (x *reader) eachLane(a *Arena, fn func(lane layout.Lane, off uint64, g *layout.FlogGroup)) {
	const perRead = 1024
	buf := make([]byte, min(a.Info.Nfree, perRead)*layout.FlogGroupSize)
	off := a.Offset + a.Info.FlogOff
	for lane := uint32(0); lane < a.Info.Nfree; lane += perRead {
		b := buf[:min(a.Info.Nfree-lane, perRead)*layout.FlogGroupSize]
		x.region.Read(b, off)
		for i := uint32(0); len(b) > 0; i++ {
			g := layout.DecodeFlogGroup(b)
			fn(layout.Lane(lane+i), off, &g)
			b, off = b[layout.FlogGroupSize:], off+layout.FlogGroupSize
		}
	}
}

// padding is the scheme that most lanes of the arena follow. Linux goes by the
// first lane that tells and refuses the arena if another disagrees; here each
// lane that disagrees becomes a finding, so that one bad lane does not condemn
// the good ones.
func (x *reader) padding(a *Arena) layout.Padding {
	var used [4]uint32
	x.eachLane(a, func(_ layout.Lane, _ uint64, g *layout.FlogGroup) {
		for i, r := range g {
			if r != (layout.FlogRecord{}) {
				used[i]++
			}
		}
	})
	if used[layout.PaddingOld] > used[layout.PaddingNew] {
		return layout.PaddingOld
	}
	return layout.PaddingNew
}

// laneState is what is known of one lane.
type laneState struct {
	lane    layout.Lane
	offset  uint64 // of the group, in the image
	group   layout.FlogGroup
	padding layout.Padding // that this lane follows
	current int            // index of the current record; -1: not known
	record  layout.FlogRecord
	// inFlight: the map entry of record.LBA is still old, and will become new.
	inFlight bool
	// doubtful: the record is current but cannot be right, so its old block is the
	// lane's only if nobody else has it.
	doubtful bool
	owns     bool              // block is the lane's, as the next open leaves it
	block    layout.PostmapLBA // its free block
	rewrite  Kind              // finding that only a fresh record mends; noKind: none
}

// noKind is no kind of finding.
const noKind = numKinds

// claims is the block that the lane accounts for, besides a map as it stands now:
// while its write is in flight the map entry still has old, so the lane has new.
func (s *laneState) claims() layout.PostmapLBA {
	if s.inFlight {
		return s.record.New.Block()
	}
	return s.record.Old.Block()
}

// needs notes that the lane needs a fresh record because of k.
func (s *laneState) needs(k Kind) {
	if s.rewrite == noKind {
		s.rewrite = k
	}
}

// claimLeft gives lanes whose records are in doubt the block that the record has as
// old, or else as new, if it belongs to nobody else once all others have claimed.
func claimLeft(lanes []laneState, o *owners) {
	for i := range lanes {
		s := &lanes[i]
		for _, b := range []layout.PostmapLBA{s.record.Old.Block(), s.record.New.Block()} {
			if s.doubtful && !s.owns && uint32(b) < o.n && !o.owned(b) {
				s.owns, s.block = true, b
				o.claim(b)
			}
		}
	}
}

// entries are map entries as the next open leaves them.
type entries map[layout.PremapLBA]layout.PostmapLBA

// lanes reports what is wrong with the flog. It returns the state of each lane, and
// the map entries that the next open will change.
func (x *reader) lanes(c *collector, a *Arena) ([]laneState, entries) {
	if a.Padding == layout.PaddingOld {
		c.add(Finding{
			Kind: FlogOldPadding, Severity: Info, Offset: a.Offset + a.Info.FlogOff,
			Message: "the flog has the padding {0,2} of Linux 4.1 to 4.14: PMDK and UEFI would misread it",
			Repair:  "only on request: rewrite it with the padding {0,1}",
		})
	}
	states := make([]laneState, 0, a.Info.Nfree)
	rolled := make(entries)
	x.eachLane(a, func(lane layout.Lane, off uint64, g *layout.FlogGroup) {
		s := laneState{lane: lane, offset: off, group: *g, padding: a.lanePadding(g), rewrite: noKind}
		a.reportPadding(c, &s)
		if cur, err := g.Current(s.padding); err != nil {
			s.current = -1
			s.needs(FlogSequence)
			c.add(Finding{
				Kind: FlogSequence, Severity: Error, Offset: off,
				Message: fmt.Sprintf("lane %d: %v; its free block is not known and Linux refuses the arena", lane, err),
				Repair:  "give the lane a block that nobody owns and a fresh record",
			})
		} else {
			s.current, s.record = cur, g[cur]
			a.reportLone(c, &s)
			x.judgeRecord(c, a, &s, rolled)
		}
		states = append(states, s)
	})
	return states, rolled
}

// lanePadding is the scheme that a lane follows: the arena's, unless only the other
// one explains what is used of the lane.
func (a *Arena) lanePadding(g *layout.FlogGroup) layout.Padding {
	var none layout.FlogRecord
	other := layout.PaddingNew + layout.PaddingOld - a.Padding
	if g[a.Padding] == none && g[other] != none && g[3] == none && g[other].Seq <= 3 {
		return other
	}
	return a.Padding
}

// judgeRecord finds out which block the lane has, going by its current record.
func (x *reader) judgeRecord(c *collector, a *Arena, s *laneState, rolled entries) {
	ok := a.reportRange(c, s)
	if !ok {
		s.doubtful = true
		return
	}
	if s.record.Moves() {
		x.recover(c, a, s, rolled)
	}
	s.owns, s.block = true, s.record.Old.Block()
}

// reportPadding reports records where the arena's scheme has none, and a missing
// first one. A group of zeros only has no state at all: that is said elsewhere.
func (a *Arena) reportPadding(c *collector, s *laneState) {
	var none layout.FlogRecord
	report := func(i int, what string) {
		s.needs(FlogPadding)
		c.add(Finding{
			Kind: FlogPadding, Severity: Error, Offset: s.offset + uint64(i)*layout.FlogRecordSize,
			Message: fmt.Sprintf("lane %d: record %d is %s, against the padding %v of the other lanes; Linux refuses the arena", s.lane, i, what, a.Padding),
			Repair:  "write the lane's free block into a fresh record, its only one",
		})
	}
	if s.group[0] == none && s.group != (layout.FlogGroup{}) {
		report(0, "empty")
	}
	for i := 1; i < len(s.group); i++ {
		if i != int(a.Padding) && s.group[i] != none {
			report(i, "used")
		}
	}
}

// reportLone: the only record of a lane must be the one that a format writes.
func (a *Arena) reportLone(c *collector, s *laneState) {
	lone := s.group[0].Seq == 0 || s.group[s.padding].Seq == 0
	if !lone || s.current == 0 && s.record.Seq == 1 {
		return
	}
	why := "Linux takes the empty record for current, and block 0 for free"
	if s.current != 0 {
		why = "nobody leaves record 0 without a sequence number"
	}
	s.needs(FlogLone)
	c.add(Finding{
		Kind: FlogLone, Severity: Warning, Offset: s.at(),
		Message: fmt.Sprintf("lane %d: its only record is record %d with sequence number %d, not record 0 with 1; %s", s.lane, s.current, s.record.Seq, why),
		Repair:  "write it as record 0 with sequence number 1",
	})
}

// at is the offset of the current record in the image.
func (s *laneState) at() uint64 { return s.offset + uint64(s.current)*layout.FlogRecordSize }

// reportRange reports numbers in the current record that do not exist, and tells
// whether the move that it describes can be looked at.
func (a *Arena) reportRange(c *collector, s *laneState) bool {
	r, ok := &s.record, true
	if uint32(r.LBA) >= a.Info.ExternalNLBA {
		f := Finding{
			Kind: FlogLBA, Severity: Error, Offset: s.at(),
			Message: fmt.Sprintf("lane %d: its record is about block %d of an arena of %d", s.lane, r.LBA, a.Info.ExternalNLBA),
			Repair:  "write the lane's free block into a fresh record",
		}
		switch {
		case r.Moves():
			f.Message += "; whether that write was completed cannot be told"
			s.needs(FlogLBA)
			c.add(f)
		case uint32(r.LBA) != uint32(s.lane): // which a format writes, however few blocks there are
			f.Severity = Warning
			f.Message += "; Linux ignores it, PMDK and ndctl refuse the arena"
			s.needs(FlogLBA)
			c.add(f)
		}
		ok = !r.Moves()
	}
	for _, n := range []struct {
		name  string
		entry layout.MapEntry
	}{{"old", r.Old}, {"new", r.New}} {
		if uint32(n.entry.Block()) < a.Info.InternalNLBA {
			continue
		}
		s.needs(FlogBlock)
		c.add(Finding{
			Kind: FlogBlock, Severity: Error, Offset: s.at(),
			Message: fmt.Sprintf("lane %d: its record names %d as the %s block, of %d; writes in this lane would go astray", s.lane, n.entry.Block(), n.name, a.Info.InternalNLBA),
			Repair:  "give the lane a block that nobody owns and a fresh record",
		})
		ok = false
	}
	return ok
}

// recover does in rolled what the next open does on media for a record that moves
// a block. Lanes come in their order, so that of two that name the same LBA the
// later one finds what the earlier one left.
func (x *reader) recover(c *collector, a *Arena, s *laneState, rolled entries) {
	r := &s.record
	owned, seen := rolled[r.LBA]
	if !seen {
		owned = layout.MapEntry(x.region.Load32(a.mapEntry(r.LBA))).Owned(r.LBA)
	}
	if owned != r.Old.Block() {
		return
	}
	s.inFlight = true
	rolled[r.LBA] = r.New.Block()
	c.add(Finding{
		Kind: FlogInFlight, Severity: Info, Offset: s.at(), LBA: a.lba(r.LBA),
		Message: fmt.Sprintf("lane %d: a write to lba %d was interrupted; the next open completes it", s.lane, *a.lba(r.LBA)),
		Repair:  "complete it, as the next open does",
	})
}
