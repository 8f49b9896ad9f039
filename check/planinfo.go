package check

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
)

// planInfo plans the info blocks. It returns the image as it will be, and the
// findings about info blocks that are left then. Until the plan is carried out, the
// reader sees the new info blocks through its overlay.
func (p *planner) planInfo(ctx context.Context, im *Image, findings []Finding) (*Image, []Finding, error) {
	p.overlay = map[uint64][]byte{}
	kinds := infoKinds(findings)
	for range maxArenas { // once, and once more for each arena that is rebuilt
		p.chooseCopies(im)
		if done, err := p.rebuild(ctx, im); err != nil {
			return nil, nil, err
		} else if !done {
			break
		}
		var err error
		if im, _, err = p.again(); err != nil {
			return nil, nil, err
		}
	}
	im, _, err := p.again()
	if err != nil {
		return nil, nil, err
	}
	p.wipeSecond(findings)
	for i := len(im.Arenas) - 1; i >= 0; i-- {
		p.mendInfo(im, &im.Arenas[i], kinds)
	}
	p.planPool(im)
	return p.again()
}

// again inspects the image through the overlay.
func (p *planner) again() (*Image, []Finding, error) {
	c := &collector{arena: WholeImage}
	im, err := p.inspect(c)
	c.end()
	return im, c.list, err
}

// infoKinds is the first finding about the info blocks of each arena.
func infoKinds(findings []Finding) map[int]Kind {
	kinds := map[int]Kind{}
	for _, f := range findings {
		if _, seen := kinds[f.Arena]; !seen && f.Severity > Info && f.Kind != ArenaError {
			kinds[f.Arena] = f.Kind
		}
	}
	return kinds
}

// chooseCopies decides, where both info blocks of an arena are sound but differ,
// which one is right, and puts it over the other.
func (p *planner) chooseCopies(im *Image) {
	for i := range im.Arenas {
		a := &im.Arenas[i]
		if a.Primary.Err != nil || a.Backup.Err != nil || bytes.Equal(a.Primary.raw, a.Backup.raw) {
			continue
		}
		if p.trust(im, a, &a.Backup.Info) > p.trust(im, a, &a.Primary.Info) {
			p.overlay[a.Primary.Offset] = a.Backup.raw
		}
	}
}

// trust is how much speaks for an info block: that other arenas know it, that its
// geometry is one that somebody makes, that there is a flog where it says.
func (p *planner) trust(im *Image, a *Arena, in *layout.Info) (points int) {
	for i := range im.Arenas {
		if of := &im.Arenas[i].Info; i != a.Index && of.UUID == in.UUID && of.ParentUUID == in.ParentUUID && of.ExternalLBASize == in.ExternalLBASize {
			points++
		}
	}
	if len(explain(in, im.Flavour)) > 0 {
		points++
	}
	if p.hasFlog(a.Offset, in) {
		points++
	}
	return points
}

// hasFlog reports whether at least half of the lanes of an arena that in describes
// have a current record with possible numbers.
func (x *reader) hasFlog(start uint64, in *layout.Info) bool {
	if start >= x.size || in.Validate(x.size-start) != nil || in.Nfree > maxLanes {
		return false
	}
	a := Arena{Offset: start, Info: *in}
	a.Padding = x.padding(&a)
	sane := uint32(0)
	x.eachLane(&a, func(lane layout.Lane, _ uint64, g *layout.FlogGroup) {
		cur, err := g.Current(a.lanePadding(g))
		if err != nil {
			return
		}
		r := g[cur]
		lba := uint32(r.LBA) < in.ExternalNLBA || uint32(r.LBA) == uint32(lane)
		if lba && uint32(r.Old.Block()) < in.InternalNLBA && uint32(r.New.Block()) < in.InternalNLBA {
			sane++
		}
	})
	return sane > 0 && uint64(sane)*2 >= uint64(in.Nfree)
}

// rebuild makes info blocks for the first arena that has none that is sound. Of all
// guesses it takes the one under which the fewest blocks have no owner; that must be
// less than an eighth. It reports whether there is something new.
func (p *planner) rebuild(ctx context.Context, im *Image) (bool, error) {
	start := im.Flavour.Start
	var ref *layout.Info
	if n := len(im.Arenas); n > 0 {
		last := &im.Arenas[n-1]
		if last.Info.NextOff == 0 {
			return false, nil
		}
		start = addSaturated(last.Offset, last.Info.NextOff)
		ref = &im.Arenas[0].Info
		if last.Info.NextOff != p.maxArena && !last.packed() {
			return p.mendChain(im, last), nil
		}
	} else if a := p.laterArena(im.Flavour); a != nil {
		ref = &a.Info
	}
	if start >= p.size || p.overlay[start] != nil {
		return false, nil
	}
	var best layout.Info
	fewest := uint64(math.MaxUint64)
	tried := map[layout.Info]bool{}
	for _, in := range p.guesses(im.Flavour, start, ref) {
		other := ref != nil && (in.UUID != ref.UUID || in.ExternalLBASize != ref.ExternalLBASize)
		if other || tried[in] || !p.hasFlog(start, &in) {
			continue
		}
		tried[in] = true
		orphans, err := p.orphans(ctx, start, &in)
		if err != nil {
			return false, err
		}
		if orphans < fewest && orphans < max(uint64(in.InternalNLBA)/8, 4) {
			best, fewest = in, orphans
		}
	}
	if best.InfoSize == 0 {
		return false, nil
	}
	raw := make([]byte, layout.InfoSize)
	best.Encode(raw)
	p.overlay[start], p.overlay[start+best.InfoOff] = raw, raw
	return true, nil
}

// orphans is how many blocks of an arena have no owner, if in describes it.
func (p *planner) orphans(ctx context.Context, start uint64, in *layout.Info) (n uint64, err error) {
	a := Arena{Offset: start, Info: *in}
	a.Padding = p.padding(&a)
	s, err := p.checkArena(ctx, new(collector), &a, new(ArenaReport), new(progress))
	if err != nil {
		return 0, err
	}
	s.owners.eachOrphan(func(_ layout.PostmapLBA, run uint32) { n += uint64(run) })
	return n, nil
}

// guesses are what the info block of the arena at start may have been, those first
// for which most speaks: what another arena of the BTT says, what the bad copies
// still say.
func (p *planner) guesses(f layout.Flavour, start uint64, ref *layout.Info) (list []layout.Info) {
	a := p.arena(f, start)
	var said []layout.Info
	for _, c := range []*InfoCopy{&a.Primary, &a.Backup} {
		if layout.HasSignature(c.raw) {
			said = append(said, c.Info)
		}
	}
	if ref != nil {
		for _, size := range p.sizes(start, said) {
			list = p.guess(list, f, start, *ref, size, ref.Nfree)
		}
	}
	for _, in := range said {
		in.ExternalLBASize = min(in.ExternalLBASize, in.InternalLBASize)
		for _, size := range p.sizes(start, said) {
			for _, nfree := range []uint32{in.Nfree, in.InternalNLBA - in.ExternalNLBA, layout.DefaultNfree} {
				list = p.guess(list, f, start, in, size, nfree)
			}
		}
	}
	if ref == nil && len(said) == 0 && f.Pool && p.pool.usable() {
		in := layout.Info{UUID: uuid.New(), ParentUUID: p.pool.header.Poolset, ExternalLBASize: p.pool.header.BlockSize}
		for _, size := range p.sizes(start, nil) {
			list = p.guess(list, f, start, in, size, layout.DefaultNfree)
		}
	}
	return list
}

// guess adds the info block with the identity of in, for an arena of size bytes.
func (p *planner) guess(list []layout.Info, f layout.Flavour, start uint64, in layout.Info, size uint64, nfree uint32) []layout.Info {
	if nfree == 0 || nfree > maxLanes {
		return list
	}
	next := uint64(0)
	switch {
	case p.follows(f, start, size, &in):
		next = size
	case p.follows(f, start, p.maxArena, &in):
		next = p.maxArena
	}
	for _, least := range []uint32{f.MinBlock, 0} {
		for _, align := range []uint32{f.Align, 64, 256} {
			g, err := layout.NewGeometry(size, layout.Params{ExternalLBASize: in.ExternalLBASize, Nfree: nfree, Align: align, MinBlock: least})
			if err != nil {
				continue
			}
			info := g.Info(f, in.UUID, in.ParentUUID, next)
			info.Flags = in.Flags & layout.FlagError
			list = append(list, info)
		}
	}
	return list
}

// follows reports whether another arena comes at a distance from the one at start.
func (p *planner) follows(f layout.Flavour, start, distance uint64, in *layout.Info) bool {
	next := addSaturated(start, distance)
	if next >= p.size {
		return false
	}
	a := p.arena(f, next)
	return a.sound() && a.Info.UUID == in.UUID || in.NextOff == distance && p.size-next >= layout.MinArenaSize
}

// sizes are how large an arena at start can be, in bytes.
func (p *planner) sizes(start uint64, said []layout.Info) []uint64 {
	rest := (p.size - start) / page * page
	sizes := []uint64{min(rest, p.maxArena)}
	for _, in := range said {
		if size := addSaturated(in.InfoOff, layout.InfoSize); size%page == 0 && size <= rest {
			sizes = append(sizes, size)
		}
	}
	for _, c := range p.chain() {
		if c.start > start && c.start-start <= p.maxArena {
			sizes = append(sizes, c.start-start) // if an arena of ours begins there
		}
	}
	return sizes
}

// mendChain corrects a nextoff that is not the distance of arenas, when nothing
// stands where it points: an arena stands in the usual place, or there is no room.
func (p *planner) mendChain(im *Image, last *Arena) bool {
	place := addSaturated(last.Offset, p.maxArena)
	next := uint64(0)
	switch a := p.arena(im.Flavour, place); {
	case place < p.size && a.sound() && a.Info.UUID == last.Info.UUID:
		next = p.maxArena
	case last.end() > p.size || p.size-last.end() >= layout.MinArenaSize:
		return false
	}
	in := last.Info
	in.NextOff = next
	p.put(last, last.encode(&in))
	return true
}

// put lays raw over both info blocks of an arena.
func (p *planner) put(a *Arena, raw []byte) {
	p.overlay[a.Offset], p.overlay[a.end()-layout.InfoSize] = raw, raw
}

// encode is in as bytes, with the reserved ones of the copy that is believed.
func (a *Arena) encode(in *layout.Info) []byte {
	raw := make([]byte, layout.InfoSize)
	in.Encode(raw)
	copy(raw[120:layout.InfoSize-8], a.believed()[120:])
	layout.PatchFlags(raw, in.Flags)
	return raw
}

// believed is the info block that is believed, as it stands.
func (a *Arena) believed() []byte {
	if a.FromBackup {
		return a.Backup.raw
	}
	return a.Primary.raw
}

// mendInfo settles what the info blocks of an arena are to be, and plans the copies
// that are not so: first the one that is not believed, so that there is always a
// good one.
func (p *planner) mendInfo(im *Image, a *Arena, kinds map[int]Kind) {
	if a.Missing > 0 {
		return
	}
	in := a.Info
	for _, f := range layout.Flavours() {
		if f.Start == im.Flavour.Start && f.Pool == im.Flavour.Pool {
			in.Major, in.Minor = f.Major, f.Minor
		}
	}
	first := &im.Arenas[0].Info
	if in.UUID == first.UUID || p.o.Adopt {
		in.UUID, in.ParentUUID = first.UUID, first.ParentUUID
	}
	if want, known := p.parent(im.Flavour); known && in.UUID == first.UUID {
		in.ParentUUID = want
	}
	p.mendSize(im, a, &in)
	if !p.hasFlog(a.Offset, &in) {
		p.lost[a.Index] = true
		p.plan.Refused = append(p.plan.Refused, Refusal{
			Arena: a.Index, Kind: FlogSequence, Offset: a.Offset + in.FlogOff,
			Why: "most lanes make no sense: the flog is lost, or the info block is not that of this arena; all of the arena is left as it is",
		})
		return
	}
	raw := bytes.Clone(a.believed())
	if in != a.Info {
		raw = a.encode(&in)
	}
	kind, ok := kinds[a.Index]
	if !ok {
		kind = InfoCopies
	}
	order := []uint64{a.end() - layout.InfoSize, a.Offset}
	if p.primaryFirst(a, im.Flavour) {
		order[0], order[1] = order[1], order[0]
	}
	for _, off := range order {
		before := make([]byte, layout.InfoSize)
		p.region.Read(before, off)
		p.add(Step{Arena: a.Index, Kind: kind, Stage: StageInfo, Offset: off, Before: before, After: raw, Why: whyInfo(a, before, raw)})
	}
	p.put(a, raw)
}

// primaryFirst reports whether on media the backup of the arena is the copy to rely
// on: the primary is bad, or sound but not the one that was chosen.
func (p *planner) primaryFirst(a *Arena, f layout.Flavour) bool {
	chosen := p.overlay
	p.overlay = nil
	defer func() { p.overlay = chosen }()
	on := p.arena(f, a.Offset)
	if on.Primary.Err != nil || on.Backup.Err != nil {
		return on.Backup.Err == nil
	}
	return chosen[a.Offset] != nil && bytes.Equal(chosen[a.Offset], on.Backup.raw)
}

// mendSize gives an arena the external_lbasize of the first one, if that is all
// that differs from what anybody would have laid out.
func (p *planner) mendSize(im *Image, a *Arena, in *layout.Info) {
	was := *in
	in.ExternalLBASize = im.Arenas[0].Info.ExternalLBASize
	if in.ExternalLBASize > in.InternalLBASize || len(explain(in, im.Flavour)) == 0 {
		*in = was
	}
}

func whyInfo(a *Arena, before, after []byte) string {
	was, err := layout.DecodeInfo(before)
	if err != nil {
		return fmt.Sprintf("%v: the info block is written anew", err)
	}
	now, _ := layout.DecodeInfo(after)
	names := differences(&was, &now)
	if len(names) == 0 {
		names = []string{"reserved bytes"}
	}
	return fmt.Sprintf("corrects %s of arena %d", strings.Join(names, ", "), a.Index)
}

// wipeSecond plans the end of a second info block where nothing belongs: in the
// first page of a kernel image. One that stands among the data is left alone.
func (p *planner) wipeSecond(findings []Finding) {
	if p.flavour.Pool || p.flavour.Start != page {
		return
	}
	for _, f := range findings {
		if f.Kind != InfoSecond || f.Offset != 0 {
			continue
		}
		before := make([]byte, layout.InfoSize)
		p.region.Read(before, 0)
		if !layout.HasSignature(before) {
			continue
		}
		p.overlay[0] = append(make([]byte, 8), before[8:]...)
		p.add(Step{
			Arena: WholeImage, Kind: InfoSecond, Stage: StageInfo, Before: before[:8], After: make([]byte, 8),
			Why:    "wipes the signature of an info block where nothing belongs",
			stores: []wordStore{{0, 0}},
		})
		return
	}
}

// planFlags plans the clearing of error flags.
func (p *planner) planFlags(im *Image) {
	for i := len(im.Arenas) - 1; i >= 0; i-- {
		a := &im.Arenas[i]
		if a.Info.Flags&layout.FlagError == 0 || a.Missing > 0 || p.lost[i] {
			continue
		}
		before := a.believed()
		after := bytes.Clone(before)
		layout.PatchFlags(after, a.Info.Flags&^layout.FlagError)
		for _, off := range []uint64{a.end() - layout.InfoSize, a.Offset} {
			p.add(Step{
				Arena: i, Kind: ArenaError, Stage: StageFlag, Offset: off, Before: before, After: after,
				Why: "clears the error flag, if nothing else is wrong by then",
			})
		}
	}
}
