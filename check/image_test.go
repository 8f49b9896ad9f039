package check

import (
	"context"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
	"github.com/bttnbd/bttnbd/pmem"
)

// params describe an image to build. Everything has a small default.
type params struct {
	flavour  layout.Flavour // zero: layout.Kernel
	align    uint32         // 0: that of the flavour
	sector   uint32         // 0: 128
	nfree    uint32         // 0: 3
	arena    uint64         // 0: 20480 bytes
	arenas   int            // 0: 1
	tail     uint64         // bytes behind the last arena
	padding  layout.Padding // 0: PaddingNew
	origin   *uint64        // nil: where the flavour begins
	pmdkFlog bool           // flags in flog records, as PMDK and Windows write them
}

// image is a BTT made by hand, with layout only, in heap memory.
type image struct {
	t testing.TB
	params
	region *pmem.Region
	starts []uint64
	geo    layout.Geometry // of every arena
	free   [][]layout.PostmapLBA
}

var (
	testUUID   = uuid.UUID{0: 1, 15: 2}
	testParent = uuid.UUID{0: 3, 15: 4}
)

func build(t testing.TB, p params) *image {
	t.Helper()
	if p.flavour == (layout.Flavour{}) {
		p.flavour = layout.Kernel
	}
	orDefault(&p.align, p.flavour.Align)
	orDefault(&p.sector, 128)
	orDefault(&p.nfree, 3)
	orDefault(&p.arena, 20480)
	orDefault(&p.arenas, 1)
	orDefault(&p.padding, layout.PaddingNew)
	if p.origin == nil {
		p.origin = &p.flavour.Start
	}
	geo, err := layout.NewGeometry(p.arena, layout.Params{ExternalLBASize: p.sector, Nfree: p.nfree, Align: p.align})
	if err != nil {
		t.Fatal(err)
	}
	im := &image{t: t, params: p, geo: geo}
	im.region = pmem.NewHeap(*p.origin + uint64(p.arenas)*p.arena + p.tail)
	for i := range p.arenas {
		start := *p.origin + uint64(i)*p.arena
		im.starts = append(im.starts, start)
		next := p.arena
		if i == p.arenas-1 {
			next = 0
		}
		info := geo.Info(p.flavour, testUUID, testParent, next)
		im.putInfo(start, info)
		im.putInfo(start+geo.InfoOff, info)
		im.free = append(im.free, nil)
		for lane := range layout.Lane(p.nfree) {
			g := layout.InitialFlogGroup(lane, geo.ExternalNLBA)
			if p.pmdkFlog {
				g[0].Old, g[0].New = g[0].Old|layout.EntryZero, g[0].New|layout.EntryZero
			}
			im.putGroup(i, lane, g)
			im.free[i] = append(im.free[i], g[0].Old.Block())
		}
	}
	return im
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// used is an image in which every LBA of every arena was written, some of them
// twice, so that no block is where it was; sequence numbers have gone around.
func used(t testing.TB, p params) *image {
	im := build(t, p)
	for arena := range im.starts {
		n := im.geo.ExternalNLBA
		for i := range 2*n + 3 {
			lba := layout.PremapLBA(uint64(i) * uint64(n-1) % uint64(n)) // backwards
			im.write(arena, layout.Lane(i%im.nfree), lba)
		}
	}
	return im
}

func (im *image) options() Options { return Options{MaxArena: im.arena} }

// run checks the image and fails the test if that cannot be done.
func (im *image) run() *Report {
	im.t.Helper()
	rep, err := Run(context.Background(), im.region, im.options())
	if err != nil {
		im.t.Fatal(err)
	}
	return rep
}

// survey surveys the image and fails the test if that cannot be done.
func (im *image) survey() []ArenaSurvey {
	im.t.Helper()
	insp, err := Inspect(im.region, im.options())
	if err != nil {
		im.t.Fatal(err)
	}
	list, err := Survey(context.Background(), im.region, insp, true, im.options())
	if err != nil || len(list) != len(insp.Arenas) {
		im.t.Fatalf("%d arenas surveyed of %d: %v", len(list), len(insp.Arenas), err)
	}
	return list
}

func (im *image) bytes() []byte {
	b := make([]byte, im.region.Size())
	im.region.Read(b, 0)
	return b
}

// resized is a copy with n bytes, zeros behind what there was.
func (im *image) resized(n uint64) *image {
	out := *im
	b := append(im.bytes(), make([]byte, n)...)[:n]
	out.region = pmem.NewHeap(n)
	out.region.Write(0, b)
	return &out
}

func (im *image) putInfo(off uint64, info layout.Info) {
	var b [layout.InfoSize]byte
	info.Encode(b[:])
	im.region.Write(off, b[:])
}

func (im *image) info(off uint64) layout.Info {
	im.t.Helper()
	var b [layout.InfoSize]byte
	im.region.Read(b[:], off)
	info, err := layout.DecodeInfo(b[:])
	if err != nil {
		im.t.Fatalf("info block at %d: %v", off, err)
	}
	return info
}

// change alters the info blocks at offs and makes their checksums right.
func (im *image) change(fn func(*layout.Info), offs ...uint64) {
	im.t.Helper()
	for _, off := range offs {
		info := im.info(off)
		fn(&info)
		im.putInfo(off, info)
	}
}

func (im *image) primary(arena int) uint64 { return im.starts[arena] }
func (im *image) backup(arena int) uint64  { return im.starts[arena] + im.geo.InfoOff }

func (im *image) groupAt(arena int, lane layout.Lane) uint64 {
	return im.starts[arena] + im.geo.FlogOff + uint64(lane)*layout.FlogGroupSize
}

func (im *image) group(arena int, lane layout.Lane) layout.FlogGroup {
	var b [layout.FlogGroupSize]byte
	im.region.Read(b[:], im.groupAt(arena, lane))
	return layout.DecodeFlogGroup(b[:])
}

func (im *image) putGroup(arena int, lane layout.Lane, g layout.FlogGroup) {
	var b [layout.FlogGroupSize]byte
	g.Encode(b[:])
	im.region.Write(im.groupAt(arena, lane), b[:])
}

// changeGroup alters a lane; cur is the index of its current record, other that
// of the one before.
func (im *image) changeGroup(arena int, lane layout.Lane, fn func(g *layout.FlogGroup, cur, other int)) {
	im.t.Helper()
	g := im.group(arena, lane)
	cur, err := g.Current(im.padding)
	if err != nil {
		im.t.Fatal(err)
	}
	fn(&g, cur, int(im.padding)-cur)
	im.putGroup(arena, lane, g)
}

func (im *image) entryAt(arena int, lba layout.PremapLBA) uint64 {
	return im.starts[arena] + im.geo.MapOff + 4*uint64(lba)
}

func (im *image) entry(arena int, lba layout.PremapLBA) layout.MapEntry {
	return layout.MapEntry(im.region.Load32(im.entryAt(arena, lba)))
}

func (im *image) putEntry(arena int, lba layout.PremapLBA, e layout.MapEntry) {
	im.region.Store32(im.entryAt(arena, lba), uint32(e))
}

func (im *image) owned(arena int, lba layout.PremapLBA) layout.PostmapLBA {
	return im.entry(arena, lba).Owned(lba)
}

// interrupt writes the flog record of a write to lba, but not the map entry.
func (im *image) interrupt(arena int, lane layout.Lane, lba layout.PremapLBA) {
	im.t.Helper()
	old, new := layout.MapEntry(im.owned(arena, lba)), layout.MapEntry(im.free[arena][lane])
	if im.pmdkFlog {
		old, new = layout.NormalEntry(old.Block()), layout.NormalEntry(new.Block())
	}
	im.changeGroup(arena, lane, func(g *layout.FlogGroup, cur, other int) {
		g[other] = layout.FlogRecord{LBA: lba, Old: old, New: new, Seq: layout.NextSeq(g[cur].Seq)}
	})
}

// write does what a write does to the metadata.
func (im *image) write(arena int, lane layout.Lane, lba layout.PremapLBA) {
	im.t.Helper()
	im.interrupt(arena, lane, lba)
	old := im.owned(arena, lba)
	im.putEntry(arena, lba, layout.NormalEntry(im.free[arena][lane]))
	im.free[arena][lane] = old
}

// kinds are the distinct kinds of a report's findings, in order. arena-limits is
// left out, since every small image has it.
func kinds(rep *Report) (ks []string) {
	for _, f := range rep.Findings {
		if f.Kind != ArenaLimits {
			ks = append(ks, f.Kind.String())
		}
	}
	slices.Sort(ks)
	return slices.Compact(ks)
}

// meaning is what a BTT amounts to once it is open: who owns which block. It is
// computed here on its own, so that the check can be compared with it. bad says
// why there is no such thing, or why it breaks the rule of one owner a block.
func meaning(im *image, arena int) (entries []layout.MapEntry, free []layout.PostmapLBA, bad string) {
	n := layout.PremapLBA(im.geo.ExternalNLBA)
	for lba := range n {
		e := im.entry(arena, lba)
		if e.State() == layout.Initial {
			e = layout.MapEntry(lba) // its low bits mean nothing
		}
		entries = append(entries, e)
	}
	var d layout.PaddingDetector
	for lane := range layout.Lane(im.nfree) {
		g := im.group(arena, lane)
		if err := d.Add(&g); err != nil {
			return entries, free, err.Error()
		}
	}
	for lane := range layout.Lane(im.nfree) {
		g := im.group(arena, lane)
		i, err := g.Current(d.Padding())
		if err != nil {
			return entries, free, err.Error()
		}
		r := g[i]
		if r.Old.Block() != r.New.Block() {
			if r.LBA >= n {
				return entries, free, "no such lba"
			}
			if entries[r.LBA].Block() == r.Old.Block() {
				entries[r.LBA] = layout.NormalEntry(r.New.Block())
			}
		}
		free = append(free, r.Old.Block())
	}
	seen := make([]bool, im.geo.InternalNLBA)
	claim := func(b layout.PostmapLBA) {
		switch {
		case int(b) >= len(seen):
			bad = "no such block"
		case seen[b]:
			bad = "two owners"
		default:
			seen[b] = true
		}
	}
	for _, e := range entries {
		claim(e.Block())
	}
	for _, b := range free {
		claim(b)
	}
	return entries, free, bad
}
