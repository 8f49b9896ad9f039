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
// It needs internal_nlba / 8 bytes of memory, 128 MiB for the largest arena there
// can be. Nobody may write to the image meanwhile.
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
		if err := x.checkArena(ctx, c, a, &rep.Arenas[i], &p); err != nil {
			return nil, err
		}
	}
	c.end()
	slices.SortStableFunc(c.list, func(a, b Finding) int { return cmp.Compare(a.Arena, b.Arena) })
	rep.Findings = append(rep.Findings, c.list...)
	return rep, nil
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

// checkArena examines flog, map and ownership of one arena.
func (x *reader) checkArena(ctx context.Context, c *collector, a *Arena, rep *ArenaReport, p *progress) error {
	if a.Missing > 0 {
		p.add(uint64(a.Info.ExternalNLBA))
		return nil
	}
	scan := &mapScan{reader: x, c: c, a: a, owners: newOwners(a.Info.InternalNLBA)}
	lanes, rolled := x.lanes(c, a)
	for i := range lanes {
		scan.owners.claim(lanes[i].claims())
		if lanes[i].inFlight {
			rep.InFlight++
		}
	}
	err := scan.eachChunk(ctx, func(first layout.PremapLBA, b []byte) {
		scan.examine(first, b)
		p.add(uint64(len(b) / 4))
	})
	if err != nil {
		return err
	}
	shared, err := scan.nameHolders(ctx, lanes, rolled)
	if err != nil {
		return err
	}
	scan.owners.reportShared(c, a, shared)
	scan.owners.reportOrphans(c, a)
	rep.Checked, rep.Padding = true, a.Padding.String()
	rep.Initial, rep.Zero = scan.count[layout.Initial], scan.count[layout.Zero]
	rep.Error, rep.Normal = scan.count[layout.Error], scan.count[layout.Normal]
	a.reportZeros(c, rep.Zero)
	return nil
}

// reportZeros: Linux ends a page-sized read at the first zero entry and leaves
// the rest of the buffer as it was, if a page has several sectors.
func (a *Arena) reportZeros(c *collector, zeros uint64) {
	if zeros == 0 || a.Info.ExternalLBASize >= page {
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
	done, total uint64
}

func (p *progress) add(entries uint64) {
	p.done += entries
	if p.report != nil {
		p.report(p.done, p.total)
	}
}
