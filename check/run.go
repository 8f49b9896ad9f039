package check

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// Run checks the whole image and reports what it finds. It never writes. Damage is
// not an error; the error is [ErrNoBTT], the cause of ctx if that was cancelled, or
// a [*pmem.FaultError] if the medium could not be read.
//
// It uses all cores. Beside the mapping it needs internal_nlba / 8 bytes of memory,
// as much again if a block has several owners, and at most 24 MiB for what the cores
// keep for themselves (more with hundreds): 64 MiB for 512 GiB in blocks of 4096
// bytes. Nobody may
// write to the image meanwhile.
func Run(ctx context.Context, r *pmem.Region, o Options) (rep *Report, err error) {
	defer r.CatchFault(&err)
	defer pmem.ArmFaults()()
	x, c := newReader(r, o), &collector{arena: WholeImage}
	im, err := x.inspect(c)
	if err != nil {
		return nil, err
	}
	rep = newReport(im)
	p := progress{report: o.Progress, total: rep.Sectors}
	for i := range im.Arenas {
		a := &im.Arenas[i]
		c.begin(i, a.Offset)
		if _, err := x.checkArena(ctx, c, a, &rep.Arenas[i], &p); err != nil {
			return nil, err
		}
	}
	c.end()
	for i := range im.Arenas {
		if a := &im.Arenas[i]; a.Missing == 0 && !x.hasFlog(a.Offset, &a.Info) {
			leave(c.list, i)
		}
	}
	slices.SortStableFunc(c.list, func(a, b Finding) int { return cmp.Compare(a.Arena, b.Arena) })
	rep.Findings = append(rep.Findings, c.list...)
	return rep, nil
}

// leave takes back what findings promise, those of an arena that a repair leaves as
// it is, and those of the image if that is the first one.
func leave(list []Finding, arena int) {
	for i := range list {
		if f := &list[i]; f.Severity > Info && (f.Arena == arena || f.Arena == WholeImage && arena == 0 && f.Kind == PoolHeader) {
			f.Repair = ""
		}
	}
}

func newReport(im *Image) *Report {
	rep := &Report{
		Schema: Schema, Path: im.Path, Size: im.Size, Format: im.Flavour.Name,
		Arenas: []ArenaReport{}, Findings: []Finding{},
	}
	for i := range im.Arenas {
		a := &im.Arenas[i]
		if i == 0 {
			rep.UUID, rep.SectorSize = a.Info.UUID.String(), a.Info.ExternalLBASize
		}
		rep.Sectors += uint64(a.Info.ExternalNLBA)
		rep.Arenas = append(rep.Arenas, ArenaReport{
			Arena: i, Offset: a.Offset, Size: a.Info.InfoOff + layout.InfoSize, Lanes: a.Info.Nfree,
		})
	}
	return rep
}

// arenaState is what an examination of flog and map has brought to light.
type arenaState struct {
	*mapScan
	lanes  []laneState
	rolled entries
}

// checkArena examines flog, map and ownership of one arena. It returns nil if the
// arena is truncated.
func (x *reader) checkArena(ctx context.Context, c *collector, a *Arena, rep *ArenaReport, p *progress) (*arenaState, error) {
	if a.Missing > 0 {
		p.add(uint64(a.Info.ExternalNLBA))
		return nil, nil
	}
	s := &arenaState{mapScan: &mapScan{reader: x, c: c, a: a, owners: newOwners(a.Info.InternalNLBA)}}
	s.lanes, s.rolled = x.lanes(c, a)
	if err := s.scan(ctx, p); err != nil {
		return nil, err
	}
	for i := range s.lanes {
		if s.lanes[i].owns {
			s.owners.claim(s.lanes[i].claims())
		}
		if s.lanes[i].inFlight {
			rep.InFlight++
		}
	}
	claimLeft(s.lanes, s.owners)
	list, more := s.owners.listShared()
	shared, err := s.nameHolders(ctx, list, s.lanes, s.rolled)
	if err != nil {
		return nil, err
	}
	reportShared(c, a, list, shared)
	c.omit(BlockDuplicate, Error, more)
	s.owners.reportOrphans(c, a)
	rep.Checked, rep.Padding = true, a.Padding.String()
	rep.Initial, rep.Zero = s.count[layout.Initial], s.count[layout.Zero]
	rep.Error, rep.Normal = s.count[layout.Error], s.count[layout.Normal]
	a.reportZeros(c, rep.Zero, x.flavour)
	return s, nil
}

// reportZeros: Linux ends a page-sized read at the first zero entry and leaves
// the rest of the buffer as it was, if a page has several sectors.
func (a *Arena) reportZeros(c *collector, zeros uint64, f layout.Flavour) {
	if zeros == 0 || a.Info.ExternalLBASize >= page || f.Pool {
		return
	}
	c.add(Finding{
		Kind: MapZero, Severity: Info, Offset: a.Offset + a.Info.MapOff,
		Message: fmt.Sprintf("zero entries: %d, of %d bytes each; where a page has several sectors, Linux returns stale memory when it reads past one", zeros, a.Info.ExternalLBASize),
		Repair:  "only on request: write real zeros",
	})
}

// progress tells the caller how far the check is.
type progress struct {
	report      func(done, total uint64)
	done, total uint64 // in arenas that are finished, and in all
	said        uint64
}

// newProgress is that of work on all maps of an image.
func newProgress(im *Image, o Options) progress {
	p := progress{report: o.Progress}
	for i := range im.Arenas {
		p.total += uint64(im.Arenas[i].Info.ExternalNLBA)
	}
	return p
}

// add finishes an arena of so many entries.
func (p *progress) add(entries uint64) {
	p.done += entries
	p.reached(0)
}

// reached: so many entries of the arena at work on have been taken up. A map that
// is gone through a second time is no step back.
func (p *progress) reached(entries uint64) {
	if p.report != nil {
		p.said = max(p.said, min(p.done+entries, p.total))
		p.report(p.said, p.total)
	}
}
