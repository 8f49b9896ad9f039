package check

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/bttnbd/bttnbd/layout"
)

// damage is one way to spoil a sound, used image, and all that must be found.
type damage struct {
	name   string
	p      params
	fresh  bool // never written to
	spoil  func(*image)
	resize func(*image) uint64 // nil: the size stays
	want   []string            // kinds, sorted; arena-limits is not counted
	clean  bool                // nothing worse than info
}

func (d *damage) image(t testing.TB) *image {
	im := build(t, d.p)
	if !d.fresh {
		im = used(t, d.p)
	}
	if d.spoil != nil {
		d.spoil(im)
	}
	if d.resize != nil {
		im = im.resized(d.resize(im))
	}
	return im
}

var (
	two      = params{arenas: 2}
	uefi     = params{flavour: layout.UEFI, arenas: 2}
	old      = params{padding: layout.PaddingOld}
	zero     = uint64(0)
	page4096 = uint64(4096)
)

// spoilLane alters lane 1 of arena 0; other is the record that is not current.
func spoilLane(fn func(g *layout.FlogGroup, cur, other int)) func(*image) {
	return func(im *image) { im.changeGroup(0, 1, fn) }
}

func spoilBoth(fn func(*layout.Info)) func(*image) {
	return func(im *image) { im.change(fn, im.primary(0), im.backup(0)) }
}

var damages = []damage{
	// Info blocks: one or both copies gone, or bent.
	{name: "primary zeroed", p: two, spoil: func(im *image) { im.region.Zero(im.primary(0), 4096) }, want: []string{"info-signature"}},
	{name: "primary zeroed, uefi", p: uefi, spoil: func(im *image) { im.region.Zero(im.primary(0), 4096) }, want: []string{"info-signature"}},
	{name: "primary of arena 1 zeroed", p: two, spoil: func(im *image) { im.region.Zero(im.primary(1), 4096) }, want: []string{"info-signature"}},
	{name: "primary checksum", p: two, spoil: func(im *image) { im.region.Store32(im.primary(0)+200, 1) }, want: []string{"info-checksum"}},
	{name: "primary lost, tail grown", p: params{tail: 40960}, spoil: func(im *image) { im.region.Store32(im.primary(0)+200, 1) }, want: []string{"info-checksum"}},
	{name: "backup zeroed", p: two, spoil: func(im *image) { im.region.Zero(im.backup(0), 4096) }, want: []string{"info-signature"}},
	{name: "backup checksum", p: two, spoil: func(im *image) { im.region.Store32(im.backup(1)+200, 1) }, want: []string{"info-checksum"}},
	{name: "both zeroed, arena 1", p: two, spoil: func(im *image) { im.region.Zero(im.primary(1), 4096); im.region.Zero(im.backup(1), 4096) }, want: []string{"arena-lost", "info-signature"}},
	{name: "both checksums", spoil: func(im *image) { im.region.Store32(im.primary(0)+200, 1); im.region.Store32(im.backup(0)+200, 1) }, want: []string{"arena-lost", "info-checksum"}},
	{name: "primary zeroed, backup bent", spoil: func(im *image) { im.region.Zero(im.primary(0), 4096); im.region.Store32(im.backup(0)+200, 1) }, want: []string{"arena-lost", "info-checksum", "info-signature"}},
	{name: "both zeroed, arena 0 of two", p: two, spoil: func(im *image) { im.region.Store32(im.primary(0)+200, 1); im.region.Zero(im.backup(0), 4096) }, want: []string{"arena-lost", "info-checksum", "info-signature"}},
	{name: "reserved bytes of one copy", spoil: func(im *image) {
		var b [4096]byte
		im.region.Read(b[:], im.backup(0))
		b[300] = 1
		layout.PatchFlags(b[:], 0)
		im.region.Write(im.backup(0), b[:])
	}, want: []string{"info-copies"}},

	// Info blocks: whole, but with an impossible or doubtful field.
	{name: "flags of one copy", spoil: func(im *image) { im.change(func(i *layout.Info) { i.Flags = 1 }, im.backup(0)) }, want: []string{"info-copies"}},
	{name: "error flag", spoil: spoilBoth(func(i *layout.Info) { i.Flags = 1 }), want: []string{"arena-error"}},
	{name: "unknown flag", spoil: spoilBoth(func(i *layout.Info) { i.Flags = 6 }), want: []string{"info-flags"}},
	{name: "major", spoil: spoilBoth(func(i *layout.Info) { i.Major = 3 }), want: []string{"arena-lost", "info-version"}},
	{name: "minor", spoil: spoilBoth(func(i *layout.Info) { i.Minor = 0 }), want: []string{"arena-lost", "info-version"}},
	{name: "version of arena 1", p: two, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.Major, i.Minor = 2, 0 }, im.primary(1), im.backup(1))
	}, want: []string{"arena-lost", "info-version"}},
	{name: "external_nlba of both", spoil: spoilBoth(func(i *layout.Info) { i.ExternalNLBA-- }), want: []string{"arena-lost", "info-field"}},
	{name: "nfree beyond reason", spoil: spoilBoth(func(i *layout.Info) { i.Nfree = 1 << 31 }), want: []string{"arena-lost", "info-field"}},
	{name: "dataoff", spoil: spoilBoth(func(i *layout.Info) { i.DataOff += 8 }), want: []string{"arena-geometry"}},
	{name: "uuid of arena 1", p: two, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.UUID = uuid.UUID{9} }, im.primary(1), im.backup(1))
	}, want: []string{"arena-mismatch"}},
	{name: "parent of arena 1", p: two, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.ParentUUID = uuid.UUID{9} }, im.primary(1), im.backup(1))
	}, want: []string{"arena-mismatch"}},
	{name: "external_lbasize of arena 1", p: two, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.ExternalLBASize = 120 }, im.primary(1), im.backup(1))
	}, want: []string{"arena-mismatch"}},
	{name: "nextoff far away", p: two, spoil: spoilBoth(func(i *layout.Info) { i.NextOff = 1 << 40 }), want: []string{"arena-chain", "arena-truncated"}},
	{name: "nextoff that wraps", p: two, spoil: spoilBoth(func(i *layout.Info) { i.NextOff = math.MaxUint64 - 4095 - 4096 }), want: []string{"arena-chain", "arena-truncated"}},
	{name: "nextoff that wraps, arena 1", p: two, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.NextOff = math.MaxUint64 - 8191 }, im.primary(1), im.backup(1))
	}, want: []string{"arena-chain", "arena-truncated"}},
	{name: "external_nlba of a middle arena", fresh: true, p: params{arenas: 3}, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.ExternalNLBA--; i.Nfree++ }, im.primary(1), im.backup(1))
		for lane := range layout.Lane(4) {
			im.putGroup(1, lane, layout.InitialFlogGroup(lane, im.geo.ExternalNLBA-1))
		}
	}, want: []string{"arena-mismatch"}},
	{name: "nextoff behind the end", spoil: spoilBoth(func(i *layout.Info) { i.NextOff = 20480 }), want: []string{"arena-truncated"}},
	{name: "nextoff into nothing", p: params{tail: 40960}, spoil: spoilBoth(func(i *layout.Info) { i.NextOff = 24576 }), want: []string{"arena-chain", "arena-lost", "info-signature"}},

	// The image as a whole.
	{name: "truncated in the last arena", p: two, resize: func(im *image) uint64 { return im.region.Size() - 8 }, want: []string{"arena-truncated"}},
	{name: "truncated before the last arena", p: two, resize: func(im *image) uint64 { return im.starts[1] }, want: []string{"arena-truncated"}},
	{name: "truncated to one info block", resize: func(*image) uint64 { return 8192 }, want: []string{"arena-truncated"}},
	{name: "grown", resize: func(im *image) uint64 { return im.region.Size() + 16<<20 }, want: []string{"space-unused"}, clean: true},
	{name: "1.1 at 0", p: params{origin: &zero}, want: []string{"info-version"}},
	{name: "2.0 at 4096", p: params{flavour: layout.UEFI, origin: &page4096}, want: []string{"info-version"}},
	{name: "1.1 at 0 besides", p: two, spoil: func(im *image) { im.putInfo(0, im.info(4096)) }, want: []string{"info-second"}},
	{name: "2.0 at 0 besides", p: two, spoil: func(im *image) {
		im.change(func(i *layout.Info) { i.Major, i.Minor = 2, 0 }, 4096)
		im.putInfo(0, im.info(4096))
		im.change(func(i *layout.Info) { i.Major, i.Minor = 1, 1 }, 4096)
	}, want: []string{"info-second"}},
	{name: "1.1 in the data of a 2.0", p: uefi, spoil: func(im *image) { in := im.info(0); in.Major, in.Minor = 1, 1; im.putInfo(4096, in) }, want: []string{"info-second"}},
	{name: "2.0 in the data of a 2.0", p: params{flavour: layout.UEFI, arena: 40960}, spoil: func(im *image) { im.putInfo(4096, im.info(0)) }, clean: true},

	// Flog.
	{name: "seq equal", spoil: spoilLane(func(g *layout.FlogGroup, cur, other int) { g[other].Seq = g[cur].Seq }), want: []string{"block-orphan", "flog-sequence"}},
	{name: "seq 4", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[cur].Seq = 4 }), want: []string{"block-orphan", "flog-sequence"}},
	{name: "seq of the older is 4", spoil: spoilLane(func(g *layout.FlogGroup, _, other int) { g[other].Seq = 4 }), want: []string{"block-orphan", "flog-sequence"}},
	{name: "both seqs 0", spoil: spoilLane(func(g *layout.FlogGroup, cur, other int) { g[cur].Seq, g[other].Seq = 0, 0 }), want: []string{"block-orphan", "flog-sequence"}},
	{name: "seqs swapped", spoil: spoilLane(func(g *layout.FlogGroup, cur, other int) { g[cur].Seq, g[other].Seq = g[other].Seq, g[cur].Seq }), want: []string{"block-duplicate", "block-orphan"}},
	{name: "lane zeroed", spoil: spoilLane(func(g *layout.FlogGroup, _, _ int) { *g = layout.FlogGroup{} }), want: []string{"block-orphan", "flog-sequence"}},
	{name: "record 0 zeroed", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[1] = g[cur]; g[0] = layout.FlogRecord{} }), want: []string{"flog-lone", "flog-padding"}},
	{name: "record 2 used", spoil: spoilLane(func(g *layout.FlogGroup, _, _ int) { g[2].LBA = 1 }), want: []string{"flog-padding"}},
	{name: "record 3 used", spoil: spoilLane(func(g *layout.FlogGroup, _, _ int) { g[3].Seq = 1 }), want: []string{"flog-padding"}},
	{name: "record 1 used, old padding", p: old, spoil: spoilLane(func(g *layout.FlogGroup, _, _ int) { g[1].Old = 1 }), want: []string{"flog-old-padding", "flog-padding"}},
	{name: "old padding", p: old, want: []string{"flog-old-padding"}, clean: true},
	{name: "lone record 1 with seq 1", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[1] = g[cur]; g[0].Seq, g[1].Seq = 0, 1 }), want: []string{"flog-lone"}},
	{name: "lone record with seq 2", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { *g = layout.FlogGroup{g[cur]}; g[0].Seq = 2 }), want: []string{"flog-lone"}},
	{name: "lone record with seq 1", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { *g = layout.FlogGroup{g[cur]}; g[0].Seq = 1 }), clean: true},
	{name: "lba of a move", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[cur].LBA = 1 << 20 }), want: []string{"flog-lba"}},
	{name: "lba of no move", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[cur].LBA = 1 << 20; g[cur].New = g[cur].Old }), want: []string{"flog-lba"}},
	{name: "old out of range", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[cur].Old = 1 << 20 }), want: []string{"block-orphan", "flog-block"}},
	{name: "new out of range", spoil: spoilLane(func(g *layout.FlogGroup, cur, _ int) { g[cur].New = 1 << 20 }), want: []string{"flog-block"}},
	{name: "old of another lane", spoil: func(im *image) {
		im.changeGroup(0, 1, func(g *layout.FlogGroup, cur, _ int) { g[cur].Old = layout.MapEntry(im.free[0][2]) })
	}, want: []string{"block-duplicate", "block-orphan"}},
	{name: "older record out of range", spoil: spoilLane(func(g *layout.FlogGroup, _, other int) { g[other].Old, g[other].LBA = 1<<20, 1<<20 }), clean: true},
	{name: "interrupted twice in one lba", spoil: func(im *image) { im.interrupt(0, 0, 5); im.interrupt(0, 1, 5) }, want: []string{"block-duplicate", "block-orphan", "flog-in-flight"}},
	{name: "interrupted, new block taken", spoil: func(im *image) {
		im.interrupt(0, 0, 5)
		im.changeGroup(0, 0, func(g *layout.FlogGroup, cur, _ int) { g[cur].New = layout.MapEntry(im.owned(0, 6)) })
	}, want: []string{"block-duplicate", "block-orphan", "flog-in-flight"}},
	{name: "torn record", spoil: spoilLane(func(g *layout.FlogGroup, _, other int) { g[other].LBA, g[other].Old = 2, 3 }), clean: true},

	// Map.
	{name: "out of range", spoil: func(im *image) { im.putEntry(0, 3, layout.NormalEntry(1<<20)) }, want: []string{"block-orphan", "map-range"}},
	{name: "first block too far", spoil: func(im *image) { im.putEntry(0, 3, layout.ZeroEntry(layout.PostmapLBA(im.geo.InternalNLBA))) }, want: []string{"block-orphan", "map-range", "map-zero"}},
	{name: "two lbas, one block", spoil: func(im *image) { im.putEntry(0, 3, im.entry(0, 4)) }, want: []string{"block-duplicate", "block-orphan"}},
	{name: "an lba and a lane, one block", spoil: func(im *image) { im.putEntry(0, 3, layout.NormalEntry(im.free[0][1])) }, want: []string{"block-duplicate", "block-orphan"}},
	{name: "a used map zeroed", spoil: func(im *image) { im.region.Zero(im.entryAt(0, 0), 4*uint64(im.geo.ExternalNLBA)&^7) }, want: []string{"block-duplicate", "block-orphan"}},
	{name: "flags lost", spoil: func(im *image) { im.putEntry(0, 3, im.entry(0, 3)&layout.BlockMask) }, want: []string{"block-duplicate", "block-orphan", "map-initial"}},
	{name: "initial with its own number", fresh: true, spoil: func(im *image) { im.putEntry(0, 3, 3) }, clean: true},
	{name: "initial with another number", fresh: true, spoil: func(im *image) { im.putEntry(0, 3, 4) }, want: []string{"map-initial"}},
	{name: "error entry", spoil: func(im *image) { im.putEntry(0, 3, layout.ErrorEntry(im.owned(0, 3))) }, want: []string{"map-error"}, clean: true},
	{name: "zero entry of 128 bytes", spoil: func(im *image) { im.putEntry(0, 3, layout.ZeroEntry(im.owned(0, 3))) }, want: []string{"map-zero"}, clean: true},
	{name: "zero entry of 4096 bytes", p: params{sector: 4096, arena: 131072}, spoil: func(im *image) { im.putEntry(0, 3, layout.ZeroEntry(im.owned(0, 3))) }, clean: true},
}

func TestDamage(t *testing.T) {
	// Goal: each way to spoil an image is found as what it is, and as nothing else.
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			rep := d.image(t).run()
			if got := kinds(rep); !slices.Equal(got, d.want) {
				t.Errorf("found %v, want %v", got, d.want)
			}
			if rep.Clean() != d.clean {
				t.Errorf("clean is %v, want %v", rep.Clean(), d.clean)
			}
			if t.Failed() {
				t.Logf("findings %+v", rep.Findings)
			}
			mustBePresentable(t, rep)
		})
	}
}

// mustBePresentable checks what every finding owes its reader.
func mustBePresentable(t *testing.T, rep *Report) {
	t.Helper()
	for _, f := range rep.Findings {
		if f.Message == "" || strings.ContainsAny(f.Message+f.Repair, "\n%") || f.Kind >= numKinds || f.Severity > Error || f.Arena < WholeImage {
			t.Errorf("finding %+v", f)
		}
	}
	perKind := map[string]int{}
	for _, f := range rep.Findings {
		key := fmt.Sprint(f.Arena, f.Kind)
		if perKind[key]++; perKind[key] > maxFindings+1 {
			t.Fatalf("more than %d findings of one kind", maxFindings)
		}
	}
}

func TestInfoFields(t *testing.T) {
	// Goal: each field of either copy, changed while the checksum is right, is found,
	// and the finding names it, be it impossible or only different.
	fields := map[string]func(*layout.Info){
		"uuid":             func(i *layout.Info) { i.UUID[3]++ },
		"parent_uuid":      func(i *layout.Info) { i.ParentUUID[3]++ },
		"flags":            func(i *layout.Info) { i.Flags++ },
		"version":          func(i *layout.Info) { i.Major++ },
		"version ":         func(i *layout.Info) { i.Minor++ },
		"external_lbasize": func(i *layout.Info) { i.ExternalLBASize-- },
		"internal_nlba":    func(i *layout.Info) { i.InternalNLBA-- },
		"internal_lbasize": func(i *layout.Info) { i.InternalLBASize-- },
		"infosize":         func(i *layout.Info) { i.InfoSize-- },
		"nextoff":          func(i *layout.Info) { i.NextOff++ },
		"dataoff":          func(i *layout.Info) { i.DataOff-- },
		"mapoff":           func(i *layout.Info) { i.MapOff++ },
		"flogoff":          func(i *layout.Info) { i.FlogOff++ },
		"infooff":          func(i *layout.Info) { i.InfoOff++ },
		"nfree":            func(i *layout.Info) { i.Nfree = 0 },
		"external_nlba":    func(i *layout.Info) { i.ExternalNLBA = 0 },
	}
	for name, fn := range fields {
		for arena := range 2 {
			for _, which := range []string{"primary", "backup"} {
				im := used(t, two)
				off := im.primary(arena)
				if which == "backup" {
					off = im.backup(arena)
				}
				im.change(fn, off)
				rep := im.run()
				found := slices.ContainsFunc(rep.Findings, func(f Finding) bool {
					return f.Arena == arena && f.Severity > Info && strings.Contains(f.Message, strings.TrimSpace(name))
				})
				if !found {
					t.Errorf("%s of the %s of arena %d: no finding names it: %+v", name, which, arena, rep.Findings)
				}
			}
		}
	}
}

func TestFindingPlaces(t *testing.T) {
	// Goal: a finding gives the device-wide LBA, the offset of what is wrong, and the
	// owners of a shared block, also in an arena that is not the first.
	im := used(t, params{arenas: 3})
	n := uint64(im.geo.ExternalNLBA)
	im.putEntry(1, 3, layout.NormalEntry(1<<20))
	im.putEntry(2, 9, im.entry(2, 4))
	im.putEntry(2, 8, layout.NormalEntry(im.free[2][1]))
	im.interrupt(2, 0, 7)
	rep := im.run()
	for _, c := range []struct {
		arena  int
		kind   Kind
		lba    uint64
		offset uint64
		words  []string
	}{
		{1, MapRange, n + 3, im.entryAt(1, 3), []string{fmt.Sprint(n + 3), "1048576"}},
		{2, BlockDuplicate, 2*n + 4, im.starts[2] + 4096 + uint64(im.owned(2, 4))*128, []string{fmt.Sprintf("lba %d and lba %d", 2*n+4, 2*n+9)}},
		{2, BlockDuplicate, 2*n + 8, im.starts[2] + 4096 + uint64(im.free[2][1])*128, []string{fmt.Sprintf("lba %d and lane 1", 2*n+8)}},
		{2, FlogInFlight, 2*n + 7, 0, []string{"lane 0", fmt.Sprintf("lba %d", 2*n+7)}},
	} {
		if !slices.ContainsFunc(rep.Findings, func(f Finding) bool {
			ok := f.Arena == c.arena && f.Kind == c.kind && f.LBA != nil && *f.LBA == c.lba && (c.offset == 0 || f.Offset == c.offset)
			for _, w := range c.words {
				ok = ok && strings.Contains(f.Message, w)
			}
			return ok
		}) {
			t.Errorf("no finding like %+v", c)
		}
	}
	if t.Failed() {
		t.Logf("findings %+v", rep.Findings)
	}
}

func TestSharedAfterRecovery(t *testing.T) {
	// Goal: the owners of a shared block are named as they are after the next open: an
	// interrupted write gives its LBA the new block and its lane the old one.
	im := used(t, params{})
	taken := im.owned(0, 6)
	im.interrupt(0, 0, 5)
	im.changeGroup(0, 0, func(g *layout.FlogGroup, cur, _ int) { g[cur].New = layout.MapEntry(taken) })
	im.interrupt(0, 1, 8)
	freed := im.owned(0, 8)
	im.putEntry(0, 9, im.entry(0, 8))
	rep := im.run()
	for _, want := range []string{
		fmt.Sprintf("internal block %d belongs to lba 5 and lba 6; ", taken),
		fmt.Sprintf("internal block %d belongs to lba 9 and lane 1; ", freed),
	} {
		if !slices.ContainsFunc(rep.Findings, func(f Finding) bool { return strings.HasPrefix(f.Message, want) }) {
			t.Errorf("findings %+v, want one that begins %q", rep.Findings, want)
		}
	}
}

func TestManyFindings(t *testing.T) {
	// Goal: a map full of noise gives a short report that counts the rest, with the
	// right totals, and does not name thousands of owners of one block.
	im := build(t, params{arena: 1 << 20, sector: 64})
	n := uint64(im.geo.ExternalNLBA)
	for lba := range layout.PremapLBA(n) {
		switch lba % 3 {
		case 0:
			im.putEntry(0, lba, layout.NormalEntry(1<<29))
		case 1:
			im.putEntry(0, lba, layout.NormalEntry(7))
		}
	}
	rep := im.run()
	mustBePresentable(t, rep)
	listed := map[Kind]uint64{}
	for _, f := range rep.Findings {
		if f.More == 0 {
			listed[f.Kind]++
		} else {
			listed[f.Kind] += f.More
		}
		if len(f.Message) > 300 {
			t.Errorf("a message of %d bytes: %s", len(f.Message), f.Message)
		}
	}
	if want := (n + 2) / 3; listed[MapRange] != want || want < 1000 {
		t.Errorf("%d entries out of range are accounted for, want %d", listed[MapRange], want)
	}
	if listed[BlockDuplicate] != 1 {
		t.Errorf("%d shared blocks, want 1: %+v", listed[BlockDuplicate], rep.Findings)
	}
	im = build(t, params{arena: 1 << 20, sector: 64})
	for lba := range layout.PremapLBA(n / 2) {
		im.putEntry(0, lba, layout.NormalEntry(layout.PostmapLBA(n)/2+layout.PostmapLBA(lba)))
	}
	rep = im.run()
	mustBePresentable(t, rep)
	shared := uint64(0)
	for _, f := range rep.Findings {
		if f.Kind == BlockDuplicate {
			shared += max(f.More, 1)
		}
	}
	if shared != n/2 {
		t.Errorf("%d shared blocks are accounted for, want %d", shared, n/2)
	}
}

func TestInfoSeverity(t *testing.T) {
	// Goal: what can be lived with is a warning, what Linux stumbles over, or what
	// makes two copies irreconcilable, an error.
	for _, c := range []struct {
		name  string
		spoil func(*image)
		want  Severity
	}{
		{"primary lost", func(im *image) { im.region.Zero(im.primary(0), 4096) }, Error},
		{"backup lost", func(im *image) { im.region.Zero(im.backup(0), 4096) }, Warning},
		{"flags differ", func(im *image) { im.change(func(i *layout.Info) { i.Flags = 2 }, im.backup(0)) }, Warning},
		{"uuids differ", func(im *image) { im.change(func(i *layout.Info) { i.UUID[0]++ }, im.backup(0)) }, Error},
		{"flags and sizes differ", func(im *image) { im.change(func(i *layout.Info) { i.Flags = 2; i.ExternalLBASize-- }, im.backup(0)) }, Error},
	} {
		im := used(t, params{})
		c.spoil(im)
		if got := worst(im.run().Findings); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTooManyLanes(t *testing.T) {
	// Goal: a geometry that is consistent but has more lanes than anybody could want
	// is not believed, since lanes cost memory.
	for nfree, ok := range map[uint32]bool{maxLanes: true, maxLanes + 1: false} {
		g, err := layout.NewGeometry(1<<30, layout.Params{ExternalLBASize: 512, Nfree: nfree, Align: 64})
		if err != nil {
			t.Fatal(err)
		}
		c := InfoCopy{Info: g.Info(layout.UEFI, testUUID, testParent, 0)}
		if err := c.judge(0, layout.UEFI); (err == nil) != ok {
			t.Errorf("%d lanes: %v", nfree, err)
		}
	}
}

func TestBackupOfGrownFile(t *testing.T) {
	// Goal: when the file has grown, a primary with a bad checksum still tells where
	// its backup is, which is not at the end any more.
	im := used(t, params{tail: 40960})
	im.region.Store32(im.primary(0)+200, 1)
	rep, err := Run(context.Background(), im.region, Options{})
	if err != nil || len(rep.Arenas) != 1 || !slices.Equal(kinds(rep), []string{"info-checksum"}) {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestTooManyArenas(t *testing.T) {
	// Goal: a chain without end, which a hostile image can have, is cut off.
	im := build(t, params{arenas: maxArenas + 2})
	rep := im.run()
	if got := kinds(rep); !slices.Equal(got, []string{"arena-chain"}) || len(rep.Arenas) != maxArenas {
		t.Errorf("%d arenas, findings %v", len(rep.Arenas), got)
	}
}

func TestSecondBTT(t *testing.T) {
	// Goal: the user of a 2.0 image cannot make a check look at a BTT that he has
	// written into his own blocks, even if one info block of the real one is bad.
	guest := build(t, params{arena: 24576})
	content := guest.bytes()[4096:]
	for _, lost := range []string{"none", "primary", "backup"} {
		im := used(t, params{flavour: layout.UEFI, arena: 65536})
		im.region.Write(4096, content)
		switch lost {
		case "primary":
			im.region.Store32(im.primary(0)+200, 1)
		case "backup":
			im.region.Store32(im.backup(0)+200, 1)
		}
		rep, err := Run(context.Background(), im.region, Options{MaxArena: 65536})
		if err != nil || rep.Format != "uefi" || !slices.Contains(kinds(rep), "info-second") {
			t.Errorf("%s lost: format %s, %v, %v", lost, rep.Format, kinds(rep), err)
		}
	}
	// A 2.0 image with both copies, in a file that still has the backup of a larger
	// 1.1 image at its end: the whole one is it.
	im := build(t, params{arena: 131072})
	im.region.Zero(0, im.region.Size()-4096)
	im.region.Write(0, build(t, params{flavour: layout.UEFI}).bytes())
	if rep, err := Run(context.Background(), im.region, Options{MaxArena: 131072}); err != nil || rep.Format != "uefi" {
		t.Errorf("a leftover backup: %+v, %v", rep, err)
	}
	// One copy of either: the report says that it is a guess.
	im = build(t, params{})
	in := im.info(4096)
	in.Major, in.Minor = 2, 0
	im.putInfo(0, in)
	im.region.Zero(im.backup(0), 4096)
	rep := im.run()
	if i := slices.IndexFunc(rep.Findings, func(f Finding) bool { return f.Kind == InfoSecond }); i < 0 || rep.Findings[i].Severity != Error {
		t.Errorf("an ambiguous image: %+v", rep.Findings)
	}
}

func TestOwnersRanges(t *testing.T) {
	// Goal: claiming a range equals claiming its blocks one by one, and the orphans
	// are the blocks that were not claimed, at all alignments to the words of 64.
	for _, n := range []uint32{1, 63, 64, 65, 200} {
		for first := uint32(0); first < n; first++ {
			for _, run := range []uint32{1, 2, 63, 64, 65, 130} {
				run = min(run, n-first)
				o := newOwners(n)
				o.claim(layout.PostmapLBA(first + run - 1)) // so that the range meets one
				o.claimRange(layout.PostmapLBA(first), run)
				var orphans []uint32
				o.eachOrphan(func(b layout.PostmapLBA, k uint32) {
					for i := range k {
						orphans = append(orphans, uint32(b)+i)
					}
				})
				var want []uint32
				for b := range n {
					if b < first || b >= first+run {
						want = append(want, b)
					}
				}
				shared, more := o.listShared()
				if !slices.Equal(orphans, want) || !slices.Equal(shared, []layout.PostmapLBA{layout.PostmapLBA(first + run - 1)}) || more != 0 {
					t.Fatalf("of %d blocks %d from %d claimed: orphans %v, want %v; shared %v", n, run, first, orphans, want, shared)
				}
			}
		}
	}
}
